"""A recovery that dies by SIGKILL at a named step; the fault lives here, outside the product.

Usage: faulty_recovery.py STEP, with the settings in the environment; it accepts every loss.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import redis

from faulty_worker import after, die
from seriatim import scripts
from seriatim.config import read
from seriatim.rebuild import Choice, Recovery
from seriatim.signing import Signer
from seriatim.store import Store

STEPS: dict[str, tuple[Any, str]] = {
    "halting": (Store, "halt"),
    "saving": (Store, "commit"),
    "deciding": (Store, "decide_recovery"),
    "forgetting a shard": (redis.Redis, "delete"),
    "forgetting keys": (redis.Redis, "unlink"),
    "enrolling": (scripts, "enroll"),
    "installing": (scripts, "install"),
    "restoring": (scripts, "restore"),
    "restoring claims": (scripts, "install_defaults"),
    "ending": (Store, "end_recovery"),
}
POINTS = [f"{when} {step}" for step in STEPS for when in ("before", "after")]


def main(step: str) -> None:
    when, _, name = step.partition(" ")
    holder, function = STEPS[name]
    setattr(holder, function, die if when == "before" else after(getattr(holder, function), 1))
    config = read(os.environ)
    client = redis.Redis.from_url(config.redis_url)
    signer = Signer(Path(config.signing_key), config.issuer)
    Recovery(client, Store(config.store_url), signer, config, lambda _: None).run(Choice(accept_loss=True))


if __name__ == "__main__":
    main(sys.argv[1])
