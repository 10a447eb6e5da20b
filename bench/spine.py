"""PUT throughput and latency beside a bare ASGI app, drain rate, and Redis bytes an entry.

Runs side by side on this machine, interleaved, in several rounds; prints medians with their spread as Markdown and
writes them to bench/results/spine.md. Needs wrk. `make bench`, or: python bench/spine.py [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

HERE = Path(__file__).parent
CONNECTIONS = 64
DRAIN_ENTRIES = 50_000


@contextlib.contextmanager
def seriatim(workers: int, data_dir: Path) -> Iterator[tuple[str, str]]:
    """Runs `seriatim up`; yields its URL and its API key, which the first start prints."""
    arguments = ["up", "--json", "--port", "0", "--workers", str(workers), "--data-dir", str(data_dir)]
    process = subprocess.Popen([sys.executable, "-m", "seriatim", *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    key_file = data_dir / "bench-key"
    try:
        while True:
            assert select.select([process.stdout], [], [], 30)[0], "`seriatim up` says nothing"
            event = json.loads(process.stdout.readline())
            if event["event"] == "key":
                key_file.write_text(event["key"])
            elif event["event"] == "ready":
                yield event["ready"], key_file.read_text()
                return
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def bare() -> Iterator[str]:
    """Runs the bare app under the same server settings as ours."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    options = [
        "--loop",
        "uvloop",
        "--http",
        "httptools",
        "--log-level",
        "error",
        "--no-access-log",
        "--no-server-header",
    ]
    command = [sys.executable, "-m", "uvicorn", "bare:app", "--port", str(port), *options]
    process = subprocess.Popen(command, cwd=HERE)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def create_series(url: str, key: str) -> str:
    """Creates a series and returns its id."""
    series = str(uuid.uuid4())
    request = urllib.request.Request(  # noqa: S310 -- our own server
        f"{url}/sequence/v1/series/{series}",
        method="PUT",
        data=b'{"prefix": "INV-", "padding": 6}',
        headers={"Authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request):  # noqa: S310
        return series


def wrk(url: str, key: str, series: str, seconds: float) -> dict[str, Any]:
    """Puts entries for some seconds; returns rate, latencies and errors."""
    command = [
        "wrk",
        "-t1",
        f"-c{CONNECTIONS}",
        f"-d{seconds:.0f}s",
        "-s",
        str(HERE / "put.lua"),
        url,
        "--",
        key,
        series,
    ]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    assert result["errors"] == 0, output
    return result


def measure_rounds(rounds: int, seconds: float, scratch: Path) -> dict[str, list[dict[str, Any]]]:
    """One run of each contender a round, in turn."""
    measured: dict[str, list[dict[str, Any]]] = {"bare ASGI app": [], "workers paused": [], "one worker beside": []}
    for number in range(rounds):
        with bare() as url:
            measured["bare ASGI app"].append(wrk(url, "k", str(uuid.uuid4()), seconds))
        for name, workers in (("workers paused", 0), ("one worker beside", 1)):
            directory = scratch / f"{number}-{workers}"
            directory.mkdir()
            with seriatim(workers, directory) as (url, key):
                series = create_series(url, key)
                wrk(url, key, series, 1)
                measured[name].append(wrk(url, key, series, seconds))
            shutil.rmtree(directory)
    return measured


def measure_drain(scratch: Path) -> dict[str, float]:
    """Fills the outbox without workers, then drains it with one: entries a second, and bytes in Redis."""
    directory = scratch / "drain"
    directory.mkdir()
    socket_path = directory / "redis" / "valkey.sock"
    with seriatim(0, directory) as (url, key):
        client = redis.Redis(unix_socket_path=str(socket_path))
        series = create_series(url, key)
        wrk(url, key, series, 1)
        empty, held = used(client), position(client, series)
        while position(client, series) < held + DRAIN_ENTRIES:
            wrk(url, key, series, 2)
        waiting, entries = used(client), position(client, series)
        client.close()
    with seriatim(0, directory) as (url, _):
        client = redis.Redis(unix_socket_path=str(socket_path))
        environment = dict(os.environ) | {
            "SERIATIM_REDIS_URL": f"unix://{socket_path}",
            "SERIATIM_STORE_URL": f"sqlite:///{directory / 'store.db'}",
            "SERIATIM_SIGNING_KEY": str(directory / "signing-key.json"),
        }
        worker = subprocess.Popen([sys.executable, "-m", "seriatim", "worker"], env=environment)
        points: list[tuple[float, int]] = []
        while not points or points[-1][1] < entries:
            points.append((time.perf_counter(), settled(client, series)))
            time.sleep(0.02)
        worker.terminate()
        worker.wait()
        after = used(client)
        client.close()
    begun = [point for point in points if point[1] > 0]
    return {
        "drained entries/s": (begun[-1][1] - begun[0][1]) / (begun[-1][0] - begun[0][0]),
        "Redis bytes an entry before settlement": (waiting - empty) / (entries - held),
        "Redis bytes an entry after settlement": (after - baseline(scratch)) / entries,
        "entries drained": entries,
    }


def baseline(scratch: Path) -> int:
    """Bytes that a server holds with one series without entries."""
    directory = scratch / "baseline"
    directory.mkdir()
    with seriatim(0, directory) as (url, key):
        create_series(url, key)
        with redis.Redis(unix_socket_path=str(directory / "redis" / "valkey.sock")) as client:
            return used(client)


def used(client: Any) -> int:
    """Bytes of the server's data, without what connections take."""
    return int(client.info("memory")["used_memory_dataset"])


def position(client: Any, series: str) -> int:
    """How many entries a series has."""
    return _field(client, series, "position")


def settled(client: Any, series: str) -> int:
    """How many entries of a series the store has."""
    return _field(client, series, "settled")


def _field(client: Any, series: str, name: str) -> int:
    (key,) = client.keys(f"*:series:{series}")
    return int(client.hget(key, name))


def spread(values: list[float], digits: int = 0) -> str:
    """Median, and the smallest and largest value."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def report(measured: dict[str, list[dict[str, Any]]], drained: dict[str, float], arguments: argparse.Namespace) -> str:
    """The results as Markdown."""
    base = [run["per_s"] for run in measured["bare ASGI app"]]
    lines = [
        "# Spine: throughput beside a bare ASGI app",
        "",
        (
            f"`python bench/spine.py --rounds {arguments.rounds} --seconds {arguments.seconds:.0f}`, {CONNECTIONS} "
            "connections, one API process, one series, distinct UUIDs, API key, fsync before every answer. "
            f"{os.cpu_count()} cores ({platform.machine()}), shared by client, API, Valkey and worker; "
            f"Python {platform.python_version()}. Median (smallest to largest) of the rounds."
        ),
        "",
        "| | PUT/s | ratio to bare | p50 ms | p99 ms |",
        "|---|---|---|---|---|",
    ]
    for name, runs in measured.items():
        ratios = [run["per_s"] / one for run, one in zip(runs, base, strict=True)]
        cells = [spread([run["per_s"] for run in runs]), spread(ratios, 3)]
        cells += [spread([run[field] for run in runs], 1) for field in ("p50_ms", "p99_ms")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| | |", "|---|---|", *(f"| {name} | {value:,.0f} |" for name, value in drained.items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8)
    arguments = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="sb-"))
    try:
        measured = measure_rounds(arguments.rounds, arguments.seconds, scratch)
        text = report(measured, measure_drain(scratch), arguments)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    (HERE / "results" / "spine.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
