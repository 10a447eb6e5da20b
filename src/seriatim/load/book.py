"""What one process was told by the service, kept small; and what was found to be wrong."""

from __future__ import annotations

import os
import random
from bisect import bisect
from collections import Counter
from itertools import accumulate
from struct import Struct
from typing import Protocol
from zlib import crc32

import msgspec

from seriatim.model import uuid_text

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


class Issued(Protocol):
    """What of an entry must stay as it was answered; its meta is compared with what was sent."""

    code: str
    number: int
    date: str
    created_at: str
    previous_id: str | None


def digests(entry: Issued) -> tuple[int, int]:
    """Returns 4 bytes that stand for the entry's code, and 4 for what else was answered once and for all."""
    rest = f"{entry.number} {entry.date} {entry.created_at} {entry.previous_id}"
    return crc32(entry.code.encode()), crc32(rest.encode())


class Popularity:
    """Picks series: the k-th of them with weight 1 / k ** exponent (Zipf); 0 picks each as often."""

    def __init__(self, count: int, exponent: float) -> None:
        self._bounds = list(accumulate((rank + 1) ** -exponent for rank in range(count)))

    def pick(self) -> int:
        """Returns the number of a series, from 0."""
        if len(self._bounds) == 1:
            return 0
        return min(bisect(self._bounds, random.random() * self._bounds[-1]), len(self._bounds) - 1)  # noqa: S311


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
