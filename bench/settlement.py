"""One worker: how fast it drains into either store that holds entries already, and what is left in Redis."""

from __future__ import annotations

from contextlib import closing

import msgspec

from client import Load, run
from contenders import Arena
from options import Options
from parts import Front, Parts

ROUNDS = 3
SERIES, FEW = 3000, 3
"""So many series, with about so many entries each that wait, are drained as well."""
FIRST = 2000
"""Entries that are settled before memory is first looked at: what scripts and jobs take is there by then."""


class Drain(msgspec.Struct, frozen=True):
    """One drain."""

    store: str
    held: int
    """Entries that the store had."""
    drained: int
    per_s: float
    cpu_s: float
    """CPU seconds of the worker for 1,000 entries."""
    series: int = 1
    """Series that the entries are of."""


class Settlement(msgspec.Struct, frozen=True):
    """What was measured; bytes are of an entry."""

    drains: list[Drain]
    waiting_bytes: float
    settled_bytes: float
    settled: int


def measure(arena: Arena, options: Options) -> Settlement:
    """Fills a store, then measures drains into it; first SQLite, then PostgreSQL."""
    drains: list[Drain] = []
    with closing(Parts(arena.directory())) as parts, parts.front() as front:
        waiting, settled, count = _fill(parts, front, options, "SQLite", drains)
    server = arena.postgresql()
    store_url = f"postgresql+psycopg://postgres@/bench?host={server.directory}"
    with closing(Parts(arena.directory(), store_url)) as parts, parts.front() as front:
        _fill(parts, front, options, "PostgreSQL", drains)
    return Settlement(drains, waiting, settled, count)


def _fill(parts: Parts, front: Front, options: Options, store: str, drains: list[Drain]) -> tuple[float, float, int]:
    """Returns the bytes of a waiting entry and of a settled one, and how many are settled."""
    series = front.create_series(1)
    held = 1 + parts.fill(front, series, FIRST)
    parts.settle()
    empty, first = parts.redis_bytes(), held
    waiting = parts.fill(front, series, options.settled)
    waiting_bytes = (parts.redis_bytes() - empty) / waiting
    per_s, cpu_s = parts.drain()
    drains.append(Drain(store, held, waiting, per_s, cpu_s))
    held += waiting
    settled_bytes = (parts.redis_bytes() - empty) / (held - first)
    settled = held
    for _ in range(ROUNDS):
        drained = parts.fill(front, series, options.drained)
        per_s, cpu_s = parts.drain()
        drains.append(Drain(store, held, drained, per_s, cpu_s))
        held += drained
        options.say(f"{store} with {held:,} entries")
    many = parts.copy_series(front, SERIES)
    front.begin(many)
    parts.settle()
    held += SERIES
    for _ in range(ROUNDS):
        while (drained := parts.backlog()) < SERIES * FEW:
            run(front, many, Load(connections=64, seconds=0.2, warm_up_s=0))
        per_s, cpu_s = parts.drain()
        drains.append(Drain(store, held, drained, per_s, cpu_s, SERIES))
        held += drained
    return waiting_bytes, settled_bytes, settled
