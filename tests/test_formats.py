"""How codes look, when days begin, and what a preview shows; beside a slow model of all of it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from seriatim.formats import (
    NO_LIMIT,
    Coming,
    Part,
    Preview,
    Window,
    check,
    code,
    counted,
    counters_of,
    digits_max,
    fields_of,
    first_day,
    parse,
    preview,
    template,
    window,
)
from seriatim.model import COUNTER_MAX, Counted, Numbering
from slow_formats import (
    DAY_S,
    FIRST_DAY,
    FISCAL_YEAR_STARTS,
    FROM_S,
    HOUR_S,
    LAST_DAY,
    MARKERS,
    ONE_DAY,
    UNTIL_S,
    ZONES,
    FastSeries,
    SlowSeries,
    dates,
    histories,
    is_accepted,
    separated_numberings,
)

# codes ------------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_an_accepted_format_writes_what_the_slow_model_writes_and_never_repeats(data: st.DataObject) -> None:
    # Given a format that is accepted, and entries of dates in any order
    numbering = data.draw(separated_numberings())
    assume(is_accepted(numbering))
    days = data.draw(histories(numbering.fiscal_year_start))

    # When the module and the slow model issue them
    fast, slow = FastSeries(numbering), SlowSeries(numbering)
    issued = []
    for day in days:
        issued.append(fast.issue(day))

        # Then they agree on every code, and allocate.lua can write it from the rendering
        assert issued[-1] == slow.issue(day)
        assert issued[-1] == fast.complete(day)

    # Then no code was issued twice
    assert len(set(issued)) == len(issued)


@pytest.mark.parametrize(
    ("text", "day", "value", "expected"),
    [
        ("TF-%incYearly%%day%%month%%yearShort%", date(2025, 10, 21), 9, "TF-9211025"),
        ("AF-%incYearly%%day%%month%%yearShort%", date(2025, 12, 16), 105, "AF-105161225"),
        ("%inc%", date(2025, 12, 16), 57, "57"),
        ("SH-%yearShort%%inc%", date(2025, 1, 31), 386, "SH-25386"),
    ],
)
def test_codes_of_formats_in_use_are_written_as_their_users_know_them(
    text: str, day: date, value: int, expected: str
) -> None:
    # Given a format in use whose counter stands before a known value
    numbering = Numbering(format=text, start=value - 1)
    check(numbering)
    slow = SlowSeries(numbering)
    slow.issue(day)

    # When the next code is written, then it is the known one
    assert code(numbering, day, [value]) == expected
    assert slow.issue(day) == expected


@pytest.mark.parametrize(
    ("fiscal_year_start", "day", "expected"),
    [
        ("01-01", date(2000, 1, 1), "2000 00 01 01 2000 00 00"),
        ("01-01", date(2099, 12, 31), "2099 99 12 31 2099 99 99"),
        ("04-01", date(2026, 3, 31), "2026 26 03 31 2025 25 26"),
        ("04-01", date(2026, 4, 1), "2026 26 04 01 2026 26 27"),
        ("04-01", date(2099, 4, 1), "2099 99 04 01 2099 99 00"),
        ("04-15", date(2024, 4, 14), "2024 24 04 14 2023 23 24"),
        ("04-15", date(2024, 4, 15), "2024 24 04 15 2024 24 25"),
        ("12-31", date(2025, 12, 30), "2025 25 12 30 2024 24 25"),
        ("12-31", date(2025, 12, 31), "2025 25 12 31 2025 25 26"),
    ],
)
def test_every_marker_writes_its_part_of_the_date(fiscal_year_start: str, day: date, expected: str) -> None:
    # Given a format of all date markers and a fiscal year, when a code is written, then each writes its part
    text = " ".join(f"%{marker}%" for marker in MARKERS) + "/%inc%"
    assert code(Numbering(format=text, fiscal_year_start=fiscal_year_start), day, [7]) == f"{expected}/7"


def test_an_invoice_of_1_april_begins_the_indian_fiscal_year_with_1_and_fits_16_characters() -> None:
    # Given invoices of a fiscal year that begins on 1 April, and 16 characters at most
    numbering = Numbering(
        format="INV/%fyShort%-%fyEndShort%/%incYearly%", padding=6, fiscal_year_start="04-01", max_length=16
    )
    check(numbering)
    series = FastSeries(numbering)

    # When two are issued on 31 March and two on 1 April
    codes = [series.issue(day) for day in (date(2026, 3, 31), date(2026, 3, 31), date(2026, 4, 1), date(2026, 4, 1))]

    # Then the year and the number change together
    assert codes == ["INV/25-26/000001", "INV/25-26/000002", "INV/26-27/000001", "INV/26-27/000002"]
    assert series.values == {"incYearly:2025": 2, "incYearly:2026": 2}
    assert digits_max(numbering) == 6


def test_more_digits_than_the_padding_are_written_in_full() -> None:
    # Given a padding of three, when numbers outgrow it, then all their digits are written
    numbering = Numbering(prefix="INV-", padding=3)
    day = date(2026, 1, 1)
    assert code(numbering, day, [1]) == "INV-001"
    assert code(numbering, day, [999]) == "INV-999"
    assert code(numbering, day, [1000]) == "INV-1000"
    assert code(numbering, day, [10**14]) == "INV-100000000000000"
    assert code(numbering, day, [COUNTER_MAX]) == "INV-9007199254740991"


def test_every_counter_has_the_padding_and_a_counter_that_stands_twice_counts_once() -> None:
    # Given a format with the daily counter twice and the continuous one between
    numbering = Numbering(format="%incDaily%/%inc%/%incDaily%", padding=2, start=9)

    # When entries of two days are issued, then both places of the daily counter agree
    series = FastSeries(numbering)
    assert counters_of(numbering) == ("incDaily", "inc")
    assert series.issue(date(2026, 1, 1)) == "09/09/09"
    assert series.issue(date(2026, 1, 1)) == "10/10/10"
    assert series.issue(date(2026, 1, 2)) == "01/11/01"


def test_a_field_names_its_counter_and_period() -> None:
    # Given all four counters in the last days of a fiscal year
    numbering = Numbering(format="%inc%-%incYearly%-%incMonthly%-%incDaily%", fiscal_year_start="04-01")

    # When the fields of a date are asked for, then each names its period, and can be taken apart again
    fields = fields_of(numbering, date(2026, 3, 31))
    assert fields == ("inc", "incYearly:2025", "incMonthly:2026-03", "incDaily:2026-03-31")
    assert [counted(field, 7) for field in fields] == [
        Counted("inc", "", 7),
        Counted("incYearly", "2025", 7),
        Counted("incMonthly", "2026-03", 7),
        Counted("incDaily", "2026-03-31", 7),
    ]


@pytest.mark.parametrize(
    ("numbering", "digits"),
    [
        (Numbering(format="%inc%"), NO_LIMIT),
        (Numbering(format="%inc%", max_length=16), 16),
        (Numbering(prefix="№%", suffix="%%", max_length=16), 12),
        (Numbering(format="A%%-%yearLong%%month%%day%/%incDaily%/%inc%", max_length=20), 7),
        (Numbering(format="%fyEndShort%-%incYearly%", max_length=5, fiscal_year_start="07-01"), 2),
    ],
)
def test_the_digits_that_counters_may_have_are_what_the_rest_of_the_code_leaves(
    numbering: Numbering, digits: int
) -> None:
    # Given a length at most, when literals and dates are taken off, then the rest is for digits
    check(numbering)
    assert digits_max(numbering) == digits


@given(st.text(max_size=8), st.text(max_size=8), st.integers(0, 6), st.integers(1, COUNTER_MAX))
@example("100%", "%inc%", 0, 1)
@example("%", "%%", 3, 1000)
def test_prefix_and_suffix_are_literal(prefix: str, suffix: str, padding: int, number: int) -> None:
    # Given a prefix and a suffix of any characters
    numbering = Numbering(prefix=prefix, padding=padding, suffix=suffix)

    # When a code is written, then they surround the number as they are
    check(numbering)
    assert code(numbering, FIRST_DAY, [number]) == f"{prefix}{number:0{padding}d}{suffix}"
    assert template(numbering).count("%inc%") >= 1


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("A1", [("literal", "A1")]),
        ("%%", [("literal", "%")]),
        ("A%%B%%%%C", [("literal", "A%B%%C")]),
        ("%%inc%%", [("literal", "%inc%")]),
        ("%%%inc%%%", [("literal", "%"), ("counter", "inc"), ("literal", "%")]),
        ("\n%day%é%incDaily%", [("literal", "\n"), ("date", "day"), ("literal", "é"), ("counter", "incDaily")]),
        ("%yearLong%%month%", [("date", "yearLong"), ("date", "month")]),
    ],
)
def test_a_format_is_parsed_into_joined_literals_and_markers(text: str, parts: list[tuple[Any, str]]) -> None:
    # Given a format, when it is parsed, then neighbouring literals are one
    assert parse(text) == tuple(Part(kind, piece) for kind, piece in parts)


# days -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", FISCAL_YEAR_STARTS)
def test_the_first_date_is_that_of_the_first_whole_fiscal_year_of_the_century(start: str) -> None:
    # Given a fiscal year, when the first date is asked for, then its fiscal year is 2000, and the day before was 1999
    numbering = Numbering(format="%fyLong%-%inc%", fiscal_year_start=start)
    first = first_day(numbering)
    assert str(first) == f"2000-{start}"
    assert code(numbering, first, [1]) == "2000-1"
    assert code(numbering, first - ONE_DAY, [1]) == "1999-1"


def test_two_digits_of_a_fiscal_year_would_repeat_if_dates_before_the_first_were_allowed() -> None:
    # Given a fiscal year of which the last two digits are written
    numbering = Numbering(format="%fyEndShort%/%incYearly%", fiscal_year_start="04-01")
    check(numbering)

    # When the day before the first date is written, then it looks like one of the last fiscal year: hence the limit
    before = first_day(numbering) - ONE_DAY
    assert code(numbering, before, [1]) == code(numbering, LAST_DAY, [1]) == "00/1"
    assert code(numbering, first_day(numbering), [1]) == "01/1"


def clock_changes(zone: ZoneInfo, from_s: int, until_s: int, step_s: int) -> Iterator[int]:
    """Yields the first second after each change of clocks that a look every `step_s` seconds notices."""

    def offset(at_s: int) -> timedelta | None:
        return datetime.fromtimestamp(at_s, zone).utcoffset()

    before = offset(from_s)
    for at_s in range(from_s + step_s, until_s + step_s, step_s):
        after = offset(at_s)
        if after != before:
            low, high = at_s - step_s, at_s
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset(middle) == before else (low, middle)
            yield high
        before = after


def slow_today(zone: ZoneInfo, now_ms: int, changes: list[int]) -> date:
    """Returns the local date, unless the clocks are about to go back to the day before: then it has not begun yet."""
    ahead = [at_s for at_s in changes if 0 < at_s * 1000 - now_ms <= DAY_S * 1000]
    return min(datetime.fromtimestamp(at, zone).date() for at in (now_ms // 1000, *ahead))


def check_window(name: str, now_ms: int, changes: list[int]) -> Window:
    """Sees that the window of an instant holds it, has the right date, and is followed by that of a later date."""
    holds = window(name, now_ms)
    assert holds.from_ms <= now_ms < holds.until_ms
    assert holds.today == slow_today(ZoneInfo(name), now_ms, changes)
    assert window(name, holds.from_ms) == holds
    assert window(name, holds.until_ms - 1) == holds
    following = window(name, holds.until_ms)
    assert following.from_ms == holds.until_ms
    assert following.today > holds.today
    return holds


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(ZONES), st.integers(FROM_S * 1000, UNTIL_S * 1000 - 1))
def test_local_days_tile_time_in_every_zone(name: str, now_ms: int) -> None:
    # Given any zone and instant
    zone = ZoneInfo(name)
    changes = list(clock_changes(zone, now_ms // 1000, now_ms // 1000 + 2 * DAY_S, HOUR_S))

    # When the local day is asked for, then it holds the instant, has its date, and joins the next
    holds = check_window(name, now_ms, changes)

    # Then the same is so about its beginning
    for at_ms in (holds.from_ms - 1, holds.from_ms, holds.from_ms + 1_800_000, holds.until_ms - 1_800_000):
        around = list(clock_changes(zone, at_ms // 1000, at_ms // 1000 + 2 * DAY_S, HOUR_S))
        check_window(name, at_ms, around)


def test_local_days_tile_time_wherever_clocks_are_changed() -> None:
    # Given all zones, and a few of the changes of their clocks from 2000 to 2037
    random = Random(20000101)
    seen = 0
    for name in ZONES:
        changes = list(clock_changes(ZoneInfo(name), FROM_S, FROM_S + 38 * 365 * DAY_S, 14 * DAY_S))

        # When clocks change, then the days before, at and after the change still join one another
        for at_s in random.sample(changes, min(3, len(changes))):
            seen += 1
            for off_s in (-HOUR_S, -60, 0, 60, HOUR_S):
                check_window(name, (at_s + off_s) * 1000, changes)
            check_window(name, at_s * 1000 - 1, changes)
    assert seen > 500


def instant(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


@pytest.mark.parametrize(
    ("name", "day", "begins", "hours"),
    [
        ("UTC", "2026-02-28", "2026-02-28T00:00", 24),
        ("Europe/Bucharest", "2026-01-01", "2025-12-31T22:00", 24),
        ("Pacific/Auckland", "2026-01-01", "2025-12-31T11:00", 24),
        ("Pacific/Kiritimati", "2000-01-01", "1999-12-31T10:00", 24),
        ("Europe/Bucharest", "2026-03-29", "2026-03-28T22:00", 23),
        ("Europe/Bucharest", "2026-10-25", "2026-10-24T21:00", 25),
        ("Europe/Bucharest", "2098-10-26", "2098-10-25T21:00", 25),
        ("Australia/Lord_Howe", "2026-04-05", "2026-04-04T13:00", 24.5),
        # midnight is skipped: the day begins at one
        ("America/Sao_Paulo", "2017-10-15", "2017-10-15T03:00", 23),
        ("America/Havana", "2026-03-08", "2026-03-08T05:00", 23),
        ("Asia/Beirut", "2026-03-29", "2026-03-28T22:00", 23),
        # clocks go back at midnight, to 23:00: the day before is longer, and the day begins when they pass it again
        ("America/Sao_Paulo", "2018-02-17", "2018-02-17T02:00", 25),
        ("America/Sao_Paulo", "2018-02-18", "2018-02-18T03:00", 24),
        ("Asia/Beirut", "2026-10-24", "2026-10-23T21:00", 25),
        ("Asia/Beirut", "2026-10-25", "2026-10-24T22:00", 24),
        # clocks go back at one, to midnight: the day begins with the first of the two
        ("America/Havana", "2026-11-01", "2026-11-01T04:00", 25),
        # clocks went back at 00:01, to 23:01: the minute was still the day before's
        ("America/St_Johns", "2006-10-28", "2006-10-28T02:30", 25),
        ("America/St_Johns", "2006-10-29", "2006-10-29T03:30", 24),
        # 2011-12-30 does not exist
        ("Pacific/Apia", "2011-12-29", "2011-12-29T10:00", 24),
        ("Pacific/Apia", "2011-12-31", "2011-12-30T10:00", 24),
    ],
)
def test_days_begin_and_end_with_the_clocks_of_their_zone(name: str, day: str, begins: str, hours: float) -> None:
    # Given a zone and the instant when one of its days begins
    from_ms = instant(begins)
    until_ms = from_ms + int(hours * HOUR_S) * 1000

    # When the window of an instant of it is asked for, then it is that day, the first and the last one included
    for now_ms in (from_ms, (from_ms + until_ms) // 2, until_ms - 1):
        assert window(name, now_ms) == Window(from_ms, until_ms, date.fromisoformat(day))
    assert window(name, from_ms - 1).today < date.fromisoformat(day) < window(name, until_ms).today


def test_clocks_that_go_back_over_midnight_do_not_begin_a_day_twice() -> None:
    # Given St. John's, where on 2006-10-29 clocks went back at 00:01 to 23:01, and instants around it
    midnight_ms = instant("2006-10-29T02:30")
    zone = ZoneInfo("America/St_Johns")
    instants = [midnight_ms + minute * 60_000 for minute in range(-2, 64)]
    assert [at for at in instants if datetime.fromtimestamp(at / 1000, zone).day == 29] == [
        midnight_ms,
        *range(midnight_ms + 3_600_000, midnight_ms + 3_840_000, 60_000),
    ]

    # When entries are dated, then the 29th begins once, at its second midnight
    days = [window("America/St_Johns", at).today.day for at in instants]
    assert days == [28] * 62 + [29] * 4


# preview ----------------------------------------------------------------------------------------------------------


def first_after(today: date, month_and_day: str) -> date:
    day = today + ONE_DAY
    while not str(day).endswith(month_and_day):
        day += ONE_DAY
    return day


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_preview_shows_what_is_issued_then(data: st.DataObject) -> None:
    # Given a series, used or not, and a day
    numbering = data.draw(separated_numberings())
    assume(is_accepted(numbering))
    start = numbering.fiscal_year_start
    history = data.draw(histories(start, min_size=0))
    today = data.draw(st.one_of(dates(start), st.sampled_from(history)) if history else dates(start))
    count = data.draw(st.integers(0, 12))
    fast = FastSeries(numbering)
    for day in history:
        fast.issue(day)

    # When its next codes are shown
    shown = preview(numbering, today, fast.values, used=bool(history), count=count)

    # Then they are those that the slow model issues, today
    def slow_after_history() -> SlowSeries:
        slow = SlowSeries(numbering)
        for day in history:
            slow.issue(day)
        return slow

    slow = slow_after_history()
    assert list(shown.next) == [slow.issue(today) for _ in range(count)]

    # Then the others are those that it issues first on the coming days, as far as these may be dated
    coming = {
        "day": today + ONE_DAY,
        "month": first_after(today, "-01"),
        "year": first_after(today, "-01-01"),
        "fiscal_year": first_after(today, f"-{start}"),
    }
    expected = {what: day for what, day in coming.items() if day.year < 2100}
    assert shown.after == {what: Coming(str(day), slow_after_history().issue(day)) for what, day in expected.items()}


def test_a_preview_of_a_new_series_begins_with_start_and_of_a_used_one_goes_on() -> None:
    # Given a series that begins with 500 on the last day of a fiscal year
    numbering = Numbering(format="%fyShort%-%fyEndShort%/%incYearly%", padding=4, start=500, fiscal_year_start="04-01")
    today = date(2026, 3, 31)

    # When its preview is asked for before and after its first two entries
    unused = preview(numbering, today, {}, used=False, count=2)
    used = preview(numbering, today, {"incYearly:2025": 501}, used=True, count=2)

    # Then `start` is the first period's, whichever that will be, and the next one begins with 1
    assert unused.next == ("25-26/0500", "25-26/0501")
    assert unused.after["fiscal_year"] == unused.after["day"] == Coming("2026-04-01", "26-27/0500")
    assert used.next == ("25-26/0502", "25-26/0503")
    assert used.after == {
        "day": Coming("2026-04-01", "26-27/0001"),
        "month": Coming("2026-04-01", "26-27/0001"),
        "year": Coming("2027-01-01", "26-27/0001"),
        "fiscal_year": Coming("2026-04-01", "26-27/0001"),
    }


def test_a_preview_ends_where_counters_or_the_length_end() -> None:
    # Given series that are about to reach the last number, and the last one that is short enough
    today = date(2026, 12, 31)
    counted_out = Numbering(format="%yearLong%-%incYearly%/%inc%", start=COUNTER_MAX - 1)
    too_long = Numbering(format="%yearLong%-%incYearly%", max_length=6)

    # When their previews are asked for, then they show what can still be issued, and nothing that would be refused
    shown = preview(counted_out, today, {"incYearly:2026": 1, "inc": COUNTER_MAX - 1}, used=True)
    assert shown.next == (f"2026-2/{COUNTER_MAX}",)
    assert preview(counted_out, today, {"incYearly:2026": 2, "inc": COUNTER_MAX}, used=True) == Preview((), {})
    shown = preview(too_long, today, {"incYearly:2026": 8}, used=True)
    assert shown.next == ("2026-9",)
    shown = preview(too_long, today, {"incYearly:2026": 9}, used=True)
    assert (shown.next, shown.after["year"]) == ((), Coming("2027-01-01", "2027-1"))


def test_a_preview_shows_no_date_after_the_last() -> None:
    # Given the last day but one of the century, and the last one, when previews are asked for, then they end with it
    numbering = Numbering(format="%yearLong%%month%%day%-%incDaily%")
    assert preview(numbering, LAST_DAY - ONE_DAY, {}, used=False, count=1).after == {
        "day": Coming("2099-12-31", "20991231-1")
    }
    assert preview(numbering, LAST_DAY, {}, used=False, count=1).after == {}
    assert preview(numbering, LAST_DAY, {}, used=False, count=0).next == ()
