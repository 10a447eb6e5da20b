"""More than can be done, or slow parts: 503 with Retry-After, bounded memory, and on again by itself."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from plain_socket import Wire, request
from stack import Up, entry_path, list_entries, new_id, put_entry, put_series, running, store_held, until

BACKLOG = 200
IN_FLIGHT = 50
GROWTH_KIB_MAX = 64 * 1024
"""What a process may grow by under pressure; requests without bound would take ten times as much."""
CONTENT = b'{"meta":{"k":"%b"}}' % (b"v" * 1000)


@pytest.fixture(scope="module")
def pressed() -> Iterator[Up]:
    """A service with narrow limits."""
    limits = {"BACKLOG_MAX": BACKLOG, "IN_FLIGHT_MAX": IN_FLIGHT, "KEY_IN_FLIGHT_MAX": IN_FLIGHT}
    with running(environment={f"SERIATIM_{name}": str(value) for name, value in limits.items()}) as stack:
        yield stack


@pytest.fixture
def client(pressed: Up) -> Iterator[httpx.Client]:
    with pressed.client() as made:
        yield made


def memory_kib(up: Up) -> int:
    (pid,) = up.pids("seriatim serve")
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def put(client: httpx.Client, series: str, entry: str) -> httpx.Response:
    """Puts an entry, again when the server ends the connection at that moment, as it does with those that are idle."""
    with contextlib.suppress(httpx.ReadError, httpx.RemoteProtocolError):
        return client.put(entry_path(series, entry), content=CONTENT)
    return client.put(entry_path(series, entry), content=CONTENT)


def check_room(client: httpx.Client, series: str) -> None:
    """As many requests as may be at work are answered at once: none that has ended is still counted."""
    with ThreadPoolExecutor(IN_FLIGHT) as callers:
        done = list(callers.map(lambda _: put(client, series, new_id()), range(IN_FLIGHT)))
    assert {answer.status_code for answer in done} == {200}


def check_busy(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["Retry-After"]) >= 1
    content: dict[str, Any] = answer.json()
    assert content["code"] == "unavailable"
    return content


def test_a_full_backlog_refuses_what_is_new_alone_and_goes_on_when_it_is_settled(
    pressed: Up, client: httpx.Client
) -> None:
    # Given a worker that does nothing, and as many numbers as may wait
    series = put_series(client, prefix="P-")
    pressed.settled()
    with pressed.worker_stopped():
        told = {}
        for _ in range(BACKLOG):
            entry = put_entry(client, series)
            told[entry["id"]] = entry

        # When more is asked for, then it is refused for now, however it is asked for
        refused = new_id()
        check_busy(put(client, series, refused))
        batch = {"list": [{"id": new_id()}, {"id": new_id()}]}
        check_busy(client.post(f"/sequence/v1/series/{series}/entries", json=batch))
        check_busy(client.post(f"/sequence/v1/series/{series}/skip", json={"to": 1000, "reason": "why"}))
        check_busy(client.post(f"{entry_path(series, next(iter(told)))}/void", json={"reason": "why"}))
        assert client.get("/readyz").json()["backlog"] == BACKLOG

        # And what was issued is still told, and read
        for entry_id in list(told)[:3]:
            assert client.put(entry_path(series, entry_id), json={}).json()["code"] == told[entry_id]["code"]
        assert len(list_entries(client, series)) == BACKLOG

    # And when the worker goes on, so does the service, without a gap
    until(lambda: put(client, series, refused).status_code == 200)
    assert list_entries(client, series)[-1]["position"] == BACKLOG + 1
    assert [one["id"] for one in list_entries(client, series)][-1] == refused


def test_a_database_that_is_slow_fills_the_backlog_and_nothing_else(pressed: Up, client: httpx.Client) -> None:
    # Given a database in which somebody else writes for a while
    series = put_series(client, prefix="D-")
    put_entry(client, series)
    pressed.settled()
    before = memory_kib(pressed)
    answers: list[httpx.Response] = []
    with store_held(pressed.directory):
        # When numbers are asked for all the time
        give_up = time.monotonic() + 2
        with ThreadPoolExecutor(20) as callers:
            while time.monotonic() < give_up:
                answers += callers.map(lambda _: put(client, series, new_id()), range(100))

    # Then so many are issued as may wait, the others refused, and memory is bounded
    issued = [answer for answer in answers if answer.status_code == 200]
    assert len(issued) == BACKLOG
    for answer in answers:
        if answer.status_code != 200:
            check_busy(answer)
    assert len(answers) > 2 * BACKLOG
    assert memory_kib(pressed) - before < GROWTH_KIB_MAX

    # And all goes on by itself
    until(lambda: put(client, series, new_id()).status_code == 200)
    pressed.settled()
    assert [one["position"] for one in list_entries(client, series)] == list(range(1, BACKLOG + 3))


def test_a_redis_that_does_not_answer_keeps_so_many_requests_and_no_more(pressed: Up, client: httpx.Client) -> None:
    # Given a Redis that does nothing for a while
    series = put_series(client, prefix="R-")
    put_entry(client, series)
    before = memory_kib(pressed)
    ids = [new_id() for _ in range(2000)]
    with pressed.stopped("valkey"):
        # When many more numbers are asked for than may be at work
        with ThreadPoolExecutor(100) as callers:
            answers = list(callers.map(lambda one: put(client, series, one), ids))

        # Then all are answered, most at once: that they are to come again
        for answer in answers:
            check_busy(answer)
        assert sum("works on too many requests" in answer.text for answer in answers) > len(ids) / 2
        assert memory_kib(pressed) - before < GROWTH_KIB_MAX

    # And each that comes again has one number, whatever became of it
    until(lambda: client.get("/readyz").status_code == 200)
    check_room(client, series)
    for one in ids[:100]:
        until(lambda one=one: put(client, series, one).status_code == 200)  # type: ignore[misc]
    listed = list_entries(client, series)
    assert [entry["position"] for entry in listed] == list(range(1, len(listed) + 1))
    assert {entry["id"] for entry in listed} >= set(ids[:100])
    assert len({entry["id"] for entry in listed}) == len(listed)


def test_clients_that_go_away_leave_nothing_behind(pressed: Up, client: httpx.Client) -> None:
    # Given requests of both ways, whole and in part, whose clients go away before they are answered
    series = put_series(client, prefix="G-")
    put_entry(client, series)
    ids = [new_id() for _ in range(3 * IN_FLIGHT)]
    key = {"Authorization": f"Bearer {pressed.key}"}
    expecting = {"Expect": "100-continue"}  # takes the ordinary way
    for start in range(0, len(ids), IN_FLIGHT):
        until(lambda: client.get("/readyz").status_code == 200)
        with pressed.stopped("valkey"):
            for number, one in enumerate(ids[start : start + IN_FLIGHT]):
                more = expecting if number % 3 == 1 else {}
                sent = request("PUT", entry_path(series, one), key | more, CONTENT)
                with Wire(pressed.url) as wire:
                    wire.send(sent[:-500] if number % 3 == 2 else sent)
                    if number == 1:  # another stands behind it
                        wire.send(sent)

    # When they have gone, then nothing is counted as being at work any more, and nobody writes to who has gone
    until(lambda: client.get("/readyz").status_code == 200)
    check_room(client, series)
    _, _, trace = pressed.directory.log.read_text().partition("Traceback")
    assert not trace, trace[:5000]

    # And who repeats an id gets its one number
    pressed.settled()
    codes = [put_entry(client, series, one, meta={"k": "v" * 1000})["code"] for one in ids]
    listed = list_entries(client, series)
    assert [entry["position"] for entry in listed] == list(range(1, len(listed) + 1))
    told = {entry["id"]: entry["code"] for entry in listed}
    assert [told[one] for one in ids] == codes
