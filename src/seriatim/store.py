"""The store: the SQL database that is the system of record. Every query by name; the tables are in tables.py.

Methods block; the API calls them from threads. When the database does not answer, each raises Unavailable.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from seriatim import formats
from seriatim.errors import Conflict, Damaged, Invalid, Stale, Unavailable
from seriatim.model import Counted, Defaults, Entry, Numbering, Place, Record, Series, Skip, Standing, Void
from seriatim.registry import Registry, now_ms
from seriatim.tables import (
    companies,
    counters,
    deleted_series,
    entries,
    series,
    settings,
    skips,
    voids,
)

PAGE = 1000
MOVED = ("position", "k", "head", "genesis")
MOVE = (
    sa.update(series)
    .where(series.c.pk == sa.bindparam("owner"))
    .where(series.c.position == sa.bindparam("from_position"), series.c.k == sa.bindparam("from_k"))
    .values({name: sa.bindparam(f"to_{name}") for name in MOVED})
    .values(claims=series.c.claims + sa.bindparam("claimed"))
)
"""Moves a series from exactly the place that was read."""


class DataSet(msgspec.Struct, frozen=True):
    """What ties one Redis data set to this store (design: epoch and generation)."""

    epoch: str
    generation: int
    pending_generation: int | None
    run_id: str | None
    state: Literal["new", "live", "halted"]
    reason: str | None
    shards: int
    next_epoch: str | None
    """Set while a recovery builds Redis anew, of which nothing is needed any more then."""
    doubt: str | None
    """Why everything in Redis is doubtful until it is recovered, though nothing there shows it."""
    replicated: bool
    """Whether Redis was seen with replicas in this epoch: another server may come to stand for it."""


class NewSeries(msgspec.Struct, frozen=True):
    """A series to create. `creation` tells its creating request from a later update.

    With `lone_prefix` no other series of its company and type may have its prefix.
    """

    id: str
    company: str
    type: str
    name: str
    description: str
    code: str
    numbering: Numbering
    sig: str | None
    active: bool
    default: bool
    creation: bytes
    lone_prefix: bool


class Slice(msgspec.Struct, frozen=True):
    """Signed records of one series, in order, that follow its last settled one; `head` is the chain's new hash."""

    series: Series
    genesis: bytes
    records: Sequence[Record]
    head: str

    @property
    def entries(self) -> list[Entry]:
        """Its records without skips and voids."""
        return [record for record in self.records if isinstance(record, Entry)]

    @property
    def after(self) -> Series:
        """The series as it is when the slice is committed."""
        position, k = self.records[-1].place
        return msgspec.structs.replace(self.series, genesis=self.genesis, position=position, k=k, head=self.head)


class Store(Registry):
    """The system of record at a database URL.

    Raises:
        ConfigError: the URL is not one of a supported database.
    """

    def prepare(self, shards: int) -> None:
        """Writes the data set's row at the very first start: state `new`, a fresh epoch, the shard count for good."""
        with self.write() as connection:
            row = {"id": 1, "epoch": uuid.uuid4().hex, "generation": 1, "state": "new", "shards": shards}
            connection.execute(self.insert(settings).values(row).on_conflict_do_nothing())

    # data set -----------------------------------------------------------------------------------------------------

    def data_set(self) -> DataSet:
        """Returns the data set's row.

        Raises:
            Unavailable: the schema has not been made yet.
        """
        with self.read() as connection:
            row = connection.execute(sa.select(settings)).one_or_none()
        if row is None:
            raise Unavailable("The store is empty. Run `seriatim migrate` first.")
        return DataSet(*row[1:])

    def go_live(self, run_id: str) -> None:
        """Ends the first start: from here on an empty Redis is loss."""
        with self.write() as connection:
            connection.execute(sa.update(settings).where(settings.c.state == "new").values(state="live", run_id=run_id))

    def begin_generation(self, generation: int) -> None:
        """First phase of raising the generation to `generation` + 1.

        Raises:
            Stale: another process raised it meanwhile.
        """
        changed = sa.update(settings).where(settings.c.generation == generation)
        self._change_data_set(changed.values(pending_generation=generation + 1))

    def end_generation(self, generation: int, run_id: str) -> None:
        """Second phase: the server `run_id` is at generation + 1 in every shard.

        Raises:
            Stale: another process raised it meanwhile.
        """
        changed = sa.update(settings).where(
            settings.c.generation == generation, settings.c.pending_generation == generation + 1
        )
        self._change_data_set(changed.values(generation=generation + 1, pending_generation=None, run_id=run_id))

    def note_replicas(self) -> None:
        """Remembers that Redis has replicas."""
        with self.write() as connection:
            connection.execute(sa.update(settings).values(replicated=True))

    def halt(self, reason: str, actor: str, doubt: str | None = None) -> None:
        """Stops allocation in the whole data set until somebody recovers it. The first reason, and doubt, stays."""
        with self.write(patient=True) as connection:  # a worker that is frozen holds it up
            if doubt is not None:
                first = sa.func.coalesce(settings.c.doubt, doubt)
                connection.execute(sa.update(settings).values(doubt=first))
            halted = connection.execute(
                sa.update(settings).where(settings.c.state != "halted").values(state="halted", reason=reason)
            )
            if halted.rowcount:
                self._log(connection, actor, "halt", {"reason": reason})

    def decide_recovery(self, epoch: str, actor: str, detail: dict[str, Any]) -> None:
        """Notes that all that is left of the records is in the store, and what was decided of the others.

        From here on Redis is built anew under `epoch`, as often as it takes.

        Raises:
            Stale: the data set is not halted.
        """
        with self.write() as connection:
            halted = sa.update(settings).where(settings.c.state == "halted", settings.c.next_epoch.is_(None))
            if connection.execute(halted.values(next_epoch=epoch)).rowcount != 1:
                raise Stale
            self._log(connection, actor, "recover", detail)

    def end_recovery(self, epoch: str, run_id: str) -> None:
        """Lets allocation go on, under `epoch`, with a server that holds all series that have records.

        Raises:
            Stale: another recovery came first.
        """
        with self.write() as connection:
            live: dict[str, Any] = {
                "epoch": epoch,
                "next_epoch": None,
                "state": "live",
                "reason": None,
                "doubt": None,
                "replicated": False,
                "run_id": run_id,
            }
            live |= {"generation": settings.c.generation + 1, "pending_generation": None}
            decided = sa.update(settings).where(settings.c.state == "halted", settings.c.next_epoch == epoch)
            if connection.execute(decided.values(live)).rowcount != 1:
                raise Stale
            recorded = sa.or_(series.c.position > 0, series.c.k > 0)
            connection.execute(sa.update(series).where(recorded).values(loaded_epoch=epoch))
            claiming = sa.select(series.c.company).where(series.c.claims > 0)
            connection.execute(sa.update(companies).where(companies.c.id.in_(claiming)).values(loaded_epoch=epoch))

    def _change_data_set(self, statement: sa.Update) -> None:
        with self.write() as connection:
            if connection.execute(statement).rowcount != 1:
                raise Stale

    # series -------------------------------------------------------------------------------------------------------

    def create_series(self, new: NewSeries, shard: int, series_max: int, defaults: Defaults | None) -> Series | None:
        """Creates a series; the first of its company and type becomes the default. None when the id is taken.

        Args:
            new: what to create.
            shard: where its keys are.
            series_max: how many series a company may have.
            defaults: the company's defaults as they are, when the series is to become one.

        Raises:
            Conflict: the company has `series_max` series already, or the id was that of a deleted series.
            Invalid: the prefix is taken.
            Stale: the defaults have changed.
        """
        now = now_ms()
        mine = series.c.company == new.company
        row = msgspec.structs.asdict(new) | msgspec.structs.asdict(new.numbering)
        row |= {"version": 1, "shard": shard, "position": 0, "created_at": now, "updated_at": now}
        del row["numbering"], row["default"], row["lone_prefix"]
        with self.write() as connection:
            # What concurrent creations, and changes of a default, of one company wait for.
            connection.execute(sa.select(companies.c.id).where(companies.c.id == new.company).with_for_update())
            if connection.execute(sa.select(series.c.pk).where(series.c.id == new.id)).first():
                return None
            if connection.execute(sa.select(deleted_series).where(deleted_series.c.id == new.id)).first():
                raise Conflict("A series with this id was deleted. Use a new id.")
            if (connection.scalar(sa.select(sa.func.count()).where(mine)) or 0) >= series_max:
                raise Conflict(f"The company has {series_max} series, the most it may have (SERIATIM_SERIES_MAX).")
            if new.lone_prefix:
                self._check_prefix(connection, new)
            of_type = sa.select(series.c.pk).where(mine, series.c.type == new.type, series.c.is_default)
            if defaults is not None:
                self._move_default(connection, defaults, new.type)
            elif connection.execute(of_type).first() is None:
                raise Stale
            made = sa.update(companies).values(series_made=companies.c.series_made + 1)
            counted = made.where(companies.c.id == new.company).returning(companies.c.series_made)
            row |= {"ordinal": connection.execute(counted).scalar_one(), "is_default": defaults is not None}
            statement = self.insert(series).values(row)
            unless_taken = statement.on_conflict_do_nothing(index_elements=["id"]).returning(series)
            created = connection.execute(unless_taken).one_or_none()
            return None if created is None else _series(created)

    def _check_prefix(self, connection: sa.Connection, new: NewSeries) -> None:
        plain = sa.and_(series.c.format.is_(None), series.c.prefix == new.numbering.prefix)
        rivals = sa.select(series.c.prefix, series.c.format).where(
            series.c.company == new.company, series.c.type == new.type, plain | series.c.format.is_not(None)
        )
        for prefix, written in connection.execute(rivals):
            if formats.prefix(Numbering(prefix=prefix, format=written)) == new.numbering.prefix:
                raise Invalid({"prefix": f"is that of another series of type {new.type}. Choose another"})

    def delete_series(self, old: Series, defaults: Defaults | None, actor: str) -> None:
        """Deletes a series without records. Its id is never used again.

        Raises:
            Stale: another change or load or record came first, or the defaults have changed.
        """
        tombstone = {"id": old.id, "company": old.company, "deleted_at": now_ms()}
        with self.write() as connection:
            if defaults is not None:
                self._move_default(connection, defaults, old.type)
            # In one statement: PostgreSQL looks again at a row that it had to wait for.
            unused = sa.and_(_unchanged(old), series.c.position == 0, series.c.k == 0)
            if connection.execute(sa.delete(series).where(unused)).rowcount != 1:
                raise Stale
            connection.execute(sa.insert(deleted_series).values(tombstone))
            self._log(connection, actor, "delete series", {"series": old.id, "name": old.name, "code": old.code})

    def series_by_ids(self, series_ids: Sequence[str]) -> dict[str, Series]:
        """Returns those series that exist, by their ids."""
        with self.read() as connection:
            rows = connection.execute(sa.select(series).where(series.c.id.in_(series_ids)))
            return {one.id: one for one in map(_series, rows)}

    def series(self, series_id: str) -> Series | None:
        """Returns a series of whatever company."""
        with self.read() as connection:
            row = connection.execute(sa.select(series).where(series.c.id == series_id)).one_or_none()
        return None if row is None else _series(row)

    def creation(self, series_id: str) -> bytes | None:
        """Returns what tells the creating request of a series from a later update, if there is such a series."""
        with self.read() as connection:
            made: bytes | None = connection.scalar(sa.select(series.c.creation).where(series.c.id == series_id))
        return made

    def list_series(
        self, company: str | None = None, kind: str | None = None, after: int = 0, limit: int | None = None
    ) -> list[Series]:
        """Returns the series of a company and type (None: of all), in order of creation, from behind pk `after`."""
        listed = sa.select(series).where(series.c.pk > after, *_of(company, kind)).order_by(series.c.pk)
        with self.read() as connection:
            return [_series(row) for row in connection.execute(listed.limit(limit))]

    def series_ids(self, company: str, kind: str) -> list[str]:
        """Returns the ids of a company's series of a type, in order of creation."""
        with self.read() as connection:
            listed = sa.select(series.c.id).where(*_of(company, kind)).order_by(series.c.pk)
            return list(connection.execute(listed).scalars())

    def relabel_series(self, old: Series, new: Series) -> Series:
        """Replaces what no script sees of a series: name, description, code, sig."""
        row = {name: getattr(new, name) for name in ("name", "description", "code", "sig")} | {"updated_at": now_ms()}
        with self.write() as connection:
            changed = sa.update(series).where(series.c.id == old.id).values(row).returning(series)
            relabelled = connection.execute(changed).one_or_none()
            if relabelled is None:  # deleted
                raise Stale
            return _series(relabelled)

    def change_series(self, old: Series, new: Series, defaults: Defaults | None = None) -> Series:
        """Replaces a definition by compare-and-swap on its version and load, and answers it with the version after.

        Args:
            old: the definition as it was read.
            new: what it is to be.
            defaults: the company's defaults as they are, when the series is to become one, or to be one no more.

        Raises:
            Stale: another change or its first load came first, or the defaults have changed.
        """
        row = {name: getattr(new, name) for name in ("name", "description", "code", "sig", "active")}
        row |= msgspec.structs.asdict(new.numbering)
        row |= {"is_default": new.default, "version": old.version + 1, "updated_at": now_ms()}
        with self.write() as connection:
            if defaults is not None:
                self._move_default(connection, defaults, old.type)
            changed = sa.update(series).where(_unchanged(old)).values(row).returning(series)
            found = connection.execute(changed).one_or_none()
            if found is None:
                raise Stale
            return _series(found)

    def mark_loaded(self, old: Series, epoch: str) -> None:
        """Notes that Redis holds the series in this epoch: from here on its absence there is loss.

        Raises:
            Stale: another change or load came first.
        """
        with self.write() as connection:
            marked = sa.update(series).where(_unchanged(old)).values(loaded_epoch=epoch)
            if connection.execute(marked).rowcount != 1:
                raise Stale

    def defaults(self, company: str, shard: int) -> Defaults:
        """Returns the default series of a company, whose claims are in `shard`."""
        chosen = sa.select(series.c.type, series.c.id).where(series.c.company == company, series.c.is_default)
        with self.read() as connection:
            owner = connection.execute(sa.select(companies).where(companies.c.id == company)).one()
            found = {row.type: row.id for row in connection.execute(chosen)}
        return Defaults(company, shard, owner.version, owner.loaded_epoch, found)

    def touch_defaults(self, old: Defaults) -> None:
        """Gives a company's defaults a new version, so that no change begun before can be committed.

        Raises:
            Stale: another change came first.
        """
        with self.write() as connection:
            self._swap_defaults(connection, old, version=old.version + 1)

    def mark_company_loaded(self, old: Defaults, epoch: str) -> None:
        """Notes that Redis holds the company's claims in this epoch: from here on their absence there is loss.

        Raises:
            Stale: another change or load came first.
        """
        with self.write() as connection:
            self._swap_defaults(connection, old, loaded_epoch=epoch)

    def loaded_companies(self, epoch: str) -> list[str]:
        """Returns the ids of the companies whose claims Redis holds in this epoch."""
        with self.read() as connection:
            return list(
                connection.execute(sa.select(companies.c.id).where(companies.c.loaded_epoch == epoch)).scalars()
            )

    def _move_default(self, connection: sa.Connection, defaults: Defaults, kind: str) -> None:
        # Takes the default of a type away; who calls gives it to another series.
        self._swap_defaults(connection, defaults, version=defaults.version + 1)
        of_kind = sa.and_(series.c.company == defaults.company, series.c.type == kind, series.c.is_default)
        connection.execute(sa.update(series).where(of_kind).values(is_default=False))

    def _swap_defaults(self, connection: sa.Connection, old: Defaults, **values: Any) -> None:
        same_load = companies.c.loaded_epoch.is_not_distinct_from(old.loaded_epoch)
        unchanged = sa.and_(companies.c.id == old.company, companies.c.version == old.version, same_load)
        if connection.execute(sa.update(companies).where(unchanged).values(values)).rowcount != 1:
            raise Stale

    # entries ------------------------------------------------------------------------------------------------------

    def entry(self, owner: Series, entry_id: str) -> Entry | None:
        """Returns a settled entry by its id."""
        with self.read() as connection:
            found = _entries.where(entries.c.series == _key(owner), entries.c.id == entry_id)
            row = connection.execute(found).one_or_none()
        return None if row is None else _entry(owner.id, row)

    def entries_at(self, wanted: Mapping[Series, Collection[int]]) -> dict[tuple[str, int], Entry]:
        """Returns settled entries of some series, by id of the series and position."""
        found: dict[tuple[str, int], Entry] = {}
        with self.read() as connection:
            for owner, positions in wanted.items():
                among = _entries.where(entries.c.series == _key(owner), entries.c.position.in_(positions))
                for row in connection.execute(among):
                    found[owner.id, row.position] = _entry(owner.id, row)
        return found

    def entries_after(self, owner: Series, position: int, limit: int) -> list[Entry]:
        """Returns up to `limit` settled entries behind `position`, in order."""
        listed = _entries.where(entries.c.series == _key(owner), entries.c.position > position)
        with self.read() as connection:
            rows = connection.execute(listed.order_by(entries.c.position).limit(limit))
            return [_entry(owner.id, row) for row in rows]

    def notes(self, owner: Series, after: Place = (0, 0), limit: int | None = None) -> list[Skip | Void]:
        """Returns the settled skips and voids behind the place `after`, in order; up to `limit`."""
        found: list[Skip | Void] = []
        with self.read() as connection:
            for table, kind in ((skips, Skip), (voids, Void)):
                behind = sa.tuple_(table.c.position, table.c.k) > sa.tuple_(*map(sa.literal, after))
                listed = sa.select(table).where(table.c.series == _key(owner), behind)
                rows = connection.execute(listed.order_by(table.c.position, table.c.k).limit(limit))
                found += [kind(**dict(row._mapping) | {"series": owner.id}) for row in rows]  # noqa: SLF001
        return sorted(found, key=lambda note: note.place)[:limit]

    def records_after(self, owner: Series, place: Place, limit: int) -> list[Record]:
        """Returns up to `limit` settled records behind `place`, in order."""
        records: list[Record] = [*self.notes(owner, place, limit), *self.entries_after(owner, place[0], limit)]
        return sorted(records, key=lambda record: record.place)[:limit]

    def counted(self, owner: Series) -> Iterator[tuple[int, tuple[Counted, ...], str]]:
        """Yields of the entries of a series, up to the position that it says: position, numbers and date; in order."""
        columns = sa.select(entries.c.position, entries.c.numbers, entries.c.date)
        settled = columns.where(entries.c.series == _key(owner), entries.c.position <= owner.position)
        with self.read() as connection:
            ordered = settled.order_by(entries.c.position).execution_options(yield_per=PAGE)
            for position, numbers, day in connection.execute(ordered):
                yield position, _counted.decode(numbers), day

    def counters(self, owners: Sequence[Series]) -> dict[str, dict[str, int]]:
        """Returns the last settled values of some series' counters, by id of the series and field."""
        found: dict[str, dict[str, int]] = {owner.id: {} for owner in owners}
        counted = sa.select(series.c.id, counters).join(counters).where(series.c.id.in_(list(found)))
        with self.read() as connection:
            for row in connection.execute(counted):
                field = f"{row.counter}:{row.period}" if row.period else row.counter
                found[row.id][field] = row.value
        return found

    def indexed(self, owner: Series) -> Iterator[tuple[str, bytes, bool]]:
        """Yields of the entries of a series id, fingerprint, and whether it was claimed; in order."""
        columns = sa.select(entries.c.id, entries.c.fingerprint, entries.c.claimed)
        ordered = columns.where(entries.c.series == _key(owner)).order_by(entries.c.position)
        with self.read() as connection:
            for row in connection.execute(ordered.execution_options(yield_per=PAGE)):
                yield row.id, row.fingerprint, row.claimed

    def commit(self, standing: Standing, slices: Sequence[Slice], *, state: str = "live") -> None:
        """Commits signed records in one transaction; moves each series from exactly the place that was read.

        Args:
            standing: under which they were read.
            slices: the records.
            state: of the data set; a recovery commits what it saves while allocation is halted.

        Raises:
            Stale: the epoch or generation has moved on, or another worker has moved a series. Nothing is committed.
            Damaged: an id or a code was issued before. Nothing is committed.
        """
        at = now_ms()
        with _repetition_is_damage(), self.write() as connection:
            current = connection.execute(
                sa.select(settings.c.epoch, settings.c.generation, settings.c.state).with_for_update(read=True)
            ).one()
            if tuple(current) != (standing.epoch, standing.generation, state):
                raise Stale
            self._move(connection, slices)
            fresh = [_entry_row(one.series.pk, entry, at) for one in slices for entry in one.entries]
            self.add(connection, entries, fresh)
            notes = [(one.series, note) for one in slices for note in one.records if not isinstance(note, Entry)]
            for owner, note in notes:
                self._note(connection, owner, note, at)
            self._count(connection, slices)

    def _move(self, connection: sa.Connection, slices: Sequence[Slice]) -> None:
        if connection.execute(MOVE, list(map(_moved, slices))).rowcount != len(slices):
            raise Stale

    def _note(self, connection: sa.Connection, owner: Series, note: Skip | Void, at: int) -> None:
        row = msgspec.structs.asdict(note) | {"series": owner.pk, "settled_at": at}
        connection.execute(sa.insert(skips if isinstance(note, Skip) else voids).values(row))
        said = {name: row[name] for name in row.keys() - {"series", "receipt", "settled_at", "actor", "created_at"}}
        action = "skip numbers" if isinstance(note, Skip) else "void entry"
        self._log(connection, note.actor, action, {"series": owner.id} | said, at=note.created_at)

    def _count(self, connection: sa.Connection, slices: Sequence[Slice]) -> None:
        last: dict[tuple[int, str, str], int] = {}
        for part in slices:
            for record in part.records:
                if isinstance(record, Entry):
                    last |= {(part.series.pk, one.counter, one.period): one.value for one in record.numbers}
                elif isinstance(record, Skip):
                    last[part.series.pk, record.counter, record.period] = record.last
        if last:
            names = ("series", "counter", "period", "value")
            upsert = self.insert(counters)
            upsert = upsert.on_conflict_do_update(index_elements=names[:3], set_={"value": upsert.excluded.value})
            connection.execute(upsert, [dict(zip(names, (*key, value), strict=True)) for key, value in last.items()])


@contextmanager
def _repetition_is_damage() -> Iterator[None]:
    try:
        yield
    except sa.exc.IntegrityError as error:
        raise Damaged(f"Redis issued an id or a code that the store holds already: {error.orig}.") from error


def _key(owner: Series) -> sa.ScalarSelect[Any]:
    """The key of a series as it was read, none if it was deleted since: SQLite then gives its key to the next one."""
    return sa.select(series.c.pk).where(series.c.pk == owner.pk, series.c.id == owner.id).scalar_subquery()


def _unchanged(old: Series) -> sa.ColumnElement[bool]:
    same_load = series.c.loaded_epoch.is_not_distinct_from(old.loaded_epoch)
    return sa.and_(series.c.id == old.id, series.c.version == old.version, same_load)


def _of(company: str | None, kind: str | None) -> list[sa.ColumnElement[bool]]:
    wanted = {series.c.company: company, series.c.type: kind}
    return [column == value for column, value in wanted.items() if value is not None]


def _series(row: sa.Row[Any]) -> Series:
    values = dict(row._mapping)  # noqa: SLF001 -- SQLAlchemy's public name for it
    numbering = _numbering(*(values.pop(name) for name in Numbering.__struct_fields__))
    values["default"] = values.pop("is_default")
    del values["creation"]
    return Series(numbering=numbering, **values)


_numbering = lru_cache(maxsize=4096)(Numbering)  # series that are numbered alike share it: less to keep and to compare
_counted = msgspec.json.Decoder(tuple[Counted, ...])
_with_voids = entries.outerjoin(voids, sa.and_(voids.c.series == entries.c.series, voids.c.voids == entries.c.position))
_entries = sa.select(entries, *(column.label(f"void_{column.name}") for column in voids.c)).select_from(_with_voids)


def _entry(series_id: str, row: sa.Row[Any]) -> Entry:
    values = dict(row._mapping)  # noqa: SLF001
    void = {column.name: values.pop(f"void_{column.name}") for column in voids.c} | {"series": series_id}
    values["series"] = series_id
    values["numbers"] = _counted.decode(values["numbers"])
    return Entry(**values, void=Void(**void) if void["voids"] is not None else None)


_numbers = msgspec.json.Encoder().encode


def _moved(part: Slice) -> dict[str, Any]:
    owner, after, claimed = part.series, part.after, sum(entry.claimed for entry in part.entries)
    before = {"owner": owner.pk, "from_position": owner.position, "from_k": owner.k}
    return before | {f"to_{name}": getattr(after, name) for name in MOVED} | {"claimed": claimed}


def _entry_row(pk: int, entry: Entry, at: int) -> tuple[Any, ...]:
    """The columns of an entry, in their order."""
    return (
        pk,
        entry.position,
        entry.id,
        entry.code,
        _numbers(entry.numbers).decode(),
        entry.date,
        entry.created_at,
        entry.previous_id,
        entry.meta,
        entry.sig,
        entry.fingerprint,
        entry.claimed,
        entry.receipt,
        at,
    )
