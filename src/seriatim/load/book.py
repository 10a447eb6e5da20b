"""What was told: by one process while it sends (`Book`), and by all of them, series by series (`Books`)."""

from __future__ import annotations

import os
import random
from array import array
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from itertools import pairwise
from struct import Struct
from zlib import crc32

import msgspec

from seriatim.messages import EntryAnswer
from seriatim.model import Numbering, uuid_text

RECORD = Struct("<I16sQII")
"""An acknowledged entry in 36 bytes: number of its series, id, position, digests of its code and of the rest."""
UNKNOWN = Struct("<I16s")
"""An id that was sent and never answered, with the number of its series."""
FINDINGS_MAX = 100
"""How many findings are told one by one; all are counted."""
IDS_AT_ONCE = 256


class Finding(msgspec.Struct, frozen=True):
    """Something that is wrong, and where; position 0 where none is meant."""

    series: str
    position: int
    kind: str
    detail: str


class Findings(msgspec.Struct):
    """What was found: all counted by kind, the first ones told."""

    told: list[Finding] = []
    counts: dict[str, int] = {}

    def add(self, series: str, position: int, kind: str, detail: str) -> None:
        """Notes that something is wrong."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if len(self.told) < FINDINGS_MAX:
            self.told.append(Finding(series, position, kind, detail))

    def merge(self, other: Findings) -> None:
        """Adds what another process found."""
        self.counts = dict(Counter(self.counts) + Counter(other.counts))
        self.told = (self.told + other.told)[:FINDINGS_MAX]


def digests(entry: EntryAnswer) -> tuple[int, int]:
    """Returns 4 bytes that stand for the entry's code, and 4 for what else was answered once and for all.

    Its meta is none of that: it is compared with what was sent.
    """
    rest = f"{entry.number} {entry.date} {entry.created_at} {entry.previous_id}"
    return crc32(entry.code.encode()), crc32(rest.encode())


class Book:
    """What a process was told: each acknowledged entry once, and ids whose outcome stayed unknown."""

    def __init__(self) -> None:
        self.records = bytearray()
        self.unknown = bytearray()
        self.findings = Findings()
        self.replays = 0
        self._ids: list[str] = []

    def new_id(self) -> str:
        """Returns a random UUID (version 4)."""
        if not self._ids:
            block = bytearray(os.urandom(16 * IDS_AT_ONCE))
            block[6::16] = bytes(byte & 0x0F | 0x40 for byte in block[6::16])
            block[8::16] = bytes(byte & 0x3F | 0x80 for byte in block[8::16])
            self._ids = [uuid_text(bytes(block[at : at + 16])) for at in range(0, len(block), 16)]
        return self._ids.pop()

    def any_record(self) -> bytes | None:
        """Returns one of the records, each as likely; None before the first."""
        count = len(self.records) // RECORD.size
        if not count:
            return None
        at = int(random.random() * count) * RECORD.size  # noqa: S311
        return bytes(self.records[at : at + RECORD.size])


# what all were told -------------------------------------------------------------------------------------------------

SLOT = Struct("<16sII")
"""Id, digest of the code, digest of the rest."""
EMPTY = bytes(SLOT.size)
PARTS = 256

Slot = tuple[bytes, int, int]


class Lane(msgspec.Struct, frozen=True):
    """A series under load, as it stood before."""

    id: str
    numbering: Numbering
    owned: bool
    """Whether it was made for this: nobody else has entries in it."""
    base: int = 0
    """Position of its last entry, and that entry's id."""
    base_id: str | None = None


class Sheet:
    """What was told of one series."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.told = 0
        self.unknown: set[bytes] = set()
        self.strays: list[tuple[int, Slot]] = []
        """What was told of positions and has no place: it is taken, or would lie too far away."""
        self._slots = bytearray()

    @property
    def end(self) -> int:
        """The highest position that was told."""
        return self.lane.base + len(self._slots) // SLOT.size

    def place(self, position: int, slot: Slot, room: int, findings: Findings) -> None:
        """Takes an acknowledged entry; `room` is how many positions a series has slots for."""
        self.told += 1
        index = position - self.lane.base - 1
        if not 0 <= index < room:
            self.strays.append((position, slot))
            return
        at = index * SLOT.size
        if at >= len(self._slots):
            self._slots += bytes(at + SLOT.size - len(self._slots))
        if self._slots[at : at + SLOT.size] != EMPTY:
            self._repeated(position, slot, findings)
            return
        SLOT.pack_into(self._slots, at, *slot)

    def _repeated(self, position: int, slot: Slot, findings: Findings) -> None:
        first = self.at(position)
        assert first
        self.strays.append((position, slot))
        same = "the same code" if first[1] == slot[1] else "different codes"
        detail = f"was answered to {uuid_text(first[0])} and to {uuid_text(slot[0])}, with {same}"
        findings.add(self.lane.id, position, "repeated_position", detail)

    def at(self, position: int) -> Slot | None:
        """Returns what was told of a position; None where nothing was."""
        at = (position - self.lane.base - 1) * SLOT.size
        raw = self._slots[at : at + SLOT.size] if at >= 0 else b""
        return None if raw in (b"", EMPTY) else SLOT.unpack(raw)

    def between(self, first: int, last: int) -> Iterator[tuple[int, Slot]]:
        """Yields positions, both ends included, of which something was told, and what."""
        for position in range(max(first, self.lane.base + 1), min(last, self.end) + 1):
            slot = self.at(position)
            if slot:
                yield position, slot

    def any_told(self) -> int:
        """Returns a position of which something was told."""
        while True:
            position = random.randint(self.lane.base + 1, self.end)  # noqa: S311 -- a sample
            if self.at(position):
                return position


class Books:
    """What all processes were told, series by series."""

    def __init__(self, lanes: list[Lane], entries: int) -> None:
        self.sheets = [Sheet(lane) for lane in lanes]
        self.findings = Findings()
        self._room = 2 * entries + 1_000_000

    def take(self, records: bytes) -> None:
        """Takes records of a process."""
        for series, entry_id, position, code, rest in RECORD.iter_unpack(records):
            self.sheets[series].place(position, (entry_id, code, rest), self._room, self.findings)


class Distinct:
    """Finds texts that are repeated among millions, at 8 bytes each."""

    def __init__(self) -> None:
        self._parts = [array("Q") for _ in range(PARTS)]

    def add(self, text: str) -> None:
        """Takes a text."""
        value = self.value(text)
        self._parts[value % PARTS].append(value)

    def repeated(self) -> set[int]:
        """Returns the values of texts that came more than once."""
        found: set[int] = set()
        for part in self._parts:
            ordered = sorted(part)
            found |= {one for one, after in pairwise(ordered) if one == after}
        return found

    @staticmethod
    def value(text: str) -> int:
        """Returns the 8 bytes that stand for a text."""
        return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
