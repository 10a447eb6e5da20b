"""The Storno dialect, line by line. Its sample is in test_seeds, refusals that all dialects have in test_refusals."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from dialects import DOCUMENT_SERIES, STORNO, Tenant, new_document_series
from faketime import Clock
from stack import Up, new_id, put_entry, put_series, until

TYPES = ("invoice", "proforma", "credit_note", "delivery_note")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
LARGEST = 2**53 - 2


def listed(tenant: Tenant, **params: str) -> list[dict[str, Any]]:
    answer = tenant.storno.get(DOCUMENT_SERIES, params=params)
    assert answer.status_code == 200, answer.text
    content: list[dict[str, Any]] = answer.json()
    return content


def shown(tenant: Tenant, series: str) -> dict[str, Any]:
    (found,) = [one for one in listed(tenant) if one["uuid"] == series]
    return found


def patch(tenant: Tenant, series: str, **change: Any) -> httpx.Response:
    return tenant.storno.patch(f"{DOCUMENT_SERIES}/{series}", json=change)


def patched(tenant: Tenant, series: str, **change: Any) -> dict[str, Any]:
    """Changes a series, checks that the answer is how it is listed, and returns it."""
    answer = patch(tenant, series, **change)
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    assert content == shown(tenant, series)
    return content


def set_default(tenant: Tenant, series: str) -> httpx.Response:
    return tenant.storno.post(f"{DOCUMENT_SERIES}/{series}/set-default")


def prefixes(series: list[dict[str, Any]]) -> list[str]:
    return [one["prefix"] for one in series]


# listing ----------------------------------------------------------------------------------------------------------


def test_a_company_without_series_has_an_empty_array(tenant: Tenant) -> None:
    assert listed(tenant) == []
    assert listed(tenant, type="invoice") == []


def test_active_series_come_first_then_the_prefix_decides(tenant: Tenant) -> None:
    # Given series in no order, some of them not active, whose prefixes differ in case and length, one of them twice
    made = {}
    for prefix, active in (("b", True), ("FAC2", False), ("FAC", True), ("A", False), ("FAC10", True), ("É", True)):
        made[prefix] = new_document_series(tenant.storno, prefix, active=active)["uuid"]
    new_document_series(tenant.storno, "FAC", "proforma", active=True)

    # When they are listed, then active ones come first, each part by the characters of its prefixes
    assert prefixes(listed(tenant)) == ["FAC", "FAC", "FAC10", "b", "É", "A", "FAC2"]

    # And one that changes sides is listed there at once
    patched(tenant, made["A"], active=True)
    patched(tenant, made["b"], active=False)
    assert prefixes(listed(tenant, type="invoice")) == ["A", "FAC", "FAC10", "É", "FAC2", "b"]


def test_a_list_can_be_of_one_type(tenant: Tenant) -> None:
    # Given a series of each type, and one of a type that only another dialect makes
    for kind in TYPES:
        new_document_series(tenant.storno, f"{kind}-", kind)
    put_series(tenant.sequence, prefix="receipt-", type="receipt")

    # Then each type can be asked for, all are in the whole list, and no other type can be asked for
    for kind in TYPES:
        assert [(one["type"], one["prefix"]) for one in listed(tenant, type=kind)] == [(kind, f"{kind}-")]
    assert {one["type"] for one in listed(tenant)} == {*TYPES, "receipt"}
    for wrong in ("receipt", "INVOICE", "invoice ", "invoices", "", "invoice,proforma", "\0", "é"):
        answer = tenant.storno.get(DOCUMENT_SERIES, params={"type": wrong})
        STORNO.check_refused(answer, 422, "type")


# creating ---------------------------------------------------------------------------------------------------------


def test_a_series_is_created_as_it_is_listed(tenant: Tenant) -> None:
    # Given the whole body, and the least one
    whole = tenant.storno.post(
        DOCUMENT_SERIES, json={"prefix": "FAC", "type": "invoice", "currentNumber": 245, "active": False}
    )
    least = tenant.storno.post(DOCUMENT_SERIES, json={"prefix": "PRO 5%/", "type": "proforma"})

    # Then each answer has all fields, an id of its own that is there twice, and is what is listed
    for answer in (whole, least):
        one = answer.json()
        assert answer.status_code == 201
        assert one["id"] == one["uuid"]
        assert TIME.fullmatch(one["createdAt"])
        assert one["updatedAt"] == one["createdAt"]
        assert one == shown(tenant, one["uuid"])
    same = ("type", "prefix", "currentNumber", "nextNumber", "active", "isDefault")
    assert [whole.json()[name] for name in same] == ["invoice", "FAC", 245, 246, False, True]
    assert [least.json()[name] for name in same] == ["proforma", "PRO 5%/", 0, 1, True, True]

    # And its codes are the prefix and the number
    assert put_entry(tenant.sequence, least.json()["uuid"])["code"] == "PRO 5%/1"
    patched(tenant, whole.json()["uuid"], active=True)
    assert put_entry(tenant.sequence, whole.json()["uuid"])["code"] == "FAC246"


WRONG_BODIES: list[tuple[dict[str, Any], set[str]]] = [
    ({}, {"prefix", "type"}),
    ({"prefix": "", "type": ""}, {"prefix", "type"}),
    ({"prefix": None, "type": None}, {"prefix", "type"}),
    ({"prefix": "A"}, {"type"}),
    ({"type": "invoice"}, {"prefix"}),
    ({"prefix": "A", "type": "receipt"}, {"type"}),
    ({"prefix": "A", "type": "Invoice"}, {"type"}),
    ({"prefix": "A", "type": "invoice", "currentNumber": -1}, {"currentNumber"}),
    ({"prefix": "A", "type": "invoice", "currentNumber": LARGEST + 1}, {"currentNumber"}),
    ({"prefix": "A", "type": "invoice", "currentNumber": 10**40}, {"currentNumber"}),
    ({"prefix": "A", "type": "invoice", "currentNumber": "1"}, {"currentNumber"}),
    ({"prefix": "A", "type": "invoice", "currentNumber": 1.5}, {"currentNumber"}),
    ({"prefix": "A", "type": "invoice", "currentNumber": True}, {"currentNumber"}),
    ({"prefix": "A", "type": "invoice", "active": 1}, {"active"}),
    ({"prefix": "A", "type": "invoice", "active": "true"}, {"active"}),
    ({"prefix": 5, "type": ["invoice"]}, {"prefix", "type"}),
    ({"prefix": "A" * 65, "type": "invoice"}, {"prefix"}),
    ({"prefix": "A\n", "type": "invoice"}, {"prefix"}),
    ({"prefix": "A", "type": "invoice", "next": 5}, {"next"}),
]


@pytest.mark.parametrize(("body", "fields"), WRONG_BODIES)
def test_a_wrong_body_names_what_is_wrong_and_creates_nothing(
    tenant: Tenant, body: dict[str, Any], fields: set[str]
) -> None:
    STORNO.check_refused(tenant.storno.post(DOCUMENT_SERIES, json=body), 422, *fields)
    assert listed(tenant) == []


def test_a_prefix_is_that_of_one_series_of_a_company_and_type(tenant: Tenant, common_up: Up) -> None:
    # Given a series of this dialect, one of another with a suffix, and one with a format
    first = new_document_series(tenant.storno, "FAC")["uuid"]
    put_series(tenant.sequence, prefix="SUF-", suffix="/X", padding=3)
    put_series(tenant.sequence, format="FMT-%yearLong%-%incYearly%")

    # When another of the same company and type is to have the prefix, then it is refused
    for taken in ("FAC", "SUF-", "FMT-"):
        refused = tenant.storno.post(DOCUMENT_SERIES, json={"prefix": taken, "type": "invoice"})
        STORNO.check_refused(refused, 422, "prefix")

    # And prefixes that are near, another type and another company may
    for prefix, kind in (("fac", "invoice"), ("FAC-", "invoice"), ("FA", "invoice"), ("FAC", "proforma")):
        new_document_series(tenant.storno, prefix, kind)
    with Tenant(common_up) as other:
        new_document_series(other.storno, "FAC")

    # And the rule binds this dialect alone; a prefix is free again when its series is gone
    put_series(tenant.sequence, prefix="FAC")
    duplicates = [one["uuid"] for one in listed(tenant, type="invoice") if one["prefix"] == "FAC"]
    assert len(duplicates) == 2
    for series in duplicates:
        STORNO.check_refused(
            tenant.storno.post(DOCUMENT_SERIES, json={"prefix": "FAC", "type": "invoice"}), 422, "prefix"
        )
        assert tenant.storno.delete(f"{DOCUMENT_SERIES}/{series}").status_code == 204
    assert new_document_series(tenant.storno, "FAC")["uuid"] != first


def test_of_many_who_want_a_prefix_at_once_one_gets_it(tenant: Tenant) -> None:
    # Given sixteen threads, each of which creates the same series, all at the same moment, three times over
    ready = threading.Barrier(16)

    def create(kind: str) -> httpx.Response:
        ready.wait()
        return tenant.storno.post(DOCUMENT_SERIES, json={"prefix": "FAC", "type": kind})

    with ThreadPoolExecutor(16) as pool:
        for kind in ("invoice", "proforma", "credit_note"):
            answers = list(pool.map(create, [kind] * 16))

            # Then one of them has it, and the others are told that the prefix is taken
            (won,) = [answer.json() for answer in answers if answer.status_code == 201]
            for answer in answers:
                if answer.status_code != 201:
                    STORNO.check_refused(answer, 422, "prefix")
            assert listed(tenant, type=kind) == [won]
            assert won["isDefault"] is True


# changing ---------------------------------------------------------------------------------------------------------


def test_an_unused_series_is_set_up_and_down(tenant: Tenant) -> None:
    # Given a series without entries
    series = new_document_series(tenant.storno, "A-", currentNumber=245)["uuid"]

    # When its number is set, up, down, to what it is and back to nothing
    for number in (246, 3, 3, 0, LARGEST, 11):
        after = patched(tenant, series, currentNumber=number)

        # Then that is its number, and nothing was skipped for it
        assert (after["currentNumber"], after["nextNumber"]) == (number, number + 1)
    assert report(tenant, series) == []
    assert put_entry(tenant.sequence, series)["code"] == "A-12"
    assert report(tenant, series)[0]["missing"] == []


def report(tenant: Tenant, series: str) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = tenant.sequence.get(f"/sequence/v1/series/{series}/report").json()["list"]
    return lines


def test_to_raise_the_number_of_a_used_series_is_an_explained_skip(tenant: Tenant) -> None:
    # Given a series with two entries
    series = new_document_series(tenant.storno, "A-", currentNumber=10)["uuid"]
    for code in ("A-11", "A-12"):
        assert put_entry(tenant.sequence, series)["code"] == code

    # When its number is raised, then the next one follows that, and the series is the same otherwise
    before = shown(tenant, series)
    assert patched(tenant, series, currentNumber=20) == before | {"currentNumber": 20, "nextNumber": 21}
    assert put_entry(tenant.sequence, series)["code"] == "A-21"

    # And what was left out is explained
    (line,) = report(tenant, series)
    (skip,) = line["skipped"]
    assert (skip["from"], skip["to"]) == (13, 20)
    assert "currentNumber" in skip["reason"]
    assert skip["actor"].startswith("key ")
    assert line["missing"] == []
    assert (line["first"], line["last"], line["issued"]) == (11, 21, 3)
    tenant.up.settled()
    assert tenant.up.json("verify", "--series", series)["sound"] is True


def test_the_number_of_a_used_series_is_not_lowered(tenant: Tenant) -> None:
    # Given a series with an entry, and later one whose number was raised since
    series = new_document_series(tenant.storno, "A-", currentNumber=4)["uuid"]
    put_entry(tenant.sequence, series)
    for current in (5, 9):
        before = patched(tenant, series, currentNumber=current)

        # When its number is lowered, alone or among other things, then it is refused, and all is as before
        for lower in (current - 1, 1, 0):
            STORNO.check_refused(patch(tenant, series, currentNumber=lower), 422, "currentNumber")
            STORNO.check_refused(patch(tenant, series, currentNumber=lower, active=False), 422, "currentNumber")
        assert shown(tenant, series) == before
    assert put_entry(tenant.sequence, series)["code"] == "A-10"


WRONG_CHANGES: list[tuple[dict[str, Any], set[str]]] = [
    ({}, {"currentNumber"}),
    ({"currentNumber": None, "active": None}, {"currentNumber"}),
    ({"currentNumber": -1}, {"currentNumber"}),
    ({"currentNumber": -1, "active": False}, {"currentNumber"}),
    ({"currentNumber": LARGEST + 1}, {"currentNumber"}),
    ({"currentNumber": "5"}, {"currentNumber"}),
    ({"currentNumber": 5.5, "active": "no"}, {"currentNumber", "active"}),
    ({"prefix": "B"}, {"prefix"}),
    ({"prefix": "A"}, {"prefix"}),
    ({"prefix": None}, {"prefix"}),
    ({"type": "invoice"}, {"type"}),
    ({"prefix": "B", "type": "proforma", "active": False}, {"prefix", "type"}),
    ({"isDefault": True}, {"isDefault"}),
]


def test_a_wrong_change_names_what_is_wrong_and_changes_nothing(tenant: Tenant) -> None:
    # Given an unused series, and one with an entry
    for prefix in ("A", "U"):
        before = new_document_series(tenant.storno, prefix)
        if prefix == "U":
            put_entry(tenant.sequence, before["uuid"])
            before |= {"currentNumber": 1, "nextNumber": 2}
        for change, fields in WRONG_CHANGES:
            STORNO.check_refused(patch(tenant, before["uuid"], **change), 422, *fields)
        assert shown(tenant, before["uuid"]) == before


def test_a_number_that_the_series_cannot_write_is_refused_as_current_number(tenant: Tenant) -> None:
    # Given a series of another dialect whose codes may have five characters
    series = put_series(tenant.sequence, prefix="ML-", max_length=5)

    # When it is to go on with three digits, before its first entry and after it, then the field of here is named
    for used in (False, True):
        if used:
            put_entry(tenant.sequence, series)
        message = STORNO.check_refused(patch(tenant, series, currentNumber=99), 422, "currentNumber")
        assert "max_length" in message
        assert patched(tenant, series, currentNumber=98 if used else 5)["nextNumber"] == (99 if used else 6)


def test_the_number_is_raised_while_others_take_numbers(tenant: Tenant) -> None:
    # Given a series that numbers are taken from
    series = new_document_series(tenant.storno, "A-")["uuid"]
    put_entry(tenant.sequence, series)
    done = threading.Event()

    def take() -> list[int]:
        taken = []
        while not done.is_set():
            taken.append(put_entry(tenant.sequence, series)["number"])
        return taken

    # When its number is raised again and again, by a lot, and by so little that it comes too late
    with ThreadPoolExecutor(2) as pool:
        taking = [pool.submit(take) for _ in range(2)]
        try:
            for ahead in (1, 2, 100) * 10:
                answer = patch(tenant, series, currentNumber=shown(tenant, series)["currentNumber"] + ahead)
                if answer.status_code != 200:
                    STORNO.check_refused(answer, 422, "currentNumber")
        finally:
            done.set()
        taken = sorted(number for one in taking for number in one.result())

    # Then every number is taken, or skipped with a reason, once
    (line,) = report(tenant, series)
    skipped = [number for skip in line["skipped"] for number in range(skip["from"], skip["to"] + 1)]
    assert skipped
    assert line["missing"] == []
    assert sorted([1, *taken, *skipped]) == list(range(1, shown(tenant, series)["nextNumber"]))


def test_an_inactive_series_issues_nothing_until_it_is_active_again(tenant: Tenant) -> None:
    # Given a series that is made inactive
    series = new_document_series(tenant.storno, "A-")["uuid"]
    put_entry(tenant.sequence, series)
    before = shown(tenant, series)
    after = patched(tenant, series, active=False)
    assert after == before | {"active": False, "updatedAt": after["updatedAt"]}
    path = f"/sequence/v1/series/{series}/entries/{new_id()}"
    assert tenant.sequence.put(path).status_code == 409

    # When its number is raised and it is made active, in one request, then it issues the number after that
    after = patched(tenant, series, active=True, currentNumber=7)
    assert (after["active"], after["nextNumber"]) == (True, 8)
    assert tenant.sequence.put(path).json()["code"] == "A-8"


# the default ------------------------------------------------------------------------------------------------------


def defaults(tenant: Tenant, kind: str) -> list[str]:
    return [one["prefix"] for one in listed(tenant, type=kind) if one["isDefault"]]


def test_the_first_series_of_a_type_is_its_default_until_another_is_set(tenant: Tenant) -> None:
    # Given three series of a type, and one of another
    made = {prefix: new_document_series(tenant.storno, prefix) for prefix in ("A", "B", "C")}
    new_document_series(tenant.storno, "P", "proforma")
    assert defaults(tenant, "invoice") == ["A"]

    # When another is made the default, again and again, then it is the only one, and the answer shows it
    for prefix in ("C", "C", "A", "B"):
        answer = set_default(tenant, made[prefix]["uuid"])
        assert answer.status_code == 200
        assert answer.json() == shown(tenant, made[prefix]["uuid"])
        assert answer.json()["isDefault"] is True
        assert defaults(tenant, "invoice") == [prefix]
    assert defaults(tenant, "proforma") == ["P"]

    # And numbers by type come from it
    answer = tenant.sequence.put(f"/sequence/v1/entries/{new_id()}", params={"type": "invoice"})
    assert answer.json()["code"] == "B1"


def test_there_is_exactly_one_default_while_many_set_it(tenant: Tenant) -> None:
    # Given four series
    made = [new_document_series(tenant.storno, prefix)["uuid"] for prefix in "ABCD"]
    done = threading.Event()

    def look() -> set[int]:
        seen = set()
        while not done.is_set():
            seen.add(len(defaults(tenant, "invoice")))
        return seen

    # When each is made the default by threads of its own, all at once, and others look
    with ThreadPoolExecutor(6) as pool:
        looking = [pool.submit(look) for _ in range(2)]
        try:
            answers = list(pool.map(lambda number: set_default(tenant, made[number % 4]), range(24)))
        finally:
            done.set()

        # Then every request is answered, and nobody has ever seen none or two
        assert {answer.status_code for answer in answers} == {200}
        assert [one.result() for one in looking] == [{1}, {1}]


# deleting ---------------------------------------------------------------------------------------------------------


def test_a_series_without_entries_is_deleted_and_one_with_entries_is_kept(tenant: Tenant) -> None:
    # Given an unused series, and one with an entry
    unused, used = (new_document_series(tenant.storno, prefix)["uuid"] for prefix in ("A", "B"))
    put_entry(tenant.sequence, used)
    before = shown(tenant, used)

    # When both are to be deleted
    gone = tenant.storno.delete(f"{DOCUMENT_SERIES}/{unused}")
    kept = tenant.storno.delete(f"{DOCUMENT_SERIES}/{used}")

    # Then one is gone, with an answer that has no body, and the other is as it was
    assert (gone.status_code, gone.content) == (204, b"")
    assert "Content-Type" not in gone.headers
    STORNO.check_refused(kept, 409)
    assert listed(tenant) == [before]
    for answer in (tenant.storno.delete(f"{DOCUMENT_SERIES}/{unused}"), patch(tenant, unused, active=True)):
        STORNO.check_refused(answer, 404)


# companies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("series", ["another company's", "unknown", "malformed"])
def test_a_series_that_this_company_does_not_have(tenant: Tenant, common_up: Up, series: str) -> None:
    # Given an id of no series of this company
    with Tenant(common_up) as other:
        theirs = new_document_series(other.storno, "A")
        named = {"another company's": theirs["uuid"], "unknown": new_id(), "malformed": "1"}[series]

        # When everything is tried with it, then there is no such series
        path = f"{DOCUMENT_SERIES}/{named}"
        for answer in (
            patch(tenant, named, active=False),
            patch(tenant, named, currentNumber=8),
            tenant.storno.delete(path),
            set_default(tenant, named),
        ):
            STORNO.check_refused(answer, 404)

        # And nothing has happened to the other's
        assert listed(other) == [theirs]


def test_the_company_must_be_named_and_be_the_keys(tenant: Tenant, common_up: Up) -> None:
    # Given a company of another key, and headers that name no company
    client = tenant.nobody()
    with Tenant(common_up) as other:
        for named in (None, "", "x", other.company, new_id(), f"{{{tenant.company}}}", tenant.company[:-1]):
            headers = {"Authorization": f"Bearer {tenant.key}"} | ({} if named is None else {"X-Company": named})

            # Then nothing can be done, whatever else is wrong
            STORNO.check_refused(client.get(DOCUMENT_SERIES, headers=headers), 403)
            STORNO.check_refused(client.post(DOCUMENT_SERIES, headers=headers, content=b"{"), 403)
            STORNO.check_refused(client.delete(f"{DOCUMENT_SERIES}/{new_id()}", headers=headers), 403)

    # And without a key, that is what is wrong
    STORNO.check_refused(client.get(DOCUMENT_SERIES), 401)
    STORNO.check_refused(client.get(DOCUMENT_SERIES, headers={"X-Company": tenant.company}), 401)


# today's period ---------------------------------------------------------------------------------------------------


@pytest.fixture
def timed(clocked_up: tuple[Up, Clock]) -> Iterator[Tenant]:
    with Tenant(clocked_up[0]) as made:
        yield made


def numbers(tenant: Tenant) -> dict[str, tuple[int, int]]:
    return {one["prefix"]: (one["currentNumber"], one["nextNumber"]) for one in listed(tenant)}


def test_numbers_are_those_of_todays_period(timed: Tenant, clocked_up: tuple[Up, Clock]) -> None:
    def at(moment: str) -> None:
        clocked_up[1].stop_at(moment)
        until(lambda: timed.sequence.get("/readyz").status_code == 200)

    # Given a yearly, a monthly and a daily series, one of a fiscal year in its zone, one that never begins again, and
    # one with two counters, the first of which does
    at("2025-03-30 12:00:00")
    formats: dict[str, dict[str, Any]] = {
        "Y-": {"format": "Y-%yearLong%-%incYearly%", "start": 998},
        "M-": {"format": "M-%yearLong%%month%-%incMonthly%"},
        "D-": {"format": "D-%yearLong%%month%%day%-%incDaily%"},
        "F-": {"format": "F-%fyLong%-%incYearly%", "fiscal_year_start": "04-01", "timezone": "Asia/Kolkata"},
        "I-": {"format": "I-%inc%"},
        "X-": {"format": "X-%yearLong%-%incYearly%/%inc%"},
    }
    series = {prefix: put_series(timed.sequence, **fields, chronology="free") for prefix, fields in formats.items()}
    assert numbers(timed) == {"D-": (0, 1), "F-": (0, 1), "I-": (0, 1), "M-": (0, 1), "X-": (0, 1), "Y-": (997, 998)}

    # When each issues two numbers
    for one in series.values():
        for _ in range(2):
            put_entry(timed.sequence, one)
    assert numbers(timed) == {"D-": (2, 3), "F-": (2, 3), "I-": (2, 3), "M-": (2, 3), "X-": (2, 3), "Y-": (999, 1000)}

    # Then each day, month and year shows its own, without any further number
    at("2025-03-31 18:29:59")
    assert numbers(timed) == {"D-": (0, 1), "F-": (2, 3), "I-": (2, 3), "M-": (2, 3), "X-": (2, 3), "Y-": (999, 1000)}
    at("2025-03-31 18:30:00")  # midnight in India
    assert numbers(timed) == {"D-": (0, 1), "F-": (0, 1), "I-": (2, 3), "M-": (2, 3), "X-": (2, 3), "Y-": (999, 1000)}
    at("2026-01-01 00:00:00")
    assert numbers(timed) == {"D-": (0, 1), "F-": (0, 1), "I-": (2, 3), "M-": (0, 1), "X-": (0, 1), "Y-": (0, 1)}

    # And a document of the past does not move today's, nor does a raised number of today move the past's
    for prefix in ("Y-", "M-", "D-"):
        put_entry(timed.sequence, series[prefix], date="2025-03-30")
        assert numbers(timed)[prefix] == (0, 1)
        assert patch(timed, series[prefix], currentNumber=7).json()["nextNumber"] == 8
    codes = [put_entry(timed.sequence, series[prefix], date="2025-03-30")["code"] for prefix in ("Y-", "M-", "D-")]
    assert codes == ["Y-2025-1001", "M-202503-4", "D-20250330-4"]
    assert put_entry(timed.sequence, series["M-"])["code"] == "M-202601-8"
