"""What uvicorn leaves open: how long the head of a request may be, and a shorter way for some requests."""

from __future__ import annotations

from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from seriatim.errors import SeriatimError
from seriatim.http.hot import Hot, HotPath
from seriatim.ledger import Outcome

HEAD_BYTES_MAX = 64 * 1024
TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Connection(HttpToolsProtocol):
    """A connection that ends when a request's line and headers are too long; its parser would take any number.

    Requests that the hot path takes are answered without an ASGI task. All others uvicorn serves, and in its order:
    a request on the hot path is the connection's current one as any other.
    """

    _in_head = False
    _head_bytes = 0
    _hot: tuple[RequestResponseCycle, Hot] | None = None
    """The request on the hot path whose body is still to come."""
    _named: tuple[Any, bytes] = ([], b"")
    """The headers that uvicorn gives every answer, which change by the second, and their lines."""

    def __init__(self, path: HotPath, **more: Any) -> None:
        super().__init__(**more)
        self._path = path

    def data_received(self, data: bytes) -> None:
        """Takes what has arrived; of a head only what came after its first piece is counted, which is short."""
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
            self.transport.write(TOO_LONG)
            self.transport.close()

    def on_message_begin(self) -> None:
        """A head begins."""
        self._in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head has ended."""
        self._in_head = False
        self._head_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request is there as a whole."""
        super().on_message_complete()
        self._submit()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        super().connection_lost(exc)
        if self._hot is not None:
            self._path.leave(self._hot[1])
            self._hot = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        hot = None
        if app is self.app and not cycle.waiting_for_100_continue and not self.flow.write_paused:
            hot = self._path.enter(cycle.scope)
        if hot is None:
            super()._start_asgi_task(cycle, app)
            return
        self._hot = cycle, hot
        if not cycle.more_body:  # it was waiting for those before it
            self._submit()

    def _submit(self) -> None:
        if self._hot is None:
            return
        cycle, hot = self._hot
        self._hot = None
        if not self._path.submit(hot, bytes(cycle.body), partial(self._answer, cycle, hot)):
            self._path.leave(hot, undone=True)
            super()._start_asgi_task(cycle, self.app)

    def _answer(self, cycle: RequestResponseCycle, hot: Hot, outcome: Outcome) -> None:
        if self.transport.is_closing():
            self._path.leave(hot)
        elif isinstance(outcome, tuple):
            self._path.leave(hot)
            self._write(cycle, *self._path.response(hot, outcome))
        elif isinstance(outcome, SeriatimError):
            self._path.leave(hot)
            refusing: Any = self._path.refusing(outcome)
            super()._start_asgi_task(cycle, refusing)
        else:
            self._path.leave(hot, undone=True)
            super()._start_asgi_task(cycle, self.app)

    def _write(self, cycle: RequestResponseCycle, lines: bytes, content: bytes) -> None:
        named, more = self._named
        if named is not cycle.default_headers:
            more = b"".join(b"%b: %b\r\n" % header for header in cycle.default_headers)
            self._named = cycle.default_headers, more
        closing = b"" if cycle.keep_alive else b"connection: close\r\n"
        cycle.response_started = cycle.response_complete = True
        self.transport.write(b"".join((b"HTTP/1.1 200 OK\r\n", more, lines, closing, b"\r\n", content)))
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()
