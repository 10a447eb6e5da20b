"""The store: the SQL database that is the system of record. Every query by name; the tables are in tables.py.

Methods block; the API calls them from threads. When the database does not answer, each raises Unavailable.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from seriatim.database import Database
from seriatim.errors import Conflict, Damaged, Invalid, NotFound, Stale, Unavailable
from seriatim.model import Company, Counted, Defaults, Entry, Numbering, Place, Record, Series, Skip, Standing, Void
from seriatim.tables import (
    api_keys,
    audit_log,
    companies,
    counters,
    deleted_series,
    entries,
    series,
    settings,
    signing_keys,
    skips,
    voids,
)

NAME_LENGTH_MAX = 255
PAGE = 1000


class DataSet(msgspec.Struct, frozen=True):
    """What ties one Redis data set to this store (design: epoch and generation)."""

    epoch: str
    generation: int
    pending_generation: int | None
    run_id: str | None
    state: Literal["new", "live", "halted"]
    reason: str | None
    shards: int


class ApiKey(msgspec.Struct, frozen=True):
    """An API key as it is kept: never the secret itself."""

    id: str
    company: str
    salt: bytes
    hash: bytes
    scopes: tuple[str, ...]
    created_at: int
    revoked_at: int | None


class NewSeries(msgspec.Struct, frozen=True):
    """A series to create. `creation` tells its creating request from a later update."""

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


class Logged(msgspec.Struct, frozen=True):
    """Something out of the ordinary that somebody did."""

    at: int
    actor: str
    action: str
    detail: dict[str, Any]


class Slice(msgspec.Struct, frozen=True):
    """Signed records of one series, in order, that follow its last settled one; `head` is the chain's new hash."""

    series: Series
    genesis: bytes
    records: Sequence[Record]
    head: str


def now_ms() -> int:
    """Returns the time of this machine. For labels only: documents take their time from Redis."""
    return time.time_ns() // 1_000_000


class Store(Database):
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

    def halt(self, reason: str, actor: str) -> None:
        """Stops allocation in the whole data set until somebody recovers it. The first reason stays."""
        with self.write() as connection:
            halted = connection.execute(
                sa.update(settings).where(settings.c.state != "halted").values(state="halted", reason=reason)
            )
            if halted.rowcount:
                self._log(connection, actor, "halt", {"reason": reason})

    def _change_data_set(self, statement: sa.Update) -> None:
        with self.write() as connection:
            if connection.execute(statement).rowcount != 1:
                raise Stale

    # companies and keys -------------------------------------------------------------------------------------------

    def create_company(self, name: str, actor: str) -> Company:
        """Creates a company.

        Raises:
            Invalid: the name is not one that a list can show.
            Conflict: the name is taken.
        """
        if not name.strip() or not name.isprintable() or len(name) > NAME_LENGTH_MAX:
            raise Invalid({"name": f"must be a line of 1 to {NAME_LENGTH_MAX} printable characters"})
        company = Company(id=str(uuid.uuid4()), name=name, created_at=now_ms())
        with self.write() as connection:
            statement = self.insert(companies).values(msgspec.structs.asdict(company)).on_conflict_do_nothing()
            if connection.execute(statement.returning(companies.c.id)).first() is None:
                raise Conflict(f"A company named {name!r} exists. Choose another name.")
            self._log(connection, actor, "create company", {"company": company.id, "name": name})
        return company

    def companies(self) -> list[Company]:
        """Returns all companies, oldest first."""
        with self.read() as connection:
            ordered = sa.select(companies).order_by(companies.c.created_at, companies.c.id)
            return [Company(row.id, row.name, row.created_at) for row in connection.execute(ordered)]

    def company(self, name_or_id: str) -> Company:
        """Returns the company of that name or id.

        Raises:
            NotFound: there is none.
        """
        for company in self.companies():
            if name_or_id in (company.name, company.id):
                return company
        raise NotFound(f"There is no company {name_or_id!r}. `seriatim companies list` shows them.")

    def add_key(self, key: ApiKey, actor: str) -> None:
        """Keeps a new API key."""
        with self.write() as connection:
            row = msgspec.structs.asdict(key) | {"scopes": " ".join(key.scopes)}
            connection.execute(sa.insert(api_keys).values(row))
            self._log(connection, actor, "create key", {"key": key.id, "company": key.company, "scopes": key.scopes})

    def api_key(self, key_id: str) -> ApiKey | None:
        """Returns the API key with that id, revoked or not."""
        with self.read() as connection:
            row = connection.execute(sa.select(api_keys).where(api_keys.c.id == key_id)).one_or_none()
        return None if row is None else _key(row)

    def api_keys(self) -> list[ApiKey]:
        """Returns all API keys, oldest first."""
        with self.read() as connection:
            return [_key(row) for row in connection.execute(sa.select(api_keys).order_by(api_keys.c.created_at))]

    def revoke_key(self, key_id: str, actor: str) -> None:
        """Revokes an API key for good.

        Raises:
            NotFound: there is none with that id.
        """
        with self.write() as connection:
            unrevoked = sa.func.coalesce(api_keys.c.revoked_at, now_ms())
            changed = sa.update(api_keys).where(api_keys.c.id == key_id).values(revoked_at=unrevoked)
            if connection.execute(changed).rowcount != 1:
                raise NotFound(f"There is no key {key_id!r}. `seriatim keys list` shows them.")
            self._log(connection, actor, "revoke key", {"key": key_id})

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
            Stale: the defaults have changed.
        """
        now = now_ms()
        mine = series.c.company == new.company
        row = msgspec.structs.asdict(new) | msgspec.structs.asdict(new.numbering)
        row |= {"version": 1, "shard": shard, "position": 0, "created_at": now, "updated_at": now}
        del row["numbering"], row["default"]
        with self.write() as connection:
            # What concurrent creations, and changes of a default, of one company wait for.
            connection.execute(sa.select(companies.c.id).where(companies.c.id == new.company).with_for_update())
            if connection.execute(sa.select(series.c.pk).where(series.c.id == new.id)).first():
                return None
            if connection.execute(sa.select(deleted_series).where(deleted_series.c.id == new.id)).first():
                raise Conflict("A series with this id was deleted. Use a new id.")
            if (connection.scalar(sa.select(sa.func.count()).where(mine)) or 0) >= series_max:
                raise Conflict(f"The company has {series_max} series, the most it may have (SERIATIM_SERIES_MAX).")
            of_type = sa.select(series.c.pk).where(mine, series.c.type == new.type, series.c.is_default)
            if defaults is not None:
                self._move_default(connection, defaults, new.type)
            elif connection.execute(of_type).first() is None:
                raise Stale
            statement = self.insert(series).values(row | {"is_default": defaults is not None})
            unless_taken = statement.on_conflict_do_nothing(index_elements=["id"]).returning(series)
            created = connection.execute(unless_taken).one_or_none()
            return None if created is None else _series(created)

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

    def creation(self, pk: int) -> bytes:
        """Returns what tells the creating request of a series from a later update."""
        with self.read() as connection:
            return bytes(connection.execute(sa.select(series.c.creation).where(series.c.pk == pk)).scalar_one())

    def list_series(self, company: str | None = None, after: int = 0, limit: int | None = None) -> list[Series]:
        """Returns the series of a company (None: of all), in order of creation, from behind pk `after`."""
        listed = sa.select(series).where(series.c.pk > after).order_by(series.c.pk)
        if company is not None:
            listed = listed.where(series.c.company == company)
        with self.read() as connection:
            return [_series(row) for row in connection.execute(listed.limit(limit))]

    def relabel_series(self, old: Series, new: Series) -> Series:
        """Replaces what no script sees of a series: name, description, code, sig."""
        row = {name: getattr(new, name) for name in ("name", "description", "code", "sig")} | {"updated_at": now_ms()}
        with self.write() as connection:
            changed = sa.update(series).where(series.c.pk == old.pk).values(row).returning(series)
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
            found = _entries.where(entries.c.series == owner.pk, entries.c.id == entry_id)
            row = connection.execute(found).one_or_none()
        return None if row is None else _entry(owner.id, row)

    def entries_at(self, wanted: Mapping[Series, Collection[int]]) -> dict[tuple[str, int], Entry]:
        """Returns settled entries of some series, by id of the series and position."""
        found: dict[tuple[str, int], Entry] = {}
        with self.read() as connection:
            for owner, positions in wanted.items():
                among = _entries.where(entries.c.series == owner.pk, entries.c.position.in_(positions))
                for row in connection.execute(among):
                    found[owner.id, row.position] = _entry(owner.id, row)
        return found

    def entries_after(self, owner: Series, position: int, limit: int) -> list[Entry]:
        """Returns up to `limit` settled entries behind `position`, in order."""
        listed = _entries.where(entries.c.series == owner.pk, entries.c.position > position)
        with self.read() as connection:
            rows = connection.execute(listed.order_by(entries.c.position).limit(limit))
            return [_entry(owner.id, row) for row in rows]

    def notes(self, owner: Series, after: Place = (0, 0), limit: int | None = None) -> list[Skip | Void]:
        """Returns the settled skips and voids behind the place `after`, in order; up to `limit`."""
        found: list[Skip | Void] = []
        with self.read() as connection:
            for table, kind in ((skips, Skip), (voids, Void)):
                behind = sa.tuple_(table.c.position, table.c.k) > sa.tuple_(*map(sa.literal, after))
                listed = sa.select(table).where(table.c.series == owner.pk, behind)
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
        settled = columns.where(entries.c.series == owner.pk, entries.c.position <= owner.position)
        with self.read() as connection:
            ordered = settled.order_by(entries.c.position).execution_options(yield_per=PAGE)
            for position, numbers, day in connection.execute(ordered):
                yield position, _counted.decode(numbers), day

    def counters(self, owner: Series) -> dict[str, int]:
        """Returns the last settled values of a series' counters, by field."""
        with self.read() as connection:
            rows = connection.execute(sa.select(counters).where(counters.c.series == owner.pk)).all()
        return {f"{row.counter}:{row.period}" if row.period else row.counter: row.value for row in rows}

    def commit(self, standing: Standing, slices: Sequence[Slice]) -> None:
        """Commits signed records in one transaction; moves each series from exactly the place that was read.

        Raises:
            Stale: the epoch or generation has moved on, or another worker has moved a series. Nothing is committed.
            Damaged: an id or a code was issued before. Nothing is committed.
        """
        at = now_ms()
        with _repetition_is_damage(), self.write() as connection:
            current = connection.execute(
                sa.select(settings.c.epoch, settings.c.generation, settings.c.state).with_for_update(read=True)
            ).one()
            if tuple(current) != (standing.epoch, standing.generation, "live"):
                raise Stale
            for part in slices:
                self._commit_slice(connection, part, at)

    def _commit_slice(self, connection: sa.Connection, part: Slice, at: int) -> None:
        owner, (position, k) = part.series, part.records[-1].place
        fresh = [record for record in part.records if isinstance(record, Entry)]
        unmoved = sa.and_(series.c.pk == owner.pk, series.c.position == owner.position, series.c.k == owner.k)
        claims = series.c.claims + sum(entry.claimed for entry in fresh)
        values = {"position": position, "k": k, "head": part.head, "genesis": part.genesis, "claims": claims}
        if connection.execute(sa.update(series).where(unmoved).values(values)).rowcount != 1:
            raise Stale
        if fresh:
            connection.execute(sa.insert(entries), [_entry_row(owner.pk, entry, at) for entry in fresh])
        for record in part.records:
            if not isinstance(record, Entry):
                self._note(connection, owner, record, at)
        self._count(connection, owner, part.records)

    def _note(self, connection: sa.Connection, owner: Series, note: Skip | Void, at: int) -> None:
        row = msgspec.structs.asdict(note) | {"series": owner.pk, "settled_at": at}
        connection.execute(sa.insert(skips if isinstance(note, Skip) else voids).values(row))
        said = {name: row[name] for name in row.keys() - {"series", "receipt", "settled_at", "actor", "created_at"}}
        action = "skip numbers" if isinstance(note, Skip) else "void entry"
        self._log(connection, note.actor, action, {"series": owner.id} | said, at=note.created_at)

    def _count(self, connection: sa.Connection, owner: Series, records: Sequence[Record]) -> None:
        last: dict[tuple[str, str], int] = {}
        for record in records:
            if isinstance(record, Entry):
                last |= {(one.counter, one.period): one.value for one in record.numbers}
            elif isinstance(record, Skip):
                last[record.counter, record.period] = record.last
        for (counter, period), value in last.items():
            upsert = self.insert(counters).values(series=owner.pk, counter=counter, period=period, value=value)
            keys = [counters.c.series, counters.c.counter, counters.c.period]
            connection.execute(upsert.on_conflict_do_update(index_elements=keys, set_={"value": value}))

    # signing keys and audit ---------------------------------------------------------------------------------------

    def add_signing_key(self, kid: str, jwk: str) -> None:
        """Publishes the public part of a signing key. It stays for good."""
        row = {"kid": kid, "jwk": jwk, "created_at": now_ms()}
        with self.write() as connection:
            connection.execute(self.insert(signing_keys).values(row).on_conflict_do_nothing())

    def signing_keys(self) -> list[str]:
        """Returns the public signing keys as JWK texts, oldest first."""
        with self.read() as connection:
            ordered = sa.select(signing_keys.c.jwk).order_by(signing_keys.c.created_at, signing_keys.c.kid)
            return list(connection.execute(ordered).scalars())

    def logged(self) -> Iterator[Logged]:
        """Yields the audit log, oldest first."""
        with self.read() as connection:
            ordered = sa.select(audit_log).order_by(audit_log.c.id).execution_options(yield_per=PAGE)
            for row in connection.execute(ordered):
                yield Logged(row.at, row.actor, row.action, msgspec.json.decode(row.detail))

    def _log(
        self, connection: sa.Connection, actor: str, action: str, detail: dict[str, Any], *, at: int | None = None
    ) -> None:
        row = {
            "at": at or now_ms(),
            "actor": actor,
            "action": action,
            "detail": msgspec.json.encode(detail).decode(),
        }
        connection.execute(sa.insert(audit_log).values(row))


@contextmanager
def _repetition_is_damage() -> Iterator[None]:
    try:
        yield
    except sa.exc.IntegrityError as error:
        raise Damaged(f"Redis issued an id or a code that the store holds already: {error.orig}.") from error


def _unchanged(old: Series) -> sa.ColumnElement[bool]:
    same_load = series.c.loaded_epoch.is_not_distinct_from(old.loaded_epoch)
    return sa.and_(series.c.pk == old.pk, series.c.version == old.version, same_load)


def _key(row: sa.Row[Any]) -> ApiKey:
    scopes = tuple(row.scopes.split(" "))
    return ApiKey(row.id, row.company, bytes(row.salt), bytes(row.hash), scopes, row.created_at, row.revoked_at)


def _series(row: sa.Row[Any]) -> Series:
    values = dict(row._mapping)  # noqa: SLF001 -- SQLAlchemy's public name for it
    numbering = Numbering(**{name: values.pop(name) for name in Numbering.__struct_fields__})
    values["default"] = values.pop("is_default")
    del values["creation"]
    return Series(numbering=numbering, **values)


_counted = msgspec.json.Decoder(tuple[Counted, ...])
_with_voids = entries.outerjoin(voids, sa.and_(voids.c.series == entries.c.series, voids.c.voids == entries.c.position))
_entries = sa.select(entries, *(column.label(f"void_{column.name}") for column in voids.c)).select_from(_with_voids)


def _entry(series_id: str, row: sa.Row[Any]) -> Entry:
    values = dict(row._mapping)  # noqa: SLF001
    void = {column.name: values.pop(f"void_{column.name}") for column in voids.c} | {"series": series_id}
    values["series"] = series_id
    values["numbers"] = _counted.decode(values["numbers"])
    return Entry(**values, void=Void(**void) if void["voids"] is not None else None)


def _entry_row(pk: int, entry: Entry, at: int) -> dict[str, Any]:
    row = msgspec.structs.asdict(entry) | {"series": pk, "settled_at": at}
    del row["void"]
    return row | {"numbers": msgspec.json.encode(entry.numbers).decode()}
