"""Replicas that are promoted: by hand, or by a Sentinel. They may lack numbers, so that somebody has to decide."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import redis.asyncio

from core import SHARDS, drain_all, make_drainer, make_series, running_front
from seriatim import clients, keyspace, rebuild, recovery, scripts, signing
from seriatim.config import Config
from seriatim.errors import ConfigError, Halted, Stale
from seriatim.formats import window
from seriatim.groups import Group, Order
from seriatim.ledger import Wanted
from seriatim.model import Entry, Standing, shard_of
from seriatim.rebuild import Choice, Outcome
from seriatim.signing import Signer
from seriatim.store import Store
from several import Member, Service, check_halts_as_promoted, primary_and_replica, sentinel
from stack import new_id, put_entry, put_series, until

LEASE_S = 2


@pytest.fixture
def pair(directory: Path) -> Iterator[tuple[Member, Member]]:
    with primary_and_replica(directory) as servers:
        yield servers


@pytest.fixture
def store_url(directory: Path) -> str:
    """One of the two databases is enough here."""
    return f"sqlite:///{directory / 'store.db'}"


def config_of(server: Member, store: Store) -> Config:
    key = server.directory.path.parent / "signing-key.json"
    url = store.engine.url.render_as_string(hide_password=False)
    return Config(redis_url=server.url, store_url=url, signing_key=str(key), shards=SHARDS, lease_s=LEASE_S)


def meet(server: Member, store: Store) -> Standing:
    return recovery.meet(server.client, store, "fsync")


def issue(server: Member, store: Store, count: int, series: str = "") -> list[Entry]:
    """Issues entries through an API process, in a new series unless one is named."""

    async def run() -> list[Entry]:
        async with running_front(config_of(server, store)) as front:
            company = (store.companies() or [store.create_company("acme", "test")])[0].id
            named = series or await make_series(front, company)
            return [(await front.ledger.put_entry(company, named, Wanted(new_id())))[0] for _ in range(count)]

    return asyncio.run(run())


def settle(server: Member, store: Store) -> None:
    drain_all(make_drainer(server, store, config_of(server, store)))


def recover(server: Member, store: Store, choice: Choice, say: Callable[[str], None] = lambda _: None) -> Outcome:
    config = config_of(server, store)
    signing.create_key(Path(config.signing_key))
    signer = Signer(Path(config.signing_key), config.issuer)
    return rebuild.Recovery(server.client, store, signer, config, say).run(choice)


def test_a_promoted_replica_is_refused_even_when_it_says_no_more_that_it_is_one(
    pair: tuple[Member, Member], store: Store
) -> None:
    # Given a replica that was promoted while its primary went on
    primary, replica = pair
    first, *_ = issue(primary, store, 3)
    replica.caught_up(primary)
    with pytest.raises(Halted, match=r"is a replica\. Set SERIATIM_REDIS_URL to its primary"):
        meet(replica, store)
    replica.promote()
    lost = issue(primary, store, 2, first.series)

    # When it is met, then nothing may be allocated
    with pytest.raises(Halted, match="a replica that was promoted, and may lack the last numbers"):
        meet(replica, store)

    # When it is restarted, so that it no longer knows what it was, then it is refused all the same
    replica.kill()
    replica.start()
    assert clients.look(replica.client).promoted is False
    with pytest.raises(Halted, match="a replica that was promoted"):
        meet(replica, store)

    # When the primary is put back, then nothing was lost, and nothing is asked
    primary.kill()
    primary.start()
    assert [one.number for one in issue(primary, store, 1, first.series)] == [lost[-1].number + 1]


def test_what_a_promoted_replica_lacks_is_decided_and_the_old_primary_is_known(
    pair: tuple[Member, Member], store: Store
) -> None:
    # Given a replica that lacks the last two numbers, of which the store has none
    primary, replica = pair
    first, *_ = issue(primary, store, 3)
    settle(primary, store)
    issue(primary, store, 1, first.series)
    replica.caught_up(primary)
    replica.promote()
    lost = issue(primary, store, 2, first.series)

    # When it is recovered, then it wants a decision
    outcome = recover(replica, store, Choice())
    assert not outcome.recovered
    (doubt,) = outcome.doubts
    assert (doubt.series, doubt.entries, doubt.number) == (first.series, 4, 5)
    assert "promoted" in doubt.why

    # When somebody has decided, then it waits until nobody can be left who uses the old primary
    said: list[str] = []
    began = time.monotonic()
    assert recover(replica, store, Choice(resume_at={first.series: 7}), said.append).recovered
    assert time.monotonic() - began > LEASE_S
    assert any("waiting" in line for line in said)

    # Then numbers go on there, and none of those that were lost comes again
    (fresh,) = issue(replica, store, 1, first.series)
    assert fresh.number == 7 > lost[-1].number
    settle(replica, store)

    # When the old primary returns, then it is known for what it is, and cannot be recovered by mistake
    with pytest.raises(Halted, match="an old primary that came back"):
        meet(primary, store)
    with pytest.raises(ConfigError, match="before an earlier recovery"):
        recover(primary, store, Choice(accept_loss=True))


def test_a_server_that_knew_the_scripts_does_not_know_those_of_today(pair: tuple[Member, Member], store: Store) -> None:
    # Given a primary that gave way to its replica, and copies that one now; it has run all the time
    old, new = pair
    first, *_ = issue(old, store, 1)
    new.caught_up(old)
    new.promote()
    recover(new, store, Choice(accept_loss=True))
    standing = meet(new, store)
    old.follow(new)

    # When it is promoted again, lacks the last number, and a process that has not noticed calls it
    issue(new, store, 1, first.series)
    settle(new, store)
    old.caught_up(new)
    old.promote()
    issue(new, store, 1, first.series)

    async def call() -> None:
        series = store.series(first.series)
        assert series is not None
        orders = [Order(keyspace.pack_request(bytes(24)))]
        group = Group(series, window("UTC", time.time_ns() // 1_000_000), orders)
        async with redis.asyncio.Redis.from_url(old.url) as client:
            await scripts.allocate(client, standing, [group], backlog_max=1000)

    # Then it issues nothing, although it has the epoch and the generation
    shard = shard_of(first.series, SHARDS)
    known = old.client.hmget(keyspace.shard_key(shard), ["epoch", "generation"])
    assert known == [standing.epoch.encode(), str(standing.generation).encode()]
    with pytest.raises(Stale):
        asyncio.run(call())
    with pytest.raises(Halted, match="was promoted"):
        meet(old, store)


def test_an_address_that_leads_to_another_server_is_followed(pair: tuple[Member, Member], store: Store) -> None:
    # Given a process with connections to a primary that is not stopped, and an address that leads to its replica now
    primary, replica = pair
    config = config_of(primary, store)
    company = store.create_company("acme", "test").id

    async def run() -> None:
        async with running_front(config) as front:
            series = await make_series(front, company)
            first, _ = await front.ledger.put_entry(company, series, Wanted(new_id()))
            await asyncio.to_thread(replica.caught_up, primary)
            replica.promote()
            primary.directory.socket.rename(primary.directory.path / "left.sock")
            replica.directory.socket.rename(primary.directory.socket)

            # When that one is recovered
            with closing(clients.blocking(config.redis_url)) as client:
                signing.create_key(Path(config.signing_key))
                signer = Signer(Path(config.signing_key), config.issuer)
                recovered = rebuild.Recovery(client, store, signer, config, lambda _: None)
                assert (await asyncio.to_thread(recovered.run, Choice(accept_loss=True))).recovered
            epoch = store.data_set().epoch
            await asyncio.to_thread(until, lambda: front.gate.standing and front.gate.standing.epoch == epoch)

            # Then the process goes on there, for numbers and for reads
            second, _ = await front.ledger.put_entry(company, series, Wanted(new_id()))
            assert (first.number, second.number) == (1, 2)
            assert (await front.ledger.entry(company, series, second.id)).number == 2
            listed, _ = await front.ledger.entries(company, series, None, 10)
            assert [one.number for one in listed] == [1, 2]

    asyncio.run(run())


def test_a_sentinels_failover_halts_the_service_until_it_is_recovered(
    pair: tuple[Member, Member], directory: Path
) -> None:
    # Given a service that asks a Sentinel for its server
    primary, replica = pair
    with sentinel(directory, primary) as url:
        service = Service(directory, redis_url=url, queue_url=primary.url, lease_s=str(LEASE_S))
        try:
            headers = {"Authorization": f"Bearer {service.key}"}
            with httpx.Client(base_url=service.url, headers=headers, timeout=20) as client:
                until(lambda: service.ready(client))
                series = put_series(client, prefix="S-")
                put_entry(client, series)
                replica.caught_up(primary)

                # When the replica is cut off, misses a number, and the primary dies
                replica.cut_off(primary)
                lost = put_entry(client, series)
                primary.kill()

                # Then the service stops
                check_halts_as_promoted(client, series)

                # When it is recovered, then it goes on by itself behind the number that was lost
                resume = f"{series}={lost['number'] + 1}"
                until(
                    lambda: service.run("recover", "--resume-at", resume).returncode == 0
                )  # Sentinels take their time
                until(lambda: service.ready(client))
                assert put_entry(client, series)["number"] == lost["number"] + 1
        finally:
            service.stop()
