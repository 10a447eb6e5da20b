"""What Redis holds: the names of the keys, and what their values mean. No I/O.

Keys of a shard share the hash tag `{sNNN}`, so that a script finds all its keys on one node of a cluster:

    {s017}:shard               hash: epoch, generation, layout; backlog, how many records the outbox holds; written, the
                               last item of the outbox, and settled, the one up to which all are in the store and
                               dropped; halted with its reason when allocation is stopped
    {s017}:series              hash: a series' id -> its state, see State. Every idle series keeps it, and every call
                               reads it
    {s017}:outbox              stream of items <n>-0, n = 1, 2, ..., in the order in which calls made them. An item
                               has runs of entries, each a pair of what they share (the head) and what was asked for,
                               see allocate.lua; or it has one skip or void: note, and behind that msgpack, see Note
    {s017}:ids:<id>:<bucket>   hash: the id index of a series, see index.lua
    {s017}:ids:<id>:voids      hash: voided position -> msgpack, see void.lua
    {s017}:ids:<id>:counters   hash: last values of the counters that the last entry did not raise, such as those of
                               other periods
    {s017}:company:<id>        hash: version, open, changing, claims, and default:<type>, the bytes of a series' id
    {s017}:claims:<id>:<bucket>   hash: the index of claims, see claim.lua
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec

from seriatim.errors import Damaged
from seriatim.formats import counted
from seriatim.model import Entry, Place, Record, Series, Skip, Void, uuid_text

LAYOUT = "5"
"""Which of the ways to keep all this: whoever changes what keys or values mean raises it."""
RUN_MAX = 32
"""How many entries a run holds at most, as allocate.lua has it."""
DAY_BYTES = len("2026-11-28")
SERIES_BYTES = 36
COUNTERS_MAX = 4
"""How many a format may have."""


def shard_key(shard: int) -> str:
    """Returns the key of a shard's hash."""
    return f"{{s{shard:03d}}}:shard"


def series_key(shard: int) -> str:
    """Returns the key of the hash of a shard's series."""
    return f"{{s{shard:03d}}}:series"


def outbox_key(shard: int) -> str:
    """Returns the key of a shard's outbox."""
    return f"{{s{shard:03d}}}:outbox"


@lru_cache(maxsize=1024)
def shard_keys(shard: int) -> tuple[str, str, str, str]:
    """Returns a shard's keys, and what those of its series begin with, as allocate.lua takes them."""
    return shard_key(shard), series_key(shard), outbox_key(shard), index_prefix(shard, "")


def series_keys(shard: int, series_id: str) -> tuple[str, str, str, str]:
    """Returns a shard's keys, and what those of one series begin with, as scripts for one series take them."""
    return shard_key(shard), series_key(shard), outbox_key(shard), index_prefix(shard, series_id)


def index_prefix(shard: int, series_id: str) -> str:
    """Returns what the keys begin with that a series has for itself."""
    return f"{{s{shard:03d}}}:ids:{series_id}"


def company_key(shard: int, company: str) -> str:
    """Returns the key of a company's hash."""
    return f"{{s{shard:03d}}}:company:{company}"


def claims_prefix(shard: int, company: str) -> str:
    """Returns what the keys of a company's index of claims begin with."""
    return f"{{s{shard:03d}}}:claims:{company}"


def voids_key(series: Series) -> str:
    """Returns the key of the hash of a series' voided positions."""
    return f"{index_prefix(series.shard, series.id)}:voids"


def counters_key(shard: int, series_id: str) -> str:
    """Returns the key of the hash of a series' counters that are kept aside."""
    return f"{index_prefix(shard, series_id)}:counters"


_state = struct.Struct(">BBdddIIdddBB")


class State(msgspec.Struct, frozen=True):
    """Where a series stands.

    Args:
        open: numbers may be asked for.
        active: and new ones are issued.
        version: of its definition, which
        changing: has been under change since this time (ms), if not 0.
        position: of its last record, with
        k: which tells that from others at this position.
        claims: how many entries came here because the series was their company's default.
        time: of the last record, in ms.
        number: of the last entry.
        item: the last item of the outbox that has a record of it.
        date: of the last entry, or a later one from which a strict series goes on; empty before.
        id: of the last entry (16 bytes), or empty.
        counters: the last values of those that the last entry raised.
    """

    open: bool = False
    active: bool = True
    version: int = 1
    changing: int = 0
    position: int = 0
    k: int = 0
    claims: int = 0
    time: int = 0
    number: int = 0
    item: int = 0
    date: str = ""
    id: bytes = b""
    counters: dict[str, int] = {}

    @property
    def place(self) -> Place:
        """Its last record's."""
        return self.position, self.k

    @property
    def last_id(self) -> str | None:
        """The id of its last entry."""
        return uuid_text(self.id) if self.id else None

    @classmethod
    def unpack(cls, packed: bytes) -> State:
        """Returns what series.lua has packed."""
        is_open, active, *numbers, last, count = _state.unpack_from(packed)
        at = _state.size + 8 * count
        values = struct.unpack_from(f">{count}d", packed, _state.size)
        names = packed[at + last :].decode().split()
        counters = dict(zip(names, map(int, values), strict=True))
        date = packed[at : at + min(last, DAY_BYTES)].decode()
        last_id = packed[at + DAY_BYTES : at + last]
        return cls(is_open == 1, active == 1, *map(int, numbers), date, last_id, counters)  # type: ignore[call-arg, arg-type]

    def pack(self) -> bytes:
        """Returns it as series.lua packs it."""
        numbers = (self.version, self.changing, self.position, self.k, self.claims, self.time, self.number, self.item)
        last = self.date.encode() + self.id
        head = _state.pack(self.open, self.active, *numbers, len(last), len(self.counters))
        values = struct.pack(f">{len(self.counters)}d", *self.counters.values())
        return head + values + last + " ".join(self.counters).encode()


class Rendering(msgspec.Struct, frozen=True, cache_hash=True, array_like=True):
    """What the entries of a run have from their series' format and their date.

    Args:
        date: the documents', YYYY-MM-DD.
        fields: the format's counters, each in its period.
        code: a code, with places for the values (printf).
        counted: of which fields these are, counted from 1.
        claimed: whether the entries came to this series because that was its company's default.
    """

    date: str
    fields: tuple[str, ...]
    code: str
    counted: tuple[int, ...]
    claimed: bool


class Run(msgspec.Struct, frozen=True, gc=False):
    """What entries share that were issued one behind the other.

    Args:
        series: its id.
        first: position of the first entry.
        k: of the record before that.
        count: how many they are.
        time: when they were issued, in ms.
        previous: the id (16 bytes) before them, or empty.
        values: those of the first entry's counters: each entry raises all of them by one.
        rendering: what they have from their date.
    """

    series: str
    first: int
    k: int
    count: int
    time: int
    previous: bytes
    values: tuple[int, ...]
    rendering: Rendering


_rendering = lru_cache(maxsize=4096)(msgspec.json.Decoder(Rendering).decode)
_head = struct.Struct(">36sdIddHBB")
_firsts = [struct.Struct(f">{count}d").unpack_from for count in range(COUNTERS_MAX + 1)]


def unpack_run(head: bytes) -> Run:
    """Returns what allocate.lua has packed as the head of a run.

    Raises:
        Damaged: it is not whole.
    """
    try:
        series, first, k, time, _, count, previous, values = _head.unpack_from(head)
        firsts = _firsts[values](head, _head.size)
        begin = _head.size + 8 * values
        rendering = _rendering(head[begin + previous :])
    except (struct.error, IndexError, msgspec.DecodeError):
        of = head[:SERIES_BYTES].decode(errors="replace")
        raise Damaged(f"A run in the outbox of series {of} is cut short.") from None
    before, counters = head[begin : begin + previous], tuple(map(int, firsts))
    return Run(series.decode(), int(first), k, count, int(time), before, counters, rendering)


_tagged = struct.Struct(">24sI")
"""What stands before what an id's request carries."""


def pack_request(tag: bytes, meta: bytes = b"", sig: bytes = b"") -> bytes:
    """Returns a request for a number as allocate.lua takes it, and keeps it in a run.

    Args:
        tag: the id's 16 bytes, then 8 bytes of the payload's fingerprint.
        meta: canonical JSON, or empty.
        sig: the client's signature, or empty.
    """
    return _tagged.pack(tag, len(sig) + 1 + len(meta)) + sig + b"\0" + meta


class Issued(msgspec.Struct, frozen=True, gc=False):
    """An entry as Redis holds it.

    Args:
        run: the one that it is in, as
        nth: entry, counted from 0.
        request: as `pack_request` returns it.
        previous: the id (16 bytes) of the entry before, or empty.
        void: of one that is replayed, as `unpack_void` takes it.
        replayed: it was issued before.
    """

    run: Run
    nth: int
    request: bytes
    previous: bytes
    void: bytes = b""
    replayed: bool = False

    @property
    def position(self) -> int:
        """Its place in the series."""
        return self.run.first + self.nth

    def carried(self) -> tuple[bytes, bytes]:
        """Returns its client's signature and its meta, each of which may be empty."""
        sig, _, meta = self.request[_tagged.size :].partition(b"\0")
        return sig, meta

    def values(self) -> list[int]:
        """Returns the values of its counters, in the order of the rendering's fields."""
        nth = self.nth
        return [value + nth for value in self.run.values]

    def entry(self) -> Entry:
        """Returns the entry, without its void."""
        run, rendering, values = self.run, self.run.rendering, self.values()
        sig, meta = self.carried()
        return Entry(
            series=run.series,
            id=uuid_text(self.request[:16]),
            position=self.position,
            code=rendering.code % tuple([values[field - 1] for field in rendering.counted]),
            numbers=tuple([counted(field, value) for field, value in zip(rendering.fields, values, strict=True)]),
            date=rendering.date,
            created_at=run.time,
            previous_id=uuid_text(self.previous) if self.previous else None,
            meta=meta or b"{}",
            sig=sig.decode() or None,
            fingerprint=self.request[16:24],
            claimed=rendering.claimed,
        )


_unpack = msgspec.msgpack.Decoder(tuple[int, int, int, str, str]).decode


def unpack_void(series_id: str, voided: int, packed: bytes | None) -> Void | None:
    """Returns the void of the entry at position `voided`, as void.lua packs it; None for nothing."""
    if not packed:
        return None
    position, k, created_at, reason, actor = _unpack(packed)
    return Void(series_id, position, k, voided, reason, actor, created_at)


def pack_void(void: Void) -> bytes:
    """Returns a void as void.lua packs it."""
    return msgspec.msgpack.encode((void.position, void.k, void.created_at, void.reason, void.actor))


def pack_indexed(fingerprint: bytes, position: int) -> bytes:
    """Returns the value of a settled entry's id in the index, as index.lua packs it."""
    return fingerprint + position.to_bytes(max(1, (position.bit_length() + 7) // 8)) + bytes(2)


def run_requests(requests: bytes) -> list[bytes]:
    """Returns the requests of a run, nothing when one is not whole."""
    found = []
    at = 0
    while at < len(requests):
        start = at
        at = start + _tagged.size + int.from_bytes(requests[start + 24 : start + _tagged.size])
        found.append(requests[start:at])
    return found if at == len(requests) else []


def item_number(item: Any) -> int:
    """Returns the number of an item."""
    stream_id, _ = item
    return int(stream_id.partition(b"-")[0])


def part_series(part: tuple[bytes, bytes]) -> str:
    """Returns the series of a part of an item: of a run, or of a skip or void."""
    name, content = part
    return _note(content).series if name == b"note" else name[:SERIES_BYTES].decode()


def part_places(part: tuple[bytes, bytes]) -> tuple[Place, Place]:
    """Returns the places of the record before a part of an item, and of the last that it has.

    Raises:
        Damaged: a run is not whole.
    """
    name, content = part
    if name == b"note":
        position, k = _note(content).place
        return (position, k - 1), (position, k)
    run, _ = _run(name, content)
    return (run.first - 1, run.k), (run.first + run.count - 1, 0)


def part_records(part: tuple[bytes, bytes]) -> Sequence[Record]:
    """Returns the records of a part of an item.

    Raises:
        Damaged: a run is not whole.
    """
    name, content = part
    if name == b"note":
        return [_note(content)]
    run, requests = _run(name, content)
    before = [run.previous, *(request[:16] for request in requests)]
    return [Issued(run, nth, requests[nth], before[nth]).entry() for nth in range(run.count)]


def _run(head: bytes, content: bytes) -> tuple[Run, list[bytes]]:
    """Returns a run and its requests."""
    run, requests = unpack_run(head), run_requests(content)
    if len(requests) != run.count:
        raise Damaged(f"The run of entries from {run.first} in the outbox of series {run.series} is cut short.")
    return run, requests


def _note(packed: bytes) -> Skip | Void:
    """Returns a skip or a void as series.append has packed it."""
    series, position, k, _, what, *said = msgspec.msgpack.decode(packed)
    if what == "void":
        voids, created_at, reason, actor = said
        return Void(series, position, k, voids, reason, actor, created_at)
    field, first, last, created_at, reason, actor = said
    counter, _, period = field.partition(":")
    return Skip(series, position, k, counter, period, first, last, reason, actor, created_at)
