"""The hot path: a plain PUT of an entry, without the layers that every other request passes.

For one number, an ASGI server's task, Starlette's routing and its objects for requests and responses cost several times
what the number does. So a connection (server.py) offers each request here first. What is plain, with credentials and a
series that are known already, goes to the ledger at once and is answered when Redis has; everything else, every refusal
but those of the ledger, and whatever goes wrong, takes the ordinary way, which is the same core: nothing is decided
here that is not decided there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp

from seriatim.auth import Authenticator, Principal
from seriatim.errors import SeriatimError
from seriatim.http.dialect import PRIVATE, bearer
from seriatim.http.edge import SECURITY_HEADERS, Edge, request_id
from seriatim.http.sequence import entry_content, read_entry
from seriatim.ledger import Ledger, Outcome

UUID = "([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"
PATH = re.compile(rf"/sequence/v1/series/{UUID}/entries/{UUID}\Z")
BODY_BYTES_MAX = 32 * 1024
"""Longer ones a server reads piece by piece."""
UNUSUAL = {b"transfer-encoding", b"x-company"}
HEAD = b"".join(
    b"%b: %b\r\n" % (name.lower(), value)
    for name, value in (
        (b"content-type", b"application/json"),
        *((name.encode(), value.encode()) for name, value in PRIVATE.items()),
        *SECURITY_HEADERS,
    )
)


class Hot:
    """A request on the hot path; it counts as being worked on until it leaves."""

    __slots__ = ("entry_id", "principal", "scope", "series_id")

    def __init__(self, scope: Any, principal: Principal, series_id: str, entry_id: str) -> None:
        self.scope = scope
        self.principal = principal
        self.series_id = series_id
        self.entry_id = entry_id


class HotPath:
    """Takes and answers the requests that need nothing but a number."""

    def __init__(self, edge: Edge, authenticator: Authenticator, ledger: Ledger, body_bytes_max: int) -> None:
        self._edge = edge
        self._authenticator = authenticator
        self._ledger = ledger
        self._body_bytes_max = min(body_bytes_max, BODY_BYTES_MAX)

    def enter(self, scope: Any) -> Hot | None:
        """Takes a request whose head is there, unless it must take the ordinary way."""
        named = PATH.match(scope["path"]) if scope["method"] == "PUT" and not scope["query_string"] else None
        if named is None:
            return None
        authorization = b""
        for name, value in scope["headers"]:
            if name == b"authorization":
                if authorization:
                    return None
                authorization = value
            elif name in UNUSUAL or (name == b"content-length" and int(value) > self._body_bytes_max):
                return None
        principal = self._authenticator.known(bearer(authorization.decode("latin-1")))
        if principal is None or not principal.company or "allocate" not in principal.scopes:
            return None
        return self._counted(Hot(scope, principal, named[1], named[2]))

    def _counted(self, hot: Hot) -> Hot | None:
        if not self._edge.enter():
            return None
        try:
            hot.principal.allowance.__enter__()
        except SeriatimError:
            self._edge.leave()
            return None
        return hot

    def leave(self, hot: Hot, *, undone: bool = False) -> None:
        """Ends a request; `undone` when it takes the ordinary way, where it is counted anew."""
        self._edge.leave()
        hot.principal.allowance.end(undone=undone)

    def submit(self, hot: Hot, body: bytes, tell: Callable[[Outcome], None]) -> bool:
        """Asks for the number; `tell` is called with what comes of it. False when nothing was done."""
        try:
            wanted = read_entry(hot.entry_id, body, {})
            return self._ledger.submit(hot.principal.company, hot.series_id, wanted, tell)
        except Exception:  # noqa: BLE001 -- the ordinary way says what is wrong
            return False

    def response(self, hot: Hot, outcome: tuple[Any, bool]) -> tuple[bytes, bytes]:
        """Returns the headers' lines and the body of an answer."""
        entry, replayed = outcome
        content = entry_content(entry)
        lines = b"%bcontent-length: %d\r\nx-request-id: %b\r\n" % (HEAD, len(content), request_id(hot.scope).encode())
        return (lines + b"idempotent-replayed: true\r\n" if replayed else lines), content

    def refusing(self, error: SeriatimError) -> ASGIApp:
        """Returns an app that answers an error."""
        return self._edge.refusing(error)
