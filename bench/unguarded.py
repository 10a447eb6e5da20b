"""`seriatim serve` without authentication, scopes and limits: everyone is BENCH_COMPANY. For bench/guard.py."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from seriatim.auth import SCOPES, Allowance, Authenticator, Principal
from seriatim.cli import main
from seriatim.http.dialect import Dialect, Operation


class Unlimited(Allowance):
    """Counts nothing."""

    def __enter__(self) -> None:
        """Begins any request."""

    def __exit__(self, *_: object) -> None:
        """Ends it."""

    def end(self, *, undone: bool = False) -> None:
        """Ends it."""


COMPANY = os.environ.pop("BENCH_COMPANY")
EVERYONE = Principal("everyone", COMPANY, frozenset([COMPANY]), frozenset(SCOPES), Unlimited(0, 0))


def serve(self: Dialect, operations: Mapping[str, Operation]) -> Callable[[Request], Awaitable[Response]]:
    """Stands in for Dialect._serve."""

    async def serve(request: Request) -> Response:
        return await operations[request.method].endpoint(self, request, EVERYONE)

    return serve


def known(_authenticator: Authenticator, _credentials: str) -> Principal:
    """Stands in for Authenticator.known."""
    return EVERYONE


def replace(kind: Any, name: str, by: Callable[..., Any]) -> None:
    """Replaces a method that there is."""
    assert callable(getattr(kind, name))
    setattr(kind, name, by)


replace(Dialect, "_serve", serve)
replace(Authenticator, "known", known)
main()
