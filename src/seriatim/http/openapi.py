"""The description of the API as OpenAPI 3.1, made from the operations of the dialects and their types. Pure."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from seriatim import __version__
from seriatim.errors import Busy, Forbidden, Invalid, SeriatimError, Unauthorized, Unavailable
from seriatim.http.dialect import Dialect, Dialects, Operation
from seriatim.messages import shown

EVERYWHERE = (Unauthorized, Forbidden, Busy, SeriatimError, Unavailable)
"""What any operation may be refused with."""
OUR_FAULT = "Seriatim has failed. After an allocation its outcome is unknown; repeating it with the same id is safe."
ID = re.compile(r"(?P<before>[a-z_-]+)/\{(?P<name>\w+)\}")
JSON = "application/json"
SERVICE = "service"
ABOUT = """\
Seriatim hands out gap-free, sequential document numbers, and proves afterwards that none was lost, repeated or altered.

It speaks four dialects over one set of series. **sequence** is the native one; the others are for programs that were
written for other products. A 4xx consumes no number. After a 5xx or a broken connection the outcome is unknown:
repeat the same request, with the same id.
"""

RequestId = Annotated[str, Meta(description="The request's own `X-Request-Id`, or the one that it was given.")]
RetryAfter = Annotated[int, Meta(ge=1, description="Seconds after which to repeat the request.", examples=[1])]
Company = Annotated[
    str, shown("UUID of the company for which to act; the first of the key's or token's unless given.", format="uuid")
]
NamedCompany = Annotated[str, shown("UUID of the company for which to act.", format="uuid")]

NULL = {"type": "null"}

Schema = dict[str, Any]


class Plain(msgspec.Struct, frozen=True):
    """A GET of the service itself, for anybody; `answers` are types by status."""

    path: str
    endpoint: Callable[[Request], Awaitable[Response]]
    answers: Mapping[int, Any]
    media_type: str = JSON


def describe(dialects: Dialects, plain: Sequence[Plain]) -> dict[str, Any]:
    """Returns the OpenAPI document of all dialects and of the service itself."""
    document = _Document()
    for dialect in dialects.all:
        document.add_dialect(dialect)
    document.content["tags"].append({"name": SERVICE, "description": "The service itself, for anybody."})
    for one in plain:
        document.add_plain(one, dialects.all[0])
    return document.content


class _Document:
    """Grows with each operation that it is given."""

    def __init__(self) -> None:
        self.components: dict[str, dict[str, Any]] = {
            "schemas": {},
            "responses": {},
            "headers": {},
            "securitySchemes": {},
        }
        self.content: dict[str, Any] = {
            "openapi": "3.1.0",
            "info": {
                "title": "Seriatim",
                "version": __version__,
                "description": ABOUT,
                "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/"}],
            "tags": [],
            "paths": {},
            "components": self.components,
        }
        self.components["headers"]["RequestId"] = self._described(RequestId, "")

    def add_dialect(self, dialect: Dialect) -> None:
        if dialect.name not in self.components["securitySchemes"]:
            self.components["securitySchemes"][dialect.name] = dict(dialect.security)
            about = inspect.cleandoc(sys.modules[type(dialect).__module__].__doc__ or "")
            slashes = " A slash behind a path is taken, too." if dialect.trailing_slash else ""
            self.content["tags"].append({"name": dialect.name, "description": about + slashes})
        for base in dialect.bases:
            for one in dialect.operations:
                path = self.content["paths"].setdefault(base + one.path, {})
                path[one.method.lower()] = described = self._operation(dialect, base, one)
                if one.method == "GET" and one.headers:
                    path["head"] = _without_content(described)

    def add_plain(self, plain: Plain, native: Dialect) -> None:
        answers = {
            str(status): {
                "description": HTTPStatus(status).phrase,
                "headers": self._headers({}, ""),
                "content": {plain.media_type: self._media(answer, "")},
            }
            for status, answer in plain.answers.items()
        }
        self.content["paths"][plain.path] = {
            "get": {
                "operationId": f"{SERVICE}_{plain.endpoint.__name__}",
                "tags": [SERVICE],
                **_words(plain.endpoint),
                "security": [],
                "responses": dict(sorted((self._refusals(native, (SeriatimError, Unavailable)) | answers).items())),
            }
        }

    def _operation(self, dialect: Dialect, base: str, one: Operation) -> dict[str, Any]:
        prefix = _prefix(dialect)
        name = f"{dialect.name}_{base.rpartition('/')[2]}_{one.endpoint.__name__}"
        described: dict[str, Any] = {"operationId": name, "tags": [dialect.name]}
        described |= _words(one.endpoint, f"Needs the scope `{one.scope}`.")
        described["security"] = [{dialect.name: [one.scope]}]
        described["parameters"] = [*self._parameters(dialect, base, one)]
        if one.body is not None:
            media = self._media(one.body, prefix, told=False)
            needed = self._resolved(media["schema"]).get("required")
            described["requestBody"] = {"required": bool(needed), "content": {dialect.body_type: media}}
        answer: dict[str, Any] = {"description": HTTPStatus(one.status).phrase}
        answer["headers"] = self._headers(one.headers, prefix)
        if one.answer is not None:
            answer["content"] = {JSON: self._media(one.answer, prefix)}
        refusals = self._refusals(dialect, (*one.refusals, *EVERYWHERE))
        described["responses"] = {str(one.status): answer} | dict(sorted(refusals.items()))
        return described

    def _parameters(self, dialect: Dialect, base: str, one: Operation) -> Iterator[dict[str, Any]]:
        prefix = _prefix(dialect)
        for found in ID.finditer(base + one.path):
            named = {"name": found["name"], "in": "path", "required": True}
            yield named | self._described(dialect.ids[found["before"]], prefix)
        if one.query is not None:
            for name, schema in _properties(one.query):
                yield {"name": name, "in": "query", "required": False} | _split(schema)
        company = {"name": "X-Company", "in": "header", "required": dialect.names_company}
        yield company | self._described(NamedCompany if dialect.names_company else Company, prefix)

    def _refusals(self, dialect: Dialect, kinds: Sequence[type[SeriatimError]]) -> dict[str, Any]:
        """Returns the responses of refusals by status; what they look like is a component of the dialect's."""
        responses = {}
        for kind in kinds:
            name = _prefix(dialect) + ("Fault" if kind is SeriatimError else kind.__name__)
            error = _example(kind)
            if name not in self.components["responses"]:
                self.components["responses"][name] = self._refusal(dialect, error)
            responses[str(dialect.error_status(error))] = {"$ref": f"#/components/responses/{name}"}
        return responses

    def _refusal(self, dialect: Dialect, error: SeriatimError) -> dict[str, Any]:
        headers: dict[str, Any] = {}
        if error.retry_after_s is not None:
            headers["Retry-After"] = RetryAfter
        if isinstance(error, Unauthorized):
            headers["WWW-Authenticate"] = Annotated[str, Meta(examples=[dialect.challenge])]
        return {
            "description": _says(type(error)),
            "headers": self._headers(headers, _prefix(dialect)),
            "content": {
                JSON: self._media(dialect.error, _prefix(dialect))
                | {"example": msgspec.to_builtins(dialect.error_content(error))}
            },
        }

    def _headers(self, headers: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        described = {name: self._described(one, prefix) for name, one in headers.items()}
        return described | {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}}

    def _described(self, one: Any, prefix: str) -> dict[str, Any]:
        """Returns a type as a parameter or header has it: the description beside the schema."""
        return _split(self._schema(one, prefix, told=True))

    def _media(self, one: Any, prefix: str, *, told: bool = True) -> dict[str, Any]:
        schema = self._schema(one, prefix, told=told)
        examples = schema.pop("examples", None)
        return {"schema": schema} | ({"example": examples[0]} if examples else {})

    def _schema(self, one: Any, prefix: str, *, told: bool) -> Schema:
        """Returns the schema of a type, whose structs become components with a name that begins with `prefix`.

        Args:
            one: a type that msgspec knows.
            prefix: of which dialect.
            told: whether it is sent to callers, not by them. Then what is None is left out.
        """
        (schema,), structs = msgspec.json.schema_components([one], ref_template=f"{prefix}{{name}}")
        for name, struct in structs.items():
            short, tidy = _short(prefix + name), _tidy(struct, told=told)
            if self.components["schemas"].setdefault(short, tidy) != tidy:
                raise ValueError(f"Two schemas have the name {short}.")
        return _tidy(schema, told=told)

    def _resolved(self, schema: Schema) -> Schema:
        found: Schema = self.components["schemas"][schema["$ref"].rpartition("/")[2]]
        return found


def _prefix(dialect: Dialect) -> str:
    return dialect.name.capitalize()


def _short(name: str) -> str:
    return name.removesuffix("Answer")


def _words(endpoint: Callable[..., Any], more: str = "") -> dict[str, str]:
    """Returns what a docstring says, its first sentence as the summary, and more."""
    said = " ".join((inspect.getdoc(endpoint) or "").split()).removesuffix(".")
    summary, *rest = said.split(". ", 1)
    described = " ".join([*(f"{one}." for one in rest), *filter(None, [more])])
    return {"summary": summary} | ({"description": described} if described else {})


def _says(kind: type[SeriatimError]) -> str:
    return OUR_FAULT if kind is SeriatimError else (kind.__doc__ or "").partition("\n")[0]


def _example(kind: type[SeriatimError]) -> SeriatimError:
    return Invalid({"prefix": "is missing"}) if issubclass(kind, Invalid) else kind(_says(kind))


def _without_content(described: dict[str, Any]) -> dict[str, Any]:
    """Returns a GET as its HEAD, which answers headers alone."""
    responses = {
        status: {name: value for name, value in one.items() if name != "content"}
        for status, one in described["responses"].items()
    }
    return described | {"operationId": described["operationId"] + "_head", "responses": responses}


# schemas ----------------------------------------------------------------------------------------------------------


def _properties(query: Any) -> Iterator[tuple[str, Schema]]:
    """Yields the fields of a query with their schemas; null cannot be said in one."""
    _, structs = msgspec.json.schema_components([query])
    (struct,) = structs.values()
    yield from _tidy(struct, told=True)["properties"].items()


def _split(schema: Schema) -> dict[str, Any]:
    """Returns a schema as parameters and headers have it: what is for people stands beside it."""
    described = {"description": schema.pop("description")} if "description" in schema else {}
    examples = schema.pop("examples", None)
    return described | {"schema": schema} | ({"example": examples[0]} if examples else {})


def _tidy(schema: Schema, *, told: bool) -> Schema:
    """Returns a schema as OpenAPI has it, and as we mean it (see `messages.shown`).

    References are whole, texts are not indented, "or null" is a type among others, titles are left to the components.
    """
    tidy = {name: value for name, value in schema.items() if name != "title"}
    if "description" in tidy:
        tidy["description"] = inspect.cleandoc(tidy["description"])
    if "$ref" in tidy:
        tidy["$ref"] = f"#/components/schemas/{_short(tidy['$ref'])}"
    if "enum" in tidy:
        tidy = {"type": "string"} | tidy
    for name in ("items", "additionalProperties"):
        if isinstance(tidy.get(name), dict):
            tidy[name] = _tidy(tidy[name], told=told)
    if "properties" in tidy:
        tidy |= _fields(tidy.pop("properties"), tidy.pop("required"), told=told)
    if "anyOf" in tidy:
        choices = [_tidy(one, told=told) for one in tidy.pop("anyOf")]
        tidy = _chosen(choices, tidy, left_out=told and tidy.get("default", 0) is None)
    if tidy.get("default", 0) is None:
        del tidy["default"]
    return tidy


def _fields(properties: Mapping[str, Schema], required: Sequence[str], *, told: bool) -> Schema:
    known = {name: _tidy(one, told=told) for name, one in properties.items() if not one.get("refused")}
    needed = [name for name, one in known.items() if one.pop("needed", False) or name in required]
    return {"properties": known} | ({"required": needed} if needed else {})


def _chosen(choices: Sequence[Schema], beside: Schema, *, left_out: bool) -> Schema:
    """Returns a choice of schemas; of one schema and null as that one, unless null cannot be: when it is left out."""
    some = [one for one in choices if one != NULL]
    if len(some) > 1:
        return beside | {"anyOf": [*choices]}
    one = some[0] | beside
    if left_out or one.get("needed") or len(some) == len(choices):
        return one
    if "$ref" in one:
        return beside | {"anyOf": [*choices]}
    return one | {"type": [one["type"], "null"]}
