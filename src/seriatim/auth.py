"""Who calls: API keys, and tokens of others; what their holders may do, where, and how much of it.

A key is `seriatim_` + 10 letters of id + 25 letters of secret: 44 bytes, about 148 bits of it secret. The store keeps
the id and a salted hash. A process trusts what it has checked for less than a second, so that a revocation works
within one. A token is trusted for a minute, or until it expires.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import secrets
import string
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakValueDictionary

import msgspec

from seriatim.errors import Busy, ConfigError, Forbidden, SeriatimError, Unauthorized, Unavailable
from seriatim.registry import ApiKey, Registry, now_ms
from seriatim.tokens import Tokens

PREFIX = "seriatim_"
ID_LENGTH = 10
SECRET_LENGTH = 25
SCOPES = ("read", "allocate", "manage")
TRUST_S = 0.8
TRUST_TOKEN_S = 60.0
TOKEN_BYTES_MAX = 8 * 1024
CACHE_KEYS_MAX = 10_000
CHECKS_MAX = 1000
THREADS = 4
PATIENCE_S = 2.0
PATIENCE_LOST_S = 0.1
"""How long a check may take before it is taken for one that hangs: at first, and while those before it did."""
SILENT = "What these credentials are checked with does not answer. Repeat the request."
ALPHABET = string.ascii_letters + string.digits


class Allowance:
    """What the holder of a key or token may ask of one process: requests at once, and a second.

    `with` it, a request is counted.

    Args:
        rate: requests a second that it may begin, as many at once after a pause; 0 for any number.
        in_flight: requests that may be worked on at once.
    """

    __slots__ = ("__weakref__", "_at", "_in_flight", "_left", "_most", "_rate")

    def __init__(self, rate: int, in_flight: int) -> None:
        self._rate = rate
        self._most = in_flight
        self._left = float(rate)
        self._at = time.monotonic()
        self._in_flight = 0

    def __enter__(self) -> None:
        """Counts a request.

        Raises:
            Busy: there were too many in the last second.
            Unavailable: too many are being worked on.
        """
        if self._in_flight >= self._most:
            raise Unavailable(f"This key has {self._most} requests at work already. Repeat this one with the same id.")
        if self._rate:
            now = time.monotonic()
            self._left = min(float(self._rate), self._left + (now - self._at) * self._rate)
            self._at = now
            if self._left < 1:
                raise Busy(f"This key may send {self._rate} requests a second. Send fewer, and repeat this one.")
            self._left -= 1
        self._in_flight += 1

    def __exit__(self, *_: object) -> None:
        """Counts its end."""
        self.end()

    def end(self, *, undone: bool = False) -> None:
        """Counts a request's end; one that is `undone` counts as one that never began."""
        self._in_flight -= 1
        if undone:
            self._left += 1


class Principal(msgspec.Struct, frozen=True):
    """Who calls: the company that they act for ("" for none yet), all that they may act for, and what they may do."""

    actor: str
    company: str
    companies: frozenset[str]
    scopes: frozenset[str]
    allowance: Allowance

    def require(self, scope: str) -> None:
        """Checks that the caller may do what `scope` stands for.

        Raises:
            Forbidden: it may not.
        """
        if scope not in self.scopes:
            raise Forbidden(f"This key lacks the scope {scope!r}. Use a key that has it.")

    def acting_for(self, company: str | None) -> Principal:
        """Returns the same caller, acting for a company (None: for the default one).

        Raises:
            Forbidden: they may not act for it, or it is not said for whom they act.
        """
        if company is None:
            if self.company:
                return self
            raise Forbidden("The token names no company of ours. Name one in its `company` claim or in X-Company.")
        company = company.lower()
        if company not in self.companies:
            raise Forbidden("These credentials are not for the company that X-Company names. Send its UUID.")
        return self if company == self.company else msgspec.structs.replace(self, company=company)


def create_key(store: Registry, companies: list[str], scopes: Sequence[str], actor: str) -> tuple[str, ApiKey]:
    """Makes an API key for companies, by default the first; the first value is shown once and kept nowhere."""
    key_id = "".join(secrets.choice(ALPHABET) for _ in range(ID_LENGTH))
    secret = "".join(secrets.choice(ALPHABET) for _ in range(SECRET_LENGTH))
    salt = secrets.token_bytes(16)
    kept = ApiKey(key_id, companies[0], tuple(companies), salt, _hash(secret, salt), tuple(scopes), now_ms(), None)
    store.add_key(kept, actor)
    return PREFIX + key_id + secret, kept


def _hash(secret: str, salt: bytes) -> bytes:
    # The secret is random and long: there is nothing that a slow hash would protect.
    return hashlib.blake2b(secret.encode(), key=salt, digest_size=32).digest()


class _Checked:
    """What is known of some credentials: who holds them, until when that is trusted, or why nobody does.

    Times are those of the monotonic clock; whatever happens, nobody holds them at `ends` any more.
    """

    __slots__ = ("began", "checking", "ends", "principal", "refresh_at", "refusal", "until")

    def __init__(self) -> None:
        self.principal: Principal | None = None
        self.refusal: SeriatimError | None = None
        self.until = self.refresh_at = self.began = 0.0
        self.ends = math.inf
        self.checking: asyncio.Task[None] | None = None

    def trust(self, started: float, trusted_s: float) -> None:
        self.until = min(started + trusted_s, self.ends)
        self.refresh_at = (started + self.until) / 2


class _Source:
    """What credentials of one kind are checked with, in threads of its own: when it hangs, nothing else does."""

    def __init__(self, look_up: Callable[[str], tuple[Principal, float, float]]) -> None:
        self.look_up = look_up
        self.threads = ThreadPoolExecutor(THREADS)
        self.checks = 0
        self.answers = True
        """Whether it answered when it was last asked."""

    @property
    def patience_s(self) -> float:
        return PATIENCE_S if self.answers else PATIENCE_LOST_S


class Authenticator:
    """Checks API keys against the store and tokens against their keys; remembers the answer for a while.

    A store that is down or hangs must not stop allocation: who was valid when it was last heard of remains so.

    Args:
        store: where API keys and companies are.
        tokens: what opens tokens.
        rate: requests a second that one holder may send to this process; 0 for any number.
        in_flight: requests of one holder that this process works on at once.
    """

    def __init__(self, store: Registry, tokens: Tokens, *, rate: int, in_flight: int) -> None:
        self._store = store
        self._tokens = tokens
        self._rate = rate
        self._in_flight = in_flight
        self._checked: OrderedDict[str, _Checked] = OrderedDict()
        self._allowances: WeakValueDictionary[str, Allowance] = WeakValueDictionary()
        self._sharing = threading.Lock()
        self._of_keys, self._of_tokens = _Source(self._key_holder), _Source(self._token_holder)

    async def principal(self, credentials: str, *, tokens: bool) -> Principal:
        """Returns who holds an API key or, where `tokens` are accepted, a JSON Web Token.

        Raises:
            Unauthorized: nobody.
            Unavailable: the store does not answer, and the credentials were never seen.
        """
        is_key = credentials.startswith(PREFIX)
        if not is_key and not tokens:
            raise Unauthorized("Only API keys are accepted here. They begin with seriatim_.")
        source = self._source(credentials)
        now = time.monotonic()
        checked = self._checked.get(credentials)
        if checked is None or checked.refresh_at < now:
            checked = self._refresh(credentials, checked, source, now)
            if checked.until < now:
                await self._wait(checked, source)
                if checked.ends < time.monotonic():
                    raise Unauthorized("The token has expired. Get a new one.")
        if checked.principal is None:
            raise (checked.refusal or Unavailable(SILENT)).with_traceback(None)
        return checked.principal

    def known(self, credentials: str) -> Principal | None:
        """Returns who holds credentials of either kind, as far as that is known without waiting."""
        checked = self._checked.get(credentials)
        now = time.monotonic()
        if checked is None or checked.until < now:
            return None
        if checked.refresh_at < now:
            self._refresh(credentials, checked, self._source(credentials), now)
        return checked.principal

    def _source(self, credentials: str) -> _Source:
        return self._of_keys if credentials.startswith(PREFIX) else self._of_tokens

    def _refresh(self, credentials: str, checked: _Checked | None, source: _Source, now: float) -> _Checked:
        """Begins to check credentials; early, so that nobody waits who comes while the last answer is still trusted."""
        if checked is None:
            self._check_form(credentials)
            if source.checks >= CHECKS_MAX:
                raise Unavailable(SILENT)
            checked = self._checked[credentials] = _Checked()
            while len(self._checked) > CACHE_KEYS_MAX:
                self._checked.popitem(last=False)
        if checked.checking is None:
            checked.began = now
            checked.checking = asyncio.create_task(self._check(credentials, checked, source))
        return checked

    async def _wait(self, checked: _Checked, source: _Source) -> None:
        """Waits for the end of a check; for those who were known before, not for long."""
        checking = checked.checking
        assert checking is not None
        left_s = checked.began + source.patience_s - time.monotonic()
        if left_s > 0:
            await asyncio.wait([checking], timeout=left_s)
        if checking.done():
            checking.result()
        else:
            source.answers = False

    def _check_form(self, credentials: str) -> None:
        if credentials.startswith(PREFIX):
            if len(credentials) != len(PREFIX) + ID_LENGTH + SECRET_LENGTH or not credentials.isascii():
                raise Unauthorized("The API key is not complete. Check it.")
        elif not self._tokens.accepted or credentials.count(".") != 2 or len(credentials) > TOKEN_BYTES_MAX:  # noqa: PLR2004
            raise Unauthorized("This is neither an API key nor a token that is accepted here.")

    async def _check(self, credentials: str, checked: _Checked, source: _Source) -> None:
        source.checks += 1
        try:
            looking = asyncio.get_running_loop().run_in_executor(source.threads, source.look_up, credentials)
            checked.principal, trusted_s, checked.ends = await looking
            checked.trust(checked.began, trusted_s)
            source.answers = True
        except Unavailable as error:
            source.answers = False
            checked.refusal = error
            if checked.principal is None:
                self._forget(credentials, checked)
            else:
                checked.trust(time.monotonic(), TRUST_S)
        except Unauthorized as error:
            source.answers = True
            checked.principal, checked.refusal = None, error
            self._forget(credentials, checked)
        finally:
            source.checks -= 1
            checked.checking = None

    def _forget(self, credentials: str, checked: _Checked) -> None:
        if self._checked.get(credentials) is checked:
            del self._checked[credentials]

    def _key_holder(self, key: str) -> tuple[Principal, float, float]:
        key_id, secret = key[len(PREFIX) :][:ID_LENGTH], key[len(PREFIX) + ID_LENGTH :]
        kept = self._store.api_key(key_id)
        if kept is None or not hmac.compare_digest(kept.hash, _hash(secret, kept.salt)) or kept.revoked_at is not None:
            raise Unauthorized("The API key is unknown or revoked. Use another, or create one.")
        holder = self._principal(f"key {kept.id}", kept.company, frozenset(kept.companies), kept.scopes)
        return holder, TRUST_S, math.inf

    def _token_holder(self, token: str) -> tuple[Principal, float, float]:
        claims = self._tokens.open(token)
        known = frozenset(self._store.known_companies(claims.companies))
        company = claims.company if claims.company in known else ""
        holder = self._principal(f"token {claims.subject}", company, known, claims.scopes)
        return holder, TRUST_TOKEN_S, time.monotonic() + claims.expires_at - time.time()

    def _principal(self, actor: str, company: str, companies: frozenset[str], scopes: Iterable[str]) -> Principal:
        with self._sharing:  # by threads that each check a token of one subject
            allowance = self._allowances.get(actor)
            if allowance is None:
                allowance = self._allowances[actor] = Allowance(self._rate, self._in_flight)
        return Principal(actor, company, companies, frozenset(scopes), allowance)


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
