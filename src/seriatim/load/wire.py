"""One keep-alive HTTP/1.1 connection, driven by hand: a request at a time, no object for what is not needed."""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

import httptools

from seriatim.load.operations import Request


class User(Protocol):
    """Who sends through connections."""

    def opened(self, connection: Connection) -> None:
        """Is told that a connection is there to be used."""

    def answered(self, connection: Connection, request: Request, status: int, body: bytes) -> None:
        """Is told an answer; the connection is free again unless it is `closing`."""

    def closed(self, connection: Connection, request: Request | None) -> None:
        """Is told that a connection is lost, and with it the answer to a request, if one was under way."""


class Connection(asyncio.Protocol):
    """A connection that carries one request at a time."""

    def __init__(self, user: User) -> None:
        self._user = user
        self._parser = httptools.HttpResponseParser(self)
        self._raw = b""
        self._body = b""
        self.request: Request | None = None
        self.sent_ns = 0
        self.closing = False

    def send(self, request: Request, now_ns: int) -> None:
        """Sends a request."""
        self.request = request
        self.sent_ns = now_ns
        self._transport.write(request.wire)

    def abort(self) -> None:
        """Gives up the connection; what was under way stays unknown."""
        self.closing = True
        self._transport.abort()

    def header(self, name: bytes) -> bytes:
        """Returns a header of the answer at hand. Few are asked for, so the parser does not hand over each of all."""
        head = self._raw.partition(b"\r\n\r\n")[0]
        for line in head.lower().split(b"\r\n"):
            if line.startswith(name + b":"):
                return line[len(name) + 1 :].strip()
        return b""

    def replayed(self) -> bool:
        """Whether the answer at hand says that it is one of before."""
        return b"eplayed" in self._raw and self.header(b"idempotent-replayed") == b"true"

    # what the event loop says -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self._user.opened(self)

    def data_received(self, data: bytes) -> None:
        """Parses what came."""
        self._raw = self._raw + data if self._raw else data
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        """Tells whose answer will not come."""
        request, self.request = self.request, None
        self._user.closed(self, request)

    # what the parser says ---------------------------------------------------------------------------------------------

    def on_body(self, body: bytes) -> None:
        """Collects the body."""
        self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        """Hands the answer over."""
        request, self.request = self.request, None
        if request is None:  # an answer that nobody asked for
            self.abort()
            return
        if not self._parser.should_keep_alive():
            self.closing = True
            self._transport.close()
        self._user.answered(self, request, self._parser.get_status_code(), self._body)
        self._raw = self._body = b""
