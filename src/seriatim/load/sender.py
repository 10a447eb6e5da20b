"""Sends requests when they are due, repeats those whose outcome is unknown, and notes how long each took."""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import os
import ssl
import time
from array import array
from collections import Counter
from collections.abc import Callable
from typing import Protocol, cast

import httptools
import msgspec

from seriatim.load.book import Book
from seriatim.load.requests import Mix, Request, Scene

# when requests are due ----------------------------------------------------------------------------------------------

SECOND_NS = 1_000_000_000
FINEST_S = 0.00025
"""Waking up more often than this costs more than it tells."""


class Arrivals(Protocol):
    """When requests are due."""

    def next(self, now_ns: int) -> int | None:
        """Takes the next request that is due by now: returns since when, None when there is none."""

    def over(self, now_ns: int) -> bool:
        """Whether there will be none any more."""

    def left(self) -> int:
        """How many were due and not taken."""


class Closed:
    """A request is due as soon as a connection is free."""

    def __init__(self, start_ns: int, end_ns: int | None, count: int | None) -> None:
        self._start_ns = start_ns
        self._end_ns = end_ns
        self._count = count
        self._taken = 0

    def next(self, now_ns: int) -> int | None:
        """Takes the next request, from now on."""
        if now_ns < self._start_ns or self.over(now_ns):
            return None
        self._taken += 1
        return now_ns

    def over(self, now_ns: int) -> bool:
        """Whether time or number are reached."""
        return (self._end_ns is not None and now_ns >= self._end_ns) or self._taken == self._count

    def left(self) -> int:
        """None can be left."""
        return 0


class Open:
    """Requests are due at their times, whether or not those before them are answered."""

    def __init__(self, start_ns: int, end_ns: int | None, count: int | None, rate: float) -> None:
        self._start_ns = start_ns
        self._interval_ns = SECOND_NS / rate
        fits = None if end_ns is None else max(0, int((end_ns - start_ns - 1) / self._interval_ns) + 1)
        self._count = min(one for one in (fits, count) if one is not None)
        self._taken = 0

    def next(self, now_ns: int) -> int | None:
        """Takes the next request whose time has come; it is due since then, however late it is taken."""
        due_ns = self._start_ns + int(self._taken * self._interval_ns)
        if due_ns > now_ns or self._taken >= self._count:
            return None
        self._taken += 1
        return due_ns

    def over(self, _now_ns: int) -> bool:
        """Whether all were taken: what is late is still to be sent."""
        return self._taken >= self._count

    def left(self) -> int:
        """How many were not taken."""
        return self._count - self._taken


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


_libc = ctypes.CDLL(None, use_errno=True)


class Ticker:
    """Calls back at an interval. The loop's own timers know whole milliseconds only: too coarse for a rate."""

    def __init__(self, interval_s: float, call: Callable[[], None]) -> None:
        self._call = call
        self._descriptor = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        interval = _Timespec(*divmod(int(max(interval_s, FINEST_S) * SECOND_NS), SECOND_NS))
        spec = _Itimerspec(interval, interval)
        if self._descriptor < 0 or _libc.timerfd_settime(self._descriptor, 0, ctypes.byref(spec), None):
            raise OSError(ctypes.get_errno(), "timerfd")
        asyncio.get_running_loop().add_reader(self._descriptor, self._tick)

    def _tick(self) -> None:
        os.read(self._descriptor, 8)
        self._call()

    def close(self) -> None:
        """Stops."""
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)


# connections --------------------------------------------------------------------------------------------------------


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


# sending ------------------------------------------------------------------------------------------------------------

SILENT_S = 10.0
"""An answer that takes longer than this is given up, and the request repeated elsewhere."""
RECONNECT_S = 0.1
PAUSE_S = 0.05
PAUSE_S_MAX = 1.0
"""How long to wait before a request is repeated: longer every time, and at least as long as the service says."""
IDLE_TICK_S = 0.01
CONNECT_S = 10.0
OK = 200
UNKNOWN_FROM = 500
TOO_MANY = 429


class Plan(msgspec.Struct, frozen=True):
    """The part of a load test that one process sends."""

    scene: Scene
    connections: int
    rate: float | None
    delay_s: float
    """By how much it begins later than the others, so that together they keep an even rate."""
    count: int | None
    seconds: float | None
    warm_up_s: float
    deadline_s: float

    def arrivals(self, start_ns: int) -> Arrivals:
        """Returns when requests are due."""
        end_ns = None if self.seconds is None else start_ns + int(self.seconds * SECOND_NS)
        if self.rate is None:
            return Closed(start_ns, end_ns, self.count)
        return Open(start_ns + int(self.delay_s * SECOND_NS), end_ns, self.count, self.rate)


class Tick(msgspec.Struct, frozen=True):
    """What happened in one process in about a second."""

    second: int
    length_s: float
    latencies_us: dict[str, bytes]
    """Unsigned 64-bit numbers, by kind of request."""
    errors: dict[str, int]


class Sender:
    """One process' share of a load test.

    Args:
        plan: what to send.
        book: where to keep what was told.
        tell: is told what happened, every second.
    """

    def __init__(self, plan: Plan, book: Book, tell: Callable[[Tick], None]) -> None:
        self._plan = plan
        self._book = book
        self._tell = tell
        self._mix = Mix(plan.scene, book)
        self._connections: set[Connection] = set()
        self._idle: list[Connection] = []
        self._repeats: list[tuple[int, int, Request]] = []
        """Requests to be sent again, by when; the number in between keeps equal times apart."""
        self._repeated = 0
        self._busy = 0
        self._over = False
        self._connecting: set[asyncio.Task[None]] = set()
        self._unsent_us = array("Q")
        self._errors: Counter[str] = Counter()
        self._second = 0
        self._tls = ssl.create_default_context() if plan.scene.address.tls else None

    async def connect(self) -> None:
        """Opens all connections.

        Raises:
            OSError: the service cannot be reached.
        """
        self._arrivals: Arrivals = Closed(2**63, None, 0)  # nothing is due before the start
        async with asyncio.timeout(CONNECT_S), asyncio.TaskGroup() as group:
            for _ in range(self._plan.connections):
                group.create_task(self._connect())

    async def run(self, start_ns: int) -> None:
        """Sends from `start_ns` on, until all is answered or given up."""
        self._start_ns = self._told_ns = start_ns
        self._measured_ns = start_ns + int(self._plan.warm_up_s * SECOND_NS)
        self._arrivals = self._plan.arrivals(start_ns)
        self._finished = asyncio.Event()
        rate = self._plan.rate
        ticker = Ticker(min(IDLE_TICK_S, 1 / rate) if rate else IDLE_TICK_S, self._pump)
        watching = asyncio.create_task(self._watch())
        await self._finished.wait()
        watching.cancel()
        ticker.close()
        self._close()
        self._report()

    def stop(self) -> None:
        """Ends early: what is under way is still answered."""
        self._arrivals = Closed(0, 0, 0)

    def end(self) -> None:
        """Ends at once, whatever is under way: nobody is left who wants to know."""
        self.stop()
        self._give_up_all()

    # connections ------------------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        address = self._plan.scene.address
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: Connection(self), address.host, address.port, ssl=self._tls)

    def opened(self, connection: Connection) -> None:
        """Takes a new connection into use."""
        self._connections.add(connection)
        self._feed(connection, time.monotonic_ns())

    def closed(self, connection: Connection, request: Request | None) -> None:
        """Replaces a lost connection; the outcome of what it carried is unknown."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if request is not None:
            self._busy -= 1
            self._unknown(request, "dropped", 0)
        if not self._over:
            task = asyncio.create_task(self._reconnect())
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _reconnect(self) -> None:
        while not self._over:
            try:
                await self._connect()
            except OSError:
                self._errors["no connection"] += 1
                await asyncio.sleep(RECONNECT_S)
            else:
                return

    def _close(self) -> None:
        self._over = True
        for task in self._connecting:
            task.cancel()
        for connection in list(self._connections):
            connection.abort()

    # requests ---------------------------------------------------------------------------------------------------------

    def _feed(self, connection: Connection, now_ns: int) -> None:
        """Gives a free connection something to do; keeps it for later when there is nothing."""
        request = self._next(now_ns)
        if request is None:
            self._idle.append(connection)
            return
        request.first_ns = request.first_ns or now_ns
        self._busy += 1
        connection.send(request, now_ns)

    def _next(self, now_ns: int) -> Request | None:
        if self._repeats and self._repeats[0][0] <= now_ns:
            return heapq.heappop(self._repeats)[2]
        due_ns = self._arrivals.next(now_ns)
        if due_ns is None:
            return None
        request = self._mix.make()
        request.due_ns = due_ns
        return request

    def _pump(self) -> None:
        """Lets free connections send what has become due."""
        now_ns = time.monotonic_ns()
        while self._idle:
            waiting = len(self._idle)
            self._feed(self._idle.pop(), now_ns)
            if len(self._idle) == waiting:
                break
        if not self._busy and not self._repeats and self._arrivals.over(now_ns):
            self._finished.set()

    def answered(self, connection: Connection, request: Request, status: int, body: bytes) -> None:
        """Judges an answer, and sends the next request."""
        now_ns = time.monotonic_ns()
        self._busy -= 1
        if status == OK:
            self._measure(request, now_ns)
            try:
                request.operation.check(request, body, replayed=connection.replayed())
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                request.operation.forget(request)
                request.operation.find(request, 0, "malformed_answer", f"{error}: {body[:200]!r}")
        elif status >= UNKNOWN_FROM or status == TOO_MANY:
            retry_after = connection.header(b"retry-after")
            self._unknown(request, str(status), float(retry_after) if retry_after.isdigit() else 0.0)
        else:
            self._measure(request, now_ns)
            self._errors[str(status)] += 1
            said = body[:300].decode(errors="replace")
            request.operation.find(request, 0, "refused", f"{request.operation.name}: {status} {said}")
        if not connection.closing:
            self._feed(connection, time.monotonic_ns())

    def _measure(self, request: Request, now_ns: int) -> None:
        if request.due_ns >= self._measured_ns:
            request.operation.latencies_us.append((now_ns - request.due_ns) // 1000)

    def _unknown(self, request: Request, why: str, wait_s: float) -> None:
        """Has a request repeated that may or may not have been carried out; gives it up after the deadline."""
        self._errors[why] += 1
        request.tries += 1
        pause_s = max(wait_s, min(PAUSE_S * 2**request.tries, PAUSE_S_MAX))
        again_ns = time.monotonic_ns() + int(pause_s * SECOND_NS)
        if again_ns - request.first_ns > self._plan.deadline_s * SECOND_NS:
            self._give_up(request)
            return
        self._repeated += 1
        heapq.heappush(self._repeats, (again_ns, self._repeated, request))

    def _give_up(self, request: Request) -> None:
        self._errors["unanswered"] += 1
        self._measure(request, time.monotonic_ns())
        request.operation.forget(request)

    # time -------------------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Every second tells what happened; gives up what is silent, and all when it takes too long."""
        give_up_ns = None
        while True:
            next_ns = self._start_ns + (self._second + 1) * SECOND_NS
            await asyncio.sleep(max(0.0, (next_ns - time.monotonic_ns()) / SECOND_NS))
            self._report()
            now_ns = time.monotonic_ns()
            for connection in list(self._connections):
                if connection.request and now_ns - connection.sent_ns > SILENT_S * SECOND_NS:
                    self._errors["silent"] += 1
                    connection.abort()
            if give_up_ns is None and self._ended(now_ns):
                give_up_ns = now_ns + int(self._plan.deadline_s * SECOND_NS)
            if give_up_ns is not None and now_ns > give_up_ns:
                self._give_up_all()

    def _ended(self, now_ns: int) -> bool:
        seconds = self._plan.seconds
        if seconds is not None and now_ns - self._start_ns > seconds * SECOND_NS:
            return True
        return self._arrivals.over(now_ns)

    def _give_up_all(self) -> None:
        """Ends with what is not answered; requests that could not even be sent count as long as they have waited."""
        self._errors["unsent"] += self._arrivals.left()
        now_ns = time.monotonic_ns()
        while (due_ns := self._arrivals.next(now_ns)) is not None:
            if due_ns >= self._measured_ns:
                self._unsent_us.append((now_ns - due_ns) // 1000)
        self.stop()
        for _, _, request in self._repeats:
            self._give_up(request)
        self._repeats.clear()
        for connection in self._connections:
            if connection.request:
                self._give_up(connection.request)
                connection.request = None
        self._finished.set()

    def _report(self) -> None:
        now_ns = time.monotonic_ns()
        latencies_us = {"unsent": self._unsent_us.tobytes()} if self._unsent_us else {}
        for operation in self._mix.operations:
            if operation.latencies_us:
                latencies_us[operation.name] = operation.latencies_us.tobytes()
                operation.latencies_us = array("Q")
        self._tell(Tick(self._second, (now_ns - self._told_ns) / SECOND_NS, latencies_us, dict(self._errors)))
        self._errors = Counter()
        self._told_ns = now_ns
        self._second += 1
