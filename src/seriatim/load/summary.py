"""What comes out of a load test, for machines and for people."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import msgspec

from seriatim import __version__
from seriatim.load.audit import Audited
from seriatim.load.book import Finding
from seriatim.load.figures import Bar, Latencies, Row
from seriatim.load.options import Options

PACKAGES = ("uvloop", "httptools", "hdrhistogram")
BUSY = 0.9
"""Of a core: a process that sends and takes more was itself the limit."""


class Harness(msgspec.Struct, frozen=True):
    """What the load cost its own processes."""

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
