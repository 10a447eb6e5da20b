"""The parts of one API process and of one worker, in the test's own process, on real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette

from seriatim import signing
from seriatim.config import Config
from seriatim.http.app import Front
from seriatim.model import SeriesFields, shard_of
from seriatim.signing import Signer
from seriatim.store import Store
from seriatim.worker import Drainer
from stack import Valkey, new_id, until

SHARDS = 4


def make_config(valkey: Valkey, store_url: str) -> Config:
    key = valkey.directory.path / "signing-key.json"
    return Config(redis_url=valkey.url, store_url=store_url, signing_key=str(key), shards=SHARDS)


@asynccontextmanager
async def running_front(config: Config) -> AsyncIterator[Front]:
    """An API process without its HTTP, met with its server."""
    front = Front(config)
    async with front.running(Starlette()):
        await front.watch.meet()
        yield front


def make_drainer(valkey: Valkey, store: Store, config: Config) -> Drainer:
    path = Path(config.signing_key)
    signing.create_key(path)
    signer = Signer(path, config.issuer)
    store.add_signing_key(signer.kid, signer.public_jwk)
    return Drainer(valkey.client, store, signer, config)


def drain_all(drainer: Drainer) -> None:
    until(lambda: not any(drainer.drain(shard) for shard in range(SHARDS)))


def id_in(shard: int) -> str:
    """The id of a series of this shard."""
    return next(series for series in iter(new_id, "") if shard_of(series, SHARDS) == shard)


async def make_series(front: Front, company: str, fields: SeriesFields | None = None, series: str = "") -> str:
    series = series or new_id()
    await front.definitions.put(company, series, fields or SeriesFields(prefix="T-"))
    return series
