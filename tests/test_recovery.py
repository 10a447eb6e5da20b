"""Meeting a Redis server: what lets a process allocate, and what stops it."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.applications import Starlette

from core import SHARDS, drain_all, id_in, make_config, make_drainer, make_series, running_front
from scripted import stands
from seriatim import keyspace, recovery, scripts
from seriatim.errors import Halted, Unavailable
from seriatim.http.app import Front
from seriatim.ledger import Wanted
from seriatim.line import ANSWER_S
from seriatim.model import SeriesFields, Standing, Why, shard_of
from seriatim.store import Store
from stack import Up, Valkey, entry_path, new_id, put_entry, put_series, until


def meet(valkey: Valkey, store: Store) -> Standing:
    return recovery.meet(valkey.client, store, "fsync")


async def issue(valkey: Valkey, store: Store, count: int, *, series: str = "", company: str = "") -> tuple[str, str]:
    """Issues entries through an API process; answers the series and its company."""
    company = company or store.create_company(new_id(), "test").id
    async with running_front(make_config(valkey, store.engine.url.render_as_string(hide_password=False))) as front:
        series = series or await make_series(front, company)
        for _ in range(count):
            await front.ledger.put_entry(company, series, Wanted(new_id()))
    return series, company


def settle_all(valkey: Valkey, store: Store) -> None:
    drain_all(make_drainer(valkey, store, make_config(valkey, "")))


WRONG = [
    ("appendonly", "no"),
    ("appendfsync", "everysec"),
    ("appendfsync", "no"),
    ("no-appendfsync-on-rewrite", "yes"),
    ("aof-load-truncated", "yes"),
    *(("maxmemory-policy", f"{which}-{how}") for which in ("allkeys", "volatile") for how in ("lru", "lfu", "random")),
    ("maxmemory-policy", "volatile-ttl"),
]


@pytest.fixture
def old_copy(valkey: Valkey) -> Iterator[Path]:
    """Where a test keeps a copy of the server's files."""
    path = valkey.directory.path / "copy"
    yield path
    shutil.rmtree(path, ignore_errors=True)


def put_back(valkey: Valkey, copy: Path) -> None:
    """Replaces the server's files, and starts it on them."""
    valkey.kill()
    shutil.rmtree(valkey.directory.redis)
    shutil.copytree(copy, valkey.directory.redis, ignore=shutil.ignore_patterns("*.sock"))
    valkey.start()


def take_copy(valkey: Valkey, copy: Path) -> None:
    shutil.copytree(valkey.directory.redis, copy, ignore=shutil.ignore_patterns("*.sock"))


def test_the_first_start_goes_live_and_later_meetings_agree(valkey: Valkey, store: Store) -> None:
    # Given an empty server and a new store, when they meet twice
    first, second = meet(valkey, store), meet(valkey, store)

    # Then the store is live, and the standing is the same
    assert first == second
    assert store.data_set().state == "live"


def test_a_first_start_that_crashed_halfway_is_continued(valkey: Valkey, store: Store) -> None:
    # Given a first start that enrolled one shard of four
    assert scripts.enroll(valkey.client, store.data_set().epoch, 0, 0, 1) == "ok"

    # When it is started again, then it goes live
    assert meet(valkey, store).generation == 1


def test_a_restarted_server_is_met_under_a_new_generation(valkey: Valkey, store: Store) -> None:
    # Given a series with entries
    first = meet(valkey, store)
    series, company = asyncio.run(issue(valkey, store, 3))

    # When the server is killed and comes back
    valkey.kill()
    valkey.start()
    second = meet(valkey, store)

    # Then nothing is lost and the generation is the next
    assert second.generation == first.generation + 1
    asyncio.run(issue(valkey, store, 1, series=series, company=company))
    assert stands(valkey.client, _shard(store, series), series).position == 4


@pytest.mark.parametrize("enrolled", [0, 2, 4])
def test_a_crash_while_the_generation_is_raised_is_not_loss(valkey: Valkey, store: Store, enrolled: int) -> None:
    # Given a meeting that crashed in its second phase, after some shards
    standing = meet(valkey, store)
    valkey.kill()
    valkey.start()
    store.begin_generation(standing.generation)
    for shard in range(enrolled):
        scripts.enroll(valkey.client, standing.epoch, shard, standing.generation, standing.generation + 1)

    # When another process meets the server, then it finishes the raise
    assert meet(valkey, store).generation == standing.generation + 1


def test_an_empty_server_beside_a_live_store_is_loss(valkey: Valkey, store: Store) -> None:
    # Given a store that is live
    meet(valkey, store)

    # When the server comes back empty, or is emptied, then nothing may be allocated
    valkey.client.flushall()
    with pytest.raises(Halted, match="has lost its data"):
        meet(valkey, store)
    valkey.kill()
    shutil.rmtree(valkey.directory.redis)
    valkey.directory.redis.mkdir()
    valkey.start()
    with pytest.raises(Halted, match="has lost its data"):
        meet(valkey, store)


def test_a_copy_from_before_a_restart_is_an_old_generation(valkey: Valkey, store: Store, old_copy: Path) -> None:
    # Given a copy of the server's files, and a restart since
    meet(valkey, store)
    take_copy(valkey, old_copy)
    valkey.kill()
    valkey.start()
    meet(valkey, store)

    # When the copy is put back, then it is known for what it is
    put_back(valkey, old_copy)
    with pytest.raises(Halted, match="old copy"):
        meet(valkey, store)


def test_a_copy_of_the_same_generation_is_behind_the_store(valkey: Valkey, store: Store, old_copy: Path) -> None:
    # Given a copy of the server's files, and entries settled since
    series, company = asyncio.run(issue(valkey, store, 2))
    settle_all(valkey, store)
    take_copy(valkey, old_copy)
    asyncio.run(issue(valkey, store, 3, series=series, company=company))
    settle_all(valkey, store)

    # When the copy is put back, then allocation stops, with the series and the positions
    put_back(valkey, old_copy)
    with pytest.raises(Halted, match=f"series {series}: it stands at 2, the store at 5"):
        meet(valkey, store)


def test_a_copy_from_before_a_void_is_behind_the_store(valkey: Valkey, store: Store, old_copy: Path) -> None:
    # Given a copy of the server's files, and a void settled since
    series, company = asyncio.run(issue(valkey, store, 2))
    settle_all(valkey, store)
    take_copy(valkey, old_copy)
    asyncio.run(void_last(valkey, store, series, company))
    settle_all(valkey, store)

    # When the copy is put back, then allocation stops, although no number is missing
    put_back(valkey, old_copy)
    with pytest.raises(Halted, match=f"series {series}: it stands at 2, the store at 2-1"):
        meet(valkey, store)


async def void_last(valkey: Valkey, store: Store, series: str, company: str) -> None:
    async with running_front(make_config(valkey, store.engine.url.render_as_string(hide_password=False))) as front:
        last = (await front.definitions.get(company, series)).state.last_id
        assert last is not None
        await front.ledger.void(company, series, last, Why("why", "who"))


@pytest.mark.parametrize("lost", ["company", "bucket", "some"])
def test_a_server_that_lost_claims_is_refused(valkey: Valkey, store: Store, lost: str) -> None:
    # Given settled entries that came by their company's default
    async def claim(company: str) -> None:
        async with running_front(make_config(valkey, store.engine.url.render_as_string(hide_password=False))) as front:
            await make_series(front, company)
            for _ in range(3):
                await front.ledger.put_default_entry(company, "invoice", Wanted(new_id()))

    company = store.create_company(new_id(), "test").id
    asyncio.run(claim(company))
    settle_all(valkey, store)
    shard = shard_of(company, store.data_set().shards)

    # When claims are gone after a restart
    if lost == "some":
        valkey.client.hset(keyspace.company_key(shard, company), "claims", "2")
    else:
        buckets = f"{keyspace.claims_prefix(shard, company)}:0"
        valkey.client.delete(keyspace.company_key(shard, company) if lost == "company" else buckets)
    valkey.kill()
    valkey.start()

    # Then nothing may be allocated: an id could be numbered again in another series
    with pytest.raises(Halted, match=f"claims of company {company}"):
        meet(valkey, store)


@pytest.mark.parametrize("what", ["series", "outbox", "bucket", "record"])
def test_a_server_that_lost_part_of_a_series_is_refused(valkey: Valkey, store: Store, what: str) -> None:
    # Given a series with settled and waiting entries
    series, company = asyncio.run(issue(valkey, store, 2))
    settle_all(valkey, store)
    asyncio.run(issue(valkey, store, 3, series=series, company=company))
    shard = _shard(store, series)

    # When a part of it is gone after a restart
    if what == "record":
        valkey.client.xdel(keyspace.outbox_key(shard), "4-0")
    else:
        keys = {
            "series": keyspace.series_key(shard),
            "outbox": keyspace.outbox_key(shard),
            "bucket": keyspace.index_prefix(shard, series) + ":0",
        }
        valkey.client.delete(keys[what])
    valkey.kill()
    valkey.start()

    # Then nothing may be allocated, in any series
    lost = (
        f"outbox of shard {shard} holds" if what in ("outbox", "record") else f"series {series}: the series is missing"
    )
    with pytest.raises(Halted, match=lost):
        meet(valkey, store)


@pytest.mark.parametrize("what", ["byte", "entry", "head"])
def test_a_server_that_lost_part_of_a_run_is_refused(valkey: Valkey, store: Store, what: str) -> None:
    async def issue_together() -> str:
        async with running_front(make_config(valkey, store.engine.url.render_as_string(hide_password=False))) as front:
            series = await make_series(front, company)
            for _ in range(2):
                await front.ledger.put_batch(company, series, [Wanted(new_id()) for _ in range(3)])
            return series

    # Given two runs of entries that wait
    company = store.create_company(new_id(), "test").id
    series = asyncio.run(issue_together())
    outbox = keyspace.outbox_key(_shard(store, series))

    # When the first loses its last byte, its first entry, or the end of what they share
    (_, first), (_, second) = cast("list[tuple[bytes, dict[bytes, bytes]]]", valkey.client.xrange(outbox))
    ((head, run),) = first.items()
    cut: dict[str, Any] = {
        "byte": {head: run[:-1]},
        "entry": {head: run[28 + int.from_bytes(run[24:28]) :]},
        "head": {head[:-1]: run},
    }
    valkey.client.delete(outbox)
    valkey.client.xadd(outbox, cut[what], id="1-0")
    valkey.client.xadd(outbox, cast("Any", second), id="2-0")
    valkey.kill()
    valkey.start()

    # Then nothing may be allocated, in any series
    with pytest.raises(Halted, match=f"series {series}.*cut short"):
        meet(valkey, store)


def test_a_server_of_another_store_is_refused(valkey: Valkey, store: Store, directory: Path) -> None:
    # Given a server that works for one store
    meet(valkey, store)

    # When another store meets it
    other = Store(f"sqlite:///{directory / 'other.db'}")
    other.migrate()
    other.prepare(shards=4)

    # Then it is refused
    with pytest.raises(Halted, match="belongs to another store"):
        meet(valkey, other)
    other.close()


@pytest.mark.parametrize("layout", [None, "1"])
def test_data_of_another_version_is_refused(valkey: Valkey, store: Store, layout: str | None) -> None:
    # Given a server whose data another version wrote, which did not say which, or did
    meet(valkey, store)
    shard = keyspace.shard_key(0)
    valkey.client.hdel(shard, "layout")
    if layout:
        valkey.client.hset(shard, "layout", layout)

    # When it is met after a restart, then nothing may be allocated, and what to do is said
    valkey.kill()
    valkey.start()
    with pytest.raises(Halted, match=r"another version of Seriatim.*seriatim recover"):
        meet(valkey, store)


def test_a_store_that_is_an_old_copy_is_refused(valkey: Valkey, directory: Path) -> None:
    # Given a copy of the store, and a restart of the server since
    path = directory / "store.db"
    store = Store(f"sqlite:///{path}")
    store.migrate()
    store.prepare(shards=4)
    meet(valkey, store)
    store.close()
    saved = path.read_bytes()
    valkey.kill()
    valkey.start()
    meet(valkey, store)
    store.close()

    # When the copy is put back
    for file in directory.glob("store.db*"):
        file.unlink()
    path.write_bytes(saved)

    # Then it is refused
    with pytest.raises(Halted, match="store is behind Redis"):
        meet(valkey, store)
    store.close()


def test_settings_that_could_lose_numbers_are_refused_by_name(valkey: Valkey, store: Store) -> None:
    # Given a server whose settings are right
    recovery.check_settings(valkey.client, "fsync")
    for name, value in WRONG:
        # When one is changed, then the message says what to set
        valkey.client.config_set(name, value)
        with pytest.raises(Halted, match=f"{name} {recovery.REQUIRED_SETTINGS[name]}"):
            meet(valkey, store)
        valkey.client.config_set(name, recovery.REQUIRED_SETTINGS[name])

    # And without durability, only what repeats numbers is refused
    valkey.client.config_set("appendfsync", "no")
    recovery.check_settings(valkey.client, "memory")
    valkey.client.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(Halted):
        recovery.check_settings(valkey.client, "memory")


def test_a_server_that_hides_its_settings_is_refused(valkey: Valkey) -> None:
    valkey.client.acl_setuser("default", enabled=True, nopass=True, commands=["-config"])
    with pytest.raises(Halted, match=r"does not show its settings \(.*\). Allow INFO and CONFIG GET"):
        recovery.check_settings(valkey.client, "fsync")


def test_a_running_process_notices_a_changed_setting_and_its_correction(
    valkey: Valkey, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "WATCH_S", 0.02)

    async def watch() -> None:
        # Given an API process that allocates
        config = make_config(valkey, store.engine.url.render_as_string(hide_password=False))
        async with running_front(config) as front:
            for name, value in WRONG:
                # When the server is set wrong
                valkey.client.config_set(name, value)

                # Then allocation stops, and goes on when it is set right
                await asyncio.to_thread(until, lambda: front.gate.standing is None)
                with pytest.raises(Halted, match=f"{name} {recovery.REQUIRED_SETTINGS[name]}"):
                    front.gate.require()
                valkey.client.config_set(name, recovery.REQUIRED_SETTINGS[name])
                await asyncio.to_thread(until, lambda: front.gate.standing is not None)

    asyncio.run(watch())


def test_one_contradiction_halts_every_process(valkey: Valkey, store: Store) -> None:
    async def run() -> None:
        # Given two API processes, and a series in every shard, of which one's outbox loses its records
        config = make_config(valkey, store.engine.url.render_as_string(hide_password=False))
        company = store.create_company("c", "test").id
        async with running_front(config) as one, running_front(config) as other:
            series, *sound = map(id_in, range(SHARDS))
            for each in (series, *sound):
                await one.definitions.put(company, each, SeriesFields(prefix="T-"))
                await other.ledger.put_entry(company, each, Wanted(new_id()))
            valkey.client.delete(keyspace.outbox_key(_shard(store, series)))

            # When one of them meets the damage
            with pytest.raises(Halted, match="outbox holds 0 items instead of"):
                await one.ledger.put_entry(company, series, Wanted(new_id()))

            # Then both refuse every series at once, and the store keeps the reason
            for each in sound:
                with pytest.raises(Halted):
                    await other.ledger.put_entry(company, each, Wanted(new_id()))
            assert store.data_set().state == "halted"
        with pytest.raises(Halted, match="outbox holds 0 items"):
            meet(valkey, store)

    asyncio.run(run())


def test_a_server_that_is_down_is_unavailable_and_not_loss(valkey: Valkey, store: Store) -> None:
    # Given a live store whose server is down
    meet(valkey, store)
    valkey.kill()

    # When it is met, then the answer is to try again
    with pytest.raises(Unavailable) as refused:
        meet(valkey, store)
    assert not isinstance(refused.value, Halted)


def test_an_api_process_lets_nobody_in_before_it_has_met_its_server(valkey: Valkey, store: Store) -> None:
    async def run() -> None:
        front = Front(make_config(valkey, store.engine.url.render_as_string(hide_password=False)))

        # When it has started
        async with front.running(Starlette()):
            # Then whoever comes first is not told that it is starting
            assert front.gate.closed() is None

    asyncio.run(run())


def test_an_api_process_starts_beside_a_server_that_does_not_answer(valkey: Valkey, store: Store) -> None:
    async def run() -> None:
        front = Front(make_config(valkey, store.engine.url.render_as_string(hide_password=False)))
        valkey.process.send_signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(ANSWER_S), front.running(Starlette()):
                assert front.gate.closed()
        finally:
            valkey.process.send_signal(signal.SIGCONT)

    asyncio.run(run())


def test_redis_without_its_data_answers_503_and_the_store_is_still_read(up: Up) -> None:
    # Given a stack with a settled entry, stopped
    with up.client() as client:
        series = put_series(client, prefix="R-")
        entry = put_entry(client, series)
        up.settled()
    assert up.stop() == 0

    # When it is started without the server's files
    shutil.rmtree(up.data_dir / "redis")
    up.start()

    # Then it says so, refuses numbers with the reason, and serves reads
    assert up.state == "halted"
    with up.client() as client:
        refused = client.put(entry_path(series, new_id()))
        assert refused.status_code == 503
        assert refused.json()["code"] == "halted"
        assert "lost its data" in refused.json()["message"]
        assert "Retry-After" in refused.headers
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert "lost its data" in ready.json()["halted"]
        assert client.get(entry_path(series, entry["id"])).json()["code"] == "R-1"
        assert client.get(f"/sequence/v1/series/{series}").json()["last_index"] == 1
        listed = client.get(f"/sequence/v1/series/{series}/entries").json()["list"]
        assert [one["id"] for one in listed] == [entry["id"]]
        assert client.get("/healthz").status_code == 200


def _shard(store: Store, series: str) -> int:
    found = store.series(series)
    assert found is not None
    return found.shard
