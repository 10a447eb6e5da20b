"""What a company's series must do, written as plainly as can be: lists, dicts and slow formats. No logic of src/.

Every method either changes the model and returns what must be answered, or raises `Refusal` and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any
from zoneinfo import ZoneInfo

from seriatim.model import Numbering
from slow_formats import COUNTERS, LAST_DAY, SlowSeries, slow_fiscal_year

COUNTER_MAX = 9_007_199_254_740_991
MISSING, CONFLICT, WRONG = 404, 409, 422
NUMBERING_FIELDS = Numbering.__struct_fields__


class Refusal(Exception):  # noqa: N818 -- named as the documentation names it
    """A 4xx: its status, and the place of what is wrong."""

    def __init__(self, status: int, why: str, place: str = "") -> None:
        super().__init__(f"{status} {why} {place}")
        self.status = status
        self.why = why
        self.place = place


@dataclass(frozen=True)
class Wish:
    """What a client asks for: one entry."""

    id: str
    meta: Mapping[str, str] = field(default_factory=dict)
    date: str | None = None
    sig: str | None = None

    @property
    def payload(self) -> tuple[dict[str, str], str | None]:
        return dict(self.meta), self.date

    def body(self) -> dict[str, Any]:
        optional = {"date": self.date, "sig": self.sig}
        return {"meta": dict(self.meta)} | {name: value for name, value in optional.items() if value is not None}


@dataclass(frozen=True)
class Line:
    """An entry. `numbers` are its counters' values, each by counter and period."""

    wish: Wish
    position: int
    code: str
    number: int
    numbers: dict[tuple[str, str], int]
    date: str
    created_ms: int
    previous_id: str | None


@dataclass
class Note:
    """A skip or a void; `of` is what a skip leaves out: counter, period, first and last number."""

    reason: str
    actor: str
    created_ms: int
    day: str
    of: tuple[str, str, int, int] | None = None
    settled: bool = False

    def answer(self) -> dict[str, Any]:
        said = {"reason": self.reason, "actor": self.actor, "created_at": rfc3339(self.created_ms)}
        return said | ({"from": self.of[2], "to": self.of[3]} if self.of else {})


def rfc3339(ms: int) -> str:
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{ms % 1000:03d}Z"


def numbering_of(definition: Mapping[str, Any]) -> Numbering:
    """A definition with its format written out."""
    given = {name: definition[name] for name in NUMBERING_FIELDS if name in definition}
    before, after = (given.pop(name, "").replace("%", "%%") for name in ("prefix", "suffix"))
    return Numbering(**({"format": f"{before}%inc%{after}"} | given))


def period_of(counter: str, day: date, fiscal_year_start: str) -> str:
    """A period as the interface names it."""
    whole = day.isoformat()
    year = str(slow_fiscal_year(day, fiscal_year_start))
    return {"inc": "", "incYearly": year, "incMonthly": whole[:7], "incDaily": whole}[counter]


class PlainSeries:
    """A series: its definition as the client wrote it, and its records in order."""

    def __init__(self, series: str, definition: Mapping[str, Any]) -> None:
        self.id = series
        self.creation = dict(definition)
        self.definition = {name: value for name, value in definition.items() if name != "default"}
        self.type = definition.get("type", "invoice")
        self.active = True
        self.deleted = False
        self.lines: list[Line] = []
        self.by_id: dict[str, Line] = {}
        self.voids: dict[str, Note] = {}
        self.skips: list[Note] = []
        self.settled = 0
        self.time_ms = 0
        self._define()

    def _define(self) -> None:
        self.numbering = numbering_of(self.definition)
        self.slow = SlowSeries(self.numbering)
        self.strict = self.numbering.chronology == "strict"
        self.zone = ZoneInfo(self.numbering.timezone)
        self.first_day = date.fromisoformat(f"2000-{self.numbering.fiscal_year_start}")
        self.first_counter = next(text for marker, text in self.slow.pieces if marker and text in COUNTERS)

    @property
    def last(self) -> Line | None:
        return self.lines[-1] if self.lines else None

    @property
    def used(self) -> bool:
        return bool(self.lines or self.skips)

    @property
    def last_index(self) -> int:
        return self.last.number if self.last else self.numbering.start or 0

    def now_ms(self, clock_ms: int) -> int:
        """A clock that is set back does not take the series with it."""
        return max(clock_ms, self.time_ms)

    def today(self, clock_ms: int) -> date:
        return datetime.fromtimestamp(self.now_ms(clock_ms) / 1000, self.zone).date()

    def settle(self) -> None:
        self.settled = len(self.lines)
        for note in (*self.voids.values(), *self.skips):
            note.settled = True

    # entries ------------------------------------------------------------------------------------------------------

    def put(self, wish: Wish, clock_ms: int) -> tuple[Line, bool]:
        """The entry that an id is given, and whether it had it before."""
        self._check_range(wish, "date")
        return self._put(wish, clock_ms)

    def put_batch(self, wishes: Sequence[Wish], clock_ms: int) -> list[tuple[Line, bool]]:
        """All or nothing."""
        for number, wish in enumerate(wishes):
            self._check_range(wish, f"list[{number}].date")
        with self._undone_when_refused():
            answers = []
            for number, wish in enumerate(wishes):
                try:
                    answers.append(self._put(wish, clock_ms))
                except Refusal as refusal:
                    raise Refusal(refusal.status, refusal.why, f"list[{number}]") from None
            return answers

    def _check_range(self, wish: Wish, place: str) -> None:
        if self.deleted:
            raise Refusal(MISSING, "deleted")
        if wish.date and not self.first_day <= date.fromisoformat(wish.date) <= LAST_DAY:
            raise Refusal(WRONG, "range", place)

    def _put(self, wish: Wish, clock_ms: int) -> tuple[Line, bool]:
        known = self.by_id.get(wish.id)
        if known:
            if known.wish.payload != wish.payload:
                raise Refusal(CONFLICT, "payload")
            return known, True
        today = self.today(clock_ms)
        day = date.fromisoformat(wish.date) if wish.date else today
        self._check_open(day, today)
        line = self._next(wish, day, clock_ms)
        self.lines.append(line)
        self.by_id[wish.id] = line
        self.time_ms = line.created_ms
        return line, False

    def _check_open(self, day: date, today: date) -> None:
        if not self.active:
            raise Refusal(CONFLICT, "inactive")
        if self.strict and self.last and day < date.fromisoformat(self.last.date):
            raise Refusal(WRONG, "past", "date")
        if self.strict and day > today:
            raise Refusal(WRONG, "future", "date")

    def _next(self, wish: Wish, day: date, clock_ms: int) -> Line:
        with self._undone_when_refused():
            code = self._fitting_code(day)
        start = self.numbering.fiscal_year_start
        values = {name: self.slow.counts[self.slow.period(name, day)] for name in self.slow.counters}
        return Line(
            wish=wish,
            position=len(self.lines) + 1,
            code=code,
            number=values[self.first_counter],
            numbers={(name, period_of(name, day, start)): value for name, value in values.items()},
            date=day.isoformat(),
            created_ms=self.now_ms(clock_ms),
            previous_id=self.last.wish.id if self.last else None,
        )

    def _fitting_code(self, day: date) -> str:
        code = self.slow.issue(day)
        if max(self.slow.counts[self.slow.period(counter, day)] for counter in self.slow.counters) > COUNTER_MAX:
            raise Refusal(CONFLICT, "exhausted")
        if self.numbering.max_length and len(code) > self.numbering.max_length:
            raise Refusal(CONFLICT, "overflow")
        return code

    @contextmanager
    def _undone_when_refused(self) -> Iterator[None]:
        counts, begun, length, time_ms = dict(self.slow.counts), self.slow.begun, len(self.lines), self.time_ms
        try:
            yield
        except Refusal:
            self.slow.counts, self.slow.begun, self.time_ms = counts, begun, time_ms
            for line in self.lines[length:]:
                del self.by_id[line.wish.id]
            del self.lines[length:]
            raise

    def answer(self, line: Line) -> dict[str, Any]:
        """An entry as it is answered, without what settlement adds."""
        void = self.voids.get(line.wish.id)
        answered = {
            "id": line.wish.id,
            "series_id": self.id,
            "code": line.code,
            "position": line.position,
            "number": line.number,
            "date": line.date,
            "meta": dict(line.wish.meta),
            "created_at": rfc3339(line.created_ms),
            "previous_id": line.previous_id,
            "void": void.answer() if void else None,
        }
        return {name: value for name, value in answered.items() if value is not None}

    # voids and skips ----------------------------------------------------------------------------------------------

    def void(self, entry: str, reason: str, actor: str, clock_ms: int) -> Line:
        """The entry, which is void from now on; the first reason stays."""
        line = self.by_id.get(entry)
        if line is None:
            raise Refusal(MISSING, "no entry")
        if entry not in self.voids:
            self.voids[entry] = self._note(reason, actor, clock_ms)
        return line

    def skip(self, counter: str | None, to: int, reason: str, actor: str, clock_ms: int) -> tuple[str, Note | None]:
        """The counter that is raised in today's period, and what is left out, if anything."""
        name = counter or self.first_counter
        if name not in self.slow.counters:
            raise Refusal(WRONG, "no counter", "counter")
        day = self.today(clock_ms)
        following = self.slow.next(name, day)
        if to <= following:
            if to < following:
                raise Refusal(WRONG, "lowers", "to")
            return name, None
        with self._undone_when_refused():
            self._check_next_code(name, day, to)
        self.slow.counts[self.slow.period(name, day)] = to - 1
        note = self._note(reason, actor, clock_ms)
        note.of = name, period_of(name, day, self.numbering.fiscal_year_start), following, to - 1
        self.skips.append(note)
        return name, note

    def _check_next_code(self, counter: str, day: date, to: int) -> None:
        trial = SlowSeries(self.numbering)
        trial.begun = self.slow.begun
        trial.counts = self.slow.counts | {self.slow.period(counter, day): to - 1}
        length = len(trial.issue(day))
        if max(trial.counts[trial.period(name, day)] for name in trial.counters) > COUNTER_MAX:
            raise Refusal(CONFLICT, "exhausted")
        if self.numbering.max_length and length > self.numbering.max_length:
            raise Refusal(WRONG, "overflow", "to")

    def _note(self, reason: str, actor: str, clock_ms: int) -> Note:
        self.time_ms = self.now_ms(clock_ms)
        return Note(reason, actor, self.time_ms, self.today(clock_ms).isoformat())

    def report(self, first: str | None, last: str | None) -> list[dict[str, Any]]:
        """What became of each counter's numbers in each period. None is ever missing."""
        rows: dict[tuple[str, str], dict[str, Any]] = {}

        def row(counter: str, period: str, day: str) -> dict[str, Any] | None:
            if not (first or "") <= day <= (last or "9999"):
                return None
            blank: dict[str, Any] = {
                "first": None,
                "last": None,
                "issued": 0,
                "voided": 0,
                "skipped": [],
                "missing": [],
            }
            return rows.setdefault((counter, period), {"counter": counter, "period": period} | blank)

        for line in self.lines:
            for (counter, period), value in line.numbers.items():
                found = row(counter, period, line.date)
                if found:
                    found["first"] = found["first"] or value
                    found["last"] = value
                    found["issued"] += 1
                    found["voided"] += line.wish.id in self.voids
        for note in self.skips:
            assert note.of
            found = row(*note.of[:2], note.day)
            if found:
                found["skipped"].append(note.answer())
        return [rows[name] for name in sorted(rows)]

    # definition ---------------------------------------------------------------------------------------------------

    def change(self, fields: Mapping[str, Any]) -> None:
        """Another body of PUT series: labels at any time, numbering until the first record."""
        numbering = {name: value for name, value in fields.items() if name in NUMBERING_FIELDS}
        if any(self.definition.get(name) != value for name, value in numbering.items()):
            longest = self.numbering.max_length
            changed = SlowSeries(numbering_of(self.definition | numbering))
            if longest and len(changed.issue(self.first_day)) > longest:
                raise Refusal(WRONG, "too long", "max_length")
            if self.used:
                raise Refusal(CONFLICT, "used")
            self.definition |= numbering
            self._define()
        self.definition |= {name: value for name, value in fields.items() if name not in ("type", "default")}
        self.active = self.definition.get("active", True)

    def preview(self, today: date, count: int) -> list[str]:
        """The next codes, if they were all of one day."""
        ahead = SlowSeries(self.numbering)
        ahead.counts, ahead.begun = dict(self.slow.counts), self.slow.begun
        return [ahead.issue(today) for _ in range(count)]


class PlainCompany:
    """A company: its series, the default of each type, and which series each id came to by type."""

    def __init__(self) -> None:
        self.series: list[PlainSeries] = []
        self.gone: list[PlainSeries] = []
        self.defaults: dict[str, PlainSeries] = {}
        self.claims: dict[tuple[str, str], PlainSeries] = {}

    def create(self, series_id: str, definition: Mapping[str, Any]) -> PlainSeries:
        """A new series; the first of its type, as long as the type has no other default, becomes that."""
        if any(series.id == series_id for series in self.gone):
            raise Refusal(CONFLICT, "id of a deleted series")
        series = PlainSeries(series_id, definition)
        self.series.append(series)
        if definition.get("default") or series.type not in self.defaults:
            self.defaults[series.type] = series
        return series

    def change(self, series: PlainSeries, fields: Mapping[str, Any]) -> None:
        """Another body of PUT series."""
        series.change(fields)
        if fields.get("default"):
            self.defaults[series.type] = series
        elif fields.get("default") is False and self.defaults.get(series.type) is series:
            del self.defaults[series.type]

    def delete(self, series: PlainSeries) -> None:
        """Deletes a series, as long as it has no record."""
        if series.used:
            raise Refusal(CONFLICT, "used")
        series.deleted = True
        self.series.remove(series)
        self.gone.append(series)
        if self.defaults.get(series.type) is series:
            del self.defaults[series.type]

    def put_default(self, kind: str, wish: Wish, clock_ms: int) -> tuple[PlainSeries, Line, bool]:
        """The entry that an id is given in the series that was its type's default when it first came."""
        series = self.claims.get((kind, wish.id)) or self.defaults.get(kind)
        if series is None:
            raise Refusal(MISSING, "no default")
        self.claims[kind, wish.id] = series
        if series.deleted:
            raise Refusal(CONFLICT, "claimed by a deleted series")
        return series, *series.put(wish, clock_ms)
