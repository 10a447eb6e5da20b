"""How many requests `seriatim load` can send, beside wrk, and the CPU that each takes for one.

Both load the same bare app in turn, in several rounds; prints medians with their spread as Markdown and writes them to
bench/results/load.md. Needs wrk. Run: python bench/load.py [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import uuid
from pathlib import Path
from typing import Any

from seriatim.load.book import Findings
from seriatim.load.children import Children, Done
from seriatim.load.engine import Plan
from seriatim.load.figures import Figures
from seriatim.load.operations import Scene
from seriatim.load.options import Options
from seriatim.load.payloads import read
from spine import CONNECTIONS, HERE, bare, spread, wrk

Run = dict[str, Any]


def run_wrk(url: str, seconds: float) -> Run:
    """Loads with wrk."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    measured = wrk(url, "k", str(uuid.uuid4()), seconds)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return measured | {"cpu_us": cpu_s / (measured["per_s"] * seconds) * 1e6}


def run_harness(url: str, seconds: float) -> Run:
    """Loads with the harness' own processes, without an audit: the app keeps nothing."""
    options = Options(url=url, key="k", duration=seconds)
    scene = Scene(options.address, "k", [str(uuid.uuid4())], 0.0, read(None), {"new": 1.0}, 1)
    plan = Plan(scene, CONNECTIONS, None, 0.0, None, seconds, 0.0, 10.0)
    with Children([plan]) as children:
        figures = Figures(1)
        children.start()
        findings, cpu_s = Findings(), 0.0
        for message in children.messages():
            if isinstance(message, Done):
                findings, cpu_s = message.findings, message.cpu_s
            else:
                figures.take(message, None)
        for _ in children.records():
            pass
    assert not findings.counts, findings
    taken = figures.by_kind(seconds)["new"]
    return {
        "per_s": taken.per_s,
        "p50_ms": taken.p50_ms,
        "p99_ms": taken.p99_ms,
        "cpu_us": cpu_s / taken.count * 1e6,
    }


def report(measured: dict[str, list[Run]], arguments: argparse.Namespace) -> str:
    """The results as Markdown."""
    base = measured["wrk"]
    lines = [
        "# Load: what the harness can send, beside wrk",
        "",
        (
            f"`python bench/load.py --rounds {arguments.rounds} --seconds {arguments.seconds:.0f}`, {CONNECTIONS} "
            "connections, one process that sends, against a bare ASGI app that answers entries from memory. "
            f"{os.cpu_count()} cores ({platform.machine()}), shared by both sides; Python {platform.python_version()}. "
            "Median (smallest to largest) of the rounds."
        ),
        "",
        "| | PUT/s | ratio to wrk | p50 ms | p99 ms | CPU µs a request |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in measured.items():
        ratios = [run["per_s"] / one["per_s"] for run, one in zip(runs, base, strict=True)]
        cells = [spread([run["per_s"] for run in runs]), spread(ratios, 3)]
        cells += [spread([run[field] for run in runs], 1) for field in ("p50_ms", "p99_ms", "cpu_us")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    arguments = parser.parse_args()
    measured: dict[str, list[Run]] = {"wrk": [], "seriatim load": []}
    for _ in range(arguments.rounds):
        with bare("told:app") as url:
            measured["wrk"].append(run_wrk(url, arguments.seconds))
            measured["seriatim load"].append(run_harness(url, arguments.seconds))
    text = report(measured, arguments)
    Path(HERE / "results" / "load.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
