"""The outbox of a shard: records that Redis holds and the store does not yet, in the order in which calls made them.

A worker reads it from its beginning. Who wants the records of one series goes the other way: each item says which one
before it has some.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import ceil
from typing import Any, cast

import msgspec
import redis
import redis.asyncio

from seriatim import scripts
from seriatim.errors import Damaged, Stale
from seriatim.keyspace import RUN_MAX, item_number, outbox_key, part_records, part_series, shard_key
from seriatim.model import Entry, Place, Record, Series, Standing
from seriatim.scripts import answered, translated

ITEMS_AT_ONCE = 1000


class Outbox(msgspec.Struct, frozen=True):
    """Records of a series that the store may lack, in order, and whether entries of the series are void."""

    records: list[Record]
    voids: bool


class Slice(msgspec.Struct, frozen=True):
    """The records of some items of a shard, by their series, each in its order.

    Args:
        after: the item behind which they were read.
        upto: the last of them.
        count: how many records they have.
        records: those, by the series' ids.
    """

    after: int
    upto: int
    count: int
    records: dict[str, list[Record]]


async def records_after(
    client: redis.asyncio.Redis, standing: Standing, series: Series, place: Place, limit: int
) -> Outbox:
    """Returns up to `limit` records of a series that are in the outbox behind `place`.

    What is settled meanwhile is gone from the outbox, and the store has it with all before it: that is left out, so
    that the records always follow one another.

    Raises:
        Stale, Damaged, Unavailable.
    """
    wanted, following, voids = await scripts.trace(client, standing, series, None, place)
    while following:
        more, following, voids = await scripts.trace(client, standing, series, following, place)
        wanted += more
    wanted.reverse()
    records: list[Record] = []
    asked = seen = 0
    while seen < len(wanted) and len(records) < limit:
        asked = _likely(limit, len(records), seen, asked)
        for found in await _items(client, standing, series.shard, wanted[seen : seen + asked]):
            if found is None:
                records.clear()
            else:
                records += [record for record in _of(series.id, found) if record.place > place]
        seen += asked
    return Outbox(records[:limit], voids)


def _likely(limit: int, records: int, items: int, asked: int) -> int:
    """Returns how many items to ask for: no more than could be needed, then as many as those before let expect.

    But no more than twice as many as were `asked` for before.
    """
    if not asked:
        return max(2, limit // RUN_MAX)
    return min(2 * asked, ceil((limit - records) * items / max(1, records)))


async def entries_at(
    client: redis.asyncio.Redis, wanted: Sequence[tuple[Series, int, int]]
) -> tuple[list[Entry], list[tuple[Series, int]]]:
    """Returns those of some entries that an outbox has, given their series, position, and the series' last item.

    The second value has those of which that item has later records only.
    """
    pipeline = client.pipeline(transaction=False)
    for series, _, item in wanted:
        pipeline.xrange(outbox_key(series.shard), item, item)
    async with answered():
        found = await pipeline.execute()
    entries: list[Entry] = []
    behind: list[tuple[Series, int]] = []
    for (series, position, _), at_item in zip(wanted, found, strict=True):
        for item in at_item:
            at = [one for one in _of(series.id, item) if isinstance(one, Entry) and one.position == position]
            entries += at
            behind += [] if at else [(series, position)]
    return entries, behind


def read(client: redis.Redis, shard: int, after: int, limit: int) -> Slice:
    """Returns about `limit` records of a shard, behind item `after`: items are not divided.

    Raises:
        Unavailable.
        Damaged: a run is not whole.
    """
    upto, count = after, 0
    records: dict[str, list[Record]] = {}
    asked = seen = 0
    more = True
    while more and count < limit:
        asked = _likely(limit, count, seen, asked)
        some = _some(client, shard, upto, asked)
        for item in some:
            upto = item_number(item)
            for part in item[1].items():
                found = part_records(part)
                records.setdefault(part_series(part), []).extend(found)
                count += len(found)
            if count >= limit:
                break
        seen, more = seen + len(some), len(some) == asked
    return Slice(after, upto, count, records)


def items(client: redis.Redis, shard: int, after: int = 0) -> Iterator[Any]:
    """Returns the items of a shard behind one.

    Raises:
        Unavailable.
    """
    while some := _some(client, shard, after, ITEMS_AT_ONCE):
        yield from some
        after = item_number(some[-1])


def _some(client: redis.Redis, shard: int, after: int, count: int) -> list[Any]:
    with translated():
        return cast("list[Any]", client.xrange(outbox_key(shard), f"({after}", "+", count))


def parts(client: redis.Redis, shard: int) -> Iterator[tuple[bytes, bytes]]:
    """Returns the runs, skips and voids that a shard has, in their order.

    Raises:
        Unavailable.
    """
    return (part for item in items(client, shard) for part in item[1].items())


def check_length(client: redis.Redis, shard: int) -> None:
    """Checks that a shard has all the items that are not settled.

    Raises:
        Damaged: some are lost, or there are more.
        Unavailable.
    """
    with translated():
        pipeline = client.pipeline(transaction=False)
        pipeline.hmget(shard_key(shard), ["written", "settled"])
        pipeline.xlen(outbox_key(shard))
        (written, settled), length = pipeline.execute()
    expected = int(written or 0) - int(settled or 0)
    if length != expected:
        raise Damaged(f"The outbox of shard {shard} holds {length} items instead of {expected}.")


async def _items(client: redis.asyncio.Redis, standing: Standing, shard: int, wanted: Iterable[int]) -> list[Any]:
    """Returns some items of a shard, None for those that are settled."""
    pipeline = client.pipeline(transaction=False)
    pipeline.hmget(shard_key(shard), ["epoch", "generation"])
    for item in wanted:
        pipeline.xrange(outbox_key(shard), item, item)
    async with answered():
        under, *found = await pipeline.execute()
    if under != [standing.epoch.encode(), b"%d" % standing.generation]:
        raise Stale
    return [at_item[0] if at_item else None for at_item in found]


def _of(series_id: str, item: Any) -> list[Record]:
    """Returns the records that an item has of a series."""
    parts = (part for part in item[1].items() if part_series(part) == series_id)
    return [record for part in parts for record in part_records(part)]
