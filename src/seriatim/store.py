"""The store: the SQL database that is the system of record. Every query by name; the tables are in tables.py.

Methods block; the API calls them from threads. When the database does not answer, each raises Unavailable.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from seriatim.errors import ConfigError, Conflict, Damaged, Invalid, NotFound, Stale, Unavailable
from seriatim.model import Company, Counted, Entry, Numbering, Series, Standing
from seriatim.tables import api_keys, audit_log, companies, counters, entries, series, settings, signing_keys

NAME_LENGTH_MAX = 255


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


class Slice(msgspec.Struct, frozen=True):
    """Signed entries of one series, in order, that follow its settled position; `head` is the chain's new hash."""

    series: Series
    genesis: bytes
    entries: Sequence[Entry]
    head: str


def now_ms() -> int:
    """Returns the time of this machine. For labels only: documents take their time from Redis."""
    return time.time_ns() // 1_000_000


class Store:
    """The system of record at a database URL.

    Raises:
        ConfigError: the URL is not one of a supported database.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = sa.make_url(url)
        except sa.exc.ArgumentError as error:
            raise ConfigError(f"SERIATIM_STORE_URL is not a database URL: {error}") from error
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise ConfigError("SERIATIM_STORE_URL must begin with sqlite:/// or postgresql+psycopg://.")
        self.sqlite = parsed.get_backend_name() == "sqlite"
        self.engine = sa.create_engine(parsed, **({} if self.sqlite else {"pool_pre_ping": True}))
        self._insert = sqlite_insert if self.sqlite else postgresql_insert
        if self.sqlite:
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)

    def close(self) -> None:
        """Closes the connections."""
        self.engine.dispose()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that only reads."""
        with _translated(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that commits at the end, and changes nothing when anything raises."""
        with (
            _translated(),
            self.engine.connect().execution_options(writes=True) as connection,
            connection.begin(),
        ):
            yield connection

    # schema -------------------------------------------------------------------------------------------------------

    def migrate(self) -> None:
        """Brings the schema to this version."""
        from alembic import command  # noqa: PLC0415 -- slow to import, needed once
        from alembic.config import Config  # noqa: PLC0415

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self.write() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def prepare(self, shards: int) -> None:
        """Writes the data set's row at the very first start: state `new`, a fresh epoch, the shard count for good."""
        with self.write() as connection:
            row = {"id": 1, "epoch": uuid.uuid4().hex, "generation": 1, "state": "new", "shards": shards}
            connection.execute(self._insert(settings).values(row).on_conflict_do_nothing())

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
            statement = self._insert(companies).values(msgspec.structs.asdict(company)).on_conflict_do_nothing()
            if connection.execute(statement.returning(companies.c.id)).first() is None:
                raise Conflict(f"A company named {name!r} exists. Choose another name.")
            self._log(connection, actor, "create company", {"company": company.id, "name": name})
        return company

    def companies(self) -> list[Company]:
        """Returns all companies, oldest first."""
        with self.read() as connection:
            ordered = sa.select(companies).order_by(companies.c.created_at, companies.c.id)
            return [Company(*row) for row in connection.execute(ordered)]

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

    def create_series(self, new: NewSeries, shard: int, series_max: int) -> Series | None:
        """Creates a series; the first of its company and type becomes the default. None when the id is taken.

        Raises:
            Conflict: the company has `series_max` series already.
        """
        now = now_ms()
        mine = series.c.company == new.company
        row = msgspec.structs.asdict(new) | msgspec.structs.asdict(new.numbering)
        row |= {"version": 1, "shard": shard, "position": 0, "created_at": now, "updated_at": now}
        del row["numbering"], row["default"]
        with self.write() as connection:
            self._lock_company(connection, new.company)
            if connection.execute(sa.select(series.c.pk).where(series.c.id == new.id)).first():
                return None
            if (connection.scalar(sa.select(sa.func.count()).where(mine)) or 0) >= series_max:
                raise Conflict(f"The company has {series_max} series, the most it may have (SERIATIM_SERIES_MAX).")
            others = sa.select(series.c.pk).where(mine, series.c.type == new.type, series.c.is_default)
            first = connection.execute(others).first() is None
            if new.default and not first:
                self._clear_default(connection, new.company, new.type)
            statement = self._insert(series).values(row | {"is_default": first or new.default})
            unless_taken = statement.on_conflict_do_nothing(index_elements=["id"]).returning(series)
            created = connection.execute(unless_taken).one_or_none()
            return None if created is None else _series(created)

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
        """Replaces what no script sees of a series: name, description, code, sig, default."""
        row = {name: getattr(new, name) for name in ("name", "description", "code", "sig")}
        with self.write() as connection:
            self._move_default(connection, old, new)
            changed = sa.update(series).where(series.c.pk == old.pk)
            connection.execute(changed.values(row | {"is_default": new.default, "updated_at": now_ms()}))
            return _series(connection.execute(sa.select(series).where(series.c.pk == old.pk)).one())

    def change_series(self, old: Series, new: Series) -> Series:
        """Replaces a definition by compare-and-swap on its version and load, and answers it with the version after.

        Raises:
            Stale: another change or its first load came first.
        """
        row = {name: getattr(new, name) for name in ("name", "description", "code", "sig", "active")}
        row |= msgspec.structs.asdict(new.numbering)
        row |= {"is_default": new.default, "version": old.version + 1, "updated_at": now_ms()}
        with self.write() as connection:
            self._move_default(connection, old, new)
            if connection.execute(sa.update(series).where(_unchanged(old)).values(row)).rowcount != 1:
                raise Stale
            return _series(connection.execute(sa.select(series).where(series.c.pk == old.pk)).one())

    def mark_loaded(self, old: Series, epoch: str) -> None:
        """Notes that Redis holds the series in this epoch: from here on its absence there is loss.

        Raises:
            Stale: another change or load came first.
        """
        with self.write() as connection:
            marked = sa.update(series).where(_unchanged(old)).values(loaded_epoch=epoch)
            if connection.execute(marked).rowcount != 1:
                raise Stale

    def _move_default(self, connection: sa.Connection, old: Series, new: Series) -> None:
        if new.default and not old.default:
            self._lock_company(connection, old.company)
            self._clear_default(connection, old.company, old.type)

    def _lock_company(self, connection: sa.Connection, company: str) -> None:
        # What concurrent creations, and changes of a default, of one company wait for.
        connection.execute(sa.select(companies.c.id).where(companies.c.id == company).with_for_update())

    def _clear_default(self, connection: sa.Connection, company: str, kind: str) -> None:
        of_kind = sa.and_(series.c.company == company, series.c.type == kind, series.c.is_default)
        connection.execute(sa.update(series).where(of_kind).values(is_default=False))

    # entries ------------------------------------------------------------------------------------------------------

    def entry(self, owner: Series, entry_id: str) -> Entry | None:
        """Returns a settled entry by its id."""
        with self.read() as connection:
            found = sa.select(entries).where(entries.c.series == owner.pk, entries.c.id == entry_id)
            row = connection.execute(found).one_or_none()
        return None if row is None else _entry(owner.id, row)

    def entries_at(self, wanted: Mapping[Series, Collection[int]]) -> dict[tuple[str, int], Entry]:
        """Returns settled entries of some series, by id of the series and position."""
        found: dict[tuple[str, int], Entry] = {}
        with self.read() as connection:
            for owner, positions in wanted.items():
                among = sa.select(entries).where(entries.c.series == owner.pk, entries.c.position.in_(positions))
                for row in connection.execute(among):
                    found[owner.id, row.position] = _entry(owner.id, row)
        return found

    def entries_after(self, owner: Series, position: int, limit: int) -> list[Entry]:
        """Returns up to `limit` settled entries behind `position`, in order."""
        listed = sa.select(entries).where(entries.c.series == owner.pk, entries.c.position > position)
        with self.read() as connection:
            rows = connection.execute(listed.order_by(entries.c.position).limit(limit))
            return [_entry(owner.id, row) for row in rows]

    def entries_between(self, owner: Series, first: int, last: int) -> list[Entry]:
        """Returns the settled entries from position `first` to `last`, in order."""
        return [one for one in self.entries_after(owner, first - 1, last - first + 1) if one.position <= last]

    def counters(self, owner: Series) -> dict[str, int]:
        """Returns the last settled values of a series' counters, by field."""
        with self.read() as connection:
            rows = connection.execute(sa.select(counters).where(counters.c.series == owner.pk)).all()
        return {f"{row.counter}:{row.period}" if row.period else row.counter: row.value for row in rows}

    def commit(self, standing: Standing, slices: Sequence[Slice]) -> None:
        """Commits signed entries in one transaction; moves each series from exactly the position that was read.

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
        owner, last = part.series, part.entries[-1]
        unmoved = sa.and_(series.c.pk == owner.pk, series.c.position == owner.position)
        moved = sa.update(series).where(unmoved).values(position=last.position, head=part.head, genesis=part.genesis)
        if connection.execute(moved).rowcount != 1:
            raise Stale
        connection.execute(sa.insert(entries), [_entry_row(owner.pk, entry, at) for entry in part.entries])
        values = {(n.counter, n.period): n.value for entry in part.entries for n in entry.numbers}
        for (counter, period), value in values.items():
            upsert = self._insert(counters).values(series=owner.pk, counter=counter, period=period, value=value)
            keys = [counters.c.series, counters.c.counter, counters.c.period]
            connection.execute(upsert.on_conflict_do_update(index_elements=keys, set_={"value": value}))

    # signing keys and audit ---------------------------------------------------------------------------------------

    def add_signing_key(self, kid: str, jwk: str) -> None:
        """Publishes the public part of a signing key. It stays for good."""
        row = {"kid": kid, "jwk": jwk, "created_at": now_ms()}
        with self.write() as connection:
            connection.execute(self._insert(signing_keys).values(row).on_conflict_do_nothing())

    def signing_keys(self) -> list[str]:
        """Returns the public signing keys as JWK texts, oldest first."""
        with self.read() as connection:
            ordered = sa.select(signing_keys.c.jwk).order_by(signing_keys.c.created_at, signing_keys.c.kid)
            return list(connection.execute(ordered).scalars())

    def _log(self, connection: sa.Connection, actor: str, action: str, detail: dict[str, Any]) -> None:
        row = {
            "at": now_ms(),
            "actor": actor,
            "action": action,
            "detail": msgspec.json.encode(detail).decode(),
        }
        connection.execute(sa.insert(audit_log).values(row))


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # SQLAlchemy begins transactions, see _begin_sqlite; the driver must not.
    connection.isolation_level = None
    for pragma in ("busy_timeout = 10000", "journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that begins to write halfway can be refused there; one that says so at once only waits.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sa.exc.IntegrityError:
        raise
    except (sa.exc.DatabaseError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        if isinstance(error, sa.exc.ProgrammingError) or "no such table" in str(error):
            raise Unavailable("The store's schema is missing or old. Run `seriatim migrate`.") from error
        if isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError | sa.exc.TimeoutError):
            raise Unavailable("The store does not answer. Repeat the request.") from error
        raise Unavailable("The store cannot be read. Restore it from a backup, or check where it is.") from error


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


def _entry(series_id: str, row: sa.Row[Any]) -> Entry:
    values = dict(row._mapping)  # noqa: SLF001
    values["series"] = series_id
    values["numbers"] = _counted.decode(values["numbers"])
    return Entry(**values)


def _entry_row(pk: int, entry: Entry, at: int) -> dict[str, Any]:
    numbers = msgspec.json.encode(entry.numbers).decode()
    return msgspec.structs.asdict(entry) | {"series": pk, "numbers": numbers, "settled_at": at}
