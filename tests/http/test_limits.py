"""How much of it: requests a second and at once, by key and in all; and the headers that every answer has."""

from __future__ import annotations

import base64
import shutil
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from issuer import Issuer
from stack import Up, new_id, put_series, until

RATE, AT_ONCE, IN_ALL = 6, 3, 8
SEQUENCE, DREAMAPPLY, STORNO = "/sequence/v1/series", "/api/v9/invoices/series", "/api/v1/document-series"
OCTOBAT = "/invoice_numbering_sequences"
PATHS = (SEQUENCE, DREAMAPPLY, STORNO, OCTOBAT)
SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Narrow:
    """A running service with narrow limits, and keys of one company."""

    def __init__(self, directory: Path) -> None:
        self.issuer = Issuer(directory, scope="read manage allocate")
        limits = {"KEY_RATE_MAX": RATE, "KEY_IN_FLIGHT_MAX": AT_ONCE, "IN_FLIGHT_MAX": IN_ALL, "BODY_BYTES_MAX": 1000}
        settings = {f"SERIATIM_{name}": str(value) for name, value in limits.items()}
        settings["SERIATIM_JWT_JWKS"] = str(self.issuer.file)
        self.up = Up(directory, environment=settings).start()
        self.company = self.up.json("companies", "list")[0]["id"]
        self.client = httpx.Client(base_url=self.up.url, timeout=20, verify=False)

    def key(self) -> str:
        key: str = self.up.json("keys", "create", "--company", self.company)["key"]
        return key

    def token(self, subject: str) -> str:
        return self.issuer.token(sub=subject, company=self.company, jti=new_id())

    def headers(self, path: str, credentials: str) -> dict[str, str]:
        """What an API key, or a token, is sent with in the dialect of a path."""
        basic = base64.b64encode(f"{credentials}:".encode()).decode()
        schemes = {DREAMAPPLY: f'DREAM apikey="{credentials}"', OCTOBAT: f"Basic {basic}"}
        return {"Authorization": schemes.get(path, f"Bearer {credentials}"), "X-Company": self.company}

    def get(self, path: str, credentials: str) -> httpx.Response:
        return self.client.get(path, headers=self.headers(path, credentials))

    def flood(self, requests: list[tuple[str, str]]) -> tuple[list[httpx.Response], float]:
        """Sends requests for paths with credentials, one after the other; the answers, and how long they took."""
        began = time.monotonic()
        answers = [self.get(path, credentials) for path, credentials in requests]
        return answers, time.monotonic() - began

    @contextmanager
    def held(self, key: str, count: int) -> Iterator[list[Held]]:
        """Requests that are at work: their bodies have not come yet."""
        with ExitStack() as stack:
            yield [stack.enter_context(Held(self, key)) for _ in range(count)]


class Held:
    """A request whose body of ten bytes is still to come, and which is being worked on."""

    def __init__(self, narrow: Narrow, key: str) -> None:
        begun = until(lambda: begin(narrow, key))
        assert begun is not None
        self.socket = begun

    def finish(self, body: bytes) -> int:
        """Sends the body, and returns the status."""
        self.socket.sendall(body)
        return int(self.socket.recv(4096).split()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def connect(narrow: Narrow) -> socket.socket:
    host, _, port = narrow.up.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def begin(narrow: Narrow, key: str) -> socket.socket | None:
    """Sends a request without its body; None when the key may not send another one yet."""
    connection = connect(narrow)
    head = f"PUT {SEQUENCE}/{new_id()} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    # When it is told to go on, its handler waits for the body.
    connection.sendall(f"{head}Content-Length: 10\r\nExpect: 100-continue\r\n\r\n".encode())
    told = int(connection.recv(4096).split()[1])
    if told == 100:
        return connection
    connection.close()
    assert told == 429
    return None


@pytest.fixture(scope="module")
def narrow() -> Iterator[Narrow]:
    directory = Path(tempfile.mkdtemp(prefix="seriatim-test-"))
    made = Narrow(directory)
    yield made
    made.client.close()
    made.up.stop()
    shutil.rmtree(directory, ignore_errors=True)


def check_refusal(path: str, answer: httpx.Response, status: int, word: str) -> None:
    """A refusal says when to come back, and what is wrong, in the dialect's own shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Retry-After"] == "1"
    content: dict[str, Any] = answer.json()
    if path == STORNO:
        storno = {"busy": "rate_limited", "unavailable": "unavailable"}
        assert (content["error"], content["code"]) == (storno[word], status)
        assert set(content) == {"error", "message", "code"}
    elif path == OCTOBAT:
        assert content == {"errors": {"global": [{"details": content["errors"]["message"]}]} | content["errors"]}
    else:
        assert content["code"] == word
        assert set(content) == {"code", "message"}


def is_free(narrow: Narrow, key: str) -> bool:
    """Whether a request with a key is worked on; one that comes too soon after others is not counted as refused."""
    answer = narrow.get(SEQUENCE, key)
    return answer.status_code == 200


# requests a second ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_who_sends_too_much_is_told_to_send_less(narrow: Narrow, path: str) -> None:
    # Given a key, when it sends far more than it may
    key, other = narrow.key(), narrow.key()
    answers, took_s = narrow.flood([(path, key)] * RATE * 5)

    # Then it gets as much as it may, and is told what to do, in the dialect's shape
    allowed = [answer for answer in answers if answer.status_code == 200]
    assert RATE <= len(allowed) <= RATE + RATE * took_s + 1
    refused = [answer for answer in answers if answer.status_code != 200]
    for answer in refused:
        check_refusal(path, answer, 429, "busy")

    # And another key is not held up, and after a while neither is this one
    assert narrow.get(path, other).status_code == 200
    assert until(lambda: narrow.get(path, key).status_code == 200)


def test_all_dialects_draw_on_one_allowance(narrow: Narrow) -> None:
    # Given a key, when it sends more than it may by turns in every dialect
    key = narrow.key()
    answers, took_s = narrow.flood([(path, key) for _ in range(RATE * 2) for path in PATHS])

    # Then it is allowed no more than in one
    allowed = [answer for answer in answers if answer.status_code == 200]
    assert RATE <= len(allowed) <= RATE + RATE * took_s + 1


def test_all_tokens_of_one_subject_draw_on_one_allowance(narrow: Narrow) -> None:
    # Given somebody who gets a new token for every request
    answers, took_s = narrow.flood([(SEQUENCE, narrow.token("busy one")) for _ in range(RATE * 5)])

    # Then that helps them nothing, and does others no harm
    allowed = [answer for answer in answers if answer.status_code == 200]
    assert RATE <= len(allowed) <= RATE + RATE * took_s + 1
    assert narrow.get(SEQUENCE, narrow.token("another")).status_code == 200


# requests at once -------------------------------------------------------------------------------------------------


def test_a_key_has_so_many_requests_at_work_and_no_more(narrow: Narrow) -> None:
    # Given a key with as many requests at work as it may have
    key, other = narrow.key(), narrow.key()
    with narrow.held(key, AT_ONCE):
        # When it sends another one in any dialect, then that is refused in its shape, and other keys are not held up
        for path in PATHS:
            check_refusal(path, narrow.get(path, key), 503, "unavailable")
        assert narrow.get(SEQUENCE, other).status_code == 200

    # And once its clients have gone away, it is free again
    until(lambda: is_free(narrow, key))


@pytest.mark.parametrize(("body", "status"), [(b"{}        ", 200), (b'{"start":x', 400), (b'{"name":1}', 422)])
def test_a_request_that_ends_makes_room_however_it_ends(narrow: Narrow, body: bytes, status: int) -> None:
    # Given a key with as many requests at work as it may have
    key = narrow.key()
    with narrow.held(key, AT_ONCE) as held:
        assert narrow.get(SEQUENCE, key).status_code == 503

        # When one of them is answered, well or not
        assert held[0].finish(body) == status

        # Then there is room for one, and for no second
        until(lambda: is_free(narrow, key))
        with narrow.held(key, 1):
            assert narrow.get(SEQUENCE, key).status_code == 503


def test_tokens_of_one_subject_have_so_many_requests_at_work(narrow: Narrow) -> None:
    # Given somebody with as many requests at work as they may have, each with a token of its own
    with ExitStack() as stack:
        for _ in range(AT_ONCE):
            stack.enter_context(Held(narrow, narrow.token("slow one")))

        # Then another token of theirs is refused, and one of somebody else's is not
        check_refusal(SEQUENCE, narrow.get(SEQUENCE, narrow.token("slow one")), 503, "unavailable")
        assert narrow.get(SEQUENCE, narrow.token("quick one")).status_code == 200


def test_a_process_has_so_many_requests_at_work_and_no_more(narrow: Narrow) -> None:
    # Given a process with as many requests at work as it may have, of several keys
    keys = [narrow.key() for _ in range(IN_ALL // 2)]
    with ExitStack() as stack:
        for key in keys:
            stack.enter_context(narrow.held(key, 2))

        # When anybody asks for anything, then they are refused in the shape of the dialect that they speak
        for path in (*PATHS, "/nowhere"):
            check_refusal(path, narrow.client.get(path), 503, "unavailable")
            check_refusal(path, narrow.get(path, keys[0]), 503, "unavailable")

        # And the process is not taken for a dead one
        assert narrow.client.get("/healthz").status_code == 200
        assert narrow.client.get("/readyz").status_code == 200
    until(lambda: is_free(narrow, keys[0]))


def test_who_may_not_do_it_has_nothing_at_work(narrow: Narrow) -> None:
    # Given requests without a right key whose bodies are still to come, when they have been refused
    with ExitStack() as stack:
        for _ in range(IN_ALL * 2):
            one = stack.enter_context(connect(narrow))
            one.sendall(f"PUT {SEQUENCE}/{new_id()} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n".encode())
            assert one.recv(4096).startswith(b"HTTP/1.1 401 ")

        # Then there is room for others
        assert narrow.get(SEQUENCE, narrow.key()).status_code == 200


@pytest.mark.parametrize("what", ["line", "header", "headers"])
def test_a_head_without_end_is_cut_off(narrow: Narrow, what: str) -> None:
    # Given a client that sends a request line, or headers, and goes on sending
    begins = {"line": b"GET /", "header": b"GET / HTTP/1.1\r\nX: ", "headers": b"GET / HTTP/1.1\r\n"}
    piece = (b"X: " + b"x" * 1000 + b"\r\n") * 64 if what == "headers" else b"x" * 65536
    with connect(narrow) as connection:
        connection.sendall(begins[what])
        sent = 0
        with suppress(OSError):  # then it is cut off
            while sent < 64 * 2**20:
                connection.sendall(piece)
                sent += len(piece)

        # Then it is cut off long before it has filled our memory
        assert sent < 32 * 2**20

    # And heads that are long, but not so long, are read, also when one piece holds several requests
    with connect(narrow) as connection:
        one = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 60_000 + b"\r\n\r\n"
        connection.sendall(one * 5)
        told = b""
        while told.count(b"HTTP/1.1 200 ") < 5:
            got = connection.recv(65536)
            assert got, told
            told += got


# headers ----------------------------------------------------------------------------------------------------------


def test_every_answer_has_the_security_headers_and_none_tells_what_we_are(narrow: Narrow) -> None:
    # Given answers of every kind
    company = narrow.up.json("companies", "create", "faulty")["id"]
    key = narrow.up.json("keys", "create", "--company", company)["key"]
    narrow.client.headers.update({"Authorization": f"Bearer {key}", "X-Company": company})
    used, unused = put_series(narrow.client, prefix="U-"), put_series(narrow.client, prefix="V-")
    asked: list[tuple[int, str, str, dict[str, Any]]] = [
        (200, "GET", STORNO, {}),
        (200, "HEAD", STORNO, {}),
        (204, "DELETE", f"{SEQUENCE}/{unused}", {}),
        (400, "PUT", f"{SEQUENCE}/{unused}", {"content": b"{"}),
        (401, "GET", DREAMAPPLY, {}),
        (401, "HEAD", OCTOBAT, {}),
        (403, "GET", SEQUENCE, {"headers": {"X-Company": "nobody"}}),
        (404, "GET", f"{SEQUENCE}/{new_id()}", {}),
        (404, "GET", "/nowhere", {}),
        (404, "HEAD", "/nowhere", {}),
        (405, "DELETE", OCTOBAT, {}),
        (413, "PUT", f"{SEQUENCE}/{unused}", {"content": b" " * 2000}),
        (422, "POST", STORNO, {"json": {}}),
        (500, "GET", f"{SEQUENCE}/{used}", {}),
        (500, "GET", STORNO, {}),
    ]
    private = []
    for status, method, path, more in asked:
        if status == 500:
            spoil(narrow, used)
        private.append(answer_to(narrow, method, path, more))
        assert private[-1].status_code == status, (method, path, private[-1].text)
    del narrow.client.headers["Authorization"], narrow.client.headers["X-Company"]
    slow = narrow.key()
    with narrow.held(slow, AT_ONCE):
        private.append(narrow.get(SEQUENCE, slow))
    flood = narrow.flood([(SEQUENCE, narrow.key())] * RATE * 5)[0]
    private.append(next(one for one in flood if one.status_code == 429))  # the last may find one allowed again
    assert [answer.status_code for answer in private[-2:]] == [503, 429]
    public = [narrow.client.get(path) for path in ("/healthz", "/readyz", "/.well-known/jwks.json", "/openapi.json")]
    public += [narrow.client.get("/docs"), narrow.client.head("/healthz"), narrow.client.options("/healthz")]

    # Then each has the headers that keep browsers from harm, and no name or version of what answers
    for answer in (*private, *public):
        assert {name: answer.headers.get(name) for name in SECURITY} == SECURITY, answer.request.url
        assert "Server" not in answer.headers
        assert "X-Powered-By" not in answer.headers
        assert len(answer.headers["X-Request-Id"]) == 32

    # And what is for who asked is kept by nobody, and is no page
    for answer in private:
        assert answer.headers["Cache-Control"] == "no-store", (answer.request.url, answer.status_code)
        assert answer.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"


def answer_to(narrow: Narrow, method: str, path: str, more: dict[str, Any]) -> httpx.Response:
    """The answer to a request that is not one too many."""

    def ask() -> httpx.Response | None:
        answer = narrow.client.request(method, path, **more)
        return None if answer.status_code == 429 else answer

    answer = until(ask)
    assert answer is not None
    return answer


def spoil(narrow: Narrow, series: str) -> None:
    """Makes a fault of ours: a definition in the store that nobody can have written."""
    database = sqlite3.connect(narrow.up.data_dir / "store.db", timeout=20)
    with database:
        changed = database.execute(
            "UPDATE series SET timezone = 'No/Where' WHERE id = ?", [series.replace("-", "")]
        ).rowcount
    assert changed == 1
    database.close()
