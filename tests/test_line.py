"""A line to a real Valkey: replies in their turn, whatever becomes of the connection."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import hiredis
import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as Lost
from redis.exceptions import NoScriptError

from seriatim import line
from seriatim.line import Line
from stack import Valkey

T = TypeVar("T")


def packed(*words: str) -> bytes:
    command: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]
    return command


def on_a_line(server: Valkey, act: Callable[[Line], Awaitable[T]]) -> T:
    async def run() -> T:
        async with redis.asyncio.Redis.from_url(server.url, retry=Retry(NoBackoff(), 0)) as client:
            made = Line(client)
            try:
                return await act(made)
            finally:
                await made.aclose()

    return asyncio.run(run())


def test_calls_that_are_under_way_together_get_their_own_replies(valkey: Valkey) -> None:
    # Given a line, when many call at once, and one of them gives up
    async def act(line: Line) -> list[bytes]:
        calls = [asyncio.create_task(line.call(packed("ECHO", str(number)))) for number in range(100)]
        await asyncio.sleep(0)
        calls[50].cancel()
        return [await call for call in calls if call is not calls[50]]

    # Then each other has its reply
    assert on_a_line(valkey, act) == [b"%d" % number for number in range(100) if number != 50]


def test_an_error_reply_is_raised_as_the_driver_would(valkey: Valkey) -> None:
    # Given a line
    async def act(line: Line) -> bytes:
        # When a script is called that the server does not know, then that is said
        with pytest.raises(NoScriptError):
            await line.call(packed("EVALSHA", "0" * 40, "0"))
        # And the line is as good as before
        reply: bytes = await line.call(packed("ECHO", "on"))
        return reply

    assert on_a_line(valkey, act) == b"on"


def test_a_lost_connection_fails_those_who_wait_and_is_made_anew(valkey: Valkey) -> None:
    # Given calls that a stopped server does not answer
    async def act(line: Line) -> bytes:
        await line.call(packed("PING"))
        valkey.process.send_signal(signal.SIGSTOP)
        calls = [asyncio.create_task(line.call(packed("ECHO", "lost"))) for _ in range(3)]
        await asyncio.sleep(0.1)

        # When the server dies
        await asyncio.to_thread(valkey.kill)

        # Then each is told that the outcome is unknown, and so is who calls while there is no server
        assert [type(error) for error in await asyncio.gather(*calls, return_exceptions=True)] == [Lost] * 3
        with pytest.raises(Lost):
            await line.call(packed("ECHO", "early"))

        # And the next call after its start is answered
        await asyncio.to_thread(valkey.start)
        reply: bytes = await line.call(packed("ECHO", "back"))
        return reply

    assert on_a_line(valkey, act) == b"back"


def test_a_server_that_does_not_answer_in_time_is_left(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a line to a server that hangs
    async def act(to: Line) -> bytes:
        await to.call(packed("PING"))
        valkey.process.send_signal(signal.SIGSTOP)

        # When somebody calls whose patience is short, then the wait ends
        with monkeypatch.context() as impatient:
            impatient.setattr(line, "ANSWER_S", 0.3)
            with pytest.raises(Lost):
                await to.call(packed("ECHO", "late"))

        # And a late reply is nobody's: the next call is answered on another connection
        valkey.process.send_signal(signal.SIGCONT)
        reply: bytes = await to.call(packed("ECHO", "next"))
        return reply

    assert on_a_line(valkey, act) == b"next"
