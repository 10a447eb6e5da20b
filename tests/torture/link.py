"""A wire between two processes, as a network is: it can be cut, slow, silent, or lose what comes back."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, Literal

Weather = Literal["fair", "slow", "cut", "silent", "deaf"]
"""`silent` carries nothing, `deaf` carries requests and no answers; `cut` ends and refuses connections."""

PIECE_BYTES = 64 * 1024
SLOW_S = 0.2


class Link:
    """Listens on a port of its own, and carries each connection to the next of some addresses.

    Args:
        upstreams: ports on this machine, or paths of sockets.
    """

    def __init__(self, upstreams: Sequence[int | str]) -> None:
        self.weather: Weather = "fair"
        self._upstreams = itertools.cycle(upstreams)
        self._writers: set[asyncio.StreamWriter] = set()
        self._lost: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._carry, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def turn(self, weather: Weather) -> None:
        """Changes the weather. Connections of which a silent or deaf wire has swallowed something end with it."""
        self._loop.call_soon_threadsafe(self._turn, weather)

    def close(self) -> None:
        """Ends it, with all connections."""
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        self._turn("cut")
        while self._writers:  # noqa: ASYNC110 -- once, at the end
            await asyncio.sleep(0.01)

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(5)

    def _turn(self, weather: Weather) -> None:
        for writer in self._writers if weather == "cut" else self._lost:
            writer.transport.abort()
        self.weather = weather

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.weather == "cut":
            writer.transport.abort()
            return
        upstream = next(self._upstreams)
        try:
            if isinstance(upstream, int):
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", upstream)
            else:
                far_reader, far_writer = await asyncio.open_unix_connection(upstream)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, far_writer}
        self._writers |= ends
        try:
            forth, back = self._pump(reader, far_writer, answers=False), self._pump(far_reader, writer, answers=True)
            async with asyncio.TaskGroup() as both:
                both.create_task(forth)
                both.create_task(back)
        finally:
            self._writers -= ends
            self._lost -= ends
            for end in ends:
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        with suppress(OSError):
            while piece := await reader.read(PIECE_BYTES):
                if self.weather == "silent" or (self.weather == "deaf" and answers):
                    self._lost.add(writer)
                elif self.weather == "slow":
                    await asyncio.sleep(SLOW_S)
                if writer not in self._lost:
                    writer.write(piece)
                    await writer.drain()
        if writer not in self._lost:
            writer.close()
