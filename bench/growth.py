"""What a long series and many series cost: the latency of a PUT, the pages of a list, bytes in Redis."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from http.client import HTTPConnection

import msgspec

from client import Load, Run, run
from contenders import Arena
from options import Options, turned
from parts import Front, Parts

SMALL = 1000
SHORT, LONG, ONE, MANY = PLACES = "1,000 entries, one series", "long series", "one of many series", "many series"
"""Where PUTs go; those to many series are spread over all of them."""
LIMIT = 100


class Grown(msgspec.Struct, frozen=True):
    """One run."""

    round: int
    place: str
    connections: int
    run: Run


class Pages(msgspec.Struct, frozen=True):
    """How long a page takes, in ms: the first one, and the last of a long series."""

    first_ms: float
    deep_ms: float


class Growth(msgspec.Struct, frozen=True):
    """What was measured, and of how much."""

    entries: int
    series: int
    grown: list[Grown]
    pages: list[Pages]
    series_bytes: float


def measure(arena: Arena, options: Options) -> Growth:
    """Makes three settings side by side, and measures the places in them in turn."""
    with contextlib.ExitStack() as stack:
        fronts: dict[str, tuple[Front, list[str]]] = {}
        settings = (SHORT, LONG, MANY)
        made = {place: stack.enter_context(contextlib.closing(Parts(arena.directory()))) for place in settings}
        for place, parts in made.items():
            front = stack.enter_context(parts.front())
            fronts[place] = (front, front.create_series(1))
        entries = _lengthen(made[LONG], *fronts[LONG], options.entries)
        options.say(f"a series of {entries:,} entries")
        front, _ = fronts[MANY]
        series, series_bytes = _multiply(made[MANY], front, options.series)
        fronts[MANY] = (front, series)
        options.say(f"{len(series):,} series")
        grown = []
        for number in range(options.rounds):
            front, _ = fronts[SHORT]
            fronts[SHORT] = (front, front.create_series(1))
            run(*fronts[SHORT], Load(1, 0.05, batch=SMALL, warm_up_s=0))
            fronts[ONE] = (fronts[MANY][0], [series[number]])
            for place in turned(PLACES, number):
                for connections in (1, 64):
                    done = run(*fronts[place], Load(connections, options.seconds_of_others))
                    grown.append(Grown(number, place, connections, done))
        made[LONG].settle()
        front, (long,) = fronts[LONG]
        return Growth(entries, len(series), grown, _pages(front, long, options.pages), series_bytes)


def _lengthen(parts: Parts, front: Front, series: Sequence[str], count: int) -> int:
    settled = 1
    while settled < count:
        settled += parts.fill(front, series, min(count - settled, 500_000))
        parts.settle()
    return settled


def _multiply(parts: Parts, front: Front, count: int) -> tuple[list[str], float]:
    """Returns series, each with one settled entry, and how many bytes of Redis one takes."""
    parts.settle()
    before = parts.redis_bytes()
    series = parts.copy_series(front, count)
    front.begin(series)
    parts.settle()
    return series, (parts.redis_bytes() - before) / count


def _pages(front: Front, series: str, times: int) -> list[Pages]:
    with contextlib.closing(HTTPConnection("127.0.0.1", front.port)) as connection:
        first = f"/sequence/v1/series/{series}/entries?limit={LIMIT}"
        walked = [first]
        while cursor := _cursor(front, connection, walked[-1].replace(f"limit={LIMIT}", "limit=1000")):
            walked.append(f"{first}&cursor={cursor}")
        deep = walked[-2]  # the last one may be short
        return [Pages(*(_took_ms(front, connection, path) for path in (first, deep))) for _ in range(times)]


def _cursor(front: Front, connection: HTTPConnection, path: str) -> str:
    content = json.loads(front.ask(connection, "GET", path))
    return str(content.get("cursor", ""))


def _took_ms(front: Front, connection: HTTPConnection, path: str) -> float:
    began = time.perf_counter()
    front.ask(connection, "GET", path)
    return (time.perf_counter() - began) * 1000
