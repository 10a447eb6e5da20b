"""What Redis holds: the names of the keys, and what their values mean. No I/O.

Keys of a shard share the hash tag `{sNNN}`, so that a script finds all its keys on one node of a cluster:

    {s017}:shard               hash: epoch, generation, layout, backlog; halted with its reason when allocation is
                               stopped
    {s017}:dirty               set: ids of the series whose outbox holds records
    {s017}:series:<id>         hash: version, open, on (whether it is active), changing; at, see At; last, the latest
                               date, and behind it the last entry's id (16 bytes); and the counters, such as inc or
                               incYearly:2026. Every idle series keeps these, and every call reads them: few and short
    {s017}:outbox:<id>         stream of items. A run is an item of entries that were issued together: its id is
                               <position of the last one>-0, its fields are h, what they share, and e, what was asked
                               for, see allocate.lua. A skip or a void is an item of its own, <position>-<k>, k >= 1,
                               with the fields w which of the two, t created (ms), r reason, u actor, and n counter,
                               a from, b to; or v the voided position. Positions of a run are taken at once: nothing
                               stands inside it
    {s017}:ids:<id>:<bucket>   hash: the id index, see index.lua
    {s017}:ids:<id>:voids      hash: voided position -> msgpack, see void.lua
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
from seriatim.model import Entry, Record, Series, Skip, Void, uuid_text

LAYOUT = "2"
"""Which of the ways to keep all this: whoever changes what keys or values mean raises it."""
RUN_MAX = 32
"""How many entries an item holds at most, as allocate.lua has it."""
DAY_BYTES = len("2026-11-28")


def shard_key(shard: int) -> str:
    """Returns the key of a shard's hash."""
    return f"{{s{shard:03d}}}:shard"


def dirty_key(shard: int) -> str:
    """Returns the key of a shard's set of dirty series."""
    return f"{{s{shard:03d}}}:dirty"


def series_key(shard: int, series_id: str) -> str:
    """Returns the key of a series' hash."""
    return f"{{s{shard:03d}}}:series:{series_id}"


def outbox_key(shard: int, series_id: str) -> str:
    """Returns the key of a series' outbox."""
    return f"{{s{shard:03d}}}:outbox:{series_id}"


def index_prefix(shard: int, series_id: str) -> str:
    """Returns what the keys of a series' id index and voids begin with."""
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


_at = struct.Struct(">dIdIIdddI")


class At(msgspec.Struct, frozen=True):
    """Where a series stands.

    Args:
        position: of its last record, with
        k: which tells that from others at this position.
        settled: the position up to which the store has all entries, and
        settled_k: at it, up to this k all skips and voids.
        items: how many the outbox holds.
        notes: how many of them are skips and voids.
        claims: how many entries came here because the series was their company's default.
        time: of the last record, in ms.
        number: of the last entry.
    """

    position: int = 0
    k: int = 0
    settled: int = 0
    items: int = 0
    notes: int = 0
    claims: int = 0
    time: int = 0
    number: int = 0
    settled_k: int = 0

    @classmethod
    def unpack(cls, packed: bytes) -> At:
        """Returns what series.lua has packed."""
        return cls(*map(int, _at.unpack(packed)))

    def pack(self) -> bytes:
        """Returns it as series.lua packs it."""
        return _at.pack(*msgspec.structs.astuple(self))


def last_id(last: bytes | None) -> str | None:
    """Returns the id of a series' last entry, of what its hash has in `last`."""
    return uuid_text(last[DAY_BYTES:]) if last and len(last) > DAY_BYTES else None


def _note(series_id: str, position: int, k: int, fields: dict[bytes, bytes]) -> Skip | Void:
    said = (fields[b"r"].decode(), fields[b"u"].decode(), int(fields[b"t"]))
    if fields[b"w"] == b"void":
        return Void(series_id, position, k, int(fields[b"v"]), *said)
    counter, _, period = fields[b"n"].decode().partition(":")
    return Skip(series_id, position, k, counter, period, int(fields[b"a"]), int(fields[b"b"]), *said)


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


class Run(msgspec.Struct, frozen=True):
    """What entries share that were issued one behind the other; `previous` is the id (16 bytes) before them, or empty.

    The values are those of the first entry's counters: each entry raises all of them by one.
    """

    first: int
    count: int
    time: int
    previous: bytes
    values: tuple[int, ...]
    rendering: Rendering


_rendering = lru_cache(maxsize=4096)(msgspec.json.Decoder(Rendering).decode)
_head = struct.Struct(">ddHBB")


def unpack_run(head: bytes, name: str = "A run in an outbox") -> Run:
    """Returns what allocate.lua has packed as the head of a run.

    Raises:
        Damaged: it is not whole.
    """
    try:
        first, time, count, previous, values = _head.unpack_from(head)
        firsts = struct.unpack_from(f">{values}d", head, _head.size)
        begin = _head.size + 8 * values
        rendering = _rendering(head[begin + previous :])
    except (struct.error, msgspec.DecodeError):
        raise Damaged(f"{name} is cut short.") from None
    return Run(int(first), count, int(time), head[begin : begin + previous], tuple(map(int, firsts)), rendering)


_length = struct.Struct(">I").pack
_REQUEST = 16 + 8 + 4
"""How many bytes stand before what an id's request carries."""


def pack_request(tag: bytes, meta: bytes = b"", sig: bytes = b"") -> bytes:
    """Returns a request for a number as allocate.lua takes it, and keeps it in a run.

    Args:
        tag: the id's 16 bytes, then 8 bytes of the payload's fingerprint.
        meta: canonical JSON, or empty.
        sig: the client's signature, or empty.
    """
    return b"%b%b%b\0%b" % (tag, _length(len(sig) + 1 + len(meta)), sig, meta)


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
        sig, _, meta = self.request[_REQUEST:].partition(b"\0")
        return sig, meta

    def values(self) -> list[int]:
        """Returns the values of its counters, in the order of the rendering's fields."""
        nth = self.nth
        return [value + nth for value in self.run.values]

    def entry(self, series_id: str) -> Entry:
        """Returns the entry, without its void."""
        run, rendering, values = self.run, self.run.rendering, self.values()
        sig, meta = self.carried()
        return Entry(
            series=series_id,
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
    """Returns the value of an entry's id in the index, as index.lua packs it."""
    return fingerprint + position.to_bytes(max(1, (position.bit_length() + 7) // 8))


def run_requests(requests: bytes) -> list[bytes]:
    """Returns the requests of a run, nothing when one is not whole."""
    found = []
    at = 0
    while at < len(requests):
        start = at
        at = start + _REQUEST + int.from_bytes(requests[start + 24 : start + _REQUEST])
        found.append(requests[start:at])
    return found if at == len(requests) else []


def item_records(series_id: str, item: Any, after: int = 0) -> Sequence[Record]:
    """Returns the records of an item; of a run, the entries behind position `after`.

    Raises:
        Damaged: the run is not whole.
    """
    stream_id, fields = item
    position, k = map(int, stream_id.split(b"-"))
    if k:
        return [_note(series_id, position, k, fields)]
    name = f"The run of entries up to {position} in the outbox of series {series_id}"
    run = unpack_run(fields.get(b"h", b""), name)
    requests = run_requests(fields[b"e"])
    if not len(requests) == run.count == position - run.first + 1:
        raise Damaged(f"{name} is cut short.")
    begin = max(0, after - run.first + 1)
    before = [run.previous, *(request[:16] for request in requests)]
    return [Issued(run, nth, requests[nth], before[nth]).entry(series_id) for nth in range(begin, run.count)]
