"""What passes by itself: each fault is done and undone here, and allocation must then go on without anybody's help."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from random import Random

import msgspec
import redis

from stack import until
from torture.link import Weather
from torture.services import Services

Injure = Callable[[Services, Random], str | None]
"""Injects a fault, waits, undoes it; returns what may be said of it."""


class Fault(msgspec.Struct, frozen=True):
    """A kind of fault.

    Args:
        kind: its name.
        injure: what does it.
        needs: what services must have; empty where any do.
        share: how often it comes.
    """

    kind: str
    injure: Injure
    needs: str = ""
    share: int = 2


def killed(role: str) -> Injure:
    """One process dies, or all of its role."""

    def injure(services: Services, rng: Random) -> str | None:
        pids = until(lambda: services.pids(role))
        if role == "database":  # the first one, without which the others end
            pids = pids[:1] if rng.random() < 0.5 else pids[-1:]
        elif rng.random() < 0.7 and len(pids) > 1:
            pids = [rng.choice(pids)]
        for pid in pids:
            services.signal(pid, signal.SIGKILL)
        return f"{len(pids)} processes"

    return injure


def stopped(role: str, longest_s: float) -> Injure:
    """The processes of a role stand still, and go on."""

    def injure(services: Services, rng: Random) -> str | None:
        seconds = rng.uniform(0.2, longest_s)
        with services.stopped(role):
            time.sleep(seconds)
        return f"{seconds:.1f} s"

    return injure


def weather(link: str, kind: Weather, longest_s: float) -> Injure:
    """A wire turns bad, and good again."""

    def injure(services: Services, rng: Random) -> str | None:
        seconds = rng.uniform(0.2, longest_s)
        services.links[link].turn(kind)
        time.sleep(seconds)
        services.links[link].turn("fair")
        return f"{seconds:.1f} s"

    return injure


def log_disk_full(services: Services, rng: Random) -> str | None:
    """Redis can write a little more, then no more: a record may be cut in the middle."""
    seconds, room = rng.uniform(0.3, 2.0), rng.randrange(3000)
    with services.writing:
        services.limit_files("redis", lambda: services.log_bytes() + room, seconds)
    return f"{room} bytes of room, {seconds:.1f} s"


def store_disk_full(services: Services, rng: Random) -> str | None:
    """The store can write no more; nor can the worker its own log."""
    seconds = rng.uniform(0.3, 2.5)
    services.limit_files("worker" if services.sqlite else "database", lambda: 4096, seconds)
    return f"{seconds:.1f} s"


def store_locked(services: Services, rng: Random) -> str | None:
    """Somebody else has the store locked."""
    seconds = rng.uniform(0.5, 3.0)
    store = sqlite3.connect(services.directory.path / "store.db", timeout=5, isolation_level=None)
    with closing(store), suppress(sqlite3.OperationalError):
        store.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
        store.execute("ROLLBACK")
    return f"{seconds:.1f} s"


def scripts_flushed(services: Services, _: Random) -> str | None:
    """Redis forgets its scripts."""
    with suppress(redis.exceptions.RedisError), services.redis() as client:
        client.script_flush()
    return None


def log_rewritten(services: Services, rng: Random) -> str | None:
    """Redis rewrites its log, and perhaps dies meanwhile."""
    with suppress(redis.exceptions.RedisError), services.redis() as client:
        client.bgrewriteaof()
    dies = rng.random() < 0.5
    if dies:
        time.sleep(rng.uniform(0, 0.1))
        for pid in services.pids("redis"):
            services.signal(pid, signal.SIGKILL)
    return "killed meanwhile" if dies else None


def connections_ended(services: Services, _: Random) -> str | None:
    """Redis ends all connections."""
    with suppress(redis.exceptions.RedisError), services.redis() as client:
        client.client_kill_filter(_type="normal", skipme=True)
    return None


def locks_lost(services: Services, _: Random) -> str | None:
    """Workers lose their locks, as when they have expired: two may work on one shard."""
    with suppress(redis.exceptions.RedisError), services.redis() as client:
        for name in client.scan_iter("*:lock"):
            client.delete(name)
    return None


def wake_ups_lost(services: Services, _: Random) -> str | None:
    """The queue of wake-ups is emptied."""
    with suppress(redis.exceptions.RedisError), services.redis() as client:
        client.delete("rq:queue:seriatim")
    return None


def settings_changed(services: Services, rng: Random) -> str | None:
    """Somebody sets Redis to lose numbers, and sets it right again."""
    seconds = rng.uniform(0.1, 2.5)
    with services.writing, suppress(redis.exceptions.RedisError), services.redis() as client:
        client.config_set("appendfsync", "everysec")
        time.sleep(seconds)
        client.config_set("appendfsync", "always")
    return f"{seconds:.1f} s"


def clock_stepped(services: Services, rng: Random) -> str | None:
    """The clock of the machine jumps by minutes, forward or back."""
    minutes = rng.uniform(-25, 25)
    services.clock.step(minutes * 60)
    return f"now {minutes:+.1f} min"


FAULTS = (
    Fault("API killed", killed("api"), "api", 4),
    Fault("worker killed", killed("worker"), "worker", 4),
    Fault("Redis killed", killed("redis"), "redis", 4),
    Fault("supervisor killed", killed("supervisor"), "supervisor", 3),
    Fault("database killed", killed("database"), "database", 3),
    Fault("API stopped", stopped("api", 3), "api"),
    Fault("worker stopped", stopped("worker", 7), "worker"),
    Fault("Redis stopped", stopped("redis", 7), "redis"),
    Fault("database stopped", stopped("database", 4), "database"),
    Fault("clients slow", weather("http", "slow", 3)),
    Fault("clients cut off", weather("http", "cut", 1)),
    Fault("clients half open", weather("http", "deaf", 2)),
    Fault("Redis slow", weather("redis", "slow", 3), "redis link"),
    Fault("Redis cut off", weather("redis", "cut", 2), "redis link"),
    Fault("Redis silent", weather("redis", "silent", 3), "redis link"),
    Fault("Redis half open", weather("redis", "deaf", 3), "redis link"),
    Fault("database slow", weather("database", "slow", 3), "database"),
    Fault("database cut off", weather("database", "cut", 2), "database"),
    Fault("database silent", weather("database", "silent", 3), "database"),
    Fault("database half open", weather("database", "deaf", 3), "database"),
    Fault("log's disk full", log_disk_full, share=3),
    Fault("store's disk full", store_disk_full, share=3),
    Fault("store locked", store_locked, "store file"),
    Fault("scripts flushed", scripts_flushed),
    Fault("log rewritten", log_rewritten),
    Fault("connections ended", connections_ended),
    Fault("locks lost", locks_lost),
    Fault("wake-ups lost", wake_ups_lost),
    Fault("settings changed", settings_changed, share=1),
    Fault("clock stepped", clock_stepped),
)
"""All of them."""


def draw(services: Services, rng: Random, count: int) -> list[Fault]:
    """Returns so many faults that fit, every kind before any comes out of its turn."""
    fitting = [fault for fault in FAULTS if services.fits(fault.needs)]
    drawn: list[Fault] = []
    while len(drawn) < count:
        bag = [fault for fault in fitting for _ in range(fault.share)] if drawn else list(fitting)
        rng.shuffle(bag)
        drawn += bag
    return drawn[:count]
