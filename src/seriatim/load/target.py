"""The service under test, asked one thing at a time: its series, entries and keys. Threads may share it."""

from __future__ import annotations

import socket
import uuid
from functools import cached_property
from itertools import islice
from typing import Any

import httpx
import msgspec

from seriatim.client import Client
from seriatim.errors import ConfigError, NotFound, SeriatimError, Unavailable
from seriatim.load.book import Lane
from seriatim.load.options import Options
from seriatim.messages import PAGE_MAX, EntryAnswer, ReportAnswer, SeriesAnswer
from seriatim.model import UUID_PATTERN, Numbering

TIMEOUT_S = 20.0
CONNECT_S = 10.0
SERIES_TYPE = "load_test"
"""Of its own, so that no series becomes a default by which documents are numbered."""


class Target:
    """A service.

    Raises:
        ConfigError: the URL or the key cannot be one, or nothing answers there.
    """

    def __init__(self, options: Options) -> None:
        self._http = httpx.Client(timeout=TIMEOUT_S)
        self._client = Client(options.url, options.key, timeout=TIMEOUT_S, deadline=options.deadline, http=self._http)
        self._url = options.url.rstrip("/")
        address = options.address
        try:
            socket.create_connection((address.host, address.port), CONNECT_S).close()
        except OSError as error:
            why = f"Nothing answers at {address.host_header} ({error}). Is the URL right, and does it run?"
            raise ConfigError(why) from error

    def make_series(self, name: str) -> Lane:
        """Makes a series for the load."""
        made = self._client.put_series(str(uuid.uuid4()), name=name, type=SERIES_TYPE, prefix="LOAD-", padding=7)
        return _lane(made, owned=True)

    def find_series(self, series_id: str) -> Lane:
        """Finds a series, and where it stands."""
        series = self._client.get_series(series_id)
        lane = _lane(series, owned=False)
        if series.last_entry_id is None:
            return lane
        last = self._client.get_entry(series_id, series.last_entry_id)
        return msgspec.structs.replace(lane, base=last.position, base_id=last.id)

    def entries(self, series_id: str, after: str | None) -> list[EntryAnswer]:
        """Returns the entries behind one, as many as a page may have; fewer only at the end."""
        listed = list(islice(self._client.entries(series_id, after=after, limit=PAGE_MAX), PAGE_MAX))
        for entry in listed:
            if not UUID_PATTERN.match(entry.id):
                raise SeriatimError(f"Series {series_id} lists an entry under the id {entry.id!r}, which is no UUID.")
        return listed

    def entry(self, series_id: str, entry_id: str) -> EntryAnswer | None:
        """Returns an entry; None where there is none."""
        try:
            return self._client.get_entry(series_id, entry_id)
        except NotFound:
            return None

    def report(self, series_id: str) -> ReportAnswer:
        """Returns what became of every number of a series."""
        return self._client.report(series_id)

    @cached_property
    def jwks(self) -> bytes:
        """The public keys; asked for when there are receipts, as by then they are published."""
        try:
            return self._http.get(f"{self._url}/.well-known/jwks.json").raise_for_status().content
        except httpx.HTTPError as error:
            raise Unavailable(f"The public keys cannot be fetched: {error}.") from error

    def backlog(self) -> int | None:
        """Returns how many records wait for the store, where the service tells it."""
        try:
            ready: Any = self._http.get(f"{self._url}/readyz").json()
        except (httpx.HTTPError, ValueError):
            return None
        told = ready.get("backlog") if isinstance(ready, dict) else None
        return told if isinstance(told, int) else None


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
