"""What comes out of a load test: for machines, for people, and as one HTML page that fetches nothing from elsewhere."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import msgspec

from seriatim import __version__
from seriatim.load.audit import Audited
from seriatim.load.book import Finding
from seriatim.load.figures import PERCENTILES, Bar, Latencies, Row
from seriatim.load.options import Options

PACKAGES = ("uvloop", "httptools", "hdrhistogram")
BUSY = 0.9
"""Of a core: a process that sends and takes more was itself the limit."""


class Harness(msgspec.Struct, frozen=True):
    """What the load cost the processes that sent it."""

    cpu_s: float
    busiest: float
    """CPU seconds a second of the busiest sending process."""
    rss_bytes_max: int


class Summary(msgspec.Struct, frozen=True):
    """A load test and its audit."""

    started_at: str
    sound: bool
    findings: list[Finding]
    """The first ones; `found` counts all, by kind."""
    found: dict[str, int]
    entries: int
    """Acknowledged ones, warm-up included."""
    seconds: float
    """Measured ones: without warm-up, until the last answer."""
    numbers_per_s: float
    requests: dict[str, Latencies]
    errors: dict[str, int]
    """What was repeated, by status or reason, and what was given up: `unanswered` and `unsent`."""
    audit: Audited
    harness: Harness
    options: dict[str, Any]
    machine: dict[str, Any]
    rows: list[Row]
    bars: list[Bar]


def described(options: Options) -> dict[str, Any]:
    """Returns the options as they were given, without the key."""
    values = msgspec.to_builtins(options, enc_hook=str)
    return {name: value for name, value in values.items() if name != "key"}


def machine() -> dict[str, Any]:
    """Returns what the load ran on."""
    from importlib.metadata import version  # noqa: PLC0415 -- takes 20 ms, at the end of a run

    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "cores": os.cpu_count(),
        "cpu": models[0] if models else platform.machine(),
        "memory_bytes": memory[0] if memory else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "seriatim": __version__,
        **{name: version(name) for name in PACKAGES},
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def text(summary: Summary) -> str:
    """Returns a summary for people."""
    lines = ["kind        count      per s    p50 ms    p99 ms  p99.9 ms    max ms"]
    lines += [
        f"{kind:<8} {one.count:>8} {one.per_s:>10,.0f} {one.p50_ms:>9.2f} {one.p99_ms:>9.2f} {one.p999_ms:>9.2f} "
        f"{one.max_ms:>9.2f}"
        for kind, one in summary.requests.items()
    ]
    lines.append(f"numbers issued a second: {summary.numbers_per_s:,.0f}")
    if summary.errors:
        lines.append("errors: " + ", ".join(f"{count} {why}" for why, count in summary.errors.items()))
    if summary.harness.busiest > BUSY:
        lines.append("The harness was itself the limit: use more --processes, or another machine.")
    lines += [f"{one.kind}: series {one.series}, position {one.position}: {one.detail}" for one in summary.findings]
    lines.append(verdict(summary))
    return "\n".join(lines)


def verdict(summary: Summary) -> str:
    """Returns the audit in one line."""
    audit = summary.audit
    found = sum(summary.found.values())
    return (
        f"{audit.entries} entries in {audit.series} series, {audit.receipts} receipts, {audit.replays} replays: "
        f"{f'{found} findings' if found else 'sound'}"
    )


# the page -----------------------------------------------------------------------------------------------------------

LONG_S = 0.5
"""A run ends somewhere in a second: of a shorter piece a rate says little."""
STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #667085; --rule: #d9dee7; --page: #fff;
  --s0: #2563a8; --s1: #c2571a; --s2: #7a3fa0; --s3: #2f7d4f; --good: #1d7a43; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --rule: #3a4250; --page: #14181f;
  --s0: #6fa8e8; --s1: #f09a5d; --s2: #c39be4; --s3: #74c596; --good: #74c596; --bad: #f97066; } }
body { margin: 2rem auto; max-width: 760px; padding: 0 1rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.verdict { font-weight: 600; } .good { color: var(--good); } .bad { color: var(--bad); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--rule); padding: .25rem .5rem; text-align: right; vertical-align: top; }
th:first-child, td:first-child, .texts td, .texts th { text-align: left; overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 500; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 11px; text-anchor: middle; }
svg text.up { text-anchor: end; } svg text.down { text-anchor: start; }
.grid { stroke: var(--rule); stroke-width: .5; } .axis { stroke: var(--soft); }
.line { fill: none; stroke-width: 1.6; stroke-linejoin: round; } .bar { fill: var(--s0); }
.line.s0 { stroke: var(--s0); } .line.s1 { stroke: var(--s1); } .line.s2 { stroke: var(--s2); }
.line.s3 { stroke: var(--s3); }
.legend { color: var(--soft); margin: 0; } .key { display: inline-block; width: 1rem; height: .2rem;
  margin-right: .4rem; vertical-align: middle; background: var(--s0); }
.key.s1 { background: var(--s1); } .key.s2 { background: var(--s2); } .key.s3 { background: var(--s3); }
"""


def html(summary: Summary) -> str:
    """Returns the page."""
    colour = "good" if summary.sound else "bad"
    parts = [
        "<h1>Seriatim load test</h1>",
        f"<p>{escape(summary.options['url'])}, {escape(summary.started_at)}</p>",
        f'<p class="verdict {colour}">{escape(verdict(summary))}</p>',
        _findings(summary),
        _requests(summary),
        *_over_time(summary),
        _section(
            "Latencies",
            bar_plot(
                [bar.to_ms for bar in summary.bars], [bar.count for bar in summary.bars], "milliseconds", "requests"
            ),
        ),
        _errors(summary),
        _section("Audit", _pairs(_fields(summary.audit))),
        _section("Settings", _pairs(summary.options)),
        _section("Machine", _pairs(summary.machine | {f"harness {k}": v for k, v in _fields(summary.harness).items()})),
    ]
    head = f'<meta charset="utf-8"><title>Seriatim load test</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _findings(summary: Summary) -> str:
    if summary.sound:
        return ""
    counts = ", ".join(f"{count} {kind}" for kind, count in summary.found.items())
    rows = [(one.kind, one.series, one.position, one.detail) for one in summary.findings]
    table = _table(("kind", "series", "position", "detail"), rows, "texts")
    return _section("Findings", f"<p>{escape(counts)}; the first ones are:</p>{table}")


def _requests(summary: Summary) -> str:
    rows = [
        (kind, f"{one.count:,}", f"{one.per_s:,.0f}", *(f"{getattr(one, name):,.2f}" for name in PERCENTILES))
        for kind, one in summary.requests.items()
    ]
    names = ("kind", "count", "per second", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms")
    notes = (
        f"<p>{summary.numbers_per_s:,.0f} numbers a second. "
        "A latency counts from when its request was due, not from when it could be sent.</p>"
    )
    return _section("Requests", _table(names, rows) + notes)


def _over_time(summary: Summary) -> list[str]:
    rows = [row for row in summary.rows if row.second >= summary.options["warm_up"] and row.length_s > LONG_S]
    named = {"p50": "p50_ms", "p99": "p99_ms", "p99.9": "p999_ms", "max": "max_ms"}
    percentiles = [Line(label, [getattr(row, name) for row in rows]) for label, name in named.items()]
    answered = [Line("answered", [row.per_s for row in rows])]
    backlog = [Line("backlog", [row.backlog or 0 for row in rows])]
    parts = [
        _section("Throughput", _plot(rows, answered, "per second")),
        _section("Latency percentiles", _plot(rows, percentiles, "milliseconds", logarithmic=True)),
    ]
    if any(row.backlog is not None for row in rows):
        parts.append(_section("Backlog", _plot(rows, backlog, "records")))
    return parts


def _errors(summary: Summary) -> str:
    if not summary.errors:
        return _section("Errors", "<p>None.</p>")
    drawn = [Line(why, [row.errors.get(why, 0) for row in summary.rows]) for why in summary.errors]
    table = _table(("what", "count"), [(why, f"{count:,}") for why, count in summary.errors.items()])
    return _section("Errors", _plot(summary.rows, drawn, "errors") + table)


def _plot(rows: Sequence[Row], drawn: Sequence[Line], name: str, *, logarithmic: bool = False) -> str:
    return line_plot([row.second + 1 for row in rows], drawn, "seconds", name, logarithmic=logarithmic)


def _fields(struct: Any) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>{content}"


def _pairs(values: dict[str, Any]) -> str:
    shown = [(name.replace("_", " "), value) for name, value in values.items() if value not in (None, "", ())]
    return _table(("what", "value"), shown, "texts")


def _table(names: Sequence[str], rows: Iterable[Sequence[Any]], kind: str = "") -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


# plots as SVG; colours are the page's, by class ----------------------------------------------------------------------

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


def line_plot(
    xs: Sequence[float], drawn: Sequence[Line], x_name: str, y_name: str, *, logarithmic: bool = False
) -> str:
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


def bar_plot(edges: Sequence[float], counts: Sequence[int], x_name: str, y_name: str) -> str:
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
