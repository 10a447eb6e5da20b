"""The Lua scripts of `lua/`, one typed function each, and the names of the keys that they work on.

Keys of a shard share the hash tag `{sNNN}`, so that a script finds all its keys on one node of a cluster:

    {s017}:shard               hash: epoch, generation, backlog; halted with its reason when allocation is stopped
    {s017}:dirty               set: ids of the series whose outbox holds records
    {s017}:series:<id>         hash: version, open, active, changing, position, last_id, last_date, last_number,
                               last_time, settled, records, and the counters, such as inc or incYearly:2026
    {s017}:outbox:<id>         stream of records, ids <position>-<k>; fields i id, f fingerprint, c code, n numbers,
                               t created (ms), d date, p previous id, m meta, s client's signature
    {s017}:ids:<id>:<bucket>   hash: the id index, see index.lua

A script that the server does not know (NOSCRIPT) means that the server has restarted, failed over or been flushed:
only `load` brings scripts to a server, and it is called after that server has been checked. The functions then raise
Stale, and the caller meets the server anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
import redis.asyncio
import redis.exceptions

from seriatim.errors import Damaged, Halted, Stale, Unavailable
from seriatim.formats import Window, counted, digits_max, rendering
from seriatim.model import Counted, Entry, Series, Standing, uuid_bytes, uuid_text

FOLDERS = (Path(__file__).parent / "lua", Path(__file__).parents[2] / "lua")
"""In the wheel, and beside `src` in a checkout."""

NAMES = ("allocate", "change", "enroll", "find", "install", "settle")


class Script(msgspec.Struct, frozen=True):
    """A script's text with its includes, and the SHA-1 that the server knows it by."""

    text: str
    sha: str


@cache
def script(name: str) -> Script:
    """Returns the script `name`.lua."""
    folder = next(folder for folder in FOLDERS if folder.is_dir())
    lines = []
    for line in (folder / f"{name}.lua").read_text().splitlines(keepends=True):
        included = line.removeprefix("-- @include ").strip()
        lines.append((folder / included).read_text() if line.startswith("-- @include ") else line)
    text = "".join(lines)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def shard_key(shard: int) -> str:
    """Returns the key of a shard's hash."""
    return f"{{s{shard:03d}}}:shard"


def dirty_key(shard: int) -> str:
    """Returns the key of a shard's set of dirty series."""
    return f"{{s{shard:03d}}}:dirty"


def series_key(shard: int, series_id: str) -> str:
    """Returns the key of a series' hash."""
    return f"{{s{shard:03d}}}:series:{series_id}"


def outbox_key(shard: int, series_id: str) -> str:
    """Returns the key of a series' outbox."""
    return f"{{s{shard:03d}}}:outbox:{series_id}"


def index_prefix(shard: int, series_id: str) -> str:
    """Returns what the keys of a series' id index begin with."""
    return f"{{s{shard:03d}}}:ids:{series_id}"


@contextmanager
def translated() -> Iterator[None]:
    """Turns the driver's errors into ours. After one the outcome of a script is unknown."""
    try:
        yield
    except redis.exceptions.NoScriptError as error:
        raise Stale from error
    except (redis.exceptions.OutOfMemoryError, redis.exceptions.ReadOnlyError) as error:
        raise Unavailable(f"Redis refuses to write: {error}. Nothing was allocated.") from error
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError) as error:
        raise Unavailable("Redis does not answer. Repeat the request with the same id.") from error
    except redis.exceptions.ResponseError as error:
        raise Unavailable(f"Redis refuses the script: {error}") from error


def load(client: redis.Redis) -> None:
    """Makes the server know the scripts. Only for a server that has been checked."""
    with translated():
        for name in NAMES:
            client.script_load(script(name).text)


# asynchronous: what requests call ---------------------------------------------------------------------------------


class Group:
    """The requests of one series in a call of allocate.lua."""

    def __init__(self, series: Series, window: Window) -> None:
        self.series = series
        self.window = window
        self.requests: list[tuple[bytes, bytes, bytes]] = []
        self._days: dict[date, int] = {}
        self._which: list[int] = []

    def add(self, day: date | None, request: tuple[bytes, bytes, bytes]) -> None:
        """Adds a request: a tag, a meta and a signature (or empty bytes), for a date or for today."""
        self._which.append(self._days.setdefault(day or self.window.today, len(self._days) + 1))
        self.requests.append(request)

    def head(self) -> tuple[Any, ...]:
        """Returns what allocate.lua reads of the group before its requests."""
        numbering, window = self.series.numbering, self.window
        rules = (
            window.from_ms,
            window.until_ms,
            window.today.isoformat(),
            numbering.chronology == "strict",
            numbering.padding,
            digits_max(numbering),
            numbering.first,
        )
        renderings = [rendering(numbering, day) for day in self._days]
        which = self._which if len(renderings) > 1 else ()
        return self.series.id, self.series.version, len(self.requests), rules, renderings, which


class Allocated(msgspec.Struct, frozen=True):
    """What allocate.lua replied: Redis' time, whether the shard turned dirty, and one reply a request."""

    now_ms: int
    turned_dirty: bool
    replies: list[list[Any]]


_pack = msgspec.msgpack.Encoder().encode


async def allocate(  # noqa: PLR0913 -- two of them are named
    client: redis.asyncio.Redis,
    standing: Standing,
    shard: int,
    groups: Sequence[Group],
    *,
    backlog_max: int,
    atomic: bool = False,
) -> Allocated:
    """Issues numbers; see allocate.lua for the replies. With `atomic` one refused request refuses all.

    Raises:
        Stale, Halted, Unavailable.
    """
    keys: list[str] = [shard_key(shard), dirty_key(shard)]
    arguments: list[Any] = []
    for group in groups:
        name = group.series.id
        keys += (series_key(shard, name), outbox_key(shard, name), index_prefix(shard, name))
        for request in group.requests:
            arguments += request
    with translated():
        reply = await client.evalsha(
            script("allocate").sha,
            len(keys),
            *keys,
            standing.epoch,
            str(standing.generation),
            str(backlog_max),
            str(int(atomic)),
            _pack([group.head() for group in groups]),
            *arguments,
        )
    state, second, turned_dirty, replies = reply
    if state == b"ok":
        return Allocated(second, turned_dirty == 1, replies)
    if state == b"halted":
        raise Halted(second.decode())
    raise Stale


class Found(msgspec.Struct, frozen=True):
    """Where an id stands; `entry` is None when the record is settled."""

    position: int
    entry: Entry | None


async def find(client: redis.asyncio.Redis, standing: Standing, series: Series, entry_id: str) -> Found | None:
    """Returns where an id of a series stands, None for an id that Redis does not know.

    Raises:
        Stale, Damaged, Unavailable.
    """
    shard, name = series.shard, series.id
    keys = (shard_key(shard), series_key(shard, name), outbox_key(shard, name), index_prefix(shard, name))
    with translated():
        reply = await client.evalsha(
            script("find").sha, 4, *keys, standing.epoch, str(standing.generation), uuid_bytes(entry_id)
        )
    match reply:
        case [b"found", position, record]:
            pairs = dict(zip(record[::2], record[1::2], strict=True))
            return Found(position, outbox_entry(name, position, pairs) if pairs else None)
        case [b"damaged"]:
            raise Damaged(f"A bucket of the id index of series {name} is missing in Redis.")
        case [b"stale"]:
            raise Stale
        case _:
            return None


async def outbox_after(
    client: redis.asyncio.Redis, standing: Standing, series: Series, position: int, limit: int
) -> list[Entry]:
    """Returns up to `limit` entries of the outbox behind `position`, in order.

    Raises:
        Stale, Unavailable.
    """
    pipeline = client.pipeline(transaction=False)
    pipeline.hmget(shard_key(series.shard), ["epoch", "generation"])
    pipeline.xrange(outbox_key(series.shard, series.id), f"{position + 1}-0", "+", limit)
    with translated():
        under, raw = await pipeline.execute()
    if under != [standing.epoch.encode(), b"%d" % standing.generation]:
        raise Stale
    return outbox_entries(series.id, raw)


class Standings(msgspec.Struct, frozen=True):
    """How far a series has come, the outbox included."""

    position: int
    number: int
    last_id: str | None


async def standings(client: redis.asyncio.Redis, series: Sequence[Series]) -> list[Standings | None]:
    """Returns how far each series has come; None for one that is not loaded."""
    pipeline = client.pipeline(transaction=False)
    for one in series:
        pipeline.hmget(series_key(one.shard, one.id), ["position", "last_number", "last_id"])
    with translated():
        rows = cast("list[list[bytes | None]]", await pipeline.execute())
    return [
        Standings(int(position), int(number or 0), uuid_text(last_id) if last_id else None)
        if position is not None
        else None
        for position, number, last_id in rows
    ]


async def counters(client: redis.asyncio.Redis, series: Series) -> tuple[dict[str, int], bool]:
    """Returns the last values of a series' counters, by field, and whether it has entries."""
    with translated():
        content = cast("dict[bytes, bytes]", await client.hgetall(series_key(series.shard, series.id)))
    values = {name.decode(): int(value) for name, value in content.items() if name.startswith(b"inc")}
    return values, b"last_id" in content


# synchronous: what workers, start-up and changes of definitions call ----------------------------------------------


def settle(client: redis.Redis, standing: Standing, series: Series, upto: int) -> int:
    """Drops the records up to position `upto`, which the store holds, from the outbox; returns how many are left.

    Raises:
        Stale, Unavailable.
        Damaged: Redis and the store contradict one another.
    """
    shard, name = series.shard, series.id
    keys = (shard_key(shard), dirty_key(shard), series_key(shard, name), outbox_key(shard, name))
    match _call(client, "settle", keys, standing, name, upto):
        case [b"ok", _, left]:
            return int(left)
        case [b"damaged", what]:
            raise Damaged(f"Series {name} cannot be settled: {what.decode()}.")
        case _:
            raise Stale


def outboxes(client: redis.Redis, shard: int, names: Sequence[str], limit: int) -> dict[str, list[Entry]]:
    """Returns the first records of some outboxes of a shard, about `limit` in all, by the ids of their series.

    Raises:
        Unavailable.
    """
    pipeline = client.pipeline(transaction=False)
    for name in names:
        pipeline.xrange(outbox_key(shard, name), count=max(1, limit // len(names)))
    with translated():
        replies = pipeline.execute()
    return {name: outbox_entries(name, raw) for name, raw in zip(names, replies, strict=True)}


def install(client: redis.Redis, standing: Standing, series: Series, *, opened: bool) -> bool:
    """Brings a series' definition into Redis; False when it is to be opened and Redis has lost it.

    Raises:
        Stale, Unavailable.
        Damaged: the series' hash is missing while other keys of the series are there.
    """
    shard, name = series.shard, series.id
    keys = (
        shard_key(shard),
        series_key(shard, name),
        outbox_key(shard, name),
        f"{index_prefix(shard, name)}:0",
    )
    flags = [str(int(flag)) for flag in (series.active, opened)]
    reply = _call(client, "install", keys, standing, series.version, *flags)
    if reply == b"damaged":
        raise Damaged(f"Redis has lost the hash of series {name} and kept other keys of it.")
    if reply == b"stale":
        raise Stale
    return bool(reply == b"ok")


def change(
    client: redis.Redis, standing: Standing, series: Series, *, numbering: bool
) -> tuple[Literal["ok", "version", "used", "changing", "missing"], int]:
    """Begins a change of a definition; see change.lua. The second value is since when (ms), for `changing`.

    Raises:
        Stale, Unavailable.
    """
    keys = (shard_key(series.shard), series_key(series.shard, series.id))
    reply = _call(client, "change", keys, standing, series.version, str(int(numbering)))
    if reply[0] == b"stale":
        raise Stale
    return reply[0].decode(), reply[1] if len(reply) > 1 else 0


def enroll(
    client: redis.Redis, epoch: str, shard: int, generation: int, raised: int
) -> Literal["ok", "missing", "foreign", "generation"]:
    """Ties a shard to the store's epoch and raises its generation; generation 0 is the first start's.

    The one script that is not called by its SHA-1: it runs before the others may be loaded.
    """
    with translated():
        reply = client.eval(script("enroll").text, 1, shard_key(shard), epoch, str(generation), str(raised))
    return cast("Literal['ok', 'missing', 'foreign', 'generation']", cast("bytes", reply).decode())


def outbox_entry(series_id: str, position: int, record: dict[bytes, bytes]) -> Entry:
    """Returns the entry of an outbox record."""
    previous, sig = record.get(b"p"), record.get(b"s")
    return Entry(
        series=series_id,
        id=uuid_text(record[b"i"]),
        position=position,
        code=record[b"c"].decode(),
        numbers=numbers(record[b"n"]),
        date=record[b"d"].decode(),
        created_at=int(record[b"t"]),
        previous_id=uuid_text(previous) if previous else None,
        meta=record.get(b"m", b"{}"),
        sig=sig.decode() if sig else None,
        fingerprint=record[b"f"],
    )


def numbers(text: bytes) -> tuple[Counted, ...]:
    """Returns what an entry's counters had, as allocate.lua writes it."""
    if b"=" not in text:
        return (counted("inc", int(text)),)
    pairs = (one.partition("=") for one in text.decode().split(";"))
    return tuple(counted(field, int(value)) for field, _, value in pairs)


def outbox_entries(series_id: str, raw: Any) -> list[Entry]:
    """Returns the entries of an XRANGE over an outbox."""
    return [outbox_entry(series_id, int(stream_id.partition(b"-")[0]), fields) for stream_id, fields in raw]


def _call(client: redis.Redis, name: str, keys: Sequence[str], standing: Standing, *arguments: Any) -> Any:
    with translated():
        return client.evalsha(script(name).sha, len(keys), *keys, standing.epoch, str(standing.generation), *arguments)
