"""A connection to Redis that is cut between what was done and its answer: asked again, it is not done twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from core import SHARDS, drain_all, make_config, make_drainer, make_series, running_front
from cutting_proxy import CuttingProxy, When, cutting
from seriatim import scripts
from seriatim.errors import Invalid, Unavailable
from seriatim.http.app import Front
from seriatim.ledger import Wanted
from seriatim.model import Entry, SeriesFields, Skip, Why
from seriatim.store import Store
from stack import Valkey, new_id

WHEN: list[When] = ["before it is carried out", "before it is answered"]
REASON = Why("printed by hand", "key test")


@pytest.fixture
def store(directory: Path) -> Store:
    made = Store(f"sqlite:///{directory / 'store.db'}")
    made.migrate()
    made.prepare(SHARDS)
    return made


@asynccontextmanager
async def behind(valkey: Valkey, store: Store) -> AsyncIterator[tuple[Front, CuttingProxy, str, str]]:
    """An API process whose connections to Redis are cut when the test says so, a company, and a series of it."""
    config = make_config(valkey, store.engine.url.render_as_string())
    path = valkey.directory.path / "cut.sock"
    with cutting(path, valkey.directory.socket, b"", "before it is answered") as proxy:
        async with running_front(msgspec.structs.replace(config, redis_url=f"unix://{path}")) as front:
            company = store.create_company(new_id(), "test").id
            series = await make_series(front, company, SeriesFields(prefix="T-", default=True))
            await front.ledger.put_default_entry(company, "invoice", Wanted(new_id()))
            yield front, proxy, company, series
    drain_all(make_drainer(valkey, store, config))
    assert scripts.backlog(valkey.client, SHARDS) == 0
    store.close()


def cut_next(front: Front, proxy: CuttingProxy, name: str, when: When) -> None:
    mark = scripts.script(name, front.gate.require()).sha.encode()
    proxy.mark, proxy.when, proxy.cuts = mark, when, 1


@pytest.mark.parametrize("when", WHEN)
def test_an_id_is_issued_once_however_often_its_answer_is_lost(valkey: Valkey, store: Store, when: When) -> None:
    async def run() -> None:
        async with behind(valkey, store) as (front, proxy, company, series):
            ids = [new_id() for _ in range(20)]

            # When calls for many numbers, a batch and a default's number are cut off
            async def once() -> list[Entry]:
                puts = [front.ledger.put_entry(company, series, Wanted(one)) for one in ids]
                batch = front.ledger.put_batch(company, series, [Wanted(one) for one in ids[10:]])
                default = front.ledger.put_default_entry(company, "invoice", Wanted(ids[0]))
                done = await asyncio.gather(*puts, batch, default, return_exceptions=True)
                flat = [one for part in done for one in (part if isinstance(part, list) else [part])]
                wrong = [one for one in flat if isinstance(one, BaseException) and not isinstance(one, Unavailable)]
                assert wrong == []
                return [one[0] for one in flat if isinstance(one, tuple)]

            for name in ("allocate", "claim"):
                cut_next(front, proxy, name, when)
                assert len(await once()) < 31
                assert proxy.cuts == 0

            # Then the next time each id has one number, and every way to it leads to the same
            told = {(one.id, one.position, one.code) for one in await once()}
            assert len(told) == 20
            assert sorted(position for _, position, _ in told) == list(range(2, 22))
            assert (await front.definitions.get(company, series)).series.id == series

    asyncio.run(run())
    (series,) = store.list_series()
    assert series.position == 21


@pytest.mark.parametrize("when", WHEN)
def test_a_skip_whose_answer_is_lost_is_made_once(valkey: Valkey, store: Store, when: When) -> None:
    async def run() -> None:
        async with behind(valkey, store) as (front, proxy, company, series):
            # When a skip is cut off, and asked for again
            cut_next(front, proxy, "skip", when)
            with pytest.raises(Unavailable):
                await front.ledger.skip(company, series, "inc", 10, REASON)
            _, again = await front.ledger.skip(company, series, "inc", 10, REASON)

            # Then numbers are left out once: by the second one if the first was not carried out
            assert (again is None) is (when == "before it is answered")
            entry, _ = await front.ledger.put_entry(company, series, Wanted(new_id()))
            assert entry.code == "T-10"

            # And who asks again after that is told that the number is gone; nothing is left out for it
            with pytest.raises(Invalid, match="at least 11"):
                await front.ledger.skip(company, series, "inc", 10, REASON)

    asyncio.run(run())
    drained = [note for one in store.list_series() for note in store.notes(one)]
    assert [(note.first, note.last) for note in drained if isinstance(note, Skip)] == [(2, 9)]


@pytest.mark.parametrize("when", WHEN)
def test_a_void_whose_answer_is_lost_is_recorded_once(valkey: Valkey, store: Store, when: When) -> None:
    async def run() -> None:
        async with behind(valkey, store) as (front, proxy, company, series):
            entry, _ = await front.ledger.put_entry(company, series, Wanted(new_id()))

            # When a void is cut off, and asked for again with another reason
            cut_next(front, proxy, "void", when)
            with pytest.raises(Unavailable):
                await front.ledger.void(company, series, entry.id, REASON)
            other = Why("wrong customer", "key test")
            voided = await front.ledger.void(company, series, entry.id, other)

            # Then the reason that was recorded first stays
            assert voided.void is not None
            assert voided.void.reason == (REASON if when == "before it is answered" else other).reason

    asyncio.run(run())
    assert [len(store.notes(one)) for one in store.list_series()] == [1]


@pytest.mark.parametrize("name", ["install", "change", "defaults"])
@pytest.mark.parametrize("when", WHEN)
def test_definitions_are_whole_when_an_answer_is_lost(valkey: Valkey, store: Store, name: str, when: When) -> None:
    async def run() -> None:
        async with behind(valkey, store) as (front, proxy, company, series):
            # When a call is cut off while series are made, changed, used and removed
            cut_next(front, proxy, name, when)
            fields = SeriesFields(prefix="U-")
            other = new_id()
            for _ in range(100):
                with suppress(Unavailable):
                    await front.definitions.put(company, other, fields)
                    await front.definitions.put(company, other, SeriesFields(active=False))
                    await front.definitions.put(company, other, SeriesFields(active=True, default=True))
                    await front.definitions.put(company, series, SeriesFields(default=True))
                    await front.definitions.preview(company, other)
                    await front.definitions.delete(company, other, "test")
                    break
                await asyncio.sleep(0.1)
            assert proxy.cuts == 0

            # Then the series goes on where it was
            for number in (2, 3):
                entry, _ = await front.ledger.put_default_entry(company, "invoice", Wanted(new_id()))
                assert (entry.code, entry.series) == (f"T-{number}", series)

    asyncio.run(run())
