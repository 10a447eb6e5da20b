"""The sequence dialect (Invopop's), `/sequence/v1`: the native one."""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import Annotated, Any, ClassVar, Literal, cast

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from seriatim.auth import Authenticator, Principal
from seriatim.definitions import Definitions, SeriesView, preview_new
from seriatim.errors import BadRequest, Conflict, Invalid, NotFound, SeriatimError, TooLarge
from seriatim.formats import Preview, template
from seriatim.http.dialect import BEARER, Dialect, bearer, json_response, no_content, operation
from seriatim.http.edge import decode, read_body
from seriatim.http.fields import check_day, check_meta, check_reason, check_sig, check_type, series_fields
from seriatim.ledger import Ledger, Wanted
from seriatim.messages import (
    BATCH_MAX,
    EXAMPLE_ID,
    META_BYTES_MAX,
    META_KEY_BYTES_MAX,
    META_KEYS_MAX,
    META_VALUE_BYTES_MAX,
    PAGE_DEFAULT,
    PAGE_MAX,
    UUID,
    BatchAnswer,
    BatchBody,
    EntryAnswer,
    EntryBody,
    EntryPage,
    ErrorAnswer,
    LineAnswer,
    PageQuery,
    RangeAnswer,
    ReportAnswer,
    ReportQuery,
    SeriesAnswer,
    SeriesBody,
    SeriesPage,
    SkipAnswer,
    SkipBody,
    SkippedAnswer,
    TypeQuery,
    VoidAnswer,
    VoidBody,
    shown,
)
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
from seriatim.report import Line

BATCH_BYTES_MAX = 4 * 1024 * 1024
WRITING = (BadRequest, NotFound, TooLarge, Invalid)
CHANGING = (*WRITING, Conflict)
READING = (NotFound, Invalid)
REPLAYED = {"Idempotent-Replayed": Annotated[Literal["true"], Meta(description="When the id was issued before.")]}
SERIES = Annotated[SeriesBody, Meta(examples=[{"name": "Sales", "format": "INV-%yearLong%-%incYearly%", "padding": 5}])]
ENTRY = Annotated[EntryBody, Meta(examples=[{"meta": {"order": "A-1001"}}])]


class PlainBody(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What most entries are asked for with."""

    meta: Annotated[
        dict[
            Annotated[str, Meta(min_length=1, max_length=META_KEY_BYTES_MAX)],
            Annotated[str, Meta(max_length=META_VALUE_BYTES_MAX)],
        ],
        Meta(max_length=META_KEYS_MAX),
    ] = {}


_series_body = msgspec.json.Decoder(SeriesBody)
_entry_body = msgspec.json.Decoder(EntryBody)
_plain_body = msgspec.json.Decoder(PlainBody)
_batch_body = msgspec.json.Decoder(BatchBody)
_void_body = msgspec.json.Decoder(VoidBody)
_skip_body = msgspec.json.Decoder(SkipBody)


class Sequence(Dialect):
    """The endpoints of the dialect. A path with a slash behind it is unknown, not elsewhere."""

    name = "sequence"
    challenge = "Bearer"
    security: ClassVar = BEARER
    error = ErrorAnswer
    ids: ClassVar = {
        "series": Annotated[str, shown("UUID of the series, of any version.", EXAMPLE_ID, pattern=f"^{UUID}$")],
        "entries": Annotated[str, shown("UUID of the entry, of any version.", EXAMPLE_ID, pattern=f"^{UUID}$")],
    }
    takes_tokens = True

    def __init__(
        self, definitions: Definitions, ledger: Ledger, authenticator: Authenticator, body_bytes_max: int
    ) -> None:
        super().__init__(["/sequence/v1"], authenticator)
        self._definitions = definitions
        self._ledger = ledger
        self._body_bytes_max = body_bytes_max

    def credentials(self, header: str) -> str:
        """Returns the token or API key of a Bearer header."""
        return bearer(header)

    def error_content(self, error: SeriatimError) -> ErrorAnswer:
        """Returns an error in this dialect's shape."""
        return ErrorAnswer(error.code, error.message, error.fields)

    @operation(
        "PUT",
        "/series/{series_id}/entries/{id}",
        "allocate",
        body=ENTRY,
        answer=EntryAnswer,
        headers=REPLAYED,
        refusals=CHANGING,
    )
    async def put_entry(self, request: Request, principal: Principal) -> Response:
        """Issues the next number, or answers what the id was issued."""
        series_id = parse_uuid(request.path_params["series_id"], "series")
        wanted = await self._read_entry(request, {})
        return _issued(*await self._ledger.put_entry(principal.company, series_id, wanted))

    @operation(
        "PUT",
        "/entries/{id}",
        "allocate",
        query=TypeQuery,
        body=ENTRY,
        answer=EntryAnswer,
        headers=REPLAYED,
        refusals=CHANGING,
    )
    async def put_default_entry(self, request: Request, principal: Principal) -> Response:
        """Issues the next number of the company's default series of a type."""
        kind = request.query_params.get("type") or "invoice"
        wanted = await self._read_entry(request, check_type(kind))
        return _issued(*await self._ledger.put_default_entry(principal.company, kind, wanted))

    async def _read_entry(self, request: Request, also_wrong: dict[str, str]) -> Wanted:
        entry_id = _own_uuid(request.path_params["id"])
        return read_entry(entry_id, await read_body(request, self._body_bytes_max), also_wrong)

    @operation("GET", "/series", "read", query=PageQuery, answer=SeriesPage, refusals=(Invalid,))
    async def list_series(self, request: Request, principal: Principal) -> Response:
        """Fetches the company's series, oldest first."""
        after, limit = _page(request)
        listed, more = await self._definitions.list_series(principal.company, after, limit)
        answers = [_series_answer(view) for view in listed]
        return json_response(SeriesPage(answers, limit, _cursor_after(answers, limit) if more else None))

    @operation("POST", "/series/preview", "read", body=SERIES, answer=Preview, refusals=(BadRequest, TooLarge, Invalid))
    async def preview_new(self, request: Request, _principal: Principal) -> Response:
        """Checks a series without creating it, and shows its first codes."""
        body = decode(await read_body(request, self._body_bytes_max), _series_body)
        fields = _series_fields(body)
        return json_response(await asyncio.to_thread(preview_new, fields, await self._definitions.time()))

    @operation("GET", "/series/{id}", "read", answer=SeriesAnswer, refusals=(NotFound,))
    async def get_series(self, request: Request, principal: Principal) -> Response:
        """Fetches a series."""
        series_id = parse_uuid(request.path_params["id"], "series")
        return json_response(_series_answer(await self._definitions.get(principal.company, series_id)))

    @operation("PUT", "/series/{id}", "manage", body=SERIES, answer=SeriesAnswer, refusals=CHANGING)
    async def put_series(self, request: Request, principal: Principal) -> Response:
        """Creates a series, or changes it."""
        series_id = _own_uuid(request.path_params["id"])
        body = decode(await read_body(request, self._body_bytes_max), _series_body)
        _check_same_id(body.id, series_id)
        fields = _series_fields(body)
        return json_response(_series_answer(await self._definitions.put(principal.company, series_id, fields)))

    @operation("DELETE", "/series/{id}", "manage", status=204, refusals=(NotFound, Conflict))
    async def delete_series(self, request: Request, principal: Principal) -> Response:
        """Deletes a series that has no records."""
        series_id = parse_uuid(request.path_params["id"], "series")
        await self._definitions.delete(principal.company, series_id, principal.actor)
        return no_content()

    @operation("POST", "/series/{id}/skip", "manage", body=SkipBody, answer=SkipAnswer, refusals=WRITING)
    async def skip(self, request: Request, principal: Principal) -> Response:
        """Raises a counter; what is left out is recorded as explained."""
        series_id = parse_uuid(request.path_params["id"], "series")
        body = decode(await read_body(request, self._body_bytes_max), _skip_body)
        wrong = check_reason(body.reason)
        if body.to is None or not 1 <= body.to <= COUNTER_MAX:
            wrong["to"] = "must be the number that is to be next, 1 to 2^53 - 1"
        if wrong:
            raise Invalid(wrong)
        why = Why(body.reason or "", principal.actor)
        counter, skip = await self._ledger.skip(principal.company, series_id, body.counter, body.to or 0, why)
        answer = SkipAnswer(series_id, counter, body.to or 0)
        return json_response(_with_skip(answer, skip) if skip else answer)

    @operation("GET", "/series/{id}/report", "read", query=ReportQuery, answer=ReportAnswer, refusals=READING)
    async def report(self, request: Request, principal: Principal) -> Response:
        """Tells what became of every number."""
        series_id = parse_uuid(request.path_params["id"], "series")
        wrong: dict[str, str] = {}
        first, last = (check_day(request.query_params.get(name), name, wrong) for name in ("from", "to"))
        if wrong:
            raise Invalid(wrong)
        lines = await self._ledger.report(principal.company, series_id, first, last)
        return json_response(ReportAnswer(series_id, [_line_answer(line) for line in lines]))

    @operation("GET", "/series/{id}/preview", "read", answer=Preview, refusals=(NotFound,))
    async def preview(self, request: Request, principal: Principal) -> Response:
        """Shows the next codes of a series."""
        series_id = parse_uuid(request.path_params["id"], "series")
        return json_response(await self._definitions.preview(principal.company, series_id))

    @operation(
        "POST",
        "/series/{series_id}/entries",
        "allocate",
        body=BatchBody,
        answer=BatchAnswer,
        refusals=CHANGING,
    )
    async def put_batch(self, request: Request, principal: Principal) -> Response:
        """Issues one contiguous run of numbers, or none."""
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
        return json_response(BatchAnswer([entry_answer(entry) for entry, _ in issued]))

    @operation("GET", "/series/{series_id}/entries", "read", query=PageQuery, answer=EntryPage, refusals=READING)
    async def list_entries(self, request: Request, principal: Principal) -> Response:
        """Fetches the entries of a series, oldest first."""
        series_id = parse_uuid(request.path_params["series_id"], "series")
        after, limit = _page(request)
        listed, more = await self._ledger.entries(principal.company, series_id, after, limit)
        answers = [entry_answer(entry) for entry in listed]
        return json_response(EntryPage(series_id, answers, limit, _cursor_after(answers, limit) if more else None))

    @operation("GET", "/series/{series_id}/entries/{id}", "read", answer=EntryAnswer, refusals=(NotFound,))
    async def get_entry(self, request: Request, principal: Principal) -> Response:
        """Fetches an entry."""
        series_id = parse_uuid(request.path_params["series_id"], "series")
        entry_id = parse_uuid(request.path_params["id"], "entry")
        return json_response(entry_answer(await self._ledger.entry(principal.company, series_id, entry_id)))

    @operation(
        "POST", "/series/{series_id}/entries/{id}/void", "allocate", body=VoidBody, answer=EntryAnswer, refusals=WRITING
    )
    async def void(self, request: Request, principal: Principal) -> Response:
        """Voids an entry; its number stays used."""
        series_id = parse_uuid(request.path_params["series_id"], "series")
        entry_id = parse_uuid(request.path_params["id"], "entry")
        body = decode(await read_body(request, self._body_bytes_max), _void_body)
        wrong = check_reason(body.reason)
        if wrong:
            raise Invalid(wrong)
        why = Why(body.reason or "", principal.actor)
        return json_response(entry_answer(await self._ledger.void(principal.company, series_id, entry_id, why)))


def _series_fields(body: SeriesBody) -> SeriesFields:
    said = msgspec.structs.asdict(body)
    del said["id"]
    return series_fields(said)


def read_entry(entry_id: str, body: bytes, also_wrong: dict[str, str]) -> Wanted:
    """Returns the entry that a body asks for.

    Raises:
        BadRequest, Invalid.
    """
    meta = _plain_meta(body)
    if meta is not None and not also_wrong:
        return Wanted(entry_id, meta)
    read = decode(body, _entry_body)
    _check_same_id(read.id, entry_id)
    wrong: dict[str, str] = {}
    wanted = _wanted(entry_id, read, wrong, "")
    wrong |= also_wrong
    if wrong:
        raise Invalid(wrong)
    return wanted


def _plain_meta(body: bytes) -> bytes | None:
    """Returns the canonical meta of a body that has nothing else, if it is sure to be within its limits.

    They are in bytes. The decoder knows characters, which are the same in ASCII; others may be in values that are too
    short for it to matter.
    """
    if len(body) > META_BYTES_MAX or b"\\u" in body:
        return None
    try:
        meta = _plain_body.decode(body).meta
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if body.isascii() or (len(body) <= META_VALUE_BYTES_MAX and all(map(str.isascii, meta))):
        return canonical_meta(meta)
    return None


def _wanted(entry_id: str, body: EntryBody, wrong: dict[str, str], place: str) -> Wanted:
    """Returns what a request asks for, or notes what is wrong with it, under names that begin with `place`."""
    mistakes = check_meta(body.meta or {}) | check_sig(body.sig)
    day = check_day(body.date, "date", mistakes)
    wrong |= {f"{place}{name}": why for name, why in mistakes.items()}
    meta = b"{}" if mistakes else canonical_meta(body.meta or {})
    return Wanted(entry_id, meta, body.sig or None, day)


def _with_skip(answer: SkipAnswer, skip: Skip) -> SkipAnswer:
    said = msgspec.structs.asdict(_skipped_answer(skip))
    return msgspec.structs.replace(answer, period=skip.period, **said)


def _skipped_answer(skip: Skip) -> SkippedAnswer:
    return SkippedAnswer(skip.first, skip.last, skip.reason, skip.actor, timestamp(skip.created_at))


def _line_answer(line: Line) -> LineAnswer:
    return LineAnswer(
        counter=line.counter,
        period=line.period,
        first=line.first,
        last=line.last,
        issued=line.issued,
        voided=line.voided,
        skipped=[_skipped_answer(skip) for skip in line.skipped],
        missing=[RangeAnswer(begin, end) for begin, end in line.missing],
    )


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


def _cursor_after(answers: list[Any], limit: int) -> str:
    return base64.b64encode(msgspec.json.encode(Cursor(answers[-1].id, limit))).decode()


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
        last_entry_id=view.state.last_id,
    )


def entry_answer(entry: Entry) -> EntryAnswer:
    """Returns an entry as it is answered."""
    created_at, updated_at = timestamp(entry.created_at), _updated_at(entry)
    return EntryAnswer(
        id=entry.id,
        series_id=entry.series,
        code=entry.code,
        position=entry.position,
        number=entry.number,
        date=entry.date,
        meta=cast("dict[str, str]", msgspec.Raw(entry.meta)),  # as it is kept, without decoding it
        sigs=[sig for sig in (entry.sig, entry.receipt) if sig],
        created_at=created_at,
        updated_at=created_at if updated_at == entry.created_at else timestamp(updated_at),
        previous_id=entry.previous_id,
        void=_void_answer(entry.void) if entry.void else None,
    )


def _issued(entry: Entry, replayed: bool) -> Response:  # noqa: FBT001 -- as the ledger answers
    return json_response(entry_answer(entry), headers={"Idempotent-Replayed": "true"} if replayed else {})


def _updated_at(entry: Entry) -> int:
    settled = entry.settled_at or entry.created_at
    return max(settled, entry.void.settled_at or entry.void.created_at) if entry.void else settled
