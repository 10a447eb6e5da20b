"""What every request passes: limits, request ids, security headers, logs, and the reading of bodies."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seriatim.errors import BadRequest, Invalid, SeriatimError, TooLarge, Unavailable

log = structlog.stdlib.get_logger("seriatim.http")

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")
CREDENTIALS = re.compile(r"(seriatim_\w{10})\w+|eyJ[\w.-]+")
"""API keys but for their ids, and tokens, wherever they are sent by mistake."""
UNLIMITED = {"/healthz", "/readyz"}
"""A busy process must not be taken for a dead one."""

PROCESS = os.urandom(8).hex()
_numbers = count(int.from_bytes(os.urandom(4)))
TOO_BUSY = "This process works on too many requests. Repeat this one with the same id."
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
"""Whoever answers says `Cache-Control` and `Content-Security-Policy` as they fit the answer."""
WRONG_MAX = 100
ELEMENTS_MAX = 1000
"""How many wrong fields an answer names, and how many elements of a list are looked at for them."""

T = TypeVar("T")


class Edge:
    """Outermost ASGI layer: names each request, bounds how many are worked on, logs what went wrong.

    The request id is the caller's `X-Request-Id` when that is plain, and goes back in the answer.

    Args:
        app: what serves requests.
        in_flight_max: how many at once.
        refuse: how the client of a path is told an error.
    """

    def __init__(self, app: ASGIApp, in_flight_max: int, refuse: Callable[[str, SeriatimError], Response]) -> None:
        self._app = app
        self._in_flight_max = in_flight_max
        self._in_flight = 0
        self._refuse = refuse

    def enter(self) -> bool:
        """Counts a request that another way is found for; False when there are too many. Whoever enters must leave."""
        if self._in_flight >= self._in_flight_max:
            return False
        self._in_flight += 1
        return True

    def leave(self) -> None:
        """Counts its end."""
        self._in_flight -= 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        fits = self._in_flight < self._in_flight_max or scope["path"] in UNLIMITED
        app = self._app if fits else self._refuse(scope["path"], Unavailable(TOO_BUSY))
        await self._serve(app, scope, receive, send)

    def refusing(self, error: SeriatimError) -> ASGIApp:
        """Returns an app that answers every request with an error."""

        async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
            await self._serve(self._refuse(scope["path"], error), scope, receive, send)

        return refuse

    async def _serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        named = request_id(scope["headers"])
        started = time.perf_counter()
        status = 500
        answered = False

        async def send_named(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *SECURITY_HEADERS, (b"x-request-id", named.encode())]
            await send(message)
            answered = message["type"] == "http.response.body" and not message.get("more_body")

        self._in_flight += 1
        try:
            await app(scope, receive, send_named)
        except Exception:
            if not answered:
                raise
            # The client has been told. The server would cut the connection, and with it who asks next on it.
            log.exception("a fault of ours", request=named)
        finally:
            self._in_flight -= 1
            if status >= 400:  # noqa: PLR2004
                level = log.warning if status >= 500 else log.info  # noqa: PLR2004
                took_ms = round((time.perf_counter() - started) * 1000, 1)
                level(
                    "refused",
                    method=scope["method"],
                    path=CREDENTIALS.sub(r"\1***", scope["path"]),
                    status=status,
                    request=named,
                    ms=took_ms,
                )


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Returns the name of a request: its caller's, or else a new one."""
    return given_request_id(headers) or new_request_id()


def given_request_id(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Returns the name that the caller has given a request, if it is plain."""
    for name, value in headers:
        if name == b"x-request-id" and REQUEST_ID.match(value.decode("latin-1")):
            return str(value, "latin-1")
    return None


def new_request_id() -> str:
    """Returns a name that no other request has."""
    return PROCESS + next(_numbers).to_bytes(8).hex()


async def read_body(request: Request, bytes_max: int) -> bytes:
    """Returns the request's body.

    Raises:
        TooLarge: it is longer than `bytes_max`.
        Unavailable: the client went away in the middle of it.
    """
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > bytes_max:
        raise _too_large(bytes_max)
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > bytes_max:
                raise _too_large(bytes_max)
            chunks.append(chunk)
    except ClientDisconnect:
        raise Unavailable("The client went away.") from None
    return b"".join(chunks)


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"The body is larger than {bytes_max} bytes. Send less.")


def decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Returns a JSON body as a struct; an empty body as an empty object.

    Raises:
        BadRequest: it is not JSON, or not an object.
        Invalid: fields are missing, unknown or of the wrong type; names each.
    """
    body = body or b"{}"
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _explain(body, decoder.type, error) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"The body is not JSON: {error}.") from error
    except RecursionError:
        raise BadRequest("The body is nested too deeply.") from None


def _explain(body: bytes, wanted: Any, error: msgspec.ValidationError) -> BadRequest | Invalid:
    """Finds the fields that are wrong, up to WRONG_MAX; the decoder stops at the first."""
    try:
        content = msgspec.json.decode(body)
    except RecursionError:
        return BadRequest("The body is nested too deeply.")
    except (msgspec.DecodeError, UnicodeDecodeError) as malformed:
        return BadRequest(f"The body is not JSON: {malformed}.")
    if not isinstance(content, dict):
        return BadRequest("The body must be a JSON object.")
    wrong = dict(islice(_wrong("", content, wanted), WRONG_MAX))
    return Invalid(wrong or {"body": str(error)})


def _wrong(name: str, value: Any, wanted: Any) -> Iterator[tuple[str, str]]:
    """Yields the name of a value that is wrong, and why; of objects, maps and lists, what is wrong in them."""
    wanted = get_args(wanted)[0] if get_origin(wanted) is Annotated else wanted
    try:
        msgspec.convert(value, wanted)
    except msgspec.ValidationError as mismatch:
        why, _, inside = str(mismatch).partition(" - at ")
        if isinstance(value, dict) and isinstance(wanted, type):
            yield from _wrong_fields(f"{name}." if name else "", value, wanted)
        elif isinstance(value, dict) and inside:
            yield from _wrong_items(f"{name}.", value, wanted)
        elif isinstance(value, list) and inside:
            (element,) = get_args(wanted)
            for number, item in enumerate(value[:ELEMENTS_MAX]):
                yield from _wrong(f"{name}[{number}]", item, element)
        else:
            yield name, why


def _wrong_fields(place: str, content: dict[str, Any], wanted: type) -> Iterator[tuple[str, str]]:
    fields = {field.encode_name: field for field in msgspec.structs.fields(wanted)}
    for name, field in fields.items():
        if field.required and name not in content:
            yield f"{place}{name}", "is missing"
    for name, value in content.items():
        if name in fields:
            yield from _wrong(f"{place}{name}", value, fields[name].type)
        else:
            yield f"{place}{name[:64]}", "is not a field of this request"


def _wrong_items(place: str, items: dict[str, Any], wanted: Any) -> Iterator[tuple[str, str]]:
    for key, value in items.items():
        try:
            msgspec.convert({key: value}, wanted)
        except msgspec.ValidationError as mismatch:
            yield f"{place}{key[:64]}", str(mismatch).partition(" - at ")[0]
