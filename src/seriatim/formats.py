"""How a series' codes look, and which formats are refused because codes could repeat. Pure: no clock, no I/O.

A format is literals and markers. Counters (`%inc%`, `%incYearly%`, `%incMonthly%`, `%incDaily%`) run through a period
and then begin again; date markers write the document's date. All dates are those of the series' time zone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, timedelta
from functools import cache, lru_cache
from typing import Literal
from zoneinfo import ZoneInfo, available_timezones

import msgspec

from seriatim.errors import Invalid
from seriatim.model import COUNTER_MAX, Counted, Numbering, parse_day

CONTINUOUS = "inc"
PERIODS: dict[str, Callable[[date, str], str]] = {
    "inc": lambda _day, _start: "",
    "incYearly": lambda day, start: str(fiscal_year(day, start)),
    "incMonthly": lambda day, _start: day.isoformat()[:7],
    "incDaily": lambda day, _start: day.isoformat(),
}
"""The counters, and the period of each that a date falls into."""
DATES: dict[str, Callable[[date, str], str]] = {
    "yearLong": lambda day, _start: f"{day.year}",
    "yearShort": lambda day, _start: f"{day.year % 100:02d}",
    "month": lambda day, _start: f"{day.month:02d}",
    "day": lambda day, _start: f"{day.day:02d}",
    "fyLong": lambda day, start: f"{fiscal_year(day, start)}",
    "fyShort": lambda day, start: f"{fiscal_year(day, start) % 100:02d}",
    "fyEndShort": lambda day, start: f"{(fiscal_year(day, start) + (start != CALENDAR_YEAR)) % 100:02d}",
}
"""The date markers, and what each writes: always as many digits, so that a code can be taken apart again."""
CALENDAR_YEAR = "01-01"
YEARS = (2000, 2099)
LAST_DAY = date(YEARS[1], 12, 31)
YEARS_TRIED = (*range(2000, 2008), *range(2096, 2100))
"""Enough to find every repetition: a marker tells all years apart or none, and leap years are among these."""
NO_LIMIT = 10_000
PREVIEW_CODES = 5

_TOKEN = re.compile(r"%(?P<marker>[A-Za-z]*)%|(?P<literal>[^%]+)|(?P<stray>%)")


class Part(msgspec.Struct, frozen=True):
    """A piece of a format: a literal's text, or the name of a marker."""

    kind: Literal["literal", "counter", "date"]
    text: str


class Window(msgspec.Struct, frozen=True, cache_hash=True):
    """A local day: from `from_ms` on and before `until_ms`, in milliseconds since 1970, the date is `today`."""

    from_ms: int
    until_ms: int
    today: date


class Rendering(msgspec.Struct, frozen=True, array_like=True):
    """A format written for a date; what allocate.lua needs to complete a code.

    `pieces` are texts, and numbers that count into `fields` from 1; `fields` name a counter in its period:
    `inc`, `incYearly:2026`.
    """

    date: str
    pieces: tuple[str | int, ...]
    fields: tuple[str, ...]


# days -------------------------------------------------------------------------------------------------------------


def fiscal_year(day: date, start: str) -> int:
    """Returns the calendar year in which the fiscal year of a day begins; `start` is its first day, MM-DD."""
    return day.year - (day.isoformat()[5:] < start)


def first_day(numbering: Numbering) -> date:
    """Returns the first date that a document of a series may carry: no fiscal year before 2000 is among them."""
    return date.fromisoformat(f"{YEARS[0]}-{numbering.fiscal_year_start}")


_windows: dict[str, Window] = {}
"""The one that was returned last, of each time zone: mostly it is the next, too."""


def window(timezone: str, now_ms: int) -> Window:
    """Returns the local day that holds at `now_ms`. Days follow one another, however clocks are changed."""
    known = _windows.get(timezone)
    if known is None or not known.from_ms <= now_ms < known.until_ms:
        known = _windows[timezone] = _window(timezone, now_ms)
    return known


def _window(timezone: str, now_ms: int) -> Window:
    day = datetime.fromtimestamp(now_ms / 1000, ZoneInfo(timezone)).date()
    if now_ms < _begin(timezone, day):
        day -= timedelta(days=1)
    while now_ms >= _begin(timezone, day + timedelta(days=1)):
        day += timedelta(days=1)
    return Window(_begin(timezone, day), _begin(timezone, day + timedelta(days=1)), day)


@lru_cache(maxsize=4096)
def _begin(timezone: str, day: date) -> int:
    """Returns when a local day begins. Where clocks go back over midnight, it begins when they pass it for good."""
    zone = ZoneInfo(timezone)
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    begins = int(midnight.timestamp()) * 1000
    again = int(midnight.replace(fold=1).timestamp()) * 1000
    if again > begins and datetime.fromtimestamp(again / 1000 - 1, zone).date() < day:
        return again
    return begins


# formats ----------------------------------------------------------------------------------------------------------


def template(numbering: Numbering) -> str:
    """Returns a series' format; prefix, padding and suffix are short for one."""
    if numbering.format:
        return numbering.format
    return f"{numbering.prefix.replace('%', '%%')}%inc%{numbering.suffix.replace('%', '%%')}"


def prefix(numbering: Numbering) -> str:
    """Returns what every code of a series begins with: its prefix, or its format up to the first marker."""
    if not numbering.format:
        return numbering.prefix
    first = parse(numbering.format)[0]
    return first.text if first.kind == "literal" else ""


@lru_cache(maxsize=4096)
def parse(text: str) -> tuple[Part, ...]:
    """Returns the parts of a format.

    Raises:
        Invalid: a marker is unknown, or a percent sign stands alone.
    """
    parts: list[Part] = []
    for token in _TOKEN.finditer(text):
        marker = token["marker"]
        if token["stray"]:
            raise _wrong("has a percent sign that belongs to no marker. Write %% for the sign itself")
        if marker in PERIODS:
            parts.append(Part("counter", marker))
        elif marker in DATES:
            parts.append(Part("date", marker))
        elif marker:
            known = ", ".join(f"%{name}%" for name in (*PERIODS, *DATES))
            raise _wrong(f"has the unknown marker %{marker}%. The markers are {known}, and %% for a percent sign")
        elif parts and parts[-1].kind == "literal":
            parts[-1] = Part("literal", parts[-1].text + (token["literal"] or "%"))
        else:
            parts.append(Part("literal", token["literal"] or "%"))
    return tuple(parts)


@lru_cache(maxsize=4096)
def rendering(numbering: Numbering, day: date) -> Rendering:
    """Returns a series' format written for a date."""
    pieces: list[str | int] = []
    fields = fields_of(numbering, day)
    for part in parse(template(numbering)):
        if part.kind == "counter":
            pieces.append(fields.index(_field(part.text, day, numbering)) + 1)
            continue
        text = part.text if part.kind == "literal" else DATES[part.text](day, numbering.fiscal_year_start)
        before = pieces[-1] if pieces else None
        if isinstance(before, str):
            pieces[-1] = before + text
        else:
            pieces.append(text)
    return Rendering(day.isoformat(), tuple(pieces), fields)


def counters_of(numbering: Numbering) -> tuple[str, ...]:
    """Returns the names of a format's counters, in the order in which they first stand in it."""
    return tuple(dict.fromkeys(part.text for part in parse(template(numbering)) if part.kind == "counter"))


def fields_of(numbering: Numbering, day: date) -> tuple[str, ...]:
    """Returns a format's counters, each in the period that a date falls into."""
    return tuple(_field(counter, day, numbering) for counter in counters_of(numbering))


def _field(counter: str, day: date, numbering: Numbering) -> str:
    period = PERIODS[counter](day, numbering.fiscal_year_start)
    return f"{counter}:{period}" if period else counter


def counted(field: str, value: int) -> Counted:
    """Returns a field with its value."""
    counter, _, period = field.partition(":")
    return Counted(counter, period, value)


def field(counted: Counted) -> str:
    """Returns the field of a value."""
    return f"{counted.counter}:{counted.period}" if counted.period else counted.counter


def code(numbering: Numbering, day: date, values: Iterable[int]) -> str:
    """Returns the code of a date and its counters' values. More digits than the padding are written in full."""
    written = [str(value).zfill(numbering.padding) for value in values]
    pieces = rendering(numbering, day).pieces
    return "".join(piece if isinstance(piece, str) else written[piece - 1] for piece in pieces)


def fits(numbering: Numbering, day: date | None, numbers: tuple[Counted, ...], written: str) -> bool:
    """Whether a code is what a format makes of a document's date and its numbers."""
    if day is None or tuple(map(field, numbers)) != fields_of(numbering, day):
        return False
    return written == code(numbering, day, (one.value for one in numbers))


def digits_max(numbering: Numbering) -> int:
    """Returns how many digits the counters of a code may have together under the series' `max_length`."""
    if not numbering.max_length:
        return NO_LIMIT
    pieces = rendering(numbering, first_day(numbering)).pieces
    return numbering.max_length - sum(len(piece) for piece in pieces if isinstance(piece, str))


# refusal ----------------------------------------------------------------------------------------------------------


def check(numbering: Numbering) -> None:
    """Checks that codes are possible and cannot repeat.

    Raises:
        Invalid: names the field and shows what would happen.
    """
    _check_place_and_year(numbering)
    parts = parse(template(numbering))
    counters = counters_of(numbering)
    if not counters:
        raise _wrong("has no counter, so that all codes of a day would be alike. Add %inc%")
    _check_separation(parts)
    pair = repetition(
        frozenset(part.text for part in parts if part.kind == "date"), counters, numbering.fiscal_year_start
    )
    if pair:
        codes = code(numbering, pair[0], (1 for _ in counters))
        raise _wrong(
            f"would repeat: number 1 of {pair[0]} and number 1 of {pair[1]} would both be {codes}. "
            "Add the date markers that tell the periods of its counters apart"
        )
    first = code(numbering, first_day(numbering), (numbering.first for _ in counters))
    if numbering.max_length and len(first) > numbering.max_length:
        raise Invalid({"max_length": f"is {numbering.max_length}, and the first code ({first}) has {len(first)}"})
    if numbering.charset:
        _check_charset(numbering.charset, first)


def _check_place_and_year(numbering: Numbering) -> None:
    if numbering.timezone not in timezones():
        raise Invalid({"timezone": "is not a name of the tz database, such as Europe/Bucharest"})
    if parse_day(f"2001-{numbering.fiscal_year_start}") is None:
        raise Invalid({"fiscal_year_start": "must be a day of every year, as MM-DD"})


@cache
def timezones() -> frozenset[str]:
    """Returns the names of the tz database. `localtime`, which lies beside it, is another zone on every machine."""
    return frozenset(available_timezones() - {"localtime"})


def _check_separation(parts: tuple[Part, ...]) -> None:
    """Refuses counters whose digits could not be told apart, by rule: 1 and 23 beside one another, 12 and 3."""
    before: str | None = None
    for part in parts:
        if part.kind == "counter":
            if before is not None:
                raise _wrong(
                    f"has the counters %{before}% and %{part.text}% side by side. "
                    "Put a literal between them that is not made of digits alone"
                )
            before = part.text
        elif part.kind == "literal" and not part.text.isdecimal():
            before = None


def _check_charset(charset: str, first: str) -> None:
    allowed = ranges(charset)
    needed = sorted(set(first + "0123456789"))
    missing = [one for one in needed if not any(low <= one <= high for low, high in allowed)]
    if missing:
        raise Invalid({"charset": f"lacks {''.join(missing)!r}, which codes such as {first} need"})


def ranges(charset: str) -> tuple[tuple[str, str], ...]:
    """Returns the ranges of characters that a charset names: `A-Za-z0-9/-`. One character is a range of its own.

    They are not spelt out: a few bytes can name all of Unicode many times over.

    Raises:
        Invalid: a range runs backwards.
    """
    found = tuple((low, high or low) for low, high in re.findall(r"(.)(?:-(.))?", charset, re.DOTALL))
    for low, high in found:
        if high < low:
            raise Invalid({"charset": f"has the range {low}-{high}, which runs backwards"})
    return found


@lru_cache(maxsize=1024)
def repetition(markers: frozenset[str], counters: tuple[str, ...], start: str) -> tuple[date, date] | None:
    """Returns two dates that look alike in a code while every counter begins anew between them, if there are such.

    Dates look alike when all their markers write the same. Two entries of such dates get the same code as soon as
    their counters agree; one counter that does not begin anew between them is enough to prevent it.
    """
    if CONTINUOUS in counters:
        return None
    first = date.fromisoformat(f"{YEARS[0]}-{start}")
    alike: dict[tuple[str, ...], list[date]] = {}
    for day in _days_tried():
        if day >= first:
            written = tuple(DATES[marker](day, start) for marker in sorted(markers))
            alike.setdefault(written, []).append(day)
    for days in alike.values():
        pair = _all_anew(days, counters, start)
        if pair:
            return pair
    return None


@cache
def _days_tried() -> tuple[date, ...]:
    every = (date(YEARS[0], 1, 1) + timedelta(days=days) for days in range(36_525))
    return tuple(day for day in every if day.year in YEARS_TRIED)


def _all_anew(days: list[date], counters: tuple[str, ...], start: str) -> tuple[date, date] | None:
    """Returns two of some days that share the period of no counter.

    A day shares a daily period with no other day. Of yearly and monthly periods, days of which each two share one
    share either the year all, or the month all; so the first day and one of another year, the first day and one of
    another month, or those two, are the pair, if there is one.
    """
    first = days[0]
    others = [first]
    for counter in counters:
        period = PERIODS[counter]
        other = next((day for day in days if period(day, start) != period(first, start)), None)
        if other is None:
            return None
        others.append(other)
    for one in others:
        for two in others:
            if all(PERIODS[counter](one, start) != PERIODS[counter](two, start) for counter in counters):
                return min(one, two), max(one, two)
    return None


def _wrong(why: str) -> Invalid:
    return Invalid({"format": why})


# preview ----------------------------------------------------------------------------------------------------------


class Coming(msgspec.Struct, frozen=True):
    """A code that would be issued on a date."""

    date: str
    code: str


class Preview(msgspec.Struct, frozen=True):
    """The next codes of a series, and the first after each coming change, by what changes.

    Codes that will be refused, as counters or `max_length` end before them, are left out.
    """

    next: tuple[str, ...]
    after: dict[str, Coming]


def ahead(
    numbering: Numbering, day: date, values: Mapping[str, int], *, used: bool, by: int = 1
) -> tuple[tuple[int, ...], str]:
    """Returns the counters and the code that a series would issue on a day, `by` codes from now.

    Args:
        numbering: the definition.
        day: the local date.
        values: the fields that have counted, with their last values.
        used: whether there are entries; if not, counters begin with `start`.
        by: 1 for the next code.
    """
    unused = 0 if used else numbering.first - 1
    counts = tuple(values.get(field, unused) + by for field in fields_of(numbering, day))
    return counts, code(numbering, day, counts)


def preview(
    numbering: Numbering, today: date, values: Mapping[str, int], *, used: bool, count: int = PREVIEW_CODES
) -> Preview:
    """Returns what a series would issue if nothing came in between: the next `count` codes; the rest as `ahead`."""

    def write(day: date, by: int) -> str | None:
        counts, written = ahead(numbering, day, values, used=used, by=by)
        possible = max(counts) <= COUNTER_MAX and len(written) <= (numbering.max_length or NO_LIMIT)
        return written if possible else None

    coming = {what: (day, write(day, 1)) for what, day in _coming(numbering, today).items() if day <= LAST_DAY}
    return Preview(
        tuple(filter(None, (write(today, by) for by in range(1, count + 1)))),
        {what: Coming(day.isoformat(), written) for what, (day, written) in coming.items() if written},
    )


def _coming(numbering: Numbering, today: date) -> dict[str, date]:
    year = fiscal_year(today, numbering.fiscal_year_start) + 1
    return {
        "day": today + timedelta(days=1),
        "month": (today.replace(day=1) + timedelta(days=32)).replace(day=1),
        "year": date(today.year + 1, 1, 1),
        "fiscal_year": date.fromisoformat(f"{year}-{numbering.fiscal_year_start}"),
    }
