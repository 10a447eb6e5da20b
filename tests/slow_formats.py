"""A slow model of formats, day by day through a century, and what Hypothesis draws to hold formats against it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from datetime import date, timedelta
from functools import lru_cache
from zoneinfo import available_timezones

import pytest
from hypothesis import strategies as st

from seriatim.errors import Invalid
from seriatim.formats import (
    check,
    code,
    fields_of,
    rendering,
)
from seriatim.model import Numbering

FIRST_DAY = date(2000, 1, 1)
LAST_DAY = date(2099, 12, 31)
ONE_DAY = timedelta(days=1)
HOUR_S = 3_600
DAY_S = 24 * HOUR_S
FROM_S = 946_684_800
UNTIL_S = 4_102_444_800
"""2000 to 2099 in UTC."""
COUNTERS = ("inc", "incYearly", "incMonthly", "incDaily")
MARKERS = ("yearLong", "yearShort", "month", "day", "fyLong", "fyShort", "fyEndShort")
FISCAL_YEAR_STARTS = ("01-01", "04-01", "04-15", "12-31")
ZONES = sorted(available_timezones())


@lru_cache(maxsize=512)
def starts_of_fiscal_years(start: str) -> tuple[date, ...]:
    return tuple(date(year, int(start[:2]), int(start[3:])) for year in range(2000, 2102))


def slow_fiscal_year(day: date, start: str) -> int:
    """Counts the fiscal years that have begun since 2000."""
    return 1999 + bisect_right(starts_of_fiscal_years(start), day)


def slow_date(marker: str, day: date, start: str) -> str:  # noqa: PLR0911 -- a table
    match marker:
        case "yearLong":
            return day.strftime("%Y")
        case "yearShort":
            return day.strftime("%y")
        case "month":
            return day.strftime("%m")
        case "day":
            return day.strftime("%d")
        case "fyLong":
            return str(slow_fiscal_year(day, start))
        case "fyShort":
            return str(slow_fiscal_year(day, start))[2:]
        case "fyEndShort":
            next_year = starts_of_fiscal_years(start)[slow_fiscal_year(day, start) - 1999]
            return (next_year - ONE_DAY).strftime("%y")
    raise AssertionError(marker)


def slow_period(counter: str, day: date, start: str) -> int:
    match counter:
        case "inc":
            return 0
        case "incYearly":
            return slow_fiscal_year(day, start)
        case "incMonthly":
            return day.year * 12 + day.month
        case "incDaily":
            return day.toordinal()
    raise AssertionError(counter)


def slow_split(text: str) -> Iterator[tuple[bool, str]]:
    """Takes a well-formed format apart at its percent signs: what is behind every other one is a marker."""
    for at, piece in enumerate(text.split("%")):
        if at % 2 and piece:
            yield True, piece
        else:
            yield False, piece or "%" * (at % 2)


class SlowSeries:
    """Issues codes one after another as the specification says, and shares nothing with the module."""

    def __init__(self, numbering: Numbering) -> None:
        self.numbering = numbering
        self.pieces = list(slow_split(numbering.format or ""))
        self.counters = sorted({text for marker, text in self.pieces if marker and text in COUNTERS})
        self.counts: dict[tuple[str, int], int] = {}
        self.begun = False

    def period(self, counter: str, day: date) -> tuple[str, int]:
        return counter, slow_period(counter, day, self.numbering.fiscal_year_start)

    def next(self, counter: str, day: date) -> int:
        """The first code begins with `start`, whichever counters have been raised before it."""
        period = self.period(counter, day)
        if period in self.counts:
            return self.counts[period] + 1
        return 1 if self.begun else (self.numbering.start or 1)

    def issue(self, day: date) -> str:
        start = self.numbering.fiscal_year_start
        values = {counter: self.next(counter, day) for counter in self.counters}
        self.counts |= {self.period(counter, day): value for counter, value in values.items()}
        self.begun = True
        numbers = {counter: f"{value}" for counter, value in values.items()}
        written = ""
        for marker, text in self.pieces:
            if marker and text in numbers:
                written += "0" * (self.numbering.padding - len(numbers[text])) + numbers[text]
            else:
                written += slow_date(text, day, start) if marker else text
        return written


class FastSeries:
    """Issues codes with the module: what it leaves to allocate.lua is a map of fields to values."""

    def __init__(self, numbering: Numbering) -> None:
        self.numbering = numbering
        self.values: dict[str, int] = {}

    def issue(self, day: date) -> str:
        begin = 1 if self.values else self.numbering.first
        fields = fields_of(self.numbering, day)
        self.values |= {field: self.values[field] + 1 if field in self.values else begin for field in fields}
        return code(self.numbering, day, [self.values[field] for field in fields])

    def complete(self, day: date) -> str:
        """Writes the last code again, from the pieces, as allocate.lua does."""
        made = rendering(self.numbering, day)
        assert made.date == str(day)
        assert made.fields == fields_of(self.numbering, day)
        written = ""
        for piece in made.pieces:
            if isinstance(piece, str):
                written += piece
            else:
                written += f"{self.values[made.fields[piece - 1]]:0{self.numbering.padding}d}"
        return written


# what Hypothesis draws --------------------------------------------------------------------------------------------

LITERALS = st.one_of(
    st.text(st.sampled_from("AZ-/._ 0179é№٣²%\n"), min_size=1, max_size=4),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=3),
).map(lambda text: text.replace("%", "%%"))
SEPARATORS = st.sampled_from(["-", "/", "é", "1-", "-1", "²", "%%", "\n", " "])
DATE_MARKERS = st.sampled_from([f"%{marker}%" for marker in MARKERS])
FILLINGS = st.lists(st.one_of(LITERALS, DATE_MARKERS), max_size=3).map("".join)
COMPLETE_DATES = st.sampled_from(
    [
        "",
        "%yearLong%%month%%day%",
        "%day%%yearShort%%month%",
        "%fyLong%",
        "%fyLong%%month%%day%",
        "%yearShort%%month%",
        "%yearLong%%fyShort%%month%",
        "%fyEndShort%-%month%",
        "%yearLong%",
    ]
)
STARTS_OF_YEARS = st.one_of(
    st.sampled_from(FISCAL_YEAR_STARTS),
    st.sampled_from(FISCAL_YEAR_STARTS),
    st.dates(date(2001, 1, 1), date(2001, 12, 31)).map(lambda day: day.strftime("%m-%d")),
)


@st.composite
def separated_numberings(draw: st.DrawFn, counters: tuple[str, ...] = COUNTERS) -> Numbering:
    """Numberings whose counters can be told apart."""
    names = draw(st.lists(st.sampled_from(counters), min_size=1, max_size=3))
    text = draw(FILLINGS) + draw(COMPLETE_DATES)
    for at, name in enumerate(names):
        text += (draw(SEPARATORS) if at else "") + draw(FILLINGS) + f"%{name}%" + draw(FILLINGS)
    return Numbering(
        format=text,
        padding=draw(st.integers(0, 6)),
        start=draw(st.one_of(st.none(), st.sampled_from([1, 2, 9, 98, 999_998]))),
        fiscal_year_start=draw(STARTS_OF_YEARS),
    )


def is_accepted(numbering: Numbering) -> bool:
    try:
        check(numbering)
    except Invalid:
        return False
    return True


def refusal(numbering: Numbering) -> str:
    with pytest.raises(Invalid) as caught:
        check(numbering)
    return str(caught.value)


@st.composite
def dates(draw: st.DrawFn, start: str) -> date:
    """Dates on both sides of the ends of years, fiscal years and months, often alike in their day and month."""
    year = draw(st.one_of(st.sampled_from([2000, 2001, 2024, 2025, 2026, 2098, 2099]), st.integers(2000, 2099)))
    month_and_day = draw(
        st.one_of(
            st.sampled_from([(1, 1), (3, 1), (5, 1), (int(start[:2]), int(start[3:])), (4, 10), (4, 20)]),
            st.tuples(st.integers(1, 12), st.integers(1, 28)),
        )
    )
    day = date(year, *month_and_day) + draw(st.integers(-2, 1)) * ONE_DAY
    return min(max(day, starts_of_fiscal_years(start)[0]), LAST_DAY)


@st.composite
def histories(draw: st.DrawFn, start: str, min_size: int = 1) -> list[date]:
    """Dates of entries in any order, many of them the same."""
    pool = draw(st.lists(dates(start), min_size=1, max_size=6))
    return draw(st.lists(st.sampled_from(pool), min_size=min_size, max_size=24))
