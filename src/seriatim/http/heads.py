"""Heads of requests that are read once: a client sends the same one each time, save the path, or one of a few.

A parser finds the same in the same bytes. So a head that it has read before is known by its bytes, and only a request
that comes in one piece and has such a head is taken apart here; whatever else comes, the parser reads.
"""

from __future__ import annotations

import re

import msgspec

from seriatim.http.dialect import bearer
from seriatim.http.edge import given_request_id
from seriatim.model import CANONICAL_UUID

TARGET = re.compile(rf"(/sequence/v1/series/({CANONICAL_UUID})/entries/({CANONICAL_UUID}))".encode())
LINE = re.compile(rb"PUT %b HTTP/1\.1\r\n" % TARGET.pattern)
BODY_BYTES_MAX = 32 * 1024
"""Longer ones a server reads piece by piece."""
REMEMBERED_BYTES_MAX = 1024
REMEMBERED_MAX = 4096
"""How many heads are remembered, and how long they may be."""
UNUSUAL = {b"authorization", b"transfer-encoding", b"expect", b"upgrade", b"x-company"}
"""Headers that ask for more than a number; the first Authorization does not."""
Headers = list[tuple[bytes, bytes]]


class Head(msgspec.Struct, frozen=True):
    """The headers of a plain request, their names in lower case, and what they say.

    Args:
        headers: all of them.
        length: that of the body.
        credentials: the bearer's, or empty.
        named: the request's name, if the caller has given it one.
    """

    headers: Headers
    length: int
    credentials: str
    named: str | None


class Whole(msgspec.Struct, frozen=True, gc=False):
    """A request that may have come in one piece. Its head is as it was sent, without the line."""

    target: bytes
    series_id: str
    entry_id: str
    head: bytes
    body: bytes


class Heads:
    """The heads that were read; bodies may have `body_bytes_max`."""

    def __init__(self, body_bytes_max: int) -> None:
        self._body_bytes_max = min(body_bytes_max, BODY_BYTES_MAX)
        self._known: dict[bytes, Head] = {}

    def read(self, headers: Headers) -> Head | None:
        """Returns a head, None when it is not plain."""
        authorization, length = None, 0
        for name, value in headers:
            if name == b"authorization" and authorization is None:
                authorization = value
            elif name == b"content-length":
                length = int(value)
                if length > self._body_bytes_max:
                    return None
            elif name in UNUSUAL or (name == b"connection" and value.lower() != b"keep-alive"):
                return None
        return Head(headers, length, bearer((authorization or b"").decode("latin-1")), given_request_id(headers))

    def whole(self, data: bytes) -> Whole | None:
        """Returns the PUT of an entry that these bytes may be, if they begin as one."""
        line = LINE.match(data)
        if line is None:
            return None
        begin = line.end()
        end = data.find(b"\r\n\r\n", begin - 2) + 4
        if end < begin:
            return None
        target, series_id, entry_id = line.groups()
        return Whole(target, series_id.decode(), entry_id.decode(), data[begin:end], data[end:])

    def recall(self, whole: Whole) -> Head | None:
        """Returns the head of a request, if it is known and the request is whole."""
        head = self._known.get(whole.head)
        return head if head is not None and head.length == len(whole.body) else None

    def remember(self, whole: Whole, head: Head) -> None:
        """Makes the head of a request known, as a parser has read it. One that no second request will have is not."""
        lines = whole.head.count(b"\r\n")
        clear_cut = whole.head.count(b"\r") == whole.head.count(b"\n") == lines
        fits = len(whole.head) <= REMEMBERED_BYTES_MAX and len(whole.body) == head.length
        if clear_cut and fits and head.named is None:
            if len(self._known) >= REMEMBERED_MAX:
                self._known.clear()
            self._known[whole.head] = head
