"""Bad input: a clear refusal in the dialect's shape, and never a number for it."""

from __future__ import annotations

import base64
import errno
import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bad_input import ANYTHING, BASE, HEADER, check_refused
from stack import Up, entry_path, new_id, put_entry, put_series

NOT_UUIDS = [
    "x",
    "1",
    "00000000-0000-4000-8000-00000000000",
    "00000000-0000-4000-8000-0000000000000",
    "00000000-0000-4000-8000-00000000000g",
    "00000000000040008000000000000000",
    "%7B00000000-0000-4000-8000-000000000000%7D",
    "urn:uuid:00000000-0000-4000-8000-000000000000",
    "00000000-0000-4000-8000-000000000000%09",
    "00000000-0000-4000-8000-" + "\uff10" * 12,
    "%00",
    "%FF",
    "'%20OR%201=1",
    "a" * 5000,
]


class Subject:
    """A series with one entry. Whatever happens to it, its next number must be 2."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.series = put_series(client, prefix="B-")
        self.entry = put_entry(client, self.series, meta={"k": "v"})["id"]
        self.last = 1

    def entry_path(self) -> str:
        return entry_path(self.series, new_id())

    def put(self, body: Any = None, *, content: bytes | Iterator[bytes] | None = None) -> httpx.Response:
        """Puts a new entry with whatever body."""
        if content is None:
            content = json.dumps(body).encode()
        return self.client.put(self.entry_path(), content=content)

    def check_nothing_consumed(self) -> None:
        shown = self.client.get(f"{BASE}/series/{self.series}").json()
        assert (shown["last_index"], shown["last_entry_id"]) == (self.last, self.entry)
        self.last += 1
        entry = put_entry(self.client, self.series)
        assert (entry["position"], entry["code"]) == (self.last, f"B-{self.last}")
        self.entry = entry["id"]


@pytest.fixture
def subject(client: httpx.Client) -> Iterator[Subject]:
    """A series that must not lose a number to the test."""
    made = Subject(client)
    yield made
    made.check_nothing_consumed()


# ids --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", NOT_UUIDS)
def test_an_id_that_is_no_uuid(subject: Subject, bad: str) -> None:
    # Given an id that is no UUID, then what is given an id by the caller refuses it, and what looks for it has none
    client, series = subject.client, subject.series
    check_refused(client.put(f"{BASE}/series/{series}/entries/{bad}", json={}), 400)
    check_refused(client.put(f"{BASE}/series/{bad}", json={"prefix": "X"}), 400)
    check_refused(client.put(f"{BASE}/series/{bad}/entries/{new_id()}", json={}), 404)
    check_refused(client.get(f"{BASE}/series/{series}/entries/{bad}"), 404)
    check_refused(client.get(f"{BASE}/series/{bad}/entries/{subject.entry}"), 404)
    check_refused(client.get(f"{BASE}/series/{bad}/entries"), 404)
    check_refused(client.get(f"{BASE}/series/{bad}"), 404)


@pytest.mark.parametrize("given_id", ["x", "00000000-0000-4000-8000-000000000000"])
def test_an_id_in_the_body_that_differs_from_the_path(subject: Subject, given_id: str) -> None:
    check_refused(subject.put({"id": given_id}), 422, "id")
    check_refused(subject.client.put(f"{BASE}/series/{new_id()}", json={"id": given_id}), 422, "id")


def test_a_series_or_an_entry_that_does_not_exist(subject: Subject) -> None:
    client, missing = subject.client, new_id()
    for answer in (
        client.get(entry_path(subject.series, missing)),
        client.put(entry_path(missing, new_id()), json={}),
        client.get(entry_path(missing, new_id())),
        client.get(f"{BASE}/series/{missing}/entries"),
        client.get(f"{BASE}/series/{missing}"),
    ):
        assert missing in check_refused(answer, 404)["message"]


# bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b" ",
        b"{",
        b"{}{}",
        b"{'meta': {}}",
        b'{"meta": {},}',
        b'{"meta": NaN}',
        b'{"meta": 1e999}',
        b'{"meta": ' + b"1" * 5000 + b"}",
        b"\xef\xbb\xbf{}",
        b"\x00",
        b"\xff\xfe{\x00}\x00",
        b"null",
        b"[]",
        b'[{"meta": {}}]',
        b'"{}"',
        b"true",
    ],
)
def test_a_body_that_is_no_json_object(subject: Subject, content: bytes) -> None:
    message = check_refused(subject.put(content=content), 400)["message"]
    assert "JSON" in message
    check_refused(subject.client.put(f"{BASE}/series/{new_id()}", content=content), 400)


@pytest.mark.parametrize(
    "content",
    [
        b'{"meta": {"k": "\xff"}}',
        b'{"meta": {"\xff": "v"}}',
        b'{"\xff": 1}',
        b'{"unknown": "\xff"}',
        b'{"sig": 5, "id": "\xc3"}',
        b'{"meta": {"k": "\xed\xa0\x80"}}',
        b'{"meta": {"k": "\xc0\x80"}}',
        b'{"meta": {"k": "\xf4\x90\x80\x80"}}',
    ],
)
def test_a_body_that_is_not_utf_8(subject: Subject, content: bytes) -> None:
    check_refused(subject.put(content=content), 400)
    check_refused(subject.client.put(f"{BASE}/series/{new_id()}", content=content), 400)


@pytest.mark.parametrize(
    "escape", ["\\ud800", "\\udfff", "\\udc00\\ud800", "\\ud800\\ud800", "\\ud800x", "\\udbff\\u0041"]
)
def test_lone_surrogates(subject: Subject, escape: str) -> None:
    for body in (f'{{"meta": {{"k": "{escape}"}}}}', f'{{"meta": {{"{escape}": "v"}}}}', f'{{"{escape}": 1}}'):
        check_refused(subject.put(content=body.encode()), 400)
    answer = subject.client.put(f"{BASE}/series/{new_id()}", content=f'{{"prefix": "{escape}"}}'.encode())
    check_refused(answer, 400)


@pytest.mark.parametrize("opening", [b"[", b'{"meta":', b'{"meta":{"k":[', b'{"unknown":[', b'{"id":'])
def test_a_body_nested_a_hundred_thousand_deep(subject: Subject, opening: bytes) -> None:
    inside = opening * 20_000 if opening == b'{"meta":' else b"[" * 100_000
    for content in (opening + inside, opening + inside + b"]" * 50_000):
        check_refused(subject.put(content=content), 400)


def test_a_body_larger_than_the_limit(subject: Subject) -> None:
    # Given bodies of 256 KiB and of a byte more, when they come whole and in chunks
    def body(size: int) -> bytes:
        return b'{"meta":{}' + b" " * (size - len(b'{"meta":{}}')) + b"}"

    def chunks(content: bytes) -> Iterator[bytes]:
        for at in range(0, len(content), 4096):
            yield content[at : at + 4096]

    for content in (body(256 * 1024 + 1), body(4 * 1024 * 1024)):
        check_refused(subject.put(content=content), 413)
        check_refused(subject.put(content=chunks(content)), 413)

    # Then only the larger ones are refused
    entry = new_id()
    for whole in (body(256 * 1024), chunks(body(256 * 1024))):
        assert subject.client.put(entry_path(subject.series, entry), content=whole).status_code == 200
    subject.last, subject.entry = 2, entry


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"meta": []}, ["meta"]),
        ({"meta": "k=v"}, ["meta"]),
        ({"meta": {"k": 1}}, ["meta.k"]),
        (
            {"meta": {"a": "fine", "b": None, "c": 1.5, "d": {"x": "y"}, "e": ["z"], "f": True}},
            [f"meta.{c}" for c in "bcdef"],
        ),
        ({"id": 5}, ["id"]),
        ({"sig": ["a.b.c"]}, ["sig"]),
        ({"metadata": {}, "Meta": {}, "": 1}, ["metadata", "Meta", ""]),
        ({"unknown": 1, "meta": {"k": 1}, "sig": 1, "id": []}, ["unknown", "meta.k", "sig", "id"]),
    ],
)
def test_fields_that_are_wrong_are_all_named(subject: Subject, body: Any, fields: list[str]) -> None:
    content = check_refused(subject.put(body), 422, *fields)
    assert all(field in content["message"] for field in fields)


@pytest.mark.parametrize(
    ("meta", "field"),
    [
        ({f"k{number}": "v" for number in range(65)}, "meta"),
        ({"k" * 65: "v"}, "meta"),
        ({"\u00e9" * 33: "v"}, "meta"),
        ({"": "v"}, "meta"),
        ({"k": "v" * 1025}, "meta.k"),
        ({"k": "\u20ac" * 342}, "meta.k"),
        ({f"k{number:02d}": "v" * 1020 for number in range(17)}, "meta"),
        ({"k": "a\0b"}, "meta"),
        ({"a\0b": "v"}, "meta"),
    ],
)
def test_a_meta_beyond_its_limits(subject: Subject, meta: dict[str, str], field: str) -> None:
    check_refused(subject.put({"meta": meta}), 422, field)


def test_a_meta_at_its_limits(client: httpx.Client) -> None:
    # Given metas that fill each limit, then they are kept as they are
    series = put_series(client)
    metas: list[dict[str, str]] = [
        {f"k{number}": "" for number in range(64)},
        {"k" * 64: "v", "\u00e9" * 32: "w", "\U0001f4a9" * 16: "x"},
        {"k": "v" * 1024, "\u20ac": "\u20ac" * 341},
        {f"k{number:02d}": "v" * 1021 for number in range(16)},
        {"\x01\x1f\x7f\x80\u2028": "\x01\x1f\x7f\x80\u2028\uffff\U0010ffff"},
    ]
    for position, meta in enumerate(metas, 1):
        entry = put_entry(client, series, meta=meta)
        assert (entry["position"], entry["meta"]) == (position, meta)


@pytest.mark.parametrize(
    "sig",
    [
        *f"x a.b a.b.c .. {HEADER}.e30 {HEADER}.e30. .e30.{HEADER} {HEADER}.e30.c2ln.c2ln {HEADER}=.e30.c2ln".split(),
        *f"{HEADER}.e30.c2+n {HEADER}.e.c2ln {HEADER}.e30.c {HEADER}.e30.\u0441\u0441".split(),
        *(f"{header}.e30.c2ln" for header in ("e30", "W10", "bnVsbA", "eyJhbGciOjV9", "_w")),
        f"{HEADER}.e30.c2ln\n",
        f" {HEADER}.e30.c2ln",
        f"{HEADER}.{'e' * 8192}.c2ln",
        base64.urlsafe_b64encode(b"[" * 4000).decode().rstrip("=") + ".e30.c2ln",
    ],
)
def test_a_sig_that_is_no_compact_jws(subject: Subject, sig: str) -> None:
    check_refused(subject.put({"sig": sig}), 422, "sig")
    check_refused(subject.client.put(f"{BASE}/series/{new_id()}", json={"sig": sig}), 422, "sig")


@pytest.mark.parametrize("sig", [f"{HEADER}.e30.c2ln", f"{HEADER}..c2ln", f"{HEADER}.{'e' * 8166}.c2ln"])
def test_a_sig_that_is_a_compact_jws(client: httpx.Client, sig: str) -> None:
    # Given a compact JWS, with its payload, without (RFC 7515, appendix F) and of 8 KiB, then it is kept
    assert put_entry(client, put_series(client), sig=sig)["sigs"][0] == sig


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"prefix": "x" * 65}, ["prefix"]),
        ({"suffix": "\u20ac" * 22}, ["suffix"]),
        ({"prefix": "a\nb", "suffix": "\x7f"}, ["prefix", "suffix"]),
        ({"prefix": "\u2028"}, ["prefix"]),
        ({"name": "x" * 256}, ["name"]),
        ({"name": "a\0b", "code": "\t"}, ["name", "code"]),
        ({"description": "x" * 2049}, ["description"]),
        ({"padding": -1}, ["padding"]),
        ({"padding": 21}, ["padding"]),
        ({"padding": 10**30}, ["padding"]),
        ({"padding": "5"}, ["padding"]),
        ({"padding": True}, ["padding"]),
        ({"start": -1}, ["start"]),
        ({"start": 2**53}, ["start"]),
        ({"start": 10**30}, ["start"]),
        ({"start": "1"}, ["start"]),
        ({"type": "Invoice"}, ["type"]),
        ({"type": "1st"}, ["type"]),
        ({"type": "x" * 33}, ["type"]),
        ({"active": 0}, ["active"]),
        ({"default": "yes"}, ["default"]),
        ({"name": 5, "prefix": [], "nope": 1, "Padding": 2}, ["name", "prefix", "nope", "Padding"]),
        ({"padding": 21, "start": -1, "type": "X", "prefix": "\n"}, ["padding", "start", "type", "prefix"]),
    ],
)
def test_a_series_with_wrong_fields_is_not_made(client: httpx.Client, body: Any, fields: list[str]) -> None:
    series = new_id()
    check_refused(client.put(f"{BASE}/series/{series}", json=body), 422, *fields)
    check_refused(client.get(f"{BASE}/series/{series}"), 404)


def test_a_series_changed_with_wrong_fields_stays(subject: Subject) -> None:
    path = f"{BASE}/series/{subject.series}"
    before = subject.client.get(path).json()
    check_refused(subject.client.put(path, json={"name": "new", "padding": 21}), 422, "padding")
    assert subject.client.get(path).json() == before


# credentials ------------------------------------------------------------------------------------------------------


def test_credentials_that_are_none(subject: Subject, shared_up: Up) -> None:
    # Given headers that are none, or malformed, or carry something near a key
    key = shared_up.key
    wrong = [b"", b"Bearer", b"Basic dTpw", b"Bearer x", b"Bearer " + b"A" * 44, f"Token {key}".encode(), key.encode()]
    wrong += [f"Bearer {key}{more}".encode() for more in ("x", " x", ",", "==")]
    wrong += [f"Bearer {key[:-1]}".encode(), f"Bearer {key.upper()}".encode(), b"Bearer \xff\xfe" + b"A" * 42]
    wrong += [b"Bearer " + b"A" * 20_000, f"Bearer{key}".encode(), f'Bearer "{key}"'.encode()]
    with httpx.Client(base_url=shared_up.url) as client:
        for headers in ({}, *({b"Authorization": one} for one in wrong)):
            for answer in (
                client.put(subject.entry_path(), json={}, headers=headers),
                client.get(f"{BASE}/series/{subject.series}", headers=headers),
            ):
                # Then each is a 401 that says how to do it, and does not say the key back
                check_refused(answer, 401)
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert key not in answer.text


def test_credentials_for_another_company_or_too_little(subject: Subject, shared_up: Up) -> None:
    # Given a key of another company, and one that may only read
    other = new_id()
    shared_up.run("companies", "create", other)
    stranger = shared_up.json("keys", "create", "--company", other)["key"]
    reader = shared_up.json("keys", "create", "--company", "default", "--scope", "read")["key"]

    # When they put an entry, then the one finds no series and the other is not allowed to
    for key, status in ((stranger, 404), (reader, 403)):
        with shared_up.client(key) as client:
            check_refused(client.put(subject.entry_path(), json={}), status)
            check_refused(client.put(entry_path(subject.series, subject.entry), json={}), status)


# pages ------------------------------------------------------------------------------------------------------------


def cursor(content: Any) -> str:
    return base64.b64encode(content if isinstance(content, bytes) else json.dumps(content).encode()).decode()


UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "x",
        "!!!!",
        "\u00e9",
        "A" * 10_000,
        cursor(b"not JSON"),
        cursor(b"\xff"),
        cursor(b"[" * 10_000),
        cursor([]),
        cursor({}),
        cursor({"id": UNKNOWN}),
        cursor({"limit": 5}),
        cursor({"id": 5, "limit": 5}),
        cursor({"id": UNKNOWN, "limit": 5, "more": 1}),
        cursor({"id": "x", "limit": 5}),
        cursor({"id": UNKNOWN, "limit": 5}),
        cursor({"id": UNKNOWN, "limit": 5}).rstrip("="),
    ],
)
def test_a_cursor_that_no_page_ended_with(subject: Subject, bad: str) -> None:
    for path in (f"{BASE}/series", f"{BASE}/series/{subject.series}/entries"):
        check_refused(subject.client.get(path, params={"cursor": bad}), 422, "cursor")


@pytest.mark.parametrize(
    "bad", ["", "0", "-1", "1001", "1e2", "1.0", "0x10", " 5", "+5", "five", "\uff15", "\u0665", "\u00b2", "9" * 5000]
)
def test_a_limit_that_is_none(subject: Subject, bad: str) -> None:
    for path in (f"{BASE}/series", f"{BASE}/series/{subject.series}/entries"):
        check_refused(subject.client.get(path, params={"limit": bad}), 422, "limit")


@pytest.mark.parametrize("limit", [0, -1, 1001, 10**30])
def test_a_cursor_with_a_limit_that_is_none(subject: Subject, limit: int) -> None:
    path = f"{BASE}/series/{subject.series}/entries"
    bad = cursor({"id": subject.entry, "limit": limit})
    check_refused(subject.client.get(path, params={"cursor": bad}), 422, "limit")


# paths and methods ------------------------------------------------------------------------------------------------


def test_a_path_that_leads_nowhere(subject: Subject) -> None:
    paths = [
        "/",
        "/nowhere",
        f"{BASE}/",
        f"{BASE}/nope",
        f"{BASE}/series/{subject.series}/nope",
        "/sequence/v2/series",
    ]
    paths += [f"{BASE}/series/", f"{BASE}/series/{subject.series}/", subject.entry_path() + "/", f"{BASE}//series"]
    paths += [
        f"{BASE}/series/{subject.series}/entries/{new_id()}/more",
        f"{BASE}/series/{subject.series}/entries/a%2Fb",
    ]
    for path in paths:
        for method in ("GET", "PUT"):
            check_refused(subject.client.request(method, path), 404)


def test_the_root_of_the_dialect_is_nothing_and_leads_nowhere_else(client: httpx.Client) -> None:
    check_refused(client.get(BASE), 404)


def test_a_method_that_a_path_does_not_take(subject: Subject) -> None:
    # Given methods that are not there, when they are used, then the answer names those that are
    taken = {
        f"{BASE}/series": {"GET", "HEAD"},
        f"{BASE}/series/{subject.series}": {"DELETE", "GET", "HEAD", "PUT"},
        f"{BASE}/series/{subject.series}/entries": {"GET", "HEAD", "POST"},
        subject.entry_path(): {"GET", "HEAD", "PUT"},
        "/healthz": {"GET", "HEAD"},
    }
    for path, methods in taken.items():
        for method in {"GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE"} - methods:
            answer = subject.client.request(method, path, content=b"{}")
            assert method in check_refused(answer, 405)["message"]
            assert set(answer.headers["Allow"].split(", ")) == methods


# HTTP itself ------------------------------------------------------------------------------------------------------


def test_malformed_http(subject: Subject, shared_up: Up) -> None:
    # Given requests that break HTTP/1.1 in many ways, each for a new entry
    host, port = shared_up.url.removeprefix("http://").split(":")

    def lines(*headers: str, version: str = "1.1") -> bytes:
        first = f"PUT {subject.entry_path()} HTTP/{version}"
        sent = [first, "Host: x", f"Authorization: Bearer {shared_up.key}", *headers]
        return "".join(f"{line}\r\n" for line in sent).encode("latin-1")

    broken = {
        "cut off in the body": lines("Content-Length: 100") + b"\r\n{",
        "cut off in the headers": lines("Content-Length: 2"),
        "cut off in a chunk": lines("Transfer-Encoding: chunked") + b"\r\n5\r\n{",
        "cut off between chunks": lines("Transfer-Encoding: chunked") + b"\r\n2\r\n{}\r\n",
        "a chunk size that is none": lines("Transfer-Encoding: chunked") + b"\r\nzz\r\n{}\r\n0\r\n\r\n",
        "a negative chunk size": lines("Transfer-Encoding: chunked") + b"\r\n-2\r\n{}\r\n0\r\n\r\n",
        "a chunk longer than said": lines("Transfer-Encoding: chunked") + b"\r\n1\r\n{}\r\n0\r\n\r\n",
        "a huge chunk size": lines("Transfer-Encoding: chunked") + b"\r\n" + b"f" * 40 + b"\r\n{}",
        "two lengths": lines("Content-Length: 2", "Content-Length: 3") + b"\r\n{} ",
        "a length and chunks": lines("Content-Length: 2", "Transfer-Encoding: chunked") + b"\r\n0\r\n\r\n",
        "a length that is none": lines("Content-Length: two") + b"\r\n{}",
        "a negative length": lines("Content-Length: -2") + b"\r\n{}",
        "a huge length": lines("Content-Length: " + "9" * 5000) + b"\r\n{}",
        "a length in other digits": lines("Content-Length: \xb2") + b"\r\n{}",
        "no colon": lines("Content-Length 2") + b"\r\n{}",
        "another version": lines("Content-Length: 2", version="9.9") + b"\r\n{}",
        "a huge length that is well formed": lines("Content-Length: 999999999999") + b"\r\n{}",
        "no HTTP at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64 + b"\r\n\r\n",
        "a path of 100,000 slashes": b"PUT " + b"/" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        "a raw byte in the path": b"PUT /sequence/v1/series/\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    }
    for name, request in broken.items():
        # When each is sent, and the sending side closed
        answer = exchange(host, int(port), request)

        # Then the answer is a refusal or none at all
        assert answer == b"" or re.match(rb"HTTP/1\.1 4\d\d ", answer), (name, answer[:200])

    # And what follows a whole request on its connection cannot be taken for another one (no number for it, either)
    smuggled = lines("Content-Length: 2", "Transfer-Encoding : chunked") + b"\r\n{}" + lines("Content-Length: 2")
    assert b"200 OK" not in exchange(host, int(port), smuggled + b"\r\n{}")


def test_a_header_of_a_megabyte(subject: Subject, shared_up: Up) -> None:
    # Given requests with a header, or headers, of a megabyte, but no key
    host, port = shared_up.url.removeprefix("http://").split(":")
    first = f"PUT {subject.entry_path()} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n".encode()
    for headers in (b"X-Big: " + b"a" * 2**20 + b"\r\n", b"X-Many: a\r\n" * 2**16):
        # When they are sent, then they are refused
        answer = exchange(host, int(port), first + headers + b"\r\n{}")
        assert answer == b"" or re.match(rb"HTTP/1\.1 4\d\d ", answer), answer[:200]


def exchange(host: str, port: int, request: bytes) -> bytes:
    """Sends bytes, closes the sending side, and returns all that comes back before the other side closes, too."""
    answer = b""
    with socket.create_connection((host, port), timeout=10) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                answer += part
        except OSError as error:
            if error.errno not in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN):  # refused before all was sent
                raise
    return answer


# anything ---------------------------------------------------------------------------------------------------------

NEARLY = st.fixed_dictionaries(
    {},
    optional={
        "meta": st.dictionaries(st.text(max_size=70), st.text(max_size=20) | ANYTHING, max_size=4) | ANYTHING,
        "sig": st.text(max_size=20) | ANYTHING,
        "id": st.uuids().map(str) | ANYTHING,
        "more": ANYTHING,
    },
)


@pytest.fixture(scope="module")
def lasting(shared_up: Up) -> Iterator[Subject]:
    """A series for all examples of a property."""
    with shared_up.client() as client:
        yield Subject(client)


def check_answer(lasting: Subject, answer: httpx.Response) -> None:
    """Checks that an answer is an entry with the next number, or a refusal that consumed none."""
    if answer.status_code == 200:
        lasting.last += 1
        assert answer.json()["position"] == lasting.last
        lasting.entry = answer.json()["id"]
        return
    assert 400 <= answer.status_code < 500, answer.text
    check_refused(answer, answer.status_code, *answer.json().get("fields", {}))
    lasting.check_nothing_consumed()


@given(body=ANYTHING | NEARLY)
@hypothesis_settings(deadline=None, max_examples=200)
def test_any_json_at_all(lasting: Subject, body: Any) -> None:
    check_answer(lasting, lasting.put(body))


@given(content=st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
@hypothesis_settings(deadline=None, max_examples=200)
def test_any_bytes_at_all(lasting: Subject, content: bytes) -> None:
    check_answer(lasting, lasting.put(content=content))


@given(data=st.data(), body=NEARLY)
@hypothesis_settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_with_any_byte_changed(lasting: Subject, data: st.DataObject, body: Any) -> None:
    content = bytearray(json.dumps(body).encode())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    check_answer(lasting, lasting.put(content=bytes(content)))


@given(
    body=st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("name", "prefix", "padding", "suffix", "start", "type", "active", "default"), ANYTHING),
    )
)
@hypothesis_settings(deadline=None, max_examples=200)
def test_any_series_at_all(lasting: Subject, body: Any) -> None:
    client, series = lasting.client, new_id()
    answer = client.put(f"{BASE}/series/{series}", content=json.dumps(body).encode())
    if answer.status_code == 200 and answer.json()["active"]:
        assert put_entry(client, series)["position"] == 1
    elif answer.status_code == 200:
        check_refused(client.put(f"{BASE}/series/{series}/entries/{new_id()}"), 409)
    else:
        assert answer.status_code in {400, 422}
        check_refused(answer, answer.status_code, *answer.json().get("fields", {}))
        check_refused(client.get(f"{BASE}/series/{series}"), 404)
