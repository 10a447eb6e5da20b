"""JSON Web Tokens (RFC 7519) as credentials: verified with public keys from a file or a URL, or with a shared secret.

Claims: `sub` names the caller, `exp` is required, `scope` lists scopes with spaces between them (RFC 8693, section
4.2), `company` is the company that the caller acts for, and `companies` lists all that it may act for.
"""

from __future__ import annotations

import base64
import math
import socket
import threading
import time
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from joserfc import jws
from joserfc.errors import ClaimError, InvalidKeyIdError, JoseError
from joserfc.jwk import JWKRegistry, Key, KeySet, OctKey, RSAKey
from joserfc.jwt import JWTClaimsRegistry

from seriatim.config import Config, without_credentials
from seriatim.errors import ConfigError, Unauthorized, Unavailable
from seriatim.model import UUID_PATTERN

log = structlog.stdlib.get_logger(__name__)

SIGNED = ("ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "Ed25519", "EdDSA")
"""Algorithms of key pairs. A public key is never a secret: these and the others do not mix (RFC 8725, section 3.1)."""
SHARED = {"HS256": 32, "HS384": 48, "HS512": 64}
"""Algorithms of shared secrets, and how many bytes such a secret has at least (RFC 7518, section 3.2)."""
RSA_BITS_MIN = 2048
SUBJECT_BYTES_MAX = 255
CLOCKS_DIFFER_S = 5
"""By how much the clock of who issues tokens may be ahead of ours. An expired token has expired all the same."""
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
        ConfigError: the secret is too short or no secret, the URL is none, or both kinds of keys are configured.
    """

    def __init__(self, config: Config) -> None:
        secret, source = config.jwt_secret, config.jwt_jwks
        if secret and source:
            raise ConfigError("Set SERIATIM_JWT_JWKS or SERIATIM_JWT_SECRET, not both.")
        self.accepted = bool(secret or source)
        self._secret = _secret(secret) if secret else None
        self._published = Published(source) if source else None
        fitting = [name for name, bytes_min in SHARED.items() if len(secret.encode()) >= bytes_min]
        # Headers that are not understood are ignored (RFC 7515, section 4), unless they are critical.
        self._signatures = jws.JWSRegistry(algorithms=fitting if secret else SIGNED, strict_check_header=False)
        wanted = {"iss": config.jwt_issuer, "aud": config.jwt_audience}
        named: dict[str, Any] = {name: {"essential": True, "value": value} for name, value in wanted.items() if value}
        named |= {"sub": {"essential": True}, "exp": {"essential": True}}
        self._claims = JWTClaimsRegistry(leeway=CLOCKS_DIFFER_S, **named)
        self._audience = config.jwt_audience

    def open(self, token: str) -> Claims:
        """Returns what a token says.

        Raises:
            Unauthorized: it is none, it has expired or is not for us, or no key of ours has signed it.
            Unavailable: the keys cannot be read.
        """
        try:
            content = msgspec.json.decode(self._signed(token), type=dict[str, Any])
            self._claims.validate(content)
            claims = msgspec.convert(content, _Claims)
        except (JoseError, ValueError, TypeError, RecursionError) as error:  # joserfc takes no care of all types
            raise Unauthorized(f"The token is not valid: {_why(error)}. Get a new one.") from error
        if claims.exp <= time.time():
            raise Unauthorized("The token has expired. Get a new one.")
        if claims.aud is not None and not self._audience:  # RFC 7519, section 4.1.3: it is for somebody else
            raise Unauthorized("The token is for an audience, and SERIATIM_JWT_AUDIENCE is not set.")
        # It becomes the actor of receipts and of the audit log.
        if not claims.sub.isprintable() or not 0 < len(claims.sub.encode()) <= SUBJECT_BYTES_MAX:
            raise Unauthorized(f"The token's `sub` must be 1 to {SUBJECT_BYTES_MAX} bytes of printable characters.")
        company = (claims.company or "").lower()
        companies = {one for one in (company, *map(str.lower, claims.companies)) if UUID_PATTERN.match(one)}
        return Claims(claims.sub, company, tuple(sorted(companies)), tuple(claims.scope.split()), claims.exp)

    def _signed(self, token: str) -> bytes:
        """Returns the payload of a token whose signature is right."""
        if self._secret is not None:
            return self._checked(token, self._secret)
        assert self._published is not None
        try:
            return self._checked(token, self._published.keys())
        except InvalidKeyIdError:  # the keys may have been rotated
            return self._checked(token, self._published.keys(newer=True))

    def _checked(self, token: str, key: OctKey | KeySet) -> bytes:
        opened = jws.deserialize_compact(token, key, registry=self._signatures)
        if "crit" in opened.headers():  # such as b64, which makes another kind of payload (RFC 7797)
            raise Unauthorized("The token has critical headers, of which none is understood here.")
        return opened.payload


class _Claims(msgspec.Struct):
    sub: str
    exp: float
    scope: str = ""
    company: str | None = None
    companies: list[str] = []
    aud: str | list[str] | None = None


def _why(error: Exception) -> str:
    """Says what is wrong with a token in words of ours alone: it may be anybody's, and hold anything."""
    if isinstance(error, JoseError):
        return f"{error.error} {error.claim}" if isinstance(error, ClaimError) else error.error
    return "a claim is of the wrong type" if isinstance(error, msgspec.ValidationError) else "it cannot be read"


def _secret(secret: str) -> OctKey:
    if len(secret.encode()) < min(SHARED.values()):
        raise ConfigError(f"SERIATIM_JWT_SECRET is too short. Use at least {min(SHARED.values())} random bytes.")
    try:
        return OctKey.import_key(secret)
    except ValueError as error:
        raise ConfigError("SERIATIM_JWT_SECRET is a public key. Put it into SERIATIM_JWT_JWKS, as JWK set.") from error


class Published:
    """A JSON Web Key Set (RFC 7517) in a file or at a URL, read again when it may have changed.

    Raises:
        ConfigError: the URL is none.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._fetched = source.lower().startswith(("http://", "https://"))
        if self._fetched:
            _check_url(source)
        self._reading = threading.Lock()
        self._keys: KeySet | None = None
        self._read_at = self._due_at = -math.inf

    def keys(self, *, newer: bool = False) -> KeySet:
        """Returns the keys; with `newer` not those that were read long ago.

        Whoever can do with the keys at hand does not wait for somebody who reads them.

        Raises:
            Unavailable: they were never read, and cannot be now.
        """
        if self._reading.acquire(blocking=newer or self._keys is None):
            try:
                now = time.monotonic()
                if now >= self._due_at or (newer and now - self._read_at >= FETCH_AGAIN_S):
                    self._read_at = now
                    self._due_at = now + (FETCH_S if self._read() else FETCH_AGAIN_S)
            finally:
                self._reading.release()
        if self._keys is None:
            raise Unavailable("The keys that tokens are checked with cannot be read. Repeat the request.")
        return self._keys

    def _read(self) -> bool:
        try:
            self._keys = _public(_fetch(self._source) if self._fetched else Path(self._source).read_bytes())
        except (OSError, ValueError, HTTPException, RecursionError) as error:
            reason = str(error) or type(error).__name__
            log.error("cannot read the keys of tokens", source=without_credentials(self._source), reason=reason)
            return False
        return True


class _Set(msgspec.Struct):
    keys: list[dict[str, Any]]


def _public(content: bytes) -> KeySet:
    """Returns the keys of a set that can sign tokens; of the others none spoils the set (RFC 7517, section 5)."""
    found: list[Key] = []
    for number, one in enumerate(msgspec.json.decode(content, type=_Set).keys):
        try:
            key = JWKRegistry.import_key(one)
            key.check_use("sig")
        except (JoseError, UnsupportedAlgorithm, ValueError, TypeError, KeyError) as error:
            reason = str(error) or type(error).__name__
        else:
            reason = _unfit(key)
        if reason:
            log.warning("left out a key of tokens", number=number, reason=reason)
        else:
            found.append(key)
    return KeySet(found)


def _unfit(key: Key) -> str:
    if isinstance(key, OctKey):
        return "a shared secret has no place in a published set"
    weak = isinstance(key, RSAKey) and key.raw_value.key_size < RSA_BITS_MIN
    return f"an RSA key has at least {RSA_BITS_MIN} bits" if weak else ""


def _check_url(url: str) -> None:
    try:
        at = urlsplit(url)
        sound = bool(at.hostname) and at.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise ConfigError("SERIATIM_JWT_JWKS is not a URL. Use http:// or https://, a host and a path.")


def _fetch(url: str) -> bytes:
    """Returns what is at an HTTP URL: there and nowhere else, so much and no more, soon or not at all."""
    at = urlsplit(url)
    assert at.hostname is not None
    made = HTTPSConnection if at.scheme == "https" else HTTPConnection
    connection = made(at.hostname, at.port, timeout=FETCH_TIMEOUT_S)
    headers = {"Accept": "application/jwk-set+json, application/json", "Connection": "close"}
    if at.username is not None:
        user = f"{unquote(at.username)}:{unquote(at.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    connection.connect()
    # The timeout of the connection is for each piece that arrives; this one is for all of them.
    end = threading.Timer(FETCH_TIMEOUT_S, _cut, [connection.sock])
    end.start()
    try:
        connection.request("GET", (at.path or "/") + (f"?{at.query}" if at.query else ""), headers=headers)
        answer = connection.getresponse()
        content = answer.read(FETCH_BYTES_MAX + 1)
    finally:
        end.cancel()
        connection.close()
    if answer.status != 200:  # noqa: PLR2004 -- a redirect could lead anywhere
        raise ValueError(f"the answer is HTTP {answer.status}")
    if len(content) > FETCH_BYTES_MAX:
        raise ValueError(f"the answer has more than {FETCH_BYTES_MAX} bytes")
    return content


def _cut(connected: socket.socket) -> None:
    with suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)
