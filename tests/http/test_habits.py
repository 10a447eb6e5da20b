"""What existing programs do with HTTP, over a plain socket where no library does it: every dialect bears it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import pytest

from dialects import (
    CREDIT_NOTE_SEQUENCES,
    DIALECTS,
    DOCUMENT_SERIES,
    DREAMAPPLY,
    INVOICE_SEQUENCES,
    INVOICE_SERIES,
    OCTOBAT,
    SEQUENCE,
    SERIES,
    STORNO,
    UNKNOWN_ID,
    Dialect,
    Tenant,
    new_document_series,
    new_sequence,
    sequence_id,
)
from plain_socket import Answer, Wire, request
from seriatim.http.dreamapply import DreamApply
from seriatim.http.octobat import Octobat
from seriatim.http.sequence import Sequence
from seriatim.http.storno import Storno
from stack import entry_path, new_id, put_entry, put_series

MUCH = b"x" * 100_000
"""More than a server reads ahead of what it is asked for."""
every_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda one: one.name)


@pytest.fixture
def wire(tenant: Tenant) -> Iterator[Wire]:
    with Wire(tenant.up.url) as made:
        yield made


def said(dialect: Dialect, tenant: Tenant, **more: str) -> dict[str, str]:
    return dialect.headers(tenant.key, tenant.company) | {name.replace("_", "-"): value for name, value in more.items()}


def assert_in_use(wire: Wire, tenant: Tenant) -> None:
    """Checks that a connection answers the next request, of every dialect."""
    for dialect in DIALECTS:
        name = f"next-{dialect.name}"
        answer = wire.ask("GET", dialect.lists, said(dialect, tenant, X_Request_Id=name))
        assert (answer.status, answer.headers["x-request-id"]) == (200, name)


def writes(tenant: Tenant) -> list[tuple[Dialect, str, str, bytes, int]]:
    """Requests with bodies that are read, and their statuses."""
    series = put_series(tenant.sequence, type="other")
    return [
        (SEQUENCE, "PUT", entry_path(series, new_id()), b'{"meta": {"k": "v"}}', 200),
        (STORNO, "POST", DOCUMENT_SERIES, b'{"prefix": "S-", "type": "proforma"}', 201),
        (OCTOBAT, "POST", INVOICE_SEQUENCES, b"prefix=O-", 200),
        (OCTOBAT, "GET", f"{CREDIT_NOTE_SEQUENCES}/", b"limit=5", 200),
    ]


# bodies that are announced, or not read ---------------------------------------------------------------------------


def test_a_body_that_waits_to_be_asked_for(tenant: Tenant, wire: Wire) -> None:
    # Given requests whose bodies are only sent when the server wants them
    for dialect, method, path, body, status in writes(tenant):
        whole = request(method, path, said(dialect, tenant, Expect="100-continue"), body)
        wire.send(whole[: -len(body)])

        # Then it wants them, and answers
        assert wire.answer().status == 100
        wire.send(body)
        assert wire.answer().status == status
    assert_in_use(wire, tenant)


def test_a_body_that_nobody_asks_for(tenant: Tenant, wire: Wire) -> None:
    # Given the same requests with a wrong key
    for dialect, method, path, body, _ in writes(tenant):
        headers = said(dialect, tenant, Expect="100-continue") | {"Authorization": dialect.credentials("x")}
        wire.send(request(method, path, headers, body)[: -len(body)])

        # Then they are refused at once, and the connection goes on when the client sends the body all the same
        assert wire.answer().status == 401
        wire.send(body)
    assert_in_use(wire, tenant)


def refusals() -> list[tuple[str, Dialect, str, str, dict[str, str], int]]:
    """Requests that are refused without a look at their body, or after one."""
    wrong = {"Authorization": "none"}
    nothing = sequence_id(UNKNOWN_ID)
    return [
        ("wrong key", SEQUENCE, "PUT", entry_path(UNKNOWN_ID, UNKNOWN_ID), wrong, 401),
        ("wrong key", DREAMAPPLY, "GET", INVOICE_SERIES, wrong, 401),
        ("wrong key", STORNO, "POST", DOCUMENT_SERIES, wrong, 401),
        ("wrong key", OCTOBAT, "POST", INVOICE_SEQUENCES, wrong, 401),
        ("wrong company", STORNO, "POST", DOCUMENT_SERIES, {"X-Company": UNKNOWN_ID}, 403),
        ("unknown path", SEQUENCE, "POST", "/sequence/v1/x", {}, 404),
        ("unknown path", DREAMAPPLY, "POST", "/api/v9/x", {}, 404),
        ("unknown path", STORNO, "PUT", "/api/v1/x", {}, 404),
        ("unknown path", OCTOBAT, "PATCH", f"{INVOICE_SEQUENCES}/x/y", {}, 404),
        ("unknown object", STORNO, "DELETE", f"{DOCUMENT_SERIES}/{UNKNOWN_ID}", {}, 404),
        ("unknown object", OCTOBAT, "PATCH", f"{INVOICE_SEQUENCES}/{nothing}", {}, 404),
        ("wrong method", SEQUENCE, "PATCH", SERIES, {}, 405),
        ("wrong method", DREAMAPPLY, "POST", INVOICE_SERIES, {}, 405),
        ("wrong method", STORNO, "PUT", DOCUMENT_SERIES, {}, 405),
        ("wrong method", OCTOBAT, "DELETE", f"{INVOICE_SEQUENCES}/{nothing}/", {}, 405),
        ("malformed", SEQUENCE, "PUT", f"{SERIES}/{UNKNOWN_ID}", {}, 400),
        ("malformed", STORNO, "POST", DOCUMENT_SERIES, {}, 400),
        ("wrong", OCTOBAT, "POST", INVOICE_SEQUENCES, {}, 422),
        ("not read", DREAMAPPLY, "GET", INVOICE_SERIES, {}, 200),
        ("not read", STORNO, "GET", DOCUMENT_SERIES, {}, 200),
        ("not read", SEQUENCE, "GET", SERIES, {}, 200),
    ]


class Sends(Protocol):
    def __call__(self, wire: Wire, method: str, path: str, headers: dict[str, str]) -> Answer: ...


def send_whole(wire: Wire, method: str, path: str, headers: dict[str, str]) -> Answer:
    return wire.ask(method, path, headers, MUCH)


def send_chunked(wire: Wire, method: str, path: str, headers: dict[str, str]) -> Answer:
    chunks = b"".join(b"2710\r\n" + MUCH[at : at + 10_000] + b"\r\n" for at in range(0, len(MUCH), 10_000))
    wire.send(request(method, path, headers | {"Transfer-Encoding": "chunked"}) + chunks + b"0\r\n\r\n")
    return wire.answer()


@pytest.mark.parametrize("send", [send_whole, send_chunked])
def test_a_connection_goes_on_after_any_answer_whether_the_body_was_read_or_not(
    tenant: Tenant, wire: Wire, send: Sends
) -> None:
    # Given requests with long bodies that are refused for all kinds of reasons, all over one connection
    for why, dialect, method, path, headers, status in refusals():
        answer = send(wire, method, path, said(dialect, tenant) | headers)

        # Then each is refused, and the connection answers the next request
        assert answer.status == status, (why, answer.body[:300])
        assert "connection" not in answer.headers
        assert wire.ask("GET", dialect.lists, said(dialect, tenant)).status == 200
    assert_in_use(wire, tenant)


@pytest.mark.parametrize(
    ("dialect", "method", "path"),
    [
        (SEQUENCE, "PUT", f"{SERIES}/{UNKNOWN_ID}"),
        (STORNO, "POST", DOCUMENT_SERIES),
        (OCTOBAT, "POST", INVOICE_SEQUENCES),
        (OCTOBAT, "GET", INVOICE_SEQUENCES),
    ],
)
def test_a_connection_goes_on_after_a_body_that_is_too_large(
    tenant: Tenant, wire: Wire, dialect: Dialect, method: str, path: str
) -> None:
    wire.send(request(method, path, said(dialect, tenant), b" " * (256 * 1024 + 1)))
    assert wire.answer().status == 413
    assert_in_use(wire, tenant)


# many requests, in pieces of any size -----------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order(tenant: Tenant, wire: Wire) -> None:
    # Given requests of all dialects, good ones and bad ones, with bodies and without, sent without waiting
    sent: list[tuple[bytes, int]] = []
    for dialect, method, path, body, status in writes(tenant):
        sent.append((request(method, path, said(dialect, tenant, X_Request_Id=f"r{len(sent)}"), body), status))
    for _, dialect, method, path, headers, status in refusals():
        named = said(dialect, tenant, X_Request_Id=f"r{len(sent)}") | headers
        sent.append((request(method, path, named, b"x" * 100), status))
    for dialect in DIALECTS:
        sent.append((request("GET", dialect.lists, said(dialect, tenant, X_Request_Id=f"r{len(sent)}")), 200))
    wire.send(b"".join(one for one, _ in sent))

    # Then each has its own answer, in its turn
    answers = [wire.answer() for _ in sent]
    assert [answer.status for answer in answers] == [status for _, status in sent]
    assert [answer.headers["x-request-id"] for answer in answers] == [f"r{number}" for number in range(len(sent))]


def test_pipelined_entries_get_their_numbers_in_order(tenant: Tenant, wire: Wire) -> None:
    # Given fifty entries that one connection asks for without waiting, each twice
    series = put_series(tenant.sequence)
    ids = [one for _ in range(50) for one in [new_id()] * 2]
    headers = said(SEQUENCE, tenant)
    wire.send(b"".join(request("PUT", entry_path(series, one), headers, b"{}") for one in ids))

    # Then the numbers follow the order of the requests, and the second is told what the first was
    answers = [wire.answer() for _ in ids]
    assert [answer.json()["number"] for answer in answers] == [number for one in range(1, 51) for number in (one, one)]
    assert ["idempotent-replayed" in answer.headers for answer in answers] == [False, True] * 50


def test_a_request_that_comes_byte_by_byte(tenant: Tenant, wire: Wire) -> None:
    for dialect, method, path, body, status in writes(tenant):
        for byte in request(method, path, said(dialect, tenant), body):
            wire.send(bytes([byte]))
        assert wire.answer().status == status
    assert_in_use(wire, tenant)


@every_dialect
def test_clients_of_http_1_0_and_such_that_close(tenant: Tenant, dialect: Dialect) -> None:
    for first, more in (("HTTP/1.0", {}), ("HTTP/1.1", {"Connection": "close"})):
        with Wire(tenant.up.url) as wire:
            whole = request("GET", dialect.lists, said(dialect, tenant) | more)
            wire.send(whole.replace(b"HTTP/1.1", first.encode(), 1))
            answer = wire.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            with pytest.raises(AssertionError, match="closed"):
                wire.answer()


# headers ----------------------------------------------------------------------------------------------------------


@every_dialect
def test_names_of_headers_in_any_case(tenant: Tenant, wire: Wire, dialect: Dialect) -> None:
    for spelled in (str.upper, str.lower):
        headers = {spelled(name): value for name, value in said(dialect, tenant).items()}
        assert wire.ask("GET", dialect.lists, headers).status == 200


TYPES = {
    "json": ["application/json; charset=utf-8", "application/json;charset=UTF-8", "text/json", "text/plain", "", "*/*"],
    "form": [
        "application/x-www-form-urlencoded; charset=utf-8",
        "application/x-www-form-urlencoded;charset=UTF-8",
        "text/plain",
        "",
    ],
}


def test_a_body_is_what_its_dialect_takes_whatever_its_type_is_called(tenant: Tenant) -> None:
    # Given bodies under all kinds of types, then they are read as ever
    series = put_series(tenant.sequence)
    for number, kind in enumerate(TYPES["json"]):
        headers = {"Content-Type": kind}
        body = '{"prefix": "é%d", "type": "invoice"}' % number  # noqa: UP031 -- braces
        answer = tenant.storno.post(DOCUMENT_SERIES, content=body.encode(), headers=headers)
        assert (answer.status_code, answer.json()["prefix"]) == (201, f"é{number}")
        entry = tenant.sequence.put(
            entry_path(series, new_id()), content='{"meta": {"k": "é"}}'.encode(), headers=headers
        )
        assert (entry.status_code, entry.json()["meta"]) == (200, {"k": "é"})
    for kind in TYPES["form"]:
        headers = {"Content-Type": kind}
        for body in ("prefix=é+%26-", "prefix=%C3%A9%20%26-"):
            answer = tenant.octobat.post(INVOICE_SEQUENCES, content=body.encode(), headers=headers)
            assert (answer.status_code, answer.json()["prefix"]) == (200, "é &-")
        answer = tenant.octobat.request("GET", INVOICE_SEQUENCES, content=b"limit=1", headers=headers)
        assert len(answer.json()["data"]) == 1


def test_what_is_asked_for_in_accept_is_json(tenant: Tenant) -> None:
    for dialect in DIALECTS:
        answer = tenant.client(dialect).get(
            dialect.lists, headers={"Accept": "text/html", "Accept-Encoding": "br, gzip"}
        )
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
        assert "Content-Encoding" not in answer.headers


# ids --------------------------------------------------------------------------------------------------------------


def encoded(text: str) -> str:
    """Text with every character percent-encoded."""
    return "".join(f"%{byte:02x}" for byte in text.encode())


def test_ids_in_capitals_and_percent_encoded_are_the_same_ids(tenant: Tenant, wire: Wire) -> None:
    # Given a series with an entry
    series = put_series(tenant.sequence, prefix="A-")
    entry = put_entry(tenant.sequence, series)["id"]
    company = {"X-Company": tenant.company.upper()}

    # When they are named in capitals, percent-encoded, or both
    for spelled in (str.upper, encoded, lambda text: encoded(text.upper()), lambda text: text.replace("-", "%2D")):
        one, path = spelled(series), f"{SERIES}/{spelled(series)}"

        # Then they are those
        headers = said(SEQUENCE, tenant) | company
        assert wire.ask("GET", path, headers).json()["id"] == series
        for method in ("GET", "PUT"):
            answer = wire.ask(method, f"{path}/entries/{spelled(entry)}", headers, b"{}")
            assert (answer.status, answer.json()["id"]) == (200, entry)
        headers = said(STORNO, tenant) | company
        for method, url, body in (
            ("PATCH", f"{DOCUMENT_SERIES}/{one}", b'{"active": true}'),
            ("POST", f"{DOCUMENT_SERIES}/{one}/set-default", b""),
            ("POST", f"/%61pi/v1/{encoded('document-series')}/{one}/set%2Ddefault", b""),
        ):
            answer = wire.ask(method, url, headers, body)
            assert (answer.status, answer.json()["uuid"]) == (200, series)
        answer = wire.ask("DELETE", f"{DOCUMENT_SERIES}/{one}", headers)
        assert answer.status == 409
    named = encoded(sequence_id(series))
    for method, url in (("GET", f"{INVOICE_SEQUENCES}/{named}"), ("PATCH", f"{INVOICE_SEQUENCES}/{named}/default/")):
        answer = wire.ask(method, url, said(OCTOBAT, tenant))
        assert (answer.status, answer.json()["id"]) == (200, sequence_id(series))
    assert (
        wire.ask("GET", encoded(INVOICE_SERIES).replace("%2f", "/"), said(DREAMAPPLY, tenant)).headers["x-count"] == "1"
    )
    assert wire.ask("GET", f"{DOCUMENT_SERIES}?type=%69nvoice", said(STORNO, tenant)).json()[0]["uuid"] == series


def test_the_id_of_an_entry_stays_one_id_however_it_is_written(tenant: Tenant, wire: Wire) -> None:
    # Given an id that a client sends in capitals, percent-encoded, and as it is; in the path and in the body
    series, entry = put_series(tenant.sequence), new_id()
    for spelled in (entry.upper(), encoded(entry), entry):
        body = b'{"id": "%b"}' % entry.upper().encode()
        answer = wire.ask("PUT", f"{SERIES}/{series.upper()}/entries/{spelled}", said(SEQUENCE, tenant), body)

        # Then it is one entry
        assert (answer.json()["id"], answer.json()["number"]) == (entry, 1)
    batch = b'{"list": [{"id": "%b"}]}' % entry.upper().encode()
    answer = wire.ask("POST", f"{SERIES}/{series}/entries", said(SEQUENCE, tenant), batch)
    assert [one["number"] for one in answer.json()["list"]] == [1]


# bodies that say nothing ------------------------------------------------------------------------------------------


NOTHING = {"an empty object": b"{}", "an empty body": b"", "no body": None, "spaces in an object": b" { } \r\n"}


@pytest.mark.parametrize("what", NOTHING)
def test_requests_that_need_no_body_take_any_that_says_nothing(tenant: Tenant, wire: Wire, what: str) -> None:
    # Given requests that need no body
    series = put_series(tenant.sequence)
    document, sequence = new_document_series(tenant.storno, "S-")["uuid"], new_sequence(tenant.octobat, "O-")["id"]
    for dialect, method, path in (
        (SEQUENCE, "PUT", entry_path(series, new_id())),
        (SEQUENCE, "PUT", f"{SERIES}/{new_id()}"),
        (SEQUENCE, "PUT", f"/sequence/v1/entries/{new_id()}"),
        (SEQUENCE, "POST", "/sequence/v1/series/preview"),
        (STORNO, "POST", f"{DOCUMENT_SERIES}/{document}/set-default"),
        (OCTOBAT, "PATCH", f"{INVOICE_SEQUENCES}/{sequence}/default"),
        *((dialect, "GET", dialect.lists) for dialect in DIALECTS),
    ):
        # Then it does not matter how they say nothing
        answer = wire.ask(method, path, said(dialect, tenant, Content_Type=f"{dialect.name}/nothing"), NOTHING[what])
        assert answer.status == 200, (path, answer.body)


@pytest.mark.parametrize("what", NOTHING)
def test_requests_that_need_a_body_say_what_is_missing(tenant: Tenant, what: str) -> None:
    # Given requests that need a body
    document = new_document_series(tenant.storno, "S-")["uuid"]
    content: Any = NOTHING[what]
    STORNO.check_refused(tenant.storno.post(DOCUMENT_SERIES, content=content), 422, "prefix", "type")
    STORNO.check_refused(tenant.storno.patch(f"{DOCUMENT_SERIES}/{document}", content=content), 422, "currentNumber")
    if not content:
        OCTOBAT.check_refused(tenant.octobat.post(INVOICE_SEQUENCES, content=content), 422, "prefix")


# HEAD -------------------------------------------------------------------------------------------------------------


def read_paths() -> list[tuple[Dialect, str]]:
    """Every GET in every dialect, as its routes are declared."""
    bases: list[tuple[Dialect, type, list[str]]] = [
        (SEQUENCE, Sequence, ["/sequence/v1"]),
        (DREAMAPPLY, DreamApply, ["/api/v9", "/api/v8"]),
        (STORNO, Storno, ["/api/v1"]),
        (OCTOBAT, Octobat, [INVOICE_SEQUENCES, CREDIT_NOTE_SEQUENCES]),
    ]
    return [
        (dialect, base + vars(member)["operation"].path)
        for dialect, kind, listed in bases
        for base in listed
        for member in vars(kind).values()
        if callable(member) and "operation" in vars(member) and vars(member)["operation"].method == "GET"
    ]


@pytest.mark.parametrize(("dialect", "path"), read_paths(), ids=[path for _, path in read_paths()])
def test_head_answers_as_get_does_without_the_body(tenant: Tenant, wire: Wire, dialect: Dialect, path: str) -> None:
    # Given a series with an entry, and a path that can be read, once with what exists and once with what does not
    series = put_series(tenant.sequence, type="credit_note" if "credit_note" in path else "invoice")
    entry = put_entry(tenant.sequence, series)["id"]
    here = {"series_id": series, "id": series, "uuid": series}
    if dialect is OCTOBAT:
        here["id"] = sequence_id(series)
    elif "entries" in path:
        here["id"] = entry
    tenant.up.settled()
    for ids, status in ((here, 200), (dict.fromkeys(here, UNKNOWN_ID), 404)):
        url = path.format_map(ids)
        for headers in (said(dialect, tenant), {}):
            # When it is asked for by GET and by HEAD, with a key and without, then the answers have the same headers
            answers = [wire.ask(method, url, headers) for method in ("GET", "HEAD")]
            whole, head = (
                {k: v for k, v in one.headers.items() if k not in ("date", "x-request-id")} for one in answers
            )
            assert answers[0].status == answers[1].status == (401 if not headers else status if "{" in path else 200)
            assert head == whole
            assert int(head["content-length"]) == len(answers[0].body) > 0
    assert_in_use(wire, tenant)


def test_every_read_path_is_tried() -> None:
    assert len(read_paths()) == 6 + 2 + 1 + 4
