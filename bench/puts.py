"""Rounds of PUT requests: every contender in turn, round after round, so that a drift of the machine favours none."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import msgspec

from client import Checked, Load, Run, run, run_wrk
from contenders import BARE, BATCHED, BESIDE, NAMES, PAUSED, SYNCED, Arena
from options import Options, turned

SERIES = 1000


class Cell(msgspec.Struct, frozen=True, order=True):
    """Under what a contender was run."""

    connections: int = 64
    series: int = 1
    processes: int = 1


MAIN = Cell()
OTHERS = (Cell(connections=1), Cell(connections=16), Cell(connections=256), Cell(series=SERIES))
TWO = Cell(processes=2)
OF_TWO = (BARE, PAUSED, BESIDE, BATCHED)
"""Who is run with two API processes. Django always has two and more."""


class Put(msgspec.Struct, frozen=True):
    """One run."""

    round: int
    contender: str
    cell: Cell
    run: Run


def measure(arena: Arena, options: Options) -> list[Put]:
    """Measures the contenders with 64 connections and one series."""
    puts: list[Put] = []
    for number in range(options.rounds):
        for name in turned(options.chosen(NAMES), number):
            puts += _measure(arena, name, number, [MAIN], options.seconds)
        options.say(f"round {number + 1} of {options.rounds}")
    return puts


def measure_cells(arena: Arena, options: Options) -> list[Put]:
    """Measures them with other numbers of connections, series and API processes."""
    puts: list[Put] = []
    for number in range(options.rounds_of_others):
        for name in turned(options.chosen(NAMES), number):
            puts += _measure(arena, name, number, OTHERS, options.seconds_of_others)
        for name in turned(options.chosen(OF_TWO), number):
            puts += _measure(arena, name, number, [TWO], options.seconds_of_others)
        options.say(f"round {number + 1} of {options.rounds_of_others}")
    return puts


def _measure(arena: Arena, name: str, number: int, cells: Sequence[Cell], seconds: float) -> Iterator[Put]:
    with arena.running(name, cells[0].processes) as contender:
        for cell in cells:
            series = contender.create_series(cell.series)
            yield Put(number, name, cell, run(contender, series, Load(cell.connections, seconds)))


# open loop --------------------------------------------------------------------------------------------------------


class Opened(msgspec.Struct, frozen=True):
    """One run at a fixed rate."""

    round: int
    contender: str
    rate: float
    run: Run


OF_OPEN = (BARE, SYNCED, PAUSED, BESIDE, BATCHED)


def measure_open(arena: Arena, options: Options, puts: Sequence[Put]) -> list[Opened]:
    """Measures latency at half of our maximum, where requests fall due whatever the answers do."""
    rate = _maximum(arena, options, puts) / 2
    opened: list[Opened] = []
    for number in range(options.rounds):
        for name in turned(options.chosen(OF_OPEN), number):
            with arena.running(name) as contender:
                load = Load(MAIN.connections, options.seconds, rate=rate)
                opened.append(Opened(number, name, rate, run(contender, contender.create_series(1), load)))
    return opened


def _maximum(arena: Arena, options: Options, puts: Sequence[Put]) -> float:
    known = [put.run.per_s for put in puts if put.contender == PAUSED and put.cell == MAIN]
    if known:
        return statistics.median(known)
    with arena.running(PAUSED) as contender:
        return run(contender, contender.create_series(1), Load(MAIN.connections, options.seconds)).per_s


# sustained --------------------------------------------------------------------------------------------------------

WORK_S = 2.0
STEPS = 4


class Sustained(msgspec.Struct, frozen=True):
    """A run at a fixed rate with one worker beside."""

    rate: float
    run: Run

    @property
    def holds(self) -> bool:
        """Whether less than two seconds of work waited, and everything was answered."""
        return self.run.backlog < WORK_S * self.run.settled_per_s and self.run.per_s > self.rate * 0.95


def measure_sustained(arena: Arena, options: Options) -> list[Sustained]:
    """Looks for the highest rate that the worker keeps up with, all on this machine."""
    with arena.running(BESIDE) as contender:
        low, high = 0.0, run(contender, contender.create_series(1), Load(MAIN.connections, options.seconds)).per_s
    steps: list[Sustained] = []
    for _ in range(STEPS):
        rate = (low + high) / 2
        with arena.running(BESIDE) as contender:
            load = Load(MAIN.connections, options.seconds_sustained, rate=rate, warm_up_s=0)
            steps.append(Sustained(rate, run(contender, contender.create_series(1), load)))
        low, high = (rate, high) if steps[-1].holds else (low, rate)
    return steps


# steady -----------------------------------------------------------------------------------------------------------

SHARE = 0.7
STRETCHES = 6


class Steady(msgspec.Struct, frozen=True):
    """Runs behind one another at a fixed rate, one worker beside: what waits and what memory holds must not grow."""

    rate: float
    stretches: list[Run]


def measure_steady(arena: Arena, options: Options, puts: Sequence[Put]) -> Steady:
    """Measures at 70 % of our maximum, all in one series, all on this machine."""
    rate = _maximum(arena, options, puts) * SHARE
    with arena.running(BESIDE) as contender:
        series = contender.create_series(1)
        load = Load(MAIN.connections, options.seconds_sustained, rate=rate, warm_up_s=0)
        return Steady(rate, [run(contender, series, load) for _ in range(STRETCHES)])


# the client ---------------------------------------------------------------------------------------------------------


class Compared(msgspec.Struct, frozen=True):
    """What the client measured, and wrk after it."""

    round: int
    contender: str
    ours: Checked
    wrk: Checked


def measure_clients(arena: Arena, options: Options) -> list[Compared]:
    """Measures with both in turn: whether they find the same, and how much CPU each takes itself."""
    compared = []
    load = Load(MAIN.connections, options.seconds)
    for number in range(options.rounds_of_others):
        for name in turned(options.chosen((BARE, PAUSED)), number):
            with arena.running(name) as contender:
                series = contender.create_series(1)
                done = run(contender, series, load)
                ours = Checked(done.per_s, done.p50, done.p99, done.client_cpu_s)
                compared.append(Compared(number, name, ours, run_wrk(contender, series[0], load)))
    return compared
