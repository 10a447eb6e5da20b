"""A Valkey that is enrolled and knows the scripts, and calls of them without anything above."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import date
from typing import Any, TypeVar

import redis
import redis.asyncio
from msgspec.structs import replace

from seriatim import keyspace, outbox, scripts
from seriatim.formats import Window
from seriatim.groups import Group, Order
from seriatim.model import Entry, Numbering, Record, Series, Standing, fingerprint, uuid_bytes
from stack import Valkey, new_id

T = TypeVar("T")

STANDING = Standing("epoch", 1)
ALWAYS = (0, 2**52)
TODAY = date(2026, 11, 21)
SHARD = 3
LOAD = 80
"""How many ids an index has for each of its buckets, as index.lua has it."""
MARK = fingerprint(b"{}")


def make_series(
    *, version: int = 1, active: bool = True, shard: int = SHARD, start: int | None = None, **numbering: Any
) -> Series:
    return Series(
        pk=1,
        id=new_id(),
        ordinal=1,
        company=new_id(),
        type="invoice",
        name="",
        description="",
        code="",
        numbering=replace(Numbering(prefix="A-", padding=3, start=start), **numbering),
        sig=None,
        active=active,
        default=True,
        version=version,
        shard=shard,
        loaded_epoch=None,
        genesis=None,
        position=0,
        k=0,
        head=None,
        claims=0,
        created_at=0,
        updated_at=0,
    )


def enrolled(valkey: Valkey, *more: int) -> Valkey:
    """A Valkey whose shard is enrolled, with more if wanted, and that knows the scripts."""
    for shard in (SHARD, *more):
        assert scripts.enroll(valkey.client, STANDING.epoch, shard, 0, 1) == "ok"
    scripts.load(valkey.client, STANDING)
    return valkey


def ask(server: Valkey, call: Callable[[redis.asyncio.Redis], Awaitable[T]]) -> T:
    """Runs one of the asynchronous functions."""

    async def run() -> T:
        async with redis.asyncio.Redis.from_url(server.url) as client:
            return await call(client)

    return asyncio.run(run())


def opened(server: Valkey, series: Series) -> Series:
    assert scripts.install(server.client, STANDING, series, opened=False)
    assert scripts.install(server.client, STANDING, series, opened=True)
    return series


def stands(client: redis.Redis, shard: int, series: str) -> keyspace.State:
    """Where Redis says that a series stands."""
    packed = client.hget(keyspace.series_key(shard), series)
    assert isinstance(packed, bytes)
    return keyspace.State.unpack(packed)


def group(series: Series, ids: list[str], *days: str, mark: bytes = MARK, window: tuple[int, int] = ALWAYS) -> Group:
    """Requests for these ids, each with a meta; for these days, or else for today."""
    on = list(map(date.fromisoformat, days)) if days else [None] * len(ids)
    pairs = zip(ids, on, strict=True)
    orders = [Order(keyspace.pack_request(uuid_bytes(one) + mark, b'{"k":"v"}'), day) for one, day in pairs]
    return Group(series, Window(*window, TODAY), orders)


def allocate(server: Valkey, *groups: Group, backlog_max: int = 10**6, atomic: bool = False) -> list[list[Any]]:
    return allocated(server, *groups, backlog_max=backlog_max, atomic=atomic).replies


def allocated(server: Valkey, *groups: Group, backlog_max: int = 10**6, atomic: bool = False) -> scripts.Allocated:
    """As `allocate`, with the rest of what the script replied."""
    answered = ask(
        server,
        lambda client: scripts.allocate(client, STANDING, groups, backlog_max=backlog_max, atomic=atomic),
    )
    return replace(answered, replies=list(map(said, answered.told())))


def said(reply: Any) -> list[Any]:
    """A reply as the script words it: of an entry [b"issued" or b"replayed", position, the entry, void]."""
    if not isinstance(reply, keyspace.Issued):
        return list(reply)
    word = b"replayed" if reply.replayed else b"issued"
    return [word, reply.position, reply.entry(), reply.void]


def settle(server: Valkey, items: int | None = None, *, shard: int = SHARD) -> int:
    """Settles the first items of a shard's outbox, or all; returns how many records they have."""
    after = scripts.settled(server.client, shard)
    read = list(outbox.items(server.client, shard, after))[:items]
    upto = keyspace.item_number(read[-1]) if read else after
    count = sum(len(keyspace.part_records(part)) for item in read for part in item[1].items())
    scripts.settle(server.client, STANDING, shard, after=after, upto=upto, count=count)
    return count


def records_of(server: Valkey, series: Series) -> list[Record]:
    """What the outbox has of a series, read from its beginning."""
    parts = outbox.parts(server.client, series.shard)
    return [one for part in parts for one in keyspace.part_records(part) if one.series == series.id]


def find_all(server: Valkey, series: Series, entries: list[str]) -> list[scripts.Found | None]:
    async def call() -> list[scripts.Found | None]:
        async with redis.asyncio.Redis.from_url(server.url) as client:
            return [await scripts.find(client, STANDING, series, entry) for entry in entries]

    return asyncio.run(call())


def told(reply: list[Any]) -> Entry:
    """The entry that a reply of allocate.lua holds; of which series, it does not say."""
    assert reply[0] in (b"issued", b"replayed")
    entry: Entry = reply[2]
    return entry
