"""The allocator and the ledger against a plain model: random steps on real servers."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Iterator
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from msgspec.structs import replace

from core import SHARDS, drain_all, id_in, make_config, make_drainer, make_series, running_front
from seriatim import allocator, keyspace, worker
from seriatim.allocator import Settled, Waiting
from seriatim.config import Config
from seriatim.errors import Conflict, NotFound, SeriatimError, Unavailable
from seriatim.http.app import Front
from seriatim.keyspace import Issued
from seriatim.ledger import Ledger, Wanted
from seriatim.model import Entry, SeriesFields, canonical_meta
from seriatim.store import Store
from seriatim.worker import Drainer
from stack import Valkey, new_id, until

T = TypeVar("T")
PAGE = 211
DAYS = st.sampled_from([None, date(2026, 12, 31), date(2027, 1, 1), date(2020, 2, 29)])
METAS = st.sampled_from([b"{}", canonical_meta({"k": "v"}), canonical_meta({"k": "w", "ü": "\u2028"})])


@dataclass
class Model:
    """What a series must be: a list, and a count for every day where it counts by day."""

    prefix: str
    first: int
    daily: bool = False
    active: bool = True
    entries: list[tuple[str, bytes, str]] = field(default_factory=list)
    payloads: dict[str, tuple[bytes, date | None]] = field(default_factory=dict)
    counts: dict[date | None, int] = field(default_factory=dict)

    def issue(self, wanted: Wanted) -> str:
        day = (wanted.day or datetime.now(UTC).date()) if self.daily else None
        self.counts[day] = self.counts.get(day, 0 if self.entries else self.first - 1) + 1
        code = f"{self.prefix}{self.counts[day]}" + (f"/{day:%Y%m%d}" if day else "")
        self.entries.append((wanted.id, wanted.meta, code))
        self.payloads[wanted.id] = wanted.meta, wanted.day
        return code

    def find(self, entry: str) -> tuple[int, str] | None:
        for position, (known, _, code) in enumerate(self.entries, 1):
            if known == entry:
                return position, code
        return None


class Machine(RuleBasedStateMachine):
    """Creates, replays, conflicts, changes, drains and flushes, in any order, through two API processes."""

    valkey: ClassVar[Valkey]
    store: ClassVar[Store]

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stack = AsyncExitStack()
        self.config = make_config(self.valkey, self.store.engine.url.render_as_string(hide_password=False))
        self.fronts: list[Front] = [self.enter(), self.enter()]
        self.drainer: Drainer = make_drainer(self.valkey, self.store, self.config)
        self.company = self.store.create_company(new_id(), "test").id
        self.models = {new_id(): Model("A-", 998), new_id(): Model("B-", 3, daily=True)}
        continuous, daily = self.models
        for series, fields in (
            (continuous, SeriesFields(prefix="A-", start=998)),
            (daily, SeriesFields(format="B-%incDaily%/%yearLong%%month%%day%", start=3, chronology="free")),
        ):
            self.run(self.fronts[0].definitions.put(self.company, series, fields))

    def enter(self) -> Front:
        return self.loop.run_until_complete(self.stack.enter_async_context(running_front(self.config)))

    def run(self, coroutine: Awaitable[T]) -> T:
        return self.loop.run_until_complete(coroutine)

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.loop.close()

    def series(self, number: int) -> tuple[str, Model]:
        return list(self.models.items())[number]

    def put(self, front: int, series: str, wanted: Wanted) -> tuple[Entry, bool]:
        return self.run(self.fronts[front].ledger.put_entry(self.company, series, wanted))

    def day(self, model: Model, day: date | None) -> date | None:
        return day if model.daily else None  # the other series is strict

    async def list_all(self, ledger: Ledger, series: str) -> list[Entry]:
        listed: list[Entry] = []
        more = True
        while more:
            after = listed[-1].id if listed else None
            page, more = await ledger.entries(self.company, series, after, PAGE)
            assert len(page) == PAGE or not more
            listed += page
        return listed

    @rule(target=ids, number=st.integers(0, 1), front=st.integers(0, 1), meta=METAS, day=DAYS)
    def create(self, number: int, front: int, meta: bytes, day: date | None) -> tuple[int, str]:
        series, model = self.series(number)
        wanted = Wanted(new_id(), meta, day=self.day(model, day))
        if model.active:
            made, replayed = self.put(front, series, wanted)
            assert (made.code, replayed) == (model.issue(wanted), False)
            assert made.position == len(model.entries)
        else:
            with pytest.raises(Conflict):
                self.put(front, series, wanted)
        return number, wanted.id

    @rule(known=ids, front=st.integers(0, 1), meta=METAS, day=DAYS)
    def put_again(self, known: tuple[int, str], front: int, meta: bytes, day: date | None) -> None:
        series, model = self.series(known[0])
        wanted = Wanted(known[1], meta, day=self.day(model, day))
        found = model.find(known[1])
        if found is None and model.active:
            made, replayed = self.put(front, series, wanted)
            assert (made.code, replayed) == (model.issue(wanted), False)
        elif found is None or model.payloads[known[1]] != (meta, wanted.day):
            with pytest.raises(Conflict):
                self.put(front, series, wanted)
        else:
            made, replayed = self.put(front, series, wanted)
            assert (made.position, made.code, replayed) == (*found, True)

    @rule(
        number=st.integers(0, 1),
        front=st.integers(0, 1),
        days=st.lists(DAYS, min_size=1, max_size=40),
        again=st.lists(ids, max_size=5),
        spoiled=st.booleans(),
    )
    def create_batch(
        self, number: int, front: int, days: list[date | None], again: list[tuple[int, str]], *, spoiled: bool
    ) -> None:
        series, model = self.series(number)
        wanted = [Wanted(new_id(), day=self.day(model, day)) for day in days]
        for at, (of, known) in enumerate(again):
            if of == number and model.find(known):
                meta, day = model.payloads[known]
                wanted.insert(at * 3 % len(wanted), Wanted(known, meta, day=day))
        if spoiled and model.entries:
            wanted.append(Wanted(model.entries[0][0], b'{"another":"payload"}'))
        batch = self.fronts[front].ledger.put_batch(self.company, series, wanted)
        if (spoiled and model.entries) or not model.active:
            with pytest.raises(Conflict):
                self.run(batch)
            return
        for one, (made, replayed) in zip(wanted, self.run(batch), strict=True):
            found = model.find(one.id)
            code = found[1] if found else model.issue(one)
            assert (made.id, made.code, replayed) == (one.id, code, found is not None)

    @rule(number=st.integers(0, 1), count=st.integers(2, 50), doubled=st.booleans())
    @precondition(lambda self: all(model.active for model in self.models.values()))
    def create_many_at_once(self, number: int, count: int, *, doubled: bool) -> None:
        series, model = self.series(number)
        ids = [new_id() for _ in range(count)]
        asked = ids + ids if doubled else ids

        async def put_all() -> list[tuple[Entry, bool]]:
            puts = [
                self.fronts[at % 2].ledger.put_entry(self.company, series, Wanted(entry))
                for at, entry in enumerate(asked)
            ]
            return await asyncio.gather(*puts)

        answers = self.run(put_all())
        by_position = {made.position: made for made, _ in answers}
        assert sum(not replayed for _, replayed in answers) == count
        assert {made.id for made in by_position.values()} == set(ids)
        for position in range(len(model.entries) + 1, len(model.entries) + count + 1):
            assert model.issue(Wanted(by_position[position].id)) == by_position[position].code

    @rule(number=st.integers(0, 1), front=st.integers(0, 1), active=st.booleans())
    def activate(self, number: int, front: int, *, active: bool) -> None:
        series, model = self.series(number)
        self.run(self.fronts[front].definitions.put(self.company, series, SeriesFields(active=active)))
        model.active = active

    @rule(number=st.integers(0, 1), front=st.integers(0, 1), prefix=st.sampled_from(["C-", "D-"]))
    def change_prefix(self, number: int, front: int, prefix: str) -> None:
        series, model = self.series(number)
        form = f"{prefix}%incDaily%/%yearLong%%month%%day%" if model.daily else None
        fields = SeriesFields(format=form) if model.daily else SeriesFields(prefix=prefix)
        change = self.fronts[front].definitions.put(self.company, series, fields)
        if model.entries and prefix != model.prefix:
            with pytest.raises(Conflict):
                self.run(change)
        else:
            self.run(change)
            model.prefix = prefix

    @rule(shard=st.integers(0, SHARDS - 1))
    def drain_one(self, shard: int) -> None:
        self.drainer.drain(shard)

    @rule()
    def drain_everything(self) -> None:
        drain_all(self.drainer)

    @rule()
    def flush_scripts(self) -> None:
        self.valkey.client.script_flush()

    @rule(front=st.integers(0, 1))
    def restart_server(self, front: int) -> None:
        self.valkey.kill()
        self.valkey.start()
        # The first call after a restart may find its connection broken: an unknown outcome, safe to repeat.
        for series in self.models:
            for _ in range(3):
                try:
                    self.run(self.fronts[front].ledger.entry(self.company, series, new_id()))
                except NotFound:
                    break
                except Unavailable:
                    continue
        for other in self.fronts:
            for _ in range(5):
                try:
                    self.run(other.watch.meet(other.gate.standing))
                    self.run(other.client.ping())
                except Exception:  # noqa: BLE001 -- any error of a broken connection
                    continue
                break

    @invariant()
    def everything_reads_as_the_model_says(self) -> None:
        for series, model in self.models.items():
            front = self.fronts[len(model.entries) % 2]
            ledger = front.ledger
            listed = self.run(self.list_all(ledger, series))
            assert [(entry.id, entry.meta, entry.code) for entry in listed] == model.entries
            assert [entry.position for entry in listed] == list(range(1, len(listed) + 1))
            assert [entry.previous_id for entry in listed] == [None, *(entry.id for entry in listed)][: len(listed)]
            view = self.run(front.definitions.get(self.company, series))
            assert view.state.last_id == (model.entries[-1][0] if model.entries else None)
            if model.entries:
                assert view.last_index == listed[-1].number
                last = self.run(ledger.entry(self.company, series, model.entries[-1][0]))
                assert replace(last, receipt=None, settled_at=None) == replace(
                    listed[-1], receipt=None, settled_at=None
                )


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The servers that all examples share, and a worker that takes small bites."""
    monkeypatch.setattr(worker, "SLICE_RECORDS_MAX", 7)
    monkeypatch.setattr(worker, "TURN_S", 0.01)
    path = Path(tempfile.mkdtemp(prefix="seriatim-test-"))
    Machine.valkey = Valkey(path)
    Machine.store = Store(f"sqlite:///{path / 'store.db'}")
    Machine.store.migrate()
    Machine.store.prepare(SHARDS)
    yield
    Machine.store.close()
    Machine.valkey.kill()
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.usefixtures("prepared")
def test_any_order_of_requests_agrees_with_a_plain_list() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=15,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


@pytest.fixture
def config(valkey: Valkey, tmp_path: Path) -> Config:
    """The configuration of a front, whose store has no company yet."""
    with closing(Store(f"sqlite:///{tmp_path / 'store.db'}")) as store:
        store.migrate()
        store.prepare(SHARDS)
        return make_config(valkey, store.engine.url.render_as_string(hide_password=False))


def make_company(front: Front) -> str:
    return front.store.create_company(new_id(), "test").id


@pytest.mark.parametrize(
    ("bound", "calls"),
    [
        (("CALL_REQUESTS_MAX", allocator.CALL_REQUESTS_MAX), 1),
        (("CALL_REQUESTS_MAX", 3), 4),
        (("CALL_BYTES_MAX", len(keyspace.pack_request(bytes(24))) * 3), 4),
    ],
)
def test_what_waits_goes_in_one_call_whatever_its_shard(
    valkey: Valkey, config: Config, monkeypatch: pytest.MonkeyPatch, bound: tuple[str, int], calls: int
) -> None:
    # Given three series of each shard, that have been numbered in

    async def number() -> list[Entry]:
        async with running_front(config) as front:
            company = make_company(front)
            every = [id_in(shard) for shard in range(SHARDS) for _ in range(3)]
            for series in every:
                await front.definitions.put(company, series, SeriesFields(prefix="T-"))
                await front.ledger.put_entry(company, series, Wanted(new_id()))
            until(lambda: len(woken(valkey)) == SHARDS)

            # When numbers are asked for in all of them at once
            valkey.client.config_resetstat()
            puts = [front.ledger.put_entry(company, series, Wanted(new_id())) for series in every]
            return [entry for entry, _ in await asyncio.gather(*puts)]

    monkeypatch.setattr(allocator, *bound)
    entries = asyncio.run(number())

    # Then they travel together, as far as a call may carry them, and each is the second of its series
    assert [entry.position for entry in entries] == [2] * 3 * SHARDS
    assert valkey.client.info("commandstats")["cmdstat_evalsha"]["calls"] == calls


@pytest.mark.parametrize(("batches", "calls"), [(True, allocator.BATCHES_AT_ONCE), (False, 1)])
def test_more_than_one_call_is_in_flight_only_for_batches(
    valkey: Valkey, config: Config, *, batches: bool, calls: int
) -> None:
    # Given a Redis that does not answer for a while
    async def number() -> tuple[int, list[list[Entry]]]:
        async with running_front(config) as front:
            company = make_company(front)
            series = await make_series(front, company)
            await front.ledger.put_entry(company, series, Wanted(new_id()))
            assert front.line is not None
            busy = front.line._waiting
            valkey.process.send_signal(signal.SIGSTOP)

            # When numbers are asked for, one by one or by batches
            async def ask() -> list[Entry]:
                wanted = [Wanted(new_id()) for _ in range(5)]
                if batches:
                    return [entry for entry, _ in await front.ledger.put_batch(company, series, wanted)]
                puts = [front.ledger.put_entry(company, series, one) for one in wanted]
                return [entry for entry, _ in await asyncio.gather(*puts)]

            asking = [asyncio.create_task(ask()) for _ in range(6)]
            await asyncio.sleep(0.1)
            in_flight = len(busy)
            valkey.process.send_signal(signal.SIGCONT)
            return in_flight, await asyncio.gather(*asking)

    in_flight, runs = asyncio.run(number())

    # Then so many calls are on their way
    assert in_flight == calls

    # And every number is issued once, those of a batch side by side
    assert sorted(entry.position for run in runs for entry in run) == list(range(2, 32))
    if batches:
        assert all([entry.position - run[0].position for entry in run] == [0, 1, 2, 3, 4] for run in runs)


class Told(Waiting):
    """A request that writes down what comes of it; those that are `unsent` cannot pass their answers on."""

    def __init__(self, number: int, said: list[tuple[str, int]], *, unsent: bool) -> None:
        self.number, self.said, self.unsent = number, said, unsent

    def succeed(self, answer: Issued | Settled) -> None:
        self.said.append(("made", answer.position))

    def fail(self, error: SeriatimError) -> None:
        raise AssertionError(error)

    def deliver(self) -> None:
        self.said.append(("sent", self.number))
        if self.unsent:
            raise OSError


def test_answers_of_a_call_are_all_made_before_any_is_sent_and_one_that_fails_keeps_none_back(config: Config) -> None:
    # Given requests for six numbers, two of whose answers cannot be sent
    async def number() -> list[tuple[str, int]]:
        async with running_front(config) as front:
            company = make_company(front)
            series_id = await make_series(front, company)
            await front.ledger.put_entry(company, series_id, Wanted(new_id()))
            series = front.definitions.known(company, series_id)
            assert series is not None
            said: list[tuple[str, int]] = []

            # When they travel together
            for one in range(2, 8):
                order = Wanted(new_id()).order(claimed=False)
                front.allocator.submit(Told(one, said, unsent=one in (2, 5)).ask(series, order))
            async with asyncio.timeout(10):
                while len(said) < 12:  # noqa: ASYNC110 -- what there is to be said
                    await asyncio.sleep(0.01)
            return said

    # Then each answer is made, and only then each is sent
    said = asyncio.run(number())
    assert said == [("made", one) for one in range(2, 8)] + [("sent", one) for one in range(2, 8)]


def woken(valkey: Valkey) -> set[str]:
    """The shards for which a job waits."""
    return {job[:3] for job in worker.queue(valkey.client).get_job_ids()}
