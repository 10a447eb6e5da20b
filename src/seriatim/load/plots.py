"""Plots as SVG text: lines over time, and bars. No scripts; colours are the page's, by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import msgspec

WIDTH, HEIGHT = 720, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 26, 34
TICKS = 6
COLOURS = 4


class Line(msgspec.Struct, frozen=True):
    """A named line: a value for every x."""

    name: str
    values: Sequence[float]


class _Scale(msgspec.Struct, frozen=True):
    """From values to pixels, both ways growing to the right and upwards."""

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        low, high = self._unit(self.low), self._unit(self.high)
        return self.begin + (self._unit(max(value, self.low)) - low) / ((high - low) or 1) * (self.end - self.begin)

    def _unit(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value

    def ticks(self) -> list[float]:
        """Round values: powers of ten, or multiples of 1, 2 or 5 of one."""
        if self.logarithmic:
            return [10.0**power for power in range(math.ceil(self._unit(self.low)), int(self._unit(self.high)) + 1)]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / TICKS or 1))
        step *= next(factor for factor in (1, 2, 5, 10) if (self.high - self.low) / (step * factor) <= TICKS)
        return [number * step for number in range(math.ceil(self.low / step), int(self.high / step) + 1)]


def lines(xs: Sequence[float], drawn: Sequence[Line], x_name: str, y_name: str, *, logarithmic: bool = False) -> str:
    """Returns a plot of lines over common xs."""
    values = [value for line in drawn for value in line.values if value > 0 or not logarithmic]
    if len(xs) < 2 or not values:  # noqa: PLR2004 -- a line has two ends
        return "<p>Too short for a plot.</p>"
    across = _Scale(xs[0], xs[-1], LEFT, WIDTH - RIGHT)
    low, high = (10 ** math.floor(math.log10(min(values))) if logarithmic else 0.0), max(*values, 1e-9)
    up = _Scale(low, high * (1.2 if logarithmic else 1.05), HEIGHT - BOTTOM, TOP, logarithmic)
    body = [_grid(across, up, x_name, y_name)]
    for number, line in enumerate(drawn):
        points = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in zip(xs, line.values, strict=True))
        title = f"<title>{escape(line.name)}</title>"
        body.append(f'<polyline class="line s{number % COLOURS}" points="{points}">{title}</polyline>')
    return _svg(body) + _legend(drawn)


def bars(edges: Sequence[float], counts: Sequence[int], x_name: str, y_name: str) -> str:
    """Returns bars that each end at an edge and grow by the same factor, on logarithmic scales."""
    if not counts:
        return "<p>Nothing was measured.</p>"
    factor = edges[1] / edges[0] if len(edges) > 1 else 10**0.1
    across = _Scale(edges[0] / factor, edges[-1], LEFT, WIDTH - RIGHT, logarithmic=True)
    up = _Scale(0.5, max(counts) * 1.3, HEIGHT - BOTTOM, TOP, logarithmic=True)
    body = [_grid(across, up, x_name, y_name)]
    for edge, count in zip(edges, counts, strict=True):
        if count:
            left, right, top = across.at(edge / factor), across.at(edge), up.at(count)
            body.append(
                f'<rect class="bar" x="{left + 0.5:.1f}" y="{top:.1f}" width="{max(right - left - 1, 1):.1f}" '
                f'height="{HEIGHT - BOTTOM - top:.1f}"><title>up to {edge:,.3g}: {count:,}</title></rect>'
            )
    return _svg(body)


def _svg(body: list[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg">{"".join(body)}</svg>'


def _grid(across: _Scale, up: _Scale, x_name: str, y_name: str) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in up.ticks():
        y = up.at(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="up" x="{LEFT - 6}" y="{y + 4:.1f}">{value:,.4g}</text>')
    parts += [f'<text x="{across.at(value):.1f}" y="{bottom + 16}">{value:,.4g}</text>' for value in across.ticks()]
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text class="up name" x="{right}" y="{HEIGHT - 4}">{escape(x_name)}</text>')
    parts.append(f'<text class="down name" x="4" y="12">{escape(y_name)}</text>')
    return "".join(parts)


def _legend(drawn: Sequence[Line]) -> str:
    if len(drawn) == 1:
        return ""
    named = [f'<span class="key s{number % COLOURS}"></span>{escape(line.name)}' for number, line in enumerate(drawn)]
    return f'<p class="legend">{" &nbsp; ".join(named)}</p>'
