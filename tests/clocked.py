"""Real servers whose clocks a test sets: a Valkey, and API processes whose clocks are some minutes off.

libfaketime is loaded into each process and reads the time from a file whenever the process asks for it. The clocks that
matter stand still between two settings, so that a test knows the exact time of everything.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from http.client import HTTPConnection, HTTPMessage
from pathlib import Path
from typing import Any

from faketime import environment, forget
from seriatim import auth
from seriatim.store import Store
from stack import SERIATIM, Valkey, new_id, until

SHARDS = 4
IDLE_S = 2.0
"""After this time a client connects anew, long before a front closes idle connections."""
SERVER, WORKER = "server", "worker"
FRONTS = ("front0", "front1")
"""The names of the clocks."""


class Clocks:
    """The clocks of some processes, by names. They stand still, or run, until all are set at the same moment."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._editions = 0
        path.mkdir()

    def set(self, standing_ms: Mapping[str, int], running_ms: Mapping[str, int]) -> None:
        """Sets all clocks, as milliseconds since 1970: those that stand still, and those that run on from there."""
        self._editions += 1
        edition = self._path / str(self._editions)
        edition.mkdir()
        for name, ms in standing_ms.items():
            written = datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
            (edition / name).write_text(f"{written}.{ms % 1000:03d}5")  # half a millisecond: no rounding reaches it
        for name, ms in running_ms.items():
            (edition / name).write_text(f"{ms / 1000 - time.time():+.3f}")
        link = self._path / "next"
        link.symlink_to(edition.name)
        link.replace(self._path / "now")  # old editions stay, for whoever is just opening one

    def environment(self, name: str, outer: Mapping[str, str]) -> dict[str, str]:
        """What makes a process go by a clock."""
        return environment(self._path / "now" / name, outer)


@dataclass(frozen=True)
class Answer:
    """What a front answered."""

    status: int
    headers: HTTPMessage
    text: str

    @cached_property
    def content(self) -> Any:
        return json.loads(self.text)


class ClockedFront:
    """A `seriatim serve` behind a socket that survives it, and a client of it for each thread that asks.

    A plain client: thousands of requests are made, and httpx takes longer over one than the server does.
    """

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self._environment = environment
        self._log = log
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._clients = threading.local()

    def start(self) -> None:
        descriptor = self._listener.fileno()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*SERIATIM, "serve", "--fd", str(descriptor)],
                env=self._environment,
                pass_fds=[descriptor],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def ready(self) -> None:
        """Waits until it allocates."""
        until(lambda: self.ask("GET", "/readyz").status == 200)

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """Sends a request and returns the answer."""
        client = self._client()
        content = None if body is None else json.dumps(body).encode()
        client.request(method, path, content, dict(headers or {}))
        response = client.getresponse()
        answer = Answer(response.status, response.headers, response.read().decode())
        self._clients.used_at = time.monotonic()
        return answer

    def _client(self) -> HTTPConnection:
        known: HTTPConnection | None = getattr(self._clients, "client", None)
        if known and time.monotonic() - self._clients.used_at < IDLE_S:
            return known
        if known:
            known.close()
        self._clients.client = HTTPConnection("127.0.0.1", self._listener.getsockname()[1], timeout=20)
        client: HTTPConnection = self._clients.client
        return client

    def restart(self) -> None:
        """SIGKILL, and another process behind the same socket."""
        self._kill()
        self._clients = threading.local()  # the connections have died with the process
        self.start()
        self.ready()

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        forget(self._process.pid)

    def stop(self) -> None:
        self._kill()
        self._listener.close()


class ClockedWorker:
    """A worker that settles when it is told to."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).parent / "obedient_worker.py")],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def settle(self, what: str) -> None:
        """Settles a slice of a shard, or `all`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != "done\n":
            self._process.wait()
            raise AssertionError(f"the worker has died: {self._log.read_text()}")

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()
        forget(self._process.pid)


class ClockedStack:
    """A Valkey, a SQLite store, two fronts, and a worker that waits for orders."""

    def __init__(self, path: Path) -> None:
        self._clocks = Clocks(path / "clocks")
        self.set_clocks(time.time_ns() // 1_000_000, [0, 0])
        # Valkey's timers stand still too: while they run, its time creeps on by fractions of a millisecond. What it
        # does by them, such as closing idle clients, nobody misses.
        standing = self._clocks.environment(SERVER, os.environ)
        del standing["FAKETIME_DONT_FAKE_MONOTONIC"]
        self.valkey = Valkey(path, environment=standing)
        self.environment = self.valkey.directory.environment(os.environ) | {"SERIATIM_SHARDS": str(SHARDS)}
        self.store = Store(self.environment["SERIATIM_STORE_URL"])
        self.store.migrate()
        self.store.prepare(SHARDS)
        self.fronts = [
            ClockedFront(self._clocks.environment(name, self.environment), path / "fronts.log") for name in FRONTS
        ]
        for front in self.fronts:
            front.start()
        self._worker = ClockedWorker(self._clocks.environment(WORKER, self.environment), path / "worker.log")
        for front in self.fronts:
            front.ready()

    def set_clocks(self, now_ms: int, skews_ms: Sequence[int]) -> None:
        """Sets the clock of Valkey and the worker, and those of the fronts to so much more."""
        fronts = {name: now_ms + skew for name, skew in zip(FRONTS, skews_ms, strict=True)}
        # The worker's clock runs: its locks are named by UUIDs of the time, which wait for the clock to move.
        self._clocks.set({SERVER: now_ms} | fronts, {WORKER: now_ms})

    def settle(self, what: str) -> None:
        """Lets the worker settle a slice of a shard, or `all`."""
        self._worker.settle(what)

    def new_company(self) -> tuple[str, str]:
        """Creates a company, and returns an API key of it, and how records name its holder."""
        company = self.store.create_company(new_id(), "test")
        key, kept = auth.create_key(self.store, [company.id], auth.SCOPES, "test")
        return key, f"key {kept.id}"

    def stop(self) -> None:
        self._worker.stop()
        for front in self.fronts:
            front.stop()
        self.store.close()
        self.valkey.kill()
        forget(self.valkey.process.pid)
