"""One model of series beneath all dialects: what is made or issued in one is there in the others, at once.

The server has no worker, unless a test starts one: nothing is settled in between.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from dialects import (
    CREDIT_NOTE_SEQUENCES,
    DOCUMENT_SERIES,
    DREAMAPPLY,
    INVOICE_SEQUENCES,
    INVOICE_SERIES,
    OCTOBAT,
    SEQUENCE,
    SERIES,
    STORNO,
    Dialect,
    Tenant,
    new_document_series,
    new_sequence,
    sequence_id,
    series_id,
)
from stack import SERIATIM, Up, entry_path, list_entries, new_id, put_entry, put_series, running, unsettled, until


@pytest.fixture(scope="module")
def paused_up() -> Iterator[Up]:
    with running(workers=0) as stack:
        yield stack


@pytest.fixture
def tenant(paused_up: Up) -> Iterator[Tenant]:
    with Tenant(paused_up) as made:
        yield made


def settle(up: Up) -> None:
    """Runs a worker until nothing waits for the store."""
    environment = up.directory.environment(up.environment)
    worker = subprocess.Popen([*SERIATIM, "worker"], env=environment, stdin=subprocess.DEVNULL)
    try:
        up.settled()
    finally:
        worker.terminate()
        worker.wait()


# one series in all dialects ---------------------------------------------------------------------------------------


@dataclass
class Seen:
    """How a series is shown: in each dialect, None where it is not listed."""

    sequence: dict[str, Any]
    dreamapply: dict[str, Any] | None
    storno: dict[str, Any] | None
    octobat: dict[str, Any] | None


def look(tenant: Tenant, series: str) -> Seen:
    """A series as all dialects list it. Those that also show it alone must show it so."""
    shown = tenant.sequence.get(f"{SERIES}/{series}").json()
    assert shown in tenant.sequence.get(SERIES).json()["list"]
    by_storno = [one for one in tenant.storno.get(DOCUMENT_SERIES).json() if one["uuid"] == series]
    by_octobat = [
        one
        for path in (INVOICE_SEQUENCES, CREDIT_NOTE_SEQUENCES)
        for one in tenant.octobat.get(path).json()["data"]
        if one["id"] == sequence_id(series)
    ]
    for one in by_octobat:
        assert one == tenant.octobat.get(f"/{one['object']}s/{one['id']}").json()
    by_dreamapply = tenant.dreamapply.get(INVOICE_SERIES).json()
    ordinals = {one["id"]: number for number, one in enumerate(tenant.sequence.get(SERIES).json()["list"], start=1)}
    return Seen(
        sequence=shown,
        dreamapply=by_dreamapply.get(str(ordinals[series])),
        storno=by_storno[0] if by_storno else None,
        octobat=by_octobat[0] if by_octobat else None,
    )


def from_storno(**body: Any) -> Callable[[Tenant], str]:
    return lambda tenant: str(new_document_series(tenant.storno, **body)["uuid"])


def from_octobat(prefix: str, path: str) -> Callable[[Tenant], str]:
    return lambda tenant: series_id(new_sequence(tenant.octobat, prefix, path)["id"])


def from_sequence(**fields: Any) -> Callable[[Tenant], str]:
    return lambda tenant: put_series(tenant.sequence, **fields)


@dataclass(frozen=True)
class Case:
    """A series that is made, and how it must be shown before its first number and after."""

    make: Callable[[Tenant], str]
    kind: str
    prefix: str
    format: str
    codes: tuple[str, str]
    number: int = 1
    more: tuple[tuple[str, Any], ...] = ()


YEAR = time.strftime("%Y", time.gmtime())
CASES = {
    "storno": Case(from_storno(prefix="FAC", kind="invoice"), "invoice", "FAC", "FAC%inc%", ("FAC1", "FAC2")),
    "storno, number": Case(
        from_storno(prefix="P/", kind="proforma", currentNumber=997),
        "proforma",
        "P/",
        "P/%inc%",
        ("P/998", "P/999"),
        998,
    ),
    "storno, percent": Case(
        from_storno(prefix="%inc%", kind="credit_note"), "credit_note", "%inc%", "%%inc%%%inc%", ("%inc%1", "%inc%2")
    ),
    "storno, note": Case(
        from_storno(prefix="D-", kind="delivery_note"), "delivery_note", "D-", "D-%inc%", ("D-1", "D-2")
    ),
    "octobat": Case(from_octobat("AAA-", INVOICE_SEQUENCES), "invoice", "AAA-", "AAA-%inc%", ("AAA-1", "AAA-2")),
    "octobat, credit": Case(
        from_octobat("5% ", CREDIT_NOTE_SEQUENCES), "credit_note", "5% ", "5%% %inc%", ("5% 1", "5% 2")
    ),
    "sequence": Case(
        from_sequence(prefix="%inc%-", padding=4, suffix="/%", start=998, name="Sales", description="d", code="c"),
        "invoice",
        "%inc%-",
        "%%inc%%-%inc%/%%",
        ("%inc%-0998/%", "%inc%-0999/%"),
        998,
        more=(("padding", 4), ("suffix", "/%"), ("start", 998), ("name", "Sales"), ("description", "d"), ("code", "c")),
    ),
    "sequence, bare": Case(from_sequence(), "invoice", "", "%inc%", ("1", "2")),
    "sequence, format": Case(
        from_sequence(format="FY%%-%yearLong%/%incYearly%", padding=3, type="credit_note", chronology="free"),
        "credit_note",
        "FY%-",
        "FY%%-%yearLong%/%incYearly%",
        (f"FY%-{YEAR}/001", f"FY%-{YEAR}/002"),
        more=(("chronology", "free"),),
    ),
    "sequence, marker": Case(
        from_sequence(format="%incYearly%/%yearLong%"),
        "invoice",
        "",
        "%incYearly%/%yearLong%",
        (f"1/{YEAR}", f"2/{YEAR}"),
    ),
    "sequence, own type": Case(from_sequence(type="receipt", prefix="R"), "receipt", "R", "R%inc%", ("R1", "R2")),
}


@pytest.mark.parametrize("name", CASES)
def test_a_series_is_shown_in_every_dialect_that_lists_its_type(tenant: Tenant, name: str) -> None:
    # Given a series that is made in one dialect, behind one of another type
    case = CASES[name]
    put_series(tenant.sequence, type="other")
    series = case.make(tenant)

    # When it is looked at in all of them, before its first number and after
    for issued in (0, 1):
        last = put_entry(tenant.sequence, series) if issued else None
        seen = look(tenant, series)

        # Then the native dialect shows all of it
        expected = {"id": series, "type": case.kind, "format": case.format, "active": True, "default": True}
        expected["prefix"] = "" if "%yearLong%" in case.format else case.prefix
        expected["last_index"] = case.number if issued or case.number > 1 else 0
        assert seen.sequence == seen.sequence | expected | dict(case.more)
        assert seen.sequence.get("last_entry_id") == (last["id"] if last else None)

        # And DreamApply invoices, with the last number, and Octobat invoices and credit notes, with the next
        shown = {"when": f"{last['created_at'][:19]}+00:00", "number": case.codes[0]} if last else None
        invoice = {"id": 2, "name": dict(case.more).get("name", ""), "format": case.format, "last": shown}
        assert seen.dreamapply == (invoice if case.kind == "invoice" else None)
        kinds = {
            "id": sequence_id(series),
            "object": f"{case.kind}_numbering_sequence",
            "prefix": case.prefix,
            "is_default": True,
            "next_number": case.codes[issued],
        }
        assert seen.octobat == (kinds if case.kind in ("invoice", "credit_note") else None)

        # And Storno all types, with both numbers
        assert seen.storno == {
            "id": series,
            "uuid": series,
            "prefix": case.prefix,
            "type": case.kind,
            "currentNumber": case.number - 1 + issued,
            "nextNumber": case.number + issued,
            "active": True,
            "isDefault": True,
            "createdAt": f"{seen.sequence['created_at'][:19]}Z",
            "updatedAt": f"{seen.sequence['updated_at'][:19]}Z",
        }


def test_what_one_dialect_changes_the_others_show(tenant: Tenant) -> None:
    # Given two series of one type, each made in another dialect
    first = series_id(new_sequence(tenant.octobat, "A-")["id"])
    second = new_document_series(tenant.storno, "B-")["uuid"]

    def defaults() -> list[tuple[Any, ...]]:
        return [
            (
                seen.sequence["default"],
                seen.storno and seen.storno["isDefault"],
                seen.octobat and seen.octobat["is_default"],
            )
            for seen in (look(tenant, first), look(tenant, second))
        ]

    # When the default moves in each dialect in turn, then it has moved in all
    assert defaults() == [(True,) * 3, (False,) * 3]
    for _ in range(2):
        assert tenant.storno.post(f"{DOCUMENT_SERIES}/{second}/set-default").status_code == 200
        assert defaults() == [(False,) * 3, (True,) * 3]
        assert tenant.octobat.patch(f"{INVOICE_SEQUENCES}/{sequence_id(first)}/default").status_code == 200
        assert defaults() == [(True,) * 3, (False,) * 3]
        assert tenant.sequence.put(f"{SERIES}/{second}", json={"default": True}).status_code == 200
        assert defaults() == [(False,) * 3, (True,) * 3]
        new_default = new_sequence(tenant.octobat, "C-", is_default="true")
        assert defaults() == [(False,) * 3, (False,) * 3]
        assert tenant.sequence.delete(f"{SERIES}/{series_id(new_default['id'])}").status_code == 204

    # And a changed prefix, a first number and a series that is switched off are changed in all
    assert tenant.octobat.patch(f"{INVOICE_SEQUENCES}/{sequence_id(second)}", data={"prefix": "C-"}).status_code == 200
    change = {"currentNumber": 41, "active": False}
    assert tenant.storno.patch(f"{DOCUMENT_SERIES}/{second}", json=change).status_code == 200
    seen = look(tenant, second)
    assert [seen.sequence[name] for name in ("prefix", "start", "last_index", "active")] == ["C-", 42, 42, False]
    assert seen.octobat is not None
    assert (seen.octobat["prefix"], seen.octobat["next_number"]) == ("C-", "C-42")
    assert seen.dreamapply == {"id": 2, "name": "", "format": "C-%inc%", "last": None}
    assert seen.storno is not None
    assert [seen.storno[name] for name in ("prefix", "nextNumber", "active")] == ["C-", 42, False]
    assert tenant.sequence.put(f"{SERIES}/{first}", json={"suffix": "/S", "padding": 3, "name": "N"}).status_code == 200
    seen = look(tenant, first)
    assert seen.dreamapply == {"id": 1, "name": "N", "format": "A-%inc%/S", "last": None}
    assert seen.octobat is not None
    assert seen.octobat["next_number"] == "A-001/S"

    # And one that is deleted in one is gone from all
    assert tenant.storno.delete(f"{DOCUMENT_SERIES}/{first}").status_code == 204
    SEQUENCE.check_refused(tenant.sequence.get(f"{SERIES}/{first}"), 404)
    OCTOBAT.check_refused(tenant.octobat.get(f"{INVOICE_SEQUENCES}/{sequence_id(first)}"), 404)
    assert set(tenant.dreamapply.get(INVOICE_SERIES).json()) == {"2"}


# at once ----------------------------------------------------------------------------------------------------------


@dataclass
class Told:
    """What all dialects say of a series' last and next number."""

    last_code: str | None
    last_index: int
    last_entry_id: str | None
    current: int
    next_code: str


def told(tenant: Tenant, series: str) -> Told:
    seen = look(tenant, series)
    assert seen.dreamapply is not None
    assert seen.storno is not None
    assert seen.octobat is not None
    assert seen.storno["nextNumber"] == seen.storno["currentNumber"] + 1
    last = seen.dreamapply["last"]
    return Told(
        last_code=last and last["number"],
        last_index=seen.sequence["last_index"],
        last_entry_id=seen.sequence.get("last_entry_id"),
        current=seen.storno["currentNumber"],
        next_code=seen.octobat["next_number"],
    )


def test_every_dialect_tells_of_a_number_at_once_and_the_same_when_it_is_settled(tenant: Tenant, paused_up: Up) -> None:
    # Given the default series of a company, which takes dates in any order, and no worker
    series = put_series(tenant.sequence, format="N-%yearLong%-%incYearly%", padding=2, chronology="free")
    path = f"{SERIES}/{series}"
    assert told(tenant, series) == Told(None, 0, None, 0, f"N-{YEAR}-01")

    # When a number is issued, by the series and by its type
    one = put_entry(tenant.sequence, series)["id"]
    assert told(tenant, series) == Told(f"N-{YEAR}-01", 1, one, 1, f"N-{YEAR}-02")
    by_type = new_id()
    answer = tenant.sequence.put(f"/sequence/v1/entries/{by_type}", params={"type": "invoice"})
    assert answer.status_code == 200
    assert told(tenant, series) == Told(f"N-{YEAR}-02", 2, by_type, 2, f"N-{YEAR}-03")

    # And a batch, then its last number is the last
    batch = [{"id": new_id()} for _ in range(3)]
    assert tenant.sequence.post(f"{path}/entries", json={"list": batch}).status_code == 200
    after_batch = Told(f"N-{YEAR}-05", 5, batch[-1]["id"], 5, f"N-{YEAR}-06")
    assert told(tenant, series) == after_batch

    # And what changes no number changes nothing: a replay, a refusal, a void
    put_entry(tenant.sequence, series, one)
    assert tenant.sequence.put(entry_path(series, one), json={"meta": {"other": "payload"}}).status_code == 409
    assert tenant.sequence.put(entry_path(series, new_id()), json={"date": "no day"}).status_code == 422
    assert (
        tenant.sequence.post(f"{entry_path(series, batch[-1]['id'])}/void", json={"reason": "torn"}).status_code == 200
    )
    assert told(tenant, series) == after_batch

    # And a skip moves what is next, and not what was last
    assert tenant.sequence.post(f"{path}/skip", json={"to": 10, "reason": "moved"}).status_code == 200
    assert told(tenant, series) == Told(f"N-{YEAR}-05", 5, batch[-1]["id"], 9, f"N-{YEAR}-10")
    assert tenant.storno.patch(f"{DOCUMENT_SERIES}/{series}", json={"currentNumber": 11}).status_code == 200
    assert told(tenant, series) == Told(f"N-{YEAR}-05", 5, batch[-1]["id"], 11, f"N-{YEAR}-12")

    # And a document of another year is the last, and today's numbers stay
    old = put_entry(tenant.sequence, series, date="2019-07-01")["id"]
    assert told(tenant, series) == Told("N-2019-01", 1, old, 11, f"N-{YEAR}-12")
    last = put_entry(tenant.sequence, series)["id"]
    assert told(tenant, series) == Told(f"N-{YEAR}-12", 12, last, 12, f"N-{YEAR}-13")

    # When all of it is settled, then every dialect shows the same as before
    seen, entries = look(tenant, series), list_entries(tenant.sequence, series)
    assert not any(entry["sigs"] for entry in entries)
    settle(paused_up)
    settled = list_entries(tenant.sequence, series)
    assert all(entry["sigs"] for entry in settled)
    assert [unsettled(entry) for entry in settled] == [
        unsettled(entry) | void_of(new) for entry, new in zip(entries, settled, strict=True)
    ]
    assert look(tenant, series) == seen

    # And goes on from there
    put_entry(tenant.sequence, series)
    assert told(tenant, series).last_code == f"N-{YEAR}-13"


def void_of(entry: dict[str, Any]) -> dict[str, Any]:
    """What settlement adds to a void: its receipt."""
    return {"void": entry["void"]} if "void" in entry else {}


# without Redis ----------------------------------------------------------------------------------------------------


@contextmanager
def without_redis(up: Up) -> Iterator[None]:
    """Kills the stack's Valkey, while its supervisor, who would start another, is stopped."""
    (server,) = up.pids("valkey-server")
    up.process.send_signal(signal.SIGSTOP)
    try:
        os.kill(server, signal.SIGKILL)
        with httpx.Client(base_url=up.url) as client:
            until(lambda: client.get("/readyz").status_code == 503)
        yield
    finally:
        up.process.send_signal(signal.SIGCONT)
        with httpx.Client(base_url=up.url) as client:
            until(lambda: client.get("/readyz").status_code == 200)


def reads(tenant: Tenant, series: str, entry: str) -> list[tuple[Dialect, httpx.Client, str]]:
    """All that can be read of a series, by whom."""
    sequence = sequence_id(series)
    by_dialect = {
        SEQUENCE: [SERIES, f"{SERIES}/{series}", f"{SERIES}/{series}/preview", entry_path(series, entry)],
        DREAMAPPLY: [INVOICE_SERIES, "/api/v8/invoices/series"],
        STORNO: [DOCUMENT_SERIES, f"{DOCUMENT_SERIES}?type=invoice"],
        OCTOBAT: [
            INVOICE_SEQUENCES,
            f"{INVOICE_SEQUENCES}/?limit=1",
            f"{INVOICE_SEQUENCES}/{sequence}",
            CREDIT_NOTE_SEQUENCES,
        ],
    }
    return [(dialect, tenant.client(dialect), path) for dialect, paths in by_dialect.items() for path in paths]


def test_what_is_settled_is_read_without_redis_and_nothing_is_a_fault(tenant: Tenant, paused_up: Up) -> None:
    # Given a series with settled entries
    series = put_series(tenant.sequence, prefix="A-")
    entry = [put_entry(tenant.sequence, series) for _ in range(3)][-1]["id"]
    unused = new_document_series(tenant.storno, "B-")["uuid"]
    settle(paused_up)
    readable = reads(tenant, series, entry)
    before = [client.get(path).content for _, client, path in readable]

    # When Redis has gone
    with without_redis(paused_up):
        # Then all of it is read from the store, as it was
        for (dialect, client, path), known in zip(readable, before, strict=True):
            answer = client.get(path)
            assert (answer.status_code, answer.content) == (200, known), (dialect.name, path)
        for path in (f"{SERIES}/{series}/entries", f"{SERIES}/{series}/report"):
            SEQUENCE.check_refused(tenant.sequence.get(path), 503)

        # And what needs it is refused for now, in the shape of each dialect, and what is wrong is wrong as ever
        SEQUENCE.check_refused(tenant.sequence.put(entry_path(series, new_id())), 503)
        STORNO.check_refused(tenant.storno.patch(f"{DOCUMENT_SERIES}/{series}", json={"currentNumber": 9}), 503)
        STORNO.check_refused(tenant.storno.delete(f"{DOCUMENT_SERIES}/{series}"), 409)
        STORNO.check_refused(tenant.storno.patch(f"{DOCUMENT_SERIES}/{series}", json={"active": False}), 503)
        OCTOBAT.check_refused(tenant.octobat.get(f"{INVOICE_SEQUENCES}/x"), 404)
        DREAMAPPLY.check_refused(tenant.dreamapply.post(INVOICE_SERIES), 405)

        # And a series that Redis never knew can be made and changed
        assert tenant.storno.patch(f"{DOCUMENT_SERIES}/{unused}", json={"currentNumber": 5}).json()["nextNumber"] == 6
        assert new_sequence(tenant.octobat, "C-")["next_number"] == "C-1"
        assert tenant.storno.delete(f"{DOCUMENT_SERIES}/{unused}").status_code == 204

    # And when it is back, numbers go on
    assert put_entry(tenant.sequence, series)["code"] == "A-4"
    assert told(tenant, series).next_code == "A-5"


def test_what_only_redis_has_is_shown_as_the_store_has_it_or_is_unavailable_without_redis(
    tenant: Tenant, paused_up: Up
) -> None:
    # Given a series with an entry that only Redis has
    series = put_series(tenant.sequence, prefix="A-")
    before = told(tenant, series)
    entry = put_entry(tenant.sequence, series)["id"]
    readable = reads(tenant, series, entry)
    known = [client.get(path).content for _, client, path in readable]

    # When Redis has gone, then series are as the store has them, and nobody says that there is no such entry
    with without_redis(paused_up):
        for dialect, client, path in readable:
            if path == entry_path(series, entry):
                dialect.check_refused(client.get(path), 503)
            else:
                assert client.get(path).status_code == 200, (dialect.name, path)
        assert told(tenant, series) == before

    # And when it is back, so is all of it
    assert [client.get(path).content for _, client, path in readable] == known
    assert put_entry(tenant.sequence, series)["code"] == "A-2"
