"""PostgreSQL that dies, hangs, cuts connections, or comes back with less: nothing is lost, doubled, or forked."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy as sa
from starlette.requests import Request

from core import SHARDS, drain_all, make_config, make_drainer, make_series, running_front
from cutting_proxy import When, cutting
from postgres import Postgres
from seriatim.config import Config
from seriatim.doctor import diagnose
from seriatim.errors import Damaged, Halted, Invalid, Unavailable
from seriatim.http.app import Front
from seriatim.ledger import Wanted
from seriatim.model import Entry, Why
from seriatim.rebuild import Choice, Recovery
from seriatim.recovery import states
from seriatim.signing import Signer
from seriatim.store import Store
from stack import Valkey, is_settled, new_id, until
from test_worker import check

SOCKET = ".s.PGSQL.5432"
Told = dict[str, list[Entry]]
owners: dict[str, str] = {}
"""The company of each series: who issues must not need the store."""


@pytest.fixture
def database(directory: Path) -> Iterator[Postgres]:
    """A server of this test's own, as it is to be killed."""
    server = Postgres(directory / "pg").start()
    yield server
    server.stop()


@pytest.fixture
def store(database: Postgres) -> Iterator[Store]:
    made = Store(database.create_database())
    made.migrate()
    made.prepare(SHARDS)
    yield made
    made.close()


@pytest.fixture
def config(valkey: Valkey, store: Store) -> Config:
    return make_config(valkey, url_of(store))


def url_of(store: Store) -> str:
    return store.engine.url.render_as_string(hide_password=False)


async def issue(front: Front, told: Told, count: int) -> None:
    """Issues entries in the series of `told`, many at once; each id until it is answered."""

    async def put(series: str) -> None:
        entry_id = new_id()
        while True:
            try:
                entry, _ = await front.ledger.put_entry(owners[series], series, Wanted(entry_id))
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                told[series].append(entry)
                return

    await asyncio.gather(*(put(series) for series in told for _ in range(count)))
    for entries in told.values():
        entries.sort(key=lambda entry: entry.position)


async def begin(front: Front, series: int = 3) -> Told:
    company = front.store.create_company(new_id(), "test").id
    told: Told = {await make_series(front, company): [] for _ in range(series)}
    owners.update(dict.fromkeys(told, company))
    return told


@contextmanager
def draining(valkey: Valkey, config: Config) -> Iterator[list[BaseException]]:
    """A worker that drains all the time; what it ended with, if it ended."""
    failures: list[BaseException] = []
    ending = threading.Event()
    store = Store(config.store_url)
    drainer = make_drainer(valkey, store, config)

    def work() -> None:
        try:
            while not ending.is_set():
                for shard in range(SHARDS):
                    drainer.drain(shard)
                time.sleep(0.01)
        except BaseException as error:  # noqa: BLE001 -- the test looks at it
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield failures
    finally:
        ending.set()
        drainer.stopping.set()
        thread.join(30)
        store.close()


async def ready(front: Front) -> tuple[int, Any]:
    answer = await front.readyz(cast("Request", None))
    return answer.status_code, json.loads(bytes(answer.body))


# the connection -----------------------------------------------------------------------------------------------------


def test_a_database_that_is_killed_again_and_again_delays_and_loses_nothing(
    valkey: Valkey, database: Postgres, store: Store, config: Config
) -> None:
    async def run() -> Told:
        async with running_front(config) as front:
            told = await begin(front)
            await issue(front, told, 1)
            for _ in range(2):
                # When the database is killed while a worker settles, then numbers are issued on
                await asyncio.gather(issue(front, told, 300), asyncio.to_thread(database.kill))
                await issue(front, told, 50)
                assert (await ready(front))[0] == 200
                database.start()
            await asyncio.to_thread(until, lambda: is_settled(valkey.client), 40)
            return told

    # Given an API process and a worker
    with draining(valkey, config) as failures:
        told = asyncio.run(run())

    # Then the store ends with all that was told, in chains that hold
    assert failures == []
    check(store, told)


def test_connections_that_are_cut_at_any_time_lose_and_double_nothing(
    valkey: Valkey, database: Postgres, store: Store, config: Config
) -> None:
    cut = 0

    async def run() -> Told:
        async with running_front(config) as front:
            told = await begin(front)

            # When all connections end every some milliseconds, while numbers are issued, settled and read
            async def cutting() -> None:
                nonlocal cut
                for _ in range(40):
                    cut += await asyncio.to_thread(database.end_connections, config.store_url)
                    await asyncio.sleep(0.03)

            async def reading() -> None:
                for _ in range(100):
                    series = next(iter(told))
                    try:
                        view = await front.definitions.get(front.store.series_by_ids([series])[series].company, series)
                    except Unavailable as error:
                        assert "Repeat" in error.message  # noqa: PT017 -- either is right
                    else:
                        assert view.series.id == series
                    await asyncio.sleep(0.01)

            await asyncio.gather(issue(front, told, 1000), cutting(), reading())
            await asyncio.to_thread(until, lambda: is_settled(valkey.client), 40)
            return told

    # Given an API process and a worker
    with draining(valkey, config) as failures:
        told = asyncio.run(run())

    # Then the store ends with all that was told, in chains that hold
    assert cut > 20
    assert failures == []
    check(store, told)


@pytest.mark.parametrize("when", ["before it is carried out", "before it is answered"])
def test_a_worker_finds_out_what_became_of_a_commit_that_was_not_answered(
    valkey: Valkey, database: Postgres, store: Store, config: Config, when: When
) -> None:
    # Given numbers to settle, and a worker whose connections to the database are cut at the next three commits
    async def run() -> Told:
        async with running_front(config) as front:
            told = await begin(front)
            await issue(front, told, 200)
            return told

    told = asyncio.run(run())
    directory = valkey.directory.path / "proxy"
    directory.mkdir()
    with cutting(directory / SOCKET, database.socket / SOCKET, b"COMMIT", when) as proxy:
        through = sa.make_url(config.store_url).update_query_dict({"host": str(directory)})
        behind = Store(through.render_as_string())
        drainer = make_drainer(valkey, behind, config)
        proxy.cuts = 3

        # When it settles
        drain_all(drainer)
        behind.close()

    # Then each record is in the store once
    assert proxy.cut == 3
    check(store, told)
    assert is_settled(valkey.client)


def test_a_database_that_hangs_holds_up_what_needs_it_and_nothing_else(
    valkey: Valkey, database: Postgres, store: Store, config: Config
) -> None:
    async def run() -> Told:
        async with running_front(config) as front:
            told = await begin(front)
            await issue(front, told, 10)
            await asyncio.to_thread(until, lambda: is_settled(valkey.client))
            company = front.store.create_company("other", "test").id

            # When the database hangs, and more requests wait for it than there are threads
            database.freeze()
            try:
                waiting = [asyncio.create_task(front.definitions.all_series(company)) for _ in range(50)]
                await asyncio.sleep(0.2)

                # Then numbers are issued, and readiness says what hangs
                await asyncio.wait_for(issue(front, told, 100), 5)
                for _ in range(3):
                    status, said = await ready(front)
                    assert status == 200
                    assert said["checks"]["store"] == "does not answer within 2 s"
                    assert said["backlog"] >= 300
                assert not any(one.done() for one in waiting)
            finally:
                database.thaw()

            # And when it goes on, so does everything
            assert await asyncio.gather(*waiting) == [[]] * 50
            await asyncio.to_thread(until, lambda: is_settled(valkey.client))
            assert (await ready(front))[1]["checks"]["store"] == "ok"
            return told

    # Given an API process and a worker
    with draining(valkey, config) as failures:
        told = asyncio.run(run())
    assert failures == []
    check(store, told)


def test_a_statement_that_waits_for_too_long_is_given_up_and_tried_again(
    valkey: Valkey, store: Store, config: Config
) -> None:
    # Given numbers to settle, and a table that somebody has locked
    async def run() -> Told:
        async with running_front(config) as front:
            told = await begin(front)
            await issue(front, told, 10)
            return told

    told = asyncio.run(run())
    impatient = Store(f"{config.store_url}&options=-c statement_timeout=200")
    drainer = make_drainer(valkey, impatient, config)
    with store.write() as connection:
        connection.execute(sa.text("LOCK TABLE entries"))
        thread = threading.Thread(target=drain_all, args=(drainer,))

        # When a worker settles meanwhile, then it is not kept for ever
        thread.start()
        locks = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        seen = set()
        for _ in range(100):
            seen.add(connection.execute(sa.text(locks)).scalar_one())
            connection.execute(sa.text("SELECT pg_stat_clear_snapshot()"))
            time.sleep(0.01)
        assert seen == {0, 1}

    # And when the table is free, it settles
    thread.join(20)
    impatient.close()
    check(store, told)


def test_connections_wait_for_the_disk_and_for_nothing_else_for_ever(database: Postgres) -> None:
    # Given a database whose owner has let commits be said before they are on disk
    url = database.create_database()
    owner = Store(url)
    name = sa.make_url(url).database
    with owner.write() as connection:
        connection.execute(sa.text(f"ALTER DATABASE {name} SET synchronous_commit = off"))
    owner.close()

    # When we connect
    made = Store(url)
    asked = ("synchronous_commit", "statement_timeout", "idle_in_transaction_session_timeout")
    with made.read() as connection:
        said = [connection.scalar(sa.text(f"SELECT current_setting('{setting}')")) for setting in asked]
    made.close()

    # Then they are not, and nothing is locked for ever
    assert said == ["on", "30s", "20s"]


def test_a_database_that_does_not_sync_stops_allocation_until_it_does(
    valkey: Valkey, store: Store, config: Config
) -> None:
    def setting(value: str) -> None:
        with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text(f"ALTER SYSTEM SET fsync = {value}"))
            connection.execute(sa.text("SELECT pg_reload_conf()"))

    async def run() -> None:
        # Given a service
        async with running_front(config) as front:
            told = await begin(front)
            await issue(front, told, 1)

            # When somebody lets the database say commits that are not on disk
            await asyncio.to_thread(setting, "off")

            # Then allocation stops, and goes on when it is changed back
            await asyncio.to_thread(until, lambda: front.gate.standing is None)
            assert "fsync = on" in front.gate.refusal.message
            name = next(iter(told))
            with pytest.raises(Halted):
                await front.ledger.put_entry(owners[name], name, Wanted(new_id()))
            found = await asyncio.to_thread(diagnose, valkey.client, valkey.client, store, config, None)
            assert "fsync = on" in found[0].detail
            await asyncio.to_thread(setting, "on")
            await asyncio.to_thread(until, lambda: front.gate.standing is not None)
            await issue(front, told, 1)

    asyncio.run(run())


# another server ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def behind_a_failover(
    valkey: Valkey, database: Postgres, config: Config, between: Callable[[Front, Told], Awaitable[None]]
) -> AsyncIterator[tuple[Front, Told, Postgres]]:
    """An API process whose database was replaced by a standby; what was done between it did not receive."""
    async with running_front(config) as front:
        told = await begin(front)
        await issue(front, told, 20)
        with closing_drainer(valkey, config) as drain:
            await asyncio.to_thread(drain)
        standby = await asyncio.to_thread(database.copy, database.path.parent / "standby")
        try:
            await between(front, told)
            await asyncio.to_thread(database.kill)
            await asyncio.to_thread(standby.start)
            await asyncio.to_thread(standby.promote)
            yield front, told, standby
        finally:
            standby.stop()


@contextmanager
def closing_drainer(valkey: Valkey, config: Config) -> Iterator[Callable[[], None]]:
    store = Store(config.store_url)
    drainer = make_drainer(valkey, store, config)
    try:
        yield lambda: drain_all(drainer)
    finally:
        store.close()


def test_a_standby_that_lacks_only_what_redis_still_holds_takes_over(
    valkey: Valkey, database: Postgres, store: Store, config: Config
) -> None:
    async def run() -> None:
        # Given a standby that has all that was settled
        async def between(front: Front, told: Told) -> None:
            await issue(front, told, 20)

        # When it takes over
        async with behind_a_failover(valkey, database, config, between) as (front, told, _):
            await asyncio.sleep(1.5)
            await issue(front, told, 20)

            # Then all goes on
            with closing_drainer(valkey, config) as drain:
                await asyncio.to_thread(drain)
            assert (await ready(front))[0] == 200
            check(store, told)

    asyncio.run(run())


def test_a_standby_that_lacks_what_was_settled_is_found_at_once_and_recovered(
    valkey: Valkey, database: Postgres, store: Store, config: Config
) -> None:
    async def run() -> None:
        # Given a standby that lacks records that were settled, and which Redis has dropped; and series, too
        late: Told = {}

        async def between(front: Front, told: Told) -> None:
            await issue(front, told, 20)
            late.update(await begin(front))
            await issue(front, late, 3)
            with closing_drainer(valkey, config) as drain:
                await asyncio.to_thread(drain)

        # When it takes over, though nothing is issued or settled
        async with behind_a_failover(valkey, database, config, between) as (front, told, _):
            # Then allocation stops, and the reason says what is missing
            await asyncio.to_thread(until, lambda: front.gate.standing is None and type(front.gate.refusal) is Halted)
            assert "The store has lost records of series" in front.gate.refusal.message
            assert re.search("up to (40, and ends at 20|3, and ends at nothing)", front.gate.refusal.message)
            assert (await ready(front))[0] == 503

            # And it goes on when somebody has decided where
            signer = Signer(Path(config.signing_key), config.issuer)
            recovering = Recovery(valkey.client, store, signer, config, lambda _: None)
            undecided = await asyncio.to_thread(recovering.run, Choice())
            doubts = {one.series: (one.entries, one.number) for one in undecided.doubts}
            assert doubts == dict.fromkeys(told, (20, 41)) | dict.fromkeys(late, (0, 1))
            resumed = dict.fromkeys(told, 41)
            with pytest.raises(Invalid, match="not in the store"):
                await asyncio.to_thread(recovering.run, Choice(resume_at=resumed | dict.fromkeys(late, 4)))
            await asyncio.to_thread(recovering.run, Choice(resume_at=resumed, accept_loss=True))
            await asyncio.to_thread(until, lambda: front.gate.standing is not None)
            fresh: Told = {name: [] for name in told}
            await issue(front, fresh, 1)
            assert {entry.code for entries in fresh.values() for entry in entries} == {"T-41"}
            assert set(states(valkey.client, SHARDS)) == set(told)

    asyncio.run(run())


def test_a_standby_that_lacks_only_a_void_is_found_though_numbers_wait_behind_that(
    valkey: Valkey, database: Postgres, config: Config
) -> None:
    async def run() -> None:
        # Given a standby that lacks a void, which was settled, and behind which numbers wait
        async def between(front: Front, told: Told) -> None:
            name, entries = next(iter(told.items()))
            await front.ledger.void(owners[name], name, entries[0].id, Why("a mistake", "somebody"))
            with closing_drainer(valkey, config) as drain:
                await asyncio.to_thread(drain)
            await issue(front, told, 1)

        # When it takes over, then allocation stops: the chain would go on without it, and hold
        async with behind_a_failover(valkey, database, config, between) as (front, told, _):
            await asyncio.to_thread(until, lambda: front.gate.standing is None and type(front.gate.refusal) is Halted)
            assert (
                f"series {next(iter(told))}: it has had them up to 20-1, and ends at 20." in front.gate.refusal.message
            )

    asyncio.run(run())


def test_a_worker_never_goes_on_where_a_standby_ends(
    valkey: Valkey, database: Postgres, store: Store, config: Config
) -> None:
    async def run() -> None:
        # Given a worker, and a standby that lacks what it has settled
        with closing_drainer(valkey, config) as drain:

            async def between(front: Front, told: Told) -> None:
                await issue(front, told, 20)
                await asyncio.to_thread(drain)
                await issue(front, told, 5)

            # When the standby takes over, and the worker goes on
            async with behind_a_failover(valkey, database, config, between):
                with pytest.raises(Damaged, match="goes on at 41, the store ends at 20"):
                    await asyncio.to_thread(drain)

                # Then nothing was added to any chain, and everything is halted
                assert {series.position for series in store.list_series()} == {20}
                assert store.data_set().state == "halted"

    asyncio.run(run())
