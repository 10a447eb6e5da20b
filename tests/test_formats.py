"""How codes look, and for how long a rendering of a format holds."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from hypothesis import example, given
from hypothesis import strategies as st

from seriatim.formats import code, day_window, plan
from seriatim.model import COUNTER_MAX, Numbering

DAY_MS = 86_400_000
DAYS_TO_2100 = (date(2100, 1, 1) - date(1970, 1, 1)).days
NUMBERINGS = st.builds(
    Numbering,
    prefix=st.text(max_size=12),
    padding=st.integers(0, 20),
    suffix=st.text(max_size=12),
)


@given(NUMBERINGS, st.integers(1, COUNTER_MAX))
@example(Numbering("%d{0}\\", 3, "%%s{}"), 7)
@example(Numbering("", 0, ""), COUNTER_MAX)
@example(Numbering("", 20, ""), COUNTER_MAX)
def test_a_code_is_its_number_between_prefix_and_suffix(numbering: Numbering, number: int) -> None:
    # Given any numbering and number, when the code is written
    written = code(numbering, number)

    # Then prefix and suffix are literal, and what is between them is the number in at least `padding` digits
    assert written.startswith(numbering.prefix)
    assert written.endswith(numbering.suffix)
    digits = written[len(numbering.prefix) : len(written) - len(numbering.suffix)]
    assert digits.isascii()
    assert int(digits) == number
    assert len(digits) == max(numbering.padding, len(str(number)))


def test_more_digits_than_the_padding_are_written_in_full() -> None:
    numbering = Numbering("INV-", 3, "")
    assert code(numbering, 1) == "INV-001"
    assert code(numbering, 999) == "INV-999"
    assert code(numbering, 1000) == "INV-1000"
    assert code(numbering, 10**14) == "INV-100000000000000"
    assert code(numbering, COUNTER_MAX) == "INV-9007199254740991"


@given(NUMBERINGS, st.integers(1, COUNTER_MAX - 1))
def test_codes_of_one_series_never_repeat(numbering: Numbering, number: int) -> None:
    # Given two numbers that follow one another or stand a digit apart, then their codes differ
    assert code(numbering, number) != code(numbering, number + 1)
    assert code(numbering, number) != code(numbering, min(number * 10, COUNTER_MAX))


@given(st.integers(0, DAYS_TO_2100 - 1))
@example((date(2000, 2, 29) - date(1970, 1, 1)).days)
@example((date(2026, 12, 31) - date(1970, 1, 1)).days)
def test_a_day_is_24_hours_that_join_the_next(day: int) -> None:
    # Given any day until 2100, when its window is asked for
    from_ms, until_ms, named = day_window(day)

    # Then it has the calendar's name and ends where the next begins
    assert named == (date(1970, 1, 1) + timedelta(days=day)).isoformat()
    assert until_ms - from_ms == DAY_MS
    assert day_window(day + 1)[0] == until_ms
    assert datetime.fromtimestamp(from_ms / 1000, UTC).date().isoformat() == named


@given(NUMBERINGS, st.integers(0, DAYS_TO_2100 * DAY_MS - 1))
@example(Numbering(), 0)
@example(Numbering(), DAY_MS - 1)
@example(Numbering(), DAY_MS)
def test_a_plan_holds_at_the_time_that_it_is_made_for(numbering: Numbering, now_ms: int) -> None:
    # Given any numbering and time, when its plan is made
    made = plan(numbering, now_ms)

    # Then the time lies in the plan's window, and the plan carries all that a code is written from
    assert made.from_ms <= now_ms < made.until_ms
    assert made.date == datetime.fromtimestamp(now_ms // 1000, UTC).date().isoformat()
    assert (made.prefix, made.width, made.suffix) == (numbering.prefix, numbering.padding, numbering.suffix)
