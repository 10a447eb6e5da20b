"""The migrations make the schema that seriatim.store describes: the one is what runs, the other what queries assume."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from seriatim.store import Store
from seriatim.tables import metadata

ELSEWHERE = "described"


def test_the_migrations_equal_the_schema(store: Store) -> None:
    # Given a store that the migrations made
    with store.engine.connect() as connection:
        # When Alembic compares it with the tables of the code
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        differences = compare_metadata(context, metadata)

    # Then nothing is left to migrate
    assert differences == []


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
