"""Whether an entry is what its receipt says. Needs only the entry and the public keys: no service, no other entries.

A receipt covers all of an entry but `updated_at`. A void has a receipt of its own, so that an entry alone does not tell
that a void was taken away from it; the chain does (`seriatim verify`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError

from seriatim import signing
from seriatim.errors import Unproven, Unsettled
from seriatim.messages import EntryAnswer, VoidAnswer
from seriatim.model import Entry, Void, canonical_meta
from seriatim.signing import BadSignature, JsonWebKeySet, UnknownKey


def settled(entry: EntryAnswer) -> bool:
    """Whether an entry, and its void if it has one, have receipts, be they right or wrong."""
    receipts = [entry.sigs[-1] if entry.sigs else "", *([entry.void.sig or ""] if entry.void else [])]
    try:
        return all(map(_is_receipt, receipts))
    except (JoseError, ValueError):
        return True


def verify_entry(entry: EntryAnswer, keys: JsonWebKeySet, *, issuer: str | None = None) -> dict[str, Any]:
    """Checks that an entry, and its void if it has one, are what the service signed; returns what its receipt says.

    Args:
        entry: as the service answered it.
        keys: the public keys that are trusted, such as `JsonWebKeySet(Path("keys.json").read_bytes())`.
        issuer: who must have signed, if given: the service's SERIATIM_ISSUER.

    Raises:
        Unsettled: there is no receipt yet.
        Unproven: something is not as it was signed, or the key is none of `keys`.
    """
    *before, receipt = entry.sigs or [""]
    said = _open(receipt, keys)
    if len(before) > 1:
        raise Unproven("The entry has more signatures than its client's and its receipt.")
    first, *others = said.get("numbers") or [{}]
    _compare(
        said,
        _claims(entry, before[0] if before else None) | {"numbers": [{**first, "value": entry.number}, *others]},
        issuer,
    )
    if entry.void is not None:
        of_void = _open(entry.void.sig or "", keys)
        _compare(of_void, _void_claims(entry, entry.void, of_void), issuer)
    return said


def _claims(entry: EntryAnswer, client_sig: str | None) -> dict[str, Any]:
    try:
        record = Entry(
            series=entry.series_id,
            id=entry.id,
            position=entry.position,
            code=entry.code,
            numbers=(),
            date=entry.date,
            created_at=0,
            previous_id=entry.previous_id,
            meta=canonical_meta(entry.meta),
            sig=client_sig,
            fingerprint=b"",
        )
        return signing.claims(record) | {"created_at": entry.created_at}
    except ValueError as error:
        raise Unproven(f"The entry holds text that is not Unicode: {error}.") from error


def _void_claims(entry: EntryAnswer, void: VoidAnswer, said: Mapping[str, Any]) -> dict[str, Any]:
    # Where in the chain it stands is the receipt's to say: an entry does not.
    record = Void(
        entry.series_id, said.get("position", 0), said.get("k", 0), entry.position, void.reason, void.actor, 0
    )
    return signing.claims(record) | {"created_at": void.created_at}


def _open(receipt: str, keys: JsonWebKeySet) -> dict[str, Any]:
    """Returns what a receipt says.

    Raises:
        Unsettled: it is empty, or the signature of a client that stands where the receipt will stand.
        Unproven: it was not signed by one of the keys.
    """
    try:
        if not _is_receipt(receipt):
            raise Unsettled("There is no receipt yet. Get the entry again in a moment.")
        return keys.open(receipt)
    except UnknownKey as error:
        raise Unproven(f"The receipt was signed with the key {error}, which is none of those given.") from error
    except (BadSignature, JoseError, ValueError) as error:
        raise Unproven(f"The receipt does not hold: {error}.") from error


def _is_receipt(text: str) -> bool:
    return bool(text) and jws.extract_compact(text.encode()).headers().get("typ") == signing.TYPE


def _compare(said: Mapping[str, Any], claims: Mapping[str, Any], issuer: str | None) -> None:
    expected = {**claims, "iss": issuer or said.get("iss"), "prev": said.get("prev")}
    differing = sorted(name for name in expected.keys() | said.keys() if expected.get(name) != said.get(name))
    if differing:
        raise Unproven(f"The entry differs from its receipt in {', '.join(differing)}.")
