"""Definitions: loading and changing them, with crashes at every step, under load, and beside other processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from core import SHARDS, drain_all, make_config, make_drainer, make_series, running_front
from faulty_changer import POINTS
from scripted import stands
from seriatim import definitions, keyspace, scripts
from seriatim.config import Config
from seriatim.definitions import SeriesView
from seriatim.errors import Conflict, Halted, Invalid, NotFound
from seriatim.http.app import Front
from seriatim.ledger import Wanted
from seriatim.model import Series, SeriesFields, shard_of
from seriatim.recovery import states
from seriatim.store import Store
from stack import Up, Valkey, entry_path, list_entries, new_id, put_series

ROUNDS = 8


@pytest.fixture
def config(valkey: Valkey, store: Store) -> Config:
    return make_config(valkey, store.engine.url.render_as_string(hide_password=False))


@pytest.fixture
def company(store: Store) -> str:
    return store.create_company("company", "test").id


def held(store: Store, series: str) -> Series:
    found = store.series(series)
    assert found is not None
    return found


# creating ---------------------------------------------------------------------------------------------------------


def test_of_creations_at_once_in_two_processes_one_gets_the_prefix_and_all_get_ids_in_turn(
    store: Store, config: Config, company: str
) -> None:
    async def run() -> list[list[SeriesView | BaseException]]:
        # Given two processes, when both make series of one company at once, again and again: of a prefix that only one
        # may have, and of one that anybody may have who wants to be the default
        def wanted(number: int) -> list[tuple[SeriesFields, bool]]:
            shared = SeriesFields(prefix="B-", default=True)
            return [(SeriesFields(prefix=f"A-{number}"), True)] * 3 + [(shared, False)]

        async with running_front(config) as one, running_front(config) as other:
            return [
                await asyncio.gather(
                    *(
                        front.definitions.create(company, fields, lone_prefix=lone)
                        for fields, lone in wanted(number)
                        for front in (one, other)
                    ),
                    return_exceptions=True,
                )
                for number in range(ROUNDS)
            ]

    results = asyncio.run(run())

    # Then one has the prefix each time, and the others are told so
    made = [one for told in results for one in told if isinstance(one, SeriesView)]
    refused = [one for told in results for one in told if not isinstance(one, SeriesView)]
    assert [list(one.fields) if isinstance(one, Invalid) else one for one in refused] == [["prefix"]] * 5 * ROUNDS
    prefixes = Counter(view.series.numbering.prefix for view in made)
    assert prefixes == {f"A-{number}": 1 for number in range(ROUNDS)} | {"B-": 2 * ROUNDS}

    # And the ids are 1, 2, 3 ... in the order of their creation, and one series is the default
    listed = store.list_series(company)
    assert [one.ordinal for one in listed] == list(range(1, 3 * ROUNDS + 1))
    assert {one.id for one in listed} == {view.series.id for view in made}
    assert [one.numbering.prefix for one in listed if one.default] == ["B-"]


# loading ----------------------------------------------------------------------------------------------------------


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
            valkey.client.hdel(keyspace.series_key(shard_of(series, SHARDS)), series)
            for key in valkey.client.scan_iter(f"*{series}*"):
                valkey.client.delete(key)

            # When a number is asked for, then that is loss, not a cold start
            with pytest.raises(Halted, match=f"lost series {series}"):
                await front.ledger.put_entry(company, series, Wanted(new_id()))
            assert store.data_set().state == "halted"

    asyncio.run(run())


@pytest.mark.parametrize("lost", ["company", "claims"])
def test_a_companys_claims_that_are_missing_halt(
    valkey: Valkey, store: Store, config: Config, company: str, lost: str
) -> None:
    async def run() -> None:
        async with running_front(config) as front:
            # Given claims of a company, gone from the server
            await make_series(front, company)
            await front.ledger.put_default_entry(company, "invoice", Wanted(new_id()))
            for key in valkey.client.scan_iter(f"*:{lost}:{company}*"):
                valkey.client.delete(key)

            # When a number is asked for by type, then that is loss: the id may have been issued in another series
            with pytest.raises(Halted, match=company):
                await front.ledger.put_default_entry(company, "invoice", Wanted(new_id()))
            assert store.data_set().state == "halted"

    asyncio.run(run())


# changing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("age_ms", [None, 6_000, -86_400_000])
def test_a_change_that_a_crash_has_left_is_ended_from_the_store(
    valkey: Valkey, store: Store, config: Config, company: str, age_ms: int | None
) -> None:
    async def run() -> None:
        async with running_front(config) as front:
            # Given a loaded series, and a change of its prefix that crashed before or after its commit; the clock may
            # have been set back since
            series = await make_series(front, company, SeriesFields(prefix="OLD-"))
            standing = front.gate.require()
            await asyncio.to_thread(front.definitions._load, standing, series, None)
            before = held(store, series)
            assert scripts.change(valkey.client, standing, before, unused=True)[0] == "ok"
            new = replace(before, numbering=replace(before.numbering, prefix="NEW-"))
            if age_ms is None:
                store.change_series(before, new)
            else:
                marked_at = int(time.time() * 1000) - age_ms
                marked = replace(stands(valkey.client, before.shard, series), changing=marked_at)
                valkey.client.hset(keyspace.series_key(before.shard), series, marked.pack())

            # When a number is asked for, then it follows the definition that the store holds
            entry, _ = await front.ledger.put_entry(company, series, Wanted(new_id()))
            assert entry.code == ("NEW-1" if age_ms is None else "OLD-1")

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


# dying in the middle of a change ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "step"), POINTS)
def test_a_change_is_whole_or_not_at_all_whenever_its_process_dies(  # noqa: PLR0913, PLR0917 -- fixtures
    valkey: Valkey,
    store: Store,
    config: Config,
    company: str,
    change: str,
    step: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(definitions, "CHANGE_MS_MAX", 100)

    async def prepare() -> tuple[str, str]:
        async with running_front(config) as front:
            # Given two series that Redis holds, the first of them the default, and claims of their company
            first = await make_series(front, company, SeriesFields(prefix="A-"))
            second = await make_series(front, company, SeriesFields(prefix="B-"))
            await front.ledger.put_default_entry(company, "invoice", Wanted(new_id()))
            await front.definitions.bring(second, None)
            if change == "deletion":  # of a default
                await front.definitions.put(company, second, SeriesFields(default=True))
            return first, second

    async def use(series: str) -> None:
        async with running_front(config) as front:
            # Then what the store says holds everywhere, at once or when the mark is known to be left
            now = store.series(series)
            if now is None:
                with pytest.raises(NotFound):
                    await front.ledger.put_entry(company, series, Wanted(new_id()))
                with pytest.raises(Conflict, match="deleted"):
                    await front.definitions.put(company, series, SeriesFields(prefix="AGAIN-"))
            elif not now.active:
                with pytest.raises(Conflict, match="not active"):
                    await front.ledger.put_entry(company, series, Wanted(new_id()))
            else:
                entry, _ = await front.ledger.put_entry(company, series, Wanted(new_id()))
                assert entry.code == f"{now.numbering.prefix}1"
            default = store.defaults(company, 0).series.get("invoice")
            if default is None:
                with pytest.raises(NotFound, match="default"):
                    await front.ledger.put_default_entry(company, "invoice", Wanted(new_id()))
            elif held(store, default).active:
                entry, _ = await front.ledger.put_default_entry(company, "invoice", Wanted(new_id()))
                assert entry.series == default
        drain_all(make_drainer(valkey, store, config))

    _, series = asyncio.run(prepare())

    # When a process that changes the second dies in the middle
    environment = os.environ | {
        "SERIATIM_REDIS_URL": config.redis_url,
        "SERIATIM_STORE_URL": config.store_url,
        "SERIATIM_SIGNING_KEY": config.signing_key,
    }
    program = [sys.executable, str(Path(__file__).parent / "faulty_changer.py"), change, step, company, series]
    dead = subprocess.run(program, env=environment, check=False, capture_output=True, timeout=60)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    time.sleep(0.1)
    asyncio.run(use(series))
    standing = states(valkey.client, SHARDS)
    assert not [name for name, state in standing.items() if state.changing and store.series(name)]


def test_numbers_stay_whole_while_definitions_change_and_processes_die(directory: Path) -> None:
    # Given two API processes, and a series that is deactivated and activated again all the time
    up = Up(directory, api_processes=2).start()
    with up.client() as client:
        series = put_series(client, prefix="L-")
    traffic = Traffic(up, series)
    with up.client(timeout=10) as client:
        for turn in range(10):
            # When one of the processes is killed now and then
            if turn % 3 == 1:
                os.kill(up.pids("seriatim serve")[turn % 2], signal.SIGKILL)
            active = turn % 2 == 1
            state = insist(
                client, "PUT", f"{up.url}/sequence/v1/series/{series}", {"active": active, "name": f"{turn}"}
            )
            assert (state["active"], state["name"]) == (active, f"{turn}")

            # Then what was answered holds in both: while it is inactive nothing is issued
            issued = len(traffic.told)
            time.sleep(0.2)
            if not active:
                assert len(traffic.told) - issued <= traffic.threads  # what was on its way
                refused = [insist(client, "PUT", up.url + entry_path(series, new_id()), {}) for _ in range(4)]
                assert {one.get("code") for one in refused} == {"conflict"}
        insist(client, "PUT", f"{up.url}/sequence/v1/series/{series}", {"active": True})
    traffic.stop()

    # And everything that was told is there, once, without a gap
    up.settled()
    with up.client() as client:
        listed = list_entries(client, series)
    assert [entry["position"] for entry in listed] == list(range(1, len(listed) + 1))
    assert {entry["id"]: entry["code"] for entry in listed} == traffic.told
    assert len(traffic.told) > 50
    assert up.json("verify")["sound"] is True
    up.stop()


def insist(client: httpx.Client, method: str, url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Repeats a request until its outcome is known, and returns the answer."""
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up:
        try:
            answer = client.request(method, url, json=body)
        except httpx.TransportError:
            continue
        if answer.status_code != 503:
            content: dict[str, Any] = answer.json()
            return content
        time.sleep(0.05)
    raise AssertionError(f"{method} {url} is not answered within 30 s")


class Traffic:
    """Threads that create entries in a series, each until it is answered with a number."""

    def __init__(self, up: Up, series: str) -> None:
        self.told: dict[str, str] = {}
        self.threads = 4
        self._stopping = threading.Event()
        self._running = [threading.Thread(target=self._run, args=(up, series)) for _ in range(self.threads)]
        for thread in self._running:
            thread.start()

    def _run(self, up: Up, series: str) -> None:
        with up.client(timeout=10) as client:
            while not self._stopping.is_set():
                entry = new_id()
                while not self._stopping.is_set():
                    said = insist(client, "PUT", up.url + entry_path(series, entry), {})
                    if said["code"] != "conflict":
                        self.told[entry] = said["code"]
                        break
                    time.sleep(0.01)

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._running:
            thread.join()


# deleting ---------------------------------------------------------------------------------------------------------


def test_a_series_without_records_can_be_deleted_and_its_id_is_never_used_again(
    store: Store, config: Config, company: str, valkey: Valkey
) -> None:
    async def run() -> None:
        async with running_front(config) as front:
            for loaded in (False, True):
                # Given a series without entries, that Redis does not hold, or does
                series = await make_series(front, company, SeriesFields(name="Mistake"))
                if loaded:
                    await front.definitions.bring(series, None)
                    assert list(valkey.client.scan_iter(f"*{series}*"))

                # When it is deleted
                await front.definitions.delete(company, series, "somebody")

                # Then it is gone from both, and the log says who did it
                assert not list(valkey.client.scan_iter(f"*{series}*"))
                for asked in (
                    front.definitions.get(company, series),
                    front.ledger.put_entry(company, series, Wanted(new_id())),
                    front.definitions.delete(company, series, "somebody"),
                ):
                    with pytest.raises(NotFound):
                        await asked
                last = list(store.logged())[-1]
                assert (last.action, last.actor, last.detail["series"]) == ("delete series", "somebody", series)
                with pytest.raises(Conflict, match="deleted"):
                    await make_named(front, company, series)

    asyncio.run(run())


async def make_named(front: Front, company: str, series: str) -> None:
    await front.definitions.put(company, series, SeriesFields(prefix="T-"))


def test_a_series_is_deleted_or_used_never_both(store: Store, config: Config, company: str) -> None:
    async def run() -> None:
        async with running_front(config) as one, running_front(config) as other:
            outcomes = set()
            for number in range(20):
                # Given a series that one process deletes while the other issues its first number
                series = await make_series(one, company)
                if number % 2:
                    await other.definitions.bring(series, None)
                deleted, issued = await asyncio.gather(
                    one.definitions.delete(company, series, "test"),
                    other.ledger.put_entry(company, series, Wanted(new_id())),
                    return_exceptions=True,
                )

                # Then one of the two was refused
                assert isinstance(deleted, Conflict) != isinstance(issued, NotFound), (deleted, issued)
                assert (store.series(series) is None) == (deleted is None)
                outcomes.add(deleted is None)
        assert outcomes

    asyncio.run(run())
