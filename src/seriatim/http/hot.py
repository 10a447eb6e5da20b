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
from typing import Protocol, cast

import msgspec
from starlette.types import ASGIApp

from seriatim.auth import Authenticator, Principal
from seriatim.errors import SeriatimError
from seriatim.http.dialect import PRIVATE, encode
from seriatim.http.edge import SECURITY_HEADERS, Edge, new_request_id
from seriatim.http.heads import Head, Heads
from seriatim.http.sequence import read_entry
from seriatim.keyspace import Issued, Rendering
from seriatim.ledger import Ledger, Outcome, Put
from seriatim.messages import EntryAnswer
from seriatim.model import timestamp, uuid_text

FIXED = [(b"content-type", b"application/json"), *((k.lower().encode(), v.encode()) for k, v in PRIVATE.items())]
LINES = b"".join(b"%b: %b\r\n" % header for header in (*FIXED, *SECURITY_HEADERS))


class Nobody:
    """Stands where a task would wait for a request's body."""

    def set(self) -> None:
        """Wakes nobody."""


class Answering(Protocol):
    """A connection."""

    def answer(self, request: HotRequest, outcome: Outcome) -> None:
        """Answers a request that was on the hot path until now; an answer that is all written is yet to be sent."""

    def send(self, request: HotRequest) -> None:
        """Sends the answer that is written."""


class HotRequest(Put):
    """A request on the hot path; from when its head was admitted until it leaves it counts as being worked on.

    It has what uvicorn's protocol wants to know of the one that it works on, too.
    """

    message_event = Nobody()
    body = b""
    written = b""
    """Its answer, when that is yet to be sent."""
    more_body = True
    keep_alive = True
    disconnected = False
    response_complete = False

    def __init__(  # noqa: PLR0913, PLR0917 -- its parts, all at once
        self, connection: Answering, target: bytes, head: Head, principal: Principal, series_id: str, entry_id: str
    ) -> None:
        self.connection = connection
        self.target = target
        self.head = head
        self.principal = principal
        self.series_id = series_id
        self.entry_id = entry_id

    def tell(self, outcome: Outcome) -> None:
        """Lets the connection answer."""
        self.connection.answer(self, outcome)

    def deliver(self) -> None:
        """Has the answer sent, if it is written."""
        if self.written:
            self.connection.send(self)


class HotPath:
    """Takes and answers the requests that need nothing but a number."""

    def __init__(self, edge: Edge, authenticator: Authenticator, ledger: Ledger, body_bytes_max: int) -> None:
        self._edge = edge
        self._authenticator = authenticator
        self._ledger = ledger
        self.heads = Heads(body_bytes_max)

    def admit(self, head: Head) -> Principal | None:
        """Returns whose request a PUT with this head is, None when it must take the ordinary way."""
        principal = self._authenticator.known(head.credentials)
        if principal is None or not principal.company or "allocate" not in principal.scopes or not self._edge.enter():
            return None
        try:
            principal.allowance.__enter__()
        except SeriatimError:
            self._edge.leave()
            return None
        return principal

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

    def answer(self, request: HotRequest, issued: Issued) -> bytes:
        """Returns the answer from the headers on that are its own."""
        content = issued_content(request.series_id, request.entry_id, issued)
        named = (request.head.named or new_request_id()).encode()
        more = b"idempotent-replayed: true\r\n" if issued.replayed else b""
        return b"content-length: %d\r\nx-request-id: %b\r\n%b\r\n%b" % (len(content), named, more, content)

    def refusing(self, error: SeriatimError) -> ASGIApp:
        """Returns an app that answers an error."""
        return self._edge.refusing(error)


def issued_content(series_id: str, entry_id: str, issued: Issued) -> bytes:
    """Returns an entry as the ordinary way answers it; what all entries of a rendering share is written once."""
    run, nth, firsts = issued.run, issued.nth, issued.run.values
    first, linked, counted = _contents(run.rendering)
    numbers = [firsts[field] + nth for field in counted]
    sig, meta = issued.carried()
    sigs, at = b'"%b"' % sig if sig else b"", timestamp(run.time).encode()
    last = run.first + nth, firsts[0] + nth, meta or b"{}", sigs, at, at
    if not issued.previous:
        return first % (entry_id.encode(), series_id.encode(), *numbers, *last)
    return linked % (entry_id.encode(), series_id.encode(), *numbers, *last, uuid_text(issued.previous).encode())


@lru_cache(maxsize=1024)
def _contents(rendering: Rendering) -> tuple[bytes, bytes, list[int]]:
    """Returns the answers of entries that have a rendering, with places for what they do not share (printf).

    That of a series' first entry, and that of one behind another; and of which fields their codes have the values,
    counted from 0.
    """
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
    )
    linked = msgspec.structs.replace(blank, previous_id="%b")
    return encode(blank), encode(linked), [field - 1 for field in rendering.counted]
