"""Receipts: the service's signature over every record, each linked to the one before.

A receipt is a compact JWS (RFC 7515). Its payload is canonical JSON (RFC 8785) of the record, and its `prev` is the
base64url of SHA-256 over the exact bytes of the previous record's receipt; over the genesis for the first one.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey

from seriatim.errors import ConfigError
from seriatim.model import Counted, Entry, Record, Series, Skip, Void, timestamp

TYPE = "seriatim-receipt"
VERSION = 1
ALGORITHMS = ("ES256", "Ed25519")
ES256 = ECDSA(SHA256())
UNLINKED = b'"prev":""'
"""Where the link of a payload goes. Nothing else in it reads so: in strings a quote stands behind a backslash."""

_KEY_ADVICE = "Restore it from a backup, or name another with SERIATIM_SIGNING_KEY."

_encode = msgspec.json.Encoder().encode
_canonical = msgspec.json.Encoder(order="sorted").encode
"""Canonical JSON: all keys here are ASCII and all numbers integers below 2^53, where msgspec and RFC 8785 agree."""


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def digest(data: bytes) -> str:
    """Returns base64url of SHA-256, unpadded."""
    return _base64(hashlib.sha256(data).digest()).decode()


def genesis(series: Series) -> bytes:
    """Returns the canonical definition of a series, frozen at its first allocation: what its chain begins with."""
    numbering = msgspec.structs.asdict(series.numbering) | {"start": series.numbering.first}
    definition: dict[str, Any] = {
        "v": VERSION,
        "kind": "genesis",
        "series": series.id,
        "company": series.company,
        "type": series.type,
        "created_at": timestamp(series.created_at),
    }
    return _canonical(definition | {name: value for name, value in numbering.items() if value is not None})


class _EntryClaims(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """What the receipt of an entry says. The fields stand as RFC 8785 sorts them."""

    code: str
    created_at: str
    date: str
    id: str
    iss: str
    kind: str
    meta_sha256: str
    numbers: tuple[Counted, ...]
    position: int
    prev: str
    previous_id: str | None = None
    series: str
    sig_sha256: str | None = None
    v: int


def payload(record: Record, issuer: str, prev: str) -> bytes:
    """Returns the payload of a record's receipt: canonical JSON."""
    if isinstance(record, Entry):
        return _encode(_entry_claims(record, issuer, prev))
    return _canonical(_note_claims(record) | {"iss": issuer, "prev": prev})


def claims(record: Record) -> dict[str, Any]:
    """Returns what a receipt says of a record itself; `payload` has the issuer and the link beside it."""
    if not isinstance(record, Entry):
        return _note_claims(record)
    said: dict[str, Any] = msgspec.json.decode(payload(record, "", ""))
    del said["iss"], said["prev"]
    return said


def _entry_claims(entry: Entry, issuer: str, prev: str) -> _EntryClaims:
    return _EntryClaims(
        code=entry.code,
        created_at=timestamp(entry.created_at),
        date=entry.date,
        id=entry.id,
        iss=issuer,
        kind="entry",
        meta_sha256=digest(entry.meta),
        numbers=entry.numbers,
        position=entry.position,
        prev=prev,
        previous_id=entry.previous_id,
        series=entry.series,
        sig_sha256=None if entry.sig is None else digest(entry.sig.encode()),
        v=VERSION,
    )


def _note_claims(note: Skip | Void) -> dict[str, Any]:
    said: dict[str, Any] = {
        "v": VERSION,
        "series": note.series,
        "position": note.position,
        "k": note.k,
        "created_at": timestamp(note.created_at),
        "reason": note.reason,
        "actor": note.actor,
    }
    if isinstance(note, Void):
        return said | {"kind": "void", "voids": note.voids}
    counted = {"counter": note.counter, "period": note.period}
    return said | counted | {"kind": "skip", "from": note.first, "to": note.last}


class Signer:
    """Signs with the private key of a JWK file.

    Raises:
        ConfigError: the file is not a private JWK for ES256 (EC, P-256) or Ed25519 (OKP).
    """

    def __init__(self, path: Path, issuer: str) -> None:
        try:
            jwk = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
            self._take(jwk, issuer)
        except (OSError, msgspec.DecodeError, JoseError, ValueError, KeyError) as error:
            raise ConfigError(f"The signing key {path} cannot be read: {error}. {_KEY_ADVICE}") from error
        if not self.algorithm or not self.key.is_private:
            raise ConfigError(f"The signing key {path} is no private JWK with crv P-256 or Ed25519. {_KEY_ADVICE}")
        self._prepare()

    def _take(self, jwk: dict[str, Any], issuer: str) -> None:
        self.key: ECKey | OKPKey = ECKey.import_key(jwk) if jwk.get("kty") == "EC" else OKPKey.import_key(jwk)
        self.algorithm = {"P-256": "ES256", "Ed25519": "Ed25519"}.get(jwk.get("crv", ""), "")
        self.issuer = issuer

    def _prepare(self) -> None:
        self.kid = self.key.thumbprint()
        self._private = cast("EllipticCurvePrivateKey | Ed25519PrivateKey", self.key.get_op_key("sign"))
        self._header = _base64(msgspec.json.encode({"alg": self.algorithm, "kid": self.kid, "typ": TYPE}))

    def __getstate__(self) -> tuple[dict[str, Any], str]:
        """Goes to another process with its key: what the file holds may be another by then."""
        return self.key.as_dict(private=True), self.issuer

    def __setstate__(self, state: tuple[dict[str, Any], str]) -> None:
        """Comes from another process."""
        self._take(*state)
        self._prepare()

    @property
    def public_jwk(self) -> str:
        """The public part, as JWKS publishes it."""
        public = self.key.as_dict(private=False)
        return msgspec.json.encode(public | {"kid": self.kid, "use": "sig", "alg": self.algorithm}).decode()

    def payload(self, record: Record) -> bytes:
        """Returns the payload of a record's receipt but for its link."""
        return payload(record, self.issuer, "")

    def sign(self, unlinked: bytes, prev: str) -> str:
        """Returns the receipt of a record that follows `prev`: a compact JWS (RFC 7515, section 7.1)."""
        # With the key itself: what the library does around it for each signature takes longer than the signature.
        linked = unlinked.replace(UNLINKED, b'"prev":"%b"' % prev.encode(), 1)
        signed = b"%b.%b" % (self._header, _base64(linked))
        return (b"%b.%b" % (signed, _base64(self._signature(signed)))).decode()

    def chain(self, head: str, payloads: Iterable[bytes]) -> list[str]:
        """Returns the receipts of records that follow one another, the first of them `head`."""
        receipts = []
        for unlinked in payloads:
            receipts.append(self.sign(unlinked, head))
            head = digest(receipts[-1].encode())
        return receipts

    def _signature(self, data: bytes) -> bytes:
        if self.algorithm == "Ed25519":
            return cast("Ed25519PrivateKey", self._private).sign(data)
        r, s = decode_dss_signature(cast("EllipticCurvePrivateKey", self._private).sign(data, ES256))
        return r.to_bytes(32) + s.to_bytes(32)  # RFC 7518, section 3.4


def create_key(path: Path) -> None:
    """Makes a signing key for ES256 with mode 0600, unless the file exists; many may try at once."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    key = ECKey.generate_key("P-256", private=True)
    # A file of mode 0600 that appears under its name whole, or not at all.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(key.as_dict(private=True)))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        Path(temporary).unlink()


class JsonWebKeySet:
    """Public keys by their kid.

    Raises:
        ConfigError: the text is not a JWKS.
    """

    def __init__(self, text: bytes) -> None:
        try:
            keys = msgspec.json.decode(text, type=dict[str, list[dict[str, Any]]])["keys"]
            self._keys = {
                jwk["kid"]: (ECKey.import_key(jwk) if jwk.get("kty") == "EC" else OKPKey.import_key(jwk))
                for jwk in keys
            }
        except (JoseError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"This is not a JSON Web Key Set: {error}. Use /.well-known/jwks.json.") from error

    def open(self, receipt: str) -> dict[str, Any]:
        """Returns the payload of a receipt.

        Raises:
            UnknownKey: it names a key that is not in the set.
            BadSignature: it is no receipt, or its signature does not fit.
        """
        try:
            header = jws.extract_compact(receipt.encode()).headers()
            key = self._keys.get(str(header.get("kid")))
            if key is None:
                raise UnknownKey(str(header.get("kid")))
            return msgspec.json.decode(
                jws.deserialize_compact(receipt, key, list(ALGORITHMS)).payload, type=dict[str, Any]
            )
        except (JoseError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise BadSignature(str(error)) from error


class UnknownKey(Exception):  # noqa: N818 -- a finding, not a fault of the program
    """A receipt names a key that nobody published."""


class BadSignature(Exception):  # noqa: N818
    """A receipt is malformed or was not signed by the key that it names."""
