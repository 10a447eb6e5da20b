"""What was measured, as it is kept in results/measured.json."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path

import msgspec

from batches import Batch
from client import Run
from growth import Growth
from guard import Guarded
from options import Options
from puts import MAIN, Cell, Compared, Opened, Put, Steady, Sustained
from settlement import Settlement


class Stage(msgspec.Struct, frozen=True):
    """When a part was measured, with which figures and what code, and on which disk, which tells machines apart."""

    at: str
    commit: str
    options: Options
    disk: str


class Results(msgspec.Struct):
    """All parts; those that have not been measured are empty."""

    about: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    puts: list[Put] = []
    cells: list[Put] = []
    open: list[Opened] = []
    sustained: list[Sustained] = []
    steady: Steady | None = None
    batches: list[Batch] = []
    settlement: Settlement | None = None
    growth: Growth | None = None
    guard: list[Guarded] = []
    clients: list[Compared] = []

    def of(self, contender: str, cell: Cell = MAIN) -> list[Put]:
        """Returns the runs of a contender, by round."""
        return [put for put in (*self.puts, *self.cells) if put.contender == contender and put.cell == cell]

    def pairs(self, ours: str, theirs: str) -> list[tuple[Run, Run]]:
        """Returns what two contenders did in the same rounds; nothing when one of them was not measured."""
        both = [put.run for put in self.of(ours)], [put.run for put in self.of(theirs)]
        return list(zip(*both, strict=True)) if all(both) else []


def load(path: Path) -> Results:
    """Returns what was measured before; nothing when the file is missing or of another shape."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Results)
    except (FileNotFoundError, msgspec.DecodeError):
        return Results()


def save(path: Path, results: Results) -> None:
    """Writes what was measured."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")


def spread(values: Iterable[float], digits: int = 0) -> str:
    """Median, and the smallest and largest value."""
    found = list(values)
    if not found:
        return "-"
    median = statistics.median(found)
    return f"{median:,.{digits}f} ({min(found):,.{digits}f} to {max(found):,.{digits}f})"
