"""The sequence dialect (Invopop's), `/sequence/v1`: the native one."""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Router

from seriatim.auth import Authenticator
from seriatim.definitions import Definitions, SeriesView, preview_new
from seriatim.errors import (
    BadRequest,
    Invalid,
    NotAllowed,
    NotFound,
    SeriatimError,
    Unauthorized,
)
from seriatim.formats import template
from seriatim.http.edge import authenticate, decode, read_body, route
from seriatim.http.fields import check_day, check_meta, check_reason, check_sig, check_type, series_fields
from seriatim.ledger import Ledger, Wanted
from seriatim.model import (
    COUNTER_MAX,
    UUID_PATTERN,
    Entry,
    SeriesFields,
    Skip,
    Void,
    Why,
    canonical_meta,
    parse_uuid,
    timestamp,
)

BATCH_MAX = 1000
BATCH_BYTES_MAX = 4 * 1024 * 1024
PAGE_DEFAULT = 20
PAGE_MAX = 1000


class SeriesBody(msgspec.Struct, forbid_unknown_fields=True):
    """What a client sends of a series; "" and 0 mean "not given"."""

    id: str | None = None
    name: str | None = None
    description: str | None = None
    code: str | None = None
    prefix: str | None = None
    padding: int | None = None
    suffix: str | None = None
    start: int | None = None
    format: str | None = None
    timezone: str | None = None
    fiscal_year_start: str | None = None
    chronology: str | None = None
    max_length: int | None = None
    charset: str | None = None
    sig: str | None = None
    type: str | None = None
    default: bool | None = None
    active: bool | None = None


class EntryBody(msgspec.Struct, forbid_unknown_fields=True):
    """What a client sends of an entry."""

    id: str | None = None
    meta: dict[str, str] | None = None
    sig: str | None = None
    date: str | None = None


class BatchBody(msgspec.Struct, forbid_unknown_fields=True):
    """What a client sends of many entries."""

    entries: list[EntryBody] = msgspec.field(name="list")


class VoidBody(msgspec.Struct, forbid_unknown_fields=True):
    """What a client sends to void an entry."""

    reason: str | None = None


class SkipBody(msgspec.Struct, forbid_unknown_fields=True):
    """What a client sends to raise a counter."""

    to: int | None = None
    reason: str | None = None
    counter: str | None = None


class SeriesAnswer(msgspec.Struct, omit_defaults=True):
    """A series as this dialect shows it."""

    id: str
    type: str
    name: str
    description: str
    code: str
    prefix: str
    padding: int
    suffix: str
    last_index: int
    sigs: list[str]
    active: bool
    default: bool
    created_at: str
    updated_at: str
    format: str
    timezone: str
    fiscal_year_start: str
    chronology: str
    start: int | None = None
    max_length: int | None = None
    charset: str | None = None
    last_entry_id: str | None = None


class VoidAnswer(msgspec.Struct, omit_defaults=True):
    """Why an entry is void; `sig` is the receipt, once a worker has stored it."""

    reason: str
    actor: str
    created_at: str
    sig: str | None = None


class EntryAnswer(msgspec.Struct, omit_defaults=True):
    """An entry as this dialect shows it."""

    id: str
    series_id: str
    code: str
    position: int
    number: int
    date: str
    meta: msgspec.Raw
    sigs: list[str]
    created_at: str
    updated_at: str
    previous_id: str | None = None
    void: VoidAnswer | None = None


_series_body = msgspec.json.Decoder(SeriesBody)
_entry_body = msgspec.json.Decoder(EntryBody)
_batch_body = msgspec.json.Decoder(BatchBody)
_void_body = msgspec.json.Decoder(VoidBody)
_skip_body = msgspec.json.Decoder(SkipBody)
_encode = msgspec.json.Encoder().encode


def error_response(error: SeriatimError) -> Response:
    """Returns an error in this dialect's shape."""
    content: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.fields:
        content["fields"] = error.fields
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return _json(content, error.status, headers)


async def on_error(_request: Request, error: Exception) -> Response:
    """Handles what Seriatim raises on purpose."""
    assert isinstance(error, SeriatimError)
    return error_response(error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Handles what Starlette raises for unknown paths and wrong methods."""
    assert isinstance(error, HTTPException)
    if error.status_code == NotAllowed.status:
        answer = error_response(NotAllowed(f"{request.method} is not possible here."))
        answer.headers.update(error.headers or {})
        return answer
    if error.status_code == NotFound.status:
        return error_response(NotFound("There is nothing at this path. See the API's documentation."))
    return error_response(BadRequest(error.detail))


async def on_fault(_request: Request, _error: Exception) -> Response:
    """Handles our own faults; the server logs them."""
    return error_response(SeriatimError("Seriatim has failed. Repeat the request with the same id, and report this."))


class Sequence:
    """The endpoints of the dialect."""

    def __init__(
        self, definitions: Definitions, ledger: Ledger, authenticator: Authenticator, body_bytes_max: int
    ) -> None:
        self._definitions = definitions
        self._ledger = ledger
        self._authenticator = authenticator
        self._body_bytes_max = body_bytes_max

    def app(self) -> Router:
        """Returns the dialect as an app to mount; a path with a slash behind it is unknown, not elsewhere."""
        routes = [
            route("/series", GET=self.list_series),
            route("/series/preview", POST=self.preview_new),
            route("/series/{series_id}", GET=self.get_series, PUT=self.put_series, DELETE=self.delete_series),
            route("/series/{series_id}/preview", GET=self.preview),
            route("/series/{series_id}/skip", POST=self.skip),
            route("/series/{series_id}/report", GET=self.report),
            route("/series/{series_id}/entries", GET=self.list_entries, POST=self.put_batch),
            route("/series/{series_id}/entries/{entry_id}", GET=self.get_entry, PUT=self.put_entry),
            route("/series/{series_id}/entries/{entry_id}/void", POST=self.void),
            route("/entries/{entry_id}", PUT=self.put_default_entry),
        ]
        return Router(routes, redirect_slashes=False)

    async def list_series(self, request: Request) -> Response:
        """GET /series."""
        principal = await authenticate(request, self._authenticator, "read")
        after, limit = _page(request)
        listed, more = await self._definitions.list_series(principal.company, after, limit)
        answers = [_series_answer(view) for view in listed]
        return _json(_page_answer(answers, limit, more=more))

    async def get_series(self, request: Request) -> Response:
        """GET /series/{id}."""
        principal = await authenticate(request, self._authenticator, "read")
        series_id = parse_uuid(request.path_params["series_id"], "series")
        return _json(_series_answer(await self._definitions.get(principal.company, series_id)))

    async def put_series(self, request: Request) -> Response:
        """PUT /series/{id}: creates or updates."""
        principal = await authenticate(request, self._authenticator, "manage")
        series_id = _own_uuid(request.path_params["series_id"])
        body = decode(await read_body(request, self._body_bytes_max), _series_body)
        _check_same_id(body.id, series_id)
        fields = _series_fields(body)
        return _json(_series_answer(await self._definitions.put(principal.company, series_id, fields)))

    async def delete_series(self, request: Request) -> Response:
        """DELETE /series/{id}: only of a series without records."""
        principal = await authenticate(request, self._authenticator, "manage")
        series_id = parse_uuid(request.path_params["series_id"], "series")
        await self._definitions.delete(principal.company, series_id, principal.actor)
        return Response(status_code=204)

    async def skip(self, request: Request) -> Response:
        """POST /series/{id}/skip: raises a counter."""
        principal = await authenticate(request, self._authenticator, "manage")
        series_id = parse_uuid(request.path_params["series_id"], "series")
        body = decode(await read_body(request, self._body_bytes_max), _skip_body)
        wrong = check_reason(body.reason)
        if body.to is None or not 1 <= body.to <= COUNTER_MAX:
            wrong["to"] = "must be the number that is to be next, 1 to 2^53 - 1"
        if wrong:
            raise Invalid(wrong)
        why = Why(body.reason or "", principal.actor)
        counter, skip = await self._ledger.skip(principal.company, series_id, body.counter, body.to or 0, why)
        answer = {"series_id": series_id, "counter": counter, "next": body.to}
        return _json(answer | ({"period": skip.period} | _skip_answer(skip) if skip else {}))

    async def report(self, request: Request) -> Response:
        """GET /series/{id}/report: what became of every number."""
        principal = await authenticate(request, self._authenticator, "read")
        series_id = parse_uuid(request.path_params["series_id"], "series")
        wrong: dict[str, str] = {}
        first, last = (check_day(request.query_params.get(name), name, wrong) for name in ("from", "to"))
        if wrong:
            raise Invalid(wrong)
        lines = await self._ledger.report(principal.company, series_id, first, last)
        listed = [
            {
                "counter": line.counter,
                "period": line.period,
                "first": line.first,
                "last": line.last,
                "issued": line.issued,
                "voided": line.voided,
                "skipped": [_skip_answer(skip) for skip in line.skipped],
                "missing": [{"from": begin, "to": end} for begin, end in line.missing],
            }
            for line in lines
        ]
        return _json({"series_id": series_id, "list": listed})

    async def preview(self, request: Request) -> Response:
        """GET /series/{id}/preview: the next codes."""
        principal = await authenticate(request, self._authenticator, "read")
        series_id = parse_uuid(request.path_params["series_id"], "series")
        return _json((await self._definitions.preview(principal.company, series_id)).shown())

    async def preview_new(self, request: Request) -> Response:
        """POST /series/preview: the first codes of a series that is checked and not created."""
        await authenticate(request, self._authenticator, "read")
        body = decode(await read_body(request, self._body_bytes_max), _series_body)
        fields = _series_fields(body)
        return _json((await asyncio.to_thread(preview_new, fields, await self._definitions.time())).shown())

    async def put_batch(self, request: Request) -> Response:
        """POST /series/{id}/entries: issues one contiguous run of numbers, or none."""
        principal = await authenticate(request, self._authenticator, "allocate")
        series_id = parse_uuid(request.path_params["series_id"], "series")
        body = decode(await read_body(request, BATCH_BYTES_MAX), _batch_body)
        if not 1 <= len(body.entries) <= BATCH_MAX:
            raise Invalid({"list": f"has {len(body.entries)} elements; 1 to {BATCH_MAX} are allowed"})
        wrong: dict[str, str] = {}
        wanted = []
        for number, one in enumerate(body.entries):
            place = f"list[{number}]."
            entry_id = (one.id or "").lower()
            if not UUID_PATTERN.match(entry_id):
                wrong[f"{place}id"] = "is not a UUID (8-4-4-4-12 hex digits)"
            wanted.append(_wanted(entry_id, one, wrong, place))
        if wrong:
            raise Invalid(wrong)
        issued = await self._ledger.put_batch(principal.company, series_id, wanted)
        return _json({"list": [_entry_answer(entry) for entry, _ in issued]})

    async def list_entries(self, request: Request) -> Response:
        """GET /series/{id}/entries."""
        principal = await authenticate(request, self._authenticator, "read")
        series_id = parse_uuid(request.path_params["series_id"], "series")
        after, limit = _page(request)
        listed, more = await self._ledger.entries(principal.company, series_id, after, limit)
        answers = [_entry_answer(entry) for entry in listed]
        return _json({"series_id": series_id} | _page_answer(answers, limit, more=more))

    async def get_entry(self, request: Request) -> Response:
        """GET /series/{id}/entries/{id}."""
        principal = await authenticate(request, self._authenticator, "read")
        series_id = parse_uuid(request.path_params["series_id"], "series")
        entry_id = parse_uuid(request.path_params["entry_id"], "entry")
        return _json(_entry_answer(await self._ledger.entry(principal.company, series_id, entry_id)))

    async def put_entry(self, request: Request) -> Response:
        """PUT /series/{id}/entries/{id}: issues the next number, or answers what the id was issued."""
        principal = await authenticate(request, self._authenticator, "allocate")
        series_id = parse_uuid(request.path_params["series_id"], "series")
        wanted = await self._read_entry(request, {})
        return _issued(*await self._ledger.put_entry(principal.company, series_id, wanted))

    async def put_default_entry(self, request: Request) -> Response:
        """PUT /entries/{id}?type=: as put_entry, in the company's default series of that type."""
        principal = await authenticate(request, self._authenticator, "allocate")
        kind = request.query_params.get("type") or "invoice"
        wanted = await self._read_entry(request, check_type(kind))
        return _issued(*await self._ledger.put_default_entry(principal.company, kind, wanted))

    async def _read_entry(self, request: Request, also_wrong: dict[str, str]) -> Wanted:
        entry_id = _own_uuid(request.path_params["entry_id"])
        body = decode(await read_body(request, self._body_bytes_max), _entry_body)
        _check_same_id(body.id, entry_id)
        wrong: dict[str, str] = {}
        wanted = _wanted(entry_id, body, wrong, "")
        wrong |= also_wrong
        if wrong:
            raise Invalid(wrong)
        return wanted

    async def void(self, request: Request) -> Response:
        """POST /series/{id}/entries/{id}/void: the number stays used."""
        principal = await authenticate(request, self._authenticator, "allocate")
        series_id = parse_uuid(request.path_params["series_id"], "series")
        entry_id = parse_uuid(request.path_params["entry_id"], "entry")
        body = decode(await read_body(request, self._body_bytes_max), _void_body)
        wrong = check_reason(body.reason)
        if wrong:
            raise Invalid(wrong)
        why = Why(body.reason or "", principal.actor)
        return _json(_entry_answer(await self._ledger.void(principal.company, series_id, entry_id, why)))


EXCEPTION_HANDLERS = {SeriatimError: on_error, HTTPException: on_http_error, Exception: on_fault}


def _series_fields(body: SeriesBody) -> SeriesFields:
    said = msgspec.structs.asdict(body)
    del said["id"]
    return series_fields(said)


def _wanted(entry_id: str, body: EntryBody, wrong: dict[str, str], place: str) -> Wanted:
    """Returns what a request asks for, or notes what is wrong with it, under names that begin with `place`."""
    mistakes = check_meta(body.meta or {}) | check_sig(body.sig)
    day = check_day(body.date, "date", mistakes)
    wrong |= {f"{place}{name}": why for name, why in mistakes.items()}
    meta = b"{}" if mistakes else canonical_meta(body.meta or {})
    return Wanted(entry_id, meta, body.sig or None, day)


def _skip_answer(skip: Skip) -> dict[str, Any]:
    return {
        "from": skip.first,
        "to": skip.last,
        "reason": skip.reason,
        "actor": skip.actor,
        "created_at": timestamp(skip.created_at),
    }


def _void_answer(void: Void) -> VoidAnswer:
    return VoidAnswer(void.reason, void.actor, timestamp(void.created_at), void.receipt)


def _own_uuid(text: str) -> str:
    """A UUID that the client gives: wrong when it is none, where an unknown one would be missing."""
    lowered = text.lower()
    if not UUID_PATTERN.match(lowered):
        raise BadRequest(f"{text[:64]!r} is not a UUID (8-4-4-4-12 hex digits). Use one of any version.")
    return lowered


def _check_same_id(given: str | None, in_path: str) -> None:
    if given and given.lower() != in_path:
        raise Invalid({"id": "differs from the id in the path"})


def _page(request: Request) -> tuple[str | None, int]:
    after, limit = None, PAGE_DEFAULT
    if "cursor" in request.query_params:
        after, limit = _read_cursor(request.query_params["cursor"])
    if "limit" in request.query_params:
        text = request.query_params["limit"]
        limit = int(text) if text.isascii() and text.isdecimal() and len(text) < len("10000") else 0
    if not 1 <= limit <= PAGE_MAX:
        raise Invalid({"limit": f"must be a number from 1 to {PAGE_MAX}"})
    return after, limit


class Cursor(msgspec.Struct, forbid_unknown_fields=True):
    """Where a page ended."""

    id: str
    limit: int


_cursor = msgspec.json.Decoder(Cursor)


def _read_cursor(text: str) -> tuple[str, int]:
    try:
        cursor = _cursor.decode(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError, msgspec.DecodeError, RecursionError):
        raise Invalid({"cursor": "is not one that a page ended with"}) from None
    if not UUID_PATTERN.match(cursor.id):
        raise Invalid({"cursor": "does not name an id"})
    return cursor.id, cursor.limit


def _page_answer(answers: list[Any], limit: int, *, more: bool) -> dict[str, Any]:
    page: dict[str, Any] = {"list": answers, "limit": limit}
    if more:
        page["cursor"] = base64.b64encode(_encode(Cursor(answers[-1].id, limit))).decode()
    return page


def _series_answer(view: SeriesView) -> SeriesAnswer:
    series, numbering = view.series, view.series.numbering
    return SeriesAnswer(
        id=series.id,
        type=series.type,
        name=series.name,
        description=series.description,
        code=series.code,
        prefix=numbering.prefix,
        padding=numbering.padding,
        suffix=numbering.suffix,
        last_index=view.last_index,
        sigs=[series.sig] if series.sig else [],
        active=series.active,
        default=series.default,
        created_at=timestamp(series.created_at),
        updated_at=timestamp(series.updated_at),
        format=template(numbering),
        timezone=numbering.timezone,
        fiscal_year_start=numbering.fiscal_year_start,
        chronology=numbering.chronology,
        start=numbering.start,
        max_length=numbering.max_length,
        charset=numbering.charset,
        last_entry_id=view.last_entry_id,
    )


def _entry_answer(entry: Entry) -> EntryAnswer:
    return EntryAnswer(
        id=entry.id,
        series_id=entry.series,
        code=entry.code,
        position=entry.position,
        number=entry.number,
        date=entry.date,
        meta=msgspec.Raw(entry.meta),
        sigs=[sig for sig in (entry.sig, entry.receipt) if sig],
        created_at=timestamp(entry.created_at),
        updated_at=timestamp(_updated_at(entry)),
        previous_id=entry.previous_id,
        void=_void_answer(entry.void) if entry.void else None,
    )


def _issued(entry: Entry, replayed: bool) -> Response:  # noqa: FBT001 -- as the ledger answers
    return _json(_entry_answer(entry), headers={"Idempotent-Replayed": "true"} if replayed else {})


def _updated_at(entry: Entry) -> int:
    settled = entry.settled_at or entry.created_at
    return max(settled, entry.void.settled_at or entry.void.created_at) if entry.void else settled


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(_encode(content), status, headers, "application/json")
