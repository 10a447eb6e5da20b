"""Sends requests when they are due, repeats those whose outcome is unknown, and notes how long each took."""

from __future__ import annotations

import asyncio
import heapq
import ssl
import time
from array import array
from collections import Counter
from collections.abc import Callable

import msgspec

from seriatim.load.book import Book
from seriatim.load.operations import Mix, Request, Scene
from seriatim.load.pace import SECOND_NS, Arrivals, Closed, Open, Ticker
from seriatim.load.wire import Connection

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


class Engine:
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
                request.operation.check(request, body, connection)
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
