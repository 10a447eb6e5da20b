"""Refusals in every dialect's own shape: of unknown paths and wrong methods, of bodies, and for faults of our own.

What is wrong with single fields is told in the tests of each dialect; credentials and rates have tests of their own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import httpx
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
from stack import Up, new_id, put_entry, put_series, running

BODY_MAX, SERIES_MAX = 2000, 2
LIMITS = {"SERIATIM_BODY_BYTES_MAX": str(BODY_MAX), "SERIATIM_SERIES_MAX": str(SERIES_MAX)}
every_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda one: one.name)


@pytest.fixture(scope="module")
def narrow_up() -> Iterator[Up]:
    with running(workers=0, environment=LIMITS) as stack:
        yield stack


@pytest.fixture
def tenant(narrow_up: Up) -> Iterator[Tenant]:
    with Tenant(narrow_up) as made:
        yield made


def reads(dialect: Dialect, client: httpx.Client) -> httpx.Response:
    return client.get(dialect.lists)


# paths and methods ------------------------------------------------------------------------------------------------


NONE = ["", "/", "/api", "/api/v10", "/invoices", "/sequence/v1", "/sequence/v1/", "/sequence/v2/series", f"{SERIES}/"]
UNKNOWN = {
    SEQUENCE: NONE,
    DREAMAPPLY: [
        f"/api/v{path}" for path in ("9", "8", "9/", "8/x", "9/invoices", "8/invoices/series/", "9/invoices/series/1")
    ],
    STORNO: [f"/api/v1{path}" for path in ("", "/", "/x", "/%2e%2e/x", "/document-series/", "/document-series/a/b")],
    OCTOBAT: [f"{INVOICE_SEQUENCES}//", *(f"{CREDIT_NOTE_SEQUENCES}/a{more}" for more in ("//", "/b", "/default/b"))],
}
"""Paths that do not exist, by the dialect that says so: the native one also where the path is no dialect's."""


@every_dialect
def test_an_unknown_path_is_told_as_its_dialect_tells_it(tenant: Tenant, dialect: Dialect) -> None:
    # Given paths below a dialect's own, with its credentials and without
    for client in (tenant.client(dialect), tenant.nobody()):
        for path in UNKNOWN[dialect]:
            # Then there is nothing, by any method
            dialect.check_refused(client.get(path), 404)
            dialect.check_refused(client.post(path, content=b"{}"), 404)
            head = client.head(path)
            assert (head.status_code, head.content) == (404, b"")


PATHS = [
    (SEQUENCE, SERIES, {"GET", "HEAD"}),
    (SEQUENCE, f"{SERIES}/{UNKNOWN_ID}", {"GET", "HEAD", "PUT", "DELETE"}),
    (SEQUENCE, f"{SERIES}/{UNKNOWN_ID}/entries/{UNKNOWN_ID}", {"GET", "HEAD", "PUT"}),
    (SEQUENCE, f"{SERIES}/{UNKNOWN_ID}/skip", {"POST"}),
    (DREAMAPPLY, INVOICE_SERIES, {"GET", "HEAD"}),
    (DREAMAPPLY, "/api/v8/invoices/series", {"GET", "HEAD"}),
    (STORNO, DOCUMENT_SERIES, {"GET", "HEAD", "POST"}),
    (STORNO, f"{DOCUMENT_SERIES}/{UNKNOWN_ID}", {"PATCH", "DELETE"}),
    (STORNO, f"{DOCUMENT_SERIES}/{UNKNOWN_ID}/set-default", {"POST"}),
    (OCTOBAT, INVOICE_SEQUENCES, {"GET", "HEAD", "POST"}),
    (OCTOBAT, f"{CREDIT_NOTE_SEQUENCES}/", {"GET", "HEAD", "POST"}),
    (OCTOBAT, f"{INVOICE_SEQUENCES}/x", {"GET", "HEAD", "PATCH"}),
    (OCTOBAT, f"{CREDIT_NOTE_SEQUENCES}/x/", {"GET", "HEAD", "PATCH"}),
    (OCTOBAT, f"{INVOICE_SEQUENCES}/x/default", {"PATCH"}),
    (OCTOBAT, f"{INVOICE_SEQUENCES}/x/default/", {"PATCH"}),
]


@pytest.mark.parametrize(("dialect", "path", "allowed"), PATHS, ids=[path for _, path, _ in PATHS])
def test_a_wrong_method_is_told_with_those_that_are_right(
    tenant: Tenant, dialect: Dialect, path: str, allowed: set[str]
) -> None:
    # Given every method of HTTP, then a path takes those of its table, and names them to whoever sends another
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
        answer = tenant.nobody().request(method, path)
        if method in allowed:
            assert answer.status_code == 401
            continue
        assert set(answer.headers["Allow"].split(", ")) == allowed
        if method == "HEAD":
            assert (answer.status_code, answer.content) == (405, b"")
        else:
            dialect.check_refused(answer, 405)


# bodies -----------------------------------------------------------------------------------------------------------


JSON_TAKERS = [
    (SEQUENCE, "PUT", f"{SERIES}/{UNKNOWN_ID}"),
    (STORNO, "POST", DOCUMENT_SERIES),
    (STORNO, "PATCH", f"{DOCUMENT_SERIES}/{UNKNOWN_ID}"),
]
TAKERS = [
    *JSON_TAKERS,
    (OCTOBAT, "POST", INVOICE_SEQUENCES),
    (OCTOBAT, "GET", f"{CREDIT_NOTE_SEQUENCES}/"),
]


@pytest.mark.parametrize(("dialect", "method", "path"), JSON_TAKERS)
def test_a_body_that_is_no_json_object_is_malformed(tenant: Tenant, dialect: Dialect, method: str, path: str) -> None:
    client = tenant.client(dialect)
    for body in (
        b"{",
        b"nul",
        b"[]",
        b"null",
        b'"x"',
        b"5",
        b" ",
        b'{"a": 1}}',
        b'{"prefix": "\xff"}',
        b"[" * 1500,
        b"prefix=A",
    ):
        dialect.check_refused(client.request(method, path, content=body), 400)
    dialect.check_refused(client.request(method, path, content=b'{"prefix": "\\ud800"}'), 400)


@pytest.mark.parametrize(("dialect", "method", "path"), TAKERS)
def test_a_body_beyond_the_limit_is_refused_whether_its_length_is_said_or_not(
    tenant: Tenant, dialect: Dialect, method: str, path: str
) -> None:
    # Given a body of one byte too many, and one that comes in pieces; and one that just fits
    client, much = tenant.client(dialect), b" " * (BODY_MAX + 1)
    dialect.check_refused(client.request(method, path, content=much), 413)
    dialect.check_refused(client.request(method, path, content=iter([much[:1000], much[1000:]])), 413)
    assert client.request(method, path, content=much[1:]).status_code != 413


def test_octobats_other_requests_have_the_same_limit(tenant: Tenant) -> None:
    made = new_sequence(tenant.octobat, "A-")
    url = f"{INVOICE_SEQUENCES}/{made['id']}"
    OCTOBAT.check_refused(tenant.octobat.patch(url, content=b"x" * (BODY_MAX + 1)), 413)


# conflicts --------------------------------------------------------------------------------------------------------


def test_a_company_with_too_many_series_is_told_so(tenant: Tenant) -> None:
    # Given a company that has all the series that it may have, one of them with an entry
    used = new_document_series(tenant.storno, "A-")["uuid"]
    put_entry(tenant.sequence, used)
    new_sequence(tenant.octobat, "B-")

    # When it wants another, or to delete that one, then each dialect says that this is not possible
    SEQUENCE.check_refused(tenant.sequence.put(f"{SERIES}/{new_id()}", json={"name": "C"}), 409)
    STORNO.check_refused(tenant.storno.post(DOCUMENT_SERIES, json={"prefix": "C-", "type": "invoice"}), 409)
    STORNO.check_refused(tenant.storno.delete(f"{DOCUMENT_SERIES}/{used}"), 409)
    message = OCTOBAT.check_refused(tenant.octobat.post(INVOICE_SEQUENCES, data={"prefix": "C-"}), 422)
    assert "SERIATIM_SERIES_MAX" in message


# faults -----------------------------------------------------------------------------------------------------------


def damage(up: Up, statement: str) -> None:
    with sqlite3.connect(up.directory.path / "store.db", timeout=10) as connection:
        assert connection.execute(statement).rowcount != 0
    connection.close()


def test_a_store_that_cannot_be_read_is_unavailable_in_every_dialect(tenant: Tenant, narrow_up: Up) -> None:
    # Given a used series, and a store that has lost its table of series
    series = put_series(tenant.sequence, prefix="A-")
    put_entry(tenant.sequence, series)
    before = {dialect: reads(dialect, tenant.client(dialect)).content for dialect in DIALECTS}
    damage(narrow_up, "ALTER TABLE series RENAME TO lost")
    try:
        # Then what needs it is unavailable, for now
        for dialect in DIALECTS:
            dialect.check_refused(reads(dialect, tenant.client(dialect)), 503)
        STORNO.check_refused(tenant.storno.post(DOCUMENT_SERIES, json={"prefix": "B-", "type": "invoice"}), 503)
        STORNO.check_refused(tenant.storno.delete(f"{DOCUMENT_SERIES}/{series}"), 503)
        OCTOBAT.check_refused(tenant.octobat.post(INVOICE_SEQUENCES, data={"prefix": "B-"}), 503)
        OCTOBAT.check_refused(tenant.octobat.patch(f"{INVOICE_SEQUENCES}/{sequence_id(series)}/default"), 503)
    finally:
        damage(narrow_up, "ALTER TABLE lost RENAME TO series")

    # And when it is back, so is all that was there
    assert {dialect: reads(dialect, tenant.client(dialect)).content for dialect in DIALECTS} == before


@every_dialect
def test_a_fault_of_our_own_is_told_in_the_dialects_shape(tenant: Tenant, narrow_up: Up, dialect: Dialect) -> None:
    # Given a series whose definition has been damaged in the store: its time zone is none
    stored = put_series(tenant.sequence, prefix="A-").replace("-", "")
    client = tenant.client(dialect)
    damage(narrow_up, f"UPDATE series SET timezone = 'Nowhere' WHERE id = '{stored}'")

    # When it is listed, then the answer is an error of this dialect that tells nothing of the inside
    message = dialect.check_refused(reads(dialect, client), 500)
    assert "Nowhere" not in message
    assert "Traceback" not in message
    head = client.head(dialect.lists)
    assert (head.status_code, head.content) == (500, b"")

    # And the connection and the process are as good as before
    damage(narrow_up, f"UPDATE series SET timezone = 'UTC' WHERE id = '{stored}'")
    assert reads(dialect, client).status_code == 200
