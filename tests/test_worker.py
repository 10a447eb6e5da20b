"""The worker: whatever happens to it, the store ends with every record once, in order, in one chain."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from core import SHARDS, drain_all, id_in, make_config, make_drainer, make_series, running_front
from faulty_worker import POINTS
from seriatim import keyspace, worker
from seriatim.config import Config
from seriatim.errors import Damaged, Stale
from seriatim.ledger import Wanted
from seriatim.model import Entry, Series
from seriatim.signing import JsonWebKeySet
from seriatim.store import Slice, Store
from seriatim.verify import audit_store
from stack import SERIATIM, Up, Valkey, entry_path, is_settled, list_entries, new_id, put_entry, put_series, until

SERIES = 3
ENTRIES = 300
KILLS = [(kind, point) for kind in ("sqlite", "postgresql") for point in POINTS]


def url_of(store: Store) -> str:
    return store.engine.url.render_as_string(hide_password=False)


async def issue(
    valkey: Valkey, store: Store, *, entries: int = ENTRIES, series: Sequence[str] = ("",) * SERIES
) -> dict[str, list[Entry]]:
    """Issues entries in some series, new ones unless named, many at once; answers what the callers were told."""
    company = store.create_company(new_id(), "test").id
    told: dict[str, list[Entry]] = {}
    async with running_front(make_config(valkey, url_of(store))) as front:
        for name in series:
            made = await make_series(front, company, series=name)
            puts = [front.ledger.put_entry(company, made, Wanted(new_id(), b'{"k":"v"}')) for _ in range(entries)]
            told[made] = sorted([entry for entry, _ in await asyncio.gather(*puts)], key=lambda entry: entry.position)
    return told


def sign(drainer: worker.Drainer, series: Series, entries: list[Entry]) -> Slice:
    """Entries as the drainer would commit them."""
    part = drainer._part(series, entries)
    return part.signed(drainer._signer.chain(*part.chain(series.head)))


def check(store: Store, told: dict[str, list[Entry]]) -> None:
    """The store holds what was told, all of it, once, in order, and its chains hold."""
    keys = JsonWebKeySet(b'{"keys":[' + ",".join(store.signing_keys()).encode() + b"]}")
    for name, entries in told.items():
        series = store.series(name)
        assert series is not None
        held = store.entries_after(series, 0, len(entries) + 10)
        assert [replace(entry, receipt=None, settled_at=None) for entry in held] == entries
        *_, audit = audit_store(store, series, keys, None)
        assert audit.findings == []
        assert audit.entries == len(entries)


@pytest.mark.parametrize(("store_url", "point"), KILLS, indirect=["store_url"])
def test_a_worker_killed_at_any_step_loses_and_doubles_nothing(valkey: Valkey, store: Store, point: str) -> None:
    # Given entries in several series of several shards
    told = asyncio.run(issue(valkey, store))

    # When a worker is killed at that point, and then another drains
    config = make_config(valkey, url_of(store))
    environment = dict(os.environ) | {
        "SERIATIM_REDIS_URL": config.redis_url,
        "SERIATIM_STORE_URL": config.store_url,
        "SERIATIM_SIGNING_KEY": config.signing_key,
    }
    dead = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "faulty_worker.py"), point],
        env=environment,
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    for key in valkey.client.scan_iter("*:lock"):
        valkey.client.delete(key)
    drain_all(make_drainer(valkey, store, config))

    # Then the store holds everything once, and the outboxes are empty
    check(store, told)
    assert is_settled(valkey.client)


def test_a_dead_workers_shard_is_free_again_after_some_seconds(up: Up) -> None:
    with up.client() as client:
        # Given a stack under way
        series = put_series(client)
        put_entry(client, series)
        up.settled()

        # When its worker is killed while entries come in
        for number in range(200):
            put_entry(client, series)
            if number == 100:
                os.kill(up.pids("seriatim worker")[0], signal.SIGKILL)

        # Then the next worker settles all of them
        up.settled()
        listed = list_entries(client, series)
        assert [entry["position"] for entry in listed] == list(range(1, 202))
        assert all(entry["sigs"] for entry in listed)
        assert up.json("verify")["sound"] is True


def test_workers_whose_lock_fails_never_fork_a_chain(
    valkey: Valkey, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given entries, and a lock that lets everybody in
    class Useless(nullcontext[None]):
        def acquire(self) -> bool:
            return True

        reacquire = release = acquire

    told = asyncio.run(issue(valkey, store))
    monkeypatch.setattr(worker, "SLICE_RECORDS_MAX", 50)
    monkeypatch.setattr(valkey.client, "lock", lambda *_args, **_kwargs: Useless())
    config = make_config(valkey, url_of(store))

    # When four workers drain the same shards at once
    failures: list[BaseException] = []

    def work() -> None:
        other = Store(config.store_url)
        try:
            drain_all(make_drainer(valkey, other, config))
        except BaseException as error:  # noqa: BLE001 -- the test shows it
            failures.append(error)
        finally:
            other.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    # Then no chain has forked
    assert failures == []
    check(store, told)


def test_the_store_refuses_a_worker_that_is_behind(valkey: Valkey, store: Store) -> None:
    # Given signed entries that are committed once
    told = asyncio.run(issue(valkey, store, entries=5))
    drainer = make_drainer(valkey, store, make_config(valkey, url_of(store)))
    name, entries = next(iter(told.items()))
    series = store.series(name)
    assert series is not None
    part = sign(drainer, series, entries)
    standing = drainer._meet()
    store.commit(standing, [part])

    # When the same, or a later part with a gap, or one of another generation is committed, then nothing is
    with pytest.raises(Stale):
        store.commit(standing, [part])
    moved = store.series(name)
    assert moved is not None
    with pytest.raises(Stale):
        store.commit(replace(standing, generation=standing.generation + 1), [replace(part, series=moved)])
    with pytest.raises(Damaged, match="holds already"):
        store.commit(standing, [replace(part, series=moved)])
    assert len(store.entries_after(moved, 0, 100)) == 5


def test_a_store_that_ends_inside_a_run_goes_on_from_there(valkey: Valkey, store: Store) -> None:
    # Given entries that were issued together, of which the store has the first two
    told = asyncio.run(issue(valkey, store, entries=5))
    drainer = make_drainer(valkey, store, make_config(valkey, url_of(store)))
    for name, entries in told.items():
        series = store.series(name)
        assert series is not None
        store.commit(drainer._meet(), [sign(drainer, series, entries[:2])])

    # When the server is met again after a restart, and a worker drains
    valkey.kill()
    valkey.start()
    drain_all(make_drainer(valkey, store, make_config(valkey, url_of(store))))

    # Then the store has the others, too, and nothing waits
    check(store, told)
    assert is_settled(valkey.client)


def test_a_store_that_fails_for_a_while_delays_and_loses_nothing(valkey: Valkey, store: Store) -> None:
    # Given entries, and a store whose table is gone
    told = asyncio.run(issue(valkey, store, entries=20))
    with store.write() as connection:
        connection.execute(sa.text("ALTER TABLE entries RENAME TO hidden"))
    drainer = make_drainer(valkey, store, make_config(valkey, url_of(store)))
    draining = threading.Thread(target=lambda: drain_all(drainer))
    draining.start()

    # When it comes back after two seconds
    draining.join(2)
    assert draining.is_alive()
    with store.write() as connection:
        connection.execute(sa.text("ALTER TABLE hidden RENAME TO entries"))
    draining.join(30)

    # Then everything is settled
    check(store, told)


def test_records_that_differ_from_the_stores_halt_the_data_set(valkey: Valkey, store: Store) -> None:
    # Given entries that the store has and the outbox still holds, one of them altered in the store
    told = asyncio.run(issue(valkey, store, entries=5))
    drainer = make_drainer(valkey, store, make_config(valkey, url_of(store)))
    name, entries = next(iter(told.items()))
    series = store.series(name)
    assert series is not None
    store.commit(drainer._meet(), [sign(drainer, series, entries)])
    with store.write() as connection:
        connection.execute(sa.text("UPDATE entries SET code = 'X' WHERE position = 3"))

    # When a worker comes to settle them, then it halts everything
    with pytest.raises(Damaged, match="different records"):
        drainer.drain(series.shard)
    assert store.data_set().state == "halted"
    assert valkey.client.hget(keyspace.shard_key(series.shard), "halted") is not None


def test_wake_ups_are_few_and_may_be_lost_or_repeated(up: Up) -> None:
    with up.client() as client:
        # Given a stack whose worker is stopped
        series = put_series(client)
        with up.worker_stopped():
            # When a hundred entries come in, their wake-ups are lost, and others come thrice
            for _ in range(100):
                put_entry(client, series)
            redis_client = up.redis()
            assert redis_client.llen(f"rq:queue:{worker.QUEUE}") <= 2
            redis_client.delete(f"rq:queue:{worker.QUEUE}")
            for shard in range(Config().shards):
                for _ in range(3):
                    worker.wake(redis_client, shard)
            redis_client.delete(f"rq:queue:{worker.QUEUE}")

        # Then the sweeper sees to it that they are settled, in order
        until(lambda: client.get(f"/sequence/v1/series/{series}/entries").json()["list"][0]["sigs"])
        up.settled()
        assert [entry["position"] for entry in list_entries(client, series)] == list(range(1, 101))


def test_locks_of_dead_workers_end_though_the_clock_was_set_back(up: Up) -> None:
    with up.client() as client:
        # Given locks that workers had when they died, before Redis' clock was set back by minutes
        series = put_series(client)
        with up.redis() as redis_client:
            for shard in range(Config().shards):
                redis_client.set(f"{keyspace.shard_key(shard)}:lock", "dead", px=25 * 60_000)

        # When an entry comes in, then it is settled in seconds
        entry = put_entry(client, series)
        until(lambda: client.get(entry_path(series, entry["id"])).json()["sigs"])


SIGNALLED = """
import signal, time
from seriatim.worker import Stopping
stopping = Stopping()
signal.signal(signal.SIGALRM, lambda *_: stopping.set())
signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
end = time.monotonic() + 2
while time.monotonic() < end:
    stopping.wait(0.001)
    stopping.clear()
signal.setitimer(signal.ITIMER_REAL, 0)
"""


def test_a_signal_at_any_moment_does_not_lock_up_who_waits_for_it() -> None:
    # Given a thread that waits to be told to stop, when signals tell it so all the time, then it always goes on
    subprocess.run([sys.executable, "-c", SIGNALLED], check=True, timeout=20)


def test_a_worker_stops_in_time_when_it_is_told(valkey: Valkey, store: Store) -> None:
    # Given a worker with much to do
    told: dict[str, Any] = asyncio.run(issue(valkey, store))
    config = make_config(valkey, url_of(store))
    environment = dict(os.environ) | {
        "SERIATIM_REDIS_URL": config.redis_url,
        "SERIATIM_STORE_URL": config.store_url,
        "SERIATIM_SIGNING_KEY": config.signing_key,
    }
    running = subprocess.Popen([*SERIATIM, "worker"], env=environment, stderr=subprocess.PIPE)
    until(lambda: Path(config.signing_key).exists() and valkey.client.keys("rq:worker:*"))

    # When it gets SIGTERM, then it ends cleanly within some seconds, and nothing is lost
    running.send_signal(signal.SIGTERM)
    assert running.wait(10) == 0
    drain_all(make_drainer(valkey, store, config))
    check(store, told)


def test_a_worker_hurries_for_other_shards_only(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a queue, when the shard at hand was clean for a moment and has turned dirty, then its job hurries nobody
    monkeypatch.setattr(worker, "_queue", valkey.client)
    assert not worker._is_more_due(3)
    worker.wake(valkey.client, 3)
    assert not worker._is_more_due(3)

    # And when another shard waits, then it has its turn
    worker.wake(valkey.client, 4)
    assert worker._is_more_due(3)


def test_shards_take_turns(valkey: Valkey, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given records that wait in a shard, and a queue
    told = asyncio.run(issue(valkey, store, entries=5))
    shard = next(number for number in range(SHARDS) if valkey.client.xlen(keyspace.outbox_key(number)))
    drainer = make_drainer(valkey, store, make_config(valkey, url_of(store)))
    monkeypatch.setattr(worker, "_queue", valkey.client)
    reads: list[int] = []
    read = drainer._read

    def counted(*given: Any) -> Any:
        reads.append(given[0].shard)
        return read(*given)

    monkeypatch.setattr(drainer, "_read", counted)

    # When another shard waits, then what is there is settled, and what came since has to wait
    worker.wake(valkey.client, shard + 1)
    assert drainer.drain(shard)
    assert reads == [shard]
    assert not valkey.client.xlen(keyspace.outbox_key(shard))

    # When none waits, then a shard is looked through to the end
    valkey.client.delete(f"rq:queue:{worker.QUEUE}")
    assert not drainer.drain(shard)
    drain_all(drainer)
    check(store, told)


def test_a_shard_that_has_more_than_a_slice_goes_on(
    valkey: Valkey, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given six series in four shards: in one of them more than a slice has, while others wait
    told = asyncio.run(issue(valkey, store, entries=5)) | asyncio.run(issue(valkey, store, entries=5))
    monkeypatch.setattr(worker, "SLICE_RECORDS_MAX", 1)
    monkeypatch.setattr(worker, "GATHER_S", 60.0)
    drainer = make_drainer(valkey, store, make_config(valkey, url_of(store)))

    # When they are drained, then nobody waits for records to gather
    drain_all(drainer)
    check(store, told)


def test_a_worker_has_two_shards_at_hand(valkey: Valkey, store: Store) -> None:
    # Given entries in three shards, of which the first waits for more
    told = asyncio.run(issue(valkey, store, entries=5, series=[id_in(shard) for shard in range(3)]))
    drainer = make_drainer(valkey, store, make_config(valkey, url_of(store)))
    drainer._resting[0] = time.monotonic() + 3
    again: list[int] = []

    # When all are begun, then the second is settled meanwhile, and then the third, which had to wait for that
    for shard in range(3):
        drainer.begin(shard, again.append)
    until(lambda: not valkey.client.xlen(keyspace.outbox_key(2)))
    assert not valkey.client.xlen(keyspace.outbox_key(1))
    assert valkey.client.xlen(keyspace.outbox_key(0))

    # And when it stops, then it waits for none, and settles what is left
    drainer.stopping.set()
    drainer.finish(SHARDS)
    assert is_settled(valkey.client)
    assert valkey.client.keys("*:lock") == []
    check(store, told)


def test_a_shard_that_cannot_be_settled_is_said(
    valkey: Valkey, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    # Given a shard with records of a series that the store does not know
    (lost,) = asyncio.run(issue(valkey, store, entries=2, series=[id_in(0)]))
    with store.write() as connection:
        connection.execute(sa.text("DELETE FROM series"))
    drainer = make_drainer(valkey, store, make_config(valkey, url_of(store)))
    again: list[int] = []

    # When a worker begins with it, then everything is halted, and it says why, and does not go on at once
    drainer.begin(0, again.append)
    drainer._lanes.shutdown()
    assert again == []
    reason = f"Redis holds records of series {lost}, which the store does not know."
    assert store.data_set().reason == reason
    assert reason in "".join(capfd.readouterr())


def test_a_worker_asks_for_a_series_again_only_if_another_has_had_it(
    valkey: Valkey, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given two workers, and entries in one series, which one of them has settled
    config = make_config(valkey, url_of(store))
    first, second = (make_drainer(valkey, store, config) for _ in range(2))
    series = id_in(0)
    asked: list[str] = []
    ask = store.series_by_ids

    def counted(names: Sequence[str]) -> dict[str, Series]:
        asked.extend(names)
        return ask(names)

    monkeypatch.setattr(store, "series_by_ids", counted)
    told: list[Entry] = []

    async def go_on(*turns: tuple[worker.Drainer, list[str]]) -> None:
        company = store.create_company(new_id(), "test").id
        async with running_front(config) as front:
            await make_series(front, company, series=series)
            for drainer, asks in turns:
                asked.clear()
                told.append((await front.ledger.put_entry(company, series, Wanted(new_id())))[0])
                await asyncio.to_thread(drainer.drain, 0)
                assert asked == asks

    # When they take turns, then each asks for the series where the other one came between, and nobody forks its chain
    asyncio.run(go_on((first, [series]), (first, []), (second, [series]), (first, [series]), (first, [])))
    check(store, {series: told})
