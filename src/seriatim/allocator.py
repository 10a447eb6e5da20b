"""The core: requests that wait together travel together.

While a call of allocate.lua is in flight, what arrives gathers for the next, of whatever series and shards: a server
runs one script at a time, and its cost is shared by all that a call carries. When as many wait as went with the last,
the next is sent, and the server has it at hand when it is done with that. (On a Redis Cluster a call keeps to one
shard, and each shard has calls of its own.) Each request is answered for itself; a batch is a call of its own, all or
nothing, beside which others may be in flight. A call that fails, be it for one series, fails for all its requests:
they are to be repeated. The allocator knows neither store nor worker: what it cannot settle with Redis alone it raises.
"""

from __future__ import annotations

import asyncio
import sys
import time
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import structlog
from redis.asyncio.cluster import RedisCluster

from seriatim import keyspace, scripts
from seriatim.errors import Conflict, Damaged, Invalid, SeriatimError, Unavailable
from seriatim.formats import window
from seriatim.groups import Group, Order
from seriatim.keyspace import Issued
from seriatim.model import Series, Skip, Standing, Void, Why

log = structlog.stdlib.get_logger(__name__)

CALL_REQUESTS_MAX = 128
CALL_BYTES_MAX = 1024 * 1024
"""Bounds that keep a script's run at a few milliseconds, were each request for a series of its own."""
CALL_REQUESTS_SPLIT = 16
"""So few go together, however many come after them: each would gain less than the second call costs."""
CALLS_AT_ONCE = 2
"""The second is not begun before it is as large as the first: a call more costs a sync to disk more."""
BATCHES_AT_ONCE = 4
"""A batch keeps this process as busy as it keeps Redis, which is not to wait until the answer to the last is read; and
those that wait there together share a sync to disk."""
WINDOW_TRIES_MAX = 3
CLOCK_SKEW_MS_MAX = 3_600_000
LAPSED = (
    "The store does not say whether Redis is still the server to use, or was replaced by another. "
    "See that the database of SERIATIM_STORE_URL answers."
)
INTERRUPTED = "The allocation was interrupted. Repeat it with the same id."


class Gate:
    """Whether this process may allocate. Closed until the Redis server has been met."""

    def __init__(self) -> None:
        self.standing: Standing | None = None
        self.refusal: Unavailable = Unavailable("Seriatim is starting. Repeat the request in a moment.")
        self.decided = asyncio.Event()
        """Set once it was opened, or closed for a reason."""
        self.ends_at: float | None = None
        """When it closes by itself (time.monotonic), where another server may take this one's place unknown to us."""

    def require(self) -> Standing:
        """Returns the standing to work under.

        Raises:
            Unavailable: with the reason why there is none.
        """
        if self.ends_at is not None and time.monotonic() > self.ends_at:
            self.close(Unavailable(LAPSED))
        if self.standing is None:
            raise type(self.refusal)(self.refusal.message)
        return self.standing

    def closed(self) -> Unavailable | None:
        """Returns why this process may not allocate, None when it may."""
        try:
            self.require()
        except Unavailable as refusal:
            return refusal
        return None

    def open(self, standing: Standing) -> None:
        """Lets allocations through."""
        self.standing = standing
        self.decided.set()

    def close(self, refusal: Unavailable) -> None:
        """Refuses allocations, with this reason."""
        self.standing = None
        self.ends_at = None
        self.refusal = refusal
        self.decided.set()


class Uninstalled(Unavailable):
    """Redis does not hold the definition that the caller has: install it, or read it again, and retry.

    `changing_ms` says for how long it has been marked as changing, if so.
    """

    def __init__(self, *, changing_ms: int | None = None) -> None:
        super().__init__("The series' definition is being changed. Repeat the request.")
        self.changing_ms = changing_ms


class Settled(msgspec.Struct, frozen=True, gc=False):
    """The id was issued before, and the store holds its entry."""

    position: int
    void: bytes


class Waiting(ABC):
    """A request for a number, from when it is asked for until it is answered. Who subclasses it takes the answer."""

    series: Series
    order: Order
    now_ms = 0
    """The time that the series is known to have reached, which the clock may have been set back behind."""
    tries = 0

    def ask(self, series: Series, order: Order) -> Waiting:
        """Says for what it waits; once, and first."""
        self.series = series
        self.order = order
        return self

    def gone(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return False

    @abstractmethod
    def succeed(self, answer: Issued | Settled) -> None:
        """Takes what `Allocator.allocate` returns."""

    @abstractmethod
    def fail(self, error: SeriatimError) -> None:
        """Takes what `Allocator.allocate` raises."""

    def deliver(self) -> None:  # noqa: B027 -- for those who wait until then
        """Passes on what it took, once all have taken theirs that came with it."""


class _Awaited(Waiting):
    """One whose caller awaits a future."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Issued | Settled] = asyncio.get_running_loop().create_future()

    def gone(self) -> bool:
        return self.answer.done()

    def succeed(self, answer: Issued | Settled) -> None:
        self.answer.set_result(answer)

    def fail(self, error: SeriatimError) -> None:
        self.answer.set_exception(error)


class _Batch:
    """Orders of one series that are carried out together or not at all. Their caller awaits a future."""

    __slots__ = ("answer", "now_ms", "orders", "series", "tries")

    def __init__(self, series: Series, orders: Sequence[Order]) -> None:
        self.series = series
        self.orders = orders
        self.now_ms = 0
        self.tries = 0
        self.answer: asyncio.Future[list[Issued | Settled]] = asyncio.get_running_loop().create_future()

    def gone(self) -> bool:
        return self.answer.done()

    def fail(self, error: SeriatimError) -> None:
        self.answer.set_exception(error)


class _Lane:
    """Requests that wait, in order of arrival, all for numbers of their own or all batches.

    Args:
        at_once: so many calls may be in flight.
    """

    __slots__ = ("at_once", "before", "running", "waiting")

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self.before = 1
        """How many went with the last call."""
        self.waiting: deque[Waiting | _Batch] = deque()
        self.running: set[asyncio.Task[None]] = set()

    def enough(self, others: int) -> int:
        """Returns how many must wait for a call to go, with so many `others` in flight."""
        if not others:
            return 1
        return self.before if others < self.at_once else sys.maxsize

    def take(self) -> list[Waiting] | _Batch:
        """Returns what goes with the next call: a batch does so alone.

        Callers who wait for their answer before they ask again come in two groups: while Redis works for one, this
        process works for the other. Neither waits long for the other if both are of a size, so that a call takes half
        of those who are around: they wait, or went with the last call.
        """
        taken: list[Waiting] = []
        size = 0
        most = min(CALL_REQUESTS_MAX, max(CALL_REQUESTS_SPLIT, (len(self.waiting) + self.before + 1) // 2))
        while self.waiting and len(taken) < most and size < CALL_BYTES_MAX:
            request = self.waiting.popleft()
            if isinstance(request, _Batch):
                self.before = 1
                return request
            taken.append(request)
            size += len(request.order.request)
        self.before = len(taken)
        return taken


class Allocator:
    """Allocates through `client`, under the gate's standing; `on_dirty(shard)` when a shard has new work."""

    def __init__(
        self, client: scripts.Caller, gate: Gate, on_dirty: Callable[[int], None], *, backlog_max: int
    ) -> None:
        self._client = client
        self._gate = gate
        self._on_dirty = on_dirty
        self._backlog_max = backlog_max
        self._singles: defaultdict[int, _Lane] = defaultdict(partial(_Lane, CALLS_AT_ONCE))
        self._batches: defaultdict[int, _Lane] = defaultdict(partial(_Lane, BATCHES_AT_ONCE))
        self._by_shard = isinstance(client, RedisCluster)
        self._skew_ms = 0

    async def allocate(self, series: Series, order: Order) -> Issued | Settled:
        """Issues the next number of a series, or answers what the order's id was issued before.

        Raises:
            Conflict: the id was issued with another payload, or the series takes no new entries.
            Invalid: the series is strict, and the date is not the next.
            Uninstalled: Redis holds another definition, or none.
            Stale: the Redis server must be met first.
            Unavailable: the outcome is unknown.
        """
        request = _Awaited()
        self.submit(request.ask(series, order))
        return await request.answer

    def submit(self, request: Waiting) -> None:
        """Asks for a number, as `allocate`; the request gets the answer.

        Raises:
            Unavailable: this process may not allocate now.
        """
        self._gate.require()
        self._enqueue(self._singles, request)

    async def allocate_batch(self, series: Series, orders: Sequence[Order]) -> list[Issued | Settled]:
        """Issues one contiguous run in this order, ids that were issued before answered in their places; or nothing.

        Raises:
            As `allocate`; the error's fields name the first order that is refused, as `list[3]` or `list[3].date`.
        """
        self._gate.require()
        batch = _Batch(series, orders)
        self._enqueue(self._batches, batch)
        return await batch.answer

    async def skip(self, series: Series, nth: int, to: int, why: Why) -> Skip | None:
        """Raises the format's `nth` counter in today's period, so that its next number is `to`.

        Returns what was left out, None when the counter stood there already.

        Raises:
            Invalid: the next number is higher already, or the code would be too long.
            As `allocate`.
        """
        now_ms = 0
        for _ in range(WINDOW_TRIES_MAX):
            local_ms = time.time_ns() // 1_000_000
            today = window(series.numbering.timezone, max(local_ms + self._skew_ms, now_ms))
            answered = await scripts.skip(
                self._client,
                self._gate.require(),
                series,
                window=today,
                counter=nth,
                to=to,
                why=why,
                backlog_max=self._backlog_max,
            )
            self._skew_ms = answered.now_ms - local_ms
            if answered.replies[0][0] != b"window" or abs(self._skew_ms) >= CLOCK_SKEW_MS_MAX:
                break
            now_ms = answered.replies[0][1]
        self._wake(answered)
        match answered.replies[0]:
            case [b"skipped", position, k, field, first, last, created_at]:
                counter, _, period = field.decode().partition(":")
                left_out = int(first), int(last)
                return Skip(series.id, position, k, counter, period, *left_out, why.reason, why.actor, created_at)
            case [b"next", _]:
                return None
            case [b"lowers", following]:
                raise Invalid({"to": f"must be at least {int(following)}, which is the counter's next number"})
            case [b"overflow", _]:
                raise Invalid({"to": "would make the next code longer than the series' max_length"})
            case reply:
                raise _refusal(reply, series)

    async def void(self, series: Series, entry_id: str, why: Why) -> Void | None:
        """Records that an entry is void, and returns that; or what was recorded before. None: there is no such entry.

        Raises:
            As `allocate`.
        """
        answered = await scripts.void(
            self._client, self._gate.require(), series, entry_id, why=why, backlog_max=self._backlog_max
        )
        self._wake(answered)
        match answered.replies[0]:
            case [b"voided", position, packed]:
                return keyspace.unpack_void(series.id, position, packed)
            case [b"unknown"]:
                return None
            case reply:
                raise _refusal(reply, series)

    def _wake(self, answered: scripts.Allocated) -> None:
        for shard in answered.turned_dirty:
            self._on_dirty(shard)

    def _enqueue(self, lanes: defaultdict[int, _Lane], request: Waiting | _Batch) -> None:
        lane = lanes[request.series.shard if self._by_shard else 0]
        lane.waiting.append(request)
        if len(lane.waiting) >= lane.enough(len(lane.running)):
            lane.running.add(asyncio.get_running_loop().create_task(self._run(lane)))

    async def _run(self, lane: _Lane) -> None:
        taken: list[Waiting] | _Batch = []
        try:
            while len(lane.waiting) >= lane.enough(len(lane.running) - 1):
                taken = lane.take()
                answer = await self._call(taken)
                # After the next call is on its way, so that the server works meanwhile.
                asyncio.get_running_loop().call_soon(answer)
                taken = []
        finally:
            lane.running -= {asyncio.current_task()}
            stopping = Unavailable("Seriatim is stopping. Repeat the request with the same id.")
            _fail(taken, stopping)
            if not lane.running:  # nobody comes for them
                for left in lane.waiting:
                    _fail(left if isinstance(left, _Batch) else [left], stopping)
                lane.waiting.clear()

    async def _call(self, taken: list[Waiting] | _Batch) -> Callable[[], None]:
        """Makes a call; returns what gives the requests their answers."""
        try:
            if isinstance(taken, _Batch):
                allocated = await self._ask([(taken.series, taken.orders, taken.now_ms)], atomic=True)
                return partial(self._answer_batch, taken, allocated)
            members: dict[str, list[Waiting]] = {}
            for request in taken:
                members.setdefault(request.series.id, []).append(request)
            grouped = sorted(members.values(), key=lambda waiting: waiting[0].series.shard)
            asked = [(g[0].series, [one.order for one in g], max([one.now_ms for one in g])) for g in grouped]
            allocated = await self._ask(asked, atomic=False)
            return partial(self._answer_each, [request for group in grouped for request in group], allocated)
        except SeriatimError as error:
            return partial(_fail, taken, error)
        except Exception:
            log.exception("an allocation failed")
            return partial(_fail, taken, Unavailable(INTERRUPTED))

    async def _ask(self, asked: Sequence[tuple[Series, Sequence[Order], int]], *, atomic: bool) -> scripts.Allocated:
        """Returns what is replied to the orders. With those of a series goes the time that it is there at least."""
        standing = self._gate.require()
        local_ms = time.time_ns() // 1_000_000
        there_ms = local_ms + self._skew_ms
        groups = [
            Group(series, window(series.numbering.timezone, max(there_ms, now_ms)), orders)
            for series, orders, now_ms in asked
        ]
        allocated = await scripts.allocate(self._client, standing, groups, backlog_max=self._backlog_max, atomic=atomic)
        self._skew_ms = allocated.now_ms - local_ms
        self._wake(allocated)
        return allocated

    def _answer_each(self, requests: list[Waiting], allocated: scripts.Allocated) -> None:
        try:
            replies = allocated.told()
        except SeriatimError as error:
            _fail(requests, error)
            return
        except Exception:
            log.exception("answers failed")
            _fail(requests, Unavailable(INTERRUPTED))
            return
        for request, reply in zip(requests, replies, strict=True):
            try:
                if request.gone():
                    continue
                if type(reply) is Issued:
                    request.succeed(reply)
                else:
                    self._answer(request, reply)
            except Exception:
                log.exception("an answer failed")
                _fail([request], Unavailable(INTERRUPTED))
        # Whom each answer wakes, and what the kernel does for it, would be in the way of those behind it.
        for request in requests:
            try:
                request.deliver()
            except Exception:
                log.exception("an answer was not sent")

    def _answer(self, request: Waiting, reply: Any) -> None:
        if self._again(request, reply):
            self._enqueue(self._singles, request)
        else:
            try:
                answer = _read(reply, request.series)
            except SeriatimError as error:
                request.fail(error)
            else:
                request.succeed(answer)

    def _answer_batch(self, batch: _Batch, allocated: scripts.Allocated) -> None:
        if batch.gone():
            return
        answers: list[Issued | Settled] = []
        try:
            for reply in allocated.told():
                if type(reply) is not Issued and self._again(batch, reply):
                    self._enqueue(self._batches, batch)
                    return
                answers.append(reply if type(reply) is Issued else _read(reply, batch.series))
        except SeriatimError as error:
            batch.fail(_in_list(error, len(answers)))
        except Exception:
            log.exception("an answer failed")
            batch.fail(Unavailable(INTERRUPTED))
        else:
            batch.answer.set_result(answers)

    def _again(self, request: Waiting | _Batch, reply: list[Any]) -> bool:
        """Whether a request is to be sent again, with the time that it now is in the series."""
        if reply[0] != b"window" or request.tries >= WINDOW_TRIES_MAX or abs(self._skew_ms) >= CLOCK_SKEW_MS_MAX:
            return False
        request.tries += 1
        request.now_ms = reply[1]
        return True


def _in_list(error: SeriatimError, number: int) -> SeriatimError:
    """Returns the refusal of an order as that of its batch."""
    if isinstance(error, Invalid):
        return Invalid({f"list[{number}].{name}": why for name, why in error.fields.items()})
    if not isinstance(error, Unavailable):  # for which no element is to blame
        error.fields = {f"list[{number}]": error.message}
    return error


def _fail(taken: list[Waiting] | _Batch, error: SeriatimError) -> None:
    for request in [taken] if isinstance(taken, _Batch) else taken:
        if not request.gone():
            request.fail(error)


def _read(reply: list[Any], series: Series) -> Settled:
    if reply[0] == b"settled":
        return Settled(reply[1], reply[2])
    raise _refusal(reply, series)


REFUSALS: dict[bytes, tuple[type[SeriatimError], str]] = {
    b"conflict": (Conflict, "This id was issued with another payload. Send the first payload, or use a new id."),
    b"inactive": (Conflict, "The series is not active. Activate it, or use another series."),
    b"exhausted": (Conflict, "The series' counter has reached 2^53 - 1. Use another series."),
    b"overflow": (Conflict, "The next code is longer than the series' max_length. Use another series."),
    b"backlog": (Unavailable, "Too many records wait for the store. See that a worker runs and the store answers."),
    b"window": (Unavailable, "This machine's clock and that of Redis differ too much. Set the clocks."),
}


def _refusal(reply: list[Any], series: Series) -> SeriatimError:
    """Returns what a refusal by allocate.lua, skip.lua or void.lua means."""
    word = reply[0]
    if word in (b"unloaded", b"version"):
        return Uninstalled()
    if word == b"changing":
        return Uninstalled(changing_ms=reply[1])
    if word == b"damaged":
        return Damaged(f"Redis has lost data of series {series.id}: {reply[1].decode()}.")
    if word == b"past":
        return Invalid({"date": f"is before {reply[1].decode()}, the date of the last entry, and the series is strict"})
    if word == b"future":
        return Invalid({"date": f"is after today, {reply[1].decode()}, and the series is strict"})
    kind, message = REFUSALS[word]
    return kind(message)
