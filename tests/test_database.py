"""How durable a commit is; and many rows at once: what one row at a time would have put there, or nothing."""

from __future__ import annotations

import sqlite3
import uuid
from contextlib import closing
from typing import Any, cast

import psycopg
import pytest
import sqlalchemy as sa

from seriatim.errors import Unavailable
from seriatim.store import Store

THINGS = sa.Table(
    "things",
    sa.MetaData(),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
    sa.Column("text", sa.Text),
    sa.Column("bytes", sa.LargeBinary, nullable=False),
    sa.Column("flag", sa.Boolean, nullable=False),
)
TEXTS = ("", "plain", "tab\tand\nline", "back\\slash \\N \\.", "quote\" and '", "Größe 🧾", "%s ? :name", None)
COUNTS = (0, 1, 2, 3, 255, 256, 257, 700)


def things(first: int, count: int) -> list[tuple[Any, ...]]:
    return [
        (number, str(uuid.uuid4()), TEXTS[number % len(TEXTS)], bytes([number % 256, 0, 92, 10]), number % 3 == 0)
        for number in range(first, first + count)
    ]


def held(store: Store) -> list[tuple[Any, ...]]:
    with store.read() as connection:
        return [tuple(row) for row in connection.execute(sa.select(THINGS).order_by(THINGS.c.number))]


@pytest.fixture
def kept(store: Store) -> Store:
    """A store with one more table."""
    with store.write() as connection:
        THINGS.create(connection)
    return store


def test_every_connection_commits_durably(store: Store) -> None:
    # Given a store with several connections at once
    asked = ("journal_mode", "synchronous", "foreign_keys") if store.sqlite else ("fsync", "synchronous_commit")
    word = "PRAGMA" if store.sqlite else "SHOW"
    with store.read() as one, store.read() as other, store.write() as writing:
        said = [
            [connection.exec_driver_sql(f"{word} {name}").scalar_one() for name in asked]
            for connection in (one, other, writing)
        ]

    # Then each waits for the disk before it says that it has committed: in SQLite, 2 is FULL
    assert said == [["wal", 2, 1] if store.sqlite else ["on", "on"]] * 3


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_who_waits_too_long_for_a_process_that_writes_to_sqlite_is_told_so(store: Store) -> None:
    # Given a process that has begun to write, and hangs
    store.close()
    sa.event.listen(store.engine, "connect", lambda driver, _: driver.execute("PRAGMA busy_timeout = 50"))
    with closing(sqlite3.connect(str(store.engine.url.database))) as other:
        other.execute("BEGIN IMMEDIATE")

        # When somebody else wants to write, then it is told what to look for; who reads does not notice
        with pytest.raises(Unavailable, match="see which process hangs"), store.write():
            pass
        with store.read() as connection:
            connection.exec_driver_sql("SELECT 1")


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
def test_a_connection_whose_other_end_has_vanished_is_given_up(store_url: str) -> None:
    # Given a URL that says one thing of it, when there is a connection
    store = Store(f"{store_url}&keepalives_count=2")
    with store.read() as connection:
        driver = cast("psycopg.Connection", connection.connection.driver_connection)
        said = driver.info.get_parameters()
    store.close()

    # Then it has that, and waits for nothing longer than for half a minute
    assert said["keepalives_count"] == "2"
    asked = ("connect_timeout", "keepalives_idle", "keepalives_interval", "tcp_user_timeout")
    assert [said[name] for name in asked] == ["10", "5", "5", "20000"]


def test_any_number_of_rows_arrives_as_it_was_given(kept: Store) -> None:
    # Given rows with whatever a format of files or statements could take for its own signs
    expected: list[tuple[Any, ...]] = []
    for count in COUNTS:
        rows = things(len(expected), count)

        # When so many are added
        with kept.write() as connection:
            kept.add(connection, THINGS, rows)
        expected += rows

    # Then they are all there, each column as it was
    assert held(kept) == expected


def test_rows_of_which_one_is_there_already_are_not_added(kept: Store) -> None:
    # Given some rows
    rows = things(0, 300)
    with kept.write() as connection:
        kept.add(connection, THINGS, rows)

    # When others are added with one of them among them
    with pytest.raises(sa.exc.IntegrityError), kept.write() as connection:
        kept.add(connection, THINGS, [*things(300, 299), rows[7]])

    # Then none is
    assert held(kept) == rows


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
def test_a_connection_that_is_lost_meanwhile_adds_nothing_and_is_replaced(kept: Store) -> None:
    # Given a transaction whose connection the server ends
    def add_after_the_end() -> None:
        with kept.write() as connection:
            mine = connection.scalar(sa.text("SELECT pg_backend_pid()"))
            with kept.engine.connect() as other:
                other.execute(sa.text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": mine})
            kept.add(connection, THINGS, things(0, 1000))

    # When rows are added
    with pytest.raises(Unavailable):
        add_after_the_end()

    # Then they are not there, and the next time they arrive
    assert held(kept) == []
    rows = things(0, 10)
    with kept.write() as connection:
        kept.add(connection, THINGS, rows)
    assert held(kept) == rows
