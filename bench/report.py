"""The results as Markdown and pictures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

import plots
from client import Run
from contenders import BARE, BESIDE, NAMES, TITLES
from guard import KEY, TOKEN, WITHOUT
from puts import MAIN, OTHERS, SHARE, TWO, Cell
from results import Results, spread
from targets import targets

ROUNDS = dict.fromkeys(("puts", "open", "batches", "guard"), "{rounds} of {seconds:g} s") | {
    "cells": "{rounds_of_others} of {seconds_of_others:g} s",
    "sustained": "{seconds_sustained:g} s at each rate",
    "steady": "{seconds_sustained:g} s a line",
    "settlement": "{drained:,} entries each",
    "growth": "{rounds} of {seconds_of_others:g} s",
    "clients": "{rounds_of_others} of {seconds:g} s",
}
"""Of a part: how often and how long, by its options."""
PERCENTILES = ("p50", "p90", "p99", "p999")
MIB = 2**20
ABOUT = """\
Client, API processes, databases and workers share the cores. Figures are medians, with the smallest and the largest of
the rounds; ratios are of runs in the same round. In each round every contender is started afresh and has its turn;
every answer is 200, and where numbers are kept, they are on disk before it. [How](../README.md)."""


def write(results: Results, directory: Path) -> None:
    """Writes README.md and the pictures."""
    for name, picture in _pictures(results).items():
        (directory / f"{name}.svg").write_text(picture)
    (directory / "README.md").write_text("\n".join(_lines(results)) + "\n")


def text(results: Results) -> str:
    """Returns the tables."""
    return "\n".join(line for line in _lines(results) if not line.startswith("![")) + "\n"


def reached(results: Results) -> str:
    """Returns the table of targets alone."""
    return "\n".join(_targets(results))


def _lines(results: Results) -> Iterator[str]:
    yield from ("# Measurements", "", "Written by `make bench`; [measured.json](measured.json) has every run.", "")
    yield from _table(("", ""), results.about.items())
    rows = [
        (name, stage.at, stage.commit, ROUNDS[name].format(**msgspec.structs.asdict(stage.options)), stage.disk)
        for name, stage in results.stages.items()
    ]
    yield from _table(("part", "measured", "commit", "rounds", "disk"), rows)
    yield from (ABOUT, "", "## To reach", "", *_targets(results))
    for part in (_puts, _cells, _open, _sustained, _steady, _batches, _settlement, _growth, _guard, _clients):
        yield from part(results)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def _targets(results: Results) -> Iterator[str]:
    yield "| | limit | measured | |"
    yield "|---|---|---|---|"
    yield from (target.row for target in targets(results))
    yield ""


def _by_group(runs: Sequence[Run], of: Callable[[Run], dict[str, float]]) -> dict[str, float]:
    groups = dict.fromkeys(group for run in runs for group in of(run))
    return {group: statistics.median(of(run).get(group, 0.0) for run in runs) for group in groups}


def _cpu(run: Run) -> dict[str, float]:
    return run.cpu_s


def _memory(run: Run) -> dict[str, float]:
    return {group: size / MIB for group, size in run.memory_bytes.items()}


def _said(groups: dict[str, float], digits: int) -> str:
    return ", ".join(f"{group} {value:,.{digits}f}" for group, value in groups.items() if round(value, digits))


def _puts(results: Results) -> Iterator[str]:
    if not results.puts:
        return
    yield from ("## PUT of an entry, 64 connections, one series", "", "![](throughput.svg)", "", "![](latency.svg)", "")
    runs = {name: [put.run for put in results.of(name)] for name in NAMES if results.of(name)}
    rows = []
    for name, done in runs.items():
        ratios = [one.per_s / bare.per_s for one, bare in results.pairs(name, BARE)]
        latencies = [spread((getattr(run, field) for run in done), 1) for field in PERCENTILES]
        rows.append((TITLES[name], spread(run.per_s for run in done), spread(ratios, 3), *latencies))
    yield from _table(("", "PUT/s", "over bare", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms"), rows)
    if BESIDE in runs:
        settled = spread(run.settled_per_s for run in runs[BESIDE])
        yield from (f"The one worker beside settled {settled} entries/s meanwhile.", "")
    yield from ("![](cpu.svg)", "", "![](memory.svg)", "")
    rows = []
    for name, done in runs.items():
        total = spread((sum(run.cpu_s.values()) for run in done), 3)
        client = spread((run.client_cpu_s for run in done), 3)
        memory = _said(_by_group(done, _memory), 0)
        size = f"{statistics.median(run.answer_bytes for run in done):.0f}"
        rows.append((TITLES[name], total, _said(_by_group(done, _cpu), 3), client, memory, size))
    head = ("", "CPU s per 1,000 numbers", "of which", "client's", "memory (PSS), MiB", "bytes of an answer")
    yield from _table(head, rows)


def _cells(results: Results) -> Iterator[str]:
    if not results.cells:
        return
    yield from ("## Other numbers of connections, series and API processes: PUT/s", "", "![](connections.svg)", "")
    names = [name for name in NAMES if any(put.contender == name for put in results.cells)]
    cells = (*OTHERS, TWO)
    rows = [
        (TITLES[name], *(spread(put.run.per_s for put in results.of(name, cell)) for cell in cells)) for name in names
    ]
    yield from _table(("", *map(_titled, cells)), rows)
    if BESIDE in names:
        settled = [spread(put.run.settled_per_s for put in results.of(BESIDE, cell)) for cell in cells]
        yield from _table(("entries/s settled meanwhile", *map(_titled, cells)), [(TITLES[BESIDE], *settled)])


def _titled(cell: Cell) -> str:
    if cell == TWO:
        return f"{cell.processes} API processes"
    return (
        f"{cell.series:,} series" if cell.series > 1 else f"{cell.connections} connection{'s' * (cell.connections > 1)}"
    )


def _open(results: Results) -> Iterator[str]:
    if not results.open:
        return
    rate = results.open[0].rate
    yield from (f"## Open loop at {rate:,.0f} PUT/s, half of our maximum", "")
    rows = []
    for name in dict.fromkeys(one.contender for one in results.open):
        runs = [one.run for one in results.open if one.contender == name]
        latencies = [spread((getattr(run, field) for run in runs), 2) for field in PERCENTILES]
        rows.append(
            (TITLES[name], spread(run.per_s for run in runs), *latencies, str(sum(run.unanswered for run in runs)))
        )
    yield from _table(("", "answered/s", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "never answered"), rows)
    yield from ("Requests fall due at random (Poisson), and wait for one of 64 connections if need be.", "")


def _sustained(results: Results) -> Iterator[str]:
    if not results.sustained:
        return
    yield from ("## The rate that one worker keeps up with, all on this machine", "")
    rows = [
        (
            f"{step.rate:,.0f}",
            f"{step.run.per_s:,.0f}",
            f"{step.run.p50:.1f}",
            f"{step.run.p99:.1f}",
            f"{step.run.settled_per_s:,.0f}",
            f"{step.run.backlog:,}",
            "yes" if step.holds else "no",
        )
        for step in sorted(results.sustained, key=lambda step: step.rate)
    ]
    yield from _table(
        ("due/s", "answered/s", "p50 ms", "p99 ms", "settled/s", "left waiting", "less than 2 s of work"), rows
    )


def _steady(results: Results) -> Iterator[str]:
    if results.steady is None:
        return
    yield from (f"## At {results.steady.rate:,.0f} PUT/s, {SHARE:.0%} of our maximum, one worker beside", "")
    groups = ("API", "worker", "Valkey")
    rows = [
        (
            f"{run.per_s:,.0f}",
            f"{run.settled_per_s:,.0f}",
            f"{run.backlog:,}",
            f"{run.p50:.1f}",
            f"{run.p99:.1f}",
            *(f"{run.memory_bytes.get(group, 0) / MIB:,.0f}" for group in groups),
        )
        for run in results.steady.stretches
    ]
    head = ("answered/s", "settled/s", "left waiting", "p50 ms", "p99 ms", *(f"{group}, MiB" for group in groups))
    yield from _table(head, rows)
    yield from ("The lines follow one another in one series; what the worker has signed stays in Redis' index.", "")


def _batches(results: Results) -> Iterator[str]:
    if not results.batches:
        return
    yield from ("## Batches of 100 (POST .../entries)", "")
    rows = [
        ("API, one process, 8 connections", spread(one.run.numbers_per_s for one in results.batches)),
        ("bare script, 8 connections", spread(one.script_per_s for one in results.batches)),
        ("bare script, 1 connection", spread(one.script_alone_per_s for one in results.batches)),
    ]
    yield from _table(("", "numbers/s"), rows)


def _settlement(results: Results) -> Iterator[str]:
    if results.settlement is None:
        return
    yield from ("## One worker, on an otherwise idle machine", "")
    rows = [
        (one.store, *(f"{count:,.0f}" for count in (one.held, one.drained, one.series, one.per_s)), f"{one.cpu_s:.3f}")
        for one in results.settlement.drains
    ]
    yield from _table(("store", "entries before", "settled", "of series", "entries/s", "its CPU s per 1,000"), rows)
    waiting, settled = results.settlement.waiting_bytes, results.settlement.settled_bytes
    yield f"Redis: {waiting:,.0f} bytes of an entry that waits, {settled:,.1f} of a settled one."
    yield ""


def _growth(results: Results) -> Iterator[str]:
    if (grown := results.growth) is None:
        return
    yield from (f"## A series of {grown.entries:,} entries, and {grown.series:,} series", "")
    rows = []
    places = list(dict.fromkeys(one.place for one in grown.grown))
    for connections in (1, MAIN.connections):
        for place in places:
            runs = [one.run for one in grown.grown if (one.place, one.connections) == (place, connections)]
            figures = [spread((getattr(run, field) for run in runs), 2) for field in ("p50", "p99")]
            rows.append((place, str(connections), spread(run.per_s for run in runs), *figures))
    yield from _table(("", "connections", "PUT/s", "p50 ms", "p99 ms"), rows)
    first, deep = (spread((getattr(page, field) for page in grown.pages), 2) for field in ("first_ms", "deep_ms"))
    yield from (
        f"A page of 100 entries takes {first} ms at the beginning of the long series, {deep} ms at its end.",
        "",
    )


def _guard(results: Results) -> Iterator[str]:
    if not results.guard:
        return
    yield from ("## What authentication, scopes and limits cost a PUT", "")
    rows = []
    for name in (WITHOUT, KEY, TOKEN):
        runs = [one.run for one in results.guard if one.credentials == name]
        cpu = spread((sum(run.cpu_s.values()) for run in runs), 3)
        rows.append((name, spread(run.per_s for run in runs), cpu))
    yield from _table(("", "PUT/s", "CPU s of the API per 1,000"), rows)


def _clients(results: Results) -> Iterator[str]:
    if not results.clients:
        return
    yield from ("## The client beside wrk", "")
    rows = []
    for name in dict.fromkeys(one.contender for one in results.clients):
        both = [(one.ours, one.wrk) for one in results.clients if one.contender == name]
        for client, runs in zip(("client.c", "wrk"), zip(*both, strict=True), strict=True):
            figures = [spread((getattr(one, field) for one in runs), 1) for field in ("p50", "p99")]
            cpu = spread((one.cpu_s for one in runs), 4)
            rows.append((f"{TITLES[name]}: {client}", spread(one.per_s for one in runs), *figures, cpu))
    yield from _table(("", "PUT/s", "p50 ms", "p99 ms", "the client's CPU s per 1,000"), rows)


def _pictures(results: Results) -> dict[str, str]:
    runs = {TITLES[name]: [put.run for put in results.of(name)] for name in NAMES if results.of(name)}
    if not runs:
        return {}
    main = "64 connections, one series, one API process; median"
    spread_of = f"{main}, smallest and largest"
    latency = {
        name: [statistics.median(getattr(run, field) for run in done) for field in PERCENTILES]
        for name, done in runs.items()
    }
    cpu = {name: _by_group(done, _cpu) for name, done in runs.items()}
    memory = {name: _by_group(done, _memory) for name, done in runs.items()}
    return {
        "throughput": plots.bars(
            "PUT/s", spread_of, {name: [run.per_s for run in done] for name, done in runs.items()}
        ),
        "latency": plots.lines("Latency of a PUT, ms", main, ("p50", "p90", "p99", "p99.9"), latency),
        "cpu": plots.stacked("CPU seconds per 1,000 numbers", main, cpu),
        "memory": plots.stacked("Memory at the end of a run, MiB (PSS)", main, memory),
        "connections": _by_connections(results),
    }


def _by_connections(results: Results) -> str:
    ticks = [cell for cell in (OTHERS[0], OTHERS[1], MAIN, OTHERS[2]) if results.of(BARE, cell)]
    rows = {
        TITLES[name]: [statistics.median(put.run.per_s for put in results.of(name, cell)) for cell in ticks]
        for name in NAMES
    }
    return plots.lines("PUT/s by connections", "one series", [str(cell.connections) for cell in ticks], rows)
