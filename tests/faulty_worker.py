"""A real `seriatim worker` that dies by SIGKILL at a named point; the fault lives here, outside the product.

Usage: faulty_worker.py POINT, with the settings in the environment.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from seriatim import outbox, scripts, signing_process, worker
from seriatim.config import read
from seriatim.signing_process import SigningProcess
from seriatim.store import Store
from seriatim.worker import Drainer


def die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def after(function: Any, calls: int) -> Any:
    """The function, and death behind its `calls`-th call."""
    count = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        result = function(*args, **kwargs)
        count += 1
        if count == calls:
            die()
        return result

    return wrapped


POINTS: dict[str, tuple[Any, str, Any]] = {
    "before reading": (outbox, "read", die),
    "after reading": (outbox, "read", after(outbox.read, 1)),
    "while signing": (SigningProcess, "receipts", after(SigningProcess.receipts, 2)),
    "signing ahead": (Drainer, "_read", after(Drainer._read, 2)),
    "before commit": (Store, "commit", die),
    "inside the transaction": (Store, "_count", die),
    "between commit and settle": (scripts, "settle", die),
    "between two settles": (scripts, "settle", after(scripts.settle, 1)),
    "after the second slice": (Store, "commit", after(Store.commit, 2)),
}

if __name__ == "__main__":
    holder, name, fault = POINTS[sys.argv[1]]
    setattr(holder, name, fault)
    worker.SLICE_RECORDS_MAX = 100
    signing_process.FEW = 20
    worker.run(read(os.environ))
