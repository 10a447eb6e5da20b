"""The migrations make the schema that seriatim.store describes: the one is what runs, the other what queries assume."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from seriatim import database
from seriatim.model import Numbering
from seriatim.store import NewSeries, Store
from seriatim.tables import metadata

ELSEWHERE = "described"


PLANTED = [
    "ALTER TABLE series ADD COLUMN more TEXT",
    "ALTER TABLE series DROP COLUMN charset",
    "CREATE INDEX more ON entries (date)",
    "CREATE TABLE more (id TEXT)",
    "DROP INDEX uq_series_default",
    "DROP INDEX uq_series_default; CREATE UNIQUE INDEX uq_series_default ON series (company, type)",
]
PLANTED_IN_POSTGRESQL = [
    "ALTER TABLE entries DROP CONSTRAINT ck_entries_chain",
    "ALTER TABLE entries DROP CONSTRAINT uq_entries_series_code",
    "ALTER TABLE entries ALTER COLUMN receipt DROP NOT NULL",
    "ALTER TABLE counters ALTER COLUMN value TYPE INTEGER",
    "ALTER TABLE series ALTER COLUMN chronology SET DEFAULT 'free'",
    "ALTER TABLE voids DROP CONSTRAINT fk_voids_series",
]


def test_the_migrations_equal_the_schema(store: Store) -> None:
    # Given a store that the migrations made, when Alembic compares it with the tables of the code
    # Then nothing is left to migrate
    assert _left_to_migrate(store) == []


def test_the_migrations_make_the_same_constraints_and_indexes(store: Store) -> None:
    # Given a store that the migrations made, and the same tables made straight from the code
    with store.engine.connect() as connection:
        migrated = _rules(connection, None)
    described = _rules_of_the_code(store)

    # When what Alembic does not compare is compared: checks, partial indexes, column types in full, foreign keys
    # Then it is the same, table by table
    assert migrated.pop("alembic_version")
    assert migrated == described
    assert described["settings"]["get_check_constraints"]


def test_any_difference_between_migrations_and_schema_would_be_found(store: Store) -> None:
    # Given the tables of the code
    described = _rules_of_the_code(store)
    for planted in PLANTED if store.sqlite else PLANTED + PLANTED_IN_POSTGRESQL:
        with store.engine.connect().execution_options(writes=True) as connection:
            # When a migration had made something else
            for statement in planted.split("; "):
                connection.execute(sa.text(statement))
            migrated = _rules(connection, None)
            connection.rollback()

        # Then it is not the same
        assert migrated.pop("alembic_version")
        assert migrated != described, planted


def test_migrating_again_changes_nothing(store: Store) -> None:
    # Given a store in use
    company = store.create_company("acme", "test")
    before = store.data_set()

    # When it is migrated and prepared once more, as every start does
    store.migrate()
    store.prepare(shards=64)

    # Then its data and its shard count are what they were
    assert store.data_set() == before
    assert store.companies() == [company]


def test_series_and_keys_of_before_get_small_ids_and_their_companies(store_url: str) -> None:
    # Given a store at the version before small ids, with series of two companies made in turns, and a key
    store = Store(store_url)
    one, other = (str(uuid.UUID(int=number)) for number in (1, 2))
    made = [(one, "11"), (other, "21"), (one, "12"), (one, "13")]
    series = {"type": "t", "name": "", "description": "", "code": "", "prefix": "", "padding": 0, "suffix": ""}
    series |= {"active": True, "is_default": False, "creation": b"", "version": 1, "shard": 0, "position": 0}
    times = {"created_at": 0, "updated_at": 0}
    with store.write() as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        old = sa.MetaData()
        old.reflect(connection)
        for company in (one, other):
            _insert(connection, old, "companies", {"id": company, "name": company, "created_at": 0})
        for company, ending in made:
            _insert(connection, old, "series", series | times | {"id": _uuid(ending), "company": company})
        key = {"id": "k", "company": other, "salt": b"s", "hash": b"h", "scopes": "read", "created_at": 0}
        _insert(connection, old, "api_keys", key)

    # When it is migrated
    store.migrate()

    # Then each company's series are numbered in their order, and the key acts for its company
    assert {found.id: found.ordinal for found in store.list_series(one)} == {
        _uuid("11"): 1,
        _uuid("12"): 2,
        _uuid("13"): 3,
    }
    assert {found.id: found.ordinal for found in store.list_series(other)} == {_uuid("21"): 1}
    assert [(kept.company, kept.companies) for kept in store.api_keys()] == [(other, (other,))]

    # And what is made next goes on behind them
    numbering = {"numbering": Numbering(), "sig": None, "default": False, "lone_prefix": False}
    fresh = {name: series[name] for name in ("type", "name", "description", "code", "active", "creation")} | numbering
    for company, ordinal in ((one, 4), (other, 2)):
        defaults = store.defaults(company, 0)
        new = NewSeries(**fresh, id=str(uuid.uuid4()), company=company)  # type: ignore[arg-type]
        created = store.create_series(new, 0, 10, defaults)
        assert created is not None
        assert created.ordinal == ordinal
    store.close()


def _left_to_migrate(store: Store) -> list[Any]:
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        return list(compare_metadata(context, metadata))


def _uuid(ending: str) -> str:
    return f"00000000-0000-4000-8000-{ending:0>12}"


def _insert(connection: sa.Connection, tables: sa.MetaData, name: str, row: dict[str, Any]) -> None:
    # SQLite's tables do not say which of their columns are UUIDs: it keeps them without hyphens.
    if connection.dialect.name == "sqlite":
        row = row | {column: row[column].replace("-", "") for column in ("id", "company") if column in row}
    connection.execute(sa.insert(tables.tables[name]).values(row))


def _rules_of_the_code(store: Store) -> dict[str, Any]:
    """What the code's tables look like in a place of their own: in memory, or in another PostgreSQL schema."""
    if store.sqlite:
        engine = sa.create_engine("sqlite://")
        metadata.create_all(engine)
        with engine.connect() as connection:
            return _rules(connection, None)
    with store.engine.connect() as connection:
        connection.execute(sa.schema.CreateSchema(ELSEWHERE))
        metadata.create_all(connection.execution_options(schema_translate_map={None: ELSEWHERE}))
        return _rules(connection, ELSEWHERE)


def _rules(connection: sa.Connection, schema: str | None) -> dict[str, Any]:
    """Every rule that the database keeps for each table, in its own words."""
    inspector = sa.inspect(connection)
    kinds: list[Callable[..., Any]] = [
        inspector.get_columns,
        inspector.get_pk_constraint,
        inspector.get_foreign_keys,
        inspector.get_unique_constraints,
        inspector.get_check_constraints,
        inspector.get_indexes,
    ]
    return {
        table: {kind.__name__: _plain(kind(table, schema=schema)) for kind in kinds}
        for table in inspector.get_table_names(schema=schema)
    }


def _plain(found: Any) -> Any:
    """In one order, and without the name of the schema: neither means anything here."""
    rows = found if isinstance(found, list) else [found]
    texts = [json.dumps(row, sort_keys=True, default=str) for row in rows]
    return sorted(text.replace(f"{ELSEWHERE}.", "").replace(f'"{ELSEWHERE}"', "null") for text in texts)
