"""Series and their definitions, as callers see them and as allocation needs them: in the store, and loaded in Redis.

A change of a definition, or of a company's defaults, spans two systems: Redis is marked as changing, if version and
position permit; the store commits; the new version is installed in Redis, which takes the mark away. Meanwhile new
ids are refused. A mark that a crash has left is resolved from the store.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from datetime import date
from typing import Any, Protocol, TypeVar

import msgspec
import redis
import redis.asyncio

from seriatim import formats, scripts
from seriatim.allocator import Gate, Uninstalled
from seriatim.errors import Conflict, Damaged, Invalid, NotFound, Stale, Unavailable
from seriatim.formats import Preview
from seriatim.keyspace import State
from seriatim.model import Defaults, Numbering, Series, SeriesFields, Standing, shard_of, uuid_bytes
from seriatim.registry import now_ms
from seriatim.scripts import Standings
from seriatim.store import NewSeries, Store

T = TypeVar("T")

DEFINITIONS_MAX = 100_000
VIEWS_AT_ONCE = 200
"""So that others are served meanwhile."""
TRIES_MAX = 20
CHANGE_PAUSE_S = 0.05
CHANGE_MS_MAX = 5_000
"""A change that has not finished after this time has been left by a crash."""
FIXED = "The series has entries, which fix its numbering. Create another series."
KEPT = "The series has records, which are kept for good. Deactivate it instead."
NUMBERING_FIELDS = tuple(Numbering.__struct_fields__)


class Warden(Protocol):
    """Who meets Redis servers, and stops everything when that must be."""

    async def meet(self, known: Standing | None) -> Standing:
        """Returns a standing other than `known`, or `known` confirmed anew."""
        ...

    async def halt(self, reason: str) -> None:
        """Stops allocation in the whole data set."""
        ...


class SeriesView(msgspec.Struct, frozen=True):
    """A series and how far it has come, the outbox included; what is next is of today's periods."""

    series: Series
    state: State
    last_index: int
    next_number: int
    next_code: str

    @property
    def used(self) -> bool:
        """Whether there are records, which fix the numbering."""
        return any(self.state.place)


class DefaultsUninstalled(Uninstalled):
    """The same of a company's defaults."""


class Definitions:
    """The series of all companies.

    `client` is for requests; `blocking` is for what runs in threads: loading and changing definitions.
    """

    def __init__(  # noqa: PLR0913 -- its collaborators, built in one place
        self,
        *,
        store: Store,
        client: redis.asyncio.Redis,
        blocking: redis.Redis,
        gate: Gate,
        warden: Warden,
        shards: int,
        series_max: int,
    ) -> None:
        self._store = store
        self._client = client
        self._blocking = blocking
        self._gate = gate
        self._warden = warden
        self._shards = shards
        self._series_max = series_max
        self._known: OrderedDict[str, Series] = OrderedDict()
        self._reading: dict[str, asyncio.Task[Any]] = {}

    # what callers ask ---------------------------------------------------------------------------------------------

    async def put(self, company: str, series_id: str, fields: SeriesFields) -> SeriesView:
        """Creates a series, or updates it; the creating request again changes nothing, however late.

        Raises:
            NotFound: the id is taken by another company.
            Conflict: the change touches what the first record has fixed, or the company has too many series.
            Unavailable: Redis or the store cannot be asked.
        """
        creation = hashlib.blake2b(msgspec.json.encode(fields), digest_size=16).digest()
        series = await asyncio.to_thread(self._store.series, series_id)
        if series is None:
            new = _new_series(company, series_id, fields, creation)
            series = await self._insist(company, series_id, lambda: self._create(new))
        if series.company != company:
            raise no_series(series_id)
        if await asyncio.to_thread(self._store.creation, series.id) != creation:
            series = await self._insist(company, series_id, lambda: self._update(company, series_id, fields))
        return await self._view(series)

    async def get(self, company: str, series_id: str) -> SeriesView:
        """Returns a series.

        Raises:
            NotFound: the company has none with this id.
        """
        return await self._view(await asyncio.to_thread(self._read_own, company, series_id))

    async def create(self, company: str, fields: SeriesFields, *, lone_prefix: bool = False) -> SeriesView:
        """Creates a series under a new id; with `lone_prefix` no other of its company and type may have its prefix.

        Raises:
            Invalid: the numbering is refused, or the prefix is taken.
            Conflict: the company has too many series.
            Unavailable: Redis or the store cannot be asked.
        """
        series_id = str(uuid.uuid4())
        new = _new_series(company, series_id, fields, b"", lone_prefix=lone_prefix)
        return await self._view(await self._insist(company, series_id, lambda: self._create(new)))

    async def update(self, company: str, series_id: str, fields: SeriesFields) -> SeriesView:
        """Changes what `fields` says of a series.

        Raises:
            NotFound: the company has no such series.
            Conflict: the change touches what the first record has fixed.
            Unavailable: Redis or the store cannot be asked.
        """
        return await self._view(
            await self._insist(company, series_id, lambda: self._update(company, series_id, fields))
        )

    async def all_series(self, company: str, kind: str | None = None) -> list[SeriesView]:
        """Returns the series of a company and type (None: of all), oldest first."""
        return await self._views(await asyncio.to_thread(self._store.list_series, company, kind))

    async def ids(self, company: str, kind: str) -> list[str]:
        """Returns the ids of a company's series of a type, oldest first."""
        return await asyncio.to_thread(self._store.series_ids, company, kind)

    async def some_series(self, series_ids: Sequence[str]) -> list[SeriesView]:
        """Returns those of some series that exist, in this order."""
        found = await asyncio.to_thread(self._store.series_by_ids, series_ids)
        return await self._views([found[one] for one in series_ids if one in found])

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
        listed = await asyncio.to_thread(self._store.list_series, company, None, after, limit + 1)
        return await self._views(listed[:limit]), len(listed) > limit

    async def delete(self, company: str, series_id: str, actor: str) -> None:
        """Deletes a series that has no records. Its id is never used again.

        Raises:
            NotFound: the company has no such series.
            Conflict: it has records.
            Unavailable: Redis or the store cannot be asked.
        """
        await self._insist(company, series_id, lambda: self._delete(company, series_id, actor))
        self._known.pop(series_id, None)

    async def preview(self, company: str, series_id: str) -> Preview:
        """Returns the codes that a series would issue next, now and after the coming changes of date.

        Raises:
            NotFound: the company has no such series.
        """
        series = await asyncio.to_thread(self._read_own, company, series_id)
        try:
            self._gate.require()
            values, state = await scripts.counters(self._client, series)
            used, reached_ms = state.position > 0, state.time
        except Unavailable:
            values = (await asyncio.to_thread(self._store.counters, [series]))[series.id]
            used, reached_ms = series.position > 0, 0
        today = formats.window(series.numbering.timezone, max(await self.time(), reached_ms)).today
        return formats.preview(series.numbering, today, values, used=used)

    async def time(self) -> int:
        """Returns the time that documents get, in milliseconds; this machine's while Redis cannot be asked for it."""
        try:
            self._gate.require()
            return await scripts.clock(self._client)
        except Unavailable:
            return now_ms()

    async def _view(self, series: Series) -> SeriesView:
        return (await self._views([series]))[0]

    async def _views(self, listed: list[Series]) -> list[SeriesView]:
        views: list[SeriesView] = []
        for first in range(0, len(listed), VIEWS_AT_ONCE):
            views += await self._some_views(listed[first : first + VIEWS_AT_ONCE])
        return views

    async def _some_views(self, listed: list[Series]) -> list[SeriesView]:
        try:
            self._gate.require()
            return await self._current_views(listed)
        except Unavailable:
            return await asyncio.to_thread(self._settled_views, listed)

    async def _current_views(self, listed: list[Series]) -> list[SeriesView]:
        days = [_today(series, now_ms()) for series in listed]
        while True:
            asked = [
                (series, formats.fields_of(series.numbering, day)) for series, day in zip(listed, days, strict=True)
            ]
            time_ms, known = await scripts.standings(self._client, asked)
            held = [
                _today(series, max(time_ms, at.state.time if at else 0))
                for series, at in zip(listed, known, strict=True)
            ]
            if held == days:
                return [_seen(*one) for one in zip(listed, days, known, strict=True)]
            days = held  # midnight has passed, or this machine's clock is not the server's

    def _settled_views(self, listed: list[Series]) -> list[SeriesView]:
        last = self._store.entries_at({one: [one.position] for one in listed})
        values = self._store.counters(listed)
        views = []
        for series in listed:
            entry = last.get((series.id, series.position))
            number, last_id = (entry.number, uuid_bytes(entry.id)) if entry else (0, b"")
            at = Standings(State(position=series.position, k=series.k, number=number, id=last_id), values[series.id])
            views.append(_seen(series, _today(series, now_ms()), at))
        return views

    # changes: these run in threads --------------------------------------------------------------------------------

    async def _insist(self, company: str, series_id: str, change: Callable[[], T]) -> T:
        """Makes a change, again when another one came first; it reads anew what it changes."""
        for _ in range(TRIES_MAX):
            try:
                return await asyncio.to_thread(change)
            except Stale:
                await self._warden.meet(self._gate.standing)
            except DefaultsUninstalled as busy:
                await self.bring_defaults(company, busy.changing_ms)
            except Uninstalled as busy:
                await self.bring(series_id, busy.changing_ms)
        raise Unavailable("The series keeps changing. Repeat the request.")

    def _create(self, new: NewSeries) -> Series:
        formats.check(new.numbering)
        shard = shard_of(new.id, self._shards)

        def create(defaults: Defaults | None) -> Series | None:
            return self._store.create_series(new, shard, self._series_max, defaults)

        first = new.type not in self._defaults(new.company).series
        created = self._with_defaults(new.company, create) if first or new.default else create(None)
        return created or self._read(new.id)

    def _update(self, company: str, series_id: str, fields: SeriesFields) -> Series:
        old = self._read_own(company, series_id)
        new = _updated(old, fields)
        if new.numbering != old.numbering:
            formats.check(new.numbering)
        if (new.numbering, new.active, new.default) == (old.numbering, old.active, old.default):
            return self._store.relabel_series(old, new)

        def change(defaults: Defaults | None) -> Series:
            standing = self._mark(old, FIXED if new.numbering != old.numbering else None)
            changed = self._store.change_series(old, new, defaults)
            if standing:
                scripts.install(self._blocking, standing, changed, opened=True)
            return changed

        return self._with_defaults(company, change) if new.default != old.default else change(None)

    def _delete(self, company: str, series_id: str, actor: str) -> None:
        old = self._read_own(company, series_id)

        def delete(defaults: Defaults | None) -> None:
            standing = self._mark(old, KEPT)
            self._store.delete_series(old, defaults, actor)
            if standing:
                scripts.remove(self._blocking, standing, old)

        return self._with_defaults(company, delete) if old.default else delete(None)

    def _mark(self, old: Series, unless_used: str | None) -> Standing | None:
        """Marks a series as changing where Redis holds it; None when Redis does not.

        Raises:
            Conflict: it has records; the message is `unless_used`, which is None for what they do not prevent.
            Uninstalled: Redis holds another definition, or it is being changed.
        """
        if unless_used and any(old.place):
            raise Conflict(unless_used)
        standing = self._gate.require() if old.loaded_epoch else None
        if standing is None or old.loaded_epoch != standing.epoch:
            return None
        match scripts.change(self._blocking, standing, old, unused=unless_used is not None):
            case "used", _:
                raise Conflict(unless_used or "")
            case "changing", ms:
                raise Uninstalled(changing_ms=ms)
            case "version" | "missing", _:
                raise Uninstalled
        return standing

    def _with_defaults(self, company: str, change: Callable[[Defaults], T]) -> T:
        """Makes a change that moves a default; no id is claimed meanwhile."""
        defaults = self._defaults(company)
        standing = self._gate.require() if defaults.loaded_epoch else None
        if standing is None or defaults.loaded_epoch != standing.epoch:
            return change(defaults)
        match scripts.change_defaults(self._blocking, standing, defaults):
            case "changing", ms:
                raise DefaultsUninstalled(changing_ms=ms)
            case "version" | "missing" | "used", _:
                raise DefaultsUninstalled
        try:
            return change(defaults)
        finally:
            after = self._defaults(company)
            if after.version == defaults.version:  # nothing was changed, and nothing may be any more
                self._store.touch_defaults(after)
                after = self._defaults(company)
            scripts.install_defaults(self._blocking, standing, after, opened=True)

    # what allocation needs ----------------------------------------------------------------------------------------

    def claims_shard(self, company: str) -> int:
        """Returns the shard of a company's defaults and claims."""
        return shard_of(company, self._shards)

    async def current(self, company: str, series_id: str) -> Series:
        """Returns a definition as this process knows it, which may be an old one: Redis tells.

        Raises:
            NotFound: the company has no such series.
        """
        series = self._known.get(series_id)
        if series is None:
            series = await self._once(series_id, lambda: asyncio.to_thread(self._read, series_id))
            self._keep(series)
        if series.company != company:
            raise no_series(series_id)
        return series

    def known(self, company: str, series_id: str) -> Series | None:
        """Returns as `current`, None where that would have to ask the store."""
        series = self._known.get(series_id)
        return series if series is not None and series.company == company else None

    async def bring(self, series_id: str, changing_ms: int | None) -> Series:
        """Makes Redis and this process hold the store's definition; ends a change that a crash has left.

        Raises:
            NotFound: there is no such series.
            Damaged: Redis has lost it.
        """

        def load(standing: Standing) -> Series:
            return self._load(standing, series_id, changing_ms)

        async def bring() -> Series:
            loaded = await self._loaded(load, changing_ms)
            if loaded is not None:
                return loaded
            return await asyncio.to_thread(self._read, series_id)

        series = await self._once(series_id, bring)
        self._keep(series)
        return series

    async def bring_defaults(self, company: str, changing_ms: int | None) -> None:
        """Makes Redis hold the store's default series of a company; ends a change that a crash has left.

        Raises:
            Damaged: Redis has lost the company's claims.
        """

        def load(standing: Standing) -> None:
            self._load_defaults(standing, company, changing_ms)

        await self._once(f"defaults:{company}", lambda: self._loaded(load, changing_ms))

    async def _loaded(self, load: Callable[[Standing], T], changing_ms: int | None) -> T | None:
        """Loads something; None when another process came first."""
        try:
            if changing_ms is not None and not _left(changing_ms):
                await asyncio.sleep(CHANGE_PAUSE_S)
            return await asyncio.to_thread(load, self._gate.require())
        except Stale:
            return None
        except Damaged as damage:
            await self._warden.halt(damage.message)
            raise

    async def _once(self, name: str, read: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Reads something; all who need it at the same time share one reading."""
        reading: asyncio.Task[T] | None = self._reading.get(name)
        if reading is None:
            reading = self._reading[name] = asyncio.get_running_loop().create_task(read())
            reading.add_done_callback(lambda _: self._reading.pop(name))
        return await asyncio.shield(reading)

    def _keep(self, series: Series) -> None:
        self._known[series.id] = series
        while len(self._known) > DEFINITIONS_MAX:
            self._known.popitem(last=False)

    def _read(self, series_id: str) -> Series:
        series = self._store.series(series_id)
        if series is None:
            self._known.pop(series_id, None)
            raise no_series(series_id)
        return series

    def _read_own(self, company: str, series_id: str) -> Series:
        series = self._read(series_id)
        if series.company != company:
            raise no_series(series_id)
        return series

    def _defaults(self, company: str) -> Defaults:
        return self._store.defaults(company, self.claims_shard(company))

    def _load(self, standing: Standing, series_id: str, changing_ms: int | None) -> Series:
        series = self._read(series_id)
        if _left(changing_ms):
            # The next version, with nothing changed: whoever left the mark can no longer commit his.
            series = self._store.change_series(series, series)
        if series.loaded_epoch != standing.epoch:
            if any(series.place):
                raise Damaged(f"Series {series_id} has records in the store, and Redis never had them in this epoch.")
            scripts.install(self._blocking, standing, series, opened=False)
            self._store.mark_loaded(series, standing.epoch)
            series = msgspec.structs.replace(series, loaded_epoch=standing.epoch)
        if not scripts.install(self._blocking, standing, series, opened=True):
            raise Damaged(f"Redis has lost series {series_id}.")
        return series

    def _load_defaults(self, standing: Standing, company: str, changing_ms: int | None) -> None:
        defaults = self._defaults(company)
        if _left(changing_ms):
            self._store.touch_defaults(defaults)
            defaults = self._defaults(company)
        if defaults.loaded_epoch != standing.epoch:
            if defaults.loaded_epoch is not None:
                raise Damaged(f"Company {company} has claims that Redis never had in this epoch.")
            scripts.install_defaults(self._blocking, standing, defaults, opened=False)
            self._store.mark_company_loaded(defaults, standing.epoch)
        if not scripts.install_defaults(self._blocking, standing, defaults, opened=True):
            raise Damaged(f"Redis has lost the claims of company {company}.")


def preview_new(fields: SeriesFields, time_ms: int) -> Preview:
    """Returns the first codes that a series would issue if it were created at a time.

    Raises:
        Invalid: it would be refused.
    """
    numbering = _numbering(Numbering(), fields)
    formats.check(numbering)
    today = formats.window(numbering.timezone, time_ms).today
    return formats.preview(numbering, today, {}, used=False)


def no_series(series_id: str) -> NotFound:
    """Returns that a company has no such series."""
    return NotFound(f"There is no series {series_id}. Create it first, or check the id.")


def _left(changing_ms: int | None) -> bool:
    """Whether a mark has been left by a crash. One of the future is of before the clock was set back."""
    return changing_ms is not None and not 0 <= changing_ms < CHANGE_MS_MAX


def _today(series: Series, time_ms: int) -> date:
    return formats.window(series.numbering.timezone, time_ms).today


def _seen(series: Series, today: date, at: Standings | None) -> SeriesView:
    state, values = (at.state, at.values) if at else (State(), {})
    (number, *_), code = formats.ahead(series.numbering, today, values, used=state.position > 0)
    last_index = state.number if state.position else series.numbering.start or 0
    return SeriesView(series, state, last_index, number, code)


def _new_series(
    company: str, series_id: str, fields: SeriesFields, creation: bytes, *, lone_prefix: bool = False
) -> NewSeries:
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
        lone_prefix=lone_prefix,
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
