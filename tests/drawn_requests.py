"""What Hypothesis draws for random steps over HTTP: definitions, payloads, dates, times."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

from plain_model import numbering_of
from slow_formats import SlowSeries

SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000

FORMATS: list[dict[str, Any]] = [
    {},
    {"prefix": "ES-", "padding": 5, "suffix": "/F"},
    {"prefix": "100%-", "suffix": "%day%"},
    {"format": "INV-%yearLong%-%incYearly%", "padding": 4},
    {"format": "%fyShort%%fyEndShort%/%incYearly%", "fiscal_year_start": "04-01"},
    {"format": "%fyLong%.%incYearly%.%inc%", "fiscal_year_start": "04-15"},
    {"format": "%incMonthly%/%month%%yearShort%", "padding": 2},
    {"format": "%inc%-%incDaily%-%yearLong%%month%%day%"},
    {"format": "D%incDaily%/%yearLong%%month%%day%", "fiscal_year_start": "07-01"},
    {"format": "%day%.%month%.%yearLong%#%incDaily%_%incMonthly%_%incYearly%", "fiscal_year_start": "10-01"},
    {"format": "%%%yearLong%%%%incYearly%-%incYearly%"},
]
ZONES = ["UTC", "Europe/Bucharest", "America/New_York", "America/St_Johns", "Pacific/Kiritimati", "Asia/Kathmandu"]
TYPES = ["invoice", "receipt"]


@st.composite
def definitions(draw: st.DrawFn) -> dict[str, Any]:
    """Bodies that create a series."""
    definition = dict(draw(st.sampled_from(FORMATS)))
    for name, values in (
        ("type", st.sampled_from([None, *TYPES])),
        ("start", st.sampled_from([None, None, 7, 98, 996, 2**53 - 20])),
        ("timezone", st.sampled_from([None, *ZONES])),
        ("chronology", st.sampled_from([None, "strict", "free", "free"])),
        ("default", st.sampled_from([None, None, True])),
    ):
        value = draw(values)
        if value is not None:
            definition[name] = value
    room = draw(st.sampled_from([None, None, None, None, 0, 1]))
    if room is not None:
        definition["max_length"] = len(SlowSeries(numbering_of(definition)).issue(date(2001, 1, 1))) + room
    return definition


CHANGES: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {"padding": 1},
        {"padding": 6},
        {"start": 3},
        {"name": "Shop"},
        {"code": "c", "active": True},
        {"active": False},
        {"active": True},
        {"default": True},
        {"default": True, "active": True},
        {"default": False},
    ]
)

WHICH = st.integers(0, 999)
FRONTS = st.integers(0, 1)
METAS: st.SearchStrategy[dict[str, str]] = st.sampled_from(
    [{}, {}, {"k": "v"}, {"k": "w"}, {"b": "2", "a": "1"}, {"a": "1", "b": "2"}, {"ü": "\u2028", "\U0001f9fe": ""}]
)
SIGS = st.sampled_from([None, None, "eyJhbGciOiJFUzI1NiJ9.e30.c2ln", "eyJhbGciOiJFZERTQSJ9.e30.b3RoZXI"])
REASONS = st.sampled_from(["cancelled", "printed by hand"])

DATES: st.SearchStrategy[int | str | None] = st.one_of(
    st.none(),
    st.none(),
    st.integers(-2, 2),  # days from today
    st.sampled_from(["last", "2000-01-01", "2000-04-14", "2025-12-31", "2026-12-31", "2028-02-29", "2099-12-31"]),
)
"""The dates of documents, of which some are out of order or out of range."""
NO_DATES = ["1999-12-31", "2100-01-01", "2026-02-29", "2026-1-1", "tomorrow"]
NO_COUNTERS = ["yearLong", "incWeekly", "incDaily"]
"""Names of counters that a series does not have, or not for sure."""

TIMES = st.sampled_from([1, SECOND, 10 * MINUTE, HOUR, DAY, -1, -SECOND, -10 * MINUTE, -DAY])
ABOUT_MIDNIGHT = st.sampled_from([-12 * MINUTE, -2 * MINUTE, -1, 0, 1, MINUTE, 9 * MINUTE])
SKEWS = st.lists(
    st.sampled_from([-55 * MINUTE, -9 * MINUTE, -2 * MINUTE, -1, 0, 1, 3 * MINUTE, 10 * MINUTE, 55 * MINUTE]),
    min_size=2,
    max_size=2,
)
"""How much the clocks of the two fronts are ahead; below the hour at which a front refuses."""
FAMOUS_DAYS = st.builds(
    lambda year, day: date(year, *day),
    st.integers(2026, 2029),
    st.sampled_from([(1, 1), (4, 1), (4, 15), (7, 1), (10, 1), (3, 1), (3, 8), (3, 29), (10, 25), (11, 1), (12, 31)]),
)


def midnight_ms(day: date, zone: ZoneInfo) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()) * 1000
