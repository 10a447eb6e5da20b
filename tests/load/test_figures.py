"""Rates and latencies of several processes, and how they are drawn."""

from __future__ import annotations

import re
from array import array
from xml.etree import ElementTree as ET

from seriatim.load import report
from seriatim.load.figures import Figures
from seriatim.load.report import Line
from seriatim.load.sender import Tick


def tick(second: int, *latencies_us: int, kind: str = "new", **errors: int) -> Tick:
    return Tick(second, 1.0, {kind: array("Q", latencies_us).tobytes()}, errors)


def test_a_second_is_told_when_all_processes_have_told_it() -> None:
    # Given two processes
    figures = Figures(2)

    # When one is ahead of the other
    assert figures.take(tick(0, *[1000] * 98, dropped=1), None) is None
    assert figures.take(tick(1, 7000), None) is None
    row = figures.take(tick(0, 250_000, 250_000, kind="batch", dropped=2), 17)

    # Then a row has both
    assert row is not None
    assert (row.second, row.answered, row.per_s, row.backlog) == (0, 100, 100.0, 17)
    assert abs(row.p50_ms - 1.0) < 0.001
    assert abs(row.p99_ms - 250) < 0.25
    assert row.errors == {"dropped": 3}

    # And what only one reached is a row in the end
    figures.finish()
    assert [row.answered for row in figures.rows] == [100, 1]
    kinds = figures.by_kind(2)
    assert {kind: one.count for kind, one in kinds.items()} == {"new": 99, "batch": 2, "all": 101}
    assert kinds["all"].per_s == 50.5
    assert abs(kinds["batch"].mean_ms - 250) < 0.25
    assert figures.errors == {"dropped": 3}


def test_bars_hold_every_request_once() -> None:
    figures = Figures(1)
    figures.take(tick(0, 0, 1, 999, 1000, 1001, 50_000), None)
    bars = figures.bars()
    assert sum(bar.count for bar in bars) == 6
    (thousand,) = (bar for bar in bars if bar.to_ms == 1.0)
    assert thousand.count == 2
    assert Figures(1).bars() == []


def test_lines_reach_from_the_smallest_to_the_largest() -> None:
    # Given a line over ten seconds, when it is drawn
    values = [float(value) for value in (0, 10, 20, 30, 40, 50, 60, 70, 80, 100)]
    svg = ET.fromstring(report.line_plot(range(10), [Line("a < b", values)], "seconds", "per second"))

    # Then its ends are the plot's, and it falls nowhere
    (line,) = (one for one in svg if one.tag.endswith("polyline"))
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert len(points) == 10
    assert points[0] == (report.LEFT, report.HEIGHT - report.BOTTOM)
    assert points[-1][0] == report.WIDTH - report.RIGHT
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)
    assert line[0].text == "a < b"
    texts = [one.text for one in svg if one.tag.endswith("text")]
    assert {"0", "20", "100", "seconds", "per second"} <= set(texts)


def test_zeros_do_not_break_a_logarithmic_plot() -> None:
    drawn = report.line_plot([1, 2, 3], [Line("p50", [0.0, 3.0, 900.0])], "seconds", "ms", logarithmic=True)
    assert re.findall(r"nan|inf", drawn) == []
    assert report.line_plot([1, 2], [Line("p50", [0.0, 0.0])], "seconds", "ms", logarithmic=True).startswith("<p>")
    assert report.line_plot([], [], "seconds", "ms").startswith("<p>")
    assert report.bar_plot([], [], "ms", "requests").startswith("<p>")
    assert report.bar_plot([0.5], [3], "ms", "requests").count("<rect") == 1
