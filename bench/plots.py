"""Small SVG pictures of what was measured, without a library: bars with their spread, stacked bars, lines."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, LEFT, RIGHT, TOP, ROW = 820, 230, 30, 64, 30
COLORS = ("#4269d0", "#ff725c", "#3ca951", "#efb118", "#a463f2", "#6cc5b0", "#9c6b4e")
GREY = "#666"


def _text(x: float, y: float, said: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(said)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, color: str = "#ddd") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"/>'


def _picture(title: str, about: str, height: float, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" font-family="sans-serif" '
        f'font-size="13"><rect width="{WIDTH}" height="{height:.0f}" fill="white"/>'
    )
    heading = [_text(16, 26, title, 'font-size="17" font-weight="bold"'), _text(16, 46, about, f'fill="{GREY}"')]
    return "\n".join([head, *heading, *parts, "</svg>", ""])


def _steps(highest: float) -> list[float]:
    """Round values from 0 to beyond the highest."""
    size = 10 ** math.floor(math.log10(highest))
    step = next(size * part for part in (0.2, 0.25, 0.5, 1, 2) if highest / (size * part) <= 6)  # noqa: PLR2004
    return [step * number for number in range(math.ceil(highest / step) + 1)]


def _axis(highest: float, bottom: float) -> tuple[float, list[str]]:
    """Returns how many pixels a unit takes, and the lines of a horizontal axis."""
    steps = _steps(highest)
    scale = (WIDTH - LEFT - RIGHT) / steps[-1]
    parts = []
    for value in steps:
        x = LEFT + value * scale
        parts += [_line(x, TOP, x, bottom), _text(x, bottom + 18, f"{value:,g}", 'text-anchor="middle"')]
    return scale, parts


def bars(title: str, about: str, rows: Mapping[str, Sequence[float]]) -> str:
    """A bar for each row: the median of its values, and a line from the smallest to the largest."""
    rows = {name: sorted(values) for name, values in rows.items()}
    bottom = TOP + ROW * len(rows)
    scale, parts = _axis(max(values[-1] for values in rows.values()), bottom)
    for number, (name, values) in enumerate(rows.items()):
        y, median = TOP + ROW * number, statistics.median(values)
        middle = y + ROW / 2
        parts.append(_text(LEFT - 8, middle + 4, name, 'text-anchor="end"'))
        size = f'width="{median * scale:.1f}" height="{ROW - 10}"'
        parts.append(f'<rect x="{LEFT}" y="{y + 5:.1f}" {size} fill="{COLORS[0]}"/>')
        parts.append(_line(LEFT + values[0] * scale, middle, LEFT + values[-1] * scale, middle, "black"))
    return _picture(title, about, bottom + 30, parts)


def stacked(title: str, about: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """A bar for each row, of one piece for each part."""
    names = list(dict.fromkeys(part for pieces in rows.values() for part in pieces))
    bottom = TOP + ROW * len(rows)
    scale, parts = _axis(max(sum(pieces.values()) for pieces in rows.values()), bottom)
    for number, (name, pieces) in enumerate(rows.items()):
        x, y = float(LEFT), TOP + ROW * number
        parts.append(_text(LEFT - 8, y + ROW / 2 + 4, name, 'text-anchor="end"'))
        for part, value in pieces.items():
            size = f'width="{value * scale:.1f}" height="{ROW - 10}"'
            color = COLORS[names.index(part) % len(COLORS)]
            parts.append(f'<rect x="{x:.1f}" y="{y + 5:.1f}" {size} fill="{color}"/>')
            x += value * scale
    return _picture(title, about, bottom + 56, [*parts, *_legend(names, bottom + 44)])


def _legend(names: Sequence[str], y: float) -> list[str]:
    parts, x = [], 16.0
    for number, name in enumerate(names):
        color = COLORS[number % len(COLORS)]
        parts += [f'<rect x="{x:.0f}" y="{y - 10:.0f}" width="12" height="12" fill="{color}"/>', _text(x + 17, y, name)]
        x += 38 + 7.2 * len(name)
        if x > WIDTH - 180:
            x, y = 16.0, y + 20
    return parts


def lines(title: str, about: str, ticks: Sequence[str], rows: Mapping[str, Sequence[float]]) -> str:
    """A line for each row over the same ticks; the values on a logarithmic axis."""
    values = [value for row in rows.values() for value in row if value > 0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    left, bottom = 70, TOP + 300
    scale = (bottom - TOP) / max(1, high - low)
    parts = []
    for power in range(low, high + 1):
        y = bottom - (power - low) * scale
        parts += [_line(left, y, WIDTH - RIGHT, y), _text(left - 8, y + 4, f"{10.0**power:,g}", 'text-anchor="end"')]
    places = [left + 40 + number * (WIDTH - RIGHT - left - 80) / max(1, len(ticks) - 1) for number in range(len(ticks))]
    parts += [_text(x, bottom + 18, tick, 'text-anchor="middle"') for x, tick in zip(places, ticks, strict=True)]
    for number, row in enumerate(rows.values()):
        color = COLORS[number % len(COLORS)]
        points = [
            (x, bottom - (math.log10(value) - low) * scale) for x, value in zip(places, row, strict=True) if value > 0
        ]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in points]
    return _picture(title, about, bottom + 84, [*parts, *_legend(list(rows), bottom + 46)])
