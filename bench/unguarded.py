"""`seriatim serve` without authentication, scopes and limits: everyone is BENCH_COMPANY. For bench/guard.py."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from seriatim.auth import SCOPES, Allowance, Principal
from seriatim.cli import main
from seriatim.http.dialect import Dialect, Operation

COMPANY = os.environ.pop("BENCH_COMPANY")
EVERYONE = Principal("everyone", COMPANY, frozenset([COMPANY]), frozenset(SCOPES), Allowance(0, 1_000_000))


def serve_everyone(self: Dialect, operations: Mapping[str, Operation]) -> Callable[[Request], Awaitable[Response]]:
    """Stands in for Dialect._serve."""

    async def serve(request: Request) -> Response:
        return await operations[request.method].endpoint(self, request, EVERYONE)

    return serve


dialect: Any = Dialect
dialect._serve = serve_everyone  # noqa: SLF001 -- what is measured is what it would cost to have it
main()
