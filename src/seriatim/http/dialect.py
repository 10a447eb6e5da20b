"""What every dialect is made of: operations, credentials, and a shape for errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from seriatim.auth import Authenticator, Principal
from seriatim.errors import BadRequest, Forbidden, NotAllowed, NotFound, SeriatimError, Unauthorized

PRIVATE = {"Cache-Control": "no-store", "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'"}
"""An answer is for who asked, and no page (OWASP, REST Security Cheat Sheet)."""

BEARER = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "JWT",
    "description": "An API key, or a JSON Web Token where those are accepted.",
}

Endpoint = Callable[[Any, Request, Principal], Awaitable[Response]]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path: who may call it, what it takes, what it answers. The route and its description.

    `path` is below a base of its dialect. `query`, `body`, `answer` and those of `headers`, which the answer may have,
    are types that msgspec knows; None is for none. `refusals` are those of this operation, beside those that every one
    has.
    """

    method: str
    path: str
    scope: str
    endpoint: Endpoint
    query: Any = None
    body: Any = None
    answer: Any = None
    status: int = 200
    headers: Mapping[str, Any] = {}
    refusals: Sequence[type[SeriatimError]] = ()


def operation(method: str, path: str, scope: str, **more: Any) -> Callable[[Endpoint], Endpoint]:
    """Declares that a method of a dialect is an operation; its first line says what it does. `more` as in Operation."""

    def declare(endpoint: Endpoint) -> Endpoint:
        vars(endpoint)["operation"] = Operation(method=method, path=path, scope=scope, endpoint=endpoint, **more)
        return endpoint

    return declare


class Dialect(ABC):
    """One way of speaking to the service: a thin facade that decodes, calls the core and encodes.

    Its operations are declared in the order in which their routes are tried.
    """

    name: ClassVar[str]
    body_type: ClassVar[str] = "application/json"
    """Media type of the bodies that it takes."""
    challenge: ClassVar[str]
    """What a 401 asks for (RFC 9110, section 11.6.1)."""
    security: ClassVar[Mapping[str, str]]
    """Its security scheme as OpenAPI describes it."""
    error: ClassVar[type]
    """The shape of its errors."""
    ids: ClassVar[Mapping[str, Any]] = {}
    """The types of the ids in its paths, by the part of the path before them."""
    takes_tokens: ClassVar[bool] = False
    """Whether JSON Web Tokens are credentials, beside API keys."""
    names_company: ClassVar[bool] = False
    """Whether requests must say in `X-Company` for whom they act."""
    trailing_slash: ClassVar[bool] = False
    """Whether each path is also known with a slash behind it."""

    def __init__(self, bases: Sequence[str], authenticator: Authenticator) -> None:
        self.bases = bases
        self._authenticator = authenticator
        members = vars(type(self)).values()
        self.operations: list[Operation] = [vars(one)["operation"] for one in members if _is_operation(one)]

    @abstractmethod
    def credentials(self, header: str) -> str:
        """Returns the API key or token that an Authorization header carries, "" when it is of another scheme."""

    @abstractmethod
    def error_content(self, error: SeriatimError) -> Any:
        """Returns an error in this dialect's shape."""

    def error_status(self, error: SeriatimError) -> int:
        """Returns the status that stands for an error."""
        return error.status

    def refusal(self, error: SeriatimError) -> Response:
        """Returns an error as this dialect answers it."""
        headers = {}
        if error.retry_after_s is not None:
            headers["Retry-After"] = str(error.retry_after_s)
        if isinstance(error, Unauthorized):
            headers["WWW-Authenticate"] = self.challenge
        return json_response(self.error_content(error), self.error_status(error), headers)

    def routes(self) -> list[Route]:
        """Returns a route for each path: one for all its methods, so that a refusal names those that it takes."""
        by_path: dict[str, dict[str, Operation]] = {}
        for one in self.operations:
            by_path.setdefault(one.path, {})[one.method] = one
        return [
            WholeRoute(base + path + slash, self._serve(operations), methods=list(operations))
            for base in self.bases
            for path, operations in by_path.items()
            for slash in (("", "/") if self.trailing_slash else ("",))
        ]

    def _serve(self, operations: Mapping[str, Operation]) -> Callable[[Request], Awaitable[Response]]:
        async def serve(request: Request) -> Response:
            one = operations["GET" if request.method == "HEAD" else request.method]
            principal = await self.principal(request)
            principal.require(one.scope)
            with principal.allowance:
                return await one.endpoint(self, request, principal)

        return serve

    async def principal(self, request: Request) -> Principal:
        """Returns who calls, acting for the company that `X-Company` names, or else for their first.

        Raises:
            Unauthorized: there are no valid credentials of this dialect's scheme.
            Forbidden: they are not for that company.
        """
        headers = request.headers
        credentials = self.credentials(headers.get("authorization", ""))
        if not credentials:
            raise Unauthorized(f"Send an API key{' or a token' if self.takes_tokens else ''}. See /docs.")
        principal = await self._authenticator.principal(credentials, tokens=self.takes_tokens)
        company = headers.get("x-company")
        if company is None and self.names_company:
            raise Forbidden("Say for which company you act: send its UUID in X-Company.")
        return principal.acting_for(company)


class WholeRoute(Route):
    """A route for all methods of a path: none that it lacks is looked for in a later route with a parameter there."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Returns whether this route answers."""
        match, child = super().matches(scope)
        return Match.FULL if match is Match.PARTIAL else match, child


def bearer(header: str) -> str:
    """Returns the token of a Bearer header (RFC 6750, section 2.1), "" when it is of another scheme."""
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _is_operation(member: Any) -> bool:
    return callable(member) and "operation" in vars(member)


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Returns content as a JSON response."""
    return Response(encode(content), status, {**PRIVATE, **(headers or {})}, "application/json")


def no_content() -> Response:
    """Returns a response without content."""
    return Response(status_code=204, headers=PRIVATE)


encode = msgspec.json.Encoder().encode


class Dialects:
    """All dialects: which of them answers a path. Paths of none are the first one's."""

    def __init__(self, dialects: Sequence[Dialect]) -> None:
        self.all = dialects
        self._bases = [(base, dialect) for dialect in dialects for base in dialect.bases]

    def routes(self) -> list[Route]:
        """Returns the routes of all, in their order."""
        return [route for dialect in self.all for route in dialect.routes()]

    def at(self, path: str) -> Dialect:
        """Returns the dialect that a client at this path speaks."""
        for base, dialect in self._bases:
            if path == base or path.startswith(base + "/"):
                return dialect
        return self.all[0]

    def refusal(self, path: str, error: SeriatimError) -> Response:
        """Returns an error as the dialect of a path answers it."""
        return self.at(path).refusal(error)

    def exception_handlers(self) -> dict[Any, Any]:
        """Returns what answers errors, wherever they are raised."""
        return {SeriatimError: self._on_error, HTTPException: self._on_http_error, Exception: self._on_fault}

    async def _on_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, SeriatimError)
        return self.refusal(request.scope["path"], error)

    async def _on_http_error(self, request: Request, error: Exception) -> Response:
        # What Starlette raises for unknown paths and wrong methods.
        assert isinstance(error, HTTPException)
        if error.status_code == NotAllowed.status:
            answer = self.refusal(request.scope["path"], NotAllowed(f"{request.method} is not possible here."))
            answer.headers.update(error.headers or {})
            return answer
        if error.status_code == NotFound.status:
            missing = NotFound("There is nothing at this path. See /docs.")
            return self.refusal(request.scope["path"], missing)
        return self.refusal(request.scope["path"], BadRequest(error.detail))

    async def _on_fault(self, request: Request, _error: Exception) -> Response:
        # Our own faults; the server logs them.
        fault = SeriatimError("Seriatim has failed. Repeat the request with the same id, and report this.")
        return self.refusal(request.scope["path"], fault)
