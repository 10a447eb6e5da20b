"""Ours in parts, for what `seriatim up` does not do: other stores, other API processes, a worker that starts later."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import redis
import sqlalchemy as sa

from client import Load, run
from contenders import PYTHON, UNLIMITED, Ours, answers, backlog, free_port
from machine import cpu_s
from seriatim.config import Config
from seriatim.model import shard_of
from seriatim.store import Store
from seriatim.tables import companies, series
from servers import Valkey, until

OURS = ["-m", "seriatim"]
POLL_S = 0.02
OK = 200


class Front(Ours):
    """One API process."""

    def __init__(self, name: str, key: str, command: Sequence[str], environment: dict[str, str]) -> None:
        self.name = name
        self.key = key
        self.redis_url = environment["SERIATIM_REDIS_URL"]
        self._command = command
        self._environment = environment

    def start(self) -> None:
        """Starts it."""
        self.port = free_port()
        arguments = [PYTHON, *self._command, "serve", "--port", str(self.port)]
        self._process = subprocess.Popen(arguments, env=self._environment, cwd=Path(__file__).parent)
        until(lambda: answers(self.port, "/readyz") == OK, f"{self.name} does not start", self._process)

    @property
    def roots(self) -> list[int]:
        """The process."""
        return [self._process.pid]

    def kill(self) -> None:
        """Ends it at once."""
        super().kill()
        self._process.wait()


class Parts:
    """A Valkey and a store, with a company and its key; API processes and workers come and go.

    Args:
        directory: for the Valkey's files and the signing key, and the store when that is SQLite.
        store_url: the store, SQLite unless given.
    """

    def __init__(self, directory: Path, store_url: str = "") -> None:
        self.valkey = Valkey(directory)
        self.client = redis.Redis.from_url(self.valkey.url)
        self.environment = dict(os.environ) | UNLIMITED
        self.environment |= {
            "SERIATIM_REDIS_URL": self.valkey.url,
            "SERIATIM_STORE_URL": store_url or f"sqlite:///{directory / 'store.db'}",
            "SERIATIM_SIGNING_KEY": str(directory / "signing-key.json"),
            "SERIATIM_LOG_LEVEL": "error",
        }
        self._command("migrate")
        self.company: str = self._command("companies", "create", "bench")["id"]
        self.key: str = self._command("keys", "create", "--company", self.company)["key"]

    def _command(self, *arguments: str) -> Any:
        command = [PYTHON, *OURS, *arguments, "--json"]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=self.environment)
        return json.loads(done.stdout)

    @contextlib.contextmanager
    def front(
        self, name: str = "Seriatim", key: str = "", command: Sequence[str] = OURS, **more: str
    ) -> Iterator[Front]:
        """Runs an API process."""
        front = Front(name, key or self.key, command, self.environment | more)
        front.start()
        try:
            yield front
        finally:
            front.kill()

    @contextlib.contextmanager
    def worker(self) -> Iterator[subprocess.Popen[bytes]]:
        """Runs a worker."""
        process = subprocess.Popen([PYTHON, *OURS, "worker"], env=self.environment)
        try:
            yield process
        finally:
            process.terminate()
            process.wait()

    def backlog(self) -> int:
        """How many records wait for the store."""
        return backlog(self.client)

    def settle(self) -> None:
        """Drains with one worker."""
        self._drain(self.backlog())

    def drain(self) -> tuple[float, float]:
        """Drains with one worker: entries a second behind its first slice, and its CPU seconds for 1,000."""
        waiting = self.backlog()
        begun = [point for point in self._drain(waiting) if point[1] < waiting]
        if len(begun) < 2:  # noqa: PLR2004
            raise SystemExit(f"{waiting:,} entries are settled in one slice: too few to measure.")
        (from_s, from_left, from_cpu), (to_s, _, to_cpu) = begun[0], begun[-1]
        return from_left / (to_s - from_s), (to_cpu - from_cpu) / from_left * 1000

    def _drain(self, left: int) -> list[tuple[float, int, float]]:
        points = []
        with self.worker() as worker:
            while left:
                before, left = left, self.backlog()
                if left != before:  # else the look at all processes is left out, which takes a while
                    points.append((time.perf_counter(), left, sum(cpu_s([worker.pid]).values())))
                assert worker.poll() is None, "the worker has ended"
                time.sleep(POLL_S)
        return points

    def fill(self, front: Front, series: Sequence[str], count: int) -> int:
        """Issues at least so many numbers, by batches; returns how many wait for the store then."""
        load = Load(connections=2, seconds=0.5, batch=1000, warm_up_s=0)
        while self.backlog() < count:
            run(front, series, load)
        return self.backlog()

    def copy_series(self, front: Front, count: int) -> list[str]:
        """Makes series by the thousand, which HTTP takes long for: rows like that of a series of the front's."""
        (made,) = front.create_series(1)
        store = Store(self.environment["SERIATIM_STORE_URL"])
        copies = [str(uuid.uuid4()) for _ in range(count)]
        with contextlib.closing(store), store.write() as connection:
            row = dict(connection.execute(sa.select(series).where(series.c.id == made)).one()._mapping)  # noqa: SLF001 -- SQLAlchemy's public name for it
            assert row["position"] == 0, "its first entry is settled"
            row |= {"is_default": False, "loaded_epoch": None}
            del row["pk"]
            shards = Config().shards
            rows = [
                row | {"id": one, "ordinal": 1 + number, "shard": shard_of(one, shards)}
                for number, one in enumerate(copies, row["ordinal"])
            ]
            connection.execute(sa.insert(series), rows)
            connection.execute(sa.update(companies).values(series_made=companies.c.series_made + count))
        return copies

    def redis_bytes(self) -> int:
        """Bytes that the Valkey takes, without what its connections and its log take at the moment."""
        memory = self.client.info("memory")
        return int(memory["used_memory"] - memory["mem_clients_normal"] - memory["mem_aof_buffer"])

    def close(self) -> None:
        """Ends the Valkey."""
        self.client.close()
        self.valkey.kill()
