"""A load test from beginning to end: series, load, audit, summary."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Self

from seriatim.errors import ConfigError
from seriatim.load import report
from seriatim.load.audit import SERIES_AT_ONCE, Audited, Service, audit
from seriatim.load.book import Books, Findings, Lane
from seriatim.load.children import Children, Done, unknown_ids
from seriatim.load.figures import Figures, Row
from seriatim.load.options import Options
from seriatim.load.report import Harness, Summary
from seriatim.load.requests import Scene, read_metas
from seriatim.load.sender import Plan
from seriatim.load.target import Target

BACKLOG_EVERY_S = 1.0


def run(options: Options, say: Callable[[str], None]) -> Summary:
    """Loads a service, audits it, and returns what came out.

    Args:
        options: what to do.
        say: is told, line by line, how it goes.

    Raises:
        ConfigError: the service cannot be reached, or does not let us in.
    """
    if options.processes > options.connections:
        raise ConfigError(f"{options.processes} processes need as many --connections at least.")
    target = Target(options)
    metas = read_metas(options.data)
    weights = options.weights
    lanes = _lanes(target, options)
    scene = Scene(
        options.address, options.key, [one.id for one in lanes], options.zipf, metas, weights, options.batch_size
    )
    with Children(_plans(options, scene)) as children:
        figures = Figures(len(children))
        done = _drive(children, figures, target, options, say)
        if not any(one.entries or one.findings.counts for one in done):
            seen = ", ".join(f"{count} {why}" for why, count in figures.errors.items())
            raise ConfigError(f"Not one number was issued ({seen or 'no time for it'}). Is the service ready?")
        books = _books(children, lanes, done)
        say(f"auditing {sum(sheet.told for sheet in books.sheets)} entries")
        audited = audit(Service(target, children, metas, options.settle), books)
    audited.replays = sum(one.replays for one in done)
    return _summary(options, figures, done, books.findings, audited)


def _lanes(target: Target, options: Options) -> list[Lane]:
    with ThreadPoolExecutor(SERIES_AT_ONCE) as pool:
        if options.series:
            return list(pool.map(target.find_series, dict.fromkeys(options.series)))
        names = [f"Load test, series {number + 1} of {options.series_count}" for number in range(options.series_count)]
        return list(pool.map(target.make_series, names))


def _plans(options: Options, scene: Scene) -> list[Plan]:
    """Shares the load among the processes."""
    processes = options.processes
    return [
        Plan(
            scene=scene,
            connections=_share(options.connections, number, processes),
            rate=options.rate / processes if options.rate else None,
            delay_s=number / options.rate if options.rate else 0.0,
            count=None if options.count is None else _share(options.count, number, processes),
            seconds=options.seconds,
            warm_up_s=options.warm_up,
            deadline_s=options.deadline,
        )
        for number in range(processes)
    ]


def _share(whole: int, number: int, parts: int) -> int:
    return whole // parts + (number < whole % parts)


def _drive(
    children: Children, figures: Figures, target: Target, options: Options, say: Callable[[str], None]
) -> list[Done]:
    """Lets the children send, and says every second how it goes."""
    done: list[Done] = []
    children.start()
    with _interruptible(children.stop), Backlog(target) as backlog:
        for message in children.messages():
            if isinstance(message, Done):
                done.append(message)
                continue
            row = figures.take(message, backlog.last)
            if row is not None:
                say(_line(row, options.warm_up))
    figures.finish()
    return done


def _line(row: Row, warm_up_s: float) -> str:
    parts = [f"{row.second + 1:>4} s"]
    if row.second < warm_up_s:
        parts.append("warming up")
    else:
        parts.append(f"{row.per_s:,.0f}/s")
        parts.append(f"p50 {row.p50_ms:.2f} ms  p99 {row.p99_ms:.2f} ms  p99.9 {row.p999_ms:.2f} ms")
    parts.append(f"errors {sum(row.errors.values())}")
    if row.backlog is not None:
        parts.append(f"backlog {row.backlog:,}")
    return "  ".join(parts)


@contextmanager
def _interruptible(stop: Callable[[], None]) -> Iterator[None]:
    """Makes the first Ctrl-C end the load early, and the audit still follow; the second one ends all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupted(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        stop()

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Backlog:
    """Asks every second how many records wait for the store; None while the service does not tell it."""

    def __init__(self, target: Target) -> None:
        self.last: int | None = None
        self._target = target
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _ask(self) -> None:
        self.last = self._target.backlog()
        while not self._over.wait(BACKLOG_EVERY_S):
            self.last = self._target.backlog()


def _books(children: Children, lanes: list[Lane], done: list[Done]) -> Books:
    """Collects what all processes were told."""
    books = Books(lanes, sum(one.entries for one in done))
    for one in done:
        books.findings.merge(one.findings)
        for series, entry_id in unknown_ids(one.unknown):
            books.sheets[series].unknown.add(entry_id)
    for piece in children.records():
        books.take(piece)
    return books


def _summary(options: Options, figures: Figures, done: list[Done], findings: Findings, audited: Audited) -> Summary:
    seconds = max(max(one.seconds for one in done) - options.warm_up, 0.001)
    requests = figures.by_kind(seconds)
    sizes = {"new": 1, "batch": options.batch_size}
    return Summary(
        started_at=figures.started_at,
        sound=not findings.counts,
        findings=findings.told,
        found=findings.counts,
        entries=audited.entries,
        seconds=round(seconds, 3),
        numbers_per_s=round(sum(requests[kind].per_s * size for kind, size in sizes.items() if kind in requests), 1),
        requests=requests,
        errors=dict(figures.errors),
        audit=audited,
        harness=Harness(
            cpu_s=round(sum(one.cpu_s for one in done), 3),
            busiest=round(max(one.cpu_s / one.seconds for one in done), 3),
            rss_bytes_max=max(one.rss_bytes for one in done),
        ),
        options=report.described(options),
        machine=report.machine(),
        rows=figures.rows,
        bars=figures.bars(),
    )
