"""How long and how much is measured."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence

import msgspec

from contenders import NAMES

_began = time.monotonic()


class Options(msgspec.Struct, frozen=True):
    """The figures of a run; `QUICK` takes about twenty minutes, `FULL` about two hours."""

    rounds: int
    seconds: float
    rounds_of_others: int
    seconds_of_others: float
    seconds_sustained: float
    settled: int
    """Entries that the store holds already when a drain is measured."""
    drained: int
    entries: int
    """Entries of the long series."""
    series: int
    """Series, where there are many."""
    pages: int
    contenders: tuple[str, ...] = NAMES

    def chosen(self, names: Iterable[str]) -> list[str]:
        """Returns those contenders that are to be measured."""
        return [name for name in names if name in self.contenders]

    def say(self, text: str) -> None:
        """Tells whoever waits."""
        print(f"{time.monotonic() - _began:6.0f} s  {text}", file=sys.stderr, flush=True)


QUICK = Options(
    rounds=5,
    seconds=2.5,
    rounds_of_others=3,
    seconds_of_others=1,
    seconds_sustained=10,
    settled=50_000,
    drained=30_000,
    entries=100_000,
    series=2_000,
    pages=30,
)
FULL = Options(
    rounds=9,
    seconds=8,
    rounds_of_others=5,
    seconds_of_others=5,
    seconds_sustained=60,
    settled=1_000_000,
    drained=100_000,
    entries=2_000_000,
    series=100_000,
    pages=200,
)


def turned(names: Sequence[str], number: int) -> list[str]:
    """Returns what is measured in the order of a round: each round begins with another."""
    turn = number % max(1, len(names))
    return [*names[turn:], *names[:turn]]
