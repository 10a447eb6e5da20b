"""What is explained: numbers that were skipped, entries that are void, and the report of both; over real HTTP."""

from __future__ import annotations

import base64
import csv
import io
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from forgery import claims
from stack import Up, entry_path, list_entries, new_id, put_entry, put_series, until


def skip(client: httpx.Client, series: str, to: int, **more: Any) -> httpx.Response:
    return client.post(f"/sequence/v1/series/{series}/skip", json={"to": to, "reason": "printed by hand"} | more)


def void(client: httpx.Client, series: str, entry: str, reason: str = "cancelled") -> httpx.Response:
    return client.post(f"{entry_path(series, entry)}/void", json={"reason": reason})


def report(client: httpx.Client, series: str, **days: str) -> list[dict[str, Any]]:
    answer = client.get(f"/sequence/v1/series/{series}/report", params=days)
    assert answer.status_code == 200, answer.text
    listed: list[dict[str, Any]] = answer.json()["list"]
    return listed


def exported(up: Up, series: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in up.run("export", "--series", series).stdout.splitlines()]


# skips ------------------------------------------------------------------------------------------------------------


def test_a_skip_leaves_an_explained_gap_everywhere(shared_up: Up, client: httpx.Client) -> None:
    # Given a series that stands at 2
    series = put_series(client, prefix="S-", padding=3)
    for _ in range(2):
        put_entry(client, series)

    # When its next number is to be 10
    answer = skip(client, series, 10)

    # Then the answer says what was left out, by whom, when and why
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert (said["counter"], said["period"], said["next"], said["from"], said["to"]) == ("inc", "", 10, 3, 9)
    assert said["reason"] == "printed by hand"
    assert said["actor"].startswith("key ")

    # And the next entry has number 10 at position 3
    entry = put_entry(client, series)
    assert (entry["code"], entry["number"], entry["position"]) == ("S-010", 10, 3)

    # And report, audit log, export and verification all know of it, before settlement and after
    explained = [{name: said[name] for name in ("from", "to", "reason", "actor", "created_at")}]
    line = {"counter": "inc", "period": "", "first": 1, "last": 10, "issued": 3, "voided": 0, "missing": []}
    assert report(client, series) == [line | {"skipped": explained}]
    shared_up.settled()
    assert report(client, series) == [line | {"skipped": explained}]
    lines = exported(shared_up, series)
    assert [one["kind"] for one in lines] == ["series", "entry", "entry", "skip", "entry", "end"]
    receipt = claims(lines[3]["receipt"])
    assert {name: receipt[name] for name in ("kind", "position", "k", "counter", "period", "from", "to")} == {
        "kind": "skip", "position": 2, "k": 1, "counter": "inc", "period": "", "from": 3, "to": 9,
    }  # fmt: skip
    assert receipt["reason"] == "printed by hand"
    assert receipt["actor"] == said["actor"]
    assert shared_up.json("verify", "--series", series)["sound"] is True


def test_a_counter_is_only_raised(client: httpx.Client) -> None:
    # Given a series whose next number is 6
    series = put_series(client, start=5)
    put_entry(client, series)

    # When it is to be lowered, or something is wrong with the request
    for body, field in (
        ({"to": 5}, "to"),
        ({"to": 1}, "to"),
        ({"to": 0}, "to"),
        ({"to": -3}, "to"),
        ({"to": 2**53}, "to"),
        ({"to": None}, "to"),
        ({"to": "9"}, "to"),
        ({"to": 9.5}, "to"),
        ({"to": 9, "reason": ""}, "reason"),
        ({"to": 9, "reason": "  "}, "reason"),
        ({"to": 9, "reason": None}, "reason"),
        ({"to": 9, "reason": "x" * 1025}, "reason"),
        ({"to": 9, "reason": "a\nb"}, "reason"),
        ({"to": 9, "counter": "incYearly"}, "counter"),
        ({"to": 9, "counter": "yearLong"}, "counter"),
        ({"to": 9, "period": "2026"}, "period"),
    ):
        answer = client.post(f"/sequence/v1/series/{series}/skip", json={"reason": "why"} | body)

        # Then it is refused by field, and changes nothing
        assert answer.status_code == 422, (body, answer.text)
        assert set(answer.json()["fields"]) == {field}

    # And what is next already is no skip, however often it is asked for
    for _ in range(2):
        answer = skip(client, series, 6)
        assert answer.status_code == 200
        assert "from" not in answer.json()
    assert put_entry(client, series)["number"] == 6
    assert report(client, series)[0]["skipped"] == []


def test_a_skip_repeated_after_a_lost_answer_is_one_skip(client: httpx.Client) -> None:
    # Given a series, when the same skip is sent twenty times at once
    series = put_series(client)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: skip(client, series, 100), range(20)))

    # Then one of them left something out
    assert [answer.status_code for answer in answers] == [200] * 20
    assert sum("from" in answer.json() for answer in answers) == 1
    assert [(one["from"], one["to"]) for one in report(client, series)[0]["skipped"]] == [(1, 99)]
    assert put_entry(client, series)["number"] == 100


def test_a_skip_that_would_overflow_is_refused_and_the_highest_number_can_be_reached(client: httpx.Client) -> None:
    # Given a series whose codes have at most 4 characters
    series = put_series(client, prefix="A", max_length=4)

    # When the next number is to have four digits, then it is refused
    assert set(skip(client, series, 1000).json()["fields"]) == {"to"}
    assert skip(client, series, 999).status_code == 200
    assert put_entry(client, series)["code"] == "A999"
    assert client.put(entry_path(series, new_id())).status_code == 409

    # And a series without limit counts to 2^53 - 1, and no further
    series = put_series(client)
    assert skip(client, series, 2**53 - 1).status_code == 200
    assert put_entry(client, series)["code"] == "9007199254740991"
    refused = client.put(entry_path(series, new_id()))
    assert refused.status_code == 409
    assert "2^53" in refused.json()["message"]
    assert skip(client, series, 2**53 - 1).status_code == 422


def test_one_of_several_counters_is_raised_in_the_period_of_today(shared_up: Up, client: httpx.Client) -> None:
    # Given a series with two counters, and nothing issued
    series = put_series(client, format="%incYearly%/%yearLong%-%inc%", start=3)

    # When the second is raised, before the first entry
    said = skip(client, series, 50, counter="inc").json()
    assert (said["from"], said["to"]) == (3, 49)

    # Then the first counter begins as it would have
    first = put_entry(client, series)
    assert first["code"] == f"3/{first['date'][:4]}-50"

    # And the first one is raised in this year
    said = skip(client, series, 9, counter="incYearly").json()
    assert (said["period"], said["from"], said["to"]) == (first["date"][:4], 4, 8)
    assert put_entry(client, series)["code"] == f"9/{first['date'][:4]}-51"
    shared_up.settled()
    assert shared_up.json("verify", "--series", series)["sound"] is True
    assert [line["missing"] for line in report(client, series)] == [[], []]


def test_a_skip_fixes_the_numbering_and_is_possible_while_the_series_is_inactive(client: httpx.Client) -> None:
    # Given an inactive series without entries, when a number is skipped
    series = put_series(client, prefix="A-", active=False)
    assert skip(client, series, 5).status_code == 200

    # Then its numbering is fixed, and it cannot be deleted
    path = f"/sequence/v1/series/{series}"
    assert client.put(path, json={"prefix": "B-"}).status_code == 409
    assert client.delete(path).status_code == 409
    assert client.put(path, json={"active": True}).status_code == 200
    assert put_entry(client, series)["code"] == "A-5"


def test_a_skip_of_today_holds_although_the_first_document_is_of_the_past(shared_up: Up, client: httpx.Client) -> None:
    # Given a strict series without entries, of which today's first numbers are left out
    series = put_series(client, format="%incDaily%/%yearLong%%month%%day%")
    said = skip(client, series, 5).json()
    assert (said["from"], said["to"]) == (1, 4)

    # When its first document is of a day that is over, and the next of today
    assert put_entry(client, series, date="2025-12-31")["code"] == "1/20251231"
    today = put_entry(client, series)

    # Then today's number is the one behind those that were left out
    assert today["number"] == 5
    shared_up.settled()
    assert shared_up.json("verify", "--series", series)["sound"] is True


# voids ------------------------------------------------------------------------------------------------------------


def test_a_void_keeps_the_number_and_the_first_reason(shared_up: Up, client: httpx.Client) -> None:
    # Given three entries
    series = put_series(client, prefix="V-")
    ids = [put_entry(client, series, meta={"n": str(number)})["id"] for number in range(3)]

    # When the second is made void, at once and again for another reason
    before = client.get(entry_path(series, ids[1])).json()
    answers = [void(client, series, ids[1], reason) for reason in ("wrong customer", "something else")]

    # Then the answer is the entry with its void, and the first reason stays
    assert [answer.status_code for answer in answers] == [200, 200]
    said = answers[0].json()
    assert said["void"]["reason"] == "wrong customer"
    assert said["void"]["actor"].startswith("key ")
    assert said["void"]["created_at"] >= said["created_at"]
    assert said["updated_at"] >= said["void"]["created_at"]
    kept = ("id", "code", "number", "position", "meta", "created_at", "previous_id")
    assert {name: said[name] for name in kept} == {name: before[name] for name in kept}
    assert answers[1].json()["void"]["reason"] == "wrong customer"

    # And so say a read, a replay and the list, and the next number is the next
    for settled in (False, True):
        if settled:
            shared_up.settled()
        replay = client.put(entry_path(series, ids[1]), json={"meta": {"n": "1"}})
        assert replay.headers["Idempotent-Replayed"] == "true"
        shown = [client.get(entry_path(series, ids[1])).json(), replay.json(), list_entries(client, series)[1]]
        assert [entry["void"]["reason"] for entry in shown] == ["wrong customer"] * 3
        assert not settled or all("sig" in entry["void"] for entry in shown)
        assert ["void" in entry for entry in list_entries(client, series)] == [False, True, False]
    assert claims(shown[0]["void"]["sig"])["voids"] == 2
    assert put_entry(client, series)["code"] == "V-4"


def test_a_void_is_in_the_chain_the_export_and_the_report(shared_up: Up, client: httpx.Client) -> None:
    # Given a settled series, when its first entry is made void
    series = put_series(client, prefix="V-")
    ids = [put_entry(client, series)["id"] for _ in range(2)]
    shared_up.settled()
    assert void(client, series, ids[0]).json()["void"]["reason"] == "cancelled"
    put_entry(client, series)
    shared_up.settled()

    # Then the export holds a signed record of it behind the entry that was last
    lines = exported(shared_up, series)
    assert [(one["kind"], one.get("position")) for one in lines[1:]] == [
        ("entry", 1),
        ("entry", 2),
        ("void", 2),
        ("entry", 3),
        ("end", 3),
    ]
    assert claims(lines[3]["receipt"])["prev"] != claims(lines[4]["receipt"])["prev"]
    assert shared_up.json("verify", "--series", series)["sound"] is True

    # And the spreadsheet says so at the entry, and the report counts it
    rows = list(csv.DictReader(io.StringIO(shared_up.run("export", "--series", series, "--format", "csv").stdout)))
    assert [row["void"] for row in rows if row["kind"] == "entry"] == ["cancelled", "", ""]
    assert [row["voids"] for row in rows if row["kind"] == "void"] == ["1"]
    assert report(client, series)[0]["voided"] == 1


def test_concurrent_voids_of_one_entry_are_one(client: httpx.Client) -> None:
    # Given an entry, when it is made void twenty times at once, each time for another reason
    series = put_series(client)
    entry = put_entry(client, series)["id"]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda number: void(client, series, entry, f"reason {number}"), range(20)))

    # Then all are told the same one
    assert {answer.status_code for answer in answers} == {200}
    assert len({json.dumps(answer.json()["void"]["reason"]) for answer in answers}) == 1
    assert report(client, series)[0]["voided"] == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "reason"),
        ({"reason": ""}, "reason"),
        ({"reason": " "}, "reason"),
        ({"reason": 7}, "reason"),
        ({"reason": "x" * 1025}, "reason"),
        ({"reason": "nul\0"}, "reason"),
        ({"reason": "a", "because": "b"}, "because"),
    ],
)
def test_a_void_needs_a_reason(client: httpx.Client, body: dict[str, Any], field: str) -> None:
    # Given an entry, when a void does not say why, then it is refused and the entry is as it was
    series = put_series(client)
    entry = put_entry(client, series)["id"]
    answer = client.post(f"{entry_path(series, entry)}/void", json=body)
    assert answer.status_code == 422
    assert set(answer.json()["fields"]) == {field}
    assert "void" not in client.get(entry_path(series, entry)).json()


def test_what_is_not_there_cannot_be_void(client: httpx.Client) -> None:
    # Given a series with one entry, when others are made void, then there are none
    series = put_series(client)
    put_entry(client, series)
    for path in (entry_path(series, new_id()), entry_path(new_id(), new_id()), entry_path(series, "no-uuid")):
        assert client.post(f"{path}/void", json={"reason": "why"}).status_code == 404


def test_an_id_that_many_skips_and_voids_surround_is_listed_page_by_page(client: httpx.Client) -> None:
    # Given entries with more skips and voids between them than a page holds, none of them settled for sure
    series = put_series(client)
    ids: list[str] = []
    for number in range(12):
        ids.append(put_entry(client, series)["id"])
        void(client, series, ids[-1])
        skip(client, series, (number + 1) * 10)

    # When the entries are listed in small pages
    listed = list_entries(client, series, limit=3)

    # Then none is missing
    assert [entry["id"] for entry in listed] == ids
    assert all(entry["void"]["reason"] == "cancelled" for entry in listed)


def test_nothing_is_listed_behind_the_last_entry_of_a_series_with_voids(client: httpx.Client) -> None:
    # Given a series whose only entry is void
    series = put_series(client)
    entry = put_entry(client, series)["id"]
    void(client, series, entry)

    # When somebody who has seen that entry asks what is new
    cursor = base64.b64encode(json.dumps({"id": entry, "limit": 20}).encode()).decode()
    answer = client.get(f"/sequence/v1/series/{series}/entries", params={"cursor": cursor})

    # Then that is nothing
    assert (answer.status_code, answer.json()["list"]) == (200, [])


# the report -------------------------------------------------------------------------------------------------------


def test_a_report_of_some_days_counts_what_is_dated_then(shared_up: Up, client: httpx.Client) -> None:
    # Given a free series with entries of three months, one of them void
    series = put_series(client, format="%incMonthly%/%yearLong%%month%", chronology="free")
    days = ["2026-01-31", "2026-02-01", "2026-02-28", "2026-03-01", "2026-02-10"]
    entries = [put_entry(client, series, date=day) for day in days]
    void(client, series, entries[1]["id"])

    # When February is asked for, while it settles and after
    for settled in (False, True):
        if settled:
            shared_up.settled()
        (line,) = report(client, series, **{"from": "2026-02-01", "to": "2026-02-28"})

        # Then it has February's numbers and no others
        assert (line["period"], line["first"], line["last"], line["issued"], line["voided"]) == ("2026-02", 1, 3, 3, 1)
        assert line["missing"] == []
    assert [line["period"] for line in report(client, series)] == ["2026-01", "2026-02", "2026-03"]
    assert [line["period"] for line in report(client, series, **{"from": "2026-03-01"})] == ["2026-03"]
    wrong = client.get(f"/sequence/v1/series/{series}/report", params={"from": "soon", "to": "2026-02-30"})
    assert wrong.status_code == 422
    assert set(wrong.json()["fields"]) == {"from", "to"}


def test_a_report_of_a_series_without_entries_is_empty(client: httpx.Client) -> None:
    assert report(client, put_series(client)) == []
    assert client.get(f"/sequence/v1/series/{new_id()}/report").status_code == 404


def test_voids_and_skips_are_signed_and_logged_with_who_did_them(shared_up: Up, client: httpx.Client) -> None:
    # Given a skip and a void that have been settled
    series = put_series(client)
    entry = put_entry(client, series)["id"]
    void(client, series, entry)
    skip(client, series, 7)
    until(lambda: "sig" in client.get(entry_path(series, entry)).json()["void"])
    shared_up.settled()

    # Then the audit log names both, with the key that did it
    logged = [one for one in shared_up.json("audit-log") if one["detail"].get("series") == series]
    assert [one["action"] for one in logged] == ["void entry", "skip numbers"]
    assert {one["actor"] for one in logged} == {client.get(entry_path(series, entry)).json()["void"]["actor"]}
    assert [one["detail"]["reason"] for one in logged] == ["cancelled", "printed by hand"]
