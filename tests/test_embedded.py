"""`seriatim up`, killed in every way: nothing that was answered is lost, repeated or altered."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from stack import Load, Up, ended, entry_path, new_id, put_entry, put_series, until

SYS_PIDFD_GETFD = 438


@pytest.fixture
def loaded(up: Up) -> Iterator[Load]:
    """A stack under load in three series."""
    with up.client() as client:
        series = [put_series(client, prefix=prefix) for prefix in ("A-", "B-", "C-")]
    load = Load(up, series)
    load.reached(100)
    yield load
    load.stop()


@pytest.mark.parametrize("victim", ["seriatim serve", "valkey-server", "seriatim worker"])
def test_a_killed_child_is_replaced_and_nothing_is_lost(loaded: Load, victim: str) -> None:
    # Given a stack under load
    up = loaded.up

    # When a child is killed, three times over
    for _ in range(3):
        (pid,) = until(lambda: up.pids(victim))
        os.kill(pid, signal.SIGKILL)
        until(partial(_replaced, up, victim, pid))
        try:
            loaded.reached(50, 40)
        except AssertionError:
            # A server that is killed in the middle of a write may tear its log: a decision opens it
            assert victim == "valkey-server"
            assert [one["kind"] for one in up.json("doctor")["findings"]] == ["redis"]
            up.run("recover", "--accept-loss")
            loaded.reached(50)
    loaded.stop()

    # Then every answer stands
    assert victim == "seriatim worker" or loaded.failures > 0
    loaded.audit()


def _replaced(up: Up, victim: str, dead: int) -> bool:
    return up.pids(victim) not in ([], [dead])


def test_a_killed_supervisor_takes_everything_along_and_the_next_start_serves(loaded: Load) -> None:
    # Given a stack under load, and its processes
    up = loaded.up
    children = up.pids("")
    assert len(children) == 3

    # When the supervisor is killed and another is started at once
    up.kill()
    up.start()

    # Then no old child is left, and every answer stands
    assert up.state == "ready"
    assert not [pid for pid in children if not ended(pid)]
    loaded.reached(50)
    loaded.stop()
    loaded.audit()


def test_a_second_start_on_the_same_directory_is_refused(loaded: Load) -> None:
    # Given a stack under load, when a second one is started on its data directory
    second = loaded.up.run("up", "--port", "0", check=False)

    # Then it is refused with what to do, and the first goes on
    assert second.returncode == 2
    assert "in use by another `seriatim up`" in second.stderr
    loaded.reached(20)
    loaded.stop()
    loaded.audit()


def test_a_server_that_outlives_its_supervisor_keeps_the_directory_locked(up: Up) -> None:
    # Given a stack whose server does not die with it: it is stopped, and asked to survive
    (server,) = up.pids("valkey-server")
    lock = _lock_of(server)
    holder = subprocess.Popen(["sleep", "60"], pass_fds=[lock], process_group=0)
    os.close(lock)

    # When the supervisor is killed while somebody still holds the inherited lock
    up.kill()
    second = up.run("up", "--port", "0", check=False)

    # Then a second start is refused until that one is gone
    assert second.returncode == 2
    assert "in use" in second.stderr
    holder.kill()
    holder.wait()
    assert up.start().state == "ready"


def _lock_of(server: int) -> int:
    """A copy of the descriptor that a server has inherited as its lock: the very same open file."""
    (descriptor,) = [int(link.name) for link in Path(f"/proc/{server}/fd").iterdir() if link.readlink().name == "lock"]
    pidfd = os.pidfd_open(server)
    copied = int(ctypes.CDLL(None, use_errno=True).syscall(SYS_PIDFD_GETFD, pidfd, descriptor, 0))
    assert copied >= 0, os.strerror(ctypes.get_errno())
    os.close(pidfd)
    return copied


def test_sigterm_under_load_stops_in_time_and_loses_nothing(loaded: Load) -> None:
    # Given a stack under load, when it gets SIGTERM
    up = loaded.up
    started = time.monotonic()
    code = up.stop()

    # Then it ends cleanly within 20 seconds, and after the next start every answer stands
    assert code == 0
    assert time.monotonic() - started < 20
    assert up.start().state == "ready"
    loaded.reached(20)
    loaded.stop()
    loaded.audit()


def test_the_key_is_printed_at_the_first_start_only(up: Up) -> None:
    # Given a stack that has been started once
    key = up.key
    up.stop()

    # When it is started again, then no key is printed, and the first one works
    up.key = ""
    up.start()
    assert up.key == ""
    with up.client(key) as client:
        assert client.get("/sequence/v1/series").status_code == 200


def test_a_torn_log_is_not_opened(up: Up) -> None:
    # Given a stopped stack whose server's log has lost its last bytes
    with up.client() as client:
        series = put_series(client)
        entry = put_entry(client, series)
        up.settled()
    up.stop()
    (log,) = (up.data_dir / "redis" / "appendonlydir").glob("*.incr.aof")
    with log.open("r+b") as file:
        file.truncate(log.stat().st_size - 7)

    # When it is started, then it says that it is halted, and serves what the store holds
    up.start()
    assert up.state == "halted"
    with up.client() as client:
        assert client.put(entry_path(series, new_id())).status_code == 503
        assert client.get(entry_path(series, entry["id"])).json()["code"] == "1"
        assert client.get("/readyz").json()["checks"]["redis"] != "ok"


def test_the_server_takes_memory_from_mimalloc_and_no_huge_pages(up: Up) -> None:
    # Given a server that runs, then the library is loaded, and has no page that takes long to clear
    (server,) = up.pids("valkey-server")
    assert "libmimalloc" in Path(f"/proc/{server}/maps").read_text()
    assert "THP_enabled:\t0\n" in Path(f"/proc/{server}/status").read_text()


def test_a_full_disk_tears_no_log(up: Up) -> None:
    # Given a server that can write a little more, and then no more
    with up.client() as client:
        series = put_series(client)
        put_entry(client, series)
        (server,) = up.pids("valkey-server")
        log = up.directory.redis_log
        assert log
        resource.prlimit(server, resource.RLIMIT_FSIZE, (log.stat().st_size + 40, resource.RLIM_INFINITY))

        # When a number is asked for, then there is none, and what was written of it is undone
        assert client.put(entry_path(series, new_id())).status_code == 503
        until(lambda: up.pids("valkey-server") != [server])

        # Then, with room again, numbers go on by themselves
        until(lambda: client.get("/readyz").status_code == 200)
        assert put_entry(client, series)["number"] == 2


def test_a_taken_port_is_an_error_that_says_what_to_do(directory: Path) -> None:
    # Given a port that somebody listens on
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        # When `up` is to use it, then it ends with a clear message
        ended = Up(directory).run("up", "--port", str(port), check=False)
    assert ended.returncode == 2
    assert f"Cannot listen on 127.0.0.1:{port}" in ended.stderr


def test_a_data_directory_with_a_long_path_works(directory: Path) -> None:
    # Given a data directory whose path is too long for a socket
    deep = directory / ("x" * 120)
    stack = Up(deep, workers=0, api_processes=2).start()

    # When numbers are issued through two processes, without workers
    try:
        assert stack.state == "ready"
        with stack.client() as client:
            series = put_series(client)
            codes = [put_entry(client, series)["code"] for _ in range(10)]
        assert codes == [str(number) for number in range(1, 11)]
        assert len(stack.pids("seriatim serve")) == 2
        assert stack.pids("seriatim worker") == []
    finally:
        stack.stop()


def test_without_durability_it_says_so(directory: Path) -> None:
    # Given a stack that answers from memory, by explicit choice
    stack = Up(directory, environment={"SERIATIM_ACK": "memory"}).start()

    # Then /readyz says what that means
    try:
        with stack.client() as client:
            assert "loses numbers" in client.get("/readyz").json()["checks"]["durability"]
    finally:
        stack.stop()
