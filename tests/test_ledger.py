"""The ledger: reads while records move from outbox to store, and what others may not see."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from msgspec.structs import replace

from core import SHARDS, drain_all, make_config, make_drainer, make_series, running_front
from scripted import stands
from seriatim import keyspace, worker
from seriatim.config import Config
from seriatim.definitions import SeriesView
from seriatim.errors import Conflict, Damaged, NotFound
from seriatim.ledger import Wanted
from seriatim.model import Entry, SeriesFields, Standing, Why, shard_of
from seriatim.store import Store
from stack import Valkey, new_id


@pytest.fixture
def config(valkey: Valkey, store: Store) -> Config:
    return make_config(valkey, store.engine.url.render_as_string(hide_password=False))


@pytest.fixture
def company(store: Store) -> str:
    return store.create_company("company", "test").id


def held(store: Store, series: str):  # type: ignore[no-untyped-def]  # noqa: ANN201
    found = store.series(series)
    assert found is not None
    return found


def test_own_writes_are_read_at_every_moment(
    valkey: Valkey, store: Store, config: Config, company: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker that settles in small bites, all the time
    monkeypatch.setattr(worker, "SLICE_RECORDS_MAX", 3)
    drainer = make_drainer(valkey, store, config)
    stopping = threading.Event()

    def work() -> None:
        while not stopping.is_set():
            for shard in range(4):
                drainer.drain(shard)

    async def write_and_read() -> None:
        async with running_front(config) as front:
            series = await make_series(front, company)
            written: list[Entry] = []
            for _ in range(150):
                # When entries are written, then each is read at once, by id, by replay, in the list, in the series
                entry, _ = await front.ledger.put_entry(company, series, Wanted(new_id()))
                written.append(entry)
                read, (again, _), (listed, _), view = await asyncio.gather(
                    front.ledger.entry(company, series, entry.id),
                    front.ledger.put_entry(company, series, Wanted(entry.id)),
                    front.ledger.entries(company, series, None, 1000),
                    front.definitions.get(company, series),
                )
                assert [_unsettled(one) for one in listed] == written
                assert _unsettled(read) == _unsettled(again) == entry
                assert view.state.last_id == entry.id

    thread = threading.Thread(target=work)
    thread.start()
    try:
        asyncio.run(write_and_read())
    finally:
        stopping.set()
        thread.join()


def test_paging_during_creation_and_settlement_neither_skips_nor_repeats(
    valkey: Valkey, store: Store, config: Config, company: str
) -> None:
    async def run() -> None:
        # Given a series that grows and is settled while somebody pages through it
        drainer = make_drainer(valkey, store, config)
        async with running_front(config) as front:
            series = await make_series(front, company)
            await front.ledger.put_entry(company, series, Wanted(new_id()))
            growing = asyncio.create_task(_grow(front, company, series))
            seen: list[int] = []
            after: str | None = None
            while True:
                listed, _ = await front.ledger.entries(company, series, after, 7)
                seen += [entry.position for entry in listed]
                after = listed[-1].id if listed else after
                if growing.done() and not listed:
                    break
                await asyncio.to_thread(drainer.drain, held(store, series).shard)

            # Then every position comes once, in order
            assert seen == list(range(1, 302))

    asyncio.run(run())


async def _grow(front, company: str, series: str) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    for _ in range(60):
        await asyncio.gather(*(front.ledger.put_entry(company, series, Wanted(new_id())) for _ in range(5)))


def _unsettled(entry: Entry) -> Entry:
    return replace(entry, receipt=None, settled_at=None)


def test_another_companys_series_does_not_exist(store: Store, config: Config, company: str) -> None:
    async def run() -> None:
        # Given a series of one company
        stranger = store.create_company("stranger", "test").id
        async with running_front(config) as front:
            series = await make_series(front, company)
            entry, _ = await front.ledger.put_entry(company, series, Wanted(new_id()))

            # When another company asks for it in every way, then there is none
            for call in (
                front.ledger.put_entry(stranger, series, Wanted(new_id())),
                front.definitions.put(stranger, series, SeriesFields(name="mine")),
                front.definitions.get(stranger, series),
                front.ledger.entry(stranger, series, entry.id),
                front.ledger.entries(stranger, series, None, 10),
            ):
                with pytest.raises(NotFound):
                    await call
            assert held(store, series).name == ""

    asyncio.run(run())


def test_a_deleted_series_shows_nothing_of_the_one_that_came_after(
    valkey: Valkey, store: Store, config: Config, company: str
) -> None:
    async def run() -> None:
        # Given two processes, one of which deletes a series that the other one knows
        stranger = store.create_company("stranger", "test").id
        async with running_front(config) as here, running_front(config) as there:
            deleted = await make_series(here, company)
            assert await there.ledger.entries(company, deleted, None, 10) == ([], False)
            await here.definitions.delete(company, deleted, "test")

            # When another company makes a series, to which SQLite gives the same key, and has numbers of it settled
            series = await make_series(here, stranger)
            entry, _ = await here.ledger.put_entry(stranger, series, Wanted(new_id(), b'{"for":"nobody else"}'))
            await asyncio.to_thread(drain_all, make_drainer(valkey, store, config))

            # Then the first company has no series any more, in either process
            for front in (there, here):
                for call in (
                    front.ledger.entries(company, deleted, None, 10),
                    front.ledger.entry(company, deleted, entry.id),
                    front.ledger.put_entry(company, deleted, Wanted(entry.id)),
                    front.ledger.void(company, deleted, entry.id, Why("mine", "test")),
                    front.ledger.report(company, deleted, None, None),
                    front.definitions.put(company, deleted, SeriesFields(name="mine")),
                ):
                    with pytest.raises((NotFound, Conflict)):
                        await call
            assert held(store, series).name == ""

    asyncio.run(run())


def test_an_entry_that_neither_redis_nor_the_store_has_is_damage(
    valkey: Valkey, store: Store, config: Config, company: str
) -> None:
    async def run() -> None:
        # Given an entry that waits for the store, and an outbox that has lost its request
        async with running_front(config) as front:
            series = await make_series(front, company)
            entry, _ = await front.ledger.put_entry(company, series, Wanted(new_id()))
            outbox = keyspace.outbox_key(shard_of(series, SHARDS))
            ((name, fields),) = cast("list[tuple[bytes, dict[bytes, bytes]]]", valkey.client.xrange(outbox))
            valkey.client.delete(outbox)
            valkey.client.xadd(outbox, cast("Any", dict.fromkeys(fields, b"")), id=name)

            # When it is looked for, then it is not taken for one that never was
            with pytest.raises(Damaged, match="the store lacks it"):
                await front.ledger.entry(company, series, entry.id)

            # And when it is asked for again, then allocation stops
            with pytest.raises(Damaged, match="the store lacks it"):
                await front.ledger.put_entry(company, series, Wanted(entry.id))
            assert store.data_set().state == "halted"

    asyncio.run(run())


def test_a_standing_of_the_past_is_renewed_without_the_caller_noticing(
    valkey: Valkey, config: Config, company: str
) -> None:
    async def run() -> None:
        # Given two processes, one of which met the server anew after a restart
        async with running_front(config) as one, running_front(config) as other:
            series = await make_series(one, company)
            await one.ledger.put_entry(company, series, Wanted(new_id()))
            old = other.gate.require()
            valkey.kill()
            valkey.start()
            await one.watch.meet(one.gate.require())
            await other.client.connection_pool.disconnect()
            assert other.gate.standing in (old, Standing(old.epoch, old.generation + 1))

            # When the other goes on under what it knew, then it is answered
            entry, _ = await other.ledger.put_entry(company, series, Wanted(new_id()))
            assert entry.position == 2
            assert other.gate.require().generation == old.generation + 1

    asyncio.run(run())


def test_a_report_counts_what_is_settled_meanwhile_once(
    valkey: Valkey, store: Store, config: Config, company: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        # Given a series with an entry, a void and a skip, which a worker settles just when a report has begun
        drainer = make_drainer(valkey, store, config)
        async with running_front(config) as front:
            series = await make_series(front, company)
            entry, _ = await front.ledger.put_entry(company, series, Wanted(new_id()))
            await front.ledger.void(company, series, entry.id, Why("wrong", "test"))
            await front.ledger.skip(company, series, None, 10, Why("torn", "test"))
            read = front.definitions.get

            async def read_then_settle(company: str, series: str) -> SeriesView:
                view = await read(company, series)
                await asyncio.to_thread(drain_all, drainer)
                return view

            monkeypatch.setattr(front.definitions, "get", read_then_settle)

            # When the report is made, then each is in it once
            (line,) = await front.ledger.report(company, series, None, None)
            assert held(store, series).place == (1, 2)
            assert (line.issued, line.voided, line.missing) == (1, 1, [])
            assert [(skip.first, skip.last) for skip in line.skipped] == [(2, 9)]

    asyncio.run(run())


def test_a_clock_that_is_set_back_across_midnight_leaves_a_series_on_its_last_day(
    valkey: Valkey, config: Config, company: str
) -> None:
    async def run() -> None:
        # Given a series whose last entry was issued by a clock that has been set back since, by three days
        async with running_front(config) as front:
            fields = SeriesFields(format="%incDaily%/%yearLong%%month%%day%")
            series = await make_series(front, company, fields)
            await front.ledger.put_entry(company, series, Wanted(new_id()))
            later_ms = int(time.time() * 1000) + 3 * 86_400_000
            shard = shard_of(series, SHARDS)
            later = replace(stands(valkey.client, shard, series), time=later_ms)
            valkey.client.hset(keyspace.series_key(shard), series, later.pack())
            day = datetime.fromtimestamp(later_ms / 1000, UTC).date()

            # When numbers are asked for, at once and in a batch, and one is skipped
            wanted = [Wanted(new_id()) for _ in range(23)]
            expected = (await front.definitions.preview(company, series)).next
            at_once = await asyncio.gather(*(front.ledger.put_entry(company, series, one) for one in wanted[:20]))
            batch = await front.ledger.put_batch(company, series, wanted[20:])
            _, skipped = await front.ledger.skip(company, series, None, 25, Why("torn", "test"))
            last, _ = await front.ledger.put_entry(company, series, Wanted(new_id()))

            # Then all are of that last day, in order, and the preview knew it
            entries = sorted((entry for entry, _ in (*at_once, *batch)), key=lambda entry: entry.position)
            assert [entry.code for entry in entries] == [f"{number}/{day:%Y%m%d}" for number in range(1, 24)]
            assert {entry.created_at for entry in (*entries, last)} == {later_ms}
            assert expected == tuple(entry.code for entry in entries[: len(expected)])
            assert skipped is not None
            assert (skipped.period, skipped.first, skipped.last) == (day.isoformat(), 24, 24)
            assert last.code == f"25/{day:%Y%m%d}"

    asyncio.run(run())
