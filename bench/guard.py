"""What authentication, scopes and limits cost a PUT: beside the same API without them, for API keys and for tokens.

Three API processes on one Valkey and one store, each used in turn, in several rounds; prints medians with their spread
as Markdown and writes them to bench/results/guard.md. Needs wrk. `make bench`, or: python bench/guard.py [--rounds N]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from joserfc import jwt
from joserfc.jwk import ECKey, KeySet

from seriatim.store import Store
from spine import CONNECTIONS, HERE, create_series, seriatim, spread, wrk

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Api:
    """One API process, and what its callers send as credentials."""

    def __init__(self, name: str, command: list[str], credentials: str, environment: dict[str, str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self.credentials = credentials
        arguments = [sys.executable, *command, "serve", "--port", str(port)]
        self.process = subprocess.Popen(arguments, env=environment, cwd=HERE)
        for _ in range(400):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return
            time.sleep(0.05)
        raise SystemExit(f"{name} does not start")

    def run(self, seconds: float) -> tuple[float, float]:
        """Puts entries into a new series for some seconds: how many a second, and CPU seconds of 1,000."""
        series = create_series(self.url, self.credentials)
        wrk(self.url, self.credentials, series, 1)
        before = self._cpu_s()
        run = wrk(self.url, self.credentials, series, seconds)
        return run["per_s"], (self._cpu_s() - before) / (run["per_s"] * seconds) * 1000

    def _cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


@contextlib.contextmanager
def apis(scratch: Path) -> Iterator[list[Api]]:
    """Runs the three beside one Valkey without workers."""
    directory = scratch / "data"
    directory.mkdir()
    with seriatim(0, directory) as (_, key):
        store = Store(f"sqlite:///{directory / 'store.db'}")
        company = store.companies()[0].id
        store.close()
        private = ECKey.generate_key("P-256", {"kid": "bench"})
        (scratch / "jwks.json").write_text(json.dumps(KeySet([private]).as_dict(private=False)))
        claims = {"sub": "bench", "exp": int(time.time()) + 86_400, "scope": "read allocate manage", "company": company}
        token = jwt.encode({"alg": "ES256", "kid": "bench"}, claims, private)
        environment = dict(os.environ) | {
            "SERIATIM_REDIS_URL": f"unix://{directory / 'redis' / 'valkey.sock'}",
            "SERIATIM_STORE_URL": f"sqlite:///{directory / 'store.db'}",
            "SERIATIM_SIGNING_KEY": str(directory / "signing-key.json"),
            "SERIATIM_JWT_JWKS": str(scratch / "jwks.json"),
            "SERIATIM_BACKLOG_MAX": "100000000",
        }
        ours = ["-m", "seriatim"]
        running = [
            Api("without", [str(HERE / "unguarded.py")], "-", environment | {"BENCH_COMPANY": company}),
            Api("API key", ours, key, environment),
            Api("token (ES256)", ours, token, environment),
        ]
        try:
            yield running
        finally:
            for api in running:
                api.process.terminate()
                api.process.wait()


def measure(rounds: int, seconds: float, scratch: Path) -> dict[str, list[tuple[float, float]]]:
    """One run of each a round; each round begins with another, so that a drift of the machine favours none."""
    with apis(scratch) as running:
        measured: dict[str, list[tuple[float, float]]] = {api.name: [] for api in running}
        for number in range(rounds):
            turn = number % len(running)
            for api in running[turn:] + running[:turn]:
                measured[api.name].append(api.run(seconds))
    return measured


def report(measured: dict[str, list[tuple[float, float]]], arguments: argparse.Namespace) -> str:
    """The results as Markdown."""
    base = measured["without"]
    about = (
        f"`python bench/guard.py --rounds {arguments.rounds} --seconds {arguments.seconds:.0f}`, {CONNECTIONS} "
        f"connections, fsync before every answer, workers paused. {os.cpu_count()} cores ({platform.machine()}), "
        f"shared by client, API and Valkey; Python {platform.python_version()}. Median (smallest to largest) of the "
        "rounds; ratios are of runs in the same round."
    )
    table = ["| | PUT/s | ratio | CPU s per 1,000 | ratio |", "|---|---|---|---|---|"]
    lines = ["# Guard: what authentication, scopes and limits cost a PUT", "", about, "", *table]
    for name, runs in measured.items():
        cells = []
        for at, digits in ((0, 0), (1, 3)):
            cells.append(spread([run[at] for run in runs], digits))
            cells.append(spread([run[at] / one[at] for run, one in zip(runs, base, strict=True)], 3))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=5)
    arguments = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="sb-"))
    try:
        text = report(measure(arguments.rounds, arguments.seconds, scratch), arguments)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    (HERE / "results" / "guard.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
