"""Recovery: what is left of the records is saved, what may be lost is said, and Redis is built anew from the store.

It may be killed at any step and is then run again, so the order matters. Allocation is halted first. What the outboxes
still hold goes to the store, signed as a worker would sign it. Somebody decides about numbers that may have been issued
and are nowhere. From then on nothing in Redis is needed: its keys are removed, and written from the store under a new
epoch, which ends the standing of every process that knew the old one. Last, the store lets allocation go on; where
there may be another server, not before all have stopped that use it and cannot ask the store.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, TypeVar, cast

import msgspec
import redis

from seriatim import clients, formats, keyspace, outbox, recovery, scripts, signing
from seriatim.clients import Server
from seriatim.config import Config
from seriatim.errors import ConfigError, Damaged, Halted, Invalid, Stale
from seriatim.keyspace import State
from seriatim.model import (
    COUNTER_MAX,
    Entry,
    Place,
    Record,
    Series,
    Skip,
    Standing,
    Void,
    follows,
    place_text,
    shard_of,
    uuid_bytes,
)
from seriatim.registry import now_ms
from seriatim.signing import Signer
from seriatim.store import DataSet, Slice, Store

T = TypeVar("T")

ACTOR = "recover"
UNDER_WAY = "A recovery is under way. If none runs, run `seriatim recover` again."
PARTS_A_SLICE = 100
IDS_A_CALL = 500
KEYS_A_CALL = 1000
SAY_SERIES = 1000
LEASE_MARGIN_S = 1.0


class Doubt(msgspec.Struct, frozen=True):
    """A series of which acknowledged entries may be lost.

    Args:
        series: its id.
        entries: how many are safe.
        counter: the format's first counter, in today's period; empty where the store lacks the series itself.
        number: from this one on, numbers may have been issued that are nowhere.
        why: what was found.
    """

    series: str
    entries: int
    counter: str
    number: int
    why: str


class Choice(msgspec.Struct, frozen=True):
    """What somebody decides about doubts: with which number a series goes on, or that numbers may repeat."""

    resume_at: dict[str, int] = {}
    accept_loss: bool = False


class Outcome(msgspec.Struct, frozen=True):
    """What a recovery did: nothing, when doubts are left that nobody has decided about, or when nothing was wrong."""

    recovered: bool
    saved: int
    """Records that Redis still held and the store did not."""
    series: int
    entries: int
    doubts: list[Doubt]


class Recovery:
    """One recovery; `say` is told what it does.

    Args:
        client: the Redis server's that is to be built anew.
        store: the system of record.
        signer: signs what is saved.
        config: the setting.
        say: called with a line for whoever waits.
    """

    def __init__(
        self,
        client: redis.Redis,
        store: Store,
        signer: Signer,
        config: Config,
        say: Callable[[str], None],
    ) -> None:
        self._client = client
        self._store = store
        self._signer = signer
        self._config = config
        self._say = say
        self._halted_at = 0.0

    def run(self, choice: Choice) -> Outcome:
        """Recovers, once there is a decision about every doubt.

        Raises:
            ConfigError: there is nothing to recover, or Redis belongs to another store.
            Halted: a setting of the server must be changed first.
            Invalid: a series cannot go on with that number.
            Unavailable: Redis or the store does not answer. Run it again.
        """
        seen = self._look()
        data = self._store.data_set()
        self._halted_at = time.monotonic()
        if data.state == "new":
            raise ConfigError("Nothing was ever allocated here: there is nothing to recover. Start the service.")
        saved = 0
        if data.next_epoch is None:
            if data.state == "live" and self._is_sound():
                return Outcome(recovered=False, saved=0, series=0, entries=0, doubts=[])
            everything = self._lost(data, seen) or data.doubt
            # Before a halt: under one the other version could not settle what waits.
            legible = self._is_legible(data, everything)
            self._halt(data)
            self._halted_at = time.monotonic()
            saved = self._save(data) if legible else 0
            doubts = self._doubts(data, everything) if legible else []
            self._check(choice, doubts)
            undecided = [one for one in doubts if one.series not in choice.resume_at and not choice.accept_loss]
            if undecided:
                return Outcome(recovered=False, saved=saved, series=0, entries=0, doubts=undecided)
            self._decide(data, choice, doubts)
        return self._rebuild(saved, seen)

    def _look(self) -> list[Server]:
        with clients.pinned(self._client) as (_, servers):
            return recovery.check_servers(self._client, servers, self._config.ack)

    def _is_sound(self) -> bool:
        try:
            recovery.meet(self._client, self._store, self._config.ack)
        except Halted:
            return False
        return True

    # what is left -------------------------------------------------------------------------------------------------

    def _shards(self, data: DataSet) -> list[list[bytes | None]]:
        pipeline = self._client.pipeline(transaction=False)
        for shard in range(data.shards):
            pipeline.hmget(keyspace.shard_key(shard), ["epoch", "generation", "doubt", "layout", "backlog"])
        with scripts.translated():
            return cast("list[list[bytes | None]]", pipeline.execute())

    def _lost(self, data: DataSet, seen: Sequence[Server]) -> str | None:
        """Returns why everything in Redis is doubtful, if it is."""
        shards = self._shards(data)
        if any(epoch not in (None, data.epoch.encode()) for epoch, *_ in shards):
            raise ConfigError(
                "This Redis belongs to another store, or to a time before an earlier recovery. Check "
                "SERIATIM_REDIS_URL; if it is the right one, empty it (FLUSHALL), and recover again."
            )
        if any(epoch is None or generation is None for epoch, generation, *_ in shards):
            return "Redis has lost its data"
        if any(int(generation or 0) not in (data.generation, data.pending_generation) for _, generation, *_ in shards):
            return "Redis holds an old copy of its data, or the store does"
        if recovery.is_promoted(seen, data) or any(doubt for _, _, doubt, *_ in shards):
            return recovery.PROMOTED
        return None

    def _is_legible(self, data: DataSet, doubt: str | None) -> bool:
        """Whether Redis holds data as this version keeps it; if not, the store has all of it.

        Raises:
            ConfigError: another version wrote it, and the store may lack some.
        """
        shards = self._shards(data)
        if all(epoch is None or layout == keyspace.LAYOUT.encode() for epoch, _, _, layout, _ in shards):
            return True
        if doubt or any(int(waiting or 0) for *_, waiting in shards):
            raise ConfigError(recovery.LAYOUT_ADVICE)
        return False

    def _halt(self, data: DataSet) -> None:
        self._store.halt(UNDER_WAY, ACTOR)
        pipeline = self._client.pipeline(transaction=False)
        for shard, (epoch, *_) in enumerate(self._shards(data)):
            if epoch is not None:
                pipeline.hset(keyspace.shard_key(shard), "halted", UNDER_WAY)
        with scripts.translated():
            pipeline.execute()

    def _save(self, data: DataSet) -> int:
        """Brings into the store what outboxes hold behind it; returns how many records."""
        standing = Standing(data.epoch, data.generation)
        saved = 0
        known = {one.id: one for one in self._store.list_series()}
        for shard in range(data.shards):
            for some in _slices(outbox.parts(self._client, shard), PARTS_A_SLICE):
                for name, records in _whole(some).items():
                    if name in known and (fresh := self._fresh(known[name], records)):
                        known[name] = self._commit(standing, known[name], fresh)
                        saved += len(fresh)
        if saved:
            self._say(f"{saved:,} records that only Redis held are in the store")
        return saved

    def _fresh(self, series: Series, records: Sequence[Record]) -> list[Record]:
        """Returns those of some records that follow the store's."""
        place, last = series.place, self._last_entry(series)
        before, fresh = last and last.id, list[Record]()
        for record in records:
            if record.place <= place:
                continue
            if not follows(place, record.place) or (isinstance(record, Entry) and record.previous_id != before):
                break
            fresh.append(record)
            place, before = record.place, record.id if isinstance(record, Entry) else before
        return fresh

    def _last_entry(self, series: Series) -> Entry | None:
        entries = self._store.entries_after(series, series.position - 1, 1) if series.position else []
        return entries[0] if entries else None

    def _commit(self, standing: Standing, series: Series, records: Sequence[Record]) -> Series:
        genesis = series.genesis or signing.genesis(series)
        payloads = map(self._signer.payload, records)
        receipts = self._signer.chain(series.head or signing.digest(genesis), payloads)
        signed = [msgspec.structs.replace(one, receipt=said) for one, said in zip(records, receipts, strict=True)]
        part = Slice(series, genesis, signed, signing.digest(receipts[-1].encode()))
        self._store.commit(standing, [part], state="halted")
        return part.after

    # what is not --------------------------------------------------------------------------------------------------

    def _doubts(self, data: DataSet, everything: str | None) -> list[Doubt]:
        """Returns the series of which Redis does not show that the store has all."""
        states = recovery.states(self._client, data.shards)
        known = self._store.list_series()
        lacking = sorted(states.keys() - {one.id for one in known})
        doubts = [_unknown(name, states[name]) for name in lacking if any(states[name].place)]
        loaded = [one for one in known if one.loaded_epoch == data.epoch or any(one.place)]
        for some in _slices(loaded, KEYS_A_CALL):
            settled = self._store.counters(some)
            for series, kept in zip(some, self._kept(some, states), strict=True):
                why = everything or _unlike(series, kept)
                if why:
                    doubts.append(_doubt(series, why, settled[series.id], kept))
        return doubts

    def _kept(self, some: Sequence[Series], states: dict[str, State]) -> list[_Kept | None]:
        """Returns of each series what Redis says of its place and of its first counter; None when it is missing."""
        pipeline = self._client.pipeline(transaction=False)
        for series in some:
            pipeline.hget(keyspace.counters_key(series.shard, series.id), _first_counter(series))
            pipeline.exists(f"{keyspace.index_prefix(series.shard, series.id)}:0")
        with scripts.translated():
            replies = pipeline.execute()
        found: list[_Kept | None] = []
        for series, aside, indexed in zip(some, replies[::2], replies[1::2], strict=True):
            state, field = states.get(series.id), _first_counter(series)
            last = int(aside) if aside else None
            found.append(_Kept(state.place, state.counters.get(field, last)) if state and indexed else None)
        return found

    def _check(self, choice: Choice, doubts: Sequence[Doubt]) -> None:
        numbers = {one.series: one.number for one in doubts}
        known = self._store.series_by_ids(list(choice.resume_at))
        for name, number in choice.resume_at.items():
            if name not in numbers:
                raise Invalid({"resume-at": f"series {name} has lost nothing. Leave it out"})
            if name not in known:
                why = "is not in the store. Put the store's newest data back, or give --accept-loss and make another"
                raise Invalid({"resume-at": f"series {name} {why}"})
            if not numbers[name] <= number <= COUNTER_MAX:
                raise Invalid({"resume-at": f"series {name} can go on with {numbers[name]} at the earliest"})
            numbering = known[name].numbering
            if numbering.chronology == "free" and "inc" not in formats.counters_of(numbering):
                why = "counts anew for dates that callers choose, of which any may have lost numbers"
                raise Invalid({"resume-at": f"series {name} {why}. Give --accept-loss, deactivate it, make another"})

    def _decide(self, data: DataSet, choice: Choice, doubts: Sequence[Doubt]) -> None:
        """Records the skips and what was decided; from here on Redis' data is needed no more."""
        standing = Standing(data.epoch, data.generation)
        for name, number in choice.resume_at.items():
            series = self._store.series_by_ids([name])[name]
            skip = self._skip(series, number)
            if skip is not None:
                self._commit(standing, series, [skip])
        repeating = {one.series: one.number for one in doubts if one.series not in choice.resume_at}
        said = {"resumed_at": choice.resume_at, "may_repeat_from": repeating}
        self._store.decide_recovery(uuid.uuid4().hex, ACTOR, said)

    def _skip(self, series: Series, number: int) -> Skip | None:
        """Returns the record that leaves out what is before `number`; None when it is the next number anyway."""
        field = _first_counter(series)
        counter, _, period = field.partition(":")
        first = _next_number(series, self._store.counters([series])[series.id].get(field))
        if number == first:
            return None
        last = self._last_record(series)
        reason = "recovery: numbers that may have been issued and are in neither Redis nor the store"
        at = max(now_ms(), last.created_at if last else 0)
        return Skip(series.id, series.position, series.k + 1, counter, period, first, number - 1, reason, ACTOR, at)

    def _last_record(self, series: Series) -> Record | None:
        notes = [note for note in self._store.notes(series, (series.position, 0)) if note.place == series.place]
        return notes[0] if notes else self._last_entry(series)

    # Redis anew ---------------------------------------------------------------------------------------------------

    def _rebuild(self, saved: int, seen: Sequence[Server]) -> Outcome:
        data = self._store.data_set()
        if data.next_epoch is None:
            raise Stale
        self._say("removing what Redis holds of the series")
        self._remove(data.shards)
        standing = Standing(data.next_epoch, data.generation + 1)
        with clients.pinned(self._client) as (whole, servers):
            if recovery.identity(list(map(clients.look, servers))) != recovery.identity(seen):
                raise Stale
            for shard in range(data.shards):
                scripts.enroll(whole, standing.epoch, shard, 0, standing.generation)
            for server in servers:
                scripts.load(server, standing)
        recorded = [series for series in self._store.list_series() if any(series.place)]
        claims = _Claims(self._client, self._store, standing, data.shards)
        for number, series in enumerate(recorded, 1):
            self._restore(standing, series, claims)
            if number % SAY_SERIES == 0:
                self._say(f"{number:,} of {len(recorded):,} series")
        claims.end()
        if clients.may_move(self._client) or data.replicated or any(one.promoted or one.replicated for one in seen):
            self._outlast()
        recovery.note_compared(self._client, self._store.server())
        self._store.end_recovery(standing.epoch, recovery.identity(seen))
        entries = sum(series.position for series in recorded)
        return Outcome(recovered=True, saved=saved, series=len(recorded), entries=entries, doubts=[])

    def _outlast(self) -> None:
        """Waits until no process allocates any more that uses another server and has not heard of the halt."""
        left_s = self._halted_at + self._config.lease_s + LEASE_MARGIN_S - time.monotonic()
        if left_s > 0:
            self._say(f"waiting {left_s:.0f} s, until those have stopped who cannot ask the store (SERIATIM_LEASE_S)")
            time.sleep(left_s)

    def _remove(self, shards: int) -> None:
        for shard in range(shards):
            key = keyspace.shard_key(shard)
            with scripts.translated():
                self._client.delete(key)  # first: without it no script does anything in the shard
                names = self._client.scan_iter(match=f"{key.removesuffix('shard')}*", count=KEYS_A_CALL)
                for some in _slices((name for name in names if name != f"{key}:lock".encode()), KEYS_A_CALL):
                    self._client.unlink(*some)

    def _restore(self, standing: Standing, series: Series, claims: _Claims) -> None:
        scripts.install(self._client, standing, series, opened=False)
        shard, name = series.shard, series.id
        keys = (keyspace.shard_key(shard), keyspace.series_key(shard), keyspace.index_prefix(shard, name))
        done = 0
        for some in _slices(self._store.indexed(series), IDS_A_CALL):
            ids: list[bytes] = []
            for position, (entry, fingerprint, claimed) in enumerate(some, done + 1):
                ids += (uuid_bytes(entry), keyspace.pack_indexed(fingerprint, position))
                if claimed:
                    claims.add(series, entry)
            scripts.restore(self._client, standing, keys, counted=name, before=done, entries=ids)
            done += len(some)
        if done != series.position:
            raise Damaged(f"The store holds {done} entries of series {name}, and says {series.position}.")
        notes = self._store.notes(series)
        voids = {str(one.voids): keyspace.pack_void(one) for one in notes if isinstance(one, Void)}
        state, aside = self._state(series, notes)
        with scripts.translated():
            if voids:
                self._client.hset(keyspace.voids_key(series), mapping=cast("dict[Any, Any]", voids))
            if aside:
                self._client.hset(keyspace.counters_key(shard, name), mapping=cast("dict[Any, Any]", aside))
        scripts.restore(self._client, standing, keys, counted=name, before=done, entries=[], state=state.pack())

    def _state(self, series: Series, notes: Sequence[Skip | Void]) -> tuple[State, dict[str, int]]:
        """Returns where a series stands once it is open, and the counters that are kept aside.

        A recovery left out numbers of the day on which it was. Those of days before could still be issued again, was
        a strict series not kept from going back to them.
        """
        entry, last = self._last_entry(series), self._last_record(series)
        day = entry.date if entry else ""
        left_out = [note.created_at for note in notes if isinstance(note, Skip) and note.actor == ACTOR]
        if left_out and series.numbering.chronology == "strict":
            day = max(day, formats.window(series.numbering.timezone, max(left_out)).today.isoformat())
        counters = _current(series, self._store.counters([series])[series.id])
        raised = [formats.field(one) for one in entry.numbers] if entry else []
        state = State(
            open=True,
            active=series.active,
            version=series.version,
            position=series.position,
            k=series.k,
            claims=series.claims,
            time=last.created_at if last else 0,
            number=entry.number if entry else 0,
            date=day,
            id=uuid_bytes(entry.id) if entry else b"",
            counters={field: counters.pop(field) for field in raised if field in counters},
        )
        return state, counters


class _Kept(msgspec.Struct, frozen=True):
    """What Redis says of a series: where it stands, and its first counter's last value in today's period."""

    place: Place
    number: int | None


class _Claims:
    """The claims of all companies, which are restored beside the series that they are for."""

    def __init__(self, client: redis.Redis, store: Store, standing: Standing, shards: int) -> None:
        self._client = client
        self._store = store
        self._standing = standing
        self._shards = shards
        self._restored: Counter[str] = Counter()
        self._waiting: dict[str, list[bytes]] = {}

    def add(self, series: Series, entry_id: str) -> None:
        """Takes the claim of an entry."""
        waiting = self._waiting.setdefault(series.company, [])
        waiting += (uuid_bytes(entry_id) + series.type.encode(), uuid_bytes(series.id))
        if len(waiting) >= 2 * IDS_A_CALL:
            self._restore(series.company)

    def end(self) -> None:
        """Restores those that wait, and opens the companies."""
        for company in self._waiting:
            self._restore(company)
            self._install(company, opened=True)

    def _install(self, company: str, *, opened: bool) -> None:
        defaults = self._store.defaults(company, shard_of(company, self._shards))
        scripts.install_defaults(self._client, self._standing, defaults, opened=opened)

    def _restore(self, company: str) -> None:
        shard, done = shard_of(company, self._shards), self._restored[company]
        if not done:
            self._install(company, opened=False)
        keys = (
            keyspace.shard_key(shard),
            keyspace.company_key(shard, company),
            keyspace.claims_prefix(shard, company),
        )
        waiting = self._waiting[company]
        scripts.restore(self._client, self._standing, keys, counted="claims", before=done, entries=waiting)
        self._restored[company] += len(waiting) // 2
        self._waiting[company] = []


def _slices(values: Iterable[T], length: int) -> Iterator[list[T]]:
    rest = iter(values)
    while some := list(islice(rest, length)):
        yield some


def _whole(parts: Sequence[tuple[bytes, bytes]]) -> dict[str, list[Record]]:
    """Returns the records of those parts of items that are whole, by their series."""
    found: dict[str, list[Record]] = {}
    for part in parts:
        with suppress(Damaged):
            found.setdefault(keyspace.part_series(part), []).extend(keyspace.part_records(part))
    return found


def _first_counter(series: Series) -> str:
    """Returns the field of a format's first counter, in today's period."""
    numbering = series.numbering
    return formats.fields_of(numbering, formats.window(numbering.timezone, now_ms()).today)[0]


def _next_number(series: Series, last: int | None) -> int:
    """Returns what follows the last value of a counter, which has none in its period when that is None."""
    if last is not None:
        return last + 1
    return 1 if series.position else series.numbering.first


def _unlike(series: Series, kept: _Kept | None) -> str | None:
    """Returns how Redis' idea of a series' last record differs from the store's, if it does."""
    if kept is None:
        return "Redis has lost the series"
    if kept.place > series.place:
        between = f"{place_text(series.place)} and {place_text(kept.place)}"
        return f"records between {between} are in neither Redis nor the store"
    if kept.place < series.place:
        return f"Redis stands at {place_text(kept.place)}, the store at {place_text(series.place)}"
    return None


def _doubt(series: Series, why: str, settled: dict[str, int], kept: _Kept | None) -> Doubt:
    field = _first_counter(series)
    known = [value for value in (settled.get(field), kept.number if kept else None) if value is not None]
    return Doubt(series.id, series.position, field, _next_number(series, max(known, default=None)), why)


def _unknown(name: str, state: State) -> Doubt:
    why = f"the store has lost the series itself, in which {state.position:,} entries were issued"
    return Doubt(name, 0, "", 1, why)


def _current(series: Series, counters: dict[str, int]) -> dict[str, int]:
    """Returns the counters that allocate.lua would have kept: of a strict series those of the last periods."""
    if series.numbering.chronology != "strict":
        return counters
    last: dict[str, str] = {}
    for field in sorted(counters):
        last[field.partition(":")[0]] = field
    return {field: counters[field] for field in last.values()}
