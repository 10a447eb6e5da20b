"""The DreamApply dialect, `/api/v9/invoices/series` (and v8): series of type invoice, to read."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from seriatim.auth import Authenticator, Principal
from seriatim.definitions import Definitions, SeriesView
from seriatim.errors import SeriatimError
from seriatim.formats import template
from seriatim.http.dialect import Dialect, json_response, operation
from seriatim.ledger import Ledger
from seriatim.messages import shown
from seriatim.model import Entry

AUTHORIZATION = re.compile(r'DREAM\s+apikey\s*=\s*(?:"([^"]*)"|([^\s",]+))\s*\Z', re.IGNORECASE)


class LastAnswer(msgspec.Struct):
    """The last number of a series, and when it was issued."""

    when: Annotated[str, shown("ISO 8601, in UTC.", "2025-10-21T07:02:40+00:00", format="date-time")]
    number: Annotated[str, Meta(description="The number as it goes on the document.", examples=["TF-9211025"])]


class SeriesAnswer(msgspec.Struct):
    """A series."""

    id: Annotated[int, Meta(ge=1, description="1, 2, 3 ... in the order of creation.")]
    name: Annotated[str, Meta(examples=["Tuition fee"])]
    format: Annotated[
        str, Meta(description="Literals and markers.", examples=["TF-%incYearly%%day%%month%%yearShort%"])
    ]
    last: LastAnswer | None


class ErrorAnswer(msgspec.Struct, omit_defaults=True):
    """Why a request was refused."""

    code: Annotated[str, Meta(description="A word for programs.")]
    message: Annotated[str, Meta(description="A sentence for people.")]
    fields: Annotated[dict[str, str], Meta(description="Which fields are wrong, and why.")] = {}


class DreamApply(Dialect):
    """The endpoints of the dialect."""

    name = "dreamapply"
    challenge = "DREAM"
    security: ClassVar = {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": 'The header reads `DREAM apikey="..."`.',
    }
    error = ErrorAnswer

    def __init__(self, definitions: Definitions, ledger: Ledger, authenticator: Authenticator) -> None:
        super().__init__(["/api/v9", "/api/v8"], authenticator)
        self._definitions = definitions
        self._ledger = ledger

    def credentials(self, header: str) -> str:
        """Returns the API key of a header `DREAM apikey="..."`."""
        match = AUTHORIZATION.match(header)
        return (match[1] or match[2] or "") if match else ""

    def error_content(self, error: SeriatimError) -> Any:
        """Returns an error in this dialect's shape."""
        return ErrorAnswer(error.code, error.message, error.fields)

    @operation(
        "GET",
        "/invoices/series",
        "read",
        answer=dict[str, SeriesAnswer],
        headers={"X-Count": Annotated[int, Meta(ge=0, description="Number of returned series.", examples=[15])]},
    )
    async def list_series(self, _request: Request, principal: Principal) -> Response:
        """Lists the company's invoice series by their ids."""
        views = await self._definitions.all_series(principal.company, "invoice")
        last = await self._ledger.last_entries(views)
        answers = {str(view.series.ordinal): _answer(view, last.get(view.series.id)) for view in views}
        return json_response(answers, headers={"X-Count": str(len(answers))})


def _answer(view: SeriesView, last: Entry | None) -> SeriesAnswer:
    series = view.series
    shown = LastAnswer(datetime.fromtimestamp(last.created_at // 1000, UTC).isoformat(), last.code) if last else None
    return SeriesAnswer(series.ordinal, series.name, template(series.numbering), shown)
