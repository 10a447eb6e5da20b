"""The gap report of a series: of every counter and period what was issued, voided, skipped, and what is missing. Pure.

The numbers of a counter grow with the position, so that what an entry leaves out is missing unless a skip explains it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime
from zoneinfo import ZoneInfo

import msgspec

from seriatim.formats import field
from seriatim.model import Counted, Numbering, Skip

Range = tuple[int, int]
"""Numbers, both ends included."""


class Line(msgspec.Struct):
    """What became of the numbers of one counter in one period. `first` and `last` are those issued."""

    counter: str
    period: str
    first: int | None = None
    last: int | None = None
    issued: int = 0
    voided: int = 0
    skipped: list[Skip] = []
    missing: list[Range] = []


class Report:
    """Takes the entries of a series in order, and its skips; of those dated `first` to `last`, it reports."""

    def __init__(self, numbering: Numbering, first: date | None, last: date | None) -> None:
        self._begin = numbering.first
        self._zone = ZoneInfo(numbering.timezone)
        self._first = (first or date.min).isoformat()
        self._last = (last or date.max).isoformat()
        self._counted: dict[str, int] = {}
        self._skips: list[Skip] = []
        self._lines: dict[str, Line] = {}

    def add(self, position: int, numbers: tuple[Counted, ...], day: str, *, void: bool) -> None:
        """Takes the next entry."""
        within = self._first <= day <= self._last
        for one in numbers:
            name = field(one)
            before = self._counted.get(name, self._begin - 1 if position == 1 else 0)
            self._counted[name] = one.value
            if within:
                line = self._line(one.counter, one.period)
                line.first = one.value if line.first is None else min(line.first, one.value)
                line.last = one.value if line.last is None else max(line.last, one.value)
                line.issued += 1
                line.voided += void
                if one.value > before + 1:
                    line.missing.append((before + 1, one.value - 1))

    def skip(self, skip: Skip) -> None:
        """Takes a skip; when does not matter."""
        self._skips.append(skip)
        day = datetime.fromtimestamp(skip.created_at / 1000, self._zone).date().isoformat()
        if self._first <= day <= self._last:
            self._line(skip.counter, skip.period).skipped.append(skip)

    def lines(self) -> list[Line]:
        """Returns the report, by counter and period."""
        for line in self._lines.values():
            of_line = [skip for skip in self._skips if (skip.counter, skip.period) == (line.counter, line.period)]
            explained = [(skip.first, skip.last) for skip in of_line]
            if any(skip.position == 0 for skip in of_line):  # it began with `start`, though it was not the first used
                explained.append((1, self._begin - 1))
            line.missing = [left for gap in line.missing for left in _without(gap, explained)]
        return sorted(self._lines.values(), key=lambda line: (line.counter, line.period))

    def _line(self, counter: str, period: str) -> Line:
        return self._lines.setdefault(f"{counter}:{period}", Line(counter, period))


def _without(gap: Range, explained: list[Range]) -> Iterator[Range]:
    """Yields what of a gap is not explained."""
    begin, end = gap
    for first, last in sorted(explained):
        if first > end:
            break
        if first > begin:
            yield begin, first - 1
        begin = max(begin, last + 1)
    if begin <= end:
        yield begin, end
