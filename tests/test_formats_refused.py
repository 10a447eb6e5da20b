"""Which formats are refused: those whose codes really could repeat, and those that break a rule."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import date
from functools import lru_cache
from itertools import combinations, islice

import pytest
from hypothesis import HealthCheck, assume, example, given, settings

from seriatim.errors import Invalid
from seriatim.formats import (
    check,
    counters_of,
    ranges,
    repetition,
)
from seriatim.model import Numbering
from slow_formats import (
    COUNTERS,
    FIRST_DAY,
    FISCAL_YEAR_STARTS,
    LAST_DAY,
    MARKERS,
    ONE_DAY,
    SlowSeries,
    is_accepted,
    refusal,
    separated_numberings,
    slow_date,
    slow_period,
    slow_split,
    starts_of_fiscal_years,
)

# refusals ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])  # few are refused
@given(separated_numberings(("incYearly", "incMonthly", "incDaily")))
@example(Numbering(format="%incYearly%-%incMonthly%-%yearLong%", fiscal_year_start="04-15", start=5))
@example(Numbering(format="%incDaily%-%incMonthly%/%incYearly%-%month%%day%%fyLong%", fiscal_year_start="04-15"))
@example(Numbering(format="%incYearly%-%yearShort%", fiscal_year_start="12-31", padding=3))
def test_a_format_refused_for_repetition_really_repeats_on_the_dates_that_the_refusal_names(
    numbering: Numbering,
) -> None:
    # Given a format that is refused because it would repeat
    assume(not is_accepted(numbering))
    message = refusal(numbering)
    assert "format: would repeat" in message
    start = numbering.fiscal_year_start

    # When an entry of a third period takes `start`, and an entry is issued on each of the two dates
    slow = SlowSeries(numbering)
    markers = frozenset(text for marker, text in slow.pieces if marker and text in MARKERS)
    pair = repetition(markers, counters_of(numbering), start)
    assert pair
    assert starts_of_fiscal_years(start)[0] <= pair[0] < pair[1] <= LAST_DAY
    slow.issue(date(2050, 6, 15))
    codes = [slow.issue(day) for day in pair]

    # Then both get the same code, which the refusal shows, with the dates
    assert codes[0] == codes[1]
    assert f"number 1 of {pair[0]} and number 1 of {pair[1]} would both be {codes[0]}. Add the date" in message


@lru_cache(maxsize=32)
def column(name: str, start: str) -> list[str] | list[int]:
    """What a marker writes, or the period that a counter has, on all days of 2000-2099."""
    days = [FIRST_DAY + at * ONE_DAY for at in range((LAST_DAY - FIRST_DAY).days + 1)]
    if name in COUNTERS:
        return [slow_period(name, day, start) for day in days]
    return [slow_date(name, day, start) for day in days]


def slow_repeats(markers: list[str], counters: list[str], start: str) -> bool:
    """Says whether two days are alike in all markers while each counter has another period.

    Among days that are written alike, those that share a period with one of them are counted by inclusion and
    exclusion; if these are not all, there is a day that shares none.
    """
    # Days of different years or months are different days: a daily counter beside others changes no verdict
    deciding = [counter for counter in counters if counter != "incDaily"] or counters
    columns = [column(name, start if name.startswith(("fy", "incY")) else "") for name in (*markers, *deciding)]
    alike: dict[tuple[str | int, ...], list[tuple[str | int, ...]]] = defaultdict(list)
    before_first = (starts_of_fiscal_years(start)[0] - FIRST_DAY).days
    for row in set(islice(zip(*columns, strict=True), before_first, None)):
        alike[row[: len(markers)]].append(row[len(markers) :])
    places = [chosen for size in range(1, len(deciding) + 1) for chosen in combinations(range(len(deciding)), size)]
    for group in alike.values():
        if len(group) == 1:
            continue
        shared = {chosen: Counter(tuple(periods[place] for place in chosen) for periods in group) for chosen in places}
        for periods in group:
            sharing = sum(
                (1 if len(chosen) % 2 else -1) * shared[chosen][tuple(periods[place] for place in chosen)]
                for chosen in places
            )
            if sharing < len(group):
                return True
    return False


FORMATS = [
    "%inc%",
    "%inc%-%incDaily%",
    "%incYearly%",
    "%incYearly%-%month%%day%",
    "%incYearly%-%yearLong%",
    "%incYearly%-%yearShort%",
    "%incYearly%-%yearShort%%month%%day%",
    "%incYearly%-%fyLong%",
    "%incYearly%-%fyShort%",
    "%incYearly%-%fyEndShort%",
    "%incMonthly%-%month%",
    "%incMonthly%-%day%%month%",
    "%incMonthly%-%yearShort%%month%",
    "%incMonthly%-%fyShort%%month%",
    "%incMonthly%-%fyEndShort%%month%%day%",
    "%incMonthly%-%yearLong%%fyLong%",
    "%incDaily%-%yearLong%%month%",
    "%incDaily%-%month%%day%",
    "%incDaily%-%yearLong%%month%%day%",
    "%incDaily%-%fyShort%%month%%day%",
    "%incYearly%-%incMonthly%-%yearLong%",
    "%incYearly%-%incMonthly%-%fyLong%",
    "%incYearly%-%incMonthly%-%month%%day%",
    "%incYearly%-%incMonthly%-%yearShort%%month%",
    "%incYearly%-%incDaily%-%yearShort%",
    "%incYearly%-%incDaily%-%fyLong%",
    "%incMonthly%-%incDaily%-%yearLong%%month%",
    "%incMonthly%-%incDaily%-%fyLong%%month%",
    "%incYearly%-%incMonthly%-%incDaily%-%yearLong%",
    "%incYearly%-%incMonthly%-%incDaily%-%fyLong%%day%",
]


@pytest.mark.parametrize("start", FISCAL_YEAR_STARTS)
def test_a_verdict_is_that_of_a_search_through_all_days_of_the_century(start: str) -> None:
    # Given formats, and all days of 2000-2099
    for text in FORMATS:
        names = [name for marker, name in slow_split(text) if marker]
        counters = [name for name in names if name in COUNTERS]
        markers = [name for name in names if name in MARKERS]

        # When two days are sought that look alike while every counter begins anew
        repeats = slow_repeats(markers, counters, start)

        # Then the format is refused if there are such days, and only then
        numbering = Numbering(format=text, fiscal_year_start=start)
        assert is_accepted(numbering) is not repeats, text
        assert not repeats or "would repeat" in refusal(numbering)


def test_what_distinguishes_calendar_and_fiscal_years_is_known_by_name() -> None:
    # Given a yearly counter, when the calendar year alone is written, then only a calendar year is accepted
    assert is_accepted(Numbering(format="%incYearly%/%yearLong%"))
    assert not is_accepted(Numbering(format="%incYearly%/%yearLong%", fiscal_year_start="04-01"))
    assert not is_accepted(Numbering(format="%incYearly%/%yearLong%%month%", fiscal_year_start="04-15"))
    assert is_accepted(Numbering(format="%incYearly%/%yearLong%%month%", fiscal_year_start="04-01"))
    assert is_accepted(Numbering(format="%incYearly%/%fyShort%", fiscal_year_start="04-01"))


@pytest.mark.parametrize(
    ("numbering", "shown"),
    [
        (Numbering(format="INV"), "format: has no counter, so that all codes of a day would be alike. Add %inc%"),
        (Numbering(format="%yearLong%%month%%day%"), "format: has no counter"),
        (Numbering(format="%%inc%%"), "format: has no counter"),
        (Numbering(format="%inc%%inc%"), "counters %inc% and %inc% side by side"),
        (Numbering(format="%inc%%incDaily%-%yearLong%"), "counters %inc% and %incDaily% side by side"),
        (Numbering(format="%inc%00%incYearly%"), "counters %inc% and %incYearly% side by side"),
        (Numbering(format="%inc%٣%incYearly%"), "counters %inc% and %incYearly% side by side"),
        (Numbering(format="%inc%-%incMonthly%1%day%2%incYearly%"), "%incMonthly% and %incYearly% side by side"),
        (Numbering(format="%inc%%yearLong%%incDaily%"), "Put a literal between them that is not made of digits alone"),
        (Numbering(format="%year%-%inc%"), "format: has the unknown marker %year%. The markers are %inc%, %incYearly%"),
        (Numbering(format="%INC%"), "format: has the unknown marker %INC%"),
        (Numbering(format="%x%"), "%fyLong%, %fyShort%, %fyEndShort%, and %% for a percent sign"),
        (Numbering(format="100% %inc%"), "format: has a percent sign that belongs to no marker. Write %% for"),
        (Numbering(format="%inc%%"), "format: has a percent sign that belongs to no marker"),
        (Numbering(format="%"), "format: has a percent sign that belongs to no marker"),
        (Numbering(format="%inc_daily%"), "format: has a percent sign that belongs to no marker"),
        (
            Numbering(format="R-%incDaily%", padding=3, start=50),
            "number 1 of 2000-01-01 and number 1 of 2000-01-02 would both be R-001. Add the date markers",
        ),
        (
            Numbering(format="F%yearLong%/%incYearly%", fiscal_year_start="04-01", start=50),
            "number 1 of 2001-01-01 and number 1 of 2001-04-01 would both be F2001/1. Add the date markers",
        ),
        (Numbering(prefix="INV-", padding=4, max_length=7), "max_length: is 7, and the first code (INV-0001) has 8"),
        (Numbering(prefix="№", start=1000, max_length=4), "max_length: is 4, and the first code (№1000) has 5"),
        (Numbering(prefix="inv/", charset="A-Z0-9/"), "charset: lacks 'inv', which codes such as inv/1 need"),
        (Numbering(prefix="", charset="1-9"), "charset: lacks '0', which codes such as 1 need"),
        (Numbering(prefix="", charset="0-13-9"), "charset: lacks '2', which codes such as 1 need"),
        (Numbering(prefix="A", charset="Z-A0-9"), "charset: has the range Z-A, which runs backwards"),
        (Numbering(timezone="Mars/Olympus"), "timezone: is not a name of the tz database, such as Europe/Bucharest"),
        (Numbering(timezone="../UTC"), "timezone: is not a name of the tz database"),
        (Numbering(timezone="localtime"), "timezone: is not a name of the tz database"),
        (Numbering(timezone=""), "timezone: is not a name of the tz database"),
    ],
)
def test_a_refusal_names_the_field_and_shows_what_would_happen(numbering: Numbering, shown: str) -> None:
    # Given a numbering that breaks a rule, when it is checked, then the refusal says which, and what to do
    assert shown in refusal(numbering)


@pytest.mark.parametrize(
    "start",
    [
        "",
        "02-29",
        "04-31",
        "13-01",
        "00-10",
        "1-1",
        "0401",
        "04-01 ",
        "04-01\n",
        "04-01T00",
        "--04-01",
        "\u0660\u0664-\u0660\u0661",
        "W01",
        "W01-1",
    ],
)
def test_a_fiscal_year_begins_on_a_day_of_every_year_and_nothing_else(start: str) -> None:
    # Given what is no day, or not a day of every year, or an ISO week, when a series is to begin its years there
    numbering = Numbering(format="%incYearly%-%fyLong%-%yearLong%-%month%", fiscal_year_start=start)

    # Then it is refused
    assert "fiscal_year_start: must be a day of every year, as MM-DD" in refusal(numbering)


@pytest.mark.parametrize(
    "numbering",
    [
        Numbering(prefix="INV-", padding=4, max_length=8),
        Numbering(prefix="INV/", charset="A-Z0-9/-"),
        Numbering(prefix="A-", charset="-A0-9"),
        Numbering(prefix="\u2116", charset=" -\U0010ffff" * 5000),  # not a matter of minutes
        Numbering(format="%inc%1-2%incDaily%"),
        Numbering(format="%inc%²%incDaily%"),
        Numbering(format="%inc%%%%incDaily%"),
        Numbering(format="%inc%-%fyLong%", fiscal_year_start="02-28", timezone="Pacific/Apia"),
    ],
)
def test_what_keeps_within_the_rules_is_accepted(numbering: Numbering) -> None:
    # Given a numbering just within its rules, when it is checked, then nothing is raised
    check(numbering)


@pytest.mark.parametrize(
    ("charset", "named"),
    [
        ("", ""),
        ("ABC", "ABC"),
        ("a-e", "abcde"),
        ("A-C0-2/-", "ABC012/-"),
        ("-a", "-a"),
        ("-", "-"),
        ("a-a", "a"),
        ("+--", "+,-"),
        ("\n-\r", "\n\x0b\x0c\r"),
        ("à-ã", "àáâã"),
        ("a-c-e", "abc-e"),
    ],
)
def test_a_charset_names_characters_and_ranges(charset: str, named: str) -> None:
    # Given a charset, when it is spelt out, then ranges are full, and a minus sign that joins nothing is itself
    spelt_out = {chr(at) for low, high in ranges(charset) for at in range(ord(low), ord(high) + 1)}
    assert spelt_out == set(named)


@pytest.mark.parametrize(("charset", "shown"), [("9-0", "9-0"), ("A-Zz-a", "z-a"), ("a--", "a--")])
def test_a_range_that_runs_backwards_is_refused(charset: str, shown: str) -> None:
    # Given a range whose end is before its beginning, when it is spelt out, then it is refused by name
    with pytest.raises(Invalid, match=f"charset: has the range {shown}, which runs backwards"):
        ranges(charset)
