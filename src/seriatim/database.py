"""The SQL database beneath the store: connections, transactions, schema; SQLite and PostgreSQL."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, cast

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from seriatim.errors import ConfigError, Halted, Unavailable

BUSY_S = 10
"""How long a transaction waits for another one that writes to SQLite."""
BUSY = f"Others have been writing to the store for {BUSY_S} seconds. Repeat; if it stays so, see which process hangs."
PRAGMAS = (
    f"busy_timeout = {BUSY_S * 1000}",
    "journal_mode = WAL",
    "synchronous = FULL",
    "foreign_keys = ON",
    "temp_store = MEMORY",  # what a statement of many rows may have to take back: by default a file, written for each
    "cache_size = -32768",  # KiB: what a transaction of the worker changes, which is a page for each id
    "wal_autocheckpoint = 50000",  # pages, 200 MB: what several transactions change is written to its place once
)
POSTGRESQL = {
    "connect_timeout": "10",
    # A server, or a client, that is frozen or gone is given up, and what it has locked is free again, in some 20 s.
    "tcp_user_timeout": "20000",
    "keepalives_idle": "5",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "options": " ".join(
        f"-c {setting}"
        for setting in (
            "statement_timeout=30000",
            "idle_in_transaction_session_timeout=20000",
            "tcp_keepalives_idle=5",
            "tcp_keepalives_interval=5",
            "tcp_keepalives_count=3",
        )
    ),
}
"""How connections to PostgreSQL are made, where the URL does not say otherwise."""
INSERT_ROWS_MAX = 256
"""SQLite takes 32,766 values in a statement."""


class Database:
    """The database at a URL.

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
        given = {name: value for name, value in POSTGRESQL.items() if name not in parsed.query}
        more: dict[str, Any] = {} if self.sqlite else {"pool_pre_ping": True, "connect_args": given}
        self.engine = sa.create_engine(parsed, **more)
        self.insert = sqlite_insert if self.sqlite else postgresql_insert
        self._writing = threading.Lock()
        if self.sqlite:
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)
        else:
            sa.event.listen(self.engine, "connect", _prepare_postgresql)

    def close(self) -> None:
        """Closes the connections."""
        self.engine.dispose()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that only reads."""
        with translated(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self, *, patient: bool = False) -> Iterator[sa.Connection]:
        """A transaction that commits at the end, and changes nothing when anything raises.

        A `patient` one waits in PostgreSQL until it is done: there nobody locks anything for ever.
        """
        with (
            translated(),
            self._turn(),
            self.engine.connect().execution_options(writes=True) as connection,
            connection.begin(),
        ):
            if patient and not self.sqlite:
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            yield connection

    @contextmanager
    def _turn(self) -> Iterator[None]:
        # Who finds SQLite busy sleeps, and ever longer; the threads of one process take turns instead.
        if not self.sqlite:
            yield
        elif self._writing.acquire(timeout=BUSY_S):
            try:
                yield
            finally:
                self._writing.release()
        else:
            raise Unavailable(BUSY)

    def server(self) -> str:
        """Returns what tells this database from another one at its URL, such as a standby that has taken its place."""
        if self.sqlite:
            try:
                status = Path(self.engine.url.database or "").stat()
            except OSError as error:
                raise Unavailable("The store's file cannot be found. Put it back.") from error
            return f"{status.st_dev}:{status.st_ino}"
        with self.read() as connection:
            return str(connection.scalar(sa.text("SELECT extract(epoch FROM pg_postmaster_start_time())")))

    def check_durable(self) -> None:
        """Checks that the server syncs what it commits; connections see to it that commits wait for that.

        Raises:
            Halted: it does not.
            Unavailable: it does not answer.
        """
        if self.sqlite:
            return
        with self.read() as connection:
            if connection.scalar(sa.text("SHOW fsync")) != "on":
                raise Halted("PostgreSQL could lose what it has committed. Set in its configuration: fsync = on.")

    def add(self, connection: sa.Connection, table: sa.Table, rows: Sequence[tuple[Any, ...]]) -> None:
        """Adds rows, each with all columns of the table in their order, in as few statements as the database takes.

        The driver lets other threads work while a statement runs, and only then.
        """
        if self.sqlite:
            self._insert(connection, table, rows)
        else:
            self._copy(connection, table, rows)

    def _insert(self, connection: sa.Connection, table: sa.Table, rows: Sequence[tuple[Any, ...]]) -> None:
        kinds = [column.type.dialect_impl(connection.dialect) for column in table.columns]
        processors = [kind.bind_processor(connection.dialect) for kind in kinds]
        done = 0
        while left := len(rows) - done:
            # Powers of two, so that the statements are few, and prepared already.
            count = min(INSERT_ROWS_MAX, 1 << (left.bit_length() - 1))
            columns = zip(processors, zip(*rows[done : done + count], strict=True), strict=True)
            bound = [map(process, column) if process else column for process, column in columns]
            values = tuple(chain.from_iterable(zip(*bound, strict=True)))
            connection.exec_driver_sql(_insert_statement(table, count), values)
            done += count

    def _copy(self, connection: sa.Connection, table: sa.Table, rows: Sequence[tuple[Any, ...]]) -> None:
        driver = cast("psycopg.Connection", connection.connection.driver_connection)
        names = ", ".join(f'"{column.name}"' for column in table.columns)
        statement = f'COPY "{table.name}" ({names}) FROM STDIN'
        try:
            with driver.cursor() as cursor, cursor.copy(statement.encode()) as copy:
                for row in rows:
                    copy.write_row(row)
        except psycopg.Error as error:
            raise sa.exc.DBAPIError.instance(statement, None, error, psycopg.Error) from error

    def migrate(self) -> None:
        """Brings the schema to this version."""
        from alembic import command  # noqa: PLC0415 -- slow to import, needed once
        from alembic.config import Config  # noqa: PLC0415

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self.write(patient=True) as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


@cache
def _insert_statement(table: sa.Table, rows: int) -> str:
    names = ", ".join(f'"{column.name}"' for column in table.columns)
    row = f"({', '.join('?' * len(table.columns))})"
    return f'INSERT INTO "{table.name}" ({names}) VALUES {", ".join([row] * rows)}'  # noqa: S608 -- names of ours


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # SQLAlchemy begins transactions, see _begin_sqlite; the driver must not.
    connection.isolation_level = None
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def _prepare_postgresql(connection: Any, _record: Any) -> None:
    # What is settled is dropped from Redis: a commit must not be said to be there before it is on disk.
    if connection.execute("SHOW synchronous_commit").fetchone()[0] == "off":
        connection.execute("SET synchronous_commit = on")
    connection.commit()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that begins to write halfway can be refused there; one that says so at once only waits.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def translated() -> Iterator[None]:
    """Turns the driver's errors into ours; what breaks a constraint is for the caller."""
    try:
        yield
    except sa.exc.IntegrityError:
        raise
    except (sa.exc.DatabaseError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        if isinstance(error, sa.exc.ProgrammingError) or "no such table" in str(error):
            raise Unavailable("The store's schema is missing or old. Run `seriatim migrate`.") from error
        if getattr(getattr(error, "orig", None), "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            raise Unavailable(BUSY) from error
        if isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError | sa.exc.TimeoutError):
            raise Unavailable("The store does not answer. Repeat the request.") from error
        raise Unavailable("The store cannot be read. Restore it from a backup, or check where it is.") from error
