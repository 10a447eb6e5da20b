"""The rivals in bench/ really work: what is compared with ours keeps what it is measured for. And so does the load."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psycopg
import pytest
import redis

from client import Load, program, run
from contenders import BARE, BATCHED, BESIDE, DJANGO, EACH, PAUSED, REDIS, Arena, Contender, Rival
from machine import descendants
from rivals.documents import META
from servers import PostgreSQL, Valkey
from stack import entry_path, new_id, until

CLIENTS = 16


@pytest.fixture(scope="session")
def arena() -> Iterator[Arena]:
    """Where contenders are started, one after the other; on a disk, where syncing costs what it costs."""
    path = Path(tempfile.mkdtemp(prefix="bench-", dir="/var/tmp"))
    made = Arena(path)
    yield made
    made.close()
    shutil.rmtree(path)


class Callers:
    """Callers of a rival, 16 at once."""

    def __init__(self, rival: Contender) -> None:
        headers = {"Authorization": f"Bearer {rival.key}"}
        self.rival = rival
        self.client = httpx.Client(headers=headers, timeout=30, verify=False)

    def put(self, series: str, entry: str, **headers: str) -> httpx.Response:
        url = f"http://127.0.0.1:{self.rival.port}{entry_path(series, entry)}"
        return self.client.put(url, json={"meta": META}, headers=headers)

    def numbers(self, series: str, entries: list[str]) -> list[int]:
        """Puts entries, and returns their numbers."""
        with ThreadPoolExecutor(CLIENTS) as threads:
            answers = list(threads.map(lambda entry: self.put(series, entry), entries))
        assert [answer.status_code for answer in answers] == [200] * len(entries), answers[0].text
        contents = [answer.json() for answer in answers]
        assert [content["id"] for content in contents] == entries
        assert all(content["meta"] == META for content in contents)
        return [content["number"] for content in contents]

    def numbers_until_killed(self, series: str, count: int) -> tuple[dict[str, int], list[str]]:
        """Puts entries until the rival is killed, after `count` answers; returns those answered, and all."""
        told: dict[str, int] = {}
        tried: list[str] = []

        def call(_: int) -> None:
            with contextlib.suppress(httpx.TransportError):
                while True:
                    tried.append(new_id())
                    entry = tried[-1]
                    answer = self.put(series, entry)
                    if answer.status_code != 200:
                        return
                    told[entry] = answer.json()["number"]

        with ThreadPoolExecutor(CLIENTS) as threads:
            threads.map(call, range(CLIENTS))
            until(lambda: len(told) >= count)
            self.rival.kill()
        return told, tried


def syncs(rival: Contender) -> bool:
    """Whether the rival's server has on disk what it answers."""
    assert isinstance(rival, Rival)
    if isinstance(rival.server, Valkey):
        with redis.Redis.from_url(rival.server.url) as client:
            known = client.config_get("append*")
        return (known["appendonly"], known["appendfsync"]) == ("yes", "always")
    assert isinstance(rival.server, PostgreSQL)
    with psycopg.connect(rival.server.dsn()) as connection:
        names = ("fsync", "synchronous_commit", "full_page_writes")
        return {connection.execute(f"SHOW {name}").fetchone() for name in names} == {("on",)}


@pytest.mark.parametrize("name", [REDIS, DJANGO, EACH, BATCHED])
def test_a_rival_numbers_without_gaps_and_keeps_its_word_after_a_kill(name: str, arena: Arena) -> None:
    # Given a rival whose server syncs before it answers, and entries that 16 clients put at once, some of them twice
    rival = arena.make(name)
    rival.start()
    assert syncs(rival)
    callers = Callers(rival)
    series, other = rival.create_series(2)
    entries = [new_id() for _ in range(40)]
    first = callers.numbers(series, entries + entries[:8])

    # Then the numbers are 1, 2, 3 ..., the same id has the same number, and another series begins with 1
    assert sorted(first[:40]) == list(range(1, 41))
    assert first[40:] == first[:8]
    assert callers.numbers(other, [new_id()]) == [1]

    # And nobody gets a number without the key
    assert callers.put(series, new_id(), Authorization="Bearer another").status_code == 401

    # When all of its processes are killed while entries are put, and it is started again
    told, tried = callers.numbers_until_killed(series, 60)
    rival.start()

    # Then what was answered is still so, and with what was not there is no gap
    assert dict(zip(told, callers.numbers(series, list(told)), strict=True)) == told
    rest = [entry for entry in tried if entry not in told]
    assert sorted([*first[:40], *told.values(), *callers.numbers(series, rest)]) == list(range(1, 41 + len(tried)))

    check_load(rival)
    rival.kill()


@pytest.mark.parametrize("name", [BARE, PAUSED, BESIDE])
def test_the_load_measures_ours_and_the_limit_alike(name: str, arena: Arena) -> None:
    # Given a bare app or ours
    with arena.running(name) as contender:
        check_load(contender)


def check_load(contender: Contender) -> None:
    # When a contender is loaded
    done = run(contender, contender.create_series(2), Load(connections=4, seconds=0.4, warm_up_s=0.1))

    # Then it is known how many answers there were, how long they took, and what processor time
    assert done.answers > 0
    assert done.per_s == pytest.approx(done.answers / 0.4, rel=0.01)
    assert 0 < done.p50 <= done.p99 <= done.max
    assert set(done.cpu_s) == set(done.memory_bytes) >= {"API"}

    # And its answers are about as long as ours
    assert done.answer_bytes == pytest.approx(500, rel=0.06)


def test_what_waits_for_a_server_that_stalls_counts_as_late(arena: Arena) -> None:
    # Given a server that has stalled, and at which requests fall due 400 times a second, over two connections
    load = Load(connections=2, seconds=1.5, rate=400, warm_up_s=0)
    path = str(program())
    with arena.running(BARE) as contender, ThreadPoolExecutor() as threads:
        os.kill(contender.roots[0], signal.SIGSTOP)
        running = threads.submit(run, contender, contender.create_series(1), load)

        # When it goes on half a second later
        until(lambda: any(path in command for command in commands()))
        time.sleep(0.5)
        os.kill(contender.roots[0], signal.SIGCONT)
        done = running.result()

    # Then not just the two requests that were under way are late, but all that were to be sent meanwhile
    assert done.p90 > 150
    assert done.max > 400

    # And all of them were sent: 600, as chance has it
    assert done.answers == pytest.approx(600, abs=120)
    assert done.unanswered == 0


def commands() -> list[str]:
    """What the processes below this one were started as."""
    found = []
    for pid in descendants([os.getpid()]):
        with contextlib.suppress(OSError):  # it has just ended
            found.append(Path(f"/proc/{pid}/cmdline").read_text())
    return found


def test_a_figure_of_a_contender_that_refuses_is_none(arena: Arena) -> None:
    # Given a client with a wrong key
    with arena.running(REDIS) as contender:
        series = contender.create_series(1)
        contender.key = "another"

        # When it loads the contender, then that is no measurement
        with pytest.raises(SystemExit, match="refused"):
            run(contender, series, Load(connections=2, seconds=0.2))


@pytest.mark.parametrize("planted", ["a number is skipped", "an entry is lost"])
def test_a_figure_of_a_contender_that_does_not_keep_what_it_answers_is_none(planted: str, arena: Arena) -> None:
    # Given a contender under load
    with arena.running(REDIS) as contender, ThreadPoolExecutor() as threads:
        assert isinstance(contender, Rival)
        assert isinstance(contender.server, Valkey)
        (series,) = contender.create_series(1)
        running = threads.submit(run, contender, [series], Load(connections=2, seconds=0.4, warm_up_s=0))

        # When it skips a number, or loses an entry
        with redis.Redis.from_url(contender.server.url) as client:
            until(lambda: client.exists(f"last:{{{series}}}"))
            if planted == "a number is skipped":
                client.incr(f"last:{{{series}}}")
            else:
                client.hdel(f"entries:{{{series}}}", client.hrandfield(f"entries:{{{series}}}"))

        # Then that is no measurement
        with pytest.raises(SystemExit, match="keeps"):
            running.result()
