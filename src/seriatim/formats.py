"""How a series' codes look, and for how long one rendering of its format holds. Pure: no clock, no I/O."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache

import msgspec

from seriatim.model import Numbering


class Plan(msgspec.Struct, frozen=True, array_like=True):
    """A format rendered for a window of time; what allocate.lua needs to write a code.

    The window is [from_ms, until_ms), in milliseconds since 1970; `date` is the document's date throughout.
    """

    from_ms: int
    until_ms: int
    date: str
    prefix: str
    width: int
    suffix: str


@lru_cache(maxsize=8)
def day_window(day: int) -> tuple[int, int, str]:
    """Returns the window and the date of the `day`-th day since 1970 in UTC."""
    start = datetime.fromtimestamp(day * 86400, UTC)
    end = start + timedelta(days=1)
    return int(start.timestamp() * 1000), int(end.timestamp() * 1000), start.date().isoformat()


def plan(numbering: Numbering, now_ms: int) -> Plan:
    """Returns the plan that holds at `now_ms`."""
    from_ms, until_ms, date = day_window(now_ms // 86_400_000)
    return Plan(from_ms, until_ms, date, numbering.prefix, numbering.padding, numbering.suffix)


def code(numbering: Numbering, number: int) -> str:
    """Returns the code of a number. More digits than the padding are written in full, never wrapped."""
    return f"{numbering.prefix}{number:0{numbering.padding}d}{numbering.suffix}"
