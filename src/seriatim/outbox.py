"""The outbox of a series: records that Redis holds and the store does not yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import msgspec
import redis
import redis.asyncio

from seriatim.errors import Stale
from seriatim.keyspace import RUN_MAX, item_records, outbox_key, shard_key, voids_key
from seriatim.model import Entry, Place, Record, Series, Standing, follows
from seriatim.scripts import answered, translated


class Reading:
    """The records of an outbox behind a place, in rounds, as an item may hold one record or many.

    The first round asks for no more items than could be needed, a later one for as many as those before let expect,
    or twice as many as the one before. What is settled between two rounds is gone from the outbox, and the store has
    it with all before it: these are then left out, so that the records always follow one another.
    """

    def __init__(self, series_id: str, place: Place, limit: int) -> None:
        self.series_id = series_id
        self.records: list[Record] = []
        self.ended = False
        self._after = place
        self._limit = limit
        self._count = max(2, limit // RUN_MAX)
        self._items = 0

    def range(self) -> tuple[str, str, int]:
        """Returns what XRANGE is to be asked for."""
        position, k = self.records[-1].place if self.records else self._after
        return f"({position}-{k}", "+", self._count

    def take(self, items: Any) -> None:
        """Takes the answer to it.

        Raises:
            Damaged: a run is not whole.
        """
        for number, item in enumerate(items):
            found = item_records(self.series_id, item, self._after[0])
            if number == 0 and self.records and not follows(self.records[-1].place, found[0].place):
                self.records.clear()
            self.records += found
            self._items += 1
            if len(self.records) >= self._limit:
                break
        self.ended = len(items) < self._count or len(self.records) >= self._limit
        if not self.ended:
            likely = ceil((self._limit - len(self.records)) * self._items / len(self.records))
            self._count = min(2 * self._count, likely)


class Outbox(msgspec.Struct, frozen=True):
    """Records that the store may lack, in order, and whether entries of the series are void."""

    records: list[Record]
    voids: bool


async def records_after(
    client: redis.asyncio.Redis, standing: Standing, series: Series, place: Place, limit: int
) -> Outbox:
    """Returns up to `limit` records of the outbox behind `place`.

    Raises:
        Stale, Damaged, Unavailable.
    """
    reading = Reading(series.id, place, limit)
    while True:
        pipeline = client.pipeline(transaction=False)
        pipeline.hmget(shard_key(series.shard), ["epoch", "generation"])
        pipeline.xrange(outbox_key(series.shard, series.id), *reading.range())
        pipeline.exists(voids_key(series))
        async with answered():
            under, items, voids = await pipeline.execute()
        if under != [standing.epoch.encode(), b"%d" % standing.generation]:
            raise Stale
        reading.take(items)
        if reading.ended:
            return Outbox(reading.records[:limit], bool(voids))


async def entries_at(client: redis.asyncio.Redis, wanted: Sequence[tuple[Series, int]]) -> list[Entry]:
    """Returns those of some entries, by series and position, that are in an outbox."""
    pipeline = client.pipeline(transaction=False)
    for series, position in wanted:
        pipeline.xrange(outbox_key(series.shard, series.id), f"{position}-0", "+", 1)
    async with answered():
        found = await pipeline.execute()
    return [
        record
        for (series, position), items in zip(wanted, found, strict=True)
        for item in items
        for record in item_records(series.id, item, position - 1)
        if isinstance(record, Entry) and record.position == position
    ]


def records_of(client: redis.Redis, shard: int, after: Mapping[str, Place], limit: int) -> dict[str, list[Record]]:
    """Returns records of some outboxes of a shard behind a place of each series, by the ids of the series.

    They are about `limit` in all: runs are not divided. (0, 0) is the place before the first record.

    Raises:
        Unavailable.
        Damaged: a run is not whole.
    """
    share = max(1, limit // len(after))
    readings = [Reading(name, place, share) for name, place in after.items()]
    while asking := [reading for reading in readings if not reading.ended]:
        pipeline = client.pipeline(transaction=False)
        for reading in asking:
            pipeline.xrange(outbox_key(shard, reading.series_id), *reading.range())
        with translated():
            replies = pipeline.execute()
        for reading, items in zip(asking, replies, strict=True):
            reading.take(items)
    return {reading.series_id: reading.records for reading in readings}
