"""The processes of a load test: each sends its share, hands over what it was told, and then proves receipts."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import resource
import signal
import time
from collections.abc import Iterator
from functools import lru_cache
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import msgspec
import uvloop

from seriatim import formats, signing
from seriatim.errors import ConfigError, SeriatimError, Unproven, Unsettled
from seriatim.load.book import RECORD, UNKNOWN, Book, Findings
from seriatim.load.sender import Plan, Sender, Tick
from seriatim.messages import EntryAnswer
from seriatim.model import Counted, Numbering, parse_day
from seriatim.receipts import verify_entry
from seriatim.signing import JsonWebKeySet

RECORDS_AT_ONCE = 50_000
START_S = 0.05
"""How long after the word to start the first request is due: time enough for all processes to hear it."""

LISTEN_S = 0.1


class Start(msgspec.Struct, frozen=True):
    """Parent to child: begin at this time of the monotonic clock, which all processes share."""

    at_ns: int


class Stop(msgspec.Struct, frozen=True):
    """Parent to child: send no more."""


class Ready(msgspec.Struct, frozen=True):
    """Child to parent: all connections are open."""


class Failed(msgspec.Struct, frozen=True):
    """Child to parent: it cannot go on."""

    why: str


class Done(msgspec.Struct, frozen=True):
    """Child to parent: all is answered or given up. Its records follow, in pieces, an empty one last."""

    entries: int
    findings: Findings
    unknown: bytes
    replays: int
    seconds: float
    cpu_s: float
    rss_bytes: int


# in the child -----------------------------------------------------------------------------------------------------


def child(plan: Plan, pipe: Pipe) -> None:
    """Runs a child process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends what is interrupted
    book = Book()
    gc.freeze()
    gc.disable()  # nothing here is circular, and a collection would look like latency of the service
    try:
        uvloop.run(_send(plan, book, pipe))
        for at in range(0, len(book.records), RECORDS_AT_ONCE * RECORD.size):
            pipe.send_bytes(book.records[at : at + RECORDS_AT_ONCE * RECORD.size])
        pipe.send_bytes(b"")
        del book
        gc.enable()
        while True:
            message = pipe.recv()
            if isinstance(message, Task):  # the word to stop may come too late
                pipe.send(prove(message))
    except (EOFError, BrokenPipeError):  # the parent needs us no more
        pass


async def _send(plan: Plan, book: Book, pipe: Pipe) -> None:
    sender = Sender(plan, book, pipe.send)
    try:
        await sender.connect()
    except (OSError, ExceptionGroup) as error:
        reason = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
        pipe.send(Failed(f"{reason}" or "no connection in time"))
        return
    pipe.send(Ready())
    start = pipe.recv()
    assert isinstance(start, Start)
    listening = asyncio.create_task(_listen(pipe, sender))
    cpu_s = time.process_time()
    await sender.run(start.at_ns)
    listening.cancel()
    pipe.send(
        Done(
            len(book.records) // RECORD.size,
            book.findings,
            bytes(book.unknown),
            book.replays,
            (time.monotonic_ns() - start.at_ns) / 1e9,
            time.process_time() - cpu_s,
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )
    )


async def _listen(pipe: Pipe, sender: Sender) -> None:
    """Waits for the word to stop, or the parent's end."""
    # A reader of the loop would make the pipe one that never blocks.
    while not pipe.poll():  # noqa: ASYNC110 -- what it waits for is another process
        await asyncio.sleep(LISTEN_S)
    try:
        pipe.recv()
    except (EOFError, OSError):
        sender.end()
    else:
        sender.stop()


# proving receipts -------------------------------------------------------------------------------------------------

Wrong = tuple[int, str, str]
"""Position, kind and detail of something that is wrong."""


class Task(msgspec.Struct, frozen=True):
    """Entries to prove."""

    entries: bytes
    """As JSON, which is quicker to hand over than as objects."""
    jwks: bytes
    numbering: Numbering


class Link(msgspec.Struct, frozen=True):
    """What a receipt says of the chain: the hash of the record before, its own, and the counters' values."""

    prev: str
    hash: str
    numbers: tuple[Counted, ...]


class Proved(msgspec.Struct, frozen=True):
    """For each entry its link, None where it has no receipt that holds; and what is wrong."""

    links: list[Link | None]
    wrong: list[Wrong]


_entries = msgspec.json.Decoder(list[EntryAnswer])


def prove(task: Task) -> Proved:
    """Returns what the receipts of entries prove."""
    proved = Proved([], [])
    keys = _keys(task.jwks)
    for entry in _entries.decode(task.entries):
        proved.links.append(_link(entry, keys, task.numbering, proved.wrong))
    return proved


def _link(entry: EntryAnswer, keys: JsonWebKeySet, numbering: Numbering, wrong: list[Wrong]) -> Link | None:
    """Returns the link that an entry's receipt proves, and notes what is wrong with it."""
    try:
        said = verify_entry(entry, keys)
        numbers = msgspec.convert(said["numbers"], tuple[Counted, ...])
    except Unsettled:
        return None
    except (Unproven, msgspec.ValidationError) as error:
        wrong.append((entry.position, "unproven", str(error)))
        return None
    if not formats.fits(numbering, parse_day(entry.date), numbers, entry.code):
        why = f"{entry.code} is not what the series' format makes of its numbers"
        wrong.append((entry.position, "wrong_code", why))
    return Link(said["prev"], signing.digest(entry.sigs[-1].encode()), numbers)


@lru_cache(maxsize=4)
def _keys(jwks: bytes) -> JsonWebKeySet:
    return JsonWebKeySet(jwks)


# in the parent ----------------------------------------------------------------------------------------------------


class Children:
    """The processes of a load test, one for each plan."""

    def __init__(self, plans: list[Plan]) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit threads and connections
        self._pipes: list[Pipe] = []
        self._processes = []
        self._idle: SimpleQueue[Pipe] = SimpleQueue()
        for plan in plans:
            ours, theirs = context.Pipe()
            process = context.Process(target=child, args=(plan, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5)
            if process.exitcode is None:
                process.kill()
                process.join()

    def __len__(self) -> int:
        return len(self._pipes)

    def start(self) -> int:
        """Starts all at the same time, and returns that time.

        Raises:
            ConfigError: the service cannot be reached.
        """
        for pipe in self._pipes:
            self._receive(pipe, Ready)
        at_ns = time.monotonic_ns() + int(START_S * 1e9)
        for pipe in self._pipes:
            pipe.send(Start(at_ns))
        return at_ns

    def stop(self) -> None:
        """Has all send no more."""
        for pipe in self._pipes:
            pipe.send(Stop())

    def messages(self) -> Iterator[Tick | Done]:
        """Yields what the children say, until all are done."""
        running = set(self._pipes)
        while running:
            for pipe in wait(running):
                assert isinstance(pipe, Pipe)
                message = self._receive(pipe, Tick, Done)
                if isinstance(message, Done):
                    running.discard(pipe)
                yield message

    def records(self) -> Iterator[bytes]:
        """Yields what all were told, in pieces."""
        for pipe in self._pipes:
            while piece := pipe.recv_bytes():
                yield piece
            self._idle.put(pipe)

    def prove(self, task: Task) -> Proved:
        """Has an idle child prove receipts; may be called by as many threads as there are children."""
        pipe = self._idle.get()
        try:
            pipe.send(task)
            proved: Proved = pipe.recv()
        finally:
            self._idle.put(pipe)
        return proved

    @staticmethod
    def _receive(pipe: Pipe, *kinds: type[Any]) -> Any:
        try:
            message = pipe.recv()
        except EOFError:
            raise SeriatimError("A sending process has died. Its output above may say why.") from None
        if isinstance(message, Failed):
            raise ConfigError(f"The service cannot be reached: {message.why}. Is the URL right, and does it run?")
        assert isinstance(message, kinds)
        return message


def unknown_ids(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the series numbers and ids of entries whose outcome is unknown."""
    yield from UNKNOWN.iter_unpack(raw)
