"""The tables of the rivals on PostgreSQL, and the pool that they connect with."""

from __future__ import annotations

import os

import asyncpg

SCHEMA = """
CREATE TABLE series (id uuid PRIMARY KEY, last bigint NOT NULL DEFAULT 0) WITH (fillfactor = 20);
CREATE TABLE entries (
    series uuid NOT NULL,
    number bigint NOT NULL,
    id uuid NOT NULL,
    meta text NOT NULL,
    created_ms bigint NOT NULL,
    PRIMARY KEY (series, number),
    UNIQUE (series, id)
);
"""
FIND = "SELECT number, meta, created_ms FROM entries WHERE series = $1 AND id = $2"


def connect(size: int) -> asyncpg.Pool:
    """Returns a pool that has yet to be opened."""
    return asyncpg.create_pool(os.environ["BENCH_PG_DSN"], min_size=size, max_size=size, reset=_leave)


async def _leave(_connection: asyncpg.Connection) -> None:
    """Saves the round trip that would reset session settings: nobody here makes any."""
