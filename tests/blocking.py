"""Both clients for one story: `AsyncClient` called like `Client`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, cast

import httpx

from seriatim.client import AsyncClient, Client

Kind = Literal["Client", "AsyncClient"]
KINDS: tuple[Kind, ...] = ("Client", "AsyncClient")

T = TypeVar("T")


@contextmanager
def calling(kind: Kind, url: str, key: str, **more: Any) -> Iterator[Client]:
    """A client of either kind, with the methods of `Client`. There is no TLS here; to get ready for it takes 50 ms."""
    if kind == "Client":
        with httpx.Client(verify=False) as http:
            yield Client(url, key, http=http, **more)
        return
    with asyncio.Runner() as runner:
        waited = httpx.AsyncClient(verify=False)
        yield cast("Client", _Blocking(AsyncClient(url, key, http=waited, **more), runner))
        runner.run(waited.aclose())


class _Blocking:
    def __init__(self, client: AsyncClient, runner: asyncio.Runner) -> None:
        self._client = client
        self._runner = runner

    def __repr__(self) -> str:
        return repr(self._client)

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            made = getattr(self._client, name)(*args, **kwargs)
            return self._runner.run(made) if inspect.iscoroutine(made) else self._each(made)

        return call

    def _each(self, made: AsyncIterator[T]) -> Iterator[T]:
        async def following() -> list[T]:
            return [await anext(made)]

        while True:
            try:
                yield from self._runner.run(following())
            except StopAsyncIteration:
                return
