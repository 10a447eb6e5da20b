"""No answer leaves the embedded server before its number is on disk: seen from outside, in its system calls."""

from __future__ import annotations

import asyncio
import re
import subprocess
import uuid
from pathlib import Path

import hiredis
import msgspec
import pytest

from core import make_config, make_series, running_front
from seriatim.embedded import server_arguments
from seriatim.keyspace import run_requests
from seriatim.ledger import Wanted
from seriatim.model import SeriesFields
from seriatim.store import Store
from stack import Valkey, new_id

CALL = re.compile(rb"(\w+)\((\d+)<([^>]*)>(.*)\) += (-?\d+)$", re.DOTALL)
QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"')
LOG = b".incr.aof"


class Traced(Valkey):
    """A Valkey whose system calls are written down."""

    def start(self) -> None:
        self.trace = self.directory.path / "trace"
        calls = "trace=write,writev,pwrite64,sendto,sendmsg,fsync,fdatasync"
        tracing = ["strace", "-o", str(self.trace), "-x", "-y", "-s", "1048576", "-e", calls]
        self.process = subprocess.Popen([*tracing, *server_arguments(self.directory), *self.more])
        self.connect()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.client.shutdown(nosave=True)
        self.process.wait(20)


def data_of(arguments: bytes) -> bytes:
    """What a call writes. strace gives text as it is, and anything else in hexadecimal digits."""
    parts = QUOTED.findall(arguments)
    return b"".join(bytes.fromhex(part.replace(rb"\x", b"").decode()) if b"\\x" in part else part for part in parts)


def heads(server: Traced) -> dict[bytes, bytes]:
    """By the bytes of each id the head of its run, which answers it: as the log has them."""
    found: dict[bytes, bytes] = {}
    assert server.directory.redis_log
    reader = hiredis.Reader()
    reader.feed(server.directory.redis_log.read_bytes())
    while (command := reader.gets()) is not False:
        if command[0] == b"XADD":
            runs = zip(command[3::2], command[4::2], strict=True)
            found |= {request[:16]: head for head, requests in runs for request in run_requests(requests)}
    return found


def steps(trace: Path, heads: dict[bytes, bytes]) -> dict[bytes, list[str]]:
    """What happened to the entry of each id, in order: `logged`, `synced`, `answered`."""
    seen: dict[bytes, list[str]] = {one: [] for one in heads}
    longest = max(map(len, heads.values()))
    logged: set[bytes] = set()
    before: dict[bytes, bytes] = {}
    for line in trace.read_bytes().splitlines():
        call = CALL.match(line)
        if call is None:
            continue
        name, descriptor, file, arguments, result = call.groups()
        if name in (b"fsync", b"fdatasync"):
            if file.endswith(LOG) and result == b"0":
                for one in logged:
                    seen[one].append("synced")
                logged.clear()
            continue
        # What is looked for may be divided between two calls.
        data = before.get(descriptor, b"") + data_of(arguments)
        before[descriptor] = data[1 - longest :]
        step = "logged" if file.endswith(LOG) else "answered" if file.startswith(b"socket:") else None
        for one, head in heads.items() if step else ():
            if (one if step == "logged" else head) in data and step and step not in seen[one]:
                seen[one].append(step)
                if step == "logged":
                    logged.add(one)
    return seen


async def issue(config_of: Valkey, store: Store, ack: str) -> set[bytes]:
    """Issues entries from many callers at once, one after the other, and in batches; the bytes of their ids."""
    ids = [new_id() for _ in range(360)]
    config = msgspec.structs.replace(
        make_config(config_of, store.engine.url.render_as_string(hide_password=False)), ack=ack
    )
    company = store.create_company(new_id(), "test").id
    async with running_front(config) as front:
        series = [await make_series(front, company, SeriesFields(prefix=prefix)) for prefix in ("A-", "B-", "C-")]
        many = [front.ledger.put_entry(company, series[at % 3], Wanted(one)) for at, one in enumerate(ids[:300])]
        await asyncio.gather(*many)
        for one in ids[300:320]:
            await front.ledger.put_entry(company, series[0], Wanted(one))
        for start in (320, 340):
            await front.ledger.put_batch(company, series[1], [Wanted(one) for one in ids[start : start + 20]])
    return {uuid.UUID(one).bytes for one in ids}


@pytest.fixture
def store_url(directory: Path) -> str:
    """One of the two databases is enough here."""
    return f"sqlite:///{directory / 'store.db'}"


def test_every_answer_leaves_after_its_number_is_on_disk(directory: Path, store: Store) -> None:
    # Given the embedded server, under load
    server = Traced(directory)
    try:
        ids = asyncio.run(issue(server, store, "fsync"))
    finally:
        server.stop()

    # When each number is followed through the server, then it is written, synced, and only then answered
    found = steps(server.trace, heads(server))
    assert found.keys() == ids
    assert [one for one in found.values() if one != ["logged", "synced", "answered"]] == []


def test_a_server_that_syncs_each_second_is_found_out_in_the_same_way(directory: Path, store: Store) -> None:
    # Given a server like the embedded one, but for its syncing
    server = Traced(directory, "--appendfsync", "everysec")
    try:
        ids = asyncio.run(issue(server, store, "memory"))
    finally:
        server.stop()

    # When each number is followed, then all were answered before they were on disk
    found = steps(server.trace, heads(server))
    assert found.keys() == ids
    assert all("answered" in one and "synced" not in one[: one.index("answered")] for one in found.values())
