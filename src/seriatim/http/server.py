"""What uvicorn leaves open: how long the head of a request may be, and a shorter way for some requests."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from seriatim.errors import SeriatimError
from seriatim.http.heads import TARGET, Head, Headers, Whole
from seriatim.http.hot import LINES, HotPath, HotRequest
from seriatim.keyspace import Issued
from seriatim.ledger import Outcome

HEAD_BYTES_MAX = 64 * 1024
CLOSE = b"connection: close\r\n"
FRAMING = {b"content-length", b"transfer-encoding"}
TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Connection(HttpToolsProtocol):
    """A connection that ends when a request's line and headers are too long; its parser would take any number.

    A PUT that the hot path takes is answered without an ASGI task. All others uvicorn serves, and in its order: as long
    as one on the hot path is not answered, those behind it wait as behind any other.
    """

    cycle: Any
    """The request that is worked on, or was last: uvicorn's RequestResponseCycle, or a HotRequest."""
    _in_message = False
    _in_head = False
    _in_middle = False
    _offered = False
    _broken = False
    _whole: HotRequest | RequestResponseCycle | None = None
    """The last request that has arrived as a whole."""
    _served: RequestResponseCycle | None = None
    """The last one that an app was given, which others may stand behind."""
    _head_bytes = 0
    _answered_s = 0.0
    _stamped: tuple[Any, bytes] = (None, b"")
    """The headers that uvicorn gives every answer, which change by the second, and what an answer begins with then."""

    def __init__(self, path: HotPath, **more: Any) -> None:
        super().__init__(**more)
        self.url = b""
        self._path = path
        self._heads = path.heads

    def data_received(self, data: bytes) -> None:
        """Takes what has arrived; of a head only what came after its first piece is counted, which is short."""
        if self._broken:
            return
        whole = None if self._in_message else self._heads.whole(data)
        if whole is None:
            self._parse(data)
            return
        head = self._heads.recall(whole)
        if head is None or not self._take(whole, head):
            before = self.cycle
            self._parse(data)
            cycle = self.cycle
            if type(cycle) is HotRequest and cycle is not before and not cycle.more_body:
                self._heads.remember(whole, cycle.head)

    def _parse(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            while data:
                data = self._feed(data)
        except httptools.HttpParserError:
            if not self._ends_first():
                self.send_400_response("Invalid HTTP request received.")
        if self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing() and not self._ends_first():
            self.transport.write(TOO_LONG)
            self.transport.close()

    def _feed(self, data: bytes) -> bytes:
        """Parses bytes; returns those behind the head of a request that offers another protocol, which we do not take.

        The parser takes whatever follows for that protocol, be it the body. So another one begins with the body.
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            url, headers = self.url, self.headers
            framing = [b"%b: %b\r\n" % header for header in headers if header[0] in FRAMING]
            self.parser = httptools.HttpRequestParser(self)
            self._offered = False
            self._in_middle = True
            self.parser.feed_data(b"PUT / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
            self._in_middle = False
            self.url, self.headers = url, headers
            return data[offer.args[0] :]
        return b""

    def _ends_first(self) -> bool:
        """Whether a request is to be answered before what is wrong behind it, which then only ends the connection.

        Who sends nonsense behind a request must not take the answer to that for one to the request.
        """
        whole: Any = self._whole
        if whole is None or whole.response_complete:
            return False
        if self.pipeline and self.pipeline[0][0] is not whole:  # the one that goes wrong
            self.pipeline.popleft()
        whole.keep_alive = False
        self._broken = True
        return True

    def _take(self, whole: Whole, head: Head) -> bool:
        """Works on a request that was not parsed, unless it must be."""
        if not self._idle():
            return False
        hot = self._enter(whole.target, head, whole.series_id, whole.entry_id)
        if hot is None:
            return False
        hot.body = whole.body
        hot.more_body = False
        self._whole = hot
        self._submit(hot)
        return True

    def _enter(self, target: bytes, head: Head, series_id: str, entry_id: str) -> HotRequest | None:
        principal = self._path.admit(head)
        if principal is None:
            return None
        self.cycle = hot = HotRequest(self, target, head, principal, series_id, entry_id)
        return hot

    def _idle(self) -> bool:
        """Whether the next request can be answered as soon as it is there."""
        answered = self.cycle is None or self.cycle.response_complete
        return answered and not self.flow.write_paused and not self.transport.is_closing()

    def on_message_begin(self) -> None:
        """A head begins. What a scope costs, only those pay who need one."""
        if self._in_middle:
            self.headers = []
            return
        self._in_message = True
        self._in_head = True
        self._head_bytes = 0
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        """The head has ended."""
        if self._in_middle:
            return
        self._offered = self.parser.should_upgrade()
        self._in_head = False
        self._head_bytes = 0
        if self._idle() and self.parser.get_method() == b"PUT" and self.parser.get_http_version() == "1.1":
            named, head = TARGET.fullmatch(self.url), self._heads.read(self.headers)
            if named and head and self._enter(self.url, head, named[2].decode(), named[3].decode()):
                return
        self.scope = self._scope(self.headers)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request is there as a whole, unless it offers another protocol, see `_feed`."""
        if self._offered:
            return
        self._in_message = False
        super().on_message_complete()
        self._whole = self.cycle
        if type(self.cycle) is HotRequest:
            self._submit(self.cycle)

    def _submit(self, hot: HotRequest) -> None:
        if not self._path.submit(hot):
            self._path.leave(hot, undone=True)
            self._serve(hot, self.app)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._served = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone. Of requests that stand behind one another, uvicorn tells the last one alone."""
        super().connection_lost(exc)
        if self._served is not None and not self._served.response_complete:
            self._served.disconnected = True
            self._served.message_event.set()
        if type(self.cycle) is HotRequest and self.cycle.more_body:
            self._path.leave(self.cycle)

    def answer(self, hot: HotRequest, outcome: Outcome) -> None:
        """Answers a request that was on the hot path until now; an answer that is all written is yet to be sent."""
        written = self._path.answer(hot, outcome) if type(outcome) is Issued else b""
        self._path.leave(hot, undone=outcome is None)
        if self.transport.is_closing():
            return
        if written:
            hot.written = self._stamp() + (b"" if hot.keep_alive else CLOSE) + written
        elif isinstance(outcome, SeriatimError):
            self._serve(hot, self._path.refusing(outcome))
        else:
            self._serve(hot, self.app)

    def _stamp(self) -> bytes:
        """Returns what answers begin with now."""
        stamps, stamp = self._stamped
        if stamps is not self.server_state.default_headers:
            stamps = self.server_state.default_headers
            stamp = b"HTTP/1.1 200 OK\r\n%b%b" % (b"".join(b"%b: %b\r\n" % header for header in stamps), LINES)
            self._stamped = stamps, stamp
        return stamp

    def send(self, hot: HotRequest) -> None:
        """Sends the answer that is written."""
        hot.response_complete = True
        self.transport.write(hot.written)
        if not hot.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        """A request is answered. A timer that waits for the end of an idle connection is left to find out by itself."""
        self._answered_s = time.monotonic()
        if self.timeout_keep_alive_task is None or self.pipeline:
            super().on_response_complete()
        else:
            self.server_state.total_requests += 1

    def timeout_keep_alive_handler(self) -> None:
        """A connection may have been idle for long enough."""
        left_s = self._answered_s + self.timeout_keep_alive - time.monotonic()
        self.timeout_keep_alive_task = None
        if self.cycle.response_complete and left_s > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left_s, self.timeout_keep_alive_handler)
        elif self.cycle.response_complete:
            super().timeout_keep_alive_handler()

    def _serve(self, hot: HotRequest, app: Any) -> None:
        """Lets an app answer a request after all."""
        path: Any = {"method": "PUT", "path": hot.target.decode(), "raw_path": hot.target, "query_string": b""}
        scope: Any = self._scope(hot.head.headers) | path
        cycle = RequestResponseCycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=hot.keep_alive,
            on_response=self.on_response_complete,
        )
        cycle.body += hot.body
        cycle.more_body = False
        cycle.message_event.set()
        if self.cycle is hot:
            self.cycle = cycle
        if self._whole is hot:
            self._whole = cycle
        self._start_asgi_task(cycle, app)

    def _scope(self, headers: Headers) -> Any:
        """Returns the scope that uvicorn begins a request with; another may have begun since on this connection."""
        current = self.url, self.headers, self.expect_100_continue, self.scope
        super().on_message_begin()
        scope: Any = self.scope
        self.url, self.headers, self.expect_100_continue, self.scope = current
        scope["headers"] = headers
        return scope
