"""Many callers at once. They speak HTTP by themselves: a library would need more of the machine than the service."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from stack import entry_path

CONNECTIONS = 64
LENGTH = re.compile(r"content-length: (\d+)")

Request = tuple[str, str, dict[str, str]]
"""A series, an entry's id, its meta."""


class Told(NamedTuple):
    """What a caller was answered, and by which server."""

    body: dict[str, Any]
    replayed: bool
    url: str


async def put_all(urls: Sequence[str], key: str, requests: Iterable[Request]) -> dict[str, Told]:
    """Puts all entries through 64 connections at once, spread over the servers; returns the answers by id."""
    waiting = iter(requests)
    told: dict[str, Told] = {}

    async def caller(url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        for series, entry, meta in waiting:
            body = msgspec.json.encode({"meta": meta})
            headers = f"Host: {host}\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(f"PUT {entry_path(series, entry)} HTTP/1.1\r\n{headers}".encode() + body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = LENGTH.search(head)
            assert length is not None, head
            answer = await reader.readexactly(int(length[1]))
            assert head.startswith("http/1.1 200 "), answer
            told[entry] = Told(msgspec.json.decode(answer), "idempotent-replayed: true" in head, url)
        writer.close()

    await asyncio.gather(*(caller(urls[number % len(urls)]) for number in range(CONNECTIONS)))
    return told
