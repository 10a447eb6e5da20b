"""The Storno dialect, `/api/v1/document-series`: series of all types, with the numbers of today's period."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from seriatim.auth import Authenticator, Principal
from seriatim.definitions import Definitions, SeriesView
from seriatim.errors import BadRequest, Conflict, Invalid, NotFound, SeriatimError, TooLarge
from seriatim.formats import prefix
from seriatim.http.dialect import BEARER, Dialect, bearer, json_response, no_content, operation
from seriatim.http.edge import decode, read_body
from seriatim.http.fields import about, series_fields
from seriatim.ledger import Ledger
from seriatim.messages import EXAMPLE_ID, LABEL_BYTES_MAX, NO_CONTROL, UUID, shown
from seriatim.model import COUNTER_MAX, SeriesFields, Why, parse_uuid, timestamp

TYPES = ("invoice", "proforma", "credit_note", "delivery_note")
CHANGING = (BadRequest, NotFound, TooLarge, Invalid)
WORDS = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "bad_request",
    422: "validation_error",
    429: "rate_limited",
    500: "internal_error",
    503: "unavailable",
}
LAST_MAX = COUNTER_MAX - 1
Id = Annotated[str, shown("UUID of the series.", EXAMPLE_ID, format="uuid", pattern=f"^{UUID}$")]
Kind = Annotated[str, Meta(description="Type of document.", examples=["invoice"])]
Prefix = Annotated[str, Meta(description="What all numbers of the series begin with.", examples=["FAC"])]
Time = Annotated[str, shown("ISO 8601, in UTC.", "2026-02-16T10:30:00Z", format="date-time")]
Refused = Annotated[Any | UnsetType, Meta(extra_json_schema={"refused": True})]
"""Of a field that is known, to be refused in words of its own."""
Number = Annotated[int | None, shown("The last used number.", 245, minimum=0, maximum=LAST_MAX)]


class TypeQuery(msgspec.Struct):
    """Of which type of document; of all unless given."""

    type: Annotated[str | None, shown("Type of document; all unless given.", "invoice", enum=TYPES)] = None


class NewBody(msgspec.Struct, forbid_unknown_fields=True):
    """A series to create."""

    prefix: Annotated[
        str | None,
        shown(
            "What all numbers of the series begin with. At most 64 bytes, and no other series of the type has it.",
            "FAC",
            minLength=1,
            maxLength=LABEL_BYTES_MAX["prefix"],
            pattern=NO_CONTROL,
            needed=True,
        ),
    ] = None
    type: Annotated[str | None, shown("Type of document.", "invoice", enum=TYPES, needed=True)] = None
    currentNumber: Number = None  # noqa: N815 -- as the dialect names it, here and below
    active: bool | None = None


class ChangeBody(msgspec.Struct, forbid_unknown_fields=True):
    """What to change of a series; `prefix` and `type` are fixed."""

    currentNumber: Number = None  # noqa: N815
    active: bool | None = None
    prefix: Refused = UNSET
    type: Refused = UNSET


class SeriesAnswer(msgspec.Struct):
    """A series; its numbers are those of today's period."""

    id: Id
    uuid: Id
    prefix: Prefix
    type: Kind
    currentNumber: Annotated[int, Meta(ge=0, description="The last used number.", examples=[245])]  # noqa: N815
    nextNumber: Annotated[int, Meta(ge=1, description="The next number.", examples=[246])]  # noqa: N815
    active: Annotated[bool, Meta(description="Whether it issues numbers.")]
    isDefault: Annotated[bool, Meta(description="Whether it is the default one of its type.")]  # noqa: N815
    createdAt: Time  # noqa: N815
    updatedAt: Time  # noqa: N815


class ErrorAnswer(msgspec.Struct, omit_defaults=True):
    """Why a request was refused."""

    error: Annotated[str, Meta(description="A word for programs.")]
    message: Annotated[str, Meta(description="A sentence for people.")]
    code: Annotated[int, Meta(description="The status.")]
    errors: Annotated[dict[str, str], Meta(description="Which fields are wrong, and why.")] = {}


_new_body = msgspec.json.Decoder(NewBody)
_change_body = msgspec.json.Decoder(ChangeBody)


class Storno(Dialect):
    """The endpoints of the dialect."""

    name = "storno"
    challenge = "Bearer"
    security: ClassVar = BEARER
    error = ErrorAnswer
    ids: ClassVar = {"document-series": Id}
    takes_tokens = True
    names_company = True

    def __init__(
        self, definitions: Definitions, ledger: Ledger, authenticator: Authenticator, body_bytes_max: int
    ) -> None:
        super().__init__(["/api/v1"], authenticator)
        self._definitions = definitions
        self._ledger = ledger
        self._body_bytes_max = body_bytes_max

    def credentials(self, header: str) -> str:
        """Returns the token or API key of a Bearer header."""
        return bearer(header)

    def error_content(self, error: SeriatimError) -> Any:
        """Returns an error in this dialect's shape."""
        return ErrorAnswer(WORDS[error.status], error.message, error.status, error.fields)

    @operation("GET", "/document-series", "read", query=TypeQuery, answer=list[SeriesAnswer], refusals=(Invalid,))
    async def list_series(self, request: Request, principal: Principal) -> Response:
        """Lists the company's series: active ones first, then by prefix."""
        kind = request.query_params.get("type")
        if kind is not None and kind not in TYPES:
            raise Invalid({"type": f"must be one of {', '.join(TYPES)}"})
        answers = [_answer(view) for view in await self._definitions.all_series(principal.company, kind)]
        return json_response(sorted(answers, key=lambda one: (not one.active, one.prefix)))

    @operation(
        "POST",
        "/document-series",
        "manage",
        body=NewBody,
        answer=SeriesAnswer,
        status=201,
        refusals=(BadRequest, Conflict, TooLarge, Invalid),
    )
    async def create(self, request: Request, principal: Principal) -> Response:
        """Creates a series. Its prefix is that of no other series of the company and type."""
        body = decode(await read_body(request, self._body_bytes_max), _new_body)
        wrong = _check_number(body.currentNumber)
        if not body.prefix:
            wrong["prefix"] = "is missing"
        if body.type not in TYPES:
            wrong["type"] = f"must be one of {', '.join(TYPES)}"
        if wrong:
            raise Invalid(wrong)
        said = {"prefix": body.prefix, "type": body.type, "active": body.active}
        fields = series_fields(said | ({"start": body.currentNumber + 1} if body.currentNumber else {}))
        view = await self._definitions.create(principal.company, fields, lone_prefix=True)
        return json_response(_answer(view), 201)

    @operation(
        "PATCH",
        "/document-series/{uuid}",
        "manage",
        body=ChangeBody,
        answer=SeriesAnswer,
        refusals=(*CHANGING, Conflict),
    )
    async def change(self, request: Request, principal: Principal) -> Response:
        """Changes a series. To raise the current number of a used one leaves out numbers, which is recorded."""
        series_id = parse_uuid(request.path_params["uuid"], "series")
        body = decode(await read_body(request, self._body_bytes_max), _change_body)
        wrong = _check_number(body.currentNumber)
        wrong |= {
            name: "is fixed. Create another series" for name in ("prefix", "type") if getattr(body, name) is not UNSET
        }
        if not wrong and body.currentNumber is None and body.active is None:
            wrong = {"currentNumber": "is missing, as is active: nothing is to be changed"}
        if wrong:
            raise Invalid(wrong)
        view = await self._definitions.get(principal.company, series_id)
        if body.currentNumber is not None:
            try:
                await self._set_number(principal, view, body.currentNumber)
            except Invalid as refused:
                raise about("currentNumber", refused, "to") from refused
        if body.active is not None and body.active != view.series.active:
            await self._definitions.update(principal.company, series_id, SeriesFields(active=body.active))
        return json_response(_answer(await self._definitions.get(principal.company, series_id)))

    async def _set_number(self, principal: Principal, view: SeriesView, number: int) -> None:
        series = view.series
        if not view.used:
            try:
                await self._definitions.update(principal.company, series.id, SeriesFields(start=number + 1))
            except Conflict:  # the first entry came in between
                view = await self._definitions.get(principal.company, series.id)
            else:
                return
        current = view.next_number - 1
        if number < current:
            raise Invalid({"currentNumber": f"is below {current}, which the series has reached"})
        if number > current:
            why = Why(f"currentNumber raised to {number}", principal.actor)
            await self._ledger.skip(principal.company, series.id, None, number + 1, why)

    @operation(
        "POST", "/document-series/{uuid}/set-default", "manage", answer=SeriesAnswer, refusals=(NotFound, Conflict)
    )
    async def set_default(self, request: Request, principal: Principal) -> Response:
        """Makes a series the default one of its company and type."""
        series_id = parse_uuid(request.path_params["uuid"], "series")
        return json_response(
            _answer(await self._definitions.update(principal.company, series_id, SeriesFields(default=True)))
        )

    @operation("DELETE", "/document-series/{uuid}", "manage", status=204, refusals=(NotFound, Conflict))
    async def delete(self, request: Request, principal: Principal) -> Response:
        """Deletes a series that has no entries."""
        series_id = parse_uuid(request.path_params["uuid"], "series")
        await self._definitions.delete(principal.company, series_id, principal.actor)
        return no_content()


def _check_number(number: int | None) -> dict[str, str]:
    if number is None or 0 <= number <= LAST_MAX:
        return {}
    return {"currentNumber": "must be a number from 0 to 2^53 - 2"}


def _answer(view: SeriesView) -> SeriesAnswer:
    series = view.series
    return SeriesAnswer(
        id=series.id,
        uuid=series.id,
        prefix=prefix(series.numbering),
        type=series.type,
        currentNumber=view.next_number - 1,
        nextNumber=view.next_number,
        active=series.active,
        isDefault=series.default,
        createdAt=_time(series.created_at),
        updatedAt=_time(series.updated_at),
    )


def _time(ms: int) -> str:
    return timestamp(ms)[: len("2026-01-01T00:00:00")] + "Z"
