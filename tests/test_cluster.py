"""A Redis Cluster of three nodes: keys and scripts on the nodes of their shards, slots that move, nodes that fail."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from redis.crc import key_slot

from core import SHARDS, drain_all, make_series, running_front
from seriatim import clients, keyspace, rebuild, recovery, signing
from seriatim.config import Config
from seriatim.errors import Halted, Unavailable
from seriatim.ledger import Wanted
from seriatim.model import SeriesFields, Why, shard_of
from seriatim.rebuild import Choice
from seriatim.signing import Signer
from seriatim.store import Store
from seriatim.worker import Drainer
from several import Cluster, Member, Service, check_halts_as_promoted
from stack import entry_path, new_id, put_entry, put_series, until

NOWHERE = "redis://127.0.0.1:1"


@pytest.fixture
def cluster(directory: Path) -> Iterator[Cluster]:
    made = Cluster(directory)
    yield made
    made.kill()


@pytest.fixture
def config(directory: Path, cluster: Cluster) -> Config:
    store_url, key = f"sqlite:///{directory / 'store.db'}", directory / "signing-key.json"
    signing.create_key(key)
    store = Store(store_url)
    store.migrate()
    store.prepare(SHARDS)
    store.create_company("acme", "test")
    store.close()
    return Config(redis_url=cluster.url, queue_url=NOWHERE, store_url=store_url, signing_key=str(key), shards=SHARDS)


def slot_of(shard: int) -> int:
    return int(key_slot(keyspace.shard_key(shard).encode()))


def holder(cluster: Cluster, shard: int) -> Member:
    """The node that holds a shard."""
    cluster.client.nodes_manager.initialize()
    port = cluster.client.nodes_manager.get_node_from_slot(slot_of(shard)).port
    return next(node for node in cluster.nodes if node.port == port)


def drainer_of(config: Config, store: Store) -> Drainer:
    signer = Signer(Path(config.signing_key), config.issuer)
    store.add_signing_key(signer.kid, signer.public_jwk)
    return Drainer(clients.blocking(config.redis_url), store, signer, config)


def keys_of(cluster: Cluster) -> set[bytes]:
    """All keys, but for the outboxes, which a shard has from its first record on."""
    return {key for node in cluster.nodes for key in node.client.scan_iter() if not key.endswith(b":outbox")}


def test_every_script_works_on_the_node_of_its_shard(cluster: Cluster, config: Config) -> None:
    async def use() -> dict[str, int]:
        """Uses all that the service can do with series; returns how many entries each has."""
        async with running_front(config) as front:
            company = front.store.companies()[0].id
            series = [await make_series(front, company, SeriesFields(prefix=f"{n}-")) for n in range(12)]
            while {shard_of(one, SHARDS) for one in series} != set(range(SHARDS)):
                series.append(await make_series(front, company, SeriesFields(prefix=f"{len(series)}-")))

            # Requests for many series at once, batches, claims, skips, voids, and changes
            ids = [(one, new_id()) for one in series for _ in range(5)]
            issued = await asyncio.gather(*(front.ledger.put_entry(company, one, Wanted(entry)) for one, entry in ids))
            again = await asyncio.gather(*(front.ledger.put_entry(company, one, Wanted(entry)) for one, entry in ids))
            assert [entry.code for entry, _ in issued] == [entry.code for entry, _ in again]
            assert all(replayed for _, replayed in again)
            for one in series[:4]:
                await front.ledger.put_batch(company, one, [Wanted(new_id()) for _ in range(50)])
                await front.ledger.skip(company, one, None, 100, Why("why", "who"))
            claimed, _ = await front.ledger.put_default_entry(company, "invoice", Wanted(new_id()))
            assert claimed.series == series[0]
            one, entry = ids[0]
            await front.ledger.void(company, one, entry, Why("why", "who"))
            await front.definitions.update(company, series[1], SeriesFields(active=False))
            await front.definitions.update(company, series[2], SeriesFields(default=True))
            spare = await make_series(front, company)
            await front.definitions.preview(company, spare)
            await front.definitions.delete(company, spare, "test")
            assert (await front.ledger.entry(company, one, entry)).void is not None
            return {view.series.id: view.state.position for view in await front.definitions.all_series(company)}

    # Given a service on a cluster, when all that it can do is done
    counted = asyncio.run(use())
    assert sum(counted.values()) == len(counted) * 5 + 4 * 50 + 1

    # Then every key is on the node that holds its shard, each node has some, and all is settled
    for node in cluster.nodes:
        keys = [key for key in node.client.scan_iter() if not key.endswith(b":lock")]
        assert keys
        for key in keys:
            assert key.startswith(b"{s")
            assert holder(cluster, int(key[2:5])) is node
    store = Store(config.store_url)
    drain_all(drainer_of(config, store))
    assert {one.id: one.position for one in store.list_series()} == counted

    # When a node loses everything, then nothing is allocated, and it is built anew
    before = keys_of(cluster)
    cluster.nodes[1].client.flushall()
    client = clients.blocking(config.redis_url)
    with pytest.raises(Halted, match="has lost its data"):
        recovery.meet(client, store, "fsync")
    signer = Signer(Path(config.signing_key), config.issuer)
    short = msgspec.structs.replace(config, lease_s=2)  # nobody uses the service meanwhile
    outcome = rebuild.Recovery(client, store, signer, short, lambda _: None).run(Choice(accept_loss=True))
    assert outcome.recovered
    assert keys_of(cluster) == before
    recovery.meet(client, store, "fsync")
    store.close()


def test_a_slot_that_moves_refuses_numbers_meanwhile_and_goes_on_behind_them(cluster: Cluster, config: Config) -> None:
    async def run() -> None:
        # Given a series with entries, some of them settled
        async with running_front(config) as front:
            company = front.store.companies()[0].id
            series = await make_series(front, company)
            for _ in range(3):
                await front.ledger.put_entry(company, series, Wanted(new_id()))
            await asyncio.to_thread(drain_all, drainer_of(config, front.store))
            await front.ledger.put_entry(company, series, Wanted(new_id()))
            shard = shard_of(series, SHARDS)
            source, target = holder(cluster, shard), next(n for n in cluster.nodes if n is not holder(cluster, shard))
            slot = slot_of(shard)

            async def refused() -> None:
                before = cluster.written()
                with pytest.raises(Unavailable) as error:
                    await front.ledger.put_entry(company, series, Wanted(new_id()))
                assert not isinstance(error.value, Halted)
                assert cluster.written() == before

            # When its slot moves key by key to another node, then nothing is issued, and nothing written by halves
            cluster.tell(target, "SETSLOT", slot, "IMPORTING", cluster.id_of(source))
            cluster.tell(source, "SETSLOT", slot, "MIGRATING", cluster.id_of(target))
            await refused()
            keys = cluster.tell(source, "GETKEYSINSLOT", slot, 1000)
            assert len(keys) > 3
            for number, key in enumerate(keys):
                source.client.migrate("127.0.0.1", target.port, key, 0, 5000)
                if number == len(keys) // 2:
                    await refused()
            await refused()

            # When it has moved, then the next number is the next
            for node in (target, source, *cluster.nodes):
                cluster.tell(node, "SETSLOT", slot, "NODE", cluster.id_of(target))
            assert holder(cluster, shard) is target
            entry, _ = await front.ledger.put_entry(company, series, Wanted(new_id()))
            assert (entry.number, front.gate.closed()) == (5, None)

    asyncio.run(run())


def test_a_node_that_fails_halts_the_service_until_it_is_recovered(directory: Path) -> None:
    # Given a service on a cluster whose first node has a replica, with a queue of its own
    cluster, queue = Cluster(directory, spare=True), Member(directory / "queue")
    primary, replica = cluster.nodes[0], cluster.nodes[3]
    service = Service(directory, redis_url=cluster.url, queue_url=queue.url, lease_s="2")
    headers = {"Authorization": f"Bearer {service.key}"}
    try:
        with httpx.Client(base_url=service.url, headers=headers, timeout=20) as client:
            until(lambda: service.ready(client))
            until(lambda: service.run("doctor").stdout == "Nothing is wrong.\n")
            series = next(one for one in iter(lambda: put_series(client), None) if _is_on(cluster, primary, one))
            entry = put_entry(client, series)
            until(lambda: client.get(entry_path(series, entry["id"])).json()["sigs"])

            # When the replica misses a number, and the node dies
            replica.cut_off(primary)
            lost = put_entry(client, series)
            primary.kill()

            # Then the service stops
            check_halts_as_promoted(client, series)

            # When it is recovered, then it goes on by itself
            doubts = service.run("recover")
            assert doubts.returncode == 1
            assert f"{series}: inc may have been issued from" in doubts.stdout
            done = service.run("recover", "--resume-at", f"{series}={lost['number'] + 1}", "--accept-loss")
            assert done.returncode == 0, done.stdout + done.stderr
            until(lambda: service.ready(client))
            fresh = entry_path(series, new_id())
            until(lambda: client.put(fresh, json={}).status_code == 200)  # once it has looked where the shard is now
            assert client.get(fresh).json()["number"] == lost["number"] + 1
    finally:
        service.stop()
        queue.kill()
        cluster.kill()


def _is_on(cluster: Cluster, node: Member, series: str) -> bool:
    return holder(cluster, shard_of(series, Config().shards)) is node


def test_one_node_is_not_taken_for_a_server(cluster: Cluster, config: Config) -> None:
    store = Store(config.store_url)
    with pytest.raises(Halted, match=r"redis\+cluster://HOST:PORT"):
        recovery.meet(clients.blocking(f"redis://127.0.0.1:{cluster.nodes[0].port}"), store, "fsync")
    store.close()
