"""A client of the sequence dialect, for programs that wait (`Client`) and for those on asyncio (`AsyncClient`).

Both have the same methods, declared once, as plans (`seriatim.attempts`). They differ in how they carry out an attempt.
"""

from __future__ import annotations

import asyncio
import re
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import (
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    Self,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    overload,
)

import httpx
from uuid6 import uuid7

from seriatim.attempts import Attempt, Outcome, Plan, Query, Requests, read
from seriatim.errors import BadRequest, NotFound, SeriatimError, Unproven
from seriatim.formats import Preview
from seriatim.messages import (
    BatchAnswer,
    BatchBody,
    BatchElement,
    EntryAnswer,
    EntryBody,
    EntryPage,
    ReportAnswer,
    SeriesAnswer,
    SeriesPage,
    SkipAnswer,
    cursor_behind,
)
from seriatim.receipts import verify_entry
from seriatim.signing import JsonWebKeySet, UnknownKey

__all__ = ["AsyncClient", "Client", "Definition", "EntryAnswer", "EntryBody", "Issued", "JsonWebKeySet", "verify_entry"]

PAGE = 100
ID = re.compile(r"[0-9A-Za-z-]+")
LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=100)

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)


class Issued(EntryAnswer, omit_defaults=True):
    """An entry; `replayed` when its number was issued before: by another call, or an attempt whose answer was lost."""

    replayed: bool = False


class Definition(TypedDict, total=False):
    """What may be said of a series; what is left out stays as it is."""

    name: str
    description: str
    code: str
    prefix: str
    padding: int
    suffix: str
    start: int
    format: str
    timezone: str
    fiscal_year_start: str
    chronology: Literal["strict", "free"]
    max_length: int
    charset: str
    sig: str
    type: str
    default: bool
    active: bool


# how a method is declared once and called in two ways -------------------------------------------------------------


Pages = Callable[[str | None], Plan[tuple[Sequence[T], str | None]]]
"""Fetches what is listed behind a cursor, and the cursor to what follows, if anything does."""


class _Method(Protocol[P, T_co]):
    """A method that answers in `Client`, and in `AsyncClient` is awaited."""

    @overload
    def __get__(self, client: Client, kind: type) -> Callable[P, T_co]: ...
    @overload
    def __get__(self, client: AsyncClient, kind: type) -> Callable[P, Coroutine[Any, Any, T_co]]: ...


class _Listing(Protocol[P, T_co]):
    """A method that iterates, in `AsyncClient` with `async for`."""

    @overload
    def __get__(self, client: Client, kind: type) -> Callable[P, Iterator[T_co]]: ...
    @overload
    def __get__(self, client: AsyncClient, kind: type) -> Callable[P, AsyncIterator[T_co]]: ...


def _method(plan: Callable[Concatenate[Any, P], Plan[T]]) -> _Method[P, T]:
    @wraps(plan)
    def call(client: Any, *args: P.args, **kwargs: P.kwargs) -> Any:
        return client._run(plan(client, *args, **kwargs))  # noqa: SLF001 -- a method of the client

    return cast("_Method[P, T]", call)


def _listing(pages: Callable[Concatenate[Any, P], Pages[T]]) -> _Listing[P, T]:
    @wraps(pages)
    def call(client: Any, *args: P.args, **kwargs: P.kwargs) -> Any:
        return client._each(pages(client, *args, **kwargs))  # noqa: SLF001 -- likewise

    return cast("_Listing[P, T]", call)


# the methods ------------------------------------------------------------------------------------------------------


class _Methods(ABC, Generic[Http]):
    """What both clients can do. Every method raises the errors of the service, those of `seriatim.errors`.

    It raises Unavailable when there is no answer within the deadline.
    """

    def __init__(  # noqa: PLR0913 -- all but two have defaults
        self,
        url: str,
        key: str,
        *,
        company: str | None = None,
        timeout: float = 10.0,
        deadline: float = 60.0,
        http: Http | None = None,
    ) -> None:
        """Connects to nothing yet.

        Args:
            url: of the service, such as https://numbers.example.com.
            key: an API key or a token; it is never shown.
            company: for which company to act, where the key is for several.
            timeout: seconds that one attempt may wait to connect, and each time that it reads or writes.
            deadline: seconds after which a call makes no other attempt.
            http: what sends requests, if it needs proxies or certificates of its own; closing it is yours.
        """
        self._requests = Requests(url, key, company, timeout_s=timeout, deadline_s=deadline)
        self._keys = JsonWebKeySet(b'{"keys": []}')
        self._owns_http = http is None
        self._http: Http = self._open_http() if http is None else http

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._requests.url!r})"

    @abstractmethod
    def _open_http(self) -> Http: ...

    @_method
    def put_series(self, series: str, **definition: Unpack[Definition]) -> Plan[SeriesAnswer]:
        """Creates a series under an id of yours (a UUID), or changes it."""
        return self._call(SeriesAnswer, "PUT", ["series", series], body=definition)

    @_method
    def get_series(self, series: str) -> Plan[SeriesAnswer]:
        """Returns a series."""
        return self._call(SeriesAnswer, "GET", ["series", series])

    @_listing
    def series(self, *, limit: int = PAGE) -> Pages[SeriesAnswer]:
        """Yields all series, oldest first, asking for `limit` at a time."""

        def page(cursor: str | None) -> Plan[tuple[list[SeriesAnswer], str | None]]:
            query = {"limit": limit, "cursor": cursor}
            said = yield from self._call(SeriesPage, "GET", ["series"], query=query)
            return said.series, said.cursor

        return page

    @_method
    def delete_series(self, series: str) -> Plan[None]:
        """Deletes a series that has no records."""
        try:
            yield from self._requests.answer("DELETE", _path(["series", series]))
        except NotFound as missing:
            if missing.__cause__ is None:
                raise  # else an attempt whose answer was lost has deleted it

    @_method
    def preview(self, series: str) -> Plan[Preview]:
        """Returns the next codes of a series."""
        return self._call(Preview, "GET", ["series", series, "preview"])

    @_method
    def preview_new(self, **definition: Unpack[Definition]) -> Plan[Preview]:
        """Returns the first codes that a series would have, or raises what is wrong with it; creates nothing."""
        return self._call(Preview, "POST", ["series", "preview"], body=definition)

    @_method
    def issue(
        self,
        series: str,
        id: str | None = None,  # noqa: A002 -- the field's name
        *,
        meta: dict[str, str] | None = None,
        sig: str | None = None,
        date: str | None = None,
    ) -> Plan[Issued]:
        """Issues the next number of a series to an id, or returns the number that the id has.

        Args:
            series: id of the series.
            id: UUID of the entry; made if not given. Give one that you keep if your own program may be interrupted.
            meta: what to keep with the entry.
            sig: your signature over it, a compact JWS.
            date: the document's, as YYYY-MM-DD; today if not given.
        """
        return self._issue(["series", series], EntryBody(id, meta, sig, date))

    @_method
    def issue_default(
        self,
        type: str = "invoice",  # noqa: A002 -- the field's name
        id: str | None = None,  # noqa: A002 -- likewise
        *,
        meta: dict[str, str] | None = None,
        sig: str | None = None,
        date: str | None = None,
    ) -> Plan[Issued]:
        """Issues the next number of the default series of a type; the rest as `issue`."""
        return self._issue([], EntryBody(id, meta, sig, date), {"type": type})

    @_method
    def issue_batch(self, series: str, entries: Iterable[EntryBody]) -> Plan[list[EntryAnswer]]:
        """Issues up to 1000 numbers in a row, or none; entries without an id get one."""
        named = [BatchElement(entry.id or _new_id(), entry.meta, entry.sig, entry.date) for entry in entries]
        with _asking_for([entry.id or "" for entry in named]):
            where = ["series", series, "entries"]
            said = yield from self._call(BatchAnswer, "POST", where, body=BatchBody(named))
        return said.entries

    @_method
    def get_entry(self, series: str, id: str) -> Plan[EntryAnswer]:  # noqa: A002 -- the field's name
        """Returns an entry."""
        return self._call(EntryAnswer, "GET", ["series", series, "entries", id])

    @_listing
    def entries(self, series: str, *, after: str | None = None, limit: int = PAGE) -> Pages[EntryAnswer]:
        """Yields the entries of a series, oldest first, behind the one with the id `after` if given."""
        begin = cursor_behind(after, limit) if after else None

        def page(cursor: str | None) -> Plan[tuple[list[EntryAnswer], str | None]]:
            query = {"limit": limit, "cursor": cursor or begin}
            said = yield from self._call(EntryPage, "GET", ["series", series, "entries"], query=query)
            return said.entries, said.cursor

        return page

    @_method
    def void(self, series: str, id: str, reason: str) -> Plan[EntryAnswer]:  # noqa: A002 -- the field's name
        """Makes an entry void; its number stays used. Again: the first reason stays."""
        where = ["series", series, "entries", id, "void"]
        return self._call(EntryAnswer, "POST", where, body={"reason": reason})

    @_method
    def skip(self, series: str, to: int, reason: str, *, counter: str | None = None) -> Plan[SkipAnswer]:
        """Leaves numbers out, so that the next one is `to`."""
        body = {"to": to, "reason": reason, "counter": counter}
        return self._call(SkipAnswer, "POST", ["series", series, "skip"], body=body)

    @_method
    def report(self, series: str, *, first: str | None = None, last: str | None = None) -> Plan[ReportAnswer]:
        """Tells what became of every number, of documents dated `first` to `last`."""
        query = {"from": first, "to": last}
        return self._call(ReportAnswer, "GET", ["series", series, "report"], query=query)

    @_method
    def verify(self, entry: EntryAnswer, *, issuer: str | None = None) -> Plan[None]:
        """Checks an entry as `verify_entry` does, with the keys that the service publishes; asks for them once.

        Raises:
            Unsettled: there is no receipt yet.
            Unproven: something is not as it was signed.
        """
        try:
            verify_entry(entry, self._keys, issuer=issuer)
        except Unproven as error:
            if not isinstance(error.__cause__, UnknownKey):
                raise
        else:
            return
        self._keys = JsonWebKeySet((yield from self._requests.answer("GET", "/.well-known/jwks.json")).content)
        verify_entry(entry, self._keys, issuer=issuer)

    # what they are made of ----------------------------------------------------------------------------------------

    def _issue(self, where: Sequence[str], body: EntryBody, query: Query | None = None) -> Plan[Issued]:
        body.id = body.id or _new_id()
        with _asking_for([body.id]):
            answer = yield from self._requests.answer(
                "PUT", _path([*where, "entries", body.id]), query=query, body=body
            )
            issued = read(answer, Issued)
        issued.replayed = answer.headers.get("idempotent-replayed") == "true"
        return issued

    def _call(
        self, kind: type[T], method: str, where: Sequence[str], *, query: Query | None = None, body: Any = None
    ) -> Plan[T]:
        return read((yield from self._requests.answer(method, _path(where), query=query, body=body)), kind)


class Client(_Methods[httpx.Client]):
    """A client for programs that wait. Threads may share one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        if self._owns_http:
            self._http.close()

    def _open_http(self) -> httpx.Client:
        return httpx.Client(limits=LIMITS)

    def _run(self, plan: Plan[T]) -> T:
        try:
            attempt = next(plan)
            while True:
                attempt = plan.send(self._carry_out(attempt))
        except StopIteration as done:
            return cast("T", done.value)

    def _carry_out(self, attempt: Attempt) -> Outcome:
        time.sleep(attempt.pause_s)
        try:
            return self._http.send(attempt.request)
        except httpx.RequestError as error:
            return error

    def _each(self, pages: Pages[T]) -> Iterator[T]:
        cursor = None
        while True:
            listed, cursor = self._run(pages(cursor))
            yield from listed
            if cursor is None:
                return


class AsyncClient(_Methods[httpx.AsyncClient]):
    """A client for programs on asyncio. Tasks of one event loop may share one."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        if self._owns_http:
            await self._http.aclose()

    def _open_http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(limits=LIMITS)

    async def _run(self, plan: Plan[T]) -> T:
        try:
            attempt = next(plan)
            while True:
                attempt = plan.send(await self._carry_out(attempt))
        except StopIteration as done:
            return cast("T", done.value)

    async def _carry_out(self, attempt: Attempt) -> Outcome:
        await asyncio.sleep(attempt.pause_s)
        try:
            return await self._http.send(attempt.request)
        except httpx.RequestError as error:
            return error

    async def _each(self, pages: Pages[T]) -> AsyncIterator[T]:
        cursor = None
        while True:
            listed, cursor = await self._run(pages(cursor))
            for one in listed:
                yield one
            if cursor is None:
                return


# paths and ids ----------------------------------------------------------------------------------------------------


def _path(segments: Sequence[str]) -> str:
    wrong = [segment for segment in segments if not ID.fullmatch(segment)]
    if wrong:  # it might lead elsewhere
        raise BadRequest(f"{wrong[0]!r} is not a UUID (8-4-4-4-12 hex digits).")
    return "/".join(["/sequence/v1", *segments])


def _new_id() -> str:
    # Ids in the order of time: in the store's index they then stand side by side.
    return str(uuid7())


@contextmanager
def _asking_for(ids: Sequence[str]) -> Iterator[None]:
    """Adds to an error which entries it is about."""
    try:
        yield
    except SeriatimError as error:
        error.ids = ids
        raise
