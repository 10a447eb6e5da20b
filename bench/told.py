"""A bare ASGI app that answers every PUT with an entry, from memory: as much as a client can ask for."""

from __future__ import annotations

from itertools import count
from typing import Any

from seriatim.load.payloads import EXAMPLE
from seriatim.model import canonical_meta

META = canonical_meta(EXAMPLE)
END = {"type": "http.response.body"}
positions = count(1)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Reads the request's body and answers."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    *_, series, _, entry = scope["raw_path"].split(b"/")
    position = next(positions)
    body = (
        b'{"id":"%b","series_id":"%b","code":"LOAD-%07d","position":%d,"number":%d,"date":"2026-01-31","meta":%b,'
        b'"sigs":[],"created_at":"2026-01-31T12:00:00.000Z","updated_at":"2026-01-31T12:00:00.000Z"}'
    ) % (entry, series, position, position, position, META)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send(END | {"body": body})
