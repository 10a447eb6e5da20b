"""Rates and latencies: an HDR histogram for each kind of request, and a row for each second."""

from __future__ import annotations

import time
from array import array
from collections import Counter

import msgspec
from hdrh.histogram import HdrHistogram

from seriatim.load.sender import Tick
from seriatim.model import timestamp

LATENCY_US_MAX = 3_600_000_000
DIGITS = 3
PERCENTILES = {"p50_ms": 50.0, "p90_ms": 90.0, "p99_ms": 99.0, "p999_ms": 99.9, "max_ms": 100.0}


class Latencies(msgspec.Struct, frozen=True):
    """How long requests took, from when they were due."""

    count: int
    per_s: float
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


class Row(msgspec.Struct, frozen=True):
    """About a second of a run; `answered` and latencies without warm-up."""

    second: int
    length_s: float
    answered: int
    per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    errors: dict[str, int]
    backlog: int | None


class Bar(msgspec.Struct, frozen=True):
    """How many requests took up to so long, and longer than the bar before."""

    to_ms: float
    count: int


class Figures:
    """What all processes measured.

    Args:
        processes: how many tell.
    """

    def __init__(self, processes: int) -> None:
        self.started_at = timestamp(time.time_ns() // 1_000_000)
        self.rows: list[Row] = []
        self.errors: Counter[str] = Counter()
        self._processes = processes
        self._kinds: dict[str, HdrHistogram] = {}
        self._all = _histogram()
        self._open: dict[int, list[Tick]] = {}

    def take(self, tick: Tick, backlog: int | None) -> Row | None:
        """Takes what a process measured; returns the row of a second when all have told it."""
        told = self._open.setdefault(tick.second, [])
        told.append(tick)
        return self._close(tick.second, backlog) if len(told) == self._processes else None

    def finish(self) -> None:
        """Closes the last seconds, which not all processes reached."""
        for second in sorted(self._open):
            self._close(second, None)

    def _close(self, second: int, backlog: int | None) -> Row:
        together = _histogram()
        errors: Counter[str] = Counter()
        ticks = self._open.pop(second)
        for tick in ticks:
            errors.update(tick.errors)
            for kind, raw in tick.latencies_us.items():
                taken = _recorded(raw)
                self._kinds.setdefault(kind, _histogram()).add(taken)
                together.add(taken)
        self._all.add(together)
        self.errors += errors
        length_s = max(tick.length_s for tick in ticks)
        row = Row(
            second=second,
            length_s=round(length_s, 3),
            answered=together.total_count,
            per_s=round(together.total_count / length_s, 1),
            **_percentiles(together),
            errors=dict(errors),
            backlog=backlog,
        )
        self.rows.append(row)
        return row

    def by_kind(self, seconds: float) -> dict[str, Latencies]:
        """Returns the figures of each kind of request, and of all together."""
        named = {**self._kinds, "all": self._all} if len(self._kinds) != 1 else self._kinds
        return {kind: _latencies(histogram, seconds) for kind, histogram in named.items()}

    def bars(self) -> list[Bar]:
        """Returns all latencies in bars that grow by a tenth of a power of ten."""
        counts: Counter[int] = Counter()
        for item in self._all.get_recorded_iterator():
            tenths = 0
            while 10 ** (tenths / 10) < item.value_iterated_to:
                tenths += 1
            counts[tenths] += item.count_added_in_this_iter_step
        if not counts:
            return []
        return [Bar(round(10 ** (at / 10) / 1000, 4), counts[at]) for at in range(min(counts), max(counts) + 1)]


def _latencies(histogram: HdrHistogram, seconds: float) -> Latencies:
    return Latencies(
        count=histogram.total_count,
        per_s=round(histogram.total_count / seconds, 1),
        mean_ms=round(histogram.get_mean_value() / 1000, 3),
        **_percentiles(histogram),
    )


def _percentiles(histogram: HdrHistogram) -> dict[str, float]:
    values = histogram.get_percentile_to_value_dict(list(PERCENTILES.values())) if histogram.total_count else {}
    return {name: values.get(percentile, 0) / 1000 for name, percentile in PERCENTILES.items()}


def _histogram() -> HdrHistogram:
    return HdrHistogram(1, LATENCY_US_MAX, DIGITS)


def _recorded(raw: bytes) -> HdrHistogram:
    histogram = _histogram()
    for value, count in Counter(array("Q", raw)).items():
        histogram.record_value(min(value, LATENCY_US_MAX), count)
    return histogram
