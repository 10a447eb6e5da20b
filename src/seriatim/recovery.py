"""Meeting a Redis server: the checks that let a process allocate, and that stop it when going on could repeat a number.

The store holds epoch, generation and state. A server that the store does not know by its run id must be at the same
epoch and generation, and must hold every record that the store lacks; then the generation is raised in both, in two
phases, so that a copy of the data from before is known for what it is. Missing is never zero. A replica that was
promoted may lack records of which nobody else knows; it is never met, but recovered. Of a cluster each node is met.

Likewise Redis notes which database server it was last compared with: another one, such as a standby in its place, may
lack what was settled, and Redis has dropped that.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, cast

import msgspec
import redis
import structlog

from seriatim import clients, keyspace, outbox, scripts
from seriatim.allocator import CLOCK_SKEW_MS_MAX, LAPSED, Gate
from seriatim.clients import Server
from seriatim.config import Config
from seriatim.errors import Damaged, Halted, Stale, Unavailable
from seriatim.model import Place, Series, Standing, place_text, shard_of
from seriatim.store import DataSet, Store

log = structlog.stdlib.get_logger(__name__)

REQUIRED_SETTINGS = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "aof-load-truncated": "no",
    "maxmemory-policy": "noeviction",
}
"""With these a server writes its log and syncs it to disk before it answers, and never drops a key by itself."""
SETTINGS_FOR_MEMORY = {"maxmemory-policy"}
VERSION_MIN = (7, 0)
TRIES_MAX = 10
TRY_PAUSE_S = 0.05
CHECK_SERIES = 500
WATCH_S = 1.0
PROMOTED = "Redis is a replica that was promoted, and may lack the last numbers of the server that it stands for"
LAYOUT_ADVICE = (
    "This Redis holds data as another version of Seriatim keeps it. Run that version until nothing waits (/readyz says "
    "backlog 0) and stop it; then start this one, and run `seriatim recover`."
)
PROMOTED_ADVICE = f"{PROMOTED}. Go back to that server if it is whole, or run `seriatim recover`."


def check_settings(client: redis.Redis, ack: Literal["fsync", "memory"]) -> None:
    """Checks that the server keeps what it acknowledges.

    Raises:
        Halted: a setting is wrong; the message says what to set.
        Unavailable: the server does not answer.
    """
    try:
        with scripts.translated():
            version = client.info("server")["redis_version"]
            found = cast("dict[str, str]", client.config_get(*REQUIRED_SETTINGS))
    except Unavailable as error:
        refused = error.__cause__
        if isinstance(refused, redis.exceptions.NoPermissionError) or "unknown command" in str(refused):
            raise Halted(f"Redis does not show its settings ({refused}). Allow INFO and CONFIG GET.") from error
        raise
    if tuple(int(part) for part in version.split(".")[:2]) < VERSION_MIN:
        raise Halted(f"Redis {version} is too old. Use Redis 7.0 or Valkey 8, or newer.")
    wanted = {name: value for name, value in REQUIRED_SETTINGS.items() if ack == "fsync" or name in SETTINGS_FOR_MEMORY}
    wrong = [f"{name} {value}" for name, value in wanted.items() if found.get(name) != value]
    if wrong:
        raise Halted(f"Redis could lose acknowledged numbers. Set in its configuration: {', '.join(wrong)}.")


def meet(client: redis.Redis, store: Store, ack: Literal["fsync", "memory"]) -> Standing:
    """Checks the server against the store and returns the standing to work under; the scripts are loaded then.

    Raises:
        Halted: the server's data is not what the store says it must be; the message is the reason.
        Unavailable: the server or the store does not answer.
    """
    for _ in range(TRIES_MAX):
        try:
            with clients.pinned(client) as (whole, servers):
                seen = check_servers(client, servers, ack)
                if ack == "fsync":
                    store.check_durable()
                standing = _meet(whole, seen, store)
                for server in servers:
                    scripts.load(server, standing)
                return standing
        except Stale:  # another process raised the generation meanwhile
            time.sleep(TRY_PAUSE_S)
    raise Halted("The store is behind Redis: it may be an old copy. Put the store's newest data back.")


def check_servers(client: redis.Redis, servers: Sequence[redis.Redis], ack: Literal["fsync", "memory"]) -> list[Server]:
    """Checks that the servers behind a client keep what they acknowledge, and are those to use; returns what they are.

    Raises:
        Halted: one must be changed, or another is to be used; the message says what to do.
        Unavailable: one does not answer.
    """
    seen = []
    for server in servers:
        check_settings(server, ack)
        check_clock(server)
        seen.append(clients.look(server))
    check_roles(client, seen)
    return seen


def check_roles(client: redis.Redis, seen: Sequence[Server]) -> None:
    """Checks that the servers behind a client are those to use.

    Raises:
        Halted: others are.
    """
    if any(one.is_replica for one in seen):
        raise Halted(
            "This Redis is a replica. Set SERIATIM_REDIS_URL to its primary; where that is lost, promote the replica "
            "(REPLICAOF NO ONE) and run `seriatim recover`."
        )
    if any(one.in_cluster for one in seen) and not clients.is_cluster(client):
        raise Halted("This Redis is a node of a cluster. Set SERIATIM_REDIS_URL to redis+cluster://HOST:PORT.")


def identity(seen: Sequence[Server]) -> str:
    """Returns what the store knows servers by."""
    return ",".join(sorted(one.identity for one in seen))


def _meet(client: redis.Redis, seen: Sequence[Server], store: Store) -> Standing:
    name, data = identity(seen), store.data_set()
    if data.state == "halted":
        raise Halted(data.reason or "Allocation was stopped.")
    server = store.server()
    if data.state == "new":
        _enroll(client, data, 0, data.generation)
        store.go_live(name)
        note_compared(client, server)
        return Standing(data.epoch, data.generation)
    if data.run_id == name:
        _check_shards(client, data)
        if not _is_compared_with(client, server):
            log.info("met a new database", server=server)
            found = held(client, data.shards)
            check_settled(store.list_series(), found)
            note_compared(client, server)
        return Standing(data.epoch, data.generation)
    log.info("met a new server", run_id=name, generation=data.generation)
    if is_promoted(seen, data):
        _check_shards(client, data, data.pending_generation)
        _mark(client, data)
    examine(client, seen, store, data)
    store.begin_generation(data.generation)
    _enroll(client, data, data.generation, data.generation + 1)
    store.end_generation(data.generation, name)
    note_compared(client, server)
    return Standing(data.epoch, data.generation + 1)


def examine(client: redis.Redis, seen: Sequence[Server], store: Store, data: DataSet) -> None:
    """Checks that Redis holds the data set as the store knows it: its epoch and generation, and all that it lacks.

    Raises:
        Halted: it does not; the message is the reason.
        Stale: the data set is another by now.
        Unavailable: the server or the store does not answer.
    """
    _check_shards(client, data, data.pending_generation)
    if is_promoted(seen, data):
        raise Halted(PROMOTED_ADVICE)
    try:
        all_series = store.list_series()
        found = held(client, data.shards)
        check_settled(store.list_series(), found)  # what is settled meanwhile is there when it is read again
        check_positions(client, data, all_series, found)
        check_claims(client, data, all_series, store.loaded_companies(data.epoch))
    except Halted:
        if store.data_set() != data:  # another process has met the server, and what was read is old
            raise Stale from None
        raise


def _is_compared_with(client: redis.Redis, server: str) -> bool:
    with scripts.translated():
        return client.hget(keyspace.shard_key(0), "store") == server.encode()


def note_compared(client: redis.Redis, server: str) -> None:
    """Notes that Redis and the store on this database server hold what they must."""
    with scripts.translated():
        client.hset(keyspace.shard_key(0), "store", server)


def is_promoted(seen: Sequence[Server], data: DataSet) -> bool:
    """Whether one of the servers is a promoted replica that has not been recovered."""
    known = (data.run_id or "").split(",")
    return any(one.promoted and one.identity not in known for one in seen)


def _mark(client: redis.Redis, data: DataSet) -> None:
    """Notes in the server's own data that it was promoted: once it is restarted, it says so no more.

    The server that it stands for has no such mark, and can be put back.
    """
    log.error("met a promoted replica")
    with scripts.translated():
        for shard in range(data.shards):
            client.hset(keyspace.shard_key(shard), mapping={"halted": PROMOTED_ADVICE, "doubt": PROMOTED})


def check_clock(client: redis.Redis) -> None:
    """Checks that this machine and the server agree on the time.

    Raises:
        Halted: they differ by more than an hour.
        Unavailable: the server does not answer.
    """
    with scripts.translated():
        seconds, _ = client.time()
    if abs(seconds - time.time()) * 1000 > CLOCK_SKEW_MS_MAX:
        raise Halted("The clocks of this machine and of Redis differ by more than an hour. Set the clocks.")


def _enroll(client: redis.Redis, data: DataSet, generation: int, raised: int) -> None:
    for shard in range(data.shards):
        reply = scripts.enroll(client, data.epoch, shard, generation, raised)
        if reply == "generation":
            raise Stale
        if reply != "ok":
            raise _unfit(shard, reply)


def _check_shards(client: redis.Redis, data: DataSet, pending: int | None = None) -> None:
    pipeline = client.pipeline(transaction=False)
    for shard in range(data.shards):
        pipeline.hmget(keyspace.shard_key(shard), ["epoch", "generation", "layout", "halted"])
    with scripts.translated():
        rows = cast("list[list[bytes | None]]", pipeline.execute())
    for shard, (epoch, generation, layout, halted) in enumerate(rows):
        if epoch is None or generation is None:
            raise _unfit(shard, "missing")
        if epoch.decode() != data.epoch:
            raise _unfit(shard, "foreign")
        if int(generation) < data.generation:
            raise _unfit(shard, "generation")
        if int(generation) not in (data.generation, pending):  # raised since the store was read
            raise Stale
        if layout != keyspace.LAYOUT.encode():
            raise _unfit(shard, "layout")
        if halted is not None:
            raise Halted(halted.decode())


def _unfit(shard: int, how: str) -> Halted:
    again = "Start Redis with the data that it had when it was stopped."
    reasons = {
        "missing": f"Redis has lost its data: shard {shard} is missing, and the store has been in use. {again}",
        "foreign": f"This Redis belongs to another store, or is of a time before an earlier recovery, such as an old "
        f"primary that came back (shard {shard} has another epoch). Check SERIATIM_REDIS_URL.",
        "generation": f"This Redis holds an old copy of the data (shard {shard} has another generation). {again}",
        "layout": LAYOUT_ADVICE,
    }
    return Halted(reasons[how])


class Held(msgspec.Struct, frozen=True):
    """What Redis holds of a series.

    Args:
        state: where it stands.
        settled: the place up to which Redis was told that the store has all, and has dropped them from the outbox.
        reached: the place up to which the outbox has all behind that.
    """

    state: keyspace.State
    settled: Place
    reached: Place


def held(client: redis.Redis, shards: int) -> dict[str, Held]:
    """Returns what Redis holds of each series.

    Raises:
        Halted: it has lost items of an outbox.
        Unavailable: the server does not answer.
    """
    found: dict[str, Held] = {}
    for shard in range(shards):
        placed = _states(client, shard)  # first: what is issued meanwhile is in the outbox when that is read
        found |= {name: Held(state, state.place, state.place) for name, state in placed.items()}
        for name, (settled, reached) in _waiting(client, shard).items():
            if name in placed:
                found[name] = Held(placed[name], settled, reached)
    return found


def states(client: redis.Redis, shards: int) -> dict[str, keyspace.State]:
    """Returns where each series stands that Redis holds.

    Raises:
        Unavailable: the server does not answer.
    """
    return {name: state for shard in range(shards) for name, state in _states(client, shard).items()}


def _states(client: redis.Redis, shard: int) -> dict[str, keyspace.State]:
    with scripts.translated():
        pairs = list(client.hscan_iter(keyspace.series_key(shard), count=CHECK_SERIES))
    return {name.decode(): keyspace.State.unpack(packed) for name, packed in pairs}


def _waiting(client: redis.Redis, shard: int) -> dict[str, tuple[Place, Place]]:
    """Returns of each series that the outbox of a shard has the place before its records there, and their last one."""
    found: dict[str, tuple[Place, Place]] = {}
    try:
        outbox.check_length(client, shard)
        for part in outbox.parts(client, shard):
            name, (before, last) = keyspace.part_series(part), keyspace.part_places(part)
            settled, reached = found.get(name, (before, before))
            found[name] = settled, last if before == reached else reached
    except Damaged as damage:
        raise _too_old(f"Redis is behind the store: {damage.message}".removesuffix(".")) from None
    return found


def check_positions(client: redis.Redis, data: DataSet, all_series: Sequence[Series], found: dict[str, Held]) -> None:
    """Checks that Redis is not behind the store, as that was before: every series is there, with every record.

    Raises:
        Halted: it is; names the series.
        Unavailable: the server does not answer.
    """
    loaded = [one for one in all_series if one.loaded_epoch == data.epoch or any(one.place)]
    for start in range(0, len(loaded), CHECK_SERIES):
        some = loaded[start : start + CHECK_SERIES]
        pipeline = client.pipeline(transaction=False)
        for one in some:
            pipeline.exists(f"{keyspace.index_prefix(one.shard, one.id)}:0")
        with scripts.translated():
            replies = pipeline.execute()
        for one, indexed in zip(some, replies, strict=True):
            what = _behind(one, found.get(one.id) if indexed else None)
            if what:
                raise _too_old(f"Redis is behind the store in series {one.id}: {what}")


def _behind(one: Series, kept: Held | None) -> str | None:
    if kept is None:
        return "the series is missing"
    place = kept.state.place
    if place < one.place:
        return f"it stands at {place_text(place)}, the store at {place_text(one.place)}"
    if kept.reached < place:
        return f"records between {place_text(kept.reached)} and {place_text(place)} are in neither"
    return None


def check_settled(all_series: Sequence[Series], found: dict[str, Held]) -> None:
    """Checks that the store, as it was after, holds what Redis was told it does, and has dropped.

    Raises:
        Halted: the store has lost records; names the series.
    """
    places = {one.id: one.place for one in all_series}
    for name, kept in found.items():
        if kept.settled > places.get(name, (0, 0)) or (kept.state.position and name not in places):
            ends = place_text(places[name]) if name in places else "nothing"
            raise Halted(
                f"The store has lost records of series {name}: it has had them up to {place_text(kept.settled)}, and "
                f"ends at {ends}. Put the store's newest data back."
            )


def check_claims(client: redis.Redis, data: DataSet, all_series: Sequence[Series], companies: Sequence[str]) -> None:
    """Checks that Redis holds at least as many claims of each company as its series have claimed entries.

    Raises:
        Halted: it does not; names the company.
        Unavailable: the server does not answer.
    """
    settled = Counter(dict.fromkeys(companies, 0))
    for one in all_series:
        if one.claims:
            settled[one.company] += one.claims
    pipeline = client.pipeline(transaction=False)
    for company in settled:
        shard = shard_of(company, data.shards)
        pipeline.hget(keyspace.company_key(shard, company), "claims")
        pipeline.exists(f"{keyspace.claims_prefix(shard, company)}:0")
    with scripts.translated():
        replies = pipeline.execute()
    for (company, least), claims, indexed in zip(settled.items(), replies[::2], replies[1::2], strict=True):
        if claims is None or not indexed or int(claims) < least:
            raise _too_old(f"Redis is behind the store in the claims of company {company}")


def _too_old(what: str) -> Halted:
    return Halted(f"{what}. Start Redis with the data that it had when it was stopped.")


def halt(client: redis.Redis, store: Store, reason: str, actor: str) -> None:
    """Stops allocation in the whole data set, here and in every other process.

    Raises:
        Unavailable: Redis or the store could not be told; the other one was.
    """
    log.error("halting", reason=reason, actor=actor)
    try:
        store.halt(reason, actor)
    finally:
        with scripts.translated():
            for shard in range(store.data_set().shards):
                client.hset(keyspace.shard_key(shard), "halted", reason)


class Watch:
    """Keeps a gate true to the server and the store: meets them, and looks again every second.

    Where Redis has replicas, one of them may be recovered to stand for the server that we see, and go on with its
    numbers. The store knows; who cannot ask it for `lease_s` stops to allocate, and a recovery waits that long.
    `leave` is called after a meeting: connections from before may lead to a server that is not the one any more.
    """

    def __init__(
        self,
        client: redis.Redis,
        store: Store,
        gate: Gate,
        config: Config,
        leave: Callable[[], Awaitable[None]],
    ) -> None:
        self._client = client
        self._store = store
        self._gate = gate
        self._ack = config.ack
        self._lease_s = config.lease_s
        self._leave = leave
        self._met: Standing | None = None
        self._leased = clients.may_move(client)
        self._confirmed_at = 0.0
        self._meeting = asyncio.Lock()
        self._meetings = 0

    async def meet(self, known: Standing | None = None) -> Standing:
        """Meets the server, unless the standing is another than `known` by now; many callers meet it once.

        Raises:
            Halted, Unavailable: it cannot be worked with; the gate is closed with that reason.
        """
        before = self._meetings
        async with self._meeting:
            if self._gate.standing is not None and self._gate.standing != known:
                return self._gate.standing
            if self._meetings != before:  # somebody tried while this caller waited
                return self._gate.require()
            began_at = time.monotonic()
            try:
                standing = await asyncio.to_thread(self._meet)
            except Unavailable as error:
                clients.forget(self._client)
                if str(error) != str(self._gate.refusal):
                    log.error("allocation is refused", reason=error.message)
                lapsed = self._gate.standing is None and self._gate.refusal.message == LAPSED
                if isinstance(error, Halted) or not lapsed:  # what it says is more than that the store does not answer
                    self._gate.close(error)
                raise
            finally:
                self._meetings += 1
            if standing != self._met:
                await self._leave()
                self._met = standing
            self._gate.open(standing)
            self._confirm(began_at)
            return standing

    def _meet(self) -> Standing:
        standing = meet(self._client, self._store, self._ack)
        self._leased |= self._store.data_set().replicated
        return standing

    async def halt(self, reason: str) -> None:
        """Stops allocation in the whole data set."""
        self._gate.close(Halted(reason))
        try:
            await asyncio.to_thread(halt, self._client, self._store, reason, "api")
        except Unavailable as error:
            log.error("could not halt everywhere", reason=error.message)

    async def run(self) -> None:
        """Looks every second, for ever."""
        while True:
            try:
                await self._look()
            except Unavailable:
                pass
            except Exception:
                log.exception("the watch failed")
            await asyncio.sleep(WATCH_S)

    async def _look(self) -> None:
        standing = self._gate.standing
        if standing is None:
            await self.meet()
            return
        try:
            await asyncio.to_thread(self._check, standing)
        except Stale:
            await self.meet(standing)
        except Halted as error:
            log.error("allocation is refused", reason=error.message)
            self._gate.close(error)

    def _check(self, standing: Standing) -> None:
        try:
            seen = self._see()
        except Unavailable:
            self._ask(standing)  # that Redis does not answer says nothing about the store
            raise
        data = self._ask(standing)
        if self._ack == "fsync":
            self._store.check_durable()
        if any(one.replicated for one in seen) and not data.replicated:
            self._store.note_replicas()
        if data.state == "halted":
            raise Halted(data.reason or "Allocation was stopped.")
        if (data.epoch, data.generation, data.run_id) != (standing.epoch, standing.generation, identity(seen)):
            raise Stale
        _check_shards(self._client, data)
        if not _is_compared_with(self._client, self._store.server()):
            raise Stale

    def _see(self) -> list[Server]:
        with clients.pinned(self._client) as (_, servers):
            seen = check_servers(self._client, servers, self._ack)
        if any(one.replicated for one in seen) and not self._leased:
            self._leased = True
            self._confirm(self._confirmed_at)  # before the store is asked: it may not answer
        return seen

    def _ask(self, standing: Standing) -> DataSet:
        asked_at = time.monotonic()
        data = self._store.data_set()
        self._leased |= data.replicated
        if (data.epoch, data.generation, data.state) == (standing.epoch, standing.generation, "live"):
            self._confirm(asked_at)
        return data

    def _confirm(self, asked_at: float) -> None:
        """Notes when the store was asked that has confirmed the standing."""
        self._confirmed_at = asked_at
        if self._leased:
            self._gate.ends_at = asked_at + self._lease_s
