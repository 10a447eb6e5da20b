"""The ledger: definitions that change or half-loaded series, and reads while records move from outbox to store."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from msgspec.structs import replace

from core import drain_all, make_config, make_drainer, make_series, running_front
from seriatim import keyspace, scripts, worker
from seriatim.config import Config
from seriatim.errors import Conflict, Halted, NotFound
from seriatim.ledger import Wanted
from seriatim.model import Entry, SeriesFields, Standing
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
                assert view.last_entry_id == entry.id

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


@pytest.mark.parametrize("crashed", ["after installing", "after marking"])
def test_a_load_that_crashed_halfway_is_continued(
    valkey: Valkey, store: Store, config: Config, company: str, crashed: str
) -> None:
    async def run() -> None:
        async with running_front(config) as front:
            # Given a series whose first load crashed
            series = await make_series(front, company)
            standing = front.gate.require()
            assert scripts.install(valkey.client, standing, held(store, series), opened=False)
            if crashed == "after marking":
                store.mark_loaded(held(store, series), standing.epoch)

            # When a number is asked for, then it is issued
            entry, _ = await front.ledger.put_entry(company, series, Wanted(new_id()))
            assert entry.position == 1

    asyncio.run(run())


def test_a_loaded_series_that_is_missing_halts(valkey: Valkey, store: Store, config: Config, company: str) -> None:
    async def run() -> None:
        async with running_front(config) as front:
            # Given a series that the store calls loaded, gone from the server
            series = await make_series(front, company)
            await front.ledger.put_entry(company, series, Wanted(new_id()))
            for key in valkey.client.scan_iter(f"*{series}*"):
                valkey.client.delete(key)

            # When a number is asked for, then that is loss, not a cold start
            with pytest.raises(Halted, match=f"lost series {series}"):
                await front.ledger.put_entry(company, series, Wanted(new_id()))
            assert store.data_set().state == "halted"

    asyncio.run(run())


@pytest.mark.parametrize("committed", [False, True])
def test_a_change_that_a_crash_has_left_is_ended_from_the_store(
    valkey: Valkey, store: Store, config: Config, company: str, *, committed: bool
) -> None:
    async def run() -> None:
        async with running_front(config) as front:
            # Given a loaded series, and a change of its prefix that crashed before or after its commit
            series = await make_series(front, company, SeriesFields(prefix="OLD-"))
            standing = front.gate.require()
            await asyncio.to_thread(front.definitions._load, standing, series, None)
            before = held(store, series)
            assert scripts.change(valkey.client, standing, before, unused=True)[0] == "ok"
            new = replace(before, numbering=replace(before.numbering, prefix="NEW-"))
            if committed:
                store.change_series(before, new)
            else:
                long_ago = int(time.time() * 1000) - 6_000
                valkey.client.hset(keyspace.series_key(before.shard, series), "changing", long_ago)

            # When a number is asked for, then it follows the definition that the store holds
            entry, _ = await front.ledger.put_entry(company, series, Wanted(new_id()))
            assert entry.code == ("NEW-1" if committed else "OLD-1")

            # And the change that was left can no longer be committed
            with pytest.raises(Exception, match=r"changed|checked"):
                store.change_series(before, new)

    asyncio.run(run())


def test_two_processes_that_change_and_use_a_series_agree(
    store: Store, config: Config, company: str, valkey: Valkey
) -> None:
    async def run() -> None:
        async with running_front(config) as one, running_front(config) as other:
            # Given a series that one process changes while the other issues its first number
            for _ in range(10):
                series = await make_series(one, company, SeriesFields(prefix="A-"))
                changing = one.definitions.put(company, series, SeriesFields(prefix="B-"))
                issuing = other.ledger.put_entry(company, series, Wanted(new_id()))
                changed, issued = await asyncio.gather(changing, issuing, return_exceptions=True)

                # Then the code is of the definition that the store holds, whichever came first
                assert not isinstance(issued, BaseException)
                prefix = held(store, series).numbering.prefix
                assert issued[0].code == f"{prefix}1"
                assert isinstance(changed, Conflict) == (prefix == "A-")
        drain_all(make_drainer(valkey, store, config))

    asyncio.run(run())


def test_concurrent_creations_leave_one_default(config: Config, company: str) -> None:
    async def run() -> None:
        # Given a company without series, when many are created at once, some as default
        async with running_front(config) as front:
            created = [make_series(front, company, SeriesFields(default=number % 3 == 0)) for number in range(12)]
            await asyncio.gather(*created)
            listed, _ = await front.definitions.list_series(company, None, 100)

        # Then exactly one of them is the default
        assert len(listed) == 12
        assert sum(view.series.default for view in listed) == 1

    asyncio.run(run())


def test_a_company_has_no_more_series_than_it_may(store: Store, config: Config, company: str) -> None:
    async def run() -> None:
        # Given a limit of three series
        async with running_front(replace(config, series_max=3)) as front:
            for _ in range(3):
                await make_series(front, company)

            # When a fourth is created, then it is refused, and another company's is not
            with pytest.raises(Conflict, match="3 series"):
                await make_series(front, company)
            await make_series(front, store.create_company("other", "test").id)

    asyncio.run(run())


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
