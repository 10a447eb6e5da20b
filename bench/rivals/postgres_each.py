"""Starlette and PostgreSQL: one transaction a request. The id is unique, so that a retry is safe."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rivals.documents import BEARER, decode, document, encode, now_ms
from rivals.postgres import FIND, connect

POOL_SIZE = int(os.environ.get("BENCH_POOL", "8"))
"""More connections only wait for the row of the series."""
COUNT = "UPDATE series SET last = last + 1 WHERE id = $1 RETURNING last"
INSERT = "INSERT INTO entries (series, number, id, meta, created_ms) VALUES ($1, $2, $3, $4, $5)"


async def put_entry(request: Request) -> Response:
    """Issues the next number, or answers what the id was issued."""
    if request.headers.get("authorization") != BEARER:
        return Response(status_code=401)
    series, entry = request.path_params["series"], request.path_params["id"]
    meta, created = encode(decode(await request.body()).meta).decode(), now_ms()
    async with request.app.state.pool.acquire() as connection:
        try:
            async with connection.transaction():
                number = await connection.fetchval(COUNT, series)
                await connection.execute(INSERT, series, number, entry, meta, created)
        except asyncpg.UniqueViolationError:
            number, meta, created = await connection.fetchrow(FIND, series, entry)
    content = document(series, entry, number, msgspec.Raw(meta.encode()), created)
    return Response(encode(content), media_type="application/json")


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Opens the pool, and closes it at the end."""
    async with connect(POOL_SIZE) as app.state.pool:
        yield


app = Starlette(
    routes=[Route("/sequence/v1/series/{series}/entries/{id}", put_entry, methods=["PUT"])], lifespan=lifespan
)
