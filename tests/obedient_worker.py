"""A worker that settles when it is told to: a line of its input is a shard, of which it settles a bite, or `all`.

It answers each line with `done`. The settings are in the environment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import redis

from seriatim import signing, worker
from seriatim.config import read
from seriatim.signing import Signer
from seriatim.store import Store
from seriatim.worker import Drainer

BITE = (7, 0.001)
MEAL = (worker.SLICE_RECORDS_MAX, worker.TURN_S)
"""How many records at once, and for how long."""


def obey() -> None:
    config = read(os.environ)
    store = Store(config.store_url)
    path = Path(config.signing_key)
    signing.create_key(path)
    signer = Signer(path, config.issuer)
    store.add_signing_key(signer.kid, signer.public_jwk)
    drainer = Drainer(redis.Redis.from_url(config.redis_url), store, signer, config)
    for line in sys.stdin:
        if line == "all\n":
            worker.SLICE_RECORDS_MAX, worker.TURN_S = MEAL
            while any(drainer.drain(shard) for shard in range(config.shards)):
                pass
        else:
            worker.SLICE_RECORDS_MAX, worker.TURN_S = BITE
            drainer.drain(int(line))
        print("done", flush=True)  # noqa: T201 -- an answer


if __name__ == "__main__":
    obey()
