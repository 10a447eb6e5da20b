"""What tests start: real servers, on free ports, in directories of their own."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx
import redis
from click.testing import CliRunner

from seriatim.cli import main
from seriatim.directory import DataDirectory
from seriatim.embedded import server_arguments

T = TypeVar("T")
SERIATIM = [sys.executable, "-m", "seriatim"]


def until(condition: Callable[[], T], within_s: float = 20.0) -> T:
    """Waits for a condition to be truthy, and returns it."""
    give_up = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < give_up, f"still {value!r} after {within_s} s"
        time.sleep(0.02)


def ended(pid: int) -> bool:
    """Whether a process has ended, though perhaps nobody has asked for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def new_id() -> str:
    return str(uuid.uuid4())


def seriatim(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a `seriatim` command in this process, which saves the start of another one."""
    done = CliRunner().invoke(main, arguments, env=environment)
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


Brand = Literal["valkey", "redis"]


class Valkey:
    """A Valkey with the embedded server's own arguments; or Debian's Redis with them."""

    brand: Brand = "valkey"
    """Which of the two, where nothing else is said."""

    def __init__(
        self, path: Path, *more: str, environment: Mapping[str, str] | None = None, brand: Brand | None = None
    ) -> None:
        self.brand = brand or self.brand
        self.directory = DataDirectory(path)
        self.directory.redis.mkdir(parents=True, exist_ok=True)
        self.directory.socket.parent.mkdir(parents=True, exist_ok=True)
        self.url = f"unix://{self.directory.socket}"
        self.more = more
        self.environment = environment
        self.start()

    def start(self) -> None:
        program, *arguments = server_arguments(self.directory)
        if self.brand == "redis":
            # What it is by its first argument. The package that has it under its own name would start one, too.
            program, found = "redis-server", shutil.which("redis-check-rdb")
            assert found, "Redis is missing. Install it: sh .ci/packages"
        else:
            found = program
        with (self.directory.path / "valkey.log").open("ab") as log:
            self.process = subprocess.Popen(
                [program, *arguments, *self.more],
                executable=found,
                env=self.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        self.connect()

    def connect(self) -> None:
        """Waits until it answers."""
        self.client = redis.Redis.from_url(self.url)
        until(self._answers)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.exceptions.RedisError:
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()

    def dump(self) -> dict[bytes, bytes | None]:
        """Everything that the server holds, to compare before and after."""
        return {key: self.client.dump(key) for key in sorted(self.client.scan_iter())}


class Up:
    """A `seriatim up`, as a user runs it."""

    def __init__(
        self,
        data_dir: Path,
        *,
        workers: int = 1,
        api_processes: int = 1,
        environment: Mapping[str, str] | None = None,
        key: str = "",
    ) -> None:
        self.data_dir = data_dir
        self.directory = DataDirectory(data_dir)
        self.environment = dict(os.environ) | dict(environment or {})
        self.key = key
        self.url = ""
        self.state = ""
        arguments = ["up", "--json", "--port", "0", "--workers", str(workers), "--data-dir", str(data_dir)]
        self.arguments = [*SERIATIM, *arguments, "--api-processes", str(api_processes)]

    def start(self, within_s: float = 30.0) -> Up:
        """Starts it and waits until it is ready or halted."""
        self.process = subprocess.Popen(
            self.arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self.environment, text=True
        )
        try:
            self._started(within_s)
        except AssertionError:
            self.kill()
            raise
        return self

    def _started(self, within_s: float) -> None:
        for event in self.events(within_s):
            if event["event"] == "key":
                self.key = event["key"]
            else:
                self.state = event["event"]
                self.url = event[self.state].split(" ")[0]
                break

    def events(self, within_s: float) -> Iterator[dict[str, str]]:
        """What it prints, for at most that long."""
        assert self.process.stdout is not None
        give_up = time.monotonic() + within_s
        while True:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, give_up - time.monotonic()))
            log = self.directory.log.read_text()[-4000:] if self.directory.log.exists() else ""
            assert ready, f"`up` says nothing for {within_s} s. Its log: {log}"
            line = self.process.stdout.readline()
            assert line, f"`up` ended with {self.process.wait()}. Its log: {log}"
            yield json.loads(line)

    def pids(self, what: str) -> list[int]:
        """The processes of this stack whose command line contains `what`, such as `seriatim serve`."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            if parent == self.process.pid and what in command:
                found.append(int(entry.name))
        return sorted(found)

    def redis(self) -> redis.Redis:
        return redis.Redis.from_url(f"unix://{self.directory.socket}")

    def client(self, key: str | None = None, timeout: float = 20.0) -> httpx.Client:
        """An HTTP client that carries the first API key."""
        headers = {"Authorization": f"Bearer {self.key if key is None else key}"}
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
        # There is no TLS here, and to get ready for it takes 50 ms.
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout, limits=limits, verify=False)

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a `seriatim` command beside it."""
        done = seriatim(*arguments, "--data-dir", str(self.data_dir), environment=self.environment)
        if check:
            done.check_returncode()
        return done

    def json(self, *arguments: str) -> Any:
        """Runs a `seriatim` command with --json and returns what it prints."""
        return json.loads(self.run(*arguments, "--json", check=False).stdout)

    def kill(self) -> None:
        """SIGKILL to the supervisor."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM to the supervisor; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(25)
        if self.process.stdout:
            self.process.stdout.close()
        return code

    @contextmanager
    def stopped(self, what: str) -> Iterator[None]:
        """A process of this stack does nothing meanwhile."""
        (pid,) = self.pids(what)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    @contextmanager
    def worker_stopped(self) -> Iterator[None]:
        """The worker does nothing meanwhile, and was not stopped in the middle of a write to the store."""
        with ExitStack() as meanwhile:
            with store_held(self.directory):
                meanwhile.enter_context(self.stopped("seriatim worker"))
            yield

    def settled(self) -> None:
        """Waits until every outbox is empty."""
        client = self.redis()
        until(lambda: is_settled(client), 60)


@contextmanager
def store_held(directory: DataDirectory) -> Iterator[None]:
    """Nobody else writes to a store that is a file: what a process holds there, nobody can take from it."""
    with closing(sqlite3.connect(directory.path / "store.db", timeout=20)) as database:
        database.execute("BEGIN IMMEDIATE")
        yield
        database.rollback()


def is_settled(client: redis.Redis) -> bool:
    """Whether every outbox is empty, and every shard says so."""
    shards = list(client.scan_iter("{s*}:shard", count=10_000))
    waiting = [client.hget(key, "backlog") for key in shards] + [
        client.xlen(key.replace(b":shard", b":outbox")) for key in shards
    ]
    return all(not int(count or 0) for count in waiting)


@contextmanager
def running(*, workers: int = 1, environment: Mapping[str, str] | None = None) -> Iterator[Up]:
    """A `seriatim up` that is ready, in a directory of its own."""
    path = Path(tempfile.mkdtemp(prefix="seriatim-test-"))
    try:
        stack = Up(path, workers=workers, environment=environment).start()
        try:
            assert stack.state == "ready"
            yield stack
        finally:
            stack.stop()
    finally:
        shutil.rmtree(path, ignore_errors=True)


def entry_path(series: str, entry: str) -> str:
    return f"/sequence/v1/series/{series}/entries/{entry}"


def put_series(client: httpx.Client, **fields: Any) -> str:
    """Creates a series and returns its id."""
    series = new_id()
    answer = client.put(f"/sequence/v1/series/{series}", json=fields)
    assert answer.status_code == 200, answer.text
    return series


def put_entry(client: httpx.Client, series: str, entry: str | None = None, **body: Any) -> dict[str, Any]:
    """Creates an entry and returns it."""
    answer = client.put(entry_path(series, entry or new_id()), json=body)
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def list_entries(client: httpx.Client, series: str, limit: int = 1000) -> list[dict[str, Any]]:
    """All entries of a series, page by page."""
    listed: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = client.get(f"/sequence/v1/series/{series}/entries", params={"limit": str(limit)} | cursor)
        assert page.status_code == 200, page.text
        listed += page.json()["list"]
        if "cursor" not in page.json():
            return listed
        cursor = {"cursor": page.json()["cursor"]}


class Load:
    """Threads that create entries and repeat each until it is answered; what they were told is kept."""

    def __init__(self, up: Up, series: list[str], threads: int = 8) -> None:
        self.up = up
        self.series = series
        self.told: dict[tuple[str, str], dict[str, Any]] = {}
        self.failures = 0
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        with self.up.client(timeout=5) as client:
            while not self._stopping.is_set():
                series, entry = self.series[(number + len(self.told)) % len(self.series)], new_id()
                self.told[series, entry] = self._until_answered(client, series, entry)

    def _until_answered(self, client: httpx.Client, series: str, entry: str) -> dict[str, Any]:
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up:
            try:
                answer = client.put(self.up.url + entry_path(series, entry), json={"meta": {"entry": entry}})
            except httpx.TransportError:
                self.failures += 1
            else:
                if answer.status_code == 200:
                    content: dict[str, Any] = answer.json()
                    return content
                assert answer.status_code == 503, answer.text
                self.failures += 1
            time.sleep(0.05)
        raise AssertionError("not answered within a minute")

    def reached(self, count: int, within_s: float = 60) -> None:
        """Waits until so many more entries are answered."""
        goal = len(self.told) + count
        until(lambda: len(self.told) >= goal, within_s)

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def audit(self) -> None:
        """What was told is what there is: all of it, once, without a gap, signed, in sound chains."""
        self.up.settled()
        with self.up.client() as client:
            listed = [entry for series in self.series for entry in list_entries(client, series)]
        assert {(entry["series_id"], entry["id"]) for entry in listed} == set(self.told)
        for series in self.series:
            mine = [entry for entry in listed if entry["series_id"] == series]
            assert [entry["position"] for entry in mine] == list(range(1, len(mine) + 1))
            assert len({entry["code"] for entry in mine}) == len(mine)
        for entry in listed:
            assert entry["sigs"]
            assert unsettled(entry) == unsettled(self.told[entry["series_id"], entry["id"]])
        assert self.up.json("verify")["sound"] is True


def assert_alike(actual: Iterable[Any], expected: Iterable[Any]) -> None:
    """Compares long lists by element: of lists that differ, pytest would spend minutes on showing how."""
    for one, other in zip(actual, expected, strict=True):
        assert one == other


def unsettled(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry without what settlement changes."""
    return {name: value for name, value in entry.items() if name not in ("sigs", "updated_at")}
