"""Bad definitions, dates, batches and previews: a clear refusal, no number for it, and nothing else changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from bad_input import BASE, HEADER, Numbered, check_refused
from seriatim.model import COUNTER_MAX
from stack import Up, entry_path, new_id, put_entry, put_series

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def numbered(shared_up: Up) -> Iterator[Numbered]:
    """A series that all tests leave as it is: its next number is 2."""
    with shared_up.client() as client:
        made = Numbered(shared_up, client)
        before = made.known
        yield made
        if made.known == before:  # else some test has told so
            entry = put_entry(client, made.series, date=made.day)
            assert (entry["position"], entry["code"], entry["previous_id"]) == (2, "B-24-2/2", made.entry)


@pytest.fixture
def subject(numbered: Numbered) -> Iterator[Numbered]:
    """That series, with a look at it when the test is through."""
    yield numbered
    before, after = numbered.look()
    assert after == before


# definitions ------------------------------------------------------------------------------------------------------

NO_TEXT: list[Any] = [5, -1.5, True, False, [], ["%inc%"], {}, {"format": "%inc%"}, 10**400]
NO_NUMBER: list[Any] = ["16", "", 16.5, 1e300, True, False, [], [16], {}]
STRAY = "has a percent sign that belongs to no marker. Write %% for the sign itself"
UNKNOWN = "The markers are %inc%, %incYearly%, %incMonthly%, %incDaily%, %yearLong%, %yearShort%, %month%, %day%, "
REPEATS = "Add the date markers that tell the periods of its counters apart"
SIDE_BY_SIDE = "side by side. Put a literal between them that is not made of digits alone"
NO_ZONE = "is not a name of the tz database, such as Europe/Bucharest"
NO_DAY = "must be a day of every year, as MM-DD"
TOO_LONG = {"format": "INV/%fyLong%-%fyEndShort%/%incYearly%", "padding": 6, "max_length": 16}

WRONG: list[tuple[dict[str, Any], str, str]] = [
    *(({"format": bad}, "format", "Expected `str | null`, got") for bad in NO_TEXT),
    *(({"format": f"{bad}-%inc%"}, "format", f"unknown marker {bad}. {UNKNOWN}") for bad in ("%year%", "%INC%", "%x%")),
    *(({"format": bad}, "format", STRAY) for bad in ("%", "%inc", "50% %inc%", "%inc%%", "%inc_daily%", "%inc %")),
    *(({"format": bad}, "format", "has no counter") for bad in ("INV", "%yearLong%%month%%day%", "%%inc%%", " ")),
    *(
        ({"format": bad}, "format", REPEATS)
        for bad in (
            "%incDaily%",
            "%incDaily%-%month%%day%",
            "%incMonthly%-%month%",
            "%incYearly%",
            "%yearLong%%incDaily%",
        )
    ),
    ({"format": "%incYearly%-%yearLong%", "fiscal_year_start": "04-01"}, "format", "number 1 of 2001-04-01 would both"),
    *(
        ({"format": bad}, "format", SIDE_BY_SIDE)
        for bad in ("%inc%%inc%", "%inc%7%incYearly%-%yearLong%", "%inc%%yearLong%%incYearly%")
    ),
    ({"format": "A-%inc%", "prefix": "A-"}, "format", "stands for prefix and suffix: write them into it"),
    ({"format": "%inc%/A", "suffix": "/A", "padding": 3}, "format", "stands for prefix and suffix"),
    ({"format": "x" * 251 + "%inc%"}, "format", "has 256 bytes; at most 255 are allowed"),
    ({"format": "\u20ac" * 84 + "%inc%"}, "format", "has 257 bytes"),
    *(({"format": f"%inc%{bad}"}, "format", "contains a control character") for bad in "\0\n\x7f\x9f\u2028"),
    *(({"timezone": bad}, "timezone", "Expected `str | null`, got") for bad in NO_TEXT),
    *(
        ({"timezone": bad}, "timezone", NO_ZONE)
        for bad in ("Mars/Olympus", "europe/bucharest", "+02:00", "UTC+2", "localtime", "posix/UTC", "../UTC", "/UTC")
    ),
    *(
        ({"timezone": bad}, "timezone", NO_ZONE)
        for bad in ("Europe", "Europe/", " UTC", "UTC ", "Europe/Bucure\u0219ti")
    ),
    ({"timezone": "x" * 65}, "timezone", "has 65 bytes; at most 64 are allowed"),
    ({"timezone": "UTC\n"}, "timezone", "contains a control character"),
    *(({"fiscal_year_start": bad}, "fiscal_year_start", "Expected `str | null`, got") for bad in NO_TEXT),
    *(
        ({"fiscal_year_start": bad}, "fiscal_year_start", NO_DAY)
        for bad in (
            "02-29",
            "02-30",
            "04-31",
            "13-01",
            "00-01",
            "01-00",
            "4-1",
            "0401",
            "04/01",
            "--04",
            "W01",
            "April",
        )
    ),
    ({"fiscal_year_start": "2026-04-01"}, "fiscal_year_start", "has 10 bytes; at most 5 are allowed"),
    *(({"chronology": bad}, "chronology", "Expected `str | null`, got") for bad in NO_TEXT),
    *(({"chronology": bad}, "chronology", "must be strict or free") for bad in ("Strict", "loose", " free", "null")),
    *(({"max_length": bad}, "max_length", "Expected `int | null`, got") for bad in NO_NUMBER),
    *(({"max_length": bad}, "max_length", "must be 1 to 255") for bad in (-1, 256, 2**53, -(2**63) - 1, 10**400)),
    ({"max_length": 3, "prefix": "ABC"}, "max_length", "is 3, and the first code (ABC1) has 4"),
    ({"max_length": 7, "padding": 8}, "max_length", "is 7, and the first code (00000001) has 8"),
    (TOO_LONG, "max_length", "is 16, and the first code (INV/2000-00/000001) has 18"),
    *(({"charset": bad}, "charset", "Expected `str | null`, got") for bad in NO_TEXT),
    *(
        ({"charset": bad}, "charset", "lacks '0123456789', which codes such as 1 need")
        for bad in ("A-Z", "\u0660-\u0669")
    ),
    ({"charset": " -/" + ":-\U0010ffff" * 20}, "charset", "lacks '0123456789'"),
    ({"charset": "1-9"}, "charset", "lacks '0'"),
    ({"charset": "A-Z0-9", "prefix": "\u00e9/"}, "charset", "lacks '/\u00e9', which codes such as \u00e9/1 need"),
    ({"charset": "Z-A0-9"}, "charset", "has the range Z-A, which runs backwards"),
    ({"charset": "x" * 129}, "charset", "has 129 bytes; at most 128 are allowed"),
    ({"charset": "0-9\t"}, "charset", "contains a control character"),
]


@pytest.mark.parametrize(("body", "field", "why"), WRONG)
def test_a_numbering_that_is_refused_is_neither_made_nor_shown(
    subject: Numbered, body: dict[str, Any], field: str, why: str
) -> None:
    # Given a wrong numbering, when a new series is to have it, or a preview is to show it
    series, client = new_id(), subject.client
    refused = [
        check_refused(client.put(f"{BASE}/series/{series}", json=body), 422, field),
        check_refused(client.post(f"{BASE}/series/preview", json=body), 422, field),
    ]

    # Then both are told the same, and there is no series
    assert refused[0] == refused[1]
    assert why in refused[0]["fields"][field]
    assert why in refused[0]["message"]
    check_refused(client.get(f"{BASE}/series/{series}"), 404)

    # And a series with entries does not take it, either
    answer = client.put(subject.path, json=body)
    check_refused(answer, answer.status_code, *answer.json().get("fields", {}))
    assert answer.status_code in (409, 422)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (dict.fromkeys(("format", "timezone", "fiscal_year_start", "chronology", "charset"), 5), []),
        ({"max_length": "5", "charset": [], "Format": "%inc%", "time_zone": "UTC"}, []),
        (
            {"max_length": 300, "chronology": "x", "charset": "\n", "format": "\0", "timezone": "x" * 65, "type": "X"},
            [],
        ),
        ({"sig": "x", "padding": -1, "start": -1, "fiscal_year_start": "01-01-01"}, []),
        ({f"unknown{number:03d}": None for number in range(5000)}, [f"unknown{number:03d}" for number in range(100)]),
    ],
)
def test_all_wrong_fields_are_named_but_no_more_than_a_hundred(
    subject: Numbered, body: dict[str, Any], fields: list[str]
) -> None:
    check_refused(subject.client.put(f"{BASE}/series/{new_id()}", json=body), 422, *(fields or body))
    check_refused(subject.client.post(f"{BASE}/series/preview", json=body), 422, *(fields or body))
    check_refused(subject.client.put(subject.path, json=body), 422, *(fields or body))


@pytest.mark.parametrize(
    ("change", "field", "why"),
    [
        ({"fiscal_year_start": "04-01"}, "format", "number 1 of 2001-04-01 would both be INV-2001-1"),
        ({"format": "INV-%incYearly%"}, "format", REPEATS),
        ({"padding": 6}, "max_length", "is 14, and the first code (INV-2000-000001) has 15"),
        ({"max_length": 9}, "max_length", "is 9, and the first code (INV-2000-1) has 10"),
        ({"suffix": "/A"}, "charset", "lacks '/'"),
        ({"charset": "0-9"}, "charset", "lacks '-INV', which codes such as INV-2000-1 need"),
    ],
)
def test_a_change_that_does_not_fit_what_stays_is_refused(
    client: httpx.Client, change: dict[str, Any], field: str, why: str
) -> None:
    # Given a series without entries
    series = put_series(client, format="INV-%yearLong%-%incYearly%", max_length=14, charset="A-Z0-9-", name="old")
    before = client.get(f"{BASE}/series/{series}").json()

    # When a change is right by itself, and wrong with the rest
    refused = check_refused(client.put(f"{BASE}/series/{series}", json=change | {"name": "new"}), 422, field)

    # Then the refusal says what would happen, and the series is as it was
    assert why in refused["message"]
    assert client.get(f"{BASE}/series/{series}").json() == before
    assert put_entry(client, series, date="2024-05-01")["code"] == "INV-2024-1"


@pytest.mark.parametrize(
    "change",
    [
        {"format": "B-%fyLong%-%incYearly%/%inc%"},
        {"prefix": "B-"},
        {"suffix": "/B"},
        {"padding": 3},
        {"start": 2},
        {"timezone": "Europe/Bucharest"},
        {"fiscal_year_start": "07-01"},
        {"chronology": "free"},
        {"max_length": 17},
        {"charset": "A-Za-z0-9/-"},
        {"name": "new", "padding": 3},
    ],
)
def test_a_series_with_entries_keeps_its_numbering(subject: Numbered, change: dict[str, Any]) -> None:
    refused = check_refused(subject.client.put(subject.path, json=change), 409)
    assert refused["message"] == "The series has entries, which fix its numbering. Create another series."


# dates ------------------------------------------------------------------------------------------------------------

MALFORMED = ["2024-5-2", "20240502", "24-05-02", "2024-05-02T00:00:00Z", "2024-05-02 ", " 2024-05-02", "2024-05-02\n"]
MALFORMED += ["2024-05-02\0", "2024/05/02", "02.05.2024", "2024-W18-4", "2024-123", "today", "0", " ", "-2024-05-02"]
MALFORMED += ["2024-05-0\u0662", "\uff12024-05-02", "+002024-05-02", "2" * 200_000]
IMPOSSIBLE = ["2024-02-30", "2023-02-29", "2024-04-31", "2024-13-01", "2024-00-01", "2024-05-00", "2024-05-32"]
OUT_OF_RANGE = ["0000-01-01", "0001-01-01", "1999-12-31", "2100-01-01", "9999-12-31"]
WRITTEN_WRONG = "must be a day as YYYY-MM-DD, 2000-01-01 to 2099-12-31"
BAD_DATES: list[tuple[Any, str]] = [
    *((bad, WRITTEN_WRONG) for bad in (*MALFORMED, *IMPOSSIBLE, *OUT_OF_RANGE)),
    *((bad, "Expected `str | null`, got") for bad in (20240502, 1.5, True, False, [], ["2024-05-02"], {}, {"y": 2024})),
    *((bad, "must be 2000-04-01 to 2099-12-31 in this series") for bad in ("2000-01-01", "2000-03-31")),
    *((bad, "is before 2024-05-01, the date of the last entry") for bad in ("2024-04-30", "2000-04-01")),
    ("2099-12-31", "is after today, 2"),
]


@pytest.mark.parametrize(("bad", "why"), BAD_DATES, ids=range(len(BAD_DATES)))
def test_a_date_that_is_refused_consumes_no_number(subject: Numbered, bad: Any, why: str) -> None:
    # Given a wrong date, when it is that of an entry, and that of the second one of a batch
    single = check_refused(subject.put({"date": bad}), 422, "date")
    batch = {"list": [{"id": new_id(), "date": "2024-05-02"}, {"id": new_id(), "date": bad}, {"id": new_id()}]}
    many = check_refused(subject.post(batch), 422, "list[1].date")

    # Then both refusals say why
    assert why in single["message"]
    if why.startswith("is before"):
        why = "is before 2024-05-02"  # the first of the batch would have been the last entry
    assert f"list[1].date: {why}" in many["message"]


def test_a_date_after_today_is_refused_wherever_today_is(client: httpx.Client) -> None:
    # Given strict series in the zones where days begin first and last, when a day that has begun in neither is put
    ahead = (datetime.now(UTC) + timedelta(days=2)).date().isoformat()
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):
        series = put_series(client, timezone=zone)
        refused = check_refused(client.put(entry_path(series, new_id()), json={"date": ahead}), 422, "date")

        # Then the refusal names today as it is there, which is what an entry without a date gets
        entry = put_entry(client, series)
        assert entry["position"] == 1
        assert refused["fields"]["date"] == f"is after today, {entry['date']}, and the series is strict"


def test_dates_that_go_back_within_a_batch_are_refused(subject: Numbered) -> None:
    batch = [{"id": new_id(), "date": day} for day in ("2024-05-03", "2024-05-03", "2024-05-02")]
    refused = check_refused(subject.post({"list": batch}), 422, "list[2].date")
    assert "is before 2024-05-03, the date of the last entry, and the series is strict" in refused["message"]


def test_a_free_series_takes_any_date_in_range_and_none_outside_of_it(client: httpx.Client) -> None:
    # Given a free series, which goes back and ahead
    series = put_series(client, format="%fyLong%/%incYearly%", fiscal_year_start="04-01", chronology="free")
    days = ["2024-04-01", "2099-12-31", "2000-04-01", "2024-04-01"]
    assert [put_entry(client, series, date=day)["code"] for day in days] == ["2024/1", "2099/1", "2000/1", "2024/2"]

    # When dates before its first fiscal year and after the century are put, then they are refused, here too
    outside = {"2000-03-31": "must be 2000-04-01 to 2099-12-31 in this series", "2100-01-01": WRITTEN_WRONG}
    for bad, why in outside.items():
        refused = check_refused(client.put(entry_path(series, new_id()), json={"date": bad}), 422, "date")
        assert why in refused["message"]
    assert put_entry(client, series, date="2000-04-01")["code"] == "2000/2"


@pytest.mark.parametrize("date", [None, "", "2024-05-02"])
def test_an_id_that_was_issued_with_another_date_is_a_conflict(subject: Numbered, date: str | None) -> None:
    # Given an entry of 1 May, when its id comes without a date, or with another one, then it is refused
    again = {"id": subject.entry, "date": date}
    check_refused(subject.client.put(entry_path(subject.series, subject.entry), json=again), 409)
    check_refused(subject.post({"list": [{"id": new_id()}, again]}), 409, "list[1]")


# batches ----------------------------------------------------------------------------------------------------------

ID = "5f0c4c8e-0000-4000-8000-000000000001"
OTHER = "5f0c4c8e-0000-4000-8000-000000000002"
NOT_UUIDS = ["", "x", ID[:-1], f"{ID}0", ID.replace("-", ""), f"{{{ID}}}", f"urn:uuid:{ID}", f"{ID}\n", f" {ID}"]
NOT_UUIDS += [ID.replace("f", "g"), ID[:24] + "\uff10" * 12, ID.replace("0", "\u0660"), "\0", "x" * 100_000]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["list"]),
        ({"list": None}, ["list"]),
        ({"list": {}}, ["list"]),
        ({"list": {"id": ID}}, ["list"]),
        ({"list": ID}, ["list"]),
        ({"list": 5}, ["list"]),
        ({"list": []}, ["list"]),
        ({"list": [{"id": ID}], "more": 1, "List": []}, ["more", "List"]),
        ({"entries": [{"id": ID}]}, ["list", "entries"]),
        ({"id": ID}, ["list", "id"]),
        ({"list": [None]}, ["list[0]"]),
        ({"list": [[]]}, ["list[0]"]),
        ({"list": [{"id": ID}, ID, 5, [{"id": OTHER}], True]}, [f"list[{number}]" for number in range(1, 5)]),
        ({"list": [{}]}, ["list[0].id"]),
        ({"list": [{"id": None}]}, ["list[0].id"]),
        ({"list": [{"id": 5}, {"id": [ID]}, {"id": {}}]}, ["list[0].id", "list[1].id", "list[2].id"]),
        ({"list": [{"id": bad} for bad in NOT_UUIDS]}, [f"list[{number}].id" for number in range(len(NOT_UUIDS))]),
        ({"list": [{"id": ID}, {"id": OTHER, "series_id": ID, "Date": ""}]}, ["list[1].series_id", "list[1].Date"]),
        ({"list": [{"id": ID, "meta": []}, {"id": OTHER, "meta": "k"}]}, ["list[0].meta", "list[1].meta"]),
        ({"list": [{"id": ID, "meta": {"a": "fine", "b": 1, "c": None}}]}, ["list[0].meta.b", "list[0].meta.c"]),
        ({"list": [{"id": ID, "meta": {"k": "v" * 1025}}]}, ["list[0].meta.k"]),
        (
            {"list": [{"id": ID, "meta": {"k": "\0"}}, {"id": OTHER, "meta": {"": "v"}}]},
            ["list[0].meta", "list[1].meta"],
        ),
        ({"list": [{"id": ID, "sig": "x"}, {"id": OTHER, "sig": 5}]}, ["list[1].sig"]),
        ({"list": [{"id": ID, "sig": "x"}, {"id": "x", "date": "x"}]}, ["list[0].sig", "list[1].id", "list[1].date"]),
        ({"list": [{"id": ID}] * 1001}, ["list"]),
        ({"list": [{"id": ID}] * 999 + [{"id": "x"}]}, ["list[999].id"]),
        ({"list": [5] * 100_000}, [f"list[{number}]" for number in range(100)]),
        ({"list": [{"id": ID}] * 2000 + [5]}, ["body"]),
    ],
)
def test_a_batch_of_another_shape_is_refused_with_the_places_that_are_wrong(
    subject: Numbered, body: Any, fields: list[str]
) -> None:
    refused = check_refused(subject.post(body), 422, *fields)
    assert all(f"{field}: " in refused["message"] for field in fields[:5])


NO_BATCHES = [
    b"",
    b"null",
    b"[]",
    b'[{"id": "%s"}]' % ID.encode(),
    b'{"list": [',
    b'{"list": [{"id": "%s"}],}' % ID.encode(),
    b'{"list": [NaN]}',
    b'{"list": [' + b"1" * 5000 + b"]}",
    b'{"list": [{"id": "\xff"}]}',
    b'{"list": [{"id": "\\ud800"}]}',
    b'{"list": [{"id": "%s", "date": "\\udfff2024-05-01"}]}' % ID.encode(),
    b'{"list": [{"id": "%s", "meta": {"\\udc00": "v"}}]}' % ID.encode(),
    b'{"list": ' + b"[" * 100_000,
    b'{"list": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"list": [' + b'{"meta":' * 50_000,
]


@pytest.mark.parametrize("content", NO_BATCHES, ids=range(len(NO_BATCHES)))
def test_a_batch_that_is_no_json_object(subject: Numbered, content: bytes) -> None:
    answer = subject.post(content=content)
    if content == b"":  # like {}
        check_refused(answer, 422, "list")
    else:
        check_refused(answer, 400)


def test_a_batch_larger_than_4_mib_is_refused_however_it_comes(client: httpx.Client) -> None:
    # Given bodies of 4 MiB and of a byte more, when they come whole and in chunks
    series = put_series(client)

    def body(size: int) -> bytes:
        content = json.dumps({"list": [{"id": ID}]}).encode()
        return content + b" " * (size - len(content))

    def chunks(content: bytes) -> Iterator[bytes]:
        for at in range(0, len(content), 65_536):
            yield content[at : at + 65_536]

    for content in (body(4 * MIB + 1), chunks(body(4 * MIB + 1)), chunks(body(5 * MIB))):
        refused = check_refused(client.post(f"{BASE}/series/{series}/entries", content=content), 413)
        assert str(4 * MIB) in refused["message"]
    assert client.get(f"{BASE}/series/{series}").json()["last_index"] == 0

    # Then only those are refused, and a preview may not be as large
    assert client.post(f"{BASE}/series/{series}/entries", content=body(4 * MIB)).json()["list"][0]["position"] == 1
    check_refused(client.post(f"{BASE}/series/preview", content=b" " * (MIB // 4 + 1)), 413)


def test_an_id_twice_in_a_batch_is_one_entry_or_a_conflict(subject: Numbered) -> None:
    # Given batches in which an id comes again with something else than before
    one = {"id": ID, "meta": {"k": "v"}, "date": "2024-05-02"}
    for other in ({"meta": {"k": "w"}}, {"meta": None}, {"date": "2024-05-03"}, {"date": ""}):
        batch = [one, {"id": OTHER, "date": "2024-05-02"}, one | {"id": ID.upper()} | other]

        # When they are posted, then they are refused as a whole
        refused = check_refused(subject.post({"list": batch}), 409, "list[2]")
        assert "another payload" in refused["fields"]["list[2]"]

    # And given one in which it comes with the same, in other clothes, then that is one entry, shown twice
    series = put_series(subject.client)
    again = one | {"id": ID.upper(), "sig": f"{HEADER}.e30.c2ln"}
    answer = subject.client.post(f"{BASE}/series/{series}/entries", json={"list": [one, {"id": OTHER}, again]})
    entries = answer.json()["list"]
    assert [entry["position"] for entry in entries] == [1, 2, 1]
    assert entries[0] == entries[2]


def test_a_batch_that_is_refused_at_its_last_element_consumes_nothing(subject: Numbered) -> None:
    # Given a batch of a thousand whose last id was issued with another payload
    batch = [{"id": new_id(), "date": subject.day} for _ in range(999)]
    taken = {"id": subject.entry, "date": subject.day, "meta": {"k": "v"}}

    # When it is posted, then not one of the others is issued
    check_refused(subject.post({"list": [*batch, taken]}), 409, "list[999]")
    check_refused(subject.client.get(entry_path(subject.series, batch[0]["id"])), 404)


def test_a_batch_that_would_outgrow_the_series_is_refused_as_a_whole(client: httpx.Client) -> None:
    # Given a series with room for codes of three characters, and one that is about to end
    short, ending = put_series(client, prefix="A-", max_length=3), put_series(client, start=COUNTER_MAX - 1)
    for series, room, why in ((short, 9, "max_length"), (ending, 2, "2^53 - 1")):
        before = client.get(f"{BASE}/series/{series}").json()

        def post(count: int, series: str = series) -> httpx.Response:
            return client.post(
                f"{BASE}/series/{series}/entries", json={"list": [{"id": new_id()} for _ in range(count)]}
            )

        # When a batch is one too many, then it is refused, and one that fits is not
        refused = check_refused(post(room + 1), 409, f"list[{room}]")
        assert why in refused["message"]
        assert client.get(f"{BASE}/series/{series}").json() == before
        assert len(client.get(f"{BASE}/series/{series}/preview").json()["next"]) == min(room, 5)
        assert [entry["position"] for entry in post(room).json()["list"]] == list(range(1, room + 1))

        # Then the series is full, and its preview says so
        assert why in check_refused(client.put(entry_path(series, new_id())), 409)["message"]
        check_refused(post(1), 409, "list[0]")
        assert client.get(f"{BASE}/series/{series}/preview").json() == {"next": [], "after": {}}


def test_a_batch_for_a_series_that_is_inactive_or_is_not_there(client: httpx.Client) -> None:
    series = put_series(client)
    assert client.put(f"{BASE}/series/{series}", json={"active": False}).status_code == 200
    batch = {"list": [{"id": new_id()}]}
    refused = check_refused(client.post(f"{BASE}/series/{series}/entries", json=batch), 409, "list[0]")
    assert "not active" in refused["message"]
    assert client.get(f"{BASE}/series/{series}").json()["last_index"] == 0
    for missing in (new_id(), "x", ID[:-1]):
        check_refused(client.post(f"{BASE}/series/{missing}/entries", json=batch), 404)


# previews, methods, credentials -----------------------------------------------------------------------------------


def test_previews_of_what_is_not_there_or_cannot_be_read(subject: Numbered) -> None:
    client = subject.client
    for missing in (new_id(), "x", "preview", "%00"):
        check_refused(client.get(f"{BASE}/series/{missing}/preview"), 404)
    for content in (b"null", b"[]", b"{", b"\xff", b'{"format": "\\ud800%inc%"}', b'{"format": ' + b"[" * 100_000):
        check_refused(client.post(f"{BASE}/series/preview", content=content), 400)
    check_refused(client.put(f"{BASE}/series/preview", json={}), 405)
    for method, path in (("POST", f"{subject.path}/preview"), ("PATCH", f"{BASE}/series/preview")):
        check_refused(client.request(method, path), 405)


def test_a_preview_makes_no_series(client: httpx.Client) -> None:
    # Given the body of a series with its id, when its preview is shown, then there is no such series
    series = new_id()
    shown = client.post(f"{BASE}/series/preview", json={"id": series, "prefix": "P-", "start": 7})
    assert shown.json()["next"][0] == "P-7"
    check_refused(client.get(f"{BASE}/series/{series}"), 404)


def test_batches_and_previews_for_another_company_or_with_too_little(subject: Numbered) -> None:
    # Given a key of another company, one that may only read, and one that may only allocate
    up, other = subject.up, new_id()
    up.run("companies", "create", other)
    stranger = up.json("keys", "create", "--company", other)["key"]
    reader = up.json("keys", "create", "--company", "default", "--scope", "read")["key"]
    writer = up.json("keys", "create", "--company", "default", "--scope", "allocate")["key"]

    # When they post a batch, then the one finds no series and the other is not allowed to
    for key, status in ((stranger, 404), (reader, 403)):
        with up.client(key) as client:
            check_refused(client.post(f"{subject.path}/entries", json={"list": [{"id": new_id()}]}), status)

    # When they ask for previews, then likewise, and who may read gets both
    with up.client(stranger) as client:
        check_refused(client.get(f"{subject.path}/preview"), 404)
    with up.client(writer) as client:
        check_refused(client.get(f"{subject.path}/preview"), 403)
        check_refused(client.post(f"{BASE}/series/preview", json={}), 403)
    with up.client(reader) as client:
        assert client.get(f"{subject.path}/preview").json()["next"][0].endswith("-1/2")
        assert client.post(f"{BASE}/series/preview", json={}).json()["next"][0] == "1"
