"""What Redis holds: the names of the keys, and what their values mean. No I/O.

Keys of a shard share the hash tag `{sNNN}`, so that a script finds all its keys on one node of a cluster:

    {s017}:shard               hash: epoch, generation, backlog; halted with its reason when allocation is stopped
    {s017}:dirty               set: ids of the series whose outbox holds records
    {s017}:series:<id>         hash: version, open, on (whether it is active), changing; at, see At; last, the latest
                               date, and behind it the last entry's id (16 bytes); and the counters, such as inc or
                               incYearly:2026. Every idle series keeps these, and every call reads them: few and short
    {s017}:outbox:<id>         stream of items. A run is an item of entries that were issued together: its id is
                               <position of the last one>-0, its one field e holds their records, see allocate.lua.
                               A skip or a void is an item of its own, <position>-<k>, k >= 1, with the fields w which
                               of the two, t created (ms), r reason, u actor, and n counter, a from, b to; or v the
                               voided position. Positions of a run are taken at once: nothing stands inside it
    {s017}:ids:<id>:<bucket>   hash: the id index, see index.lua
    {s017}:ids:<id>:voids      hash: voided position -> msgpack, see void.lua
    {s017}:company:<id>        hash: version, open, changing, claims, and default:<type>, the bytes of a series' id
    {s017}:claims:<id>:<bucket>   hash: the index of claims, see claim.lua
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from seriatim.errors import Damaged
from seriatim.formats import counted
from seriatim.model import Counted, Entry, Record, Series, Skip, Void, uuid_text

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


def entry(series_id: str, position: int, record: bytes) -> Entry:
    """Returns an entry from its record in a run."""
    created, date, count, code, claimed, sig, meta, previous = record[24:].split(b"\0", 7)
    return Entry(
        series=series_id,
        id=uuid_text(record[:16]),
        position=position,
        code=code.decode(),
        numbers=numbers(count),
        date=date.decode(),
        created_at=int(created),
        previous_id=uuid_text(previous) if previous else None,
        meta=meta or b"{}",
        sig=sig.decode() or None,
        fingerprint=record[16:24],
        claimed=claimed == b"1",
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


def numbers(text: bytes) -> tuple[Counted, ...]:
    """Returns what an entry's counters had, as allocate.lua writes it."""
    if b"=" not in text:
        return (Counted("inc", "", int(text)),)
    pairs = (one.partition("=") for one in text.decode().split(";"))
    return tuple(counted(field, int(value)) for field, _, value in pairs)


def run_records(run: bytes) -> list[bytes]:
    """Returns the records of a run, nothing when it is not whole."""
    records = []
    at = 0
    while at < len(run):
        start = at + 4
        at = start + int.from_bytes(run[at:start])
        records.append(run[start:at])
    return records if at == len(run) else []


def item_records(series_id: str, item: Any, after: int = 0) -> Sequence[Record]:
    """Returns the records of an item; of a run, the entries behind position `after`.

    Raises:
        Damaged: the run is not whole.
    """
    stream_id, fields = item
    position, k = map(int, stream_id.split(b"-"))
    if k:
        return [_note(series_id, position, k, fields)]
    records = run_records(fields[b"e"])
    if not records:
        raise Damaged(f"The run of entries up to {position} in the outbox of series {series_id} is cut short.")
    before = position - len(records)
    skipped = max(0, after - before)
    return [entry(series_id, at, record) for at, record in enumerate(records[skipped:], before + skipped + 1)]
