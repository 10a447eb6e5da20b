"""The SQL database beneath the store: connections, transactions, schema; SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from seriatim.errors import ConfigError, Unavailable


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
        self.engine = sa.create_engine(parsed, **({} if self.sqlite else {"pool_pre_ping": True}))
        self.insert = sqlite_insert if self.sqlite else postgresql_insert
        if self.sqlite:
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)

    def close(self) -> None:
        """Closes the connections."""
        self.engine.dispose()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that only reads."""
        with translated(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that commits at the end, and changes nothing when anything raises."""
        with (
            translated(),
            self.engine.connect().execution_options(writes=True) as connection,
            connection.begin(),
        ):
            yield connection

    def migrate(self) -> None:
        """Brings the schema to this version."""
        from alembic import command  # noqa: PLC0415 -- slow to import, needed once
        from alembic.config import Config  # noqa: PLC0415

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self.write() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


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
def translated() -> Iterator[None]:
    """Turns the driver's errors into ours; what breaks a constraint is for the caller."""
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
