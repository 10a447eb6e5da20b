"""What is to be reached, and whether it is: by the median, of ratios within a round where two are compared."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import msgspec

from client import Run
from contenders import BARE, BATCHED, BESIDE, DJANGO, EACH, PAUSED, REDIS
from growth import LONG, MANY, ONE, SHORT
from guard import KEY, TOKEN, WITHOUT
from puts import MAIN
from results import Results, spread

BATCH_PER_S, BATCH_SHARE = 100_000, 0.6


class Target(msgspec.Struct, frozen=True):
    """A figure that is to be at least, or at most, a limit."""

    name: str
    limit: float
    values: list[float]
    at_least: bool = True
    digits: int = 2

    @property
    def reached(self) -> bool:
        """Whether the median is on the right side."""
        median = statistics.median(self.values)
        return median >= self.limit if self.at_least else median <= self.limit

    @property
    def row(self) -> str:
        """Its line of the table."""
        sign = "≥" if self.at_least else "≤"
        said = "reached" if self.reached else "**not reached**"
        return f"| {self.name} | {sign} {self.limit:,g} | {spread(self.values, self.digits)} | {said} |"


def targets(results: Results) -> list[Target]:
    """Returns those targets of which there are measurements."""
    found = [*_puts(results), *_open(results), *_batches(results), *_scale(results), *_guard(results)]
    return [target for target in found if target.values]


def _puts(results: Results) -> Iterator[Target]:
    def ratios(ours: str, theirs: str, of: Callable[[Run], float] = lambda run: run.per_s) -> list[float]:
        return [of(one) / of(two) for one, two in results.pairs(ours, theirs)]

    yield Target("PUT/s, workers paused, over the bare ASGI app", 0.60, ratios(PAUSED, BARE))
    drained = [min(ours.per_s, ours.settled_per_s) / bare.per_s for ours, bare in results.pairs(BESIDE, BARE)]
    yield Target("PUT/s that one worker beside settles at once, over the bare ASGI app", 0.35, drained)
    yield Target("PUT/s, workers paused, over Redis with a call each", 3, ratios(PAUSED, REDIS))
    yield Target("PUT/s, workers paused, over django-sequences", 20, ratios(PAUSED, DJANGO))
    yield Target("PUT/s, workers paused, over PostgreSQL with a transaction each", 10, ratios(PAUSED, EACH))
    yield Target("PUT/s, workers paused, over PostgreSQL, batched", 1.25, ratios(PAUSED, BATCHED))
    p99 = ratios(PAUSED, BATCHED, lambda run: run.p99)
    yield Target("p99 of a PUT, workers paused, over PostgreSQL, batched", 1, p99, at_least=False)


def _open(results: Results) -> Iterator[Target]:
    runs = {name: [one.run for one in results.open if one.contender == name] for name in (PAUSED, BARE)}
    for field, limit in (("p50", 2), ("p99", 3)):
        pairs = zip(runs[PAUSED], runs[BARE], strict=bool(runs[PAUSED] and runs[BARE]))
        ratios = [getattr(ours, field) / getattr(bare, field) for ours, bare in pairs]
        name = f"{field} of a PUT at half of our maximum, workers paused, over the bare ASGI app at that rate"
        yield Target(name, limit, ratios, at_least=False)


def _batches(results: Results) -> Iterator[Target]:
    shares = []
    for one in results.batches:
        script = max(one.script_per_s, one.script_alone_per_s)
        shares.append(one.run.numbers_per_s / min(BATCH_PER_S, BATCH_SHARE * script))
    name = f"numbers/s by batches of 100, over the lower of {BATCH_PER_S:,} and {BATCH_SHARE} of the bare script"
    yield Target(name, 1, shares)


def _scale(results: Results) -> Iterator[Target]:
    if (measured := results.settlement) is not None:
        for store in ("SQLite", "PostgreSQL"):
            drains = [drain for drain in measured.drains if (drain.store, drain.series) == (store, 1)][1:]
            held = f"{drains[0].held:,}"
            name = f"entries/s that one worker settles into {store}, which has {held}"
            yield Target(name, 15_000, [drain.per_s for drain in drains], digits=0)
        name = f"Redis bytes of a settled entry, of {measured.settled:,}"
        yield Target(name, 40, [measured.settled_bytes], at_least=False, digits=1)
    if (grown := results.growth) is not None:
        name = f"Redis bytes of an idle series, of {grown.series:,}"
        yield Target(name, 400, [grown.series_bytes], at_least=False, digits=0)
        places = {
            LONG: f"in a series of {grown.entries:,}",
            ONE: f"in one of {grown.series:,} series",
            MANY: f"spread over {grown.series:,} series",
        }
        for place, what in places.items():
            for connections in (1, MAIN.connections):
                runs = [
                    [one.run.p50 for one in grown.grown if (one.place, one.connections) == (where, connections)]
                    for where in (place, SHORT)
                ]
                ratios = [large / small for large, small in zip(*runs, strict=bool(runs[0]))]
                name = f"p50 of a PUT {what}, {connections} connections, over {SHORT}"
                yield Target(name, 1.15, ratios, at_least=False)
        pages = [page.deep_ms / page.first_ms for page in grown.pages]
        name = f"time of the last page of {grown.entries:,} entries over the first page"
        yield Target(name, 1.5, pages, at_least=False)


def _guard(results: Results) -> Iterator[Target]:
    rates = {
        name: [one.run.per_s for one in results.guard if one.credentials == name] for name in (WITHOUT, KEY, TOKEN)
    }
    for name in (KEY, TOKEN):
        ratios = [guarded / bare for guarded, bare in zip(rates[name], rates[WITHOUT], strict=True)]
        yield Target(f"PUT/s by {name} over the same without authentication", 0.95, ratios)
