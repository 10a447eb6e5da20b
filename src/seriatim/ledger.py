"""Series and their entries, as callers see them: Redis and the store as one.

Reads merge outbox and store by position. The outbox is read first: a record that is settled in between is then seen
in the store.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from datetime import date
from typing import Any, Protocol

import msgspec
import redis
import redis.asyncio

from seriatim import formats, scripts
from seriatim.allocator import Allocator, Gate, Issued, Order, Settled, Uninstalled
from seriatim.errors import Conflict, Damaged, Halted, Invalid, NotFound, Stale, Unavailable
from seriatim.formats import Preview
from seriatim.model import (
    Entry,
    Numbering,
    Series,
    SeriesFields,
    Standing,
    fingerprint,
    shard_of,
    uuid_bytes,
    uuid_text,
)
from seriatim.store import NewSeries, Store

DEFINITIONS_MAX = 100_000
READ_ENTRIES_MAX = 256
TRIES_MAX = 20
CHANGE_PAUSE_S = 0.05
CHANGE_MS_MAX = 5_000
"""A change that has not finished after this time has been left by a crash."""
NUMBERING_FIELDS = tuple(Numbering.__struct_fields__)


class Warden(Protocol):
    """Who meets Redis servers, and stops everything when that must be."""

    async def meet(self, known: Standing | None) -> Standing:
        """Returns a standing other than `known`, or `known` confirmed anew."""
        ...

    async def halt(self, reason: str) -> None:
        """Stops allocation in the whole data set."""
        ...


class Wanted(msgspec.Struct, frozen=True):
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

    def order(self) -> Order:
        """Returns what the allocator needs of it."""
        meta = b"" if self.meta == b"{}" else self.meta
        return Order(uuid_bytes(self.id) + fingerprint(self.meta, self.day), meta, (self.sig or "").encode(), self.day)


class SeriesView(msgspec.Struct, frozen=True):
    """A series and how far it has come, the outbox included."""

    series: Series
    last_index: int
    last_entry_id: str | None


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


class Ledger:
    """The definitions and entries of all companies.

    `client` is for requests; `blocking` is for what runs in threads: loading and changing definitions.
    """

    def __init__(  # noqa: PLR0913 -- its collaborators, built in one place
        self,
        *,
        store: Store,
        client: redis.asyncio.Redis,
        blocking: redis.Redis,
        allocator: Allocator,
        gate: Gate,
        warden: Warden,
        shards: int,
        series_max: int,
    ) -> None:
        self._store = store
        self._client = client
        self._blocking = blocking
        self._allocator = allocator
        self._gate = gate
        self._warden = warden
        self._shards = shards
        self._series_max = series_max
        self._definitions: OrderedDict[str, Series] = OrderedDict()
        self._reader = _Reader(store)
        self._reading: dict[str, asyncio.Task[Series]] = {}

    # entries ------------------------------------------------------------------------------------------------------

    async def put_entry(self, company: str, series_id: str, wanted: Wanted) -> tuple[Entry, bool]:
        """Issues the next number of a series under an id; the second value tells a replay.

        Raises:
            NotFound: the company has no such series.
            Invalid: the date is none that the series takes.
            Conflict: the id was issued with another payload, or the series takes no new entries.
            Unavailable: the outcome is unknown; the same call again is safe.
        """
        (issued,) = await self._put(company, series_id, [wanted], batch=False)
        return issued

    async def put_batch(self, company: str, series_id: str, wanted: Sequence[Wanted]) -> list[tuple[Entry, bool]]:
        """Issues one contiguous run of numbers, ids that were issued before answered in their places; or nothing.

        Raises:
            As `put_entry`; the error's fields name the first element that is refused, as `list[3]` or `list[3].date`.
        """
        return await self._put(company, series_id, wanted, batch=True)

    async def _put(
        self, company: str, series_id: str, wanted: Sequence[Wanted], *, batch: bool
    ) -> list[tuple[Entry, bool]]:
        series = await self._definition(company, series_id)
        orders = [one.order() for one in wanted]
        for _ in range(TRIES_MAX):
            standing = self._gate.standing
            try:
                _check_days(series.numbering, wanted, batch=batch)
                if batch:
                    answers = await self._allocator.allocate_batch(series, orders)
                else:
                    answers = [await self._allocator.allocate(series, orders[0])]
            except Stale:
                await self._warden.meet(standing)
            except Uninstalled as missing:
                series = await self._bring(series.id, missing.changing_since_ms)
            except Damaged as damage:
                await self._warden.halt(damage.message)
                raise
            else:
                return await asyncio.gather(
                    *(self._issued(series, *pair) for pair in zip(wanted, answers, strict=True))
                )
        raise Unavailable("The series' definition keeps changing. Repeat the request with the same id.")

    async def _issued(self, series: Series, wanted: Wanted, answer: Issued | Settled) -> tuple[Entry, bool]:
        if isinstance(answer, Settled):
            return await self._settled(series, answer.position, wanted.id), True
        return _entry(series.id, wanted, answer), answer.replayed

    async def entry(self, company: str, series_id: str, entry_id: str) -> Entry:
        """Returns an entry by its id.

        Raises:
            NotFound: there is none in this series of this company.
            Unavailable: it is not in the store, and Redis cannot be asked.
        """
        series = await self._definition(company, series_id)
        refused: Unavailable | None = None
        found = None
        try:
            found = await self._find(series, entry_id)
        except Unavailable as error:
            refused = error
        if found is not None and found.entry is not None:
            return found.entry
        entry = await asyncio.to_thread(self._store.entry, series, entry_id)
        if entry is not None:
            return entry
        if refused is not None:
            raise refused
        raise NotFound(f"There is no entry {entry_id} in series {series_id}.")

    async def entries(self, company: str, series_id: str, after_id: str | None, limit: int) -> tuple[list[Entry], bool]:
        """Returns up to `limit` entries behind the one with id `after_id`, oldest first, and whether there are more.

        Raises:
            NotFound: the company has no such series.
            Invalid: there is no entry `after_id`.
            Unavailable: Redis or the store cannot be asked.
        """
        series = await self._definition(company, series_id)
        position = 0
        if after_id is not None:
            try:
                position = (await self.entry(company, series_id, after_id)).position
            except NotFound:
                raise Invalid({"cursor": "names an entry that is not in this series"}) from None
        waiting = await self._outbox_after(series, position, limit + 1)
        stored = await asyncio.to_thread(self._store.entries_after, series, position, limit + 1)
        merged = {entry.position: entry for entry in (*waiting, *stored)}
        listed = [merged[at] for at in sorted(merged)][: limit + 1]
        return listed[:limit], len(listed) > limit

    async def _settled(self, series: Series, position: int, entry_id: str) -> Entry:
        entry = await self._reader.entry_at(series, position)
        if entry is None or entry.id != entry_id:
            reason = f"Redis says that entry {position} of series {series.id} is settled, and the store lacks it."
            await self._warden.halt(reason)
            raise Damaged(reason)
        return entry

    async def _find(self, series: Series, entry_id: str) -> scripts.Found | None:
        for _ in range(TRIES_MAX):
            standing = self._gate.require()
            try:
                return await scripts.find(self._client, standing, series, entry_id)
            except Stale:
                await self._warden.meet(standing)
        raise Stale

    async def _outbox_after(self, series: Series, position: int, limit: int) -> list[Entry]:
        for _ in range(TRIES_MAX):
            try:
                standing = self._gate.require()
            except Halted:  # reads go on with what the store holds
                return []
            try:
                return await scripts.outbox_after(self._client, standing, series, position, limit)
            except Stale:
                await self._warden.meet(standing)
        raise Stale

    # series -------------------------------------------------------------------------------------------------------

    async def put_series(self, company: str, series_id: str, fields: SeriesFields) -> SeriesView:
        """Creates a series, or updates it; the creating request again changes nothing, however late.

        Raises:
            NotFound: the id is taken by another company.
            Conflict: the change touches what the first entry has fixed, or the company has too many series.
            Unavailable: Redis or the store cannot be asked.
        """
        creation = hashlib.blake2b(msgspec.json.encode(fields), digest_size=16).digest()
        series = await asyncio.to_thread(self._store.series, series_id)
        if series is None:
            new = _new_series(company, series_id, fields, creation)
            await asyncio.to_thread(formats.check, new.numbering)
            shard = shard_of(series_id, self._shards)
            series = await asyncio.to_thread(self._store.create_series, new, shard, self._series_max)
            if series is not None:
                return await self._view(series)
            series = await asyncio.to_thread(self._store.series, series_id)
        if series is None or series.company != company:
            raise _no_series(series_id)
        if await asyncio.to_thread(self._store.creation, series.pk) != creation:
            series = await self._update(series, fields)
        return await self._view(series)

    async def series(self, company: str, series_id: str) -> SeriesView:
        """Returns a series.

        Raises:
            NotFound: the company has none with this id.
        """
        series = await asyncio.to_thread(self._store.series, series_id)
        if series is None or series.company != company:
            raise _no_series(series_id)
        return await self._view(series)

    async def preview(self, company: str, series_id: str) -> Preview:
        """Returns the codes that a series would issue next, now and after the coming changes of date.

        Raises:
            NotFound: the company has no such series.
        """
        series = await asyncio.to_thread(self._store.series, series_id)
        if series is None or series.company != company:
            raise _no_series(series_id)
        try:
            self._gate.require()
            values, used = await scripts.counters(self._client, series)
        except Unavailable:
            values, used = await asyncio.to_thread(self._store.counters, series), series.position > 0
        today = formats.window(series.numbering.timezone, time.time_ns() // 1_000_000).today
        return formats.preview(series.numbering, today, values, used=used)

    def preview_new(self, fields: SeriesFields) -> Preview:
        """Returns the first codes that a series would issue if it were created.

        Raises:
            Invalid: it would be refused.
        """
        numbering = _numbering(Numbering(), fields)
        formats.check(numbering)
        today = formats.window(numbering.timezone, time.time_ns() // 1_000_000).today
        return formats.preview(numbering, today, {}, used=False)

    async def list_series(self, company: str, after_id: str | None, limit: int) -> tuple[list[SeriesView], bool]:
        """Returns up to `limit` series of a company behind `after_id`, oldest first, and whether there are more.

        Raises:
            Invalid: there is no series `after_id`.
        """
        after = 0
        if after_id is not None:
            last = await asyncio.to_thread(self._store.series, after_id)
            if last is None or last.company != company:
                raise Invalid({"cursor": "names a series that does not exist"})
            after = last.pk
        listed = await asyncio.to_thread(self._store.list_series, company, after, limit + 1)
        return await self._views(listed[:limit]), len(listed) > limit

    async def _view(self, series: Series) -> SeriesView:
        return (await self._views([series]))[0]

    async def _views(self, listed: list[Series]) -> list[SeriesView]:
        try:
            self._gate.require()
            known = await scripts.standings(self._client, listed) if listed else []
        except Unavailable:
            return [await self._settled_view(series) for series in listed]
        return [
            SeriesView(series, at.number, at.last_id) if at and at.position else _unused_view(series)
            for series, at in zip(listed, known, strict=True)
        ]

    async def _settled_view(self, series: Series) -> SeriesView:
        last = await self._reader.entry_at(series, series.position) if series.position else None
        return SeriesView(series, last.number, last.id) if last else _unused_view(series)

    async def _update(self, series: Series, fields: SeriesFields) -> Series:
        for _ in range(TRIES_MAX):
            new = _updated(series, fields)
            if new.numbering != series.numbering:
                await asyncio.to_thread(formats.check, new.numbering)
            try:
                if (new.numbering, new.active) == (series.numbering, series.active):
                    return await asyncio.to_thread(self._store.relabel_series, series, new)
                return await asyncio.to_thread(self._change, self._gate.require(), series, new)
            except Stale:
                await self._warden.meet(self._gate.standing)
            except Uninstalled as busy:
                await self._bring(series.id, busy.changing_since_ms)
            series = await asyncio.to_thread(self._read, series.id)
        raise Unavailable("The series keeps changing. Repeat the request.")

    def _change(self, standing: Standing, old: Series, new: Series) -> Series:
        if old.loaded_epoch != standing.epoch:
            return self._store.change_series(old, new)
        reply, since = scripts.change(self._blocking, standing, old, numbering=new.numbering != old.numbering)
        match reply:
            case "used":
                raise Conflict("The series has entries, which fix its numbering. Create another series.")
            case "changing":
                raise Uninstalled(changing_since_ms=since)
            case "version" | "missing":
                raise Uninstalled
            case "ok":
                changed = self._store.change_series(old, new)
                scripts.install(self._blocking, standing, changed, opened=True)
                return changed

    # definitions --------------------------------------------------------------------------------------------------

    async def _definition(self, company: str, series_id: str) -> Series:
        series = self._definitions.get(series_id)
        if series is None:
            series = await self._once(series_id, lambda: asyncio.to_thread(self._read, series_id))
        if series.company != company:
            raise _no_series(series_id)
        return series

    def _keep(self, series: Series) -> None:
        self._definitions[series.id] = series
        while len(self._definitions) > DEFINITIONS_MAX:
            self._definitions.popitem(last=False)

    async def _bring(self, series_id: str, changing_since_ms: int | None) -> Series:
        """Makes Redis and this process hold the store's definition; ends a change that a crash has left."""
        return await self._once(series_id, lambda: self._bring_now(series_id, changing_since_ms))

    async def _bring_now(self, series_id: str, changing_since_ms: int | None) -> Series:
        try:
            if changing_since_ms is not None and time.time() * 1000 - changing_since_ms < CHANGE_MS_MAX:
                await asyncio.sleep(CHANGE_PAUSE_S)
            standing = self._gate.require()
            return await asyncio.to_thread(self._load, standing, series_id, changing_since_ms)
        except Stale:  # another process came first
            return await asyncio.to_thread(self._read, series_id)
        except Damaged as damage:
            await self._warden.halt(damage.message)
            raise

    async def _once(self, series_id: str, read: Callable[[], Coroutine[Any, Any, Series]]) -> Series:
        """Reads and keeps a definition; all who need it at the same time share one reading."""
        reading = self._reading.get(series_id)
        if reading is None:
            reading = self._reading[series_id] = asyncio.get_running_loop().create_task(read())
            reading.add_done_callback(lambda _: self._reading.pop(series_id))
        series = await asyncio.shield(reading)
        self._keep(series)
        return series

    def _read(self, series_id: str) -> Series:
        series = self._store.series(series_id)
        if series is None:
            raise _no_series(series_id)
        return series

    def _load(self, standing: Standing, series_id: str, changing_since_ms: int | None) -> Series:
        series = self._read(series_id)
        if changing_since_ms is not None and time.time() * 1000 - changing_since_ms >= CHANGE_MS_MAX:
            # The next version, with nothing changed: whoever left the mark can no longer commit his.
            series = self._store.change_series(series, series)
        if series.loaded_epoch != standing.epoch:
            if series.position > 0:
                raise Damaged(f"Series {series_id} has entries in the store, and Redis never had them in this epoch.")
            scripts.install(self._blocking, standing, series, opened=False)
            self._store.mark_loaded(series, standing.epoch)
            series = msgspec.structs.replace(series, loaded_epoch=standing.epoch)
        if not scripts.install(self._blocking, standing, series, opened=True):
            raise Damaged(f"Redis has lost series {series_id}.")
        return series


def _no_series(series_id: str) -> NotFound:
    return NotFound(f"There is no series {series_id}. Create it first, or check the id.")


def _check_days(numbering: Numbering, wanted: Sequence[Wanted], *, batch: bool) -> None:
    first = formats.first_day(numbering)
    for number, one in enumerate(wanted):
        if one.day is not None and not first <= one.day <= formats.LAST_DAY:
            name = f"list[{number}].date" if batch else "date"
            raise Invalid({name: f"must be {first} to {formats.LAST_DAY} in this series"})


def _entry(series_id: str, wanted: Wanted, issued: Issued) -> Entry:
    return Entry(
        series=series_id,
        id=wanted.id,
        position=issued.position,
        code=issued.code,
        numbers=issued.numbers,
        date=issued.date,
        created_at=issued.created_at,
        previous_id=uuid_text(issued.previous) if issued.previous else None,
        meta=wanted.meta,
        sig=(issued.sig.decode() or None) if issued.replayed else wanted.sig,
        fingerprint=fingerprint(wanted.meta, wanted.day),
    )


def _unused_view(series: Series) -> SeriesView:
    return SeriesView(series, series.numbering.start or 0, None)


def _new_series(company: str, series_id: str, fields: SeriesFields, creation: bytes) -> NewSeries:
    return NewSeries(
        id=series_id,
        company=company,
        type=fields.type or "invoice",
        name=fields.name or "",
        description=fields.description or "",
        code=fields.code or "",
        numbering=_numbering(Numbering(), fields),
        sig=fields.sig,
        active=fields.active is not False,
        default=fields.default is True,
        creation=creation,
    )


def _updated(series: Series, fields: SeriesFields) -> Series:
    given = {name: value for name, value in msgspec.structs.asdict(fields).items() if value is not None}
    if given.pop("type", series.type) != series.type:
        raise Conflict("The type of a series is fixed when it is created. Create another series.")
    labels = {name: value for name, value in given.items() if name not in NUMBERING_FIELDS}
    return msgspec.structs.replace(series, numbering=_numbering(series.numbering, fields), **labels)


def _numbering(old: Numbering, fields: SeriesFields) -> Numbering:
    """Returns a numbering with what a request says of it; a format replaces prefix and suffix, and they replace it."""
    given = {name: getattr(fields, name) for name in NUMBERING_FIELDS if getattr(fields, name) is not None}
    if "format" in given:
        given = {"prefix": "", "suffix": ""} | given
    elif "prefix" in given or "suffix" in given:
        given["format"] = None
    return msgspec.structs.replace(old, **given)
