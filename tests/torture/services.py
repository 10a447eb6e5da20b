"""What is tortured: real processes in a directory of their own, started again when they die, as an operator would."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import redis

import faketime
from machine import descendants
from seriatim import scripts
from seriatim.config import Config
from seriatim.directory import DataDirectory
from seriatim.embedded import server_arguments
from servers import PostgreSQL
from stack import SERIATIM, ended, is_settled, store_held, until
from torture.link import Link

API_PROCESSES = 2
WORKERS = 2
AGAIN_S = 0.2
READY_S = 90.0
SHARDS = Config().shards
LEASE_S = 2
REPLICA = "replica"
ROLES = {
    "api": "seriatim serve",
    "worker": "seriatim worker",
    "redis": "valkey-server",
    "database": "postgres",
    "supervisor": "seriatim up",
}
"""What command lines contain."""


class Services(ABC):
    """Seriatim's processes, and what is needed to hurt them.

    Args:
        path: an empty directory with a short path.
        program: what runs a `seriatim` command.
    """

    def __init__(self, path: Path, program: Sequence[str] = SERIATIM) -> None:
        self.directory = DataDirectory(path)
        self.directory.redis.mkdir(parents=True, exist_ok=True)
        self.directory.socket.parent.mkdir(parents=True, exist_ok=True)
        self.program = list(program)
        self.clock = Clock(path / "clock")
        self.environment = self.clock.environment
        self.links: dict[str, Link] = {}
        self.key = ""
        self.writing = threading.Lock()
        """Held by who changes how Redis writes its log: with everysec it goes on beside a full disk, and spoils it."""
        self._seen: set[int] = set()
        self._tending = threading.RLock()
        self._over = threading.Event()
        self._tender = threading.Thread(target=self._tend_for_ever, daemon=True)

    has: set[str]
    """What damage may need: roles of processes, `store file`, `redis link`, `replica`."""

    def fits(self, needs: str) -> bool:
        """Whether it has what some damage needs, which may be nothing."""
        return not needs or needs in self.has

    @property
    def sqlite(self) -> bool:
        """Whether the store is a file."""
        return "store file" in self.has

    @abstractmethod
    def tend(self) -> None:
        """Starts what does not run."""

    @abstractmethod
    def roots(self) -> list[int]:
        """The processes that were started here."""

    @abstractmethod
    def first_key(self) -> str:
        """Makes a company, and returns its key."""

    @property
    def url(self) -> str:
        """Where the load goes: through a link."""
        return f"http://127.0.0.1:{self.links['http'].port}"

    def start(self) -> None:
        """Starts everything."""
        self.tend()
        self.key = self.first_key()
        self._tender.start()
        self.ready()

    def close(self) -> None:
        """Ends everything at once."""
        self._over.set()
        self._tender.join()
        with self._tending:
            for pid in descendants(self.roots()):
                self.signal(pid, signal.SIGKILL)
        until(lambda: all(map(ended, self._seen)))
        for link in self.links.values():
            link.close()
        for pid in self._seen:
            faketime.forget(pid)

    @contextmanager
    def untended(self) -> Iterator[None]:
        """Starts nothing meanwhile."""
        with self._tending:
            yield

    def _tend_for_ever(self) -> None:
        while not self._over.wait(AGAIN_S):
            with self._tending, suppress(SystemExit, OSError):  # it is tried again
                self.tend()
            self.pids("api")

    # processes ----------------------------------------------------------------------------------------------------

    def pids(self, role: str) -> list[int]:
        """The running processes of a role."""
        found = []
        for pid in descendants(self.roots()):
            self._seen.add(pid)
            with suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if ROLES[role] in command and not ended(pid):
                    found.append(pid)
        return found

    @staticmethod
    def signal(pid: int, number: signal.Signals) -> None:
        """Sends a signal to a process, which may have ended."""
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    @contextmanager
    def stopped(self, role: str) -> Iterator[None]:
        """The processes of a role do nothing meanwhile."""
        pids = self.pids(role)
        for pid in pids:
            self.signal(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                self.signal(pid, signal.SIGCONT)

    @contextmanager
    def worker_stopped(self) -> Iterator[None]:
        """The workers do nothing meanwhile, and were not stopped in the middle of a write to a store that is a file."""
        with ExitStack() as meanwhile:
            with store_held(self.directory) if self.sqlite else nullcontext():
                meanwhile.enter_context(self.stopped("worker"))
            yield

    def limit_files(self, role: str, size: Callable[[], int], seconds: float) -> None:
        """Lets the processes of a role write no file beyond a size for a while, as on a full disk.

        This needs no rights, and fills nobody's disk.
        """
        end = time.monotonic() + seconds
        limited: set[int] = set()
        while time.monotonic() < end:
            for pid in set(self.pids(role)) - limited:
                self._limit(pid, f"{size()}:")
                limited.add(pid)
            time.sleep(0.02)
        for _ in range(2):  # again, for what a process has started that was still limited
            for pid in self.pids(role):
                self._limit(pid, "unlimited:")

    @staticmethod
    def _limit(pid: int, soft: str) -> None:
        with suppress(OSError):  # it has ended
            owner = Path(f"/proc/{pid}").stat().st_uid
            user = owner if owner != os.getuid() else None
            subprocess.run(["prlimit", f"--pid={pid}", f"--fsize={soft}"], user=user, check=False, capture_output=True)

    # Redis --------------------------------------------------------------------------------------------------------

    @contextmanager
    def redis(self) -> Iterator[redis.Redis]:
        """A client of Redis that does not go through a link."""
        with redis.Redis.from_url(f"unix://{self.directory.socket}", socket_timeout=10) as client:
            yield client

    def backlog(self) -> int:
        """How many records wait for the store."""
        with self.redis() as client:
            return scripts.backlog(client, SHARDS)

    def settled(self) -> bool:
        """Whether none does: every outbox is empty."""
        with self.redis() as client:
            return is_settled(client)

    @contextmanager
    def redis_down(self) -> Iterator[None]:
        """Redis is killed, and its files may be changed."""
        with self._tending:
            self.end_redis()
            yield

    def end_redis(self) -> None:
        """Kills Redis, and whatever would start it again."""
        pids = self.pids("supervisor") + self.pids("redis")
        for pid in pids:
            self.signal(pid, signal.SIGKILL)
        until(lambda: all(map(ended, pids)))

    def log_bytes(self) -> int:
        """The size of Redis' log."""
        log = self.directory.redis_log
        return log.stat().st_size if log else 0

    def copy_redis(self, copy: Path) -> None:
        """Copies Redis' files; Redis is stopped meanwhile, as a snapshot of the disk would have them."""
        shutil.rmtree(copy, ignore_errors=True)
        with self.stopped("redis"):
            shutil.copytree(self.directory.redis, copy, ignore=shutil.ignore_patterns("*.sock"))

    def put_redis_back(self, copy: Path) -> None:
        """Replaces Redis' files, which must be down, by a copy."""
        shutil.rmtree(self.directory.redis / "appendonlydir")
        shutil.copytree(copy / "appendonlydir", self.directory.redis / "appendonlydir")

    # Seriatim -----------------------------------------------------------------------------------------------------

    def readiness(self) -> dict[str, Any]:
        """What /readyz says; nothing where nobody answers."""
        try:
            answer: dict[str, Any] = httpx.get(f"{self.url}/readyz", timeout=5).json()
        except (httpx.HTTPError, ValueError):
            return {}
        return answer

    def ready(self, within_s: float = READY_S) -> None:
        """Waits until numbers are issued by every process."""
        seen = 0

        def often() -> bool:
            nonlocal seen
            said = self.readiness()
            seen = seen + 1 if said.get("ready") else 0
            return seen >= 2 * API_PROCESSES

        try:
            until(often, within_s)
        except AssertionError:
            raise NotReadyError(f"{self.readiness()}") from None

    def halted(self, within_s: float = 30.0) -> str:
        """Waits until allocation is halted, and returns the reason."""
        try:
            return str(until(lambda: self.readiness().get("halted"), within_s))
        except AssertionError:
            raise NotReadyError(f"not halted: {self.readiness()}") from None

    def command(self, *arguments: str) -> tuple[int, Any]:
        """Runs a `seriatim` command with --json; its exit code, and what it prints."""
        command = [*self.program, *arguments, *self.where(), "--json"]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=120, check=False, cwd="/"
        )
        try:
            return done.returncode, json.loads((done.stdout or done.stderr).splitlines()[-1])
        except (IndexError, ValueError):
            return done.returncode, {"printed": done.stdout + done.stderr}

    def where(self) -> list[str]:
        """The flags that lead a command to these services."""
        return []

    def printed_halt(self) -> str:
        """Why `seriatim up` says that allocation is halted, if it does."""
        return ""


class NotReadyError(Exception):
    """The services are not as they should be by now."""


class Clock(faketime.Clock):
    """The clock of all that is tortured; the torture itself goes by the real one."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, _now())

    def step(self, ahead_s: float) -> None:
        """Sets it so much ahead of the real time, or behind."""
        self.set(_now(), ahead_s=ahead_s)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


def _start(arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            list(arguments),
            env=dict(environment),
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            cwd="/",
            restore_signals=False,  # as `seriatim up` starts Valkey
        )


def _runs(process: subprocess.Popen[bytes] | None) -> bool:
    return process is not None and process.poll() is None


class Embedded(Services):
    """`seriatim up`."""

    def __init__(self, path: Path, program: Sequence[str] = SERIATIM) -> None:
        super().__init__(path, program)
        self.has = {"api", "worker", "redis", "supervisor", "store file"}
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._printed = path / "up.out"
        self._printed_before = 0
        self.links["http"] = Link([self._port])

    def tend(self) -> None:
        """Starts `seriatim up` when it does not run."""
        if not _runs(self._process):
            counts = ["--workers", str(WORKERS), "--api-processes", str(API_PROCESSES)]
            arguments = [*self.program, "up", "--json", "--port", str(self._port), *counts, *self.where()]
            self._printed_before = self._printed.stat().st_size if self._printed.exists() else 0
            self._process = _start(arguments, self.environment, self._printed)

    def roots(self) -> list[int]:
        """The supervisor."""
        return [self._process.pid] if self._process else []

    def first_key(self) -> str:
        """Waits for the key that its first start prints."""
        line = until(lambda: self._printed.read_text().splitlines(), 30)[0]
        return str(json.loads(line)["key"])

    def printed_halt(self) -> str:
        """What it said last: while Redis does not start, the API knows no reason."""
        lines = self._printed.read_bytes()[self._printed_before :].splitlines()
        return str(json.loads(lines[-1]).get("halted", "")) if lines else ""

    def where(self) -> list[str]:
        """Its data directory."""
        return ["--data-dir", str(self.directory.path)]


class Apart(Services):
    """The processes by themselves, as in containers: Redis and a database behind links.

    Args:
        database: `postgresql`, or `sqlite` for a quick start.
    """

    def __init__(self, path: Path, program: Sequence[str] = SERIATIM, database: str = "postgresql") -> None:
        super().__init__(path, program)
        self._ports = [free_port() for _ in range(API_PROCESSES)]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.links |= {"http": Link(self._ports), "redis": Link([str(self.directory.socket)])}
        self._database: PostgreSQL | None = None
        self._replica: subprocess.Popen[bytes] | None = None
        self.has = {
            "api",
            "worker",
            "redis",
            "redis link",
            "replica",
            "store file" if database == "sqlite" else "database",
        }
        store = f"sqlite:///{path / 'store.db'}"
        if database == "postgresql":
            self._database = PostgreSQL(path / "database")
            self.links["database"] = Link([str(path / "database" / ".s.PGSQL.5432")])
            # TLS and the like would only be asked for, and refused.
            port, plain = self.links["database"].port, "sslmode=disable&gssencmode=disable"
            store = f"postgresql+psycopg://postgres@127.0.0.1:{port}/bench?{plain}"
        self.environment |= {
            "SERIATIM_REDIS_URL": f"redis://127.0.0.1:{self.links['redis'].port}/0",
            "SERIATIM_STORE_URL": store,
            "SERIATIM_SIGNING_KEY": str(path / "signing-key.json"),
            "SERIATIM_LEASE_S": str(LEASE_S),
        }
        self._commands = {"redis": server_arguments(self.directory)}
        self._commands |= {f"api {port}": [*self.program, "serve", "--port", str(port)] for port in self._ports}
        self._commands |= {f"worker {number}": [*self.program, "worker"] for number in range(WORKERS)}

    def start(self) -> None:
        """Makes the schema, then starts everything."""
        self.command("migrate")
        super().start()

    def tend(self) -> None:
        """Starts each process that does not run."""
        if self._database and self._database.process.poll() is not None:
            self._database.start()
        for name, arguments in self._commands.items():
            if not _runs(self._processes.get(name)):
                log = self.directory.path / f"{name}.log"
                self._processes[name] = _start(arguments, self.environment, log)

    def roots(self) -> list[int]:
        """All of them."""
        database = [self._database.process.pid] if self._database else []
        return [one.pid for one in self._processes.values()] + database

    def close(self) -> None:
        """Ends everything at once."""
        super().close()
        if self._replica:
            self._replica.kill()
            self._replica.wait()

    def lag(self) -> None:
        """Has Redis copied by a replica, which hears of nothing that comes then."""
        port, copy = free_port(), DataDirectory(self.directory.path / REPLICA)
        copy.redis.mkdir(parents=True)
        with self.redis() as primary:
            primary.config_set("port", port)
            following = [*server_arguments(copy), "--replicaof", "127.0.0.1", str(port)]
            self._replica = _start(following, self.environment, copy.path / "redis.log")
            until(lambda: primary.wait(1, 1000) == 1)
            primary.config_set("port", 0)
            primary.client_kill_filter(_type="replica")

    def promote(self) -> None:
        """Redis dies, and the replica stands for it."""
        assert self._replica is not None
        copy = DataDirectory(self.directory.path / REPLICA)
        with self.redis_down():
            with redis.Redis.from_url(f"unix://{copy.socket}") as client:
                client.replicaof("NO", "ONE")
            shutil.rmtree(self.directory.redis)
            copy.redis.rename(self.directory.redis)
            shutil.rmtree(copy.path)
            self._processes["redis"], self._replica = self._replica, None

    def first_key(self) -> str:
        """Makes a company and a key for it."""
        self.command("companies", "create", "torture")
        _, made = self.command("keys", "create", "--company", "torture")
        return str(made["key"])


def free_port() -> int:
    """A port that nobody listens on."""
    import socket  # noqa: PLC0415 -- `socket` is also what DataDirectory calls its own

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


STACKS: dict[str, Callable[[Path, Sequence[str]], Services]] = {
    "embedded": Embedded,
    "postgresql": Apart,
    "sqlite": partial(Apart, database="sqlite"),
}
