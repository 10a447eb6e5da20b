"""When requests are due."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

from seriatim.load.sender import SECOND_NS, Closed, Open, Ticker

START = 10 * SECOND_NS


def test_an_open_loop_keeps_its_times_however_late_it_is_asked() -> None:
    # Given 4 requests a second for two seconds
    arrivals = Open(START, START + 2 * SECOND_NS, None, 4)

    # When it is asked before the start, in time, and then not for a second
    assert arrivals.next(START - 1) is None
    assert arrivals.next(START) == START
    assert arrivals.next(START) is None
    late = START + int(1.1 * SECOND_NS)
    taken = []
    while (due := arrivals.next(late)) is not None:
        taken.append((due - START) / SECOND_NS)

    # Then what became due meanwhile is due since then
    assert taken == [0.25, 0.5, 0.75, 1.0]

    # And all that falls into the two seconds is still to come after them, and no more
    after = START + 60 * SECOND_NS
    assert not arrivals.over(after)
    assert arrivals.left() == 3
    assert [arrivals.next(after) for _ in range(4)] == [
        START + int(1.25 * SECOND_NS),
        START + int(1.5 * SECOND_NS),
        START + int(1.75 * SECOND_NS),
        None,
    ]
    assert arrivals.over(after)


def test_an_open_loop_ends_with_its_number() -> None:
    arrivals = Open(START, None, 2, 1000)
    assert [arrivals.next(START + SECOND_NS) is None for _ in range(3)] == [False, False, True]
    assert arrivals.over(0)


def test_a_closed_loop_is_due_whenever_it_is_asked_until_time_or_number_end_it() -> None:
    timed, counted = Closed(START, START + 5, None), Closed(START, None, 2)
    assert timed.next(START - 1) is None
    assert [timed.next(START + at) for at in (0, 4, 5)] == [START, START + 4, None]
    assert [counted.next(START + at) for at in (0, 9, 9)] == [START, START + 9, None]
    assert timed.over(START + 5)
    assert counted.over(START)
    assert timed.left() == counted.left() == 0


def test_a_ticker_is_finer_than_a_millisecond() -> None:
    async def ticks() -> list[float]:
        at: list[float] = []
        over = asyncio.Event()

        def tick() -> None:
            at.append(time.perf_counter())
            if len(at) == 200:
                over.set()

        ticker = Ticker(0.0001, tick)
        await over.wait()
        ticker.close()
        return at

    at = asyncio.run(ticks())
    assert min(after - before for before, after in pairwise(at)) < 0.0009
