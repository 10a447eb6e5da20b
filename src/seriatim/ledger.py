"""Entries as callers see them: Redis and the store as one.

Reads merge outbox and store by position. The outbox is read first: a record that is settled in between is then seen
in the store.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from datetime import date
from typing import TypeVar

import msgspec
import redis.asyncio

from seriatim import formats, keyspace, scripts
from seriatim.allocator import Allocator, Gate, Settled, Uninstalled, Waiting
from seriatim.definitions import Definitions, SeriesView, Warden
from seriatim.errors import Conflict, Damaged, Halted, Invalid, NotFound, SeriatimError, Stale, Unavailable
from seriatim.groups import Order
from seriatim.keyspace import Issued
from seriatim.model import (
    COUNTER_MAX,
    Entry,
    Numbering,
    Place,
    Record,
    Series,
    Skip,
    Standing,
    Void,
    Why,
    fingerprint,
    uuid_bytes,
)
from seriatim.outbox import Outbox, entries_at, records_after
from seriatim.report import Line, Report
from seriatim.store import Store

T = TypeVar("T")
Outcome = Issued | SeriatimError | None
"""An entry that is not void, or why there is none, or None when that is still to be found out."""
AGAIN = (Stale, Uninstalled, Damaged)

READ_ENTRIES_MAX = 256
PAGE = 1000
TRIES_MAX = 20


class Wanted(msgspec.Struct, frozen=True, gc=False):
    """An entry that a caller asks for.

    Args:
        id: canonical UUID of the entry.
        meta: canonical JSON.
        sig: the client's compact JWS.
        day: the document's date as given; None for today.
    """

    id: str
    meta: bytes = b"{}"
    sig: str | None = None
    day: date | None = None

    def order(self, *, claimed: bool) -> Order:
        """Returns what the allocator needs of it."""
        tag = uuid_bytes(self.id) + fingerprint(self.meta, self.day)
        meta = b"" if self.meta == b"{}" else self.meta
        return Order(keyspace.pack_request(tag, meta, (self.sig or "").encode()), self.day, claimed)


class _Reader:
    """Reads settled entries: what is wanted while the store answers is read together, next."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._wanted: list[tuple[Series, int, asyncio.Future[Entry | None]]] = []
        self._running: asyncio.Task[None] | None = None

    async def entry_at(self, series: Series, position: int) -> Entry | None:
        """Returns the entry at a position, if the store has it.

        Raises:
            Unavailable: the store cannot be asked.
        """
        entry: asyncio.Future[Entry | None] = asyncio.get_running_loop().create_future()
        self._wanted.append((series, position, entry))
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._run())
        return await entry

    async def _run(self) -> None:
        while self._wanted:
            taken, self._wanted = self._wanted[:READ_ENTRIES_MAX], self._wanted[READ_ENTRIES_MAX:]
            positions: dict[Series, list[int]] = {}
            for series, position, _ in taken:
                positions.setdefault(series, []).append(position)
            reading = asyncio.ensure_future(asyncio.to_thread(self._store.entries_at, positions))
            await asyncio.wait([reading])
            for series, position, entry in taken:
                if entry.done():  # the caller has gone
                    continue
                if error := reading.exception():
                    entry.set_exception(error)
                else:
                    entry.set_result(reading.result().get((series.id, position)))
        self._running = None


class Put(Waiting):
    """A `put_entry` that is told what comes of it at once, where a future would wait for the loop's next turn."""

    def succeed(self, answer: Issued | Settled) -> None:
        """Tells of the entry."""
        self.tell(answer if type(answer) is Issued and not answer.void else None)

    def fail(self, error: SeriatimError) -> None:
        """Tells of an error that is final."""
        self.tell(None if isinstance(error, AGAIN) else error)

    @abstractmethod
    def tell(self, outcome: Outcome) -> None:
        """Takes what came of it. When that cannot be done, it raises and has done nothing; an error is then told."""


class Ledger:
    """The entries of all companies."""

    def __init__(  # noqa: PLR0913 -- its collaborators, built in one place
        self,
        *,
        store: Store,
        client: redis.asyncio.Redis,
        allocator: Allocator,
        definitions: Definitions,
        gate: Gate,
        warden: Warden,
    ) -> None:
        self._store = store
        self._client = client
        self._allocator = allocator
        self._definitions = definitions
        self._gate = gate
        self._warden = warden
        self._reader = _Reader(store)

    # writing ------------------------------------------------------------------------------------------------------

    async def put_entry(
        self, company: str, series_id: str, wanted: Wanted, *, claimed: bool = False
    ) -> tuple[Entry, bool]:
        """Issues the next number of a series under an id; the second value tells a replay.

        Raises:
            NotFound: the company has no such series.
            Invalid: the date is none that the series takes.
            Conflict: the id was issued with another payload, or the series takes no new entries.
            Unavailable: the outcome is unknown; the same call again is safe.
        """
        order = wanted.order(claimed=claimed)

        async def put(series: Series) -> tuple[Entry, bool]:
            _check_days(series.numbering, [wanted], batch=False)
            answer = await self._allocator.allocate(series, order)
            if isinstance(answer, Issued):
                return _told(series, answer)
            return await self._settled(series, wanted, answer)

        return await self._insist(company, series_id, put)

    def submit(self, put: Put, company: str, series_id: str, wanted: Wanted) -> bool:
        """Does what `put_entry` does as far as that goes without waiting, and tells `put`.

        Returns False when nothing was done, and tells None when it does not come to an end this way: the call of
        `put_entry` then does.

        Raises:
            Invalid, Unavailable: as `put_entry`.
        """
        series = self._definitions.known(company, series_id)
        if series is None:
            return False
        if wanted.day is not None:
            _check_days(series.numbering, [wanted], batch=False)
        self._allocator.submit(put.ask(series, wanted.order(claimed=False)))
        return True

    async def put_default_entry(self, company: str, kind: str, wanted: Wanted) -> tuple[Entry, bool]:
        """Issues the next number of the company's default series of a type: that which was it when the id first came.

        Raises:
            NotFound: the company has no default series of this type.
            As `put_entry`.
        """
        series_id = await self._claim(company, kind, wanted.id)
        try:
            return await self.put_entry(company, series_id, wanted, claimed=True)
        except NotFound:
            raise Conflict(f"The id belongs to series {series_id}, which was deleted. Use a new id.") from None

    async def put_batch(self, company: str, series_id: str, wanted: Sequence[Wanted]) -> list[tuple[Entry, bool]]:
        """Issues one contiguous run of numbers, ids that were issued before answered in their places; or nothing.

        Raises:
            As `put_entry`; the error's fields name the first element that is refused, as `list[3]` or `list[3].date`.
        """
        orders = [one.order(claimed=False) for one in wanted]

        async def put(series: Series) -> list[tuple[Entry, bool]]:
            _check_days(series.numbering, wanted, batch=True)
            answers = await self._allocator.allocate_batch(series, orders)
            pairs = zip(wanted, answers, strict=True)
            reading = [self._settled(series, one, answer) for one, answer in pairs if isinstance(answer, Settled)]
            settled = iter(await asyncio.gather(*reading))
            return [_told(series, answer) if isinstance(answer, Issued) else next(settled) for answer in answers]

        return await self._insist(company, series_id, put)

    async def skip(
        self, company: str, series_id: str, counter: str | None, to: int, why: Why
    ) -> tuple[str, Skip | None]:
        """Raises a counter (None: the format's first) in today's period, so that its next number is `to`.

        Returns the counter's name and what was left out, None when it stood there already.

        Raises:
            NotFound: the company has no such series.
            Invalid: the series has no such counter, or its next number is higher already.
            Unavailable: the outcome is unknown; the same call again is safe.
        """

        async def skip(series: Series) -> tuple[str, Skip | None]:
            names = formats.counters_of(series.numbering)
            name = counter or names[0]
            if name not in names:
                raise Invalid({"counter": f"must be one of the series' format: {', '.join(names)}"})
            return name, await self._allocator.skip(series, names.index(name) + 1, to, why)

        return await self._insist(company, series_id, skip)

    async def void(self, company: str, series_id: str, entry_id: str, why: Why) -> Entry:
        """Records that an entry is void; its number stays used. Again: the first reason stays.

        Raises:
            NotFound: there is no such entry in this series of this company.
            Unavailable: the outcome is unknown; the same call again is safe.
        """
        void = await self._insist(company, series_id, lambda series: self._allocator.void(series, entry_id, why))
        if void is None:
            raise _no_entry(series_id, entry_id)
        return await self.entry(company, series_id, entry_id)

    async def _insist(self, company: str, series_id: str, act: Callable[[Series], Awaitable[T]]) -> T:
        """Does something in Redis, again when Redis holds another definition or is another server."""
        series = await self._definitions.current(company, series_id)
        for _ in range(TRIES_MAX):
            standing = self._gate.standing
            try:
                return await act(series)
            except Stale:
                await self._warden.meet(standing)
            except Uninstalled as missing:
                series = await self._definitions.bring(series.id, missing.changing_ms)
            except Damaged as damage:
                await self._warden.halt(damage.message)
                raise
        raise Unavailable("The series' definition keeps changing. Repeat the request with the same id.")

    async def _claim(self, company: str, kind: str, entry_id: str) -> str:
        shard = self._definitions.claims_shard(company)
        for _ in range(TRIES_MAX):
            standing = self._gate.require()
            try:
                word, value = await scripts.claim(
                    self._client, standing, shard, company=company, kind=kind, entry_id=entry_id
                )
            except Stale:
                await self._warden.meet(standing)
                continue
            except Damaged as damage:
                await self._warden.halt(damage.message)
                raise
            if word == "claimed":
                return str(value)
            if word == "none":
                raise NotFound(f"There is no default series of type {kind}. Create one, or name a series.")
            await self._definitions.bring_defaults(company, value)
        raise Unavailable("The default series keeps changing. Repeat the request with the same id.")

    async def _settled(self, series: Series, wanted: Wanted, answer: Settled) -> tuple[Entry, bool]:
        entry = await self._reader.entry_at(series, answer.position)
        if entry is None or entry.id != wanted.id:
            lost = _lost(series, answer.position)
            await self._warden.halt(lost.message)
            raise lost
        return _with_void(entry, keyspace.unpack_void(series.id, answer.position, answer.void)), True

    # reading ------------------------------------------------------------------------------------------------------

    async def entry(self, company: str, series_id: str, entry_id: str) -> Entry:
        """Returns an entry by its id.

        Raises:
            NotFound: there is none in this series of this company.
            Unavailable: it is not in the store, and Redis cannot be asked.
            Damaged: Redis knows it, and neither of them has it.
        """
        series = await self._definitions.current(company, series_id)
        refused: Unavailable | None = None
        found = None
        try:
            found = await self._find(series, entry_id)
        except Unavailable as error:
            refused = error
        if found is not None and found.entry is not None:
            return _with_void(found.entry, found.void)
        entry = await asyncio.to_thread(self._store.entry, series, entry_id)
        if entry is not None:
            return _with_void(entry, found.void if found else None)
        if refused is not None:
            raise refused
        raise _no_entry(series_id, entry_id) if found is None else _lost(series, found.position)

    async def last_entries(self, views: Sequence[SeriesView]) -> dict[str, Entry]:
        """Returns the last entry of each of some series, by the series' id, as it stood when they were seen.

        Raises:
            Unavailable: an entry is not in the store, and Redis cannot be asked.
        """
        wanted = [(view.series, view.state.position, view.state.item) for view in views if view.state.position]
        refused: Unavailable | None = None
        waiting: list[Entry] = []
        try:
            self._gate.require()
            waiting, behind = await entries_at(self._client, wanted)
            for series, position in behind:
                entries, _ = await self._waiting_entries(series, position - 1, 1)
                waiting += entries
        except Unavailable as error:
            refused = error
        found = {entry.series: entry for entry in waiting}
        settled = {series: [position] for series, position, _ in wanted if series.id not in found}
        stored = await asyncio.to_thread(self._store.entries_at, settled)
        found |= {entry.series: entry for entry in stored.values()}
        if refused is not None and len(found) < len(wanted):
            raise refused
        return found

    async def entries(self, company: str, series_id: str, after_id: str | None, limit: int) -> tuple[list[Entry], bool]:
        """Returns up to `limit` entries behind the one with id `after_id`, oldest first, and whether there are more.

        Raises:
            NotFound: the company has no such series.
            Invalid: there is no entry `after_id`.
            Unavailable: Redis or the store cannot be asked.
        """
        series = await self._definitions.current(company, series_id)
        position = 0
        if after_id is not None:
            try:
                position = (await self.entry(company, series_id, after_id)).position
            except NotFound:
                raise Invalid({"cursor": "names an entry that is not in this series"}) from None
        waiting, voids = await self._waiting_entries(series, position, limit + 1)
        stored = await asyncio.to_thread(self._store.entries_after, series, position, limit + 1)
        merged = {entry.position: entry for entry in (*waiting, *stored)}
        listed = [merged[at] for at in sorted(merged)][: limit + 1]
        if voids and listed:
            found = await scripts.voids(self._client, series, [entry.position for entry in listed])
            listed = [_with_void(entry, found.get(entry.position)) for entry in listed]
        if not listed:
            await self._definitions.get(company, series_id)  # another process may have deleted it
        return listed[:limit], len(listed) > limit

    async def report(self, company: str, series_id: str, first: date | None, last: date | None) -> list[Line]:
        """Returns what became of the numbers of a series, of entries dated `first` to `last`.

        Raises:
            NotFound: the company has no such series.
            Unavailable: Redis or the store cannot be asked.
        """
        series = (await self._definitions.get(company, series_id)).series
        voided = await self._voided(series)
        report = Report(series.numbering, first, last)

        def read_settled() -> None:
            for position, numbers, day in self._store.counted(series):
                report.add(position, numbers, day, void=position in voided)
            for note in self._store.notes(series):
                if isinstance(note, Skip) and note.place <= series.place:  # others are read below
                    report.skip(note)

        await asyncio.to_thread(read_settled)
        place = series.place
        while records := await self._records_after(series, place):
            for record in records:
                if isinstance(record, Entry):
                    report.add(record.position, record.numbers, record.date, void=record.position in voided)
                elif isinstance(record, Skip):
                    report.skip(record)
            place = records[-1].place
        return report.lines()

    async def _records_after(self, series: Series, place: Place) -> list[Record]:
        waiting = await self._outbox_after(series, place, PAGE)
        stored = await asyncio.to_thread(self._store.records_after, series, place, PAGE)
        merged = {record.place: record for record in (*waiting.records, *stored)}
        return [merged[at] for at in sorted(merged)][:PAGE]

    async def _waiting_entries(self, series: Series, position: int, limit: int) -> tuple[list[Entry], bool]:
        """Returns up to `limit` entries of the outbox behind `position`, and whether entries of the series are void."""
        entries: list[Entry] = []
        place = (position, COUNTER_MAX)
        while True:
            outbox = await self._outbox_after(series, place, limit)
            entries += [record for record in outbox.records if isinstance(record, Entry)]
            if len(entries) >= limit or len(outbox.records) < limit:
                return entries[:limit], outbox.voids
            place = outbox.records[-1].place

    async def _voided(self, series: Series) -> set[int]:
        try:
            self._gate.require()
            return await scripts.voided(self._client, series)
        except Unavailable:
            return {note.voids for note in await asyncio.to_thread(self._store.notes, series) if isinstance(note, Void)}

    async def _find(self, series: Series, entry_id: str) -> scripts.Found | None:
        return await self._met(lambda standing: scripts.find(self._client, standing, series, entry_id))

    async def _outbox_after(self, series: Series, place: Place, limit: int) -> Outbox:
        try:
            self._gate.require()
        except Halted:  # reads go on with what the store holds
            return Outbox([], voids=False)
        return await self._met(lambda standing: records_after(self._client, standing, series, place, limit))

    async def _met(self, ask: Callable[[Standing], Awaitable[T]]) -> T:
        """Asks Redis, again when another server answers, which is then met."""
        for _ in range(TRIES_MAX):
            standing = self._gate.require()
            try:
                return await ask(standing)
            except Stale:
                await self._warden.meet(standing)
        raise Stale


def _no_entry(series_id: str, entry_id: str) -> NotFound:
    return NotFound(f"There is no entry {entry_id} in series {series_id}.")


def _lost(series: Series, position: int) -> Damaged:
    return Damaged(f"Redis says that entry {position} of series {series.id} is settled, and the store lacks it.")


def _with_void(entry: Entry, void: Void | None) -> Entry:
    """Returns an entry with its void as Redis has it, unless the store has it already."""
    return entry if entry.void or not void else msgspec.structs.replace(entry, void=void)


def _check_days(numbering: Numbering, wanted: Sequence[Wanted], *, batch: bool) -> None:
    dated = [(number, one.day) for number, one in enumerate(wanted) if one.day is not None]
    if not dated:
        return
    first = formats.first_day(numbering)
    for number, day in dated:
        if not first <= day <= formats.LAST_DAY:
            name = f"list[{number}].date" if batch else "date"
            raise Invalid({name: f"must be {first} to {formats.LAST_DAY} in this series"})


def _told(series: Series, issued: Issued) -> tuple[Entry, bool]:
    void = keyspace.unpack_void(series.id, issued.position, issued.void)
    return _with_void(issued.entry(), void), issued.replayed
