"""The Lua scripts of `lua/`, one typed function each.

A script that the server does not know (NOSCRIPT) means that the server has restarted, failed over or been flushed:
only `load` brings scripts to a server, and it is called after that server has been checked. The functions then raise
Stale, and the caller meets the server anew. Replicas do not get scripts from their primary, and each standing has
scripts of its own: a server that was met in another one, and copied data since, does not know those of today.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import hiredis
import msgspec
import redis.asyncio
import redis.exceptions

from seriatim.errors import Damaged, Halted, Stale, Unavailable
from seriatim.formats import Window, fields_of
from seriatim.groups import Group, packed, rendered, ruled
from seriatim.keyspace import (
    LAYOUT,
    Issued,
    Rendering,
    Run,
    State,
    claims_prefix,
    company_key,
    counters_key,
    outbox_key,
    series_key,
    series_keys,
    shard_key,
    unpack_run,
    unpack_void,
    voids_key,
)
from seriatim.line import ANSWER_S, Line
from seriatim.model import (
    Defaults,
    Entry,
    Place,
    Series,
    Standing,
    Void,
    Why,
    uuid_bytes,
    uuid_text,
)

FOLDERS = (Path(__file__).parent / "lua", Path(__file__).parents[2] / "lua")
"""In the wheel, and beside `src` in a checkout."""

NAMES = (
    *("allocate", "change", "claim", "defaults", "enroll", "find"),
    *("install", "remove", "restore", "settle", "skip", "trace", "void"),
)


class Script(msgspec.Struct, frozen=True):
    """A script's text with its includes, and the SHA-1 that the server knows it by."""

    text: str
    sha: str


@lru_cache(maxsize=64)
def script(name: str, standing: Standing | None = None) -> Script:
    """Returns the script `name`.lua; with a standing, as servers know it that were met under that."""
    folder = next(folder for folder in FOLDERS if folder.is_dir())
    lines = []
    for line in (folder / f"{name}.lua").read_text().splitlines(keepends=True):
        included = line.removeprefix("-- @include ").strip()
        lines.append((folder / included).read_text() if line.startswith("-- @include ") else line)
    text = "".join(lines) + (f"-- {standing.epoch} {standing.generation}\n" if standing else "")
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


FAULTS: tuple[type[Exception], ...] = (
    *(redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, redis.exceptions.ResponseError, OSError),
    *(redis.exceptions.ClusterError, redis.exceptions.RedisClusterException),
)
"""What the driver raises when a command was not answered, or not as it should be."""


def _meaning(error: Exception) -> Stale | Unavailable:
    """Returns the driver's error as ours. After one the outcome of a script is unknown."""
    if isinstance(error, redis.exceptions.NoScriptError | redis.exceptions.ReadOnlyError):  # the latter: a replica
        return Stale()
    if isinstance(error, redis.exceptions.OutOfMemoryError):
        return Unavailable(f"Redis refuses to write: {error}. Nothing was allocated.")
    if isinstance(error, redis.exceptions.ResponseError):
        return Unavailable(f"Redis refuses the script: {error}")
    return Unavailable("Redis does not answer. Repeat the request with the same id.")


@contextmanager
def translated() -> Iterator[None]:
    """Turns the driver's errors into ours."""
    try:
        yield
    except FAULTS as error:
        raise _meaning(error) from error


@asynccontextmanager
async def answered() -> AsyncIterator[None]:
    """As `translated`; an answer that takes longer than ANSWER_S is an error, too.

    The client itself is to have no timeout: the driver would make a task of each thing that it sends.
    """
    with translated():
        async with asyncio.timeout(ANSWER_S):
            yield


TRACED_AT_ONCE = 200
"""So many items, each of which is read, that others do not wait for long."""


def load(server: redis.Redis, standing: Standing) -> None:
    """Makes a server know the scripts. Only for one that has been checked, and by the same connection."""
    with translated():
        for name in NAMES:
            server.script_load(script(name, standing).text)


def backlog(client: redis.Redis, shards: int) -> int:
    """Returns how many records wait for the store."""
    pipeline = client.pipeline(transaction=False)
    for shard in range(shards):
        pipeline.hget(shard_key(shard), "backlog")
    with translated():
        return sum(int(waiting or 0) for waiting in pipeline.execute())


Caller = redis.asyncio.Redis | Line


# asynchronous: what requests call ---------------------------------------------------------------------------------


class Allocated(msgspec.Struct, frozen=True):
    """What a script replied: Redis' time, the shards that turned dirty, and one reply a request.

    The replies are those of allocate.lua, skip.lua or void.lua; of the former, with the heads, and what was asked.
    """

    now_ms: int
    turned_dirty: list[int]
    replies: list[Any]
    asked: Sequence[bytes] = ()
    heads: Sequence[bytes] = ()

    def told(self) -> list[Any]:
        """Returns the replies of allocate.lua, but Issued for each entry that Redis holds.

        Raises:
            Damaged: a run is not whole.
        """
        told: list[Any] = []
        runs = map(unpack_run, self.heads)
        run, nth, previous = _REFUSED, 0, b""
        for request, reply in zip(self.asked, self.replies, strict=True):
            if type(reply) is int:
                if nth == run.count:
                    run = next(runs, _REFUSED)
                    nth, previous = 0, run.previous
                told.append(Issued(run, nth, request, previous))
                nth, previous = nth + 1, request[:16]
            elif reply[0] == b"replayed":
                told.append(_replayed(*reply[1:]))
            elif reply[0] == b"twin":
                of = next(one for one in reversed(told) if type(one) is Issued and one.request[:16] == request[:16])
                told.append(msgspec.structs.replace(of, replayed=True))
            else:
                told.append(reply)
        return told


_REFUSED = Run("", 0, 0, 0, 0, b"", (), Rendering("", (), "", (), claimed=False))
"""Of entries that were not issued after all, as their batch is refused."""


def _replayed(position: int, void: bytes, head: bytes, request: bytes, previous: bytes) -> Issued:
    run = unpack_run(head)
    return Issued(run, position - run.first, request, previous or run.previous, void, replayed=True)


async def allocate(
    client: Caller,
    standing: Standing,
    groups: Sequence[Group],
    *,
    backlog_max: int,
    atomic: bool = False,
) -> Allocated:
    """Issues numbers in series of any shards; see allocate.lua for the replies.

    Groups are in the order of their shards; on a Redis Cluster, all are of one. With `atomic` one refused request
    refuses all.

    Raises:
        Stale, Halted, Unavailable.
    """
    keys, shards, said = packed(groups)
    arguments = (str(backlog_max), str(int(atomic)), *said)
    asked = [order.request for group in groups for order in group.orders]
    return _answered(await _evaluate(client, "allocate", keys, standing, *arguments), shards, asked)


def _answered(reply: Any, shards: Iterable[int], asked: Sequence[bytes] = ()) -> Allocated:
    call, second, turned_dirty, replies, *heads = reply
    if call == b"ok":
        turned = [shard for shard, turned in zip(shards, turned_dirty, strict=True) if turned]
        return Allocated(second, turned, replies, asked, *heads)
    if call == b"halted":
        raise Halted(second.decode())
    raise Stale


async def skip(  # noqa: PLR0913 -- as its script takes them
    client: Caller,
    standing: Standing,
    series: Series,
    *,
    window: Window,
    counter: int,
    to: int,
    why: Why,
    backlog_max: int,
) -> Allocated:
    """Raises a counter of a series, the format's `counter`th; see skip.lua for the reply.

    Raises:
        Stale, Halted, Unavailable.
    """
    shard, name = series.shard, series.id
    today = rendered(series.numbering, window.today)
    rules = ruled(series.numbering, window)
    head = msgspec.msgpack.encode((name, series.version, msgspec.Raw(rules), msgspec.Raw(today)))
    field = fields_of(series.numbering, window.today)[counter - 1]
    arguments = (str(backlog_max), head, field, str(to), why.reason, why.actor)
    return _answered(await _evaluate(client, "skip", series_keys(shard, name), standing, *arguments), (shard,))


async def void(  # noqa: PLR0913 -- as its script takes them
    client: Caller,
    standing: Standing,
    series: Series,
    entry_id: str,
    *,
    why: Why,
    backlog_max: int,
) -> Allocated:
    """Voids an entry of a series; see void.lua for the reply.

    Raises:
        Stale, Halted, Unavailable.
    """
    shard, name = series.shard, series.id
    arguments = (str(backlog_max), name, uuid_bytes(entry_id), why.reason, why.actor)
    return _answered(await _evaluate(client, "void", series_keys(shard, name), standing, *arguments), (shard,))


async def claim(  # noqa: PLR0913 -- as its script takes them
    client: redis.asyncio.Redis, standing: Standing, shard: int, *, company: str, kind: str, entry_id: str
) -> tuple[Literal["claimed", "none", "changing", "unloaded"], Any]:
    """Returns in which series an id of a type is numbered; see claim.lua. The second value goes with the first.

    Raises:
        Stale, Halted, Damaged, Unavailable.
    """
    keys = (shard_key(shard), company_key(shard, company), claims_prefix(shard, company))
    reply = await _evaluate(client, "claim", keys, standing, uuid_bytes(entry_id), kind)
    match reply:
        case [b"claimed", series]:
            return "claimed", uuid_text(series)
        case [b"changing", ms]:
            return "changing", ms
        case [b"none" | b"unloaded" as word]:
            return cast("Literal['none', 'unloaded']", word.decode()), None
        case [b"damaged", what]:
            raise Damaged(f"Redis has lost claims of company {company}: {what.decode()}.")
        case [b"halted", reason]:
            raise Halted(reason.decode())
        case _:
            raise Stale


class Found(msgspec.Struct, frozen=True):
    """Where an id stands; `entry` is None when the record is settled."""

    position: int
    entry: Entry | None
    void: Void | None


async def find(client: redis.asyncio.Redis, standing: Standing, series: Series, entry_id: str) -> Found | None:
    """Returns where an id of a series stands, None for an id that Redis does not know.

    Raises:
        Stale, Damaged, Unavailable.
    """
    name = series.id
    reply = await _evaluate(client, "find", series_keys(series.shard, name), standing, name, uuid_bytes(entry_id))
    match reply:
        case [b"found", position, voided]:
            return Found(position, None, unpack_void(name, position, voided))
        case [b"found", position, voided, head, request, previous]:
            kept = _replayed(position, voided, head, request, previous).entry()
            return Found(position, kept, unpack_void(name, position, voided))
        case [b"damaged", what]:
            raise Damaged(f"Redis has lost data of series {name}: {what.decode()}.")
        case [b"stale"]:
            raise Stale
        case _:
            return None


async def trace(
    client: redis.asyncio.Redis, standing: Standing, series: Series, item: int | None, place: Place
) -> tuple[list[int], int, bool]:
    """Returns which items of the outbox have records of a series behind a place, the newest first; see trace.lua.

    The second value is the `item` to go on with, 0 at the end; the third, whether entries of the series are void.

    Raises:
        Stale, Damaged, Unavailable.
    """
    keys = series_keys(series.shard, series.id)
    said = (series.id, "" if item is None else str(item), *map(str, place), str(TRACED_AT_ONCE))
    match await _evaluate(client, "trace", keys, standing, *said):
        case [b"traced", found, following, voids]:
            return found, following, bool(voids)
        case [b"damaged", what]:
            raise Damaged(f"Redis has lost data of series {series.id}: {what.decode()}.")
        case _:
            raise Stale


async def voids(client: redis.asyncio.Redis, series: Series, positions: Sequence[int]) -> dict[int, Void]:
    """Returns the voids of some entries, by position."""
    async with answered():
        packed = await client.hmget(voids_key(series), [str(position) for position in positions])
    found = (unpack_void(series.id, *pair) for pair in zip(positions, cast("list[bytes | None]", packed), strict=True))
    return {void.voids: void for void in found if void is not None}


async def voided(client: redis.asyncio.Redis, series: Series) -> set[int]:
    """Returns the positions of all void entries of a series."""
    async with answered():
        return {int(position) for position in await client.hkeys(voids_key(series))}


class Standings(msgspec.Struct, frozen=True):
    """How far a series has come, the outbox included; the values are those of the fields that were asked for."""

    state: State
    values: dict[str, int]


async def standings(
    client: redis.asyncio.Redis, wanted: Sequence[tuple[Series, Sequence[str]]]
) -> tuple[int, list[Standings | None]]:
    """Returns the server's time in milliseconds, and how far each series has come; None for one that is not loaded.

    Args:
        client: the server's.
        wanted: series, each with the fields of counters to tell.
    """
    pipeline = client.pipeline(transaction=False)
    pipeline.execute_command("TIME")  # which the method `time` refuses on a cluster
    for one, fields in wanted:
        pipeline.hget(series_key(one.shard), one.id)
        pipeline.hmget(counters_key(one.shard, one.id), list(fields))
    async with answered():
        (seconds, microseconds), *rows = await pipeline.execute()
    pairs = zip(wanted, rows[::2], rows[1::2], strict=True)
    found = [_standings(fields, packed, aside) for (_, fields), packed, aside in pairs]
    return int(seconds) * 1000 + int(microseconds) // 1000, found


def _standings(fields: Sequence[str], packed: bytes | None, aside: list[bytes | None]) -> Standings | None:
    if packed is None:
        return None
    state = State.unpack(packed)
    values = {field: int(value) for field, value in zip(fields, aside, strict=True) if value is not None}
    return Standings(state, values | {name: state.counters[name] for name in fields if name in state.counters})


async def counters(client: redis.asyncio.Redis, series: Series) -> tuple[dict[str, int], State]:
    """Returns the last values of a series' counters, by field, and where it stands."""
    pipeline = client.pipeline(transaction=False)
    pipeline.hget(series_key(series.shard), series.id)
    pipeline.hgetall(counters_key(series.shard, series.id))
    async with answered():
        packed, aside = await pipeline.execute()
    state = State.unpack(packed) if packed else State()
    return {name.decode(): int(value) for name, value in aside.items()} | state.counters, state


async def clock(client: redis.asyncio.Redis) -> int:
    """Returns the time of the server, in milliseconds since 1970.

    Raises:
        Unavailable.
    """
    async with answered():
        seconds, microseconds = await client.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


async def _evaluate(client: Caller, name: str, keys: Sequence[str], standing: Standing, *arguments: str | bytes) -> Any:
    sha, under = script(name, standing).sha, (standing.epoch, str(standing.generation))
    said: Any = ("EVALSHA", sha, len(keys), *keys, *under, *arguments)
    if isinstance(client, Line):
        with translated():
            return await client.call(hiredis.pack_command(said))
    async with answered():
        return await client.execute_command(*said)  # type: ignore[no-untyped-call]


# synchronous: what workers, start-up and changes of definitions call ----------------------------------------------


def settled(client: redis.Redis, shard: int) -> int:
    """Returns up to which item of a shard's outbox all are in the store and dropped.

    Raises:
        Stale: the shard is not there.
        Unavailable.
    """
    with translated():
        item = client.hget(shard_key(shard), "settled")
    if item is None:
        raise Stale
    return int(item)


def settle(  # noqa: PLR0913 -- as its script takes them
    client: redis.Redis, standing: Standing, shard: int, *, after: int, upto: int, count: int
) -> None:
    """Drops from a shard's outbox what the store holds: the items behind `after` to `upto`, which have `count` records.

    Raises:
        Stale: also when somebody else has settled some of them. Nothing is dropped.
        Unavailable.
        Damaged: Redis and the store contradict one another. Nothing is dropped.
    """
    match _call(client, "settle", (shard_key(shard), outbox_key(shard)), standing, after, upto, count):
        case [b"ok", _]:
            return
        case [b"damaged", what]:
            raise Damaged(f"Shard {shard} cannot be settled: {what.decode()}.")
        case _:
            raise Stale


def install(client: redis.Redis, standing: Standing, series: Series, *, opened: bool) -> bool:
    """Brings a series' definition into Redis; False when it is to be opened and Redis has lost it.

    Raises:
        Stale, Unavailable.
        Damaged: Redis does not know the series while its index is there.
    """
    shard, prefix = series_keys(series.shard, series.id)[::3]
    keys = (shard, series_key(series.shard), f"{prefix}:0")
    flags = [str(int(flag)) for flag in (series.active, opened)]
    reply = _call(client, "install", keys, standing, series.id, series.version, *flags)
    if reply == b"damaged":
        raise Damaged(f"Redis has lost series {series.id} and kept its index.")
    if reply == b"stale":
        raise Stale
    return bool(reply == b"ok")


def install_defaults(client: redis.Redis, standing: Standing, defaults: Defaults, *, opened: bool) -> bool:
    """Brings a company's default series into Redis; False when they are to be opened and Redis has lost them.

    Raises:
        Stale, Unavailable.
        Damaged: the company's hash is missing while its claims are there.
    """
    shard, company = defaults.shard, defaults.company
    keys = (shard_key(shard), company_key(shard, company), f"{claims_prefix(shard, company)}:0")
    pairs = [part for kind, series in defaults.series.items() for part in (kind, uuid_bytes(series))]
    reply = _call(client, "defaults", keys, standing, defaults.version, str(int(opened)), *pairs)
    if reply == b"damaged":
        raise Damaged(f"Redis has lost the hash of company {company} and kept its claims.")
    if reply == b"stale":
        raise Stale
    return bool(reply == b"ok")


Change = tuple[Literal["ok", "version", "used", "changing", "missing"], int]
"""What change.lua replied; the second value is for how long (ms), for `changing`."""


def change(client: redis.Redis, standing: Standing, series: Series, *, unused: bool) -> Change:
    """Begins a change of a definition, with `unused` only of a series without records.

    Raises:
        Stale, Unavailable.
    """
    keys = (shard_key(series.shard), series_key(series.shard))
    return _change(_call(client, "change", keys, standing, series.version, series.id, str(int(unused))))


def change_defaults(client: redis.Redis, standing: Standing, defaults: Defaults) -> Change:
    """Begins a change of a company's defaults.

    Raises:
        Stale, Unavailable.
    """
    keys = (shard_key(defaults.shard), company_key(defaults.shard, defaults.company))
    return _change(_call(client, "change", keys, standing, defaults.version, "", "0"))


def _change(reply: list[Any]) -> Change:
    if reply[0] == b"stale":
        raise Stale
    return reply[0].decode(), reply[1] if len(reply) > 1 else 0


def remove(client: redis.Redis, standing: Standing, series: Series) -> None:
    """Forgets a series that the store has deleted.

    Raises:
        Stale, Unavailable.
        Damaged: the series has records.
    """
    shard, prefix = series_keys(series.shard, series.id)[::3]
    reply = _call(client, "remove", (shard, series_key(series.shard), f"{prefix}:0"), standing, series.id)
    if reply == b"used":
        raise Damaged(f"Series {series.id} was deleted from the store, and Redis holds records of it.")
    if reply == b"stale":
        raise Stale


def restore(  # noqa: PLR0913 -- as its script takes them
    client: redis.Redis,
    standing: Standing,
    keys: tuple[str, str, str],
    *,
    counted: str,
    before: int,
    entries: Sequence[bytes],
    state: bytes = b"",
) -> None:
    """Adds ids and their values, in turn, to an index that holds `before`, then sets the series' state, if given.

    `keys` are that of the shard's hash, that of the hash whose field `counted` says how many ids there are (a series'
    id, or claims), and the index's prefix.

    Raises:
        Stale, Unavailable.
        Damaged: the index is not as it was left.
    """
    joined = b"".join(part for one in entries for part in (len(one).to_bytes(4), one))
    reply = _call(client, "restore", keys, standing, counted, before, joined, state)
    if reply == b"stale":
        raise Stale
    if reply == b"damaged":
        raise Damaged("Something else writes to Redis while it is built anew. Stop that, and recover again.")


def enroll(
    client: redis.Redis, epoch: str, shard: int, generation: int, raised: int
) -> Literal["ok", "missing", "foreign", "generation"]:
    """Ties a shard to the store's epoch and raises its generation; generation 0 is the first start's.

    The one script that is not called by its SHA-1: it runs before the others may be loaded.
    """
    with translated():
        reply = client.eval(script("enroll").text, 1, shard_key(shard), epoch, str(generation), str(raised), LAYOUT)
    return cast("Literal['ok', 'missing', 'foreign', 'generation']", cast("bytes", reply).decode())


def _call(client: redis.Redis, name: str, keys: Sequence[str], standing: Standing, *arguments: Any) -> Any:
    with translated():
        under = standing.epoch, str(standing.generation)
        return client.evalsha(script(name, standing).sha, len(keys), *keys, *under, *arguments)
