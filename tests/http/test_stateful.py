"""The whole stack against a plain model: thousands of random steps over HTTP, each answer compared with what must be.

Two API processes whose clocks are minutes off, one Valkey whose clock is set forwards and backwards, a worker that
settles when it is told to. Every example makes a company and series of its own on the same servers.
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from clocked import SHARDS, Answer, ClockedStack
from drawn_requests import (
    ABOUT_MIDNIGHT,
    CHANGES,
    DATES,
    FAMOUS_DAYS,
    FRONTS,
    HOUR,
    METAS,
    NO_COUNTERS,
    NO_DATES,
    REASONS,
    SIGS,
    SKEWS,
    TIMES,
    TYPES,
    WHICH,
    definitions,
    midnight_ms,
)
from plain_model import Line, Note, PlainCompany, PlainSeries, Refusal, Wish
from stack import new_id, seriatim, until

T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., None])

EXAMPLES, EXAMPLE_STEPS = 76, 42
STEPS_MIN = 3_000
RESTARTS_ONE_IN = 25
SERIES_MAX = 5
ERROR_CODES = {404: "not_found", 409: "conflict", 422: "invalid"}
OUTCOMES = (
    *("issued", "replayed", "batch", "batch refused", "at once", "voided", "skipped", "deleted"),
    *("refused: payload", "refused: inactive", "refused: past", "refused: future"),
    *("refused: used", "refused: lowers", "refused: no default", "refused: overflow"),
)
"""What thousands of steps cannot miss; a test that shrinks unnoticed tests nothing."""


@dataclass(frozen=True)
class Step:
    """A method of the machine and what it is called with."""

    name: str
    arguments: dict[str, Any]

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"


STEPS: list[st.SearchStrategy[Step]] = []
"""One rule draws among them all: Hypothesis would leave out half of its rules in most examples."""


def step(**drawn: st.SearchStrategy[Any]) -> Callable[[Method], Method]:
    """Makes a method one of the steps."""

    def decorate(function: Method) -> Method:
        STEPS.append(st.fixed_dictionaries(drawn).map(partial(Step, function.__name__)))
        return function

    return decorate


def cursor_behind(entry: str, limit: int) -> str:
    return base64.b64encode(json.dumps({"id": entry, "limit": limit}).encode()).decode()


class Machine(RuleBasedStateMachine):
    """A company's series, as they are on the servers and as they must be."""

    stack: ClassVar[ClockedStack]
    pool: ClassVar[ThreadPoolExecutor]
    seen: ClassVar[Counter[str]]
    failures: ClassVar[list[str]]

    @initialize(first=st.lists(definitions(), min_size=2, max_size=3), day=FAMOUS_DAYS, skews=SKEWS, front=FRONTS)
    def begin(self, first: list[dict[str, Any]], day: date, skews: list[int], front: int) -> None:
        key, self.actor = self.stack.new_company()
        self.headers = {"Authorization": f"Bearer {key}"}
        self.set_clocks(midnight_ms(day, ZoneInfo("UTC")) + 12 * HOUR, skews)
        self.asked: list[tuple[PlainSeries, Wish]] = []
        self.asked_by_type: list[tuple[str, Wish]] = []
        self.company = PlainCompany()
        self.done: list[Any] = [*first, day, skews]
        for definition in first:
            self.create_series(front, new_id(), definition)
        self.put(front, self.company.series[0], Wish(new_id()))

    # talking and comparing ----------------------------------------------------------------------------------------

    def set_clocks(self, now_ms: int, skews: list[int]) -> None:
        self.clock_ms, self.skews = now_ms, skews
        self.stack.set_clocks(now_ms, skews)

    def ask(self, front: int, method: str, path: str, body: Any = None, **params: Any) -> Answer:
        """Sends a request, and again as long as the front has seen one clock before and the other after a change."""
        path = f"/sequence/v1{path}?{urlencode(params)}"

        def once() -> Answer | None:
            answer = self.stack.fronts[front].ask(method, path, body, self.headers)
            if answer.status == 503:
                assert "by more than an hour" in answer.text, answer.text
                return None
            # A front that refuses to allocate still answers reads, with what the store holds alone.
            refuses = method == "GET" and self.stack.fronts[front].ask("GET", "/readyz").status == 503
            return None if refuses else answer

        answer = once()
        if answer is None:
            self.seen["asked again"] += 1
            answer = until(once)
        assert answer is not None
        return answer

    def pick(self, which: int) -> PlainSeries:
        return self.company.series[which % len(self.company.series)]

    def pick_unused(self, which: int) -> PlainSeries:
        """A series without entries, if there is one: what changes or goes is mostly such."""
        unused = [series for series in self.company.series if not series.lines]
        return unused[which % len(unused)] if unused and which % 4 else self.pick(which)

    def day(self, series: PlainSeries, drawn: int | str | None) -> str | None:
        if isinstance(drawn, int):
            return (series.today(self.clock_ms) + timedelta(days=drawn)).isoformat()
        return (series.last.date if series.last else None) if drawn == "last" else drawn

    def compare(self, answer: Answer, expected: Callable[[], T]) -> T | None:
        """Compares an answer's status with the model's; what the model answers, None when both refuse."""
        try:
            value = expected()
        except Refusal as refused:
            refusal = refused
        else:
            assert answer.status in (200, 204), answer.text
            return value
        self.seen[f"refused: {refusal.why}"] += 1
        content = answer.content
        assert (answer.status, content["code"]) == (refusal.status, ERROR_CODES[refusal.status]), str(refusal)
        assert not refusal.place or any(name.startswith(refusal.place) for name in content["fields"]), content
        return None

    def check_line(self, series: PlainSeries, line: Line, content: Mapping[str, Any]) -> None:
        told = {name: value for name, value in content.items() if name not in ("sigs", "updated_at")}
        void = series.voids.get(line.wish.id)
        if void and "void" in told:
            told["void"] = {name: value for name, value in told["void"].items() if name != "sig"}
            assert "sig" in content["void"] or not void.settled
        assert told == series.answer(line)
        own = [line.wish.sig] if line.wish.sig else []
        assert content["sigs"][: len(own)] == own
        receipts = len(content["sigs"]) - len(own)
        assert receipts == 1 if line.position <= series.settled else receipts in (0, 1)

    def check_lines(self, series: PlainSeries, lines: Sequence[Line], listed: Sequence[Any]) -> None:
        assert len(listed) == len(lines)
        for line, content in zip(lines, listed, strict=True):
            self.check_line(series, line, content)

    def check_put(self, series: PlainSeries, wish: Wish, answer: Answer) -> None:
        self.asked.append((series, wish))
        issued = self.compare(answer, lambda: series.put(wish, self.clock_ms))
        if issued:
            line, replayed = issued
            self.check_issued(answer, series, line, replayed=replayed)

    def check_issued(self, answer: Answer, series: PlainSeries, line: Line, *, replayed: bool) -> None:
        self.check_line(series, line, answer.content)
        assert answer.headers.get("Idempotent-Replayed") == ("true" if replayed else None)
        self.seen["replayed" if replayed else "issued"] += 1

    def check_series(self, series: PlainSeries, content: Mapping[str, Any]) -> None:
        assert content["id"] == series.id
        assert content["last_index"] == series.last_index
        assert content.get("last_entry_id") == (series.last.wish.id if series.last else None)
        assert content["default"] == (self.company.defaults.get(series.type) is series)
        assert {name: content[name] for name in series.definition} == series.definition

    # entries ------------------------------------------------------------------------------------------------------

    def put(self, front: int, series: PlainSeries, wish: Wish, body: Any = None) -> None:
        path = f"/series/{series.id}/entries/{wish.id}"
        self.check_put(series, wish, self.ask(front, "PUT", path, wish.body() if body is None else body))

    @step(which=WHICH, front=FRONTS, meta=METAS, day=DATES, sig=SIGS)
    def create(self, which: int, front: int, meta: dict[str, str], day: int | str | None, sig: str | None) -> None:
        series = self.pick(which)
        self.put(front, series, Wish(new_id(), meta, self.day(series, day), sig))

    @step(which=WHICH, front=FRONTS, meta=METAS, count=st.integers(1, 5))
    def create_some(self, which: int, front: int, meta: dict[str, str], count: int) -> None:
        for _ in range(count):
            self.put(front, self.pick(which), Wish(new_id(), meta))

    @step(which=WHICH, front=FRONTS, sig=SIGS, spelling=st.sampled_from(["as before", "null", "absent", "upper case"]))
    def put_again(self, which: int, front: int, sig: str | None, spelling: str) -> None:
        series, wish = self.asked[which % len(self.asked)]
        wish = replace(wish, sig=sig, date=None if series.deleted else wish.date)
        body = wish.body()
        if spelling == "null" and not wish.meta:
            body["meta"] = None
        elif spelling == "absent" and not wish.meta:
            del body["meta"]
        elif spelling == "upper case":
            body["id"] = wish.id.upper()
        self.put(front, series, wish, body)

    @step(which=WHICH, change=st.sampled_from(["meta", "date", "series"]), front=FRONTS, meta=METAS, day=DATES)
    def put_again_differently(
        self, which: int, change: str, front: int, meta: dict[str, str], day: int | str | None
    ) -> None:
        series, wish = self.asked[which % len(self.asked)]
        if change == "series":  # an id belongs to its series: in another one it is new
            self.put(front, self.pick(which), wish)
        elif change == "meta":
            self.put(front, series, replace(wish, meta=meta, date=None if series.deleted else wish.date))
        else:
            self.put(front, series, replace(wish, date=None if series.deleted else self.day(series, day)))

    @step(
        which=WHICH,
        front=FRONTS,
        days=st.one_of(st.lists(st.none(), min_size=1, max_size=5), st.lists(DATES, min_size=1, max_size=4)),
        more=st.sampled_from([0, 0, 0, 0, 45]),
        again=st.lists(WHICH, max_size=4),
        spoiled=st.sampled_from([None, None, None, "payload", "date", "twin"]),
    )
    def create_batch(  # noqa: PLR0913, PLR0917 -- what a batch is made of
        self, which: int, front: int, days: list[int | str | None], more: int, again: list[int], spoiled: str | None
    ) -> None:
        series = self.pick(which)
        wishes = [Wish(new_id(), {"n": str(more)}, self.day(series, day)) for day in (*days, *[None] * more)]
        mine = [wish for owner, wish in self.asked if owner is series]
        for number in again:
            if mine:
                wishes.insert(number % len(wishes), mine[number % len(mine)])
        if spoiled == "payload" and series.last:
            wishes.append(replace(series.last.wish, meta={"another": "payload"}))
        elif spoiled == "twin":
            wishes += [wishes[0], replace(wishes[0], meta={"another": "payload"})][: 1 + which % 2]
        bodies = [wish.body() | {"id": wish.id} for wish in wishes]
        if spoiled == "date":
            bodies[-1]["date"] = NO_DATES[which % len(NO_DATES)]
        answer = self.ask(front, "POST", f"/series/{series.id}/entries", {"list": bodies})
        if spoiled == "date":
            assert answer.status == 422
            assert f"list[{len(bodies) - 1}].date" in answer.content["fields"]
            return
        self.asked += [(series, wish) for wish in wishes]
        issued = self.compare(answer, lambda: series.put_batch(wishes, self.clock_ms))
        if issued:
            self.check_lines(series, [line for line, _ in issued], answer.content["list"])
        self.seen["batch" if issued else "batch refused"] += 1

    @step(which=WHICH, count=st.integers(2, 5), doubled=st.booleans())
    def create_at_once(self, which: int, count: int, *, doubled: bool) -> None:
        series = self.pick(which)
        wishes = [Wish(new_id(), {"number": str(number)}) for number in range(count)] * (2 if doubled else 1)

        def put(number: int) -> Answer:
            wish = wishes[number]
            return self.ask(number % 2, "PUT", f"/series/{series.id}/entries/{wish.id}", wish.body())

        answered = zip(wishes, self.pool.map(put, range(len(wishes))), strict=True)

        def order(pair: tuple[Wish, Answer]) -> tuple[int, bool]:
            return pair[1].content.get("position", sys.maxsize), "Idempotent-Replayed" in pair[1].headers

        # In which order they came is the servers' affair; in that order the model must say the same.
        for wish, answer in sorted(answered, key=order):
            self.check_put(series, wish, answer)
        self.seen["at once"] += 1

    @step(kind=st.sampled_from([*TYPES, "nothing"]), which=WHICH, front=FRONTS, meta=METAS, fresh=st.booleans())
    def create_by_type(self, kind: str, which: int, front: int, meta: dict[str, str], *, fresh: bool) -> None:
        wish = Wish(new_id(), meta)
        if not fresh and self.asked_by_type:
            kind, wish = self.asked_by_type[which % len(self.asked_by_type)]
        elif which % 3 == 0 and self.asked:
            wish = replace(self.asked[which % len(self.asked)][1], date=None)
        answer = self.ask(front, "PUT", f"/entries/{wish.id}", wish.body(), type=kind)
        self.asked_by_type.append((kind, wish))
        issued = self.compare(answer, lambda: self.company.put_default(kind, wish, self.clock_ms))
        if issued:
            series, line, replayed = issued
            self.asked.append((series, wish))
            self.check_issued(answer, series, line, replayed=replayed)

    @step(which=WHICH, front=FRONTS, day=st.sampled_from(NO_DATES))
    def ask_wrongly(self, which: int, front: int, day: str) -> None:
        path, unknown = f"/series/{self.pick(which).id}/entries", new_id()
        assert self.ask(front, "PUT", f"{path}/{new_id()}", {"date": day}).status == 422
        assert self.ask(front, "PUT", f"{path}/{new_id()}", {"id": new_id()}).status == 422
        assert self.ask(front, "PUT", f"/series/{unknown}/entries/{new_id()}", {}).status == 404
        assert self.ask(front, "GET", f"{path}/{unknown}").status == 404

    # voids and skips ----------------------------------------------------------------------------------------------

    @step(which=WHICH, front=FRONTS, reason=REASONS)
    def void(self, which: int, front: int, reason: str) -> None:
        series, wish = self.asked[which % len(self.asked)]
        answer = self.ask(front, "POST", f"/series/{series.id}/entries/{wish.id}/void", {"reason": reason})
        line = self.compare(answer, lambda: series.void(wish.id, reason, self.actor, self.clock_ms))
        if line:
            self.check_line(series, line, answer.content)
            self.seen["voided"] += 1

    @step(
        which=WHICH,
        front=FRONTS,
        counter=st.sampled_from([None, None, 0, 1, 2, 3, 4, *NO_COUNTERS]),
        ahead=st.sampled_from([0, 1, 2, 30, -1, -5]),
        reason=REASONS,
    )
    def skip(self, which: int, front: int, counter: int | str | None, ahead: int, reason: str) -> None:
        series = self.pick(which) if which % 3 else self.pick_unused(which // 3)
        if isinstance(counter, int):
            counter = series.slow.counters[counter % len(series.slow.counters)]
        name = counter if counter in series.slow.counters else series.first_counter
        to = min(max(1, series.slow.next(name, series.today(self.clock_ms)) + ahead), 2**53 - 1)
        body = {"to": to, "reason": reason} | ({"counter": counter} if counter else {})
        answer = self.ask(front, "POST", f"/series/{series.id}/skip", body)
        skipped = self.compare(answer, lambda: series.skip(counter, to, reason, self.actor, self.clock_ms))
        if skipped:
            self.check_skip(series, to, *skipped, answer.content)

    def check_skip(self, series: PlainSeries, to: int, counter: str, note: Note | None, content: Any) -> None:
        expected: dict[str, Any] = {"series_id": series.id, "counter": counter, "next": to}
        if note:
            assert note.of
            expected |= {"period": note.of[1]} | note.answer()
            self.seen["skipped"] += 1
        assert content == expected

    # series -------------------------------------------------------------------------------------------------------

    def create_series(self, front: int, series_id: str, definition: dict[str, Any]) -> None:
        answer = self.ask(front, "PUT", f"/series/{series_id}", definition)
        series = self.compare(answer, lambda: self.company.create(series_id, definition))
        if series:
            self.check_series(series, answer.content)

    @step(which=WHICH, front=FRONTS, definition=definitions())
    def create_or_delete_a_series(self, which: int, front: int, definition: dict[str, Any]) -> None:
        some, gone = len(self.company.series), [series.id for series in self.company.gone]
        if some == SERIES_MAX or (some > 1 and which % 2):
            self.delete_series(front, self.pick_unused(which // 2))
        else:
            self.create_series(front, gone[-1] if gone and which % 3 == 0 else new_id(), definition)

    def delete_series(self, front: int, series: PlainSeries) -> None:
        answer = self.ask(front, "DELETE", f"/series/{series.id}")
        self.compare(answer, lambda: self.company.delete(series))
        if series.deleted:
            assert answer.status == 204
            assert self.ask(1 - front, "GET", f"/series/{series.id}").status == 404
            self.seen["deleted"] += 1

    @step(which=WHICH, front=FRONTS, fields=CHANGES)
    def change_series(self, which: int, front: int, fields: dict[str, Any]) -> None:
        series = self.pick(which) if "active" in fields else self.pick_unused(which)
        answer = self.ask(front, "PUT", f"/series/{series.id}", fields)
        self.compare(answer, lambda: self.company.change(series, fields))
        if answer.status == 200:
            self.check_series(series, answer.content)

    @step(which=WHICH, front=FRONTS)
    def send_the_creating_request_again(self, which: int, front: int) -> None:
        series = self.pick(which)
        answer = self.ask(front, "PUT", f"/series/{series.id}", series.creation)
        assert answer.status == 200, answer.text
        self.check_series(series, answer.content)

    # time, settlement, scripts, processes -------------------------------------------------------------------------

    @step(ms=TIMES, skews=SKEWS)
    def time_passes_or_is_set_back(self, ms: int, skews: list[int]) -> None:
        self.set_clocks(self.clock_ms + ms, skews)

    @step(which=WHICH, day=st.one_of(st.integers(-1, 2), FAMOUS_DAYS), ms=ABOUT_MIDNIGHT, skews=SKEWS)
    def midnight_comes(self, which: int, day: int | date, ms: int, skews: list[int]) -> None:
        zone = self.pick(which).zone
        if isinstance(day, int):
            day = datetime.fromtimestamp(self.clock_ms / 1000, zone).date() + timedelta(days=day)
        self.set_clocks(midnight_ms(day, zone) + ms, skews)

    @step(shard=st.integers(0, SHARDS))
    def settle(self, shard: int) -> None:
        if shard < SHARDS:
            self.stack.settle(str(shard))
        else:
            self.settle_all()

    def settle_all(self) -> None:
        self.stack.settle("all")
        for series in self.company.series:
            series.settle()

    @step(front=FRONTS, luck=st.integers(1, RESTARTS_ONE_IN))
    def flush_scripts_or_restart(self, front: int, luck: int) -> None:
        if luck == RESTARTS_ONE_IN:
            self.stack.fronts[front].restart()
            self.seen["restart"] += 1
        else:
            self.stack.valkey.client.script_flush()

    # reading ------------------------------------------------------------------------------------------------------

    @step(which=WHICH, front=FRONTS)
    def read_entry(self, which: int, front: int) -> None:
        series, wish = self.asked[which % len(self.asked)]
        answer = self.ask(front, "GET", f"/series/{series.id}/entries/{wish.id}")
        line = series.by_id.get(wish.id)
        if line is None:
            assert (answer.status, answer.content["code"]) == (404, "not_found")
        else:
            self.check_line(series, line, answer.content)

    @step(which=WHICH, at=WHICH, limit=st.integers(1, 60), front=FRONTS)
    def read_page(self, which: int, at: int, limit: int, front: int) -> None:
        series = self.pick(which)
        start = at % (len(series.lines) + 1)
        params = {"cursor": cursor_behind(series.lines[start - 1].wish.id, 1)} if start else {}
        page = self.ask(front, "GET", f"/series/{series.id}/entries", limit=limit, **params).content
        self.check_lines(series, series.lines[start : start + limit], page["list"])
        assert ("cursor" in page) == (start + limit < len(series.lines))

    @step(which=WHICH, front=FRONTS)
    def read_series(self, which: int, front: int) -> None:
        series = self.pick(which)
        self.check_series(series, self.ask(front, "GET", f"/series/{series.id}").content)
        preview = self.ask(front, "GET", f"/series/{series.id}/preview").content["next"]
        today = series.today(self.clock_ms)
        assert preview == series.preview(today, len(preview))

    @step(which=WHICH, front=FRONTS, days=st.lists(st.one_of(st.none(), st.integers(-30, 2)), min_size=2, max_size=2))
    def read_report(self, which: int, front: int, days: list[int | None]) -> None:
        series = self.pick(which)
        first, last = (self.day(series, day) for day in days)
        params = {name: day for name, day in (("from", first), ("to", last)) if day}
        report = self.ask(front, "GET", f"/series/{series.id}/report", **params).content
        assert report == {"series_id": series.id, "list": series.report(first, last)}

    @rule(chosen=st.one_of(STEPS))
    def run(self, chosen: Step) -> None:
        self.done.append(chosen)
        with self.failure_noted():
            getattr(self, chosen.name)(**chosen.arguments)
        self.seen.update(["steps", chosen.name])

    @contextmanager
    def failure_noted(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self.failures.append("\n".join([*map(repr, self.done), traceback.format_exc()]))
            raise

    # the end of each example --------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if sys.exc_info()[0] is not None or not hasattr(self, "company"):
            return  # a step has failed, and what that says matters
        with self.failure_noted():
            self.settle_all()
            for series in self.company.series:
                self.check_whole(series)
            self.audit()

    def check_whole(self, series: PlainSeries) -> None:
        listed = self.list_all(series)
        self.check_lines(series, series.lines, listed)
        times = [content["created_at"] for content in listed]
        assert times == sorted(times)
        assert len({content["code"] for content in listed}) == len(listed)
        report = self.ask(0, "GET", f"/series/{series.id}/report").content
        assert report["list"] == series.report(None, None)

    def list_all(self, series: PlainSeries) -> list[Any]:
        listed: list[Any] = []
        page: dict[str, Any] = {"cursor": None}
        while "cursor" in page:
            params = {"cursor": page["cursor"]} if listed else {}
            page = self.ask(1, "GET", f"/series/{series.id}/entries", limit=100, **params).content
            listed += page["list"]
        return listed

    def audit(self) -> None:
        chosen = [part for series in self.company.series for part in ("--series", series.id)]
        done = seriatim("verify", "--json", *chosen, environment=self.stack.environment)
        said = json.loads(done.stdout)
        assert said["findings"] == []
        assert (done.returncode, said["sound"]) == (0, True)
        assert said["entries"] == sum(len(series.lines) for series in self.company.series)


@pytest.fixture
def prepared() -> Iterator[type[Machine]]:
    """The servers that all examples share."""
    path = Path(tempfile.mkdtemp(prefix="seriatim-test-"))
    Machine.stack = ClockedStack(path)
    Machine.seen, Machine.failures = Counter(), []
    with ThreadPoolExecutor(6) as Machine.pool:
        yield Machine
    Machine.stack.stop()
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.timeout(400)  # a failure is shrunk to few steps, which takes a while
def test_thousands_of_random_steps_agree_with_the_plain_model(prepared: type[Machine]) -> None:
    random_steps = settings(
        max_examples=EXAMPLES,
        stateful_step_count=EXAMPLE_STEPS,
        backend="hypothesis-urandom",  # draws every example anew, where the other one varies the last one five times
        phases=[Phase.reuse, Phase.generate, Phase.shrink],
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        report_multiple_bugs=False,
    )
    try:
        run_state_machine_as_test(prepared, settings=random_steps)
    except BaseException as error:
        # What follows a halt fails in other ways, and is then taken for a test that is not steady.
        error.add_note("\n".join(["The first failure:", *prepared.failures[:1]]))
        raise
    assert prepared.seen["steps"] >= STEPS_MIN, prepared.seen
    assert prepared.seen["asked again"] < STEPS_MIN // 50, prepared.seen
    assert [outcome for outcome in OUTCOMES if not prepared.seen[outcome]] == [], prepared.seen
