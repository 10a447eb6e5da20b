"""API keys: making, keeping and checking them.

A key is `seriatim_` + 10 letters of id + 25 letters of secret: 44 bytes, about 148 bits of it secret. The store keeps
the id and a salted hash. A process trusts what it has checked for half a second, so that a revocation works within one.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import string
import time
from collections import OrderedDict

import msgspec

from seriatim.errors import ConfigError, Forbidden, Unauthorized, Unavailable
from seriatim.store import ApiKey, Store, now_ms

PREFIX = "seriatim_"
ID_LENGTH = 10
SECRET_LENGTH = 25
SCOPES = ("read", "allocate", "manage")
TRUST_S = 0.5
CACHE_KEYS_MAX = 10_000
ALPHABET = string.ascii_letters + string.digits


class Principal(msgspec.Struct, frozen=True):
    """Who calls: the company that the credentials act for, and what they may do there."""

    actor: str
    company: str
    scopes: frozenset[str]

    def require(self, scope: str) -> None:
        """Checks that the caller may do what `scope` stands for.

        Raises:
            Forbidden: it may not.
        """
        if scope not in self.scopes:
            raise Forbidden(f"This key lacks the scope {scope!r}. Use a key that has it.")


def create_key(store: Store, company: str, scopes: tuple[str, ...], actor: str) -> tuple[str, ApiKey]:
    """Makes an API key for a company; the first value is shown once and kept nowhere."""
    key_id = "".join(secrets.choice(ALPHABET) for _ in range(ID_LENGTH))
    secret = "".join(secrets.choice(ALPHABET) for _ in range(SECRET_LENGTH))
    salt = secrets.token_bytes(16)
    kept = ApiKey(key_id, company, salt, _hash(secret, salt), scopes, now_ms(), None)
    store.add_key(kept, actor)
    return PREFIX + key_id + secret, kept


def _hash(secret: str, salt: bytes) -> bytes:
    # The secret is random and long: there is nothing that a slow hash would protect.
    return hashlib.blake2b(secret.encode(), key=salt, digest_size=32).digest()


class _Checked:
    __slots__ = ("checking", "principal", "until")

    def __init__(self) -> None:
        self.principal: Principal | None = None
        self.until = 0.0
        self.checking: asyncio.Task[None] | None = None


class Authenticator:
    """Checks API keys against the store, and remembers the answer for `TRUST_S`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._checked: OrderedDict[str, _Checked] = OrderedDict()

    async def principal(self, key: str) -> Principal:
        """Returns who holds `key`.

        Raises:
            Unauthorized: nobody.
            Unavailable: the store does not answer, and the key was never seen.
        """
        checked = self._checked.get(key)
        if checked is None:
            if not (key.startswith(PREFIX) and len(key) == len(PREFIX) + ID_LENGTH + SECRET_LENGTH and key.isascii()):
                raise Unauthorized("The API key is not valid. Check it for completeness.")
            checked = self._checked[key] = _Checked()
            while len(self._checked) > CACHE_KEYS_MAX:
                self._checked.popitem(last=False)
        if checked.until < time.monotonic():
            if checked.checking is None:
                checked.checking = asyncio.get_running_loop().create_task(self._check(key, checked))
            await asyncio.shield(checked.checking)
        if checked.principal is None:
            raise Unauthorized("The API key is unknown or revoked. Use another, or create one.")
        return checked.principal

    async def _check(self, key: str, checked: _Checked) -> None:
        try:
            checked.principal = await asyncio.to_thread(self._look_up, key)
            checked.until = time.monotonic() + TRUST_S
        except Unavailable:
            # A store that is down must not stop allocation for keys that were valid when it went.
            if checked.principal is None:
                raise
        finally:
            checked.checking = None

    def _look_up(self, key: str) -> Principal | None:
        key_id, secret = key[len(PREFIX) :][:ID_LENGTH], key[len(PREFIX) + ID_LENGTH :]
        kept = self._store.api_key(key_id)
        if kept is None or not hmac.compare_digest(kept.hash, _hash(secret, kept.salt)) or kept.revoked_at is not None:
            return None
        return Principal(actor=f"key {kept.id}", company=kept.company, scopes=frozenset(kept.scopes))


def parse_scopes(text: str) -> tuple[str, ...]:
    """Returns the scopes of a comma-separated list.

    Raises:
        ConfigError: one is unknown.
    """
    scopes = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown:
        raise ConfigError(f"Unknown scope {unknown[0]!r}. The scopes are {', '.join(SCOPES)}.")
    return scopes
