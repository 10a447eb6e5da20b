"""Clients of Redis: what a URL means, and which servers answer to it.

    redis://[USER:PASSWORD@]HOST[:PORT][/DB]                            one server; also unix://PATH
    redis+sentinel://[USER:PASSWORD@]HOST[:PORT][,HOST...]/NAME[/DB]    the primary that these Sentinels call NAME
    redis+cluster://[USER:PASSWORD@]HOST[:PORT][,HOST...]               a Redis Cluster, of which these are nodes

With rediss in front they use TLS. ?sentinel_password=... is for the Sentinels themselves.

No client repeats a command by itself. After a lost connection the outcome is unknown, and whoever answers the next one
may be another server, which is to be met first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, cast
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec
import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.retry
import redis.asyncio.sentinel
import redis.backoff
import redis.cluster
import redis.retry
import redis.sentinel

from seriatim.line import ANSWER_S
from seriatim.scripts import translated

PORTS = {"cluster": 6379, "sentinel": 26379}


class Address(msgspec.Struct, frozen=True):
    """A URL taken apart; `options` are arguments of the driver."""

    kind: Literal["one", "cluster", "sentinel"]
    hosts: list[tuple[str, int]] = []
    options: dict[str, Any] = {}
    name: str = ""
    sentinel_options: dict[str, Any] = {}


def address(url: str) -> Address:
    """Returns what a URL of SERIATIM_REDIS_URL means."""
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    if kind not in PORTS:
        return Address("one")
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = map(unquote, credentials.partition(":"))
    tls = {"ssl": True} if scheme == "rediss" else {}
    options = {key: value for key, value in (("username", user), ("password", password)) if value} | tls
    listed = [_host(one, PORTS[kind]) for one in hosts.split(",")]
    if kind == "cluster":
        return Address("cluster", listed, options)
    name, _, db = parts.path.strip("/").partition("/")
    said = parse_qs(parts.query).get("sentinel_password")
    sentinel_options = tls | ({"password": said[-1]} if said else {})
    return Address("sentinel", listed, options | {"db": int(db or 0)}, name, sentinel_options)


def _host(text: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    return parts.hostname or "127.0.0.1", parts.port or port


def blocking(url: str, timeout_s: float = ANSWER_S) -> redis.Redis:
    """Returns a client for threads. That of a cluster takes the same commands, and is called the same.

    Raises:
        Unavailable: no node of a cluster answers.
    """
    at = address(url)
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": ANSWER_S,
        "retry": redis.retry.Retry(redis.backoff.NoBackoff(), 0),
    }
    if at.kind == "cluster":
        nodes = [redis.cluster.ClusterNode(*one) for one in at.hosts]  # type: ignore[no-untyped-call]
        with translated():
            return cast("redis.Redis", redis.cluster.RedisCluster(startup_nodes=nodes, **at.options, **options))
    if at.kind == "sentinel":
        sentinels: Any = redis.sentinel.Sentinel
        found = sentinels(at.hosts, sentinel_kwargs=at.sentinel_options | options)
        return cast("redis.Redis", found.master_for(at.name, **at.options, **options))
    return redis.Redis.from_url(url, **options)


def asynchronous(url: str) -> redis.asyncio.Redis:
    """Returns a client for requests. It waits for answers as long as its callers do; see `scripts.answered`."""
    at = address(url)
    options: dict[str, Any] = {
        "socket_timeout": None,
        "socket_connect_timeout": ANSWER_S,
        "retry": redis.asyncio.retry.Retry(redis.backoff.NoBackoff(), 0),
    }
    if at.kind == "cluster":
        nodes = [redis.asyncio.cluster.ClusterNode(*one) for one in at.hosts]
        cluster = redis.asyncio.cluster.RedisCluster(startup_nodes=nodes, **at.options, **options)
        return cast("redis.asyncio.Redis", cluster)
    if at.kind == "sentinel":
        sentinels: Any = redis.asyncio.sentinel.Sentinel
        found = sentinels(at.hosts, sentinel_kwargs=at.sentinel_options | options | {"socket_timeout": ANSWER_S})
        return cast("redis.asyncio.Redis", found.master_for(at.name, **at.options, **options))
    return redis.asyncio.Redis.from_url(url, **options)


# who answers ------------------------------------------------------------------------------------------------------


class Server(msgspec.Struct, frozen=True):
    """A server, as it says of itself.

    Args:
        identity: one that has restarted has another, and so has one that was a replica in between.
        is_replica: it copies another server.
        promoted: it was a replica, of which nobody knows whether it had everything.
        replicated: another server copies it, or did so lately.
        in_cluster: it is a node of a cluster.
    """

    identity: str
    is_replica: bool
    promoted: bool
    replicated: bool
    in_cluster: bool


def is_cluster(client: Any) -> bool:
    """Whether a client is a cluster's, where all keys of a command must be of one shard."""
    return isinstance(client, redis.cluster.RedisCluster | redis.asyncio.cluster.RedisCluster)


def may_move(client: redis.Redis) -> bool:
    """Whether a client follows its server's replicas by itself when they are promoted."""
    return is_cluster(client) or isinstance(client.connection_pool, redis.sentinel.SentinelConnectionPool)


def forget(client: redis.Redis) -> None:
    """Closes what connections are at rest: the next one may lead to another server."""
    if not is_cluster(client):
        client.connection_pool.disconnect(inuse_connections=False)


@contextmanager
def pinned(client: redis.Redis) -> Iterator[tuple[redis.Redis, list[redis.Redis]]]:
    """A client for a while, and one for each server behind it, each of one connection.

    What one connection says is of the same process to its end: when it is lost, whoever uses it is told.

    Raises:
        Unavailable: nobody answers.
    """
    with ExitStack() as stack, translated():
        if not isinstance(client, redis.cluster.RedisCluster):
            only = stack.enter_context(_pinned(client))
            yield only, [only]
            return
        client.nodes_manager.initialize(disconnect_startup_nodes_pools=False)  # nodes may have changed
        primaries = [node.redis_connection for node in client.get_primaries()]
        yield client, [stack.enter_context(_pinned(one)) for one in primaries if one is not None]


def _pinned(client: redis.Redis) -> redis.Redis:
    return redis.Redis(connection_pool=client.connection_pool, single_connection_client=True)


def look(server: redis.Redis) -> Server:
    """Returns what a server says of itself.

    Raises:
        Unavailable: it does not answer.
    """
    with translated():
        about, copies = server.info("server"), server.info("replication")
        clustered = server.info("cluster")["cluster_enabled"]
    return Server(
        identity=f"{about['run_id']}:{copies['master_replid']}",
        is_replica=copies["role"] != "master",
        promoted=str(copies["master_replid2"]).strip("0") != "",
        replicated=bool(copies["connected_slaves"] or copies["repl_backlog_active"]),
        in_cluster=bool(clustered),
    )
