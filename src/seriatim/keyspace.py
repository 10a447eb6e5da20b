"""What Redis holds: the names of the keys, and what their values mean. No I/O.

Keys of a shard share the hash tag `{sNNN}`, so that a script finds all its keys on one node of a cluster:

    {s017}:shard               hash: epoch, generation, backlog; halted with its reason when allocation is stopped
    {s017}:dirty               set: ids of the series whose outbox holds records
    {s017}:series:<id>         hash: version, open, active, changing, position, after (k of the last record), last_id,
                               last_date, last_number, last_time, settled, records, claims, and the counters, such as
                               inc or incYearly:2026
    {s017}:outbox:<id>         stream of records, ids <position>-<k>; fields of an entry: i id, f fingerprint, c code,
                               n numbers, t created (ms), d date, p previous id, m meta, s client's signature,
                               l claimed; of a skip and a void: w which of the two, t, r reason, u actor, and n counter,
                               a from, b to; or v the voided position
    {s017}:ids:<id>:<bucket>   hash: the id index, see index.lua
    {s017}:ids:<id>:voids      hash: voided position -> msgpack, see void.lua
    {s017}:company:<id>        hash: version, open, changing, claims, and default:<type>, the bytes of a series' id
    {s017}:claims:<id>:<bucket>   hash: the index of claims, see claim.lua
"""

from __future__ import annotations

from typing import Any

import msgspec

from seriatim.formats import counted
from seriatim.model import Counted, Entry, Record, Series, Skip, Void, uuid_text


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


def outbox_record(series_id: str, stream_id: bytes, fields: dict[bytes, bytes]) -> Record:
    """Returns the record of an outbox."""
    position, k = map(int, stream_id.split(b"-"))
    if k == 0:
        return _entry(series_id, position, fields)
    said = (fields[b"r"].decode(), fields[b"u"].decode(), int(fields[b"t"]))
    if fields[b"w"] == b"void":
        return Void(series_id, position, k, int(fields[b"v"]), *said)
    counter, _, period = fields[b"n"].decode().partition(":")
    return Skip(series_id, position, k, counter, period, int(fields[b"a"]), int(fields[b"b"]), *said)


def _entry(series_id: str, position: int, record: dict[bytes, bytes]) -> Entry:
    previous, sig = record.get(b"p"), record.get(b"s")
    return Entry(
        series=series_id,
        id=uuid_text(record[b"i"]),
        position=position,
        code=record[b"c"].decode(),
        numbers=numbers(record[b"n"]),
        date=record[b"d"].decode(),
        created_at=int(record[b"t"]),
        previous_id=uuid_text(previous) if previous else None,
        meta=record.get(b"m", b"{}"),
        sig=sig.decode() if sig else None,
        fingerprint=record[b"f"],
        claimed=b"l" in record,
    )


_unpack = msgspec.msgpack.Decoder(tuple[int, int, int, str, str]).decode


def unpack_void(series_id: str, voided: int, packed: bytes | None) -> Void | None:
    """Returns the void of the entry at position `voided`, as void.lua packs it; None for nothing."""
    if not packed:
        return None
    position, k, created_at, reason, actor = _unpack(packed)
    return Void(series_id, position, k, voided, reason, actor, created_at)


def numbers(text: bytes) -> tuple[Counted, ...]:
    """Returns what an entry's counters had, as allocate.lua writes it."""
    if b"=" not in text:
        return (Counted("inc", "", int(text)),)
    pairs = (one.partition("=") for one in text.decode().split(";"))
    return tuple(counted(field, int(value)) for field, _, value in pairs)


def outbox_records(series_id: str, raw: Any) -> list[Record]:
    """Returns the records of an XRANGE over an outbox."""
    return [outbox_record(series_id, stream_id, fields) for stream_id, fields in raw]
