"""A bare ASGI app that answers a PUT with a body of an entry's size: the limit of the server beneath us."""

from __future__ import annotations

from typing import Any

BODY = b'{"id":"' + b"0" * 330 + b'"}'
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())],
}
END = {"type": "http.response.body", "body": BODY}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Reads the request's body and answers."""
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        await send(START)
        await send(END)
