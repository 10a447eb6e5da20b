"""What was done and found, line by line, with its time."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter


class Journal:
    """Tells what happens as it happens; threads may share it."""

    def __init__(self) -> None:
        self.faults: Counter[str] = Counter()
        self.findings: list[str] = []
        self.entries = 0
        self._begun = time.monotonic()
        self._lock = threading.Lock()

    def say(self, what: str) -> None:
        """Prints a line."""
        with self._lock:
            sys.stdout.write(f"{time.monotonic() - self._begun:8.2f}  {what}\n")
            sys.stdout.flush()

    def fault(self, kind: str, detail: str = "") -> None:
        """Notes that a fault was injected."""
        with self._lock:
            self.faults[kind] += 1
        self.say(f"{kind}{f': {detail}' if detail else ''}")

    def find(self, what: str) -> None:
        """Notes that something is wrong."""
        self.findings.append(what)
        self.say(f"FINDING: {what}")

    def summary(self) -> str:
        """Returns the last line: counts by kind, and the verdict."""
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items()))
        verdict = f"{len(self.findings)} findings" if self.findings else "sound"
        total = sum(self.faults.values())
        return f"{self.entries:,} entries, {total} faults of {len(self.faults)} kinds ({counts}): {verdict}"
