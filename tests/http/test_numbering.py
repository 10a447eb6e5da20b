"""Numbers as they are really issued over HTTP, on days that the tests choose: the whole stack goes by their clock."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from faketime import Clock
from stack import Up, assert_alike, entry_path, list_entries, new_id, put_entry, put_series, unsettled, until

BATCH = 1000
SOME_DAY = "2025-10-21 07:02:40"

At = Callable[[str], None]


@pytest.fixture(scope="module")
def clocked() -> Iterator[tuple[Up, Clock]]:
    """A running `seriatim up` that goes by a clock, and that clock."""
    path = Path(tempfile.mkdtemp(prefix="seriatim-test-"))
    clock = Clock(path / "clock", SOME_DAY)
    stack = Up(path, environment=clock.environment).start()
    try:
        assert stack.state == "ready"
        yield stack, clock
        stack.settled()
        assert stack.json("verify")["sound"] is True
    finally:
        stack.stop()
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def client(clocked: tuple[Up, Clock]) -> Iterator[httpx.Client]:
    with clocked[0].client() as made:
        yield made


@pytest.fixture
def at(clocked: tuple[Up, Clock], client: httpx.Client) -> At:
    """Sets the clock of the whole stack, in UTC."""

    def set_clock(moment: str) -> None:
        clocked[1].set(moment)
        until(lambda: client.get("/readyz").status_code == 200)

    return set_clock


def post_batch(client: httpx.Client, series: str, elements: list[dict[str, Any]]) -> httpx.Response:
    return client.post(f"/sequence/v1/series/{series}/entries", json={"list": elements})


def put_batch(client: httpx.Client, series: str, elements: list[dict[str, Any]]) -> list[dict[str, Any]]:
    answer = post_batch(client, series, elements)
    assert answer.status_code == 200, answer.text
    entries: list[dict[str, Any]] = answer.json()["list"]
    return entries


def wanted(count: int, **fields: str) -> list[dict[str, Any]]:
    """Elements of a batch."""
    return [{"id": new_id(), **fields} for _ in range(count)]


def codes(entries: list[dict[str, Any]]) -> list[str]:
    return [entry["code"] for entry in entries]


def state(client: httpx.Client, series: str) -> list[dict[str, Any]]:
    """All that can be seen of a series, less what settlement changes."""
    return [client.get(f"/sequence/v1/series/{series}").json(), *map(unsettled, list_entries(client, series))]


# formats and periods ----------------------------------------------------------------------------------------------


SAMPLES = {
    "TF-9211025": ("TF-%incYearly%%day%%month%%yearShort%", "2025-10-21 07:02:40", 9),
    "AF-105161225": ("AF-%incYearly%%day%%month%%yearShort%", "2025-12-16 09:54:07", 105),
    "57": ("%inc%", "2025-04-29 10:28:47", 57),
    "SH-25386": ("SH-%yearShort%%inc%", "2025-05-08 12:22:51", 386),
}
"""Of DreamApply's documentation: format, time and ordinal of each number."""


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_format_of_dreamapply_comes_to_its_sample(client: httpx.Client, at: At, sample: str) -> None:
    # Given a series whose earlier entries lie in the same year, a few of them a day
    template, when, ordinal = SAMPLES[sample]
    at(when)
    series = put_series(client, format=template)
    today = date.fromisoformat(when[:10])
    days = [today - timedelta(days=number // 4) for number in range(ordinal - 1, 0, -1)]
    put_batch(client, series, [{"id": new_id(), "date": day.isoformat()} for day in days])

    # When the next one is issued at the sample's time
    entry = put_entry(client, series)

    # Then it has the sample's number
    assert entry["code"] == sample
    assert entry["number"] == ordinal
    assert entry["created_at"][:10] == entry["date"] == when[:10]


def test_an_indian_series_restarts_on_the_first_of_april_in_its_zone(client: httpx.Client, at: At) -> None:
    # Given a series of a fiscal year from April on, whose codes may have 16 characters, and all are needed
    series = put_series(
        client,
        format="INV/%fyShort%-%fyEndShort%/%incYearly%",
        fiscal_year_start="04-01",
        timezone="Asia/Kolkata",
        padding=6,
        max_length=16,
    )

    # When numbers are issued on both sides of New Year, and of midnight of 31 March in India
    issued = []
    for moment in ("2025-12-31 12:00:00", "2026-01-01 12:00:00", "2026-03-31 18:29:00", "2026-03-31 18:30:01"):
        at(moment)
        issued += [put_entry(client, series)["code"] for _ in range(2)]

    # Then they restart in April and not before
    assert issued == [
        *(f"INV/25-26/{number:06d}" for number in range(1, 7)),
        "INV/26-27/000001",
        "INV/26-27/000002",
    ]
    assert {len(code) for code in issued} == {16}


ONE_OF_EACH = "%inc% %yearLong%:%incYearly% %month%:%incMonthly% %day%:%incDaily%"


def test_start_holds_for_every_counter_in_the_first_period_only(client: httpx.Client, at: At) -> None:
    # Given a series with every counter, that starts with 40
    series = put_series(client, format=ONE_OF_EACH, start=40)

    # When it is used on two days, then in the next month, the next year, and on the same day a year later
    issued = []
    for day in ("2025-11-29", "2025-11-29", "2025-11-30", "2025-12-01", "2025-12-01", "2026-01-03", "2027-01-03"):
        at(f"{day} 12:00:00")
        issued.append(put_entry(client, series)["code"])

    # Then each counter begins with 40, and its next period with 1
    assert issued == [
        "40 2025:40 11:40 29:40",
        "41 2025:41 11:41 29:41",
        "42 2025:42 11:42 30:1",
        "43 2025:43 12:1 01:1",
        "44 2025:44 12:2 01:2",
        "45 2026:1 01:1 03:1",
        "46 2027:1 01:1 03:1",
    ]


def test_a_clock_that_is_set_back_over_midnight_takes_no_date_back(client: httpx.Client, at: At) -> None:
    # Given a series with an entry of the new year
    series = put_series(client, format="%yearLong%-%incYearly%", timezone="Europe/Bucharest")
    at("2025-12-31 22:00:30")
    first = put_entry(client, series)

    # When the clock is set back by a minute, and the series is previewed and used, one by one and together
    at("2025-12-31 21:59:30")
    shown = client.get(f"/sequence/v1/series/{series}/preview").json()["next"][:3]
    issued = [put_entry(client, series), *put_batch(client, series, wanted(2))]

    # Then it goes on in the new year, and time does not run backwards in it
    assert codes([first, *issued]) == ["2026-1", *shown] == [f"2026-{number}" for number in range(1, 5)]
    assert {entry["date"] for entry in issued} == {"2026-01-01"}
    assert min(entry["created_at"] for entry in issued) >= first["created_at"]


DAILY = "%incDaily% of %yearLong%-%month%-%day%"
DAYS_OF_OTHER_LENGTHS = {
    "Europe/Bucharest, 25 hours, an hour twice": (
        ["2025-10-25 21:00:01", "2025-10-26 00:30:00", "2025-10-26 01:30:00", "2025-10-26 21:58:00"],
        "2025-10-26 22:00:01",
    ),
    "Europe/Bucharest, 23 hours": (
        ["2026-03-28 22:00:01", "2026-03-29 00:58:00", "2026-03-29 01:00:01", "2026-03-29 20:58:00"],
        "2026-03-29 21:00:01",
    ),
    "Pacific/Auckland, 25 hours, an hour twice": (
        ["2026-04-04 11:00:01", "2026-04-04 13:30:00", "2026-04-04 14:30:00", "2026-04-05 11:58:00"],
        "2026-04-05 12:00:01",
    ),
    "Pacific/Auckland, 23 hours": (
        ["2025-09-27 12:00:01", "2025-09-27 13:58:00", "2025-09-27 14:00:01", "2025-09-28 10:58:00"],
        "2025-09-28 11:00:01",
    ),
    "America/Santiago, 25 hours, the last one twice": (
        ["2026-04-04 03:00:01", "2026-04-05 02:58:00", "2026-04-05 03:00:01", "2026-04-05 03:58:00"],
        "2026-04-05 04:00:01",
    ),
    "America/Santiago, 23 hours, begins at one": (
        ["2025-09-07 04:00:01", "2025-09-07 12:00:00", "2025-09-08 02:58:00"],
        "2025-09-08 03:00:01",
    ),
    "America/St_Johns, 25 hours, midnight is passed twice": (
        ["2010-11-06 02:30:01", "2010-11-07 02:29:00", "2010-11-07 02:30:10", "2010-11-07 03:29:00"],
        "2010-11-07 03:30:01",
    ),
}


@pytest.mark.parametrize(("name", "moments"), DAYS_OF_OTHER_LENGTHS.items(), ids=list(DAYS_OF_OTHER_LENGTHS))
def test_a_day_of_23_or_25_hours_has_one_daily_counter(
    client: httpx.Client, at: At, name: str, moments: tuple[list[str], str]
) -> None:
    # Given a strict series that counts daily, in a zone whose clocks are changed
    series = put_series(client, format=DAILY, timezone=name.partition(",")[0])

    # When numbers are issued from the first second of that day to its last minute, and in the next day's first second
    during, after = moments
    issued = []
    for moment in (*during, after):
        at(moment)
        issued.append(put_entry(client, series))

    # Then all of that day have one counter, and the next day begins anew
    today, tomorrow = issued[0]["date"], issued[-1]["date"]
    assert date.fromisoformat(tomorrow) - date.fromisoformat(today) == timedelta(days=1)
    assert codes(issued) == [*(f"{number} of {today}" for number in range(1, len(issued))), f"1 of {tomorrow}"]


# documents of another day -----------------------------------------------------------------------------------------


MONTHLY = "%yearLong%-%month%-%incMonthly%"


def test_a_december_document_of_january_goes_on_with_december_where_dates_are_free(
    client: httpx.Client, at: At
) -> None:
    # Given a free series with three entries of December and two of January
    series = put_series(client, format=MONTHLY, chronology="free")
    at("2025-12-30 12:00:00")
    put_batch(client, series, wanted(3))
    at("2026-01-03 12:00:00")
    put_batch(client, series, wanted(2))

    # When on 3 January documents of December come, alone and among those of January
    alone = put_entry(client, series, date="2025-12-30")
    among = put_batch(client, series, [*wanted(1), *wanted(1, date="2025-12-31"), *wanted(1)])

    # Then each month counts on where it stood, and the positions know nothing of it
    assert codes([alone, *among]) == ["2025-12-4", "2026-01-3", "2025-12-5", "2026-01-4"]
    assert [alone["date"], alone["created_at"][:10]] == ["2025-12-30", "2026-01-03"]
    assert [entry["position"] for entry in (alone, *among)] == [6, 7, 8, 9]
    assert put_entry(client, series)["code"] == "2026-01-5"


def test_a_december_document_of_january_is_refused_where_dates_are_strict(client: httpx.Client, at: At) -> None:
    # Given a strict series that on 3 January, before its first entry of January, still takes one of December
    series = put_series(client, format=MONTHLY)
    at("2025-12-30 12:00:00")
    put_batch(client, series, wanted(3))
    at("2026-01-03 12:00:00")
    assert put_entry(client, series, date="2025-12-30")["code"] == "2025-12-4"
    assert put_entry(client, series)["code"] == "2026-01-1"
    before = state(client, series)

    # When another one of December comes, or one of tomorrow, alone or in a batch
    late = new_id()
    for _ in range(2):
        refused = client.put(entry_path(series, late), json={"date": "2025-12-30"})
        assert refused.status_code == 422
        assert "2026-01-03" in refused.json()["fields"]["date"]
    assert "2026-01-03" in client.put(entry_path(series, late), json={"date": "2026-01-04"}).json()["fields"]["date"]
    refused = post_batch(client, series, [*wanted(2), *wanted(1, date="2025-12-31")])
    assert refused.status_code == 422
    assert list(refused.json()["fields"]) == ["list[2].date"]

    # Then nothing is consumed: neither the next number of January nor the id
    assert_alike(state(client, series), before)
    assert put_entry(client, series, late)["code"] == "2026-01-2"
    assert put_entry(client, series)["position"] == 7


# widths -----------------------------------------------------------------------------------------------------------


def test_after_999_comes_1000_whatever_the_padding(client: httpx.Client) -> None:
    # Given a series of three digits that begins at 998
    series = put_series(client, prefix="R-", padding=3, start=998)

    # When numbers are issued one by one and together, then the fourth digit is written
    issued = [put_entry(client, series) for _ in range(3)] + put_batch(client, series, wanted(2))
    assert codes(issued) == ["R-998", "R-999", "R-1000", "R-1001", "R-1002"]


def test_a_code_that_is_too_long_is_refused_and_consumes_nothing(client: httpx.Client) -> None:
    # Given a series whose codes may have five characters, close to 999
    series = put_series(client, prefix="R-", padding=3, start=998, max_length=5)
    first = put_entry(client, series)

    # When a batch does not fit as a whole
    before = state(client, series)
    refused = post_batch(client, series, wanted(3))

    # Then none of it is issued, and what fits alone is
    assert refused.status_code == 409
    assert list(refused.json()["fields"]) == ["list[1]"]
    assert_alike(state(client, series), before)
    assert put_entry(client, series)["code"] == "R-999"

    # When the next one is asked for, again and again, by the same id and by others
    before = state(client, series)
    same = new_id()
    answers = [client.put(entry_path(series, entry)) for entry in (same, same, new_id())]

    # Then the answer is always the same, the series stays as it was, and what was issued is still answered
    assert [answer.status_code for answer in answers] == [409] * 3
    assert len({answer.text for answer in answers}) == 1
    assert "max_length" in answers[0].json()["message"]
    assert client.get(entry_path(series, same)).status_code == 404
    assert_alike(state(client, series), before)
    assert put_entry(client, series, first["id"])["code"] == "R-998"


def test_a_counter_that_is_full_for_this_month_goes_on_in_the_next(client: httpx.Client, at: At) -> None:
    # Given a series whose codes leave one digit for the number, used up in January
    series = put_series(client, format="%yearShort%%month%/%incMonthly%", max_length=6)
    at("2026-01-31 12:00:00")
    put_batch(client, series, wanted(9))
    refused = client.put(entry_path(series, new_id()))
    assert refused.status_code == 409

    # When February comes, then there are numbers again, and the positions have no gap
    at("2026-02-01 12:00:00")
    entry = put_entry(client, series)
    assert (entry["code"], entry["position"]) == ("2602/1", 10)


# batches ----------------------------------------------------------------------------------------------------------


ISSUED = new_id()
BAD_ELEMENTS: dict[str, tuple[int, dict[str, Any], int, str]] = {
    "no day": (0, {"date": "2025-02-29"}, 422, ".date"),
    "a day of another century": (999, {"date": "2100-01-01"}, 422, ".date"),
    "tomorrow": (0, {"date": "2025-10-22"}, 422, ".date"),
    "yesterday": (999, {"date": "2025-10-20"}, 422, ".date"),
    "no id": (500, {"id": None}, 422, ".id"),
    "a malformed id": (999, {"id": "7c9e6679-7425-40de-944b-e07fc1f90ae"}, 422, ".id"),
    "an id that was issued with another meta": (999, {"id": ISSUED, "meta": {"order": "B"}}, 409, ""),
    "an id that was issued without a date": (500, {"id": ISSUED, "date": "2025-10-21"}, 409, ""),
    "a meta of too many bytes": (500, {"meta": {"order": "B" * 1025}}, 422, ".meta.order"),
    "no signature": (999, {"sig": "none"}, 422, ".sig"),
}


@pytest.mark.parametrize("kind", BAD_ELEMENTS)
def test_one_bad_element_of_a_thousand_changes_nothing(client: httpx.Client, at: At, kind: str) -> None:
    # Given a series with an entry of today
    at(SOME_DAY)
    series = put_series(client, prefix="B-")
    put_entry(client, series, ISSUED)
    before = state(client, series)

    # When a thousand are asked for, and one of them is bad
    place, bad, status, field = BAD_ELEMENTS[kind]
    elements = wanted(BATCH)
    elements[place] |= bad
    refused = post_batch(client, series, elements)

    # Then the answer names it, nothing has changed, and a good one gets the number that is next
    assert refused.status_code == status
    assert list(refused.json()["fields"]) == [f"list[{place}]{field}"]
    assert_alike(state(client, series), before)
    assert put_entry(client, series, elements[1]["id"])["code"] == "B-2"


def test_twins_of_a_batch_that_differ_change_nothing_and_those_that_agree_get_one_number(client: httpx.Client) -> None:
    # Given a batch of a thousand, the last two of which have one id
    series = put_series(client, prefix="T-")
    before = state(client, series)
    elements = wanted(BATCH)
    elements[-1] = {"id": elements[-2]["id"], "meta": {"order": "B"}}

    # When they differ, then all are refused
    refused = post_batch(client, series, elements)
    assert refused.status_code == 409
    assert list(refused.json()["fields"]) == [f"list[{BATCH - 1}]"]
    assert_alike(state(client, series), before)

    # When they agree, then they are one entry
    elements[-1] = {"id": elements[-2]["id"]}
    issued = put_batch(client, series, elements)
    assert_alike(codes(issued), [*(f"T-{number}" for number in range(1, BATCH)), f"T-{BATCH - 1}"])
    assert issued[-1] == issued[-2]
    assert put_entry(client, series)["position"] == BATCH


def test_a_batch_half_of_which_is_known_numbers_the_other_half_in_order(clocked: tuple[Up, Clock]) -> None:
    stack = clocked[0]
    with stack.client() as client:
        # Given 500 entries, the older ones settled
        series = put_series(client, prefix="H-")
        known = wanted(500)
        told = put_batch(client, series, known[:250])
        stack.settled()
        told += put_batch(client, series, known[250:])

        # When a thousand are asked for, and every other one is known, in an order of its own
        fresh = wanted(500)
        mixed = [element for pair in zip(reversed(known), fresh, strict=True) for element in pair]
        issued = put_batch(client, series, mixed)

        # Then the known ones are as they were, in their places, and the others got a run without a gap
        assert_alike((entry["id"] for entry in issued), (element["id"] for element in mixed))
        assert_alike(map(unsettled, issued[::2]), map(unsettled, reversed(told)))
        assert_alike((entry["position"] for entry in issued[1::2]), range(501, 1001))
        assert_alike(codes(issued[1::2]), (f"H-{number}" for number in range(501, 1001)))

        # And the same batch again is answered alike, and changes nothing
        before = state(client, series)
        again = put_batch(client, series, mixed)
        assert_alike(map(unsettled, again), map(unsettled, issued))
        assert_alike(state(client, series), before)


# preview ----------------------------------------------------------------------------------------------------------


PREVIEWED: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "plain": (
        "2026-06-15 12:00:00",
        {"prefix": "P-", "padding": 4},
        ["2026-06-16", "2026-07-01", "2027-01-01", "2027-01-01"],
    ),
    "every counter": (
        "2026-06-15 12:00:00",
        {"format": ONE_OF_EACH, "padding": 2, "start": 7},
        ["2026-06-16", "2026-07-01", "2027-01-01", "2027-01-01"],
    ),
    "the last day of a year, in a zone that is ahead": (
        "2025-12-30 11:30:00",
        {"format": ONE_OF_EACH, "timezone": "Pacific/Auckland"},
        ["2026-01-01", "2026-01-01", "2026-01-01", "2026-01-01"],
    ),
    "the day before a leap day": (
        "2028-02-28 12:00:00",
        {"format": DAILY},
        ["2028-02-29", "2028-03-01", "2029-01-01", "2029-01-01"],
    ),
    "a fiscal year that ends today": (
        "2026-03-31 12:00:00",
        {
            "format": "%fyLong%-%fyEndShort%/%incYearly%/%month%-%incMonthly%",
            "fiscal_year_start": "04-01",
            "timezone": "Asia/Kolkata",
            "start": 500,
        },
        ["2026-04-01", "2026-04-01", "2027-01-01", "2026-04-01"],
    ),
    "a fiscal year that has begun": (
        "2026-07-06 22:30:00",
        {"format": "%fyShort%%fyEndShort%-%incYearly%", "fiscal_year_start": "07-06", "timezone": "Europe/London"},
        ["2026-07-07", "2026-08-01", "2027-01-01", "2027-07-06"],
    ),
}
"""Moments, definitions, and when the next day, month, year and fiscal year begin."""


@pytest.mark.parametrize("used", [0, 3])
@pytest.mark.parametrize("kind", PREVIEWED)
def test_a_preview_says_what_is_then_issued(client: httpx.Client, at: At, kind: str, used: int) -> None:
    # Given a definition, and series of it that have issued as much
    moment, fields, changes = PREVIEWED[kind]
    at(moment)
    fields = fields | {"chronology": "free"}

    def make_series() -> str:
        series = put_series(client, **fields)
        if used:
            put_batch(client, series, wanted(used))
        return series

    # When one is previewed, then it says what changes when
    series = make_series()
    preview = client.get(f"/sequence/v1/series/{series}/preview").json()
    after = [preview["after"][what] for what in ("day", "month", "year", "fiscal_year")]
    assert [foretold["date"] for foretold in after] == changes
    if not used:
        assert client.post("/sequence/v1/series/preview", json=fields).json() == preview

    # And the next numbers are these, one by one or together
    assert len(preview["next"]) > 2
    singly = [put_entry(client, series) for _ in preview["next"]]
    assert codes(singly) == preview["next"]
    assert codes(put_batch(client, make_series(), wanted(len(preview["next"])))) == preview["next"]

    # And each coming change brings the number that was foretold
    for foretold in after:
        assert put_entry(client, make_series(), date=foretold["date"])["code"] == foretold["code"]


def test_what_is_foretold_of_tomorrow_comes_true_when_it_is_tomorrow(client: httpx.Client, at: At) -> None:
    # Given a strict series on the last day of a year, in its zone
    series = put_series(client, format=ONE_OF_EACH, timezone="Europe/Bucharest")
    at("2025-12-31 21:58:00")
    put_batch(client, series, wanted(3))
    after = client.get(f"/sequence/v1/series/{series}/preview").json()["after"]

    # When the year changes, then day, month, year and fiscal year have brought what was foretold
    at("2025-12-31 22:00:01")
    entry = put_entry(client, series)
    assert entry["code"] == "4 2026:1 01:1 01:1"
    assert list(after.values()) == [{"date": "2026-01-01", "code": entry["code"]}] * 4


def test_a_preview_creates_and_consumes_nothing(client: httpx.Client) -> None:
    # Given a series
    series = put_series(client, prefix="N-")
    put_entry(client, series)
    all_series = client.get("/sequence/v1/series", params={"limit": "1000"}).json()
    before = state(client, series)

    # When it is previewed twice, and one that is not there, and one that would be refused
    path = f"/sequence/v1/series/{series}/preview"
    assert client.get(path).json() == client.get(path).json()
    assert client.get(path).json()["next"][0] == "N-2"
    assert client.post("/sequence/v1/series/preview", json={"prefix": "X-"}).json()["next"][0] == "X-1"
    assert client.post("/sequence/v1/series/preview", json={"format": "%incYearly%"}).status_code == 422

    # Then nothing has come into being, and the next number is the one that was shown
    assert client.get("/sequence/v1/series", params={"limit": "1000"}).json() == all_series
    assert_alike(state(client, series), before)
    assert put_entry(client, series)["code"] == "N-2"
