"""`seriatim load` beside the torture: a process of its own, whose books of what was answered know of no fault."""

from __future__ import annotations

import json
import signal
import subprocess
from contextlib import suppress
from typing import Any

from stack import SERIATIM, until
from torture.services import Services

END_S = 180.0
MIX = "new=80,replay=12,batch=4,list=4"
MIX_OF_NEW = "new=95,batch=5"


class Load:
    """A load that runs until `end`, and is then audited by itself.

    Args:
        services: what is loaded.
        rate: requests a second.
        deadline_s: for how long one is repeated.
        mix: kinds of requests; replays of numbers that are lost would be new ones.
    """

    def __init__(self, services: Services, rate: float, deadline_s: float, mix: str) -> None:
        shape = ["--series-count", "6", "--zipf", "0.7", "--connections", "24", "--batch-size", "25", "--mix", mix]
        times = ["--rate", str(rate), "--duration", "3600", "--deadline", str(deadline_s), "--settle", "90"]
        command = [*SERIATIM, "load", services.url, "--key", services.key, *shape, *times, "--json"]
        self._said = services.directory.path / "load.err"
        with self._said.open("wb") as err:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, start_new_session=True)
        try:
            until(lambda: "p50" in self._said.read_text(), 60)
        except AssertionError:
            self.kill()
            raise AssertionError(self._said.read_text()) from None

    def end(self) -> dict[str, Any]:
        """Has it send no more, and returns its audit."""
        self._process.send_signal(signal.SIGINT)
        try:
            printed, _ = self._process.communicate(timeout=END_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return {"sound": False, "entries": 0, "findings": [], "found": {"audit did not end": 1}}
        if self._process.returncode not in (0, 1):
            tail = self._said.read_text()[-2000:]
            return {"sound": False, "entries": 0, "findings": [], "found": {f"no audit: {tail}": 1}}
        summary: dict[str, Any] = json.loads(printed)
        return summary

    def kill(self) -> None:
        """Ends it at once."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
