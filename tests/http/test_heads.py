"""A head that is remembered says what the parser finds in it."""

from __future__ import annotations

import uuid

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plain_socket import request
from seriatim.http import heads
from seriatim.http.heads import Head, Headers, Heads, Whole
from stack import entry_path

BODY_BYTES_MAX = 5000


class Parsed:
    """What the parser finds in bytes."""

    def __init__(self, data: bytes) -> None:
        self.messages = 0
        self.ended = 0
        self.headers: Headers = []
        self.target = b""
        self.body = b""
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.messages = -1
            return
        self.method = parser.get_method()
        self.version = parser.get_http_version()

    def on_message_begin(self) -> None:
        self.messages += 1

    def on_message_complete(self) -> None:
        self.ended += 1

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def is_one(self) -> bool:
        return self.messages == self.ended == 1


def put(lines: bytes, body: bytes, length: int | None = None) -> bytes:
    """A PUT with these lines of headers, where LENGTH stands for the body's."""
    target = entry_path(str(uuid.uuid4()), str(uuid.uuid4())).encode()
    said = b"%d" % (len(body) if length is None else length)
    return b"PUT %b HTTP/1.1\r\n%b\r\n%b" % (target, lines.replace(b"LENGTH", said), body)


def learn(known: Heads, data: bytes) -> tuple[Whole, Head] | None:
    """Reads a request as a connection does; answers what it remembers."""
    whole, parsed = known.whole(data), Parsed(data)
    if whole is None or not parsed.is_one():
        return None
    head = known.read(parsed.headers)
    if head is None:
        return None
    known.remember(whole, head)
    return whole, head


PIECES = [
    b"Host: numbers.example",
    b"Authorization: Bearer seriatim_x",
    b"authorization: Bearer other",
    b"Content-Length: LENGTH",
    b"content-length: LENGTH",
    b"CONTENT-LENGTH: LENGTH",
    b"Content-Length:LENGTH",
    b"Content-Length: LENGTH ",
    b"Content-Length: 0LENGTH",
    b"Content-Length: 2",
    b"X-Content-Length: 7",
    b"X-A: Content-Length: 3",
    b" Content-Length: 4",
    b"Transfer-Encoding: chunked",
    b"Connection: keep-alive",
    b"Connection: close",
    b"X-Company: c",
    b"X-Request-Id: r1",
    b"Accept: */*",
    b"",
    b"\tfolded",
    b"X: \r",
    b"X: a\nContent-Length: LENGTH",
]
ENDS = [b"\r\n"] * 12 + [b"\n", b"\r", b"\r\n\r\n", b"\n\n"]
LINES = st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(ENDS)), max_size=7).map(
    lambda pairs: b"".join(piece + end for piece, end in pairs)
)
PLAIN = b"Host: numbers.example\r\nAuthorization: Bearer seriatim_x\r\nContent-Length: LENGTH\r\nAccept: */*\r\n"
BODIES = st.sampled_from([b"", b"{}", b'{"meta":{}}', b"\r\n\r\n", b"\r\n", b"x" * 300, b"GET / HTTP/1.1\r\n\r\n"])


@given(lines=LINES | st.just(PLAIN), first=BODIES, second=BODIES)
def test_what_is_recalled_is_what_the_parser_finds(lines: bytes, first: bytes, second: bytes) -> None:
    # Given a head that came with one body and was remembered, however strange it is
    known = Heads(BODY_BYTES_MAX)
    learned = learn(known, put(lines, first))

    # When the same comes with another path and another body
    data = put(lines, second)
    whole = known.whole(data)
    head = known.recall(whole) if whole else None

    # Then what is recalled of it is what the parser reads, and plain
    if learned and head and whole:
        parsed = Parsed(data)
        assert parsed.is_one()
        assert (parsed.method, parsed.version, parsed.target, parsed.body) == (b"PUT", "1.1", whole.target, second)
        assert whole.body == second
        assert parsed.headers == head.headers
        assert known.read(parsed.headers) is not None
    # And a plain one with a body of the same length is recalled
    assert head or lines != PLAIN or len(first) != len(second)


def test_a_request_is_taken_apart() -> None:
    # Given a request of a kind that was seen before
    known = Heads(BODY_BYTES_MAX)
    learned = learn(known, put(PLAIN, b'{"b":"a"}'))
    series, entry = str(uuid.uuid4()), str(uuid.uuid4())
    headers = {"Authorization": "Bearer seriatim_x", "Content-Length": "9", "Accept": "*/*"}
    whole = known.whole(request("PUT", entry_path(series, entry), headers) + b'{"a":"b"}')

    # Then its parts are told, and its head is the one that was seen
    assert whole
    assert learned
    assert (whole.series_id, whole.entry_id, whole.body) == (series, entry, b'{"a":"b"}')
    assert known.recall(whole) is learned[1]
    assert learned[1].credentials == "seriatim_x"


NOT_WHOLE = {
    "a piece": put(PLAIN, b"{}")[:-1],
    "more than one": put(PLAIN, b"{}") * 2,
    "more than its length": put(PLAIN, b"{}") + b"\r\n",
    "no end": put(PLAIN, b"{}").partition(b"\r\n\r\n")[0],
    "another length": put(PLAIN, b"{}", length=3),
    "too long a body": put(PLAIN, b" " * (BODY_BYTES_MAX + 1)),
    "another method": b"POST" + put(PLAIN, b"{}")[3:],
    "an older version": put(PLAIN, b"{}").replace(b"HTTP/1.1", b"HTTP/1.0"),
    "a query": put(PLAIN, b"{}").replace(b" HTTP/1.1", b"?x HTTP/1.1"),
    "another path": put(PLAIN, b"{}").replace(b"/entries/", b"/entrees/"),
    "lines before it": b"\r\n" + put(PLAIN, b"{}"),
}


@pytest.mark.parametrize("data", NOT_WHOLE.values(), ids=NOT_WHOLE)
def test_what_is_not_one_plain_request_is_for_the_parser(data: bytes) -> None:
    # Given bytes that are no PUT of an entry, or not just one, though such a head is known
    known = Heads(BODY_BYTES_MAX)
    assert learn(known, put(PLAIN, b"{}"))
    learn(known, data)

    # When they come, then they are not taken for one
    whole = known.whole(data)
    assert whole is None or known.recall(whole) is None


@pytest.mark.parametrize(
    "line", [b"X-Request-Id: r1", b"X: %b" % (b"x" * heads.REMEMBERED_BYTES_MAX)], ids=["named", "long"]
)
def test_a_head_that_is_long_or_names_its_request_is_not_remembered(line: bytes) -> None:
    # Given a plain request with such a line
    known = Heads(BODY_BYTES_MAX)
    data = put(PLAIN + line + b"\r\n", b"{}")

    # When it has been read, then it is not known
    assert learn(known, data)
    whole = known.whole(data)
    assert whole
    assert known.recall(whole) is None


def test_memory_is_bounded() -> None:
    # Given more kinds of heads than are remembered
    known = Heads(BODY_BYTES_MAX)
    for number in range(3 * heads.REMEMBERED_MAX):
        assert learn(known, put(PLAIN + b"X: %d\r\n" % number, b"{}"))

    # Then some are forgotten, and the last is known
    last = known.whole(put(PLAIN + b"X: %d\r\n" % number, b"{}"))
    assert last
    assert known.recall(last)
    assert len(known._known) <= heads.REMEMBERED_MAX
