"""Batches of 100 by one API process, beside the same script calls made straight at the same Valkey."""

from __future__ import annotations

import asyncio
import selectors
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any

import hiredis
import msgspec
import redis

from client import Load, Run, run
from contenders import PAUSED, Arena
from options import Options
from rivals.documents import META
from scripted import ALWAYS, MARK, STANDING, TODAY, enrolled, make_series, opened
from seriatim import scripts
from seriatim.formats import Window
from seriatim.groups import Group, Order
from seriatim.keyspace import pack_request
from seriatim.line import Line
from seriatim.model import Series, canonical_meta
from servers import Valkey

BATCH = 100
CONNECTIONS = 8
PREPARED = 2000
"""Script calls that are made ready before they are measured."""


class Batch(msgspec.Struct, frozen=True):
    """A round: the API's run, and numbers a second of the script on one connection and on eight."""

    round: int
    run: Run
    script_alone_per_s: float
    script_per_s: float


def measure(arena: Arena, options: Options) -> list[Batch]:
    """Measures both in turn."""
    batches = []
    for number in range(options.rounds):
        with arena.running(PAUSED) as contender:
            done = run(contender, contender.create_series(1), Load(CONNECTIONS, options.seconds, batch=BATCH))
        alone, together = (_script(arena, connections, options.seconds) for connections in (1, CONNECTIONS))
        batches.append(Batch(number, done, alone, together))
    return batches


def _script(arena: Arena, connections: int, seconds: float) -> float:
    """Numbers a second that allocate.lua issues when its calls lie ready."""
    valkey = Valkey(arena.directory())
    try:
        with redis.Redis.from_url(valkey.url) as client:
            server: Any = _Server(client)
            series = opened(enrolled(server), make_series(prefix="INV-", padding=6))
        calls = iter(asyncio.run(_calls(series)))
        return _pump(valkey.url.removeprefix("unix://"), calls, connections, seconds)
    finally:
        valkey.kill()


class _Server(msgspec.Struct):
    """What the helpers of the tests want of a server."""

    client: redis.Redis


class _Recorder(Line):
    """A line that leads nowhere and keeps what it is to send."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    async def call(self, command: bytes) -> Any:
        """Answers that nothing was asked for."""
        self.sent.append(command)
        return [b"ok", 0, [0], [], []]


async def _calls(series: Series) -> list[bytes]:
    """Returns the commands with which an API process asks for batches, as they go over the wire."""
    recorder = _Recorder()
    meta = canonical_meta(META)
    for _ in range(PREPARED):
        orders = [Order(pack_request(uuid.uuid4().bytes + MARK, meta)) for _ in range(BATCH)]
        group = Group(series, Window(*ALWAYS, TODAY), orders)
        await scripts.allocate(recorder, STANDING, [group], backlog_max=10**9, atomic=True)
    return recorder.sent


def _pump(path: str, calls: Iterator[bytes], connections: int, seconds: float) -> float:
    """Keeps one call under way on each connection, until the time is over or there are no more."""
    selector = selectors.DefaultSelector()
    for _ in range(connections):
        made = socket.socket(socket.AF_UNIX)
        made.connect(path)
        made.sendall(next(calls))
        selector.register(made, selectors.EVENT_READ, hiredis.Reader())
    began = now = time.perf_counter()
    answered = 0
    while now - began < seconds and selector.get_map():
        for key, _ in selector.select():
            connection: Any = key.fileobj
            key.data.feed(connection.recv(1 << 20))
            reply = key.data.gets()
            if reply is False:
                continue
            assert reply[0] == b"ok", reply
            answered += 1
            call = next(calls, None)
            if call is None:
                selector.unregister(connection)
            else:
                connection.sendall(call)
        now = time.perf_counter()
    for key in list(selector.get_map().values()):
        selector.unregister(key.fileobj)
    return answered * BATCH / (now - began)
