"""The limit of what is durable: the bare ASGI app, which answers when the request's body is synced to a file.

Requests that wait together are synced together. It numbers nothing, and keeps no counter or id: whoever answers what is
on disk cannot be quicker on this machine.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from typing import Any

from rivals.bare import END, START


class Log:
    """A file, and the bodies that wait to be in it."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(dir=os.environ["BENCH_DIRECTORY"], buffering=0)  # noqa: SIM115 -- for good
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._running: asyncio.Task[None] | None = None

    def keep(self, body: bytes) -> asyncio.Future[None]:
        """Queues a body; the future is done when it is on disk."""
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((body, kept))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return kept

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            taken, self._waiting = self._waiting, []
            await loop.run_in_executor(None, self._sync, b"".join(body for body, _ in taken))
            for _, kept in taken:
                kept.set_result(None)
        self._running = None

    def _sync(self, content: bytes) -> None:
        self._file.write(content)
        os.fdatasync(self._file.fileno())


log = Log()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Reads the request's body, syncs it, and answers."""
    if scope["type"] == "http":
        message = await receive()
        body = message["body"]
        while message.get("more_body"):
            message = await receive()
            body += message["body"]
        await log.keep(body)
        await send(START)
        await send(END)
