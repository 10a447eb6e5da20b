"""A load test as one HTML page: no scripts, nothing fetched from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from seriatim.load import plots
from seriatim.load.figures import PERCENTILES, Row
from seriatim.load.plots import Line
from seriatim.load.summary import Summary, verdict

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
            plots.bars(
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
    return plots.lines([row.second + 1 for row in rows], drawn, "seconds", name, logarithmic=logarithmic)


def _fields(struct: Any) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>{content}"


def _pairs(values: dict[str, Any]) -> str:
    shown = [(name.replace("_", " "), value) for name, value in values.items() if value not in (None, "", [])]
    return _table(("what", "value"), shown, "texts")


def _table(names: Sequence[str], rows: Iterable[Sequence[Any]], kind: str = "") -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
