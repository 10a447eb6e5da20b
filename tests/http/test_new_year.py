"""The turn of a year, under load and through API processes whose clocks are minutes apart: Redis' clock decides."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import httpx
import pytest
import uvloop

from callers import Request, put_all
from faketime import Clock, forget
from stack import (
    SERIATIM,
    Valkey,
    assert_alike,
    is_settled,
    list_entries,
    new_id,
    put_entry,
    put_series,
    seriatim,
    unsettled,
    until,
)

REQUESTS = 2000
AHEAD_S = {"redis": 0.0, "early": 7 * 60.0, "late": -11 * 60.0}
"""The clocks, and how far each is ahead of Redis' at first; two API processes go by the others."""
FRONTS = ("early", "late")
STEPS = {800: -60.0, 1200: -0.2, 1600: 60.0}
"""At which requests the clocks are set, and to how many seconds after midnight."""


class Turn(NamedTuple):
    """A midnight after which a series begins anew; in UTC."""

    midnight: str
    numbering: dict[str, Any]
    old: str
    new: str

    def moment(self, after_s: float) -> str:
        """A time so much after midnight."""
        return str(datetime.fromisoformat(self.midnight) + timedelta(seconds=after_s))


YEARLY = "INV-%yearLong%-%incYearly%"
FISCAL = {
    "format": "INV/%fyShort%-%fyEndShort%/%incYearly%",
    "fiscal_year_start": "04-01",
    "timezone": "Asia/Kolkata",
    "max_length": 16,
}
TURNS = {
    "Bucharest": Turn(
        "2025-12-31 22:00:00", {"format": YEARLY, "timezone": "Europe/Bucharest"}, "INV-2025-", "INV-2026-"
    ),
    "Auckland": Turn(
        "2025-12-31 11:00:00", {"format": YEARLY, "timezone": "Pacific/Auckland"}, "INV-2025-", "INV-2026-"
    ),
    "India's fiscal year": Turn("2026-03-31 18:30:00", FISCAL, "INV/25-26/", "INV/26-27/"),
}


class Apart:
    """A Valkey and a worker that go by one clock, and two API processes that go by clocks of their own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clocks = {name: Clock(path / f"{name}.clock", "2025-12-01", ahead_s=by) for name, by in AHEAD_S.items()}
        self.valkey = Valkey(path, environment=self.clocks["redis"].environment)
        self.run("migrate")
        company = self.run("companies", "create", "acme")["id"]
        self.key = self.run("keys", "create", "--company", company)["key"]
        self._processes = [self._start("redis", "worker")]
        self.urls: dict[str, str] = {}
        for name in FRONTS:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                self._processes.append(self._start(name, "serve", "--fd", str(listener.fileno()), listener=listener))
                self.urls[name] = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def _start(self, clock: str, *arguments: str, listener: socket.socket | None = None) -> subprocess.Popen[bytes]:
        with (self.path / "log").open("ab") as log:
            return subprocess.Popen(
                [*SERIATIM, *arguments],
                env=self.valkey.directory.environment(self.clocks[clock].environment),
                pass_fds=[listener.fileno()] if listener else [],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def run(self, *arguments: str) -> Any:
        """Runs a `seriatim` command and returns what it prints."""
        done = seriatim(*arguments, "--json", "--data-dir", str(self.path))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def client(self, name: str) -> httpx.Client:
        """An HTTP client of one of the API processes."""
        return httpx.Client(base_url=self.urls[name], headers={"Authorization": f"Bearer {self.key}"}, timeout=20)

    def set(self, at: str, times: int = 1) -> None:
        """Sets Redis' clock, and the others so many times as far from it as at first."""
        for name, ahead_s in AHEAD_S.items():
            self.clocks[name].set(at, ahead_s=ahead_s * times)

    def ready(self) -> None:
        """Waits until both API processes allocate."""
        until(lambda: all(httpx.get(f"{url}/readyz", timeout=20).status_code == 200 for url in self.urls.values()))

    def settled(self) -> None:
        """Waits until every outbox is empty."""
        until(lambda: is_settled(self.valkey.client), 60)

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()
            forget(process.pid)
        self.valkey.stop()


@pytest.fixture(scope="module")
def apart() -> Iterator[Apart]:
    path = Path(tempfile.mkdtemp(prefix="seriatim-test-"))
    stack = Apart(path)
    try:
        stack.ready()
        yield stack
    finally:
        stack.stop()
        shutil.rmtree(path, ignore_errors=True)


@pytest.mark.parametrize("name", TURNS)
def test_two_thousand_requests_across_midnight_are_numbered_by_the_date_that_they_got(apart: Apart, name: str) -> None:
    # Given a series; the clock of one API process is already past midnight, that of the other long before
    turn = TURNS[name]
    apart.set(turn.moment(-180))
    apart.ready()
    with apart.client("early") as client:
        series = put_series(client, **turn.numbering)

    # When 2,000 numbers are asked of both around midnight, and their clocks go more and more wrong
    def requests() -> Iterator[Request]:
        for number in range(REQUESTS):
            if number in STEPS:
                apart.set(turn.moment(STEPS[number]), times=2 + list(STEPS).index(number))
            yield series, new_id(), {}

    told = uvloop.run(put_all(list(apart.urls.values()), apart.key, requests()))

    # Then all are there as they were told, in one chain without a gap
    with apart.client("late") as client:
        entries = list_entries(client, series)
    assert {entry["id"] for entry in entries} == set(told)
    assert_alike(map(unsettled, entries), (unsettled(told[entry["id"]].body) for entry in entries))
    assert_alike((entry["position"] for entry in entries), range(1, REQUESTS + 1))
    assert all(next_one["previous_id"] == entry["id"] for entry, next_one in pairwise(entries))

    # And each carries the date in its zone at its time, and the year of that date
    zone = ZoneInfo(turn.numbering["timezone"])
    tomorrow = str(datetime.fromisoformat(f"{turn.midnight}Z").astimezone(zone).date())
    for entry in entries:
        assert entry["date"] == str(datetime.fromisoformat(entry["created_at"]).astimezone(zone).date())
        assert entry["code"].startswith(turn.new if entry["date"] >= tomorrow else turn.old)

    # And the numbers ran on until midnight, and then began anew, once
    before = sum(entry["date"] < tomorrow for entry in entries)
    assert_alike((entry["code"] for entry in entries[:before]), (f"{turn.old}{at}" for at in range(1, before + 1)))
    after = (f"{turn.new}{at}" for at in range(1, REQUESTS - before + 1))
    assert_alike((entry["code"] for entry in entries[before:]), after)
    assert max(len(entry["code"]) for entry in entries) <= turn.numbering.get("max_length", 255)

    # And that was so through both processes, on both sides of midnight
    assert {(one.url, one.body["date"] < tomorrow) for one in told.values()} == {
        (url, side) for url in apart.urls.values() for side in (True, False)
    }

    # And the chain is sound
    apart.settled()
    verified = apart.run("verify", "--series", series)
    assert (verified["sound"], verified["entries"]) == (True, REQUESTS)


@pytest.mark.parametrize(("front", "after_s"), [("early", -60), ("late", 60)])
def test_a_process_whose_clock_has_just_gone_wrong_foretells_and_issues_by_the_clock_of_redis(
    apart: Apart, front: str, after_s: float
) -> None:
    # Given a series that two processes use, who know how far their clocks are from Redis'
    turn = TURNS["Auckland"]
    year = turn.old if after_s < 0 else turn.new
    apart.set(turn.moment(after_s))
    apart.ready()
    with apart.client("early") as early, apart.client("late") as late:
        series = put_series(early, **turn.numbering)
        assert [put_entry(client, series)["code"] for client in (early, late)] == [f"{year}1", f"{year}2"]

    with apart.client(front) as client:
        # When the clock of one goes wrong, past midnight or back before it, then what it foretells is still true
        apart.set(turn.moment(after_s), times=2)
        shown = client.get(f"/sequence/v1/series/{series}/preview").json()
        assert shown["next"][:2] == [f"{year}3", f"{year}4"]
        assert client.post("/sequence/v1/series/preview", json=turn.numbering).json()["next"][0] == f"{year}1"

        # And so is the year of what it issues, alone and, when its clock has gone wrong once more, together
        assert put_entry(client, series)["code"] == f"{year}3"
        apart.set(turn.moment(after_s), times=4)
        answer = client.post(f"/sequence/v1/series/{series}/entries", json={"list": [{"id": new_id()} for _ in "abc"]})
        assert [entry["code"] for entry in answer.json()["list"]] == [f"{year}{number}" for number in (4, 5, 6)]
