"""Who is measured: ours, and the rivals, each started as its users would start it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import psycopg
import redis

from machine import kill
from rivals.documents import KEY
from rivals.postgres import SCHEMA
from seriatim import recovery
from seriatim.config import Config
from seriatim.directory import DataDirectory
from seriatim.errors import Halted
from seriatim.keyspace import shard_key
from servers import PostgreSQL, Valkey, until

HERE = Path(__file__).parent
PYTHON = sys.executable
UVICORN = ["--loop", "uvloop", "--http", "httptools", "--log-level", "error", "--no-access-log", "--no-server-header"]
"""As `seriatim serve` runs it."""
THREADS = 8
"""Of each gunicorn worker: more only wait for the row of the sequence."""
UNLIMITED = {"SERIATIM_BACKLOG_MAX": "100000000", "SERIATIM_SERIES_MAX": "1000000"}
START_S = 30
SCANNED = 10_000
"""Keys that one step of a scan looks at."""
TRIES = 100
TRY_PAUSE_S = 0.05


class Contender(ABC):
    """A stack that hands out numbers."""

    name: str
    port: int
    key: str = KEY

    @abstractmethod
    def start(self) -> None:
        """Starts it, anew or on what it had."""

    @property
    @abstractmethod
    def roots(self) -> list[int]:
        """The processes that all of its processes descend from."""

    @abstractmethod
    def create_series(self, count: int) -> list[str]:
        """Makes series, and returns their ids."""

    @abstractmethod
    def numbers(self) -> tuple[int, int] | None:
        """Returns how far its counters have come, and how many entries it keeps; None when it keeps none."""

    def backlog(self) -> int:
        """Returns how many numbers wait for the store; those who have no other store than the first have none."""
        return 0

    def kill(self) -> None:
        """Ends all of its processes at once, as a power cut would."""
        kill(self.roots)


class Ours(Contender):
    """One that speaks our API."""

    redis_url: str

    def create_series(self, count: int) -> list[str]:
        """Makes series, each with one entry."""
        series = [str(uuid.uuid4()) for _ in range(count)]
        with contextlib.closing(HTTPConnection("127.0.0.1", self.port)) as connection:
            for one in series:
                self.ask(connection, "PUT", f"/sequence/v1/series/{one}", b'{"prefix": "INV-", "padding": 6}')
        self.begin(series)
        return series

    def begin(self, series: Sequence[str]) -> None:
        """Issues the first entry of series: an API process reads a series when it first numbers in it."""
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(self._begin, (series[number::8] for number in range(8))))

    def _begin(self, series: Sequence[str]) -> None:
        with contextlib.closing(HTTPConnection("127.0.0.1", self.port)) as connection:
            for one in series:
                self.ask(connection, "PUT", f"/sequence/v1/series/{one}/entries/{uuid.uuid4()}", b"{}")

    def ask(self, connection: HTTPConnection, method: str, path: str, body: bytes = b"") -> bytes:
        """Returns the body of an answer, which must be 200."""
        connection.request(method, path, body, {"Authorization": f"Bearer {self.key}"})
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == 200, content  # noqa: PLR2004
        return content

    def numbers(self) -> tuple[int, int]:
        """Positions of all series, and what is settled or waits."""
        with redis.Redis.from_url(self.redis_url) as client:
            for _ in range(TRIES):
                with contextlib.suppress(Halted):  # a worker settled while it was counted
                    found = recovery.held(client, Config().shards).values()
                    return sum(one.state.position for one in found), sum(one.reached[0] for one in found)
                time.sleep(TRY_PAUSE_S)
        raise SystemExit(f"{self.name} does not hold still to be counted")

    def backlog(self) -> int:
        """Returns how many records wait for the store."""
        with redis.Redis.from_url(self.redis_url) as client:
            return backlog(client)


def backlog(client: redis.Redis) -> int:
    """Returns how many records wait for the store."""
    pipeline = client.pipeline(transaction=False)
    for shard in range(Config().shards):
        pipeline.hget(shard_key(shard), "backlog")
    return sum(int(count or 0) for count in pipeline.execute())


class Seriatim(Ours):
    """`seriatim up` on a directory, with its API key of the first start."""

    def __init__(self, name: str, directory: Path, *, workers: int, processes: int = 1) -> None:
        self.name = name
        self.redis_url = f"unix://{DataDirectory(directory).socket}"
        self._workers = workers
        counts = ["--workers", str(workers), "--api-processes", str(processes)]
        arguments = ["up", "--json", "--port", "0", "--data-dir", str(directory), *counts]
        self._command = [PYTHON, "-m", "seriatim", *arguments]

    def start(self) -> None:
        """Starts it and waits until it is ready."""
        environment = dict(os.environ) | UNLIMITED
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self._process.stdout is not None
        while True:
            assert select.select([self._process.stdout], [], [], START_S)[0], "`seriatim up` says nothing"
            event = json.loads(self._process.stdout.readline())
            if event["event"] == "key":
                self.key = event["key"]
            else:
                self.port = int(event["ready"].rpartition(":")[2])
                return

    def create_series(self, count: int) -> list[str]:
        """Makes series; when a worker has settled an entry of each, it has started as well."""
        series = super().create_series(count)
        if self._workers:
            until(lambda: self.backlog() == 0, "the worker settles nothing", self._process)
        return series

    @property
    def roots(self) -> list[int]:
        """The supervisor."""
        return [self._process.pid]

    def kill(self) -> None:
        """Ends the supervisor at once; the kernel ends the others with it."""
        super().kill()
        self._process.wait()


class Rival(Contender):
    """An app behind its usual server, and the database server that it uses."""

    def __init__(self, name: str, command: Callable[[int], list[str]], server: Valkey | PostgreSQL | None) -> None:
        self.name = name
        self.server = server
        self._command = command
        self._api: subprocess.Popen[Any] | None = None

    def start(self) -> None:
        """Starts the app, and the server if that was killed."""
        if self.server and self.server.process.poll() is not None:
            self.server.start()
        self.port = free_port()
        self._api = subprocess.Popen(self._command(self.port), cwd=HERE, env=environment(self.server))
        until(lambda: bool(answers(self.port)), f"{self.name} does not start", self._api)

    @property
    def roots(self) -> list[int]:
        """The app's server, and the database server."""
        return [process.pid for process in (self._api, self.server and self.server.process) if process]

    def create_series(self, count: int) -> list[str]:
        """Returns new ids: a rival makes a series when it is first used."""
        return [str(uuid.uuid4()) for _ in range(count)]

    def numbers(self) -> tuple[int, int] | None:
        """Nothing, unless there is a database."""
        return None

    def kill(self) -> None:
        """Ends everything at once."""
        super().kill()
        for process in (self._api, self.server and self.server.process):
            if process:
                process.wait()


class RedisRival(Rival):
    """One with a counter and a hash of entries for each series."""

    def numbers(self) -> tuple[int, int]:
        """Counters, and fields of the hashes."""
        assert isinstance(self.server, Valkey)
        with redis.Redis.from_url(self.server.url) as client:
            pipeline = client.pipeline()
            for key in client.scan_iter("last:*", count=SCANNED):
                pipeline.get(key).hlen(key.replace(b"last:", b"entries:"))
            found = [int(count) for count in pipeline.execute()]
        return sum(found[::2]), sum(found[1::2])


class PostgresRival(Rival):
    """One whose series are rows."""

    numbered = "SELECT (SELECT coalesce(sum(last), 0) FROM series), (SELECT count(*) FROM entries)"

    def start(self) -> None:
        """Makes the tables, if they are missing, and starts."""
        with self._connect() as connection:
            if connection.execute("SELECT to_regclass('series')").fetchone() == (None,):
                connection.execute(SCHEMA)
        super().start()

    def create_series(self, count: int) -> list[str]:
        """Adds rows."""
        series = super().create_series(count)
        with self._connect() as connection:
            connection.cursor().executemany("INSERT INTO series (id) VALUES (%s)", [(one,) for one in series])
            connection.execute("ANALYZE series")
        return series

    def numbers(self) -> tuple[int, int]:
        """What its tables say."""
        with self._connect() as connection:
            found = connection.execute(self.numbered).fetchone()
        assert found is not None
        return int(found[0]), int(found[1])

    def _connect(self) -> psycopg.Connection:
        assert isinstance(self.server, PostgreSQL)
        if self.server.process.poll() is not None:
            self.server.start()
        return psycopg.connect(self.server.dsn())


class DjangoRival(PostgresRival):
    """One that makes its tables itself, and series when they are first used."""

    numbered = "SELECT coalesce(sum(last), 0), (SELECT count(*) FROM invoicing_invoice) FROM sequences_sequence"

    def start(self) -> None:
        """Migrates, if need be, and starts."""
        migrate = [PYTHON, "-m", "django", "migrate", "--run-syncdb", "--verbosity", "0"]
        with self._connect():
            subprocess.run(migrate, check=True, cwd=HERE, env=environment(self.server))
        Rival.start(self)

    def create_series(self, count: int) -> list[str]:
        """Returns new ids."""
        return Rival.create_series(self, count)


def environment(server: Valkey | PostgreSQL | None) -> dict[str, str]:
    """Returns what a rival's process is started with."""
    known = dict(os.environ) | {"DJANGO_SETTINGS_MODULE": "rivals.invoicing.settings"}
    return known | (server.environment() if server else {})


def free_port() -> int:
    """Returns a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def answers(port: int, path: str = "/") -> int:
    """Returns the status that HTTP is answered with there; 0 while it is not."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
    except (OSError, HTTPException):
        return 0
    else:
        return answer.status
    finally:
        connection.close()


def _uvicorn(app: str, processes: int) -> Callable[[int], list[str]]:
    more = ["--workers", str(processes)] if processes > 1 else []
    return lambda port: [PYTHON, "-m", "uvicorn", f"rivals.{app}:app", "--port", str(port), *UVICORN, *more]


def _gunicorn(processes: int) -> Callable[[int], list[str]]:
    workers = ["--worker-class", "gthread", "--workers", str(2 * processes), "--threads", str(THREADS)]
    app = "django.core.wsgi:get_wsgi_application()"
    more = ["--keep-alive", "60", "--log-level", "error"]
    return lambda port: [PYTHON, "-m", "gunicorn", app, "--bind", f"127.0.0.1:{port}", *workers, *more]


BARE, SYNCED, PAUSED, BESIDE, BATCHED, REDIS, EACH, DJANGO = NAMES = (
    "bare",
    "synced",
    "seriatim",
    "settling",
    "batched",
    "redis",
    "postgres",
    "django",
)
TITLES = {
    BARE: "bare ASGI app",
    SYNCED: "bare ASGI app, synced to disk",
    PAUSED: "Seriatim, workers paused",
    BESIDE: "Seriatim, one worker beside",
    BATCHED: "PostgreSQL, batched",
    REDIS: "Redis, a call each",
    EACH: "PostgreSQL, a transaction each",
    DJANGO: "django-sequences",
}


class Arena:
    """Where contenders are started, one after the other, each with nothing from before.

    Args:
        scratch: a directory on a disk.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._count = 0
        self._postgresql: PostgreSQL | None = None

    def directory(self) -> Path:
        """Returns a new directory."""
        self._count += 1
        made = self._scratch / str(self._count)
        made.mkdir()
        return made

    def postgresql(self) -> PostgreSQL:
        """Returns a running PostgreSQL with an empty database."""
        if self._postgresql is None:
            self._postgresql = PostgreSQL(self._scratch / "postgresql")
        elif self._postgresql.process.poll() is not None:
            self._postgresql.start()
        self._postgresql.empty()
        return self._postgresql

    def make(self, name: str, processes: int = 1) -> Contender:  # noqa: PLR0911 -- one for each contender
        """Returns a contender that has yet to be started."""
        match name:
            case "bare":
                return Rival(name, _uvicorn("bare", processes), None)
            case "synced":
                on_disk = ["env", f"BENCH_DIRECTORY={self.directory()}"]
                return Rival(name, lambda port: on_disk + _uvicorn("synced", processes)(port), None)
            case "redis":
                return RedisRival(name, _uvicorn("redis_each", processes), Valkey(self.directory()))
            case "django":
                return DjangoRival(name, _gunicorn(processes), self.postgresql())
            case "postgres":
                return PostgresRival(name, _uvicorn("postgres_each", processes), self.postgresql())
            case "batched":
                return PostgresRival(name, _uvicorn("postgres_batched", processes), self.postgresql())
            case _:
                return Seriatim(name, self.directory(), workers=int(name == BESIDE), processes=processes)

    def close(self) -> None:
        """Ends the server that contenders share."""
        if self._postgresql is not None:
            self._postgresql.kill()

    @contextlib.contextmanager
    def running(self, name: str, processes: int = 1) -> Iterator[Contender]:
        """Runs a contender, and ends it at once: what it has is not used again."""
        contender = self.make(name, processes)
        contender.start()
        try:
            yield contender
        finally:
            contender.kill()
