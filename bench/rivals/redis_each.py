"""Starlette and Redis: one script call a request, on a pool of connections. The id decides, so that a retry is safe."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import redis.asyncio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rivals.documents import BEARER, decode, document, encode, now_ms

ISSUE = """
local known = redis.call('HGET', KEYS[1], ARGV[1])
if known then
  return known
end
local record = redis.call('INCR', KEYS[2]) .. ' ' .. ARGV[2] .. ' ' .. ARGV[3]
redis.call('HSET', KEYS[1], ARGV[1], record)
return record
"""

client = redis.asyncio.Redis.from_url(os.environ["BENCH_REDIS_URL"], max_connections=1000)
issue = client.register_script(ISSUE)


async def put_entry(request: Request) -> Response:
    """Issues the next number, or answers what the id was issued."""
    if request.headers.get("authorization") != BEARER:
        return Response(status_code=401)
    series, entry = request.path_params["series"], request.path_params["id"]
    meta = encode(decode(await request.body()).meta)
    record = await issue(keys=[f"entries:{{{series}}}", f"last:{{{series}}}"], args=[entry, now_ms(), meta])
    number, created, kept = record.split(b" ", 2)
    content = document(series, entry, int(number), msgspec.Raw(kept), int(created))
    return Response(encode(content), media_type="application/json")


@asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[None]:
    """Closes the connections at the end."""
    yield
    await client.aclose()


app = Starlette(
    routes=[Route("/sequence/v1/series/{series}/entries/{id}", put_entry, methods=["PUT"])], lifespan=lifespan
)
