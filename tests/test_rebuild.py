"""Recovery: what was lost is said, what is left is saved, and Redis is as if nothing had happened."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from core import SHARDS, drain_all, make_config, make_drainer, running_front
from faulty_recovery import POINTS
from seriatim import keyspace, rebuild
from seriatim.errors import ConfigError, Halted, Invalid
from seriatim.http.app import Front
from seriatim.keyspace import State
from seriatim.ledger import Wanted
from seriatim.model import Entry, SeriesFields, Skip, Why, canonical_meta, shard_of
from seriatim.rebuild import Choice, Outcome
from seriatim.signing import JsonWebKeySet, Signer
from seriatim.store import Store
from seriatim.verify import audit_store
from stack import Valkey, new_id, until

FORMATS = (
    SeriesFields(prefix="A-", start=998),
    SeriesFields(format="%incYearly%/%incMonthly%/%incDaily%-%yearLong%%month%%day%"),
    SeriesFields(format="F%incDaily%/%yearLong%-%month%-%day%", chronology="free", start=3),
)
DAYS = (None, date(2020, 2, 29), date(2021, 12, 31), date(2022, 1, 1))


def url_of(store: Store) -> str:
    return store.engine.url.render_as_string(hide_password=False)


def settle_all(valkey: Valkey, store: Store) -> None:
    drain_all(make_drainer(valkey, store, make_config(valkey, "")))


def recover(valkey: Valkey, store: Store, choice: Choice | None = None) -> Outcome:
    config = make_config(valkey, url_of(store))
    signer = Signer(Path(config.signing_key), config.issuer)
    return rebuild.Recovery(valkey.client, store, signer, config, lambda _: None).run(choice or Choice())


class Numbered:
    """What was issued: entries by series, as they were answered."""

    def __init__(self, company: str) -> None:
        self.company = company
        self.entries: dict[str, list[Entry]] = {}


async def number(front: Front, rng: random.Random, numbered: Numbered, steps: int) -> None:
    """Asks for numbers of all kinds, voids and skips, at random."""
    company = numbered.company
    for fields in FORMATS if not numbered.entries else ():
        series = new_id()
        await front.definitions.put(company, series, fields)
        numbered.entries[series] = []
    for _ in range(steps):
        series, free = rng.choice([(one, at == 2) for at, one in enumerate(list(numbered.entries)[:3])])
        entries = numbered.entries[series]
        day = rng.choice(DAYS) if free else None
        match rng.randrange(5):
            case 0:
                wanted = [Wanted(new_id(), day=day) for _ in range(rng.randrange(1, 60))]
                entries += [entry for entry, _ in await front.ledger.put_batch(company, series, wanted)]
            case 1 if entries:
                voided = rng.choice(entries)
                await front.ledger.void(company, series, voided.id, Why("a mistake", "somebody"))
            case 2:
                await front.ledger.skip(company, series, None, 1000 + 40 * len(entries), Why("left out", "somebody"))
            case 3:
                entry, _ = await front.ledger.put_default_entry(company, "invoice", Wanted(new_id()))
                numbered.entries[entry.series].append(entry)
            case _:
                meta = canonical_meta({"k": str(rng.random())})
                entry, _ = await front.ledger.put_entry(company, series, Wanted(new_id(), meta, day=day))
                entries.append(entry)


def logical(valkey: Valkey) -> dict[str, Any]:
    """What the server holds of series and companies, in whatever way, without what a worker keeps."""
    found: dict[str, Any] = {}
    for key in map(bytes.decode, cast("list[bytes]", list(valkey.client.scan_iter(match="{s*", _type="hash")))):
        content = cast("dict[bytes, bytes]", valkey.client.hgetall(key))
        if key.endswith(":series"):
            for name, packed in content.items():
                found[name.decode()] = _standing(valkey, key, name.decode(), packed)
        elif re.search(r":ids:[^:]*:\d+$", key):
            found[key] = {entry: _indexed(value) for entry, value in content.items()}
        elif not key.endswith(":counters"):
            found[key] = content
    for shard in range(SHARDS):
        for field in (b"epoch", b"generation", b"halted", b"written", b"settled"):
            found[keyspace.shard_key(shard)].pop(field, None)
    return found


def _standing(valkey: Valkey, key: str, name: str, packed: bytes) -> tuple[State, dict[str, int]]:
    """A series' state, and all its counters, wherever they are kept."""
    state = State.unpack(packed)
    aside = valkey.client.hgetall(f"{key.removesuffix('series')}ids:{name}:counters")
    kept = {field.decode(): int(value) for field, value in cast("dict[bytes, bytes]", aside).items()}
    return replace(state, item=0, counters={}), kept | state.counters


def _indexed(value: bytes) -> tuple[bytes, int]:
    """Fingerprint and position, without the item."""
    return value[:8], int.from_bytes(value[8:-2])


def sound(store: Store, numbered: Numbered) -> bool:
    """Whether all chains are, with everything that was issued in its place."""
    keys = JsonWebKeySet(b'{"keys":[%b]}' % ",".join(store.signing_keys()).encode())
    for name, entries in numbered.entries.items():
        series = store.series(name)
        assert series
        kept = store.entries_after(series, 0, 10_000)
        assert [(one.id, one.position, one.code) for one in kept[: len(entries)]] == [
            (one.id, one.position, one.code) for one in sorted(entries, key=lambda one: one.position)
        ]
        audits = list(audit_store(store, series, keys, None))
        assert [finding for audit in audits for finding in audit.findings] == []
    return True


async def issued_before(front: Front, numbered: Numbered) -> bool:
    """Whether every id is answered as it was, and by the series that it was claimed for."""
    for name, entries in numbered.entries.items():
        for entry in entries[::7]:
            day = date.fromisoformat(entry.date) if entry.date in map(str, DAYS) else None
            again, replayed = await front.ledger.put_entry(
                numbered.company, name, Wanted(entry.id, entry.meta, day=day)
            )
            assert (replayed, again.position, again.code) == (True, entry.position, entry.code)
    return True


@pytest.fixture
def numbered(valkey: Valkey, store: Store) -> Numbered:
    """Numbers of all kinds, some of them settled."""
    made = Numbered(store.create_company(new_id(), "test").id)
    rng = random.Random(7)

    async def issue(steps: int) -> None:
        async with running_front(make_config(valkey, url_of(store))) as front:
            await number(front, rng, made, steps)

    asyncio.run(issue(60))
    settle_all(valkey, store)
    asyncio.run(issue(40))
    return made


def test_redis_is_as_if_nothing_had_happened(valkey: Valkey, store: Store, numbered: Numbered) -> None:
    # Given numbers of all kinds, all of them settled
    settle_all(valkey, store)
    before = logical(valkey)

    # When Redis loses everything, and it is recovered by a decision for all
    valkey.client.flushall()
    outcome = recover(valkey, store, Choice(accept_loss=True))

    # Then it holds what it held
    assert outcome.recovered
    assert logical(valkey) == before
    assert sound(store, numbered)


def test_what_only_redis_held_is_saved_and_nothing_else_asked(valkey: Valkey, store: Store, numbered: Numbered) -> None:
    # Given waiting records, and an index of which a bucket is lost
    backlog = sum(len(store.entries_after(one, 0, 10_000)) for one in store.list_series())
    series = max(numbered.entries, key=lambda one: len(numbered.entries[one]))
    shard = shard_of(series, SHARDS)
    assert valkey.client.delete(f"{keyspace.index_prefix(shard, series)}:1")
    store.halt("a bucket of the id index is missing", "test")

    # When it is recovered, then there is nothing to decide
    outcome = recover(valkey, store)
    assert (outcome.recovered, outcome.doubts) == (True, [])
    assert outcome.saved > 0

    # And everything that was issued is there, and numbering goes on behind it
    assert sum(map(len, numbered.entries.values())) == outcome.entries > backlog
    assert sound(store, numbered)

    async def go_on() -> None:
        async with running_front(make_config(valkey, url_of(store))) as front:
            assert await issued_before(front, numbered)
            await number(front, random.Random(8), numbered, 40)

    asyncio.run(go_on())
    settle_all(valkey, store)
    assert sound(store, numbered)


def test_data_of_another_version_is_built_anew_when_the_store_has_all_of_it(
    valkey: Valkey, store: Store, numbered: Numbered
) -> None:
    def write_layout(layout: str) -> None:
        for shard in range(SHARDS):
            valkey.client.hset(keyspace.shard_key(shard), "layout", layout)

    # Given a Redis with records that wait, as another version wrote them
    write_layout("another")

    # When it is recovered, then it is refused, without a halt: that version can still settle them
    with pytest.raises(ConfigError, match="another version"):
        recover(valkey, store)
    assert store.data_set().state == "live"
    write_layout(keyspace.LAYOUT)
    settle_all(valkey, store)

    # When nothing waits any more, and nothing can be read, then all is built anew from the store
    before = logical(valkey)
    for name in valkey.client.scan_iter(match="{s*}:series"):
        for series in valkey.client.hkeys(name):
            valkey.client.hset(name, series, "what another version keeps there")
    write_layout("another")
    outcome = recover(valkey, store)
    assert (outcome.recovered, outcome.saved, outcome.doubts) == (True, 0, [])
    assert logical(valkey) == before
    assert sound(store, numbered)


@pytest.mark.parametrize("resumed", [True, False])
def test_an_old_copy_goes_on_as_somebody_decides(
    valkey: Valkey, store: Store, numbered: Numbered, *, resumed: bool
) -> None:
    # Given a copy of Redis' files, and numbers issued since that nothing holds
    copy = valkey.directory.path / "copy"
    shutil.copytree(valkey.directory.redis, copy, ignore=shutil.ignore_patterns("*.sock"))
    kept = {name: len(entries) for name, entries in numbered.entries.items()}
    valkey.kill()
    valkey.start()

    async def issue() -> None:
        async with running_front(make_config(valkey, url_of(store))) as front:
            await number(front, random.Random(9), numbered, 40)

    asyncio.run(issue())
    valkey.kill()
    shutil.rmtree(valkey.directory.redis)
    copy.rename(valkey.directory.redis)
    valkey.start()

    # When it is recovered without a decision, then it says of which series numbers may be lost, and allocates nothing
    outcome = recover(valkey, store)
    assert not outcome.recovered
    doubts = {one.series: one for one in outcome.doubts}
    assert doubts.keys() == kept.keys()
    assert {name: one.entries for name, one in doubts.items()} == kept
    assert store.data_set().state == "halted"

    # And no number that may have been issued can be chosen
    first = next(iter(kept))
    with pytest.raises(Invalid, match="at the earliest"):
        recover(valkey, store, Choice(resume_at={first: doubts[first].number - 1}))
    with pytest.raises(Invalid, match="has lost nothing"):
        recover(valkey, store, Choice(resume_at={new_id(): 5}))

    # When somebody decides
    lost = {name: entries[kept[name] :] for name, entries in numbered.entries.items()}
    numbered.entries = {name: entries[: kept[name]] for name, entries in numbered.entries.items()}
    *strict, free = kept
    resume_at = {name: doubts[name].number + 500 for name in strict} if resumed else {}
    with pytest.raises(Invalid, match="counts anew for dates"):
        recover(valkey, store, Choice(resume_at | {free: 10_000}))
    assert recover(valkey, store, Choice(resume_at, accept_loss=True)).recovered

    # Then numbers go on there, none of those that were issued comes again if any number was left out
    async def go_on() -> list[Entry]:
        async with running_front(make_config(valkey, url_of(store))) as front:
            assert await issued_before(front, numbered)
            puts = [front.ledger.put_entry(numbered.company, name, Wanted(new_id())) for name in kept]
            return [entry for entry, _ in await asyncio.gather(*puts)]

    fresh = asyncio.run(go_on())
    issued = {entry.code for entries in lost.values() for entry in entries}
    assert [one.number for one in fresh] == [resume_at.get(name, doubts[name].number) for name in kept]
    if resumed:
        assert not issued & {one.code for one in fresh if one.series != free}

    # And what was left out and decided is on record
    settle_all(valkey, store)
    assert sound(store, numbered)
    skips = [note for one in store.list_series() for note in store.notes(one) if isinstance(note, Skip)]
    assert bool([one for one in skips if one.actor == rebuild.ACTOR]) == resumed
    logged = next(one for one in store.logged() if one.action == "recover")
    assert logged.detail["resumed_at"] == resume_at
    repeating = {name: one.number for name, one in doubts.items() if name not in resume_at}
    assert logged.detail["may_repeat_from"] == repeating


def test_a_serving_process_goes_on_by_itself(valkey: Valkey, store: Store, numbered: Numbered) -> None:
    async def serve() -> None:
        # Given a process that serves, and a Redis that loses everything beneath it
        async with running_front(make_config(valkey, url_of(store))) as front:
            series = next(iter(numbered.entries))
            await asyncio.to_thread(settle_all, valkey, store)
            valkey.client.flushall()
            await asyncio.to_thread(until, lambda: front.gate.standing is None)
            with pytest.raises(Halted):
                await front.ledger.put_entry(numbered.company, series, Wanted(new_id()))

            # When it is recovered, then it allocates again, and answers what was issued before
            outcome = await asyncio.to_thread(recover, valkey, store, Choice(accept_loss=True))
            assert outcome.recovered
            await asyncio.to_thread(until, lambda: front.gate.standing is not None)
            assert await issued_before(front, numbered)
            await number(front, random.Random(10), numbered, 20)

    asyncio.run(serve())
    settle_all(valkey, store)
    assert sound(store, numbered)


@pytest.mark.usefixtures("numbered")
def test_what_is_sound_is_left_alone_and_another_stores_server_too(
    valkey: Valkey, store: Store, tmp_path: Path
) -> None:
    # Given a server that allocates
    before = valkey.dump()

    # When it is recovered without need, then nothing happens
    assert not recover(valkey, store).recovered
    assert valkey.dump() == before
    assert store.data_set().state == "live"

    # When it is recovered for a store that it does not belong to, or that never allocated, then it is refused
    other = Store(f"sqlite:///{tmp_path / 'other.db'}")
    other.migrate()
    other.prepare(SHARDS)
    with pytest.raises(ConfigError, match="Nothing was ever allocated"):
        recover(valkey, other)
    other.go_live("another")
    with pytest.raises(ConfigError, match="belongs to another store"):
        recover(valkey, other)
    other.close()
    assert valkey.dump() == before


@pytest.mark.parametrize("step", POINTS)
def test_a_recovery_that_dies_at_any_step_is_run_again(
    valkey: Valkey, store: Store, numbered: Numbered, step: str
) -> None:
    # Given waiting records, a bucket that is lost, and a recovery that is killed
    series = max(numbered.entries, key=lambda one: len(numbered.entries[one]))
    assert valkey.client.delete(f"{keyspace.index_prefix(shard_of(series, SHARDS), series)}:1")
    store.halt("a bucket of the id index is missing", "test")
    config = make_config(valkey, url_of(store))
    environment = dict(os.environ) | {
        "SERIATIM_REDIS_URL": config.redis_url,
        "SERIATIM_STORE_URL": config.store_url,
        "SERIATIM_SIGNING_KEY": config.signing_key,
    }
    program = [sys.executable, str(Path(__file__).parent / "faulty_recovery.py"), step]
    dead = subprocess.run(program, env=environment, check=False, capture_output=True, timeout=60)
    assert dead.returncode == -signal.SIGKILL, dead.stderr

    # Then nothing is allocated, unless that was its last step
    assert (store.data_set().state == "live") == (step == "after ending")

    # When it is run again, then it is done, without a question, and everything that was issued is there
    outcome = recover(valkey, store)
    assert outcome.doubts == []
    assert outcome.recovered == (step != "after ending")

    async def go_on() -> None:
        async with running_front(config) as front:
            assert await issued_before(front, numbered)
            await number(front, random.Random(11), numbered, 10)

    asyncio.run(go_on())
    settle_all(valkey, store)
    assert sound(store, numbered)
