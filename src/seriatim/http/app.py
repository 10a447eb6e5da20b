"""The ASGI app: builds every client, mounts the dialects, answers health and keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import structlog
from msgspec import Meta
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from seriatim import clients, scripts, worker
from seriatim.allocator import Allocator, Gate
from seriatim.auth import Authenticator
from seriatim.config import Config
from seriatim.definitions import Definitions
from seriatim.errors import Halted, Unavailable
from seriatim.http import docs
from seriatim.http.dialect import PRIVATE, Dialects, json_response
from seriatim.http.dreamapply import DreamApply
from seriatim.http.edge import Edge
from seriatim.http.hot import HotPath
from seriatim.http.octobat import Octobat
from seriatim.http.openapi import Plain, describe
from seriatim.http.sequence import Sequence
from seriatim.http.server import Connection
from seriatim.http.storno import Storno
from seriatim.ledger import Ledger
from seriatim.line import Line
from seriatim.recovery import Watch
from seriatim.store import Store
from seriatim.tokens import Tokens

log = structlog.stdlib.get_logger(__name__)

T = TypeVar("T")

READY_TIMEOUT_S = 2.0
OCTOBAT_TYPES = ("invoice", "credit_note")
JWK_SET = "application/jwk-set+json"


class Health(msgspec.Struct):
    """That this process answers."""

    status: Literal["ok"]


class Checks(msgspec.Struct):
    """What numbers need: each is `ok`, or says why not."""

    allocation: Annotated[str, Meta(examples=["ok"])]
    redis: Annotated[str, Meta(examples=["ok"])]
    store: Annotated[str, Meta(examples=["ok"])]
    durability: Annotated[str, Meta(examples=["ok"])]


class Readiness(msgspec.Struct):
    """Whether numbers can be issued; `halted` says why they cannot until somebody acts."""

    ready: bool
    halted: str | None
    backlog: Annotated[int | None, Meta(description="Records that wait for the store; null where unknown.")]
    checks: Checks


class KeySet(msgspec.Struct):
    """Public keys (JSON Web Key Set), those that sign no more included."""

    keys: list[dict[str, Any]]


class Front:
    """One API process: its store, its Redis clients, and what stands on them. `start` begins the watch."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.store = Store(config.store_url)
        self.client = clients.asynchronous(config.redis_url)
        self.line = None if clients.is_cluster(self.client) else Line(self.client)
        self.blocking = clients.blocking(config.redis_url)
        self._queue = clients.blocking(config.queue_url or config.redis_url)
        self._shards = self.store.data_set().shards
        self.gate = Gate()
        self.watch = Watch(self.blocking, self.store, self.gate, config, self._leave)
        self.allocator = Allocator(self.line or self.client, self.gate, self._wake, backlog_max=config.backlog_max)
        self.definitions = Definitions(
            store=self.store,
            client=self.client,
            blocking=self.blocking,
            gate=self.gate,
            warden=self.watch,
            shards=self._shards,
            series_max=config.series_max,
        )
        self.ledger = Ledger(
            store=self.store,
            client=self.client,
            allocator=self.allocator,
            definitions=self.definitions,
            gate=self.gate,
            warden=self.watch,
        )
        self.authenticator = Authenticator(
            self.store, Tokens(config), rate=config.key_rate_max, in_flight=config.key_in_flight_max
        )
        self._tasks: set[asyncio.Future[Any]] = set()
        # Threads of their own: a database that hangs keeps those of the requests that need it.
        self._checking = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._waking = ThreadPoolExecutor(1)  # of its own: a queue that does not answer keeps nobody else waiting

    @asynccontextmanager
    async def running(self, _app: Starlette) -> AsyncIterator[None]:
        """Watches the Redis server for as long as the app runs.

        Before requests are let in, the server was met, or takes long for it: behind one socket another process may be
        ready long since, and whoever has heard that is not to be told that this one is starting.
        """
        watching = asyncio.create_task(self.watch.run())
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.gate.decided.wait(), READY_TIMEOUT_S)
            yield
        finally:
            watching.cancel()
            await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        for threads in (self._waking, *self._checking):
            threads.shutdown(wait=False, cancel_futures=True)
        if self.line is not None:
            await self.line.aclose()
        await self.client.aclose()
        self.blocking.close()
        self._queue.close()
        self.store.close()

    async def _leave(self) -> None:
        clients.forget(self.blocking)
        if self.line is not None:
            self.line.leave()
            await self.client.connection_pool.disconnect()

    def _wake(self, shard: int) -> None:
        waking = asyncio.get_running_loop().run_in_executor(self._waking, self._wake_now, shard)
        self._tasks.add(waking)
        waking.add_done_callback(self._tasks.discard)

    def _wake_now(self, shard: int) -> None:
        try:
            worker.wake(self._queue, shard)
        except Unavailable as error:  # the sweeper makes up for it
            log.warning("could not wake a worker", shard=shard, reason=error.message)

    # health and keys ----------------------------------------------------------------------------------------------

    async def healthz(self, _request: Request) -> Response:
        """Says that this process answers."""
        return json_response(Health("ok"))

    async def readyz(self, _request: Request) -> Response:
        """Says whether numbers can be issued, and if not, why."""
        (backlog, redis_says), (_, store_says) = await asyncio.gather(
            _asked(self._checking[0], scripts.backlog, self.blocking, self._shards),
            _asked(self._checking[1], self.store.data_set),
        )
        refusal = self.gate.closed()
        ready = refusal is None and redis_says == "ok"
        content = Readiness(
            ready=ready,
            halted=refusal.message if isinstance(refusal, Halted) else None,
            backlog=backlog,
            checks=Checks(
                allocation="ok" if refusal is None else refusal.message,
                redis=redis_says,
                store=store_says,
                durability="ok" if self.config.ack == "fsync" else "SERIATIM_ACK=memory: a crash loses numbers",
            ),
        )
        return json_response(content, 200 if ready else 503)

    async def jwks(self, _request: Request) -> Response:
        """Answers the public keys of all receipts (RFC 7517)."""
        keys = await asyncio.to_thread(self.store.signing_keys)
        content = {"keys": [msgspec.Raw(key.encode()) for key in keys]}
        return Response(
            msgspec.json.encode(content), headers=PRIVATE | {"Cache-Control": "no-cache"}, media_type=JWK_SET
        )

    def dialects(self) -> Dialects:
        """Returns the dialects, the native one first: it also answers for the paths of none."""
        core, bytes_max = (self.definitions, self.ledger, self.authenticator), self.config.body_bytes_max
        return Dialects(
            [
                Sequence(*core, bytes_max),
                DreamApply(*core),
                Storno(*core, bytes_max),
                *(Octobat(kind, self.definitions, self.authenticator, bytes_max) for kind in OCTOBAT_TYPES),
            ]
        )

    def app(self) -> Edge:
        """Returns the app to serve."""
        dialects = self.dialects()
        plain = [
            Plain("/healthz", self.healthz, {200: Health}),
            Plain("/readyz", self.readyz, {200: Readiness, 503: Readiness}),
            Plain("/.well-known/jwks.json", self.jwks, {200: KeySet}, JWK_SET),
        ]
        own = [Route(one.path, one.endpoint) for one in plain]
        app = Starlette(
            routes=[*dialects.routes(), *own, *docs.routes(lambda: describe(dialects, plain))],
            lifespan=self.running,
            exception_handlers=dialects.exception_handlers(),
        )
        app.router.redirect_slashes = False
        return Edge(app, self.config.in_flight_max, dialects.refusal)

    def connections(self, edge: Edge) -> Callable[..., Connection]:
        """Returns what the server makes of each connection, for uvicorn's `http`."""
        return partial(Connection, HotPath(edge, self.authenticator, self.ledger, self.config.body_bytes_max))


async def _asked(thread: Executor, check: Callable[..., T], *arguments: Any) -> tuple[T | None, str]:
    """Returns what a part of the service answers, and "ok"; or nothing, and why."""
    asking = asyncio.get_running_loop().run_in_executor(thread, check, *arguments)
    try:
        return await asyncio.wait_for(asking, READY_TIMEOUT_S), "ok"
    except Unavailable as error:
        return None, error.message
    except TimeoutError:
        return None, f"does not answer within {READY_TIMEOUT_S:.0f} s"
