"""Whether the entries of a page are what their receipts say: signatures take most of an audit's time."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime, timedelta
from functools import lru_cache

import msgspec

from seriatim import formats, signing
from seriatim.messages import EntryAnswer, EntryPage
from seriatim.model import Counted, Entry, Numbering, canonical_meta
from seriatim.signing import BadSignature, JsonWebKeySet, UnknownKey

_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00Z")
_page = msgspec.json.Decoder(EntryPage)


Wrong = tuple[int, str, str]
"""Position, kind and detail of something that is wrong."""


class Task(msgspec.Struct, frozen=True):
    """A page as it was answered, and what it is to be held against."""

    page: bytes
    jwks: bytes
    numbering: Numbering


class Link(msgspec.Struct, frozen=True):
    """What a receipt says of the chain: the hash of the record before, its own, and the counters' values."""

    prev: str
    hash: str
    numbers: tuple[Counted, ...]


class Proved(msgspec.Struct, frozen=True):
    """For each entry of a page its link, None where it has no receipt that holds; and what is wrong."""

    links: list[Link | None]
    wrong: list[Wrong]


def prove(task: Task) -> Proved:
    """Returns what the receipts of a page prove."""
    proved = Proved([], [])
    keys = _keys(task.jwks)
    for entry in _page.decode(task.page).entries:
        receipt = receipt_of(entry)
        proved.links.append(_link(entry, receipt, keys, task.numbering, proved.wrong) if receipt else None)
    return proved


def receipt_of(entry: EntryAnswer) -> str | None:
    """Returns the service's receipt among an entry's signatures: it stands behind the client's own."""
    if not entry.sigs:
        return None
    header = entry.sigs[-1].partition(".")[0]
    try:
        is_receipt = f'"{signing.TYPE}"'.encode() in base64.urlsafe_b64decode(header + "=" * (-len(header) % 4))
    except binascii.Error:
        is_receipt = len(entry.sigs) > 1
    return entry.sigs[-1] if is_receipt else None


@lru_cache(maxsize=4)
def _keys(jwks: bytes) -> JsonWebKeySet:
    return JsonWebKeySet(jwks)


def _link(
    entry: EntryAnswer, receipt: str, keys: JsonWebKeySet, numbering: Numbering, wrong: list[Wrong]
) -> Link | None:
    """Returns the link that a receipt proves, and notes what is wrong with it."""
    try:
        said = keys.open(receipt)
        numbers = msgspec.convert(said.get("numbers"), tuple[Counted, ...])
        record = _record(entry, numbers)
    except UnknownKey as error:
        wrong.append((entry.position, "unknown_key", f"no public key has the kid {error}"))
        return None
    except (BadSignature, msgspec.ValidationError) as error:
        wrong.append((entry.position, "bad_signature", f"the receipt does not hold: {error}"))
        return None
    except ValueError:
        wrong.append((entry.position, "malformed", f"created_at is {entry.created_at}, which is no time"))
        return None
    differing = signing.differing(record, said)
    if differing:
        wrong.append((entry.position, "changed_record", f"differs from its receipt in {', '.join(differing)}"))
    elif not formats.fits(numbering, record) or numbers[0].value != entry.number:
        why = f"{entry.code} (number {entry.number}) is not what the series' format makes of its numbers"
        wrong.append((entry.position, "wrong_code", why))
    return Link(str(said.get("prev")), signing.digest(receipt.encode()), numbers)


def _record(entry: EntryAnswer, numbers: tuple[Counted, ...]) -> Entry:
    created_at = (datetime.fromisoformat(entry.created_at) - _EPOCH) // timedelta(milliseconds=1)
    return Entry(
        series=entry.series_id,
        id=entry.id,
        position=entry.position,
        code=entry.code,
        numbers=numbers,
        date=entry.date,
        created_at=created_at,
        previous_id=entry.previous_id,
        meta=canonical_meta(entry.meta),
        sig=entry.sigs[0] if len(entry.sigs) > 1 else None,
        fingerprint=b"",
    )
