"""JSON Web Tokens (RFC 7519) as credentials: verified with public keys from a file or a URL, or with a shared secret.

Claims: `sub` names the caller, `exp` is required, `scope` lists scopes with spaces between them (RFC 8693, section
4.2), `company` is the company that the caller acts for, and `companies` lists all that it may act for.
"""

from __future__ import annotations

import math
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
import structlog
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet, OctKey

from seriatim.config import Config
from seriatim.errors import ConfigError, Unauthorized, Unavailable

log = structlog.stdlib.get_logger(__name__)

SIGNED = ("ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "Ed25519", "EdDSA")
"""Algorithms of key pairs. A public key is never a secret: the two lists do not mix (RFC 8725, section 3.1)."""
SHARED = ("HS256", "HS384", "HS512")
SECRET_BYTES_MIN = 32
"""RFC 7518, section 3.2: no shorter than the hash."""
FETCH_S = 300.0
FETCH_AGAIN_S = 10.0
FETCH_TIMEOUT_S = 5.0
FETCH_BYTES_MAX = 1024 * 1024


class Claims(msgspec.Struct, frozen=True):
    """What a token says of its holder: the companies that it may act for, of which `company` is the default, if any.

    `expires_at` is in seconds since 1970.
    """

    subject: str
    company: str
    companies: tuple[str, ...]
    scopes: tuple[str, ...]
    expires_at: float


class Tokens:
    """Opens the tokens that a secret, or one of a set of keys, has signed.

    Raises:
        ConfigError: the secret is too short, or both kinds of keys are configured.
    """

    def __init__(self, config: Config) -> None:
        secret, source = config.jwt_secret, config.jwt_jwks
        if secret and source:
            raise ConfigError("Set SERIATIM_JWT_JWKS or SERIATIM_JWT_SECRET, not both.")
        if secret and len(secret.encode()) < SECRET_BYTES_MIN:
            raise ConfigError(f"SERIATIM_JWT_SECRET is too short. Use at least {SECRET_BYTES_MIN} random bytes.")
        self.accepted = bool(secret or source)
        self._algorithms = SHARED if secret else SIGNED
        self._secret = OctKey.import_key(secret) if secret else None
        self._published = Published(source) if source else None
        wanted = {"iss": config.jwt_issuer, "aud": config.jwt_audience}
        named: dict[str, Any] = {name: {"essential": True, "value": value} for name, value in wanted.items() if value}
        self._registry = jwt.JWTClaimsRegistry(sub={"essential": True}, exp={"essential": True}, **named)
        self._audience = config.jwt_audience

    def open(self, token: str) -> Claims:
        """Returns what a token says.

        Raises:
            Unauthorized: it is none, it has expired or is not for us, or no key of ours has signed it.
            Unavailable: the keys cannot be read.
        """
        try:
            opened = self._open(token)
            self._registry.validate(opened)
            claims = msgspec.convert(opened, _Claims)
        except (JoseError, msgspec.ValidationError, ValueError, RecursionError) as error:
            raise Unauthorized(f"The token is not valid: {error}. Get a new one.") from error
        if claims.aud is not None and not self._audience:  # RFC 7519, section 4.1.3: it is for somebody else
            raise Unauthorized("The token is for an audience, and SERIATIM_JWT_AUDIENCE is not set.")
        company = (claims.company or "").lower()
        companies = {company, *(one.lower() for one in claims.companies)} - {""}
        return Claims(claims.sub, company, tuple(sorted(companies)), tuple(claims.scope.split()), claims.exp)

    def _open(self, token: str) -> dict[str, Any]:
        if self._secret is not None:
            return jwt.decode(token, self._secret, list(self._algorithms)).claims
        assert self._published is not None
        try:
            return jwt.decode(token, self._published.keys(), list(self._algorithms)).claims
        except InvalidKeyIdError:  # the keys may have been rotated
            return jwt.decode(token, self._published.keys(newer=True), list(self._algorithms)).claims


class _Claims(msgspec.Struct):
    sub: str
    exp: float
    scope: str = ""
    company: str | None = None
    companies: list[str] = []
    aud: str | list[str] | None = None


class Published:
    """A JSON Web Key Set (RFC 7517) in a file or at a URL, read again when it may have changed."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._keys: KeySet | None = None
        self._read_at = -math.inf

    def keys(self, *, newer: bool = False) -> KeySet:
        """Returns the keys; with `newer` not those that were read long ago.

        Raises:
            Unavailable: they were never read, and cannot be now.
        """
        with self._lock:
            if time.monotonic() - self._read_at > (FETCH_AGAIN_S if newer else FETCH_S):
                self._read_at = time.monotonic()
                try:
                    self._keys = _public(KeySet.import_key_set(msgspec.json.decode(self._read())))
                except (OSError, ValueError, KeyError, TypeError, JoseError) as error:
                    log.error("cannot read the keys of tokens", source=self._source, reason=str(error))
            if self._keys is None:
                raise Unavailable("The keys that tokens are checked with cannot be read. Repeat the request.")
            return self._keys

    def _read(self) -> bytes:
        if not self._source.startswith(("http://", "https://")):
            return Path(self._source).read_bytes()
        with urllib.request.urlopen(self._source, timeout=FETCH_TIMEOUT_S) as answer:  # noqa: S310 -- as configured
            content: bytes = answer.read(FETCH_BYTES_MAX)
        return content


def _public(keys: KeySet) -> KeySet:
    """Leaves out shared secrets, which have no place in a set that is published."""
    return KeySet([key for key in keys.keys if key.key_type != "oct"])
