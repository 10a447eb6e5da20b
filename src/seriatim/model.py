"""The nouns of Seriatim: companies, series, entries. Plain data; no I/O."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Literal

import msgspec
import rfc8785

from seriatim.errors import NotFound

COUNTER_MAX = 2**53 - 1
"""Counters and positions stay exact in Lua's and JavaScript's numbers."""

CANONICAL_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
UUID_PATTERN = re.compile(rf"{CANONICAL_UUID}\Z")
DAY_PATTERN = re.compile(r"\d{4}-\d\d-\d\d\Z", re.ASCII)


Place = tuple[int, int]
"""Where a record stands in its series' chain: an entry at (position, 0), skips and voids after it at (position, k)."""


class Company(msgspec.Struct, frozen=True):
    """A tenant."""

    id: str
    name: str
    created_at: int


class Defaults(msgspec.Struct, frozen=True):
    """A company's default series by type, as the store holds them."""

    company: str
    shard: int
    version: int
    loaded_epoch: str | None
    series: dict[str, str]


class Numbering(msgspec.Struct, frozen=True, cache_hash=True):
    """What decides a series' codes; fixed by its first entry."""

    prefix: str = ""
    padding: int = 0
    suffix: str = ""
    start: int | None = None
    format: str | None = None
    """With markers; None where prefix, padding and suffix say it all."""
    timezone: str = "UTC"
    fiscal_year_start: str = "01-01"
    chronology: Literal["strict", "free"] = "strict"
    max_length: int | None = None
    charset: str | None = None

    @property
    def first(self) -> int:
        """What every counter of the format begins with in the series' first period."""
        return self.start or 1


class Series(msgspec.Struct, frozen=True):
    """A numbering definition, as the store holds it. Times are milliseconds since 1970 in UTC."""

    pk: int
    id: str
    company: str
    ordinal: int
    """1, 2, 3 ... in the order in which its company's series were made; never used again."""
    type: str
    name: str
    description: str
    code: str
    numbering: Numbering
    sig: str | None
    active: bool
    default: bool
    version: int
    shard: int
    loaded_epoch: str | None
    genesis: bytes | None
    position: int
    k: int
    """The last settled record: records up to it are in the store."""
    head: str | None
    """The chain's hash after that record."""
    claims: int
    """How many settled entries came here because the series was their company's default."""
    created_at: int
    updated_at: int

    @property
    def place(self) -> Place:
        """The place of the last settled record."""
        return self.position, self.k


class SeriesFields(msgspec.Struct, frozen=True):
    """What a request says of a series; None for what it leaves out."""

    name: str | None = None
    description: str | None = None
    code: str | None = None
    prefix: str | None = None
    padding: int | None = None
    suffix: str | None = None
    start: int | None = None
    format: str | None = None
    timezone: str | None = None
    fiscal_year_start: str | None = None
    chronology: Literal["strict", "free"] | None = None
    max_length: int | None = None
    charset: str | None = None
    sig: str | None = None
    type: str | None = None
    default: bool | None = None
    active: bool | None = None


class Counted(msgspec.Struct, frozen=True, gc=False):
    """The value that one counter had for an entry, and the period that it counted in ('' for a continuous one)."""

    counter: str
    period: str
    value: int


class Why(msgspec.Struct, frozen=True):
    """Who does what needs an explanation, and the explanation."""

    reason: str
    actor: str


class Note(msgspec.Struct, frozen=True):
    """A record that is no entry: the `k`th after entry `position`."""

    series: str
    position: int
    k: int

    @property
    def place(self) -> Place:
        """Where it stands in the chain."""
        return self.position, self.k


class Void(Note, frozen=True):
    """An entry's number is used and the document is not valid."""

    voids: int
    """Position of the entry."""
    reason: str
    actor: str
    created_at: int
    receipt: str | None = None
    settled_at: int | None = None


class Skip(Note, frozen=True):
    """Numbers that a counter left out, both ends included."""

    counter: str
    period: str
    first: int
    last: int
    reason: str
    actor: str
    created_at: int
    receipt: str | None = None
    settled_at: int | None = None


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One issued number. `receipt` is None while the entry is in the outbox."""

    series: str
    id: str
    position: int
    code: str
    numbers: tuple[Counted, ...]
    date: str
    created_at: int
    previous_id: str | None
    meta: bytes
    """Canonical JSON (RFC 8785) of the meta, `{}` when there is none."""
    sig: str | None
    fingerprint: bytes
    claimed: bool = False
    """Whether it came to this series because that was its company's default."""
    receipt: str | None = None
    settled_at: int | None = None
    void: Void | None = None

    @property
    def number(self) -> int:
        """The value of the format's first counter."""
        return self.numbers[0].value

    @property
    def place(self) -> Place:
        """Where it stands in the chain."""
        return self.position, 0


Record = Entry | Skip | Void
"""A link of a series' chain."""


class Standing(msgspec.Struct, frozen=True):
    """The epoch and generation under which a process works; every script and worker transaction carries them."""

    epoch: str
    generation: int


def follows(before: Place, place: Place) -> bool:
    """Returns whether a record's place is one right behind another's."""
    position, k = before
    return place in ((position, k + 1), (position + 1, 0))


def place_text(place: Place) -> str:
    """Returns a place for people: the position alone, or `5-2` for the second record after entry 5."""
    position, k = place
    return f"{position}-{k}" if k else f"{position}"


def parse_uuid(text: str, noun: str) -> str:
    """Returns a UUID of any version in its canonical lower case.

    Raises:
        NotFound: it is not a UUID, so that there can be no such `noun`.
    """
    lowered = text.lower()
    if not UUID_PATTERN.match(lowered):
        raise NotFound(f"There is no {noun} {text[:64]!r}: its id is not a UUID (8-4-4-4-12 hex digits).")
    return lowered


def parse_day(text: str) -> date | None:
    """Returns the day that YYYY-MM-DD names, None when there is none or it is written otherwise."""
    try:
        return date.fromisoformat(text) if DAY_PATTERN.match(text) else None
    except ValueError:
        return None


def uuid_bytes(text: str) -> bytes:
    """Returns the 16 bytes of a canonical UUID."""
    return bytes.fromhex(text.replace("-", ""))


def uuid_text(raw: bytes) -> str:
    """Returns the canonical text of a UUID's 16 bytes."""
    quads = raw.hex("-", 2)
    return f"{quads[:4]}{quads[5:29]}{quads[30:34]}{quads[35:]}"


_encode_sorted = msgspec.json.Encoder(order="sorted").encode


def canonical_meta(meta: dict[str, str]) -> bytes:
    """Returns a meta as canonical JSON (RFC 8785).

    msgspec sorts keys by code point and the RFC by UTF-16 unit; the two agree on ASCII keys, which it does faster.
    """
    encoded = _encode_sorted(meta)
    return encoded if encoded.isascii() or all(map(str.isascii, meta)) else rfc8785.dumps(meta)


_nothing_hashed = hashlib.blake2b(digest_size=8)
"""Copied, which is quicker than made."""


def fingerprint(meta: bytes, day: date | None = None) -> bytes:
    """Returns 8 bytes that tell the payload of an allocation from another: BLAKE2b over its meta and date as given."""
    hashed = _nothing_hashed.copy()
    hashed.update(meta if day is None else b"%b\0%b" % (meta, day.isoformat().encode()))
    return hashed.digest()


def shard_of(series_id: str, shards: int) -> int:
    """Returns the shard of a series: the same in every process, whatever the company or the time."""
    return int.from_bytes(hashlib.blake2b(uuid_bytes(series_id), digest_size=8).digest()) % shards


@lru_cache(maxsize=1024)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@lru_cache(maxsize=64)  # what is issued together has one time
def timestamp(ms: int) -> str:
    """Returns milliseconds since 1970 as RFC 3339 in UTC with milliseconds."""
    return f"{_second(ms // 1000)}.{ms % 1000:03d}Z"
