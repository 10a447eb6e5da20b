"""The kinds of requests: what each sends, and what its answer must be."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from array import array
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote_plus

import msgspec

from seriatim.errors import ConfigError
from seriatim.load.book import RECORD, UNKNOWN, Book, digests
from seriatim.load.options import Address
from seriatim.messages import BatchAnswer, BatchBody, BatchElement, EntryAnswer, EntryPage, cursor_behind
from seriatim.model import uuid_bytes, uuid_text

T = TypeVar("T")

EXAMPLE = {
    "country": "RO",
    "type": "invoice",
    "issue_date": "2026-01-31",
    "currency": "RON",
    "supplier": "Exemplu Furnizor SRL",
    "customer": "Exemplu Client SA",
    "payable": "1234.50",
}
LIST_LIMIT = 100


class Scene(msgspec.Struct, frozen=True):
    """Where requests go, for whom, and about what."""

    address: Address
    key: str
    series: list[str]
    zipf: float
    metas: list[dict[str, str]]
    weights: dict[str, float]
    batch_size: int


class Request(msgspec.Struct, gc=False):
    """A request, from when it is due until it is answered."""

    operation: Operation
    series: int
    wire: bytes
    ids: tuple[str, ...] = ()
    """The entries that it asks for."""
    record: bytes = b""
    """What was told before, where that is asked for again."""
    due_ns: int = 0
    first_ns: int = 0
    """When it was sent for the first time."""
    tries: int = 0


# what is asked for --------------------------------------------------------------------------------------------------


def read_metas(path: Path | None) -> list[dict[str, str]]:
    """Returns the metas of a file of JSON lines; without a file, a made-up one.

    Numbers and truth values become texts, and null is left out: a meta is made of texts.

    Raises:
        ConfigError: the file holds something else.
    """
    if path is None:
        return [EXAMPLE]
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            fields = msgspec.json.decode(line, type=dict[str, str | int | float | bool | None])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            why = f"Line {number} of {path} is not an object of texts and numbers: {error}."
            raise ConfigError(why) from error
        found.append({name: _text(value) for name, value in fields.items() if value is not None})
    if not found:
        raise ConfigError(f"{path} has no lines.")
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def pick(forms: Sequence[T], entry_id: str) -> T:
    """Returns the meta that goes with an id, in some form: nobody needs to keep which one it was."""
    return forms[int(entry_id[-8:], 16) % len(forms)] if len(forms) > 1 else forms[0]


class Popularity:
    """Picks series: the k-th of them with weight 1 / k ** exponent (Zipf); 0 picks each as often."""

    def __init__(self, count: int, exponent: float) -> None:
        self._bounds = list(accumulate((rank + 1) ** -exponent for rank in range(count)))

    def pick(self) -> int:
        """Returns the number of a series, from 0."""
        if len(self._bounds) == 1:
            return 0
        return min(bisect(self._bounds, random.random() * self._bounds[-1]), len(self._bounds) - 1)  # noqa: S311


# kinds of requests --------------------------------------------------------------------------------------------------


_entry = msgspec.json.Decoder(EntryAnswer)
_batch = msgspec.json.Decoder(BatchAnswer)
_page = msgspec.json.Decoder(EntryPage)


class Operation(ABC):
    """A kind of request."""

    name = ""

    def __init__(self, scene: Scene, book: Book) -> None:
        self.scene = scene
        self.book = book
        self.latencies_us = array("Q")
        """Of the answers in this second."""
        self.popularity = Popularity(len(scene.series), scene.zipf)
        self.paths = [f"{scene.address.base}/sequence/v1/series/{one}/entries".encode() for one in scene.series]
        self.headers = (
            f" HTTP/1.1\r\nHost: {scene.address.host_header}\r\nAuthorization: Bearer {scene.key}\r\n".encode()
        )

    @abstractmethod
    def make(self) -> Request | None:
        """Returns a request to send; None where there is nothing yet to ask for."""

    @abstractmethod
    def check(self, request: Request, body: bytes, *, replayed: bool) -> None:
        """Takes an answer of 200 into the book, or notes what is wrong with it."""

    def with_body(self, body: bytes) -> bytes:
        """Returns the end of a request: headers and body."""
        return b"%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (self.headers, len(body), body)

    def forget(self, request: Request) -> None:
        """Notes that the outcome of a request stays unknown."""
        for entry_id in request.ids:
            self.book.unknown += UNKNOWN.pack(request.series, uuid_bytes(entry_id))

    def find(self, request: Request, position: int, kind: str, detail: str) -> None:
        """Notes that an answer is wrong."""
        self.book.findings.add(self.scene.series[request.series], position, kind, detail)

    def record(self, request: Request, entry_id: str, told: EntryAnswer) -> bytes:
        """Returns an answer's record, after a look at what can be judged at once."""
        if told.id != entry_id:
            self.find(request, told.position, "wrong_id", f"asked for {entry_id}, answered {told.id}")
        if told.series_id != self.scene.series[request.series]:
            self.find(request, told.position, "wrong_series", f"{told.id} was answered in {told.series_id}")
        if told.meta != pick(self.scene.metas, entry_id):
            self.find(request, told.position, "changed_meta", f"{told.id} was answered with another meta than was sent")
        code, rest = digests(told)
        return RECORD.pack(request.series, uuid_bytes(entry_id), told.position, code, rest)


class New(Operation):
    """Asks for a number under a new id."""

    name = "new"

    def __init__(self, scene: Scene, book: Book) -> None:
        super().__init__(scene, book)
        self._heads = [b"PUT %b/" % path for path in self.paths]
        self._tails = [self.with_body(b'{"meta":%b}' % msgspec.json.encode(meta)) for meta in scene.metas]

    def make(self) -> Request | None:
        """Returns a PUT of a new entry."""
        series, entry_id = self.popularity.pick(), self.book.new_id()
        return Request(self, series, self.wire(series, entry_id), (entry_id,))

    def wire(self, series: int, entry_id: str) -> bytes:
        """Returns the bytes of an entry's PUT: the same for the same id."""
        return b"%b%b%b" % (self._heads[series], entry_id.encode(), pick(self._tails, entry_id))

    def check(self, request: Request, body: bytes, *, replayed: bool) -> None:
        """Keeps what was answered."""
        told = _entry.decode(body)
        self.book.records += self.record(request, request.ids[0], told)
        if replayed and not request.tries:
            self.find(request, told.position, "unasked_replay", f"{told.id} was new and answered as a replay")


class Replay(New):
    """Asks again, later, under an id that was answered: the answer must be the same."""

    name = "replay"

    def make(self) -> Request | None:
        """Returns the PUT of an entry that has its number."""
        record = self.book.any_record()
        if record is None:
            return None
        series, raw_id, *_ = RECORD.unpack(record)
        return Request(self, series, self.wire(series, uuid_text(raw_id)), record=record)

    def check(self, request: Request, body: bytes, *, replayed: bool) -> None:
        """Compares the answer with the first one."""
        told = _entry.decode(body)
        _, raw_id, position, *_ = RECORD.unpack(request.record)
        self.book.replays += 1
        if self.record(request, uuid_text(raw_id), told) != request.record:
            detail = f"{told.id} was answered as position {position} and is now {told.code} at position {told.position}"
            self.find(request, position, "changed_replay", detail)
        elif not replayed:
            self.find(request, position, "unmarked_replay", f"{told.id} came again without Idempotent-Replayed")


class Batch(Operation):
    """Asks for several numbers in a row."""

    name = "batch"

    def make(self) -> Request:
        """Returns the POST of a batch."""
        series = self.popularity.pick()
        ids = tuple(self.book.new_id() for _ in range(self.scene.batch_size))
        named = [BatchElement(one, pick(self.scene.metas, one)) for one in ids]
        body = self.with_body(msgspec.json.encode(BatchBody(named)))
        return Request(self, series, b"POST %b%b" % (self.paths[series], body), ids)

    def check(self, request: Request, body: bytes, *, replayed: bool) -> None:  # noqa: ARG002 -- it never says so
        """Keeps what was answered; it must be one run."""
        told = _batch.decode(body).entries
        if len(told) != len(request.ids):
            self.find(request, 0, "broken_batch", f"{len(request.ids)} were asked for, {len(told)} answered")
        for entry_id, one in zip(request.ids, told, strict=False):
            self.book.records += self.record(request, entry_id, one)
        _check_run(self, request, told, "broken_batch")


class List(Operation):
    """Asks for a page, behind any of the entries that were told."""

    name = "list"

    def make(self) -> Request | None:
        """Returns the GET of a page."""
        record = self.book.any_record()
        if record is None:
            return None
        series, raw_id, *_ = RECORD.unpack(record)
        cursor = quote_plus(cursor_behind(uuid_text(raw_id), LIST_LIMIT)).encode()
        wire = b"GET %b?cursor=%b%b\r\n" % (self.paths[series], cursor, self.headers)
        return Request(self, series, wire, record=record)

    def check(self, request: Request, body: bytes, *, replayed: bool) -> None:  # noqa: ARG002 -- it never says so
        """Looks whether the page goes on where it was asked to, without a gap."""
        told = _page.decode(body).entries
        _, _, position, *_ = RECORD.unpack(request.record)
        if told and told[0].position != position + 1:
            self.find(request, position + 1, "broken_page", f"the page behind it begins with {told[0].position}")
        _check_run(self, request, told, "broken_page")


def _check_run(operation: Operation, request: Request, told: list[EntryAnswer], kind: str) -> None:
    for before, one in pairwise(told):
        if one.position != before.position + 1 or one.previous_id != before.id:
            detail = f"{one.id} at position {one.position} follows {before.id} at {before.position}"
            operation.find(request, one.position, kind, detail)


class Mix:
    """Picks kinds of requests by their shares; a kind that has nothing to ask for yet gives way to the first."""

    def __init__(self, scene: Scene, book: Book) -> None:
        kinds: dict[str, Any] = {kind.name: kind for kind in (New, Replay, Batch, List)}
        self.operations: list[Operation] = [kinds[name](scene, book) for name in kinds if name in scene.weights]
        self._shares = [scene.weights[operation.name] for operation in self.operations]
        self._first = next(one for one in self.operations if one.name in ("new", "batch"))

    def make(self) -> Request:
        """Returns the next request."""
        operation = self.operations[0]
        if len(self.operations) > 1:
            (operation,) = random.choices(self.operations, self._shares)  # noqa: S311 -- no secret
        made = operation.make() or self._first.make()
        assert made is not None
        return made
