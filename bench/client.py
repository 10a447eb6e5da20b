"""The load: client.c, compiled when it is first needed, and what it measured."""

from __future__ import annotations

import atexit
import json
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from contenders import Contender
from machine import cpu_s, difference, memory_bytes
from rivals.documents import META

HERE = Path(__file__).parent
WARM_UP_S = 0.5


class Load(msgspec.Struct, frozen=True):
    """What the client does.

    Args:
        connections: kept alive.
        rate: requests a second that fall due, whatever the answers do; 0 sends the next when the last is answered.
        batch: entries a request (POST .../entries); 0 for one by PUT.
        seconds: for how long, after a warm-up.
        warm_up_s: for how long before.
    """

    connections: int
    seconds: float
    rate: float = 0
    batch: int = 0
    warm_up_s: float = WARM_UP_S


class Run(msgspec.Struct, frozen=True):
    """What was measured. Latencies are in ms; CPU seconds are per 1,000 numbers, memory is as it was at the end."""

    per_s: float
    numbers_per_s: float
    answers: int
    p50: float
    p90: float
    p99: float
    p999: float
    max: float
    unanswered: int
    answer_bytes: float
    client_cpu_s: float
    cpu_s: dict[str, float]
    memory_bytes: dict[str, int]
    settled_per_s: float
    """Numbers a second that reached the store meanwhile."""
    backlog: int
    """Numbers that waited for the store at the end."""


@cache
def program() -> Path:
    """Returns the compiled client."""
    directory = tempfile.mkdtemp(prefix="bench-client-")
    atexit.register(shutil.rmtree, directory)
    made = Path(directory) / "client"
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-o", made, HERE / "client.c", "-lm"], check=True)
    return made


def run(contender: Contender, series: Sequence[str], load: Load) -> Run:
    """Loads a contender.

    Raises:
        SystemExit: an answer was not 200, or what was answered is not what is kept: such a figure means nothing.
    """
    numbers = contender.numbers()
    with tempfile.NamedTemporaryFile("w", prefix="series-") as file:
        file.write("\n".join(series) + "\n")
        file.flush()
        known = [str(contender.port), contender.key, file.name, json.dumps(META, separators=(",", ":"))]
        wanted = [load.connections, load.rate, load.batch, load.warm_up_s, load.seconds]
        command = [str(program()), *known, *map(str, wanted)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        before, waited = cpu_s(contender.roots), contender.backlog()
        process.stdout.readline()
        after, backlog = cpu_s(contender.roots), contender.backlog()
        said = process.stdout.readline()
        if process.wait() or not said:
            raise SystemExit(f"The load of {contender.name} ended with {process.returncode}.")
    measured = json.loads(said)
    _check(contender, load, measured, numbers)
    settled = measured["numbers_per_s"] - (backlog - waited) / load.seconds
    measured |= {"backlog": backlog, "settled_per_s": round(max(0.0, settled), 1)}
    return _result(contender, measured, difference(before, after))


def _check(contender: Contender, load: Load, said: dict[str, Any], before: tuple[int, int] | None) -> None:
    """Refuses a run with a failure, or after which counters and entries are not where the answers say."""
    if said["errors"] or (said["unanswered"] and not load.rate):
        raise SystemExit(
            f"{contender.name} refused or left {said['errors'] + said['unanswered']} requests: no figures."
        )
    after = contender.numbers()
    if before is None or after is None:
        return
    least = said["acknowledged"]
    added = [new - old for old, new in zip(before, after, strict=True)]
    if not least <= added[0] == added[1] <= least + said["under_way"]:
        raise SystemExit(f"{contender.name} answered {least} numbers, counted {added[0]} and keeps {added[1]} entries.")


def _result(contender: Contender, said: dict[str, Any], used: dict[str, float]) -> Run:
    thousands = said["numbers_per_s"] * said.pop("seconds") / 1000
    cpu = {group: round(seconds / thousands, 4) for group, seconds in used.items()} if thousands else {}
    client = round(said.pop("cpu_s") / thousands, 4) if thousands else 0.0
    memory = memory_bytes(contender.roots)
    return msgspec.convert(said | {"cpu_s": cpu, "client_cpu_s": client, "memory_bytes": memory}, Run)


class Checked(msgspec.Struct, frozen=True):
    """What a client measured, and its own CPU seconds for 1,000 requests."""

    per_s: float
    p50: float
    p99: float
    cpu_s: float


def run_wrk(contender: Contender, series: str, load: Load) -> Checked:
    """Loads a contender with wrk."""
    script = ["-s", str(HERE / "put.lua"), f"http://127.0.0.1:{contender.port}", "--", contender.key, series]
    before = _children_cpu_s()
    command = ["wrk", "-t1", f"-c{load.connections}", f"-d{load.seconds:.0f}s", *script]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    cpu = _children_cpu_s() - before
    said = json.loads(output.splitlines()[-1])
    if said["errors"]:
        raise SystemExit(output)
    return Checked(said["per_s"], said["p50_ms"], said["p99_ms"], round(cpu / said["requests"] * 1000, 4))


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
