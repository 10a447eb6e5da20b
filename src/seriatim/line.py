"""A line to a Redis server: one connection that calls of scripts share, each answered in its turn.

The driver makes the connection, with all that its URL asks for. From then on there is nothing between the transport and
the parser: what the driver does around each command (its pool, health, locks, streams) takes longer than a call of few
numbers does in the server.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, cast

import hiredis
import redis.asyncio
import redis.exceptions

NOTHING = object()
ANSWER_S = 5.0
"""How long a server may take to answer."""


class Line(asyncio.Protocol):
    """Connects when it is first called, and again when the connection is lost."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        pool: Any = client.connection_pool  # its methods have no types
        self._connection: Any = pool.make_connection()
        self._connecting = asyncio.Lock()
        self._transport: asyncio.Transport | None = None
        self._parser = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Any]] = deque()

    async def call(self, command: bytes) -> Any:
        """Sends a packed command, once, and returns its reply.

        Raises:
            redis.exceptions.RedisError, OSError, TimeoutError: an error reply, or none: the outcome is then unknown.
        """
        transport = self._transport or await self._connect()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._waiting.append(answer)
        transport.write(command)
        timer = loop.call_later(ANSWER_S, self._give_up, transport)
        try:
            reply = await answer
        finally:
            timer.cancel()
        if isinstance(reply, Exception):
            raise reply
        return reply

    def leave(self) -> None:
        """Cuts the connection: the next one may lead to another server."""
        if self._transport is not None:
            self._transport.abort()

    async def aclose(self) -> None:
        """Closes the connection."""
        await self._connection.disconnect(nowait=True)

    async def _connect(self) -> asyncio.Transport:
        async with self._connecting:
            if self._transport is None:
                async with asyncio.timeout(ANSWER_S):
                    await self._connection.disconnect(nowait=True)
                    await self._connection.connect()
                # The driver lends neither its transport nor what it knows of error replies.
                self._parser = hiredis.Reader(notEnoughData=NOTHING, replyError=self._connection._parser.parse_error)  # noqa: SLF001
                self._transport = cast("asyncio.Transport", self._connection._writer.transport)  # noqa: SLF001
                self._transport.set_protocol(self)
            return self._transport

    def data_received(self, data: bytes) -> None:
        """Gives those who wait the replies that are whole."""
        self._parser.feed(data)
        while (reply := self._parser.gets()) is not NOTHING:
            if not isinstance(reply, hiredis.PushNotification):
                answer = self._waiting.popleft()
                if not answer.done():
                    answer.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells those who wait that there will be no reply."""
        self._transport = None
        lost, self._waiting = self._waiting, deque()
        for answer in lost:
            if not answer.done():
                answer.set_exception(redis.exceptions.ConnectionError(f"The connection was lost: {exc or 'closed'}."))

    def _give_up(self, transport: asyncio.Transport) -> None:
        transport.abort()
