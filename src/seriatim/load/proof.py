"""Whether entries are what their receipts say: signatures take most of an audit's time, so children do it."""

from __future__ import annotations

import base64
import binascii
from functools import lru_cache

import msgspec

from seriatim import formats, signing
from seriatim.errors import Unproven, Unsettled
from seriatim.messages import EntryAnswer
from seriatim.model import Counted, Numbering, parse_day
from seriatim.receipts import verify_entry
from seriatim.signing import JsonWebKeySet

Wrong = tuple[int, str, str]
"""Position, kind and detail of something that is wrong."""


class Task(msgspec.Struct, frozen=True):
    """Entries to prove."""

    entries: bytes
    """As JSON, which is quicker to hand over than as objects."""
    jwks: bytes
    numbering: Numbering


class Link(msgspec.Struct, frozen=True):
    """What a receipt says of the chain: the hash of the record before, its own, and the counters' values."""

    prev: str
    hash: str
    numbers: tuple[Counted, ...]


class Proved(msgspec.Struct, frozen=True):
    """For each entry its link, None where it has no receipt that holds; and what is wrong."""

    links: list[Link | None]
    wrong: list[Wrong]


class _Said(msgspec.Struct):
    prev: str
    numbers: tuple[Counted, ...]


_entries = msgspec.json.Decoder(list[EntryAnswer])
_said = msgspec.json.Decoder(_Said)


def prove(task: Task) -> Proved:
    """Returns what the receipts of entries prove."""
    proved = Proved([], [])
    keys = _keys(task.jwks)
    for entry in _entries.decode(task.entries):
        proved.links.append(_link(entry, keys, task.numbering, proved.wrong))
    return proved


def settled(entry: EntryAnswer) -> bool:
    """Whether an entry, and its void if it has one, have their receipts; a client's own signature is none."""
    if not entry.sigs or (entry.void is not None and not entry.void.sig):
        return False
    try:
        return f'"{signing.TYPE}"'.encode() in _part(entry.sigs[-1], 0)
    except binascii.Error:
        return True  # which it will not prove


def _link(entry: EntryAnswer, keys: JsonWebKeySet, numbering: Numbering, wrong: list[Wrong]) -> Link | None:
    """Returns the link that an entry's receipt proves, and notes what is wrong with it."""
    try:
        verify_entry(entry, keys)
    except Unsettled:
        return None
    except Unproven as error:
        wrong.append((entry.position, "unproven", error.message))
        return None
    receipt = entry.sigs[-1]
    said = _said.decode(_part(receipt, 1))
    if not formats.fits(numbering, parse_day(entry.date), said.numbers, entry.code):
        why = f"{entry.code} is not what the series' format makes of its numbers"
        wrong.append((entry.position, "wrong_code", why))
    return Link(said.prev, signing.digest(receipt.encode()), said.numbers)


@lru_cache(maxsize=4)
def _keys(jwks: bytes) -> JsonWebKeySet:
    return JsonWebKeySet(jwks)


def _part(jws: str, number: int) -> bytes:
    """Returns a part of a compact JWS, decoded."""
    text = jws.split(".", 2)[number]
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
