"""The strongest rival: requests that wait together go to PostgreSQL together, as one statement and transaction.

The front is bare ASGI, since Starlette's layers would cost more than the database does.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Any

import asyncpg
import msgspec

from rivals.documents import BATCH_MAX, BEARER, decode, document, encode, now_ms
from rivals.postgres import connect

Key = tuple[str, str]
"""A series and an id."""
Issued = tuple[int, bytes, int]
"""A number, its meta, and when it was issued."""

ISSUE = """
WITH counted AS (
    UPDATE series SET last = last + wanted.count FROM unnest($1::uuid[], $2::int[]) AS wanted (id, count)
    WHERE series.id = wanted.id RETURNING series.id, last - wanted.count AS before
), issued AS (
    INSERT INTO entries (series, number, id, meta, created_ms)
    SELECT counted.id, before + nth, wanted.id, meta, $7
    FROM unnest($3::uuid[], $4::int[], $5::uuid[], $6::text[]) AS wanted (series, nth, id, meta)
    JOIN counted ON counted.id = wanted.series
)
SELECT id::text, before FROM counted
"""
KNOWN = """
SELECT series::text, id::text, number, meta, created_ms
FROM entries JOIN unnest($1::uuid[], $2::uuid[]) AS wanted (series, id) USING (series, id)
"""
BEARER_BYTES = BEARER.encode()
OK = {"type": "http.response.start", "status": 200}
REFUSED = {"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]}


class Requests:
    """The requests that wait, and the transaction that is under way."""

    def __init__(self) -> None:
        self.pool: asyncpg.Pool
        self._waiting: dict[Key, tuple[str, asyncio.Future[Issued]]] = {}
        self._running: asyncio.Task[None] | None = None

    def issue(self, key: Key, meta: str) -> asyncio.Future[Issued]:
        """Queues a request."""
        if key not in self._waiting:
            self._waiting[key] = (meta, asyncio.get_running_loop().create_future())
            if self._running is None:
                self._running = asyncio.create_task(self._run())
        return self._waiting[key][1]

    async def _run(self) -> None:
        while self._waiting:
            async with self.pool.acquire() as connection:
                while self._waiting:
                    await self._issue(connection)
        self._running = None

    async def _issue(self, connection: Any) -> None:
        taken = {key: self._waiting.pop(key) for key in list(islice(self._waiting, BATCH_MAX))}
        try:
            issued = await _issue(connection, {key: meta for key, (meta, _) in taken.items()})
        except Exception as error:  # noqa: BLE001 -- it is for those who asked
            for _, answer in taken.values():
                answer.set_exception(error)
        else:
            for key, (_, answer) in taken.items():
                answer.set_result(issued[key])


async def _issue(connection: Any, metas: dict[Key, str]) -> dict[Key, Issued]:
    """Issues numbers, or answers what ids were issued: they are looked for only when an id turns out to be known."""
    issued: dict[Key, Issued] = {}
    while fresh := {key: meta for key, meta in metas.items() if key not in issued}:
        try:
            issued |= await _issue_fresh(connection, fresh)
        except asyncpg.UniqueViolationError:
            rows = await connection.fetch(KNOWN, [series for series, _ in fresh], [entry for _, entry in fresh])
            issued |= {(series, entry): (number, meta.encode(), at) for series, entry, number, meta, at in rows}
        except asyncpg.DeadlockDetectedError:
            continue
    return issued


async def _issue_fresh(connection: Any, metas: dict[Key, str]) -> dict[Key, Issued]:
    created = now_ms()
    counts: dict[str, int] = {}
    places = []
    for series, _ in metas:
        counts[series] = counts.get(series, 0) + 1
        places.append(counts[series])
    ordered = sorted(counts)  # so that two processes seldom wait for one another
    columns = [key[0] for key in metas], places, [key[1] for key in metas], list(metas.values())
    rows = await connection.fetch(ISSUE, ordered, [counts[series] for series in ordered], *columns, created)
    before = dict(rows)
    issued = zip(metas.items(), places, strict=True)
    return {key: (before[key[0]] + place, meta.encode(), created) for (key, meta), place in issued}


requests = Requests()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Serves PUT /sequence/v1/series/{series}/entries/{id}, and nothing else."""
    if scope["type"] == "lifespan":
        await _live(receive, send)
        return
    if (b"authorization", BEARER_BYTES) not in scope["headers"]:
        await send(REFUSED)
        await send({"type": "http.response.body"})
        return
    _, _, _, _, series, _, entry = scope["path"].split("/")
    message = await receive()
    body = message["body"]
    while message["more_body"]:
        message = await receive()
        body += message["body"]
    number, meta, created = await requests.issue((series, entry), encode(decode(body).meta).decode())
    content = encode(document(series, entry, number, msgspec.Raw(meta), created))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    await send(OK | {"headers": headers})
    await send({"type": "http.response.body", "body": content})


async def _live(receive: Any, send: Any) -> None:
    await receive()
    async with connect(1) as requests.pool:
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})
