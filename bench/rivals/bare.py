"""The limit: a bare ASGI app that reads a PUT and answers with as many bytes as ours, and keeps nothing."""

from __future__ import annotations

from typing import Any

from rivals.documents import SAMPLE

START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(SAMPLE)).encode())],
}
END = {"type": "http.response.body", "body": SAMPLE}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Reads the request's body and answers."""
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        await send(START)
        await send(END)
