"""What every request passes: request ids, limits, and servers that do not answer in time."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from stack import Up, entry_path, new_id, put_entry, put_series


def test_a_request_id_goes_back_and_into_the_log(shared_up: Up, client: httpx.Client) -> None:
    # Given a request with an id of its own, one with an unfit id, and one with none
    path = f"/sequence/v1/series/{new_id()}"
    named = client.get(path, headers={"X-Request-Id": "order-4711"})
    unfit = client.get(path, headers={"X-Request-Id": 'a"b c'})
    unnamed = client.get(path)

    # Then the first keeps its name, the others get one, and the log knows the refusal by it
    assert named.headers["X-Request-Id"] == "order-4711"
    assert '"' not in unfit.headers["X-Request-Id"]
    assert unnamed.headers["X-Request-Id"] not in ("", unfit.headers["X-Request-Id"])
    lines = [json.loads(line) for line in shared_up.directory.log.read_text().splitlines() if line.startswith("{")]
    (logged,) = [line for line in lines if line.get("request") == "order-4711"]
    assert (logged["method"], logged["path"], logged["status"]) == ("GET", path, 404)


def test_no_secret_is_in_the_log(shared_up: Up, client: httpx.Client) -> None:
    # Given requests with a good key and with a wrong one
    wrong = shared_up.key[:-1] + ("a" if shared_up.key[-1] != "a" else "b")
    client.get("/sequence/v1/series")
    assert client.get("/sequence/v1/series", headers={"Authorization": f"Bearer {wrong}"}).status_code == 401

    # Then neither is in the log
    log = shared_up.directory.log.read_text()
    assert shared_up.key not in log
    assert wrong not in log


def test_a_server_that_does_not_answer_is_503_and_the_same_ids_settle_it(up: Up) -> None:
    with up.client() as client:
        # Given a stack whose Valkey stands still
        series = put_series(client)
        put_entry(client, series)
        (server,) = up.pids("valkey-server")
        os.kill(server, signal.SIGSTOP)

        # When ten entries are put
        ids = [new_id() for _ in range(10)]
        started = time.monotonic()
        try:
            with ThreadPoolExecutor(10) as pool:
                answers = list(pool.map(lambda entry: client.put(entry_path(series, entry)), ids))
        finally:
            os.kill(server, signal.SIGCONT)

        # Then each is told within the time limit that the outcome is unknown
        assert time.monotonic() - started < 15
        assert {answer.status_code for answer in answers} == {503}
        assert {answer.json()["code"] for answer in answers} == {"unavailable"}
        assert all("Retry-After" in answer.headers for answer in answers)

        # And repeating the ids gives each exactly one number
        positions = {put_entry(client, series, entry)["position"] for entry in ids}
        assert positions == set(range(2, 12))


def test_more_requests_than_a_process_works_on_are_refused_at_once(directory: Path) -> None:
    # Given a process that works on four requests at once, and a Valkey that stands still
    stack = Up(directory, environment={"SERIATIM_IN_FLIGHT_MAX": "4"}).start()
    try:
        with stack.client() as client:
            series = put_series(client)
            put_entry(client, series)
            (server,) = stack.pids("valkey-server")
            os.kill(server, signal.SIGSTOP)

            # When twenty entries are put at once
            try:
                with ThreadPoolExecutor(20) as pool:
                    answers = list(pool.map(lambda _: client.put(entry_path(series, new_id())), range(20)))
            finally:
                os.kill(server, signal.SIGCONT)

            # Then those beyond the limit are refused with the time to come back, and nothing is lost
            refused = [answer for answer in answers if "too many requests" in answer.text]
            assert len(refused) >= 12
            assert all(answer.status_code == 503 and "Retry-After" in answer.headers for answer in refused)
            assert put_entry(client, series)["position"] <= 10
    finally:
        stack.stop()


def test_a_full_backlog_is_503_until_the_workers_catch_up(directory: Path) -> None:
    # Given a stack without workers that lets five records wait
    stack = Up(directory, workers=0, environment={"SERIATIM_BACKLOG_MAX": "5"}).start()
    try:
        with stack.client() as client:
            series = put_series(client)
            ids = [put_entry(client, series)["id"] for _ in range(5)]

            # When a sixth is put, then it is refused, and a replay is not
            refused = client.put(entry_path(series, new_id()))
            assert refused.status_code == 503
            assert "wait for the store" in refused.json()["message"]
            assert client.put(entry_path(series, ids[2])).json()["position"] == 3
    finally:
        stack.stop()

    # And with a worker it goes on where it stood
    again = Up(directory, environment={"SERIATIM_BACKLOG_MAX": "5"}, key=stack.key).start()
    try:
        again.settled()
        with again.client() as client:
            assert put_entry(client, series)["position"] == 6
    finally:
        again.stop()
