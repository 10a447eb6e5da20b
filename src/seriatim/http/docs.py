"""What programs and people read of the API: `/openapi.json`, and `/docs`, a page that shows it. All from here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from swagger_ui_bundle import swagger_ui_path

PAGE = files("seriatim.http") / "page"
NOTHING = "default-src 'none'; frame-ancestors 'none'"
ONLY_OURS = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Of the page: nothing from elsewhere, and nothing inline."""
SHOWN = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon-32x32.png": "image/png"}
"""What the page takes of Swagger UI."""


def routes(describe: Callable[[], Any]) -> list[Route]:
    """Returns the routes of the document, of the page and of what it loads; each is made when it is first asked for."""
    return [
        _route("/openapi.json", lambda: msgspec.json.encode(describe()), "application/json"),
        _route("/docs", (PAGE / "index.html").read_bytes, "text/html", ONLY_OURS),
        _route("/docs/start.js", (PAGE / "start.js").read_bytes, "text/javascript"),
        *(_route(f"/docs/{name}", (swagger_ui_path / name).read_bytes, kind) for name, kind in SHOWN.items()),
    ]


def _route(path: str, make: Callable[[], bytes], media_type: str, policy: str = NOTHING) -> Route:
    """Returns a route that answers always the same, and 304 to whoever has it."""

    @cache
    def made() -> tuple[bytes, dict[str, str]]:
        content = make()
        tag = f'"{hashlib.blake2b(content, digest_size=16).hexdigest()}"'
        return content, {"ETag": tag, "Cache-Control": "no-cache", "Content-Security-Policy": policy}

    async def serve(request: Request) -> Response:
        content, headers = made()
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)

    return Route(path, serve)
