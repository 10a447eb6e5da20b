"""The hot path: a plain PUT of an entry, without the layers that every other request passes.

For one number, an ASGI server's task, Starlette's routing and its objects for requests and responses cost several times
what the number does. So a connection (server.py) offers each request here first. What is plain, with credentials and a
series that are known already, goes to the ledger at once and is answered when Redis has; everything else, every refusal
but those of the ledger, and whatever goes wrong, takes the ordinary way, which is the same core: nothing is decided
here that is not decided there. And since a client sends the same headers with each request, or has a few lengths of
bodies, a head that was parsed before is not parsed again.
"""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import msgspec
from starlette.types import ASGIApp

from seriatim.auth import Authenticator, Principal
from seriatim.errors import SeriatimError
from seriatim.http.dialect import PRIVATE, encode
from seriatim.http.edge import SECURITY_HEADERS, Edge, new_request_id
from seriatim.http.heads import Head, Heads
from seriatim.http.sequence import read_entry
from seriatim.keyspace import Issued, Rendering
from seriatim.ledger import Ledger, Put
from seriatim.messages import EntryAnswer
from seriatim.model import timestamp, uuid_text

FIXED = [(b"content-type", b"application/json"), *((k.lower().encode(), v.encode()) for k, v in PRIVATE.items())]
LINES = b"".join(b"%b: %b\r\n" % header for header in (*FIXED, *SECURITY_HEADERS))


class HotRequest(Put):
    """A request on the hot path; from when it has entered until it leaves it counts as being worked on."""

    __slots__ = ("body", "entry_id", "head", "principal", "series_id", "target")

    def __init__(self, target: bytes, head: Head) -> None:
        self.target = target
        self.head = head
        self.body = b""

    def enter(self, principal: Principal, series_id: str, entry_id: str) -> None:
        """Says what it asks for, and who."""
        self.principal = principal
        self.series_id = series_id
        self.entry_id = entry_id


class HotPath:
    """Takes and answers the requests that need nothing but a number."""

    def __init__(self, edge: Edge, authenticator: Authenticator, ledger: Ledger, body_bytes_max: int) -> None:
        self._edge = edge
        self._authenticator = authenticator
        self._ledger = ledger
        self.heads = Heads(body_bytes_max)

    def enter(self, request: HotRequest, series_id: str, entry_id: str) -> bool:
        """Takes a PUT whose head is there, unless it must take the ordinary way."""
        principal = self._authenticator.known(request.head.credentials)
        if principal is None or not principal.company or "allocate" not in principal.scopes or not self._edge.enter():
            return False
        try:
            principal.allowance.__enter__()
        except SeriatimError:
            self._edge.leave()
            return False
        request.enter(principal, series_id, entry_id)
        return True

    def leave(self, request: HotRequest, *, undone: bool = False) -> None:
        """Ends a request; `undone` when it takes the ordinary way, where it is counted anew."""
        self._edge.leave()
        request.principal.allowance.end(undone=undone)

    def submit(self, request: HotRequest) -> bool:
        """Asks for the number, and has the request told what comes of it. False when nothing was done."""
        try:
            wanted = read_entry(request.entry_id, request.body, {})
            return self._ledger.submit(request, request.principal.company, request.series_id, wanted)
        except SeriatimError:
            return False

    def answer(self, request: HotRequest, issued: Issued) -> tuple[bytes, bytes]:
        """Returns the lines of the headers that differ, and the body."""
        content = issued_content(request.series_id, request.entry_id, issued)
        named = (request.head.named or new_request_id()).encode()
        lines = b"content-length: %d\r\nx-request-id: %b\r\n" % (len(content), named)
        return (lines + b"idempotent-replayed: true\r\n" if issued.replayed else lines), content

    def refusing(self, error: SeriatimError) -> ASGIApp:
        """Returns an app that answers an error."""
        return self._edge.refusing(error)


def issued_content(series_id: str, entry_id: str, issued: Issued) -> bytes:
    """Returns an entry as the ordinary way answers it; what all entries of a rendering share is written once."""
    run, values = issued.run, issued.values()
    sig, meta = issued.carried()
    counted = [values[field - 1] for field in run.rendering.counted]
    at = timestamp(run.time).encode()
    names = entry_id.encode(), series_id.encode()
    said = (*names, *counted, issued.position, values[0], meta or b"{}", b'"%b"' % sig if sig else b"", at, at)
    if not issued.previous:
        return _content(run.rendering, linked=False) % said
    return _content(run.rendering, linked=True) % (*said, uuid_text(issued.previous).encode())


@lru_cache(maxsize=1024)
def _content(rendering: Rendering, *, linked: bool) -> bytes:
    """Returns the answer of entries that have a rendering, with places for what they do not share (printf)."""
    blank = EntryAnswer(
        id="%b",
        series_id="%b",
        code=rendering.code,
        position=cast("int", msgspec.Raw(b"%d")),
        number=cast("int", msgspec.Raw(b"%d")),
        date=rendering.date,
        meta=cast("dict[str, str]", msgspec.Raw(b"%b")),
        sigs=cast("list[str]", msgspec.Raw(b"[%b]")),
        created_at="%b",
        updated_at="%b",
        previous_id="%b" if linked else None,
    )
    return encode(blank)
