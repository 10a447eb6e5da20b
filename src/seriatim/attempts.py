"""What a client sends, how often, and what it makes of the answers. Sends nothing itself: whoever drives a plan does.

A plan is a generator that yields attempts, is sent what became of each, and returns a result. What is tried again is
the same to the byte, ids included, so that a number whose answer was lost is answered and none is issued twice.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Generator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
import msgspec

from seriatim.errors import Busy, ConfigError, Halted, SeriatimError, Unavailable
from seriatim.messages import ErrorAnswer

BACKOFF_S = 0.05
BACKOFF_S_MAX = 3.0
SHOWN_MAX = 200
VISIBLE = re.compile(r"[\x21-\x7e]+")
KINDS = {kind.status: kind for kind in SeriatimError.__subclasses__() if kind.status != SeriatimError.status}
KINDS |= dict.fromkeys((502, 504), Unavailable)
"""What is raised for a status. 502 and 504 are what proxies say."""

T = TypeVar("T")


class Attempt(msgspec.Struct, frozen=True):
    """A request to send, and how long to wait before."""

    request: httpx.Request
    pause_s: float


Outcome = httpx.Response | httpx.RequestError
Plan = Generator[Attempt, Outcome, T]
Query = Mapping[str, str | int | None]


class Requests:
    """The requests to one service, as one caller.

    Args:
        url: of the service.
        key: an API key or a token; it is never shown.
        company: for which to act, None for the key's first.
        timeout_s: how long an attempt may wait to connect, and each time that it reads or writes.
        deadline_s: after how long there is no other attempt.

    Raises:
        ConfigError: the URL is none, or the key or the company cannot be in a header.
    """

    def __init__(self, url: str, key: str, company: str | None, *, timeout_s: float, deadline_s: float) -> None:
        self.url = _service_url(url)
        self._headers = _headers(key, company)
        self._timeout_s = timeout_s
        self._deadline_s = deadline_s

    def answer(self, method: str, path: str, *, query: Query | None = None, body: Any = None) -> Plan[httpx.Response]:
        """Returns the answer to a request, after as many attempts as it takes and the deadline allows.

        Raises:
            SeriatimError: the service refused it, or did not answer. The cause is what was unknown of an attempt.
        """
        ends_at = time.monotonic() + self._deadline_s
        params = {name: value for name, value in (query or {}).items() if value is not None}
        content = b"" if body is None else msgspec.json.encode(body)
        backoff_s, pause_s, left_s, lost = BACKOFF_S, 0.0, self._deadline_s, None
        while True:
            request = httpx.Request(
                method,
                self.url + path,
                params=params,
                headers=self._headers,
                content=content,
                extensions={"timeout": httpx.Timeout(min(self._timeout_s, left_s)).as_dict()},
            )
            outcome = yield Attempt(request, pause_s)
            if isinstance(outcome, httpx.Response) and outcome.is_success:
                return outcome
            error = _error(outcome)
            pause_s = _asked_pause_s(outcome) + backoff_s * random.uniform(0.5, 1)  # noqa: S311 -- no secret
            left_s = ends_at - time.monotonic() - pause_s
            if not isinstance(error, Busy | Unavailable) or left_s <= 0:
                raise error from (error.__cause__ or lost)
            lost = lost if isinstance(error, Busy) else error
            backoff_s = min(2 * backoff_s, BACKOFF_S_MAX)


def read(answer: httpx.Response, kind: type[T]) -> T:
    """Returns what an answer says.

    Raises:
        SeriatimError: it is not of that kind.
    """
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except ValueError as error:
        raise SeriatimError(_strange(answer)) from error


def _service_url(text: str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ConfigError(f"The URL of the service cannot be read: {error}.") from error
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query or url.fragment:
        raise ConfigError("The URL of the service must be like https://numbers.example.com, without user and password.")
    return str(url).rstrip("/")


def _headers(key: str, company: str | None) -> httpx.Headers:
    if not VISIBLE.fullmatch(key) or not VISIBLE.fullmatch(company or "-"):
        raise ConfigError("The key or the company is empty, or has a space, a line's end or a letter that cannot be.")
    # Printed, they hide the key.
    headers = httpx.Headers({"Authorization": f"Bearer {key}", "Accept": "application/json", "User-Agent": "seriatim"})
    if company is not None:
        headers["X-Company"] = company
    return headers


def _error(outcome: Outcome) -> SeriatimError:
    """Returns what to raise when an attempt did not succeed."""
    if isinstance(outcome, httpx.RequestError):
        host = outcome.request.url.netloc.decode()
        why = f"{type(outcome).__name__}: {outcome}".rstrip(": ")
        unanswered = Unavailable(f"No answer from {host} ({why}). Repeat the request, with the same ids.")
        unanswered.__cause__ = outcome
        return unanswered
    try:
        said = msgspec.json.decode(outcome.content, type=ErrorAnswer)
    except ValueError:
        said = ErrorAnswer("", _strange(outcome))
    kind = Halted if said.code == Halted.code else KINDS.get(outcome.status_code, SeriatimError)
    error = kind.__new__(kind)  # some kinds write their own message: this one is the service's
    SeriatimError.__init__(error, said.message, fields=said.fields)
    return error


def _strange(answer: httpx.Response) -> str:
    host, shown = answer.request.url.netloc.decode(), answer.text[:SHOWN_MAX]
    return f"{host} answers {answer.status_code}, but not as Seriatim does: {shown!r}. Check the URL."


def _asked_pause_s(outcome: Outcome) -> float:
    """Returns how long the service, or a proxy, asks to wait: seconds, or until a date (RFC 9110, section 10.2.3)."""
    text = outcome.headers.get("retry-after", "") if isinstance(outcome, httpx.Response) else ""
    try:
        until = float(text) if text.isdecimal() else (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return 0.0
    return max(0.0, until)
