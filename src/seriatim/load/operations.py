"""The kinds of requests: what each sends, and what its answer must be."""

from __future__ import annotations

import base64
import random
from array import array
from itertools import pairwise
from typing import Annotated, Any, Protocol

import msgspec

from seriatim.load.book import RECORD, UNKNOWN, Book, Popularity, digests
from seriatim.load.options import Address
from seriatim.load.payloads import Payload, pick
from seriatim.model import COUNTER_MAX, uuid_bytes, uuid_text

LIST_LIMIT = 100


class Scene(msgspec.Struct, frozen=True):
    """Where requests go, for whom, and about what."""

    address: Address
    key: str
    series: list[str]
    zipf: float
    payloads: list[Payload]
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


class Answer(Protocol):
    """The head of an answer."""

    def header(self, name: bytes) -> bytes:
        """Returns the value of a header, by its lower-case name; empty where there is none."""

    def replayed(self) -> bool:
        """Whether it says `Idempotent-Replayed: true`."""


class Told(msgspec.Struct, gc=False):
    """What an answer says of an entry."""

    id: str
    series_id: str
    code: str
    position: Annotated[int, msgspec.Meta(ge=1, le=COUNTER_MAX)]
    number: int
    date: str
    created_at: str
    previous_id: str | None = None
    meta: msgspec.Raw = msgspec.Raw(b"{}")


class ToldBatch(msgspec.Struct):
    """What an answer says of a batch, or of a page."""

    entries: list[Told] = msgspec.field(name="list")


_entry = msgspec.json.Decoder(Told)
_batch = msgspec.json.Decoder(ToldBatch)
_meta = msgspec.json.Decoder(dict[str, str])


class Operation:
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

    def make(self) -> Request | None:
        """Returns a request to send; None where there is nothing yet to ask for."""
        raise NotImplementedError

    def check(self, request: Request, body: bytes, answer: Answer) -> None:
        """Takes an answer of 200 into the book, or notes what is wrong with it."""
        raise NotImplementedError

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

    def record(self, request: Request, entry_id: str, told: Told) -> bytes:
        """Returns an answer's record, after a look at what can be judged at once."""
        if told.id != entry_id:
            self.find(request, told.position, "wrong_id", f"asked for {entry_id}, answered {told.id}")
        if told.series_id != self.scene.series[request.series]:
            self.find(request, told.position, "wrong_series", f"{told.id} was answered in {told.series_id}")
        payload = pick(self.scene.payloads, entry_id)
        if bytes(told.meta) != payload.canonical and _decoded_meta(told.meta) != payload.meta:
            self.find(request, told.position, "changed_meta", f"{told.id} was answered with another meta than was sent")
        code, rest = digests(told)
        return RECORD.pack(request.series, uuid_bytes(entry_id), told.position, code, rest)


def _decoded_meta(raw: msgspec.Raw) -> dict[str, str] | None:
    try:
        return _meta.decode(raw)
    except msgspec.DecodeError:
        return None


class New(Operation):
    """Asks for a number under a new id."""

    name = "new"

    def __init__(self, scene: Scene, book: Book) -> None:
        super().__init__(scene, book)
        self._heads = [b"PUT %b/" % path for path in self.paths]
        self._tails = [self.with_body(b'{"meta":%b}' % payload.canonical) for payload in scene.payloads]

    def make(self) -> Request | None:
        """Returns a PUT of a new entry."""
        series, entry_id = self.popularity.pick(), self.book.new_id()
        return Request(self, series, self.wire(series, entry_id), (entry_id,))

    def wire(self, series: int, entry_id: str) -> bytes:
        """Returns the bytes of an entry's PUT: the same for the same id."""
        return b"%b%b%b" % (self._heads[series], entry_id.encode(), pick(self._tails, entry_id))

    def check(self, request: Request, body: bytes, answer: Answer) -> None:
        """Keeps what was answered."""
        told = _entry.decode(body)
        self.book.records += self.record(request, request.ids[0], told)
        if answer.replayed() and not request.tries:
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

    def check(self, request: Request, body: bytes, answer: Answer) -> None:
        """Compares the answer with the first one."""
        told = _entry.decode(body)
        _, raw_id, position, *_ = RECORD.unpack(request.record)
        self.book.replays += 1
        if self.record(request, uuid_text(raw_id), told) != request.record:
            detail = f"{told.id} was answered as position {position} and is now {told.code} at position {told.position}"
            self.find(request, position, "changed_replay", detail)
        elif not answer.replayed():
            self.find(request, position, "unmarked_replay", f"{told.id} came again without Idempotent-Replayed")


class Batch(Operation):
    """Asks for several numbers in a row."""

    name = "batch"

    def make(self) -> Request:
        """Returns the POST of a batch."""
        series = self.popularity.pick()
        ids = tuple(self.book.new_id() for _ in range(self.scene.batch_size))
        payloads = self.scene.payloads
        elements = [b'{"id":"%b","meta":%b}' % (one.encode(), pick(payloads, one).canonical) for one in ids]
        body = self.with_body(b'{"list":[%b]}' % b",".join(elements))
        return Request(self, series, b"POST %b%b" % (self.paths[series], body), ids)

    def check(self, request: Request, body: bytes, answer: Answer) -> None:  # noqa: ARG002 -- its head says nothing
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
        cursor = base64.b64encode(cursor_text(uuid_text(raw_id), LIST_LIMIT))
        escaped = cursor.replace(b"+", b"%2B").replace(b"/", b"%2F").replace(b"=", b"%3D")
        wire = b"GET %b?cursor=%b%b\r\n" % (self.paths[series], escaped, self.headers)
        return Request(self, series, wire, record=record)

    def check(self, request: Request, body: bytes, answer: Answer) -> None:  # noqa: ARG002 -- its head says nothing
        """Looks whether the page goes on where it was asked to, without a gap."""
        told = _batch.decode(body).entries
        _, _, position, *_ = RECORD.unpack(request.record)
        if told and told[0].position != position + 1:
            self.find(request, position + 1, "broken_page", f"the page behind it begins with {told[0].position}")
        _check_run(self, request, told, "broken_page")


def cursor_text(entry_id: str, limit: int) -> bytes:
    """Returns what a cursor says, before base64: pages go on behind an entry."""
    return b'{"id":"%b","limit":%d}' % (entry_id.encode(), limit)


def _check_run(operation: Operation, request: Request, told: list[Told], kind: str) -> None:
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
