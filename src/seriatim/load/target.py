"""The service under test, asked one thing at a time: its series, pages, entries and keys."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import threading
import time
import uuid
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from seriatim.errors import ConfigError, SeriatimError
from seriatim.load.operations import cursor_text
from seriatim.load.options import Address
from seriatim.messages import PAGE_MAX, EntryAnswer, EntryPage, ReportAnswer, SeriesAnswer
from seriatim.model import UUID_PATTERN, Numbering

T = TypeVar("T")

TIMEOUT_S = 20.0
PATIENCE_S = 30.0
"""How long something is asked again that is refused for now."""
PAUSE_S = 0.2
SERIES_TYPE = "load_test"
"""Of its own, so that no series becomes a default by which documents are numbered."""


class Answer(msgspec.Struct, frozen=True):
    """What was answered."""

    status: int
    body: bytes


class Lane(msgspec.Struct, frozen=True):
    """A series under load, as it stood before."""

    id: str
    numbering: Numbering
    owned: bool
    """Whether it was made for this: nobody else has entries in it."""
    base: int = 0
    """Position of its last entry, and that entry's id."""
    base_id: str | None = None


class Target:
    """A service, for any number of threads."""

    def __init__(self, address: Address, key: str) -> None:
        self._address = address
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._local = threading.local()

    def make_series(self, name: str) -> Lane:
        """Makes a series for the load."""
        fields = {"name": name, "type": SERIES_TYPE, "prefix": "LOAD-", "padding": 7}
        answer = self._expect("PUT", f"/sequence/v1/series/{uuid.uuid4()}", msgspec.json.encode(fields))
        return _lane(_decoded(answer, SeriesAnswer), owned=True)

    def find_series(self, series_id: str) -> Lane:
        """Finds a series, and where it stands."""
        path = f"/sequence/v1/series/{quote(series_id, safe='')}"
        series = _decoded(self._expect("GET", path), SeriesAnswer)
        lane = _lane(series, owned=False)
        if series.last_entry_id is None:
            return lane
        last = _decoded(self._expect("GET", f"{path}/entries/{series.last_entry_id}"), EntryAnswer)
        return msgspec.structs.replace(lane, base=last.position, base_id=last.id)

    def page(self, series_id: str, cursor: str | None) -> tuple[bytes, EntryPage]:
        """Returns a page of entries, also as it was answered."""
        query = f"cursor={quote(cursor, safe='')}" if cursor else f"limit={PAGE_MAX}"
        raw = self._expect("GET", f"/sequence/v1/series/{series_id}/entries?{query}")
        page = _decoded(raw, EntryPage)
        strange = [entry.id for entry in page.entries if not UUID_PATTERN.match(entry.id)]
        if strange:
            raise ConfigError(f"A page of series {series_id} has an entry under the id {strange[0]!r}.")
        return raw, page

    def entry(self, series_id: str, entry_id: str) -> EntryAnswer | None:
        """Returns an entry; None where there is none."""
        answer = self._ask("GET", f"/sequence/v1/series/{series_id}/entries/{entry_id}", None)
        if answer.status == http.client.NOT_FOUND:
            return None
        return _decoded(_expected(answer), EntryAnswer)

    def report(self, series_id: str) -> ReportAnswer:
        """Returns what became of every number of a series."""
        return _decoded(self._expect("GET", f"/sequence/v1/series/{series_id}/report"), ReportAnswer)

    def jwks(self) -> bytes:
        """Returns the public keys."""
        return self._expect("GET", "/.well-known/jwks.json")

    def backlog(self) -> int | None:
        """Returns how many records wait for the store, where the service tells it."""
        try:
            ready: Any = msgspec.json.decode(self._once("GET", "/readyz", None).body)
        except (OSError, http.client.HTTPException, msgspec.DecodeError):
            return None
        told = ready.get("backlog") if isinstance(ready, dict) else None
        return told if isinstance(told, int) else None

    # HTTP -------------------------------------------------------------------------------------------------------------

    def _expect(self, method: str, path: str, body: bytes | None = None) -> bytes:
        return _expected(self._ask(method, path, body))

    def _ask(self, method: str, path: str, body: bytes | None) -> Answer:
        """Asks until there is an answer that does not mean "not now"; everything here may be repeated."""
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = self._once(method, path, body)
            except (ConnectionRefusedError, socket.gaierror, ssl.SSLError) as error:
                where = self._address.host_header
                raise ConfigError(
                    f"Nothing answers at {where} ({error}). Is the URL right, and does it run?"
                ) from error
            except (OSError, http.client.HTTPException) as error:
                if time.monotonic() > give_up:
                    raise SeriatimError(f"{method} {path} is not answered: {error!r}.") from error
            else:
                passing = answer.status >= http.client.INTERNAL_SERVER_ERROR
                if not (passing or answer.status == http.client.TOO_MANY_REQUESTS) or time.monotonic() > give_up:
                    return answer
            time.sleep(PAUSE_S)

    def _once(self, method: str, path: str, body: bytes | None) -> Answer:
        connection = self._connection()
        try:
            connection.request(method, self._address.base + path, body, self._headers)
            response = connection.getresponse()
            return Answer(response.status, response.read())
        except (OSError, http.client.HTTPException):
            connection.close()  # the next request opens it again
            raise

    def _connection(self) -> http.client.HTTPConnection:
        if not hasattr(self._local, "connection"):
            kind = http.client.HTTPSConnection if self._address.tls else http.client.HTTPConnection
            self._local.connection = kind(self._address.host, self._address.port, timeout=TIMEOUT_S)
        connection: http.client.HTTPConnection = self._local.connection
        return connection


def cursor_behind(entry_id: str | None) -> str | None:
    """Returns the cursor of the page behind an entry."""
    return base64.b64encode(cursor_text(entry_id, PAGE_MAX)).decode() if entry_id else None


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        said = body[:200].decode(errors="replace")
        raise ConfigError(f"This is not what Seriatim answers ({error}): {said}. Check the URL.") from error


def _expected(answer: Answer) -> bytes:
    if answer.status == http.client.OK:
        return answer.body
    said = answer.body[:300].decode(errors="replace")
    raise ConfigError(f"The service says {answer.status}: {said}. Check the URL, the key, its scopes and the series.")


def _lane(series: SeriesAnswer, *, owned: bool) -> Lane:
    numbering = Numbering(
        padding=series.padding,
        format=series.format,
        start=series.start,
        timezone=series.timezone,
        fiscal_year_start=series.fiscal_year_start,
        chronology=series.chronology,
    )
    return Lane(series.id, numbering, owned)
