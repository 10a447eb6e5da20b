"""What travels from Redis, taken apart."""

from __future__ import annotations

import struct
from datetime import date

import msgspec
import pytest

from seriatim import groups, keyspace
from seriatim.errors import Damaged
from seriatim.keyspace import Run
from seriatim.model import Numbering
from stack import new_id

COUNTERS_AT = struct.calcsize(">36sdIddHB")
"""Where a head says how many counters it has."""


def make_head(run: Run) -> bytes:
    """The head of a run as allocate.lua packs it."""
    values = struct.pack(f">{len(run.values)}d", *run.values)
    sizes = run.count, len(run.previous), len(run.values)
    fixed = struct.pack(">36sdIddHBB", run.series.encode(), run.first, run.k, run.time, 1, *sizes)
    return fixed + values + run.previous + msgspec.json.encode(run.rendering)


@pytest.fixture
def run() -> Run:
    """A run of a series with as many counters as a format may have."""
    numbering = Numbering(format="%inc%-%incYearly%-%yearLong%-%incMonthly%-%month%-%incDaily%-%day%")
    rendering = groups.rendering(numbering, date(2026, 12, 1))
    assert len(rendering.fields) == keyspace.COUNTERS_MAX
    return Run(new_id(), 7, 0, 32, 1_796_000_000_000, bytes(range(16)), (7, 6, 5, 4), rendering)


def test_the_head_of_a_run_says_what_was_packed(run: Run) -> None:
    assert keyspace.unpack_run(make_head(run)) == run


def test_a_head_that_is_cut_anywhere_is_damage(run: Run) -> None:
    head = make_head(run)
    for length in range(len(head)):
        with pytest.raises(Damaged, match="cut short"):
            keyspace.unpack_run(head[:length])


@pytest.mark.parametrize("counters", [keyspace.COUNTERS_MAX + 1, 255])
def test_more_counters_than_a_format_may_have_are_damage(run: Run, counters: int) -> None:
    head = bytearray(make_head(run))
    head[COUNTERS_AT] = counters
    with pytest.raises(Damaged, match=f"outbox of series {run.series} is cut short"):
        keyspace.unpack_run(bytes(head))
