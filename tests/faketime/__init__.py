"""A clock that tests set, for real servers: libfaketime is loaded into every process that has its environment.

It goes on from where it is set, and may be set again, forward or back, while the processes run. Only the time of day is
faked. Timers go by the monotonic clock, which is left alone: threads that wait with a timeout would wait for ever.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent


class Clock:
    """The time of day, kept in a file that all processes of one clock read whenever they ask for the time."""

    def __init__(self, file: Path, at: str, *, ahead_s: float = 0.0) -> None:
        self._file = file
        self.set(at, ahead_s=ahead_s)

    def set(self, at: str, *, ahead_s: float = 0.0) -> None:
        """Sets it to a time in UTC, such as `2025-12-31 21:59:59.5`, and so much later."""
        offset_s = datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp() + ahead_s - time.time()
        self._write(f"{offset_s:+.3f}")

    def stop_at(self, at: str) -> None:
        """Sets it to a time in UTC where it stands still. A worker would wait for it to move."""
        self._write(f"{datetime.fromisoformat(at):%Y-%m-%d %H:%M:%S}.5")

    def _write(self, what: str) -> None:
        new = self._file.with_name(f"{self._file.name}.new")
        new.write_text(f"{what}\n")
        new.replace(self._file)  # whoever reads it now reads the old time or the new one

    @property
    def environment(self) -> dict[str, str]:
        """The environment of this process, with what makes a process go by this clock."""
        return environment(self._file, os.environ)


def environment(file: Path, outer: Mapping[str, str]) -> dict[str, str]:
    """Returns `outer` with what makes a process go by the clock that a file keeps."""
    path = os.pathsep.join(filter(None, [str(HERE), outer.get("PYTHONPATH")]))
    return dict(outer) | {
        "LD_PRELOAD": str(library()),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # or Python threads that wait for one another spin
        "NO_FAKE_STAT": "1",  # or Python takes its compiled files for old ones
        "PYTHONPATH": path,  # for sitecustomize.py, beside this file
        "TZ": "UTC",
    }


def forget(pid: int) -> None:
    """Removes what libfaketime leaves of a process that a signal has ended."""
    for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
        Path("/dev/shm", name).unlink(missing_ok=True)


def library() -> Path:
    """Where libfaketime is: the variant for threads.

    In the other one, a thread that asks for the time while another does may fail to find the file, and is then told
    the real time.
    """
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    assert found, "libfaketime is missing. Install it: sh .ci/packages"
    return found[0]
