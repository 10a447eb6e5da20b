"""The store that does not answer: with replicas, going on without it could mean numbers that another server issues."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from core import SHARDS, make_series, running_front
from seriatim.allocator import LAPSED
from seriatim.config import Config
from seriatim.errors import Halted, Unavailable
from seriatim.ledger import Wanted
from seriatim.store import Store
from several import Line, Member, primary_and_replica
from stack import new_id, until

LEASE_S = 2
NAME = ".s.PGSQL.5432"


def prepared(directory: Path, postgresql_url: str) -> tuple[Line, str]:
    """A store that is reached by a wire, and its URL."""
    store = Store(postgresql_url)
    store.migrate()
    store.prepare(SHARDS)
    store.create_company("acme", "test")
    store.close()
    url, _, host = postgresql_url.partition("?host=")
    line = Line(directory / NAME, Path(host) / NAME)
    return line, f"{url}?host={directory}"


def test_with_replicas_a_process_that_cannot_ask_the_store_stops_in_time(directory: Path, postgresql_url: str) -> None:
    line, url = prepared(directory, postgresql_url)

    async def run(server: Member) -> None:
        config = Config(redis_url=server.url, store_url=url, shards=SHARDS, lease_s=LEASE_S)
        async with running_front(config) as front:
            company = front.store.companies()[0].id
            series = await make_series(front, company)
            await front.ledger.put_entry(company, series, Wanted(new_id()))

            # When the store is cut off
            line.cut()
            began = time.monotonic()
            try:
                await asyncio.to_thread(until, front.gate.closed, 2 * LEASE_S)

                # Then it stops to allocate after that time, and says why
                assert time.monotonic() - began < LEASE_S + 1
                with pytest.raises(Unavailable, match=LAPSED) as refused:
                    await front.ledger.put_entry(company, series, Wanted(new_id()))
                assert not isinstance(refused.value, Halted)
                await asyncio.sleep(LEASE_S)
                assert str(front.gate.closed()) == LAPSED
            finally:
                line.mend()

            # When the store is back, then it goes on by itself
            await asyncio.to_thread(until, lambda: front.gate.closed() is None)
            entry, _ = await front.ledger.put_entry(company, series, Wanted(new_id()))
            assert entry.number == 2
            assert front.store.data_set().replicated

    # Given a process whose Redis has a replica
    with primary_and_replica(directory) as (primary, _):
        asyncio.run(run(primary))


def test_without_replicas_it_goes_on(directory: Path, postgresql_url: str) -> None:
    line, url = prepared(directory, postgresql_url)

    async def run(server: Member) -> None:
        config = Config(redis_url=server.url, store_url=url, shards=SHARDS, lease_s=LEASE_S)
        async with running_front(config) as front:
            company = front.store.companies()[0].id
            series = await make_series(front, company)
            await front.ledger.put_entry(company, series, Wanted(new_id()))

            # When the store is cut off for longer than a lease
            line.cut()
            try:
                await asyncio.sleep(LEASE_S + 1)

                # Then numbers are issued all the same: there is no other server that could
                entry, _ = await front.ledger.put_entry(company, series, Wanted(new_id()))
                assert entry.number == 2
            finally:
                line.mend()

    # Given a process whose Redis is the only one
    server = Member(directory / "a")
    try:
        asyncio.run(run(server))
    finally:
        server.kill()
