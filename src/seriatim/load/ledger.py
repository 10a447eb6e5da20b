"""What all processes were told, by series and position: 24 bytes for each."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator
from hashlib import blake2b
from itertools import pairwise
from struct import Struct

from seriatim.load.book import RECORD, Findings
from seriatim.load.target import Lane
from seriatim.model import uuid_text

SLOT = Struct("<16sII")
"""Id, digest of the code, digest of the rest."""
EMPTY = bytes(SLOT.size)
PARTS = 256

Slot = tuple[bytes, int, int]


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


class Ledger:
    """What was told of all series."""

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
