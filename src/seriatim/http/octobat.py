"""The Octobat dialect, `/invoice_numbering_sequences` and `/credit_note_numbering_sequences`: form-encoded."""

from __future__ import annotations

import base64
import re
from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from seriatim.auth import Authenticator, Principal
from seriatim.definitions import Definitions, SeriesView
from seriatim.errors import BadRequest, Conflict, Invalid, NotFound, SeriatimError, TooLarge
from seriatim.formats import prefix
from seriatim.http.dialect import Dialect, json_response, operation
from seriatim.http.edge import read_body
from seriatim.http.fields import about, series_fields
from seriatim.messages import LABEL_BYTES_MAX, NO_CONTROL, or_empty, shown
from seriatim.model import SeriesFields, uuid_text

OBJECTS = ("invoice_numbering_sequence", "credit_note_numbering_sequence")
PREFIX = "oc_ns_"
ID = re.compile(rf"{PREFIX}([0-9a-f]{{32}})\Z")
FIELDS_MAX = 100
PAGE_DEFAULT = 10
PAGE_MAX = 100
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
CHANGING = (BadRequest, NotFound, TooLarge, Invalid)

EXAMPLE_ID = "oc_ns_a89043153d164a9591c130d6cdde553e"
Id = Annotated[str, shown("Id of the sequence.", EXAMPLE_ID, pattern=f"^{PREFIX}[0-9a-f]{{32}}$")]
Prefix = Annotated[
    str,
    shown(
        "What all numbers of the sequence begin with. At most 64 bytes.",
        "AAA-",
        minLength=1,
        maxLength=LABEL_BYTES_MAX["prefix"],
        pattern=NO_CONTROL,
    ),
]
Default = Annotated[bool, Meta(description="Whether it is the default one of its type.")]


def _neighbour(description: str) -> Meta:
    return shown(description, EXAMPLE_ID, pattern=or_empty(f"{PREFIX}[0-9a-f]{{32}}"))


class PageQuery(msgspec.Struct):
    """Which page of a list. Also taken from a form-encoded body of the GET."""

    limit: Annotated[int, Meta(ge=1, le=PAGE_MAX, description="How many it may have.")] = PAGE_DEFAULT
    starting_after: Annotated[str | None, _neighbour("The last of the page before.")] = None
    ending_before: Annotated[str | None, _neighbour("The first of the page behind.")] = None


class NewForm(msgspec.Struct, forbid_unknown_fields=True):
    """A sequence to create."""

    prefix: Prefix
    is_default: Default = False


class ChangeForm(msgspec.Struct, forbid_unknown_fields=True):
    """What to change of a sequence."""

    prefix: Prefix


class SequenceAnswer(msgspec.Struct):
    """A numbering sequence; `next_number` is the next code."""

    id: Id
    object: Annotated[str, shown("What this is.", enum=OBJECTS)]
    prefix: Annotated[str, Meta(examples=["AAA-"])]
    is_default: Default
    next_number: Annotated[str, Meta(examples=["AAA-1"])]


class ListAnswer(msgspec.Struct):
    """A page of sequences, oldest first."""

    object: Literal["list"]
    has_more: Annotated[bool, Meta(description="Whether there are some behind this page.")]
    has_before: Annotated[bool, Meta(description="Whether there are some before it.")]
    total_count: Annotated[int, Meta(ge=0, description="How many there are in all.")]
    request_url: Annotated[str, Meta(examples=["/invoice_numbering_sequences"])]
    data: list[SequenceAnswer]


class DetailAnswer(msgspec.Struct):
    """One thing that is wrong."""

    details: str


class ErrorAnswer(msgspec.Struct):
    """Why a request was refused: by field, or `global`; beside them `message`, a sentence."""

    errors: Annotated[
        dict[str, list[DetailAnswer] | str],
        shown("By field.", {"prefix": [{"details": "is missing"}], "message": "Correct these fields."}),
    ]


class Octobat(Dialect):
    """The endpoints of the dialect, for one type of document."""

    name = "octobat"
    body_type = "application/x-www-form-urlencoded"
    challenge = 'Basic realm="seriatim"'
    security: ClassVar = {
        "type": "http",
        "scheme": "basic",
        "description": "The API key is the user name; the password is empty.",
    }
    error = ErrorAnswer
    ids: ClassVar = {"invoice_numbering_sequences": Id, "credit_note_numbering_sequences": Id}
    trailing_slash = True

    def __init__(self, kind: str, definitions: Definitions, authenticator: Authenticator, body_bytes_max: int) -> None:
        self._base = f"/{kind}_numbering_sequences"
        super().__init__([self._base], authenticator)
        self._kind = kind
        self._definitions = definitions
        self._body_bytes_max = body_bytes_max

    def credentials(self, header: str) -> str:
        """Returns the user name of a Basic header without a password (RFC 7617)."""
        scheme, _, encoded = header.partition(" ")
        if scheme.lower() != "basic":
            return ""
        try:
            user, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
        except ValueError:  # not base64, or not UTF-8 in it
            return ""
        return "" if password else user

    def error_content(self, error: SeriatimError) -> Any:
        """Returns an error in this dialect's shape."""
        # Beside the fields stands `message`: a field of that name is told in it alone.
        wrong = {name: why for name, why in error.fields.items() if name != "message"} or {"global": error.message}
        details: dict[str, list[DetailAnswer] | str] = {name: [DetailAnswer(why)] for name, why in wrong.items()}
        return ErrorAnswer(details | {"message": error.message})

    def error_status(self, error: SeriatimError) -> int:
        """Returns the status that stands for an error: this dialect knows no 409."""
        return Invalid.status if isinstance(error, Conflict) else error.status

    @operation("GET", "", "read", query=PageQuery, answer=ListAnswer, refusals=(BadRequest, TooLarge, Invalid))
    async def list_sequences(self, request: Request, principal: Principal) -> Response:
        """Lists the company's sequences, oldest first."""
        said = await self._form(request) | dict(request.query_params)
        limit, after, before = _page(said)
        ids = await self._definitions.ids(principal.company, self._kind)
        if after is not None:
            first = _index(ids, after, "starting_after") + 1
        elif before is not None:
            first = max(0, _index(ids, before, "ending_before") - limit)
            limit = min(limit, _index(ids, before, "ending_before"))
        else:
            first = 0
        page = ids[first : first + limit]
        answer = ListAnswer(
            object="list",
            has_more=first + len(page) < len(ids),
            has_before=first > 0,
            total_count=len(ids),
            request_url=self._base,
            data=[self._answer(view) for view in await self._definitions.some_series(page)],
        )
        return json_response(answer)

    @operation(
        "POST", "", "manage", body=NewForm, answer=SequenceAnswer, refusals=(BadRequest, Conflict, TooLarge, Invalid)
    )
    async def create(self, request: Request, principal: Principal) -> Response:
        """Creates a sequence."""
        said = await self._form(request)
        wrong = _check_names(said, ("prefix", "is_default")) | _check_prefix(said)
        default = BOOLEANS.get(said.get("is_default", "false").lower())
        if default is None:
            wrong["is_default"] = "must be true or false"
        if wrong:
            raise Invalid(wrong)
        fields = series_fields({"type": self._kind, "prefix": said["prefix"], "default": default})
        return json_response(self._answer(await self._definitions.create(principal.company, fields)))

    @operation("GET", "/{id}", "read", answer=SequenceAnswer, refusals=(NotFound,))
    async def get(self, request: Request, principal: Principal) -> Response:
        """Fetches a sequence."""
        return json_response(self._answer(await self._own(request, principal)))

    @operation("PATCH", "/{id}", "manage", body=ChangeForm, answer=SequenceAnswer, refusals=CHANGING)
    async def change(self, request: Request, principal: Principal) -> Response:
        """Changes the prefix of a sequence, which its first entry fixes."""
        view = await self._own(request, principal)
        said = await self._form(request)
        wrong = _check_names(said, ("prefix",)) | _check_prefix(said)
        if wrong:
            raise Invalid(wrong)
        if said["prefix"] != prefix(view.series.numbering):
            fields = series_fields({"prefix": said["prefix"]})
            try:
                view = await self._definitions.update(principal.company, view.series.id, fields)
            except Conflict as fixed:
                raise Invalid({"prefix": fixed.message}) from fixed
            except Invalid as refused:
                raise about("prefix", refused) from refused
        return json_response(self._answer(view))

    @operation("PATCH", "/{id}/default", "manage", answer=SequenceAnswer, refusals=(NotFound,))
    async def set_default(self, request: Request, principal: Principal) -> Response:
        """Makes a sequence the default one."""
        view = await self._own(request, principal)
        fields = SeriesFields(default=True)
        return json_response(self._answer(await self._definitions.update(principal.company, view.series.id, fields)))

    async def _own(self, request: Request, principal: Principal) -> SeriesView:
        match = ID.match(request.path_params["id"])
        if match:
            with suppress(NotFound):
                view = await self._definitions.get(principal.company, uuid_text(bytes.fromhex(match[1])))
                if view.series.type == self._kind:
                    return view
        raise NotFound("There is no such numbering sequence. Check the id.")

    async def _form(self, request: Request) -> dict[str, str]:
        body = await read_body(request, self._body_bytes_max)
        try:
            return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="strict"))
        except ValueError as error:
            raise BadRequest(f"The body is not form-encoded: {error}.") from error

    def _answer(self, view: SeriesView) -> SequenceAnswer:
        series = view.series
        return SequenceAnswer(
            id=PREFIX + series.id.replace("-", ""),
            object=f"{self._kind}_numbering_sequence",
            prefix=prefix(series.numbering),
            is_default=series.default,
            next_number=view.next_code,
        )


def _check_names(said: dict[str, str], known: tuple[str, ...]) -> dict[str, str]:
    return {name[:64]: "is not a field of this request" for name in said if name not in known}


def _check_prefix(said: dict[str, str]) -> dict[str, str]:
    return {} if said.get("prefix") else {"prefix": "is missing"}


def _page(said: dict[str, str]) -> tuple[int, str | None, str | None]:
    text = said.get("limit", str(PAGE_DEFAULT))
    limit = int(text) if text.isascii() and text.isdecimal() and len(text) <= len(str(PAGE_MAX)) else 0
    if not 1 <= limit <= PAGE_MAX:
        raise Invalid({"limit": f"must be a number from 1 to {PAGE_MAX}"})
    after, before = said.get("starting_after"), said.get("ending_before")
    if after and before:
        raise Invalid({"ending_before": "cannot be given together with starting_after"})
    return limit, after or None, before or None


def _index(ids: list[str], wanted: str, name: str) -> int:
    match = ID.match(wanted)
    try:
        return ids.index(uuid_text(bytes.fromhex(match[1]))) if match else ids.index("")
    except ValueError:
        raise Invalid({name: "names no sequence"}) from None
