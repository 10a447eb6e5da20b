"""`seriatim doctor` and `seriatim recover` as an operator uses them, beside a running service and without one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from seriatim import clients
from seriatim.embedded import serving
from stack import Up, entry_path, new_id, put_entry, put_series, running, until


@pytest.fixture
def up() -> Iterator[Up]:
    """A running `seriatim up` of this test's own, without workers: what is issued waits in Redis."""
    with running(workers=0) as stack:
        yield stack


def ready(up: Up) -> bool:
    with up.client() as client:
        return client.get("/readyz").status_code == 200


def kinds(up: Up) -> list[str]:
    found = up.json("doctor")
    assert found["healthy"] == (not found["findings"])
    assert all(one["detail"] and one["advice"] for one in found["findings"])
    return [one["kind"] for one in found["findings"]]


def test_the_doctor_finds_nothing_where_nothing_is_wrong(up: Up) -> None:
    done = up.run("doctor")
    assert done.stdout == "Nothing is wrong.\n"
    assert up.run("recover").stdout == "Nothing is to be recovered: Redis holds all that the store lacks.\n"
    assert ready(up)


SPOILT: dict[str, tuple[Callable[[Up], object], list[str]]] = {
    "everysec": (lambda up: up.redis().config_set("appendfsync", "everysec"), ["settings"]),
    "an open key file": (lambda up: (up.data_dir / "signing-key.json").chmod(0o644), ["signing key"]),
    "another key": (lambda up: (up.data_dir / "signing-key.json").write_text("{}"), ["signing key"]),
    "nobody who settles": (lambda up: issue(up, 3), ["worker"]),
}


def issue(up: Up, count: int) -> tuple[str, list[dict[str, Any]]]:
    with up.client() as client:
        series = put_series(client, prefix="A-")
        return series, [put_entry(client, series) for _ in range(count)]


@pytest.mark.parametrize("spoilt", SPOILT)
def test_the_doctor_says_what_is_wrong(up: Up, spoilt: str) -> None:
    # Given a setting of which something is spoilt, when the doctor looks, then it says so, and the exit code tells
    spoil, expected = SPOILT[spoilt]
    spoil(up)
    done = up.run("doctor", check=False)
    assert done.returncode == 1
    assert kinds(up) == expected


def test_a_redis_that_lost_everything_is_built_anew_beside_the_service(up: Up) -> None:
    # Given numbers in Redis alone, and a Redis that loses them
    series, entries = issue(up, 5)
    up.redis().flushall()
    until(lambda: not ready(up))
    assert kinds(up) == ["data"]

    # When it is recovered, then it wants a decision first
    done = up.run("recover", check=False)
    assert done.returncode == 1
    assert f"{series}: inc may have been issued from 1 on; Redis has lost its data" in done.stdout
    assert kinds(up) == ["halted"]

    # When somebody decides by what clients have seen
    assert up.run("recover", "--resume-at", f"{series}=6").returncode == 0

    # Then the service goes on by itself, and no number comes again
    until(lambda: ready(up))
    assert kinds(up) == []
    with up.client() as client:
        fresh = put_entry(client, series)
        assert fresh["number"] == 6
        assert fresh["code"] not in {entry["code"] for entry in entries}
        (line,) = client.get(f"/sequence/v1/series/{series}/report").json()["list"]
        assert (line["issued"], line["last"], line["missing"]) == (1, 6, [])
        assert [(one["from"], one["to"], one["actor"]) for one in line["skipped"]] == [(1, 5, "recover")]


@pytest.mark.parametrize("beside", [True, False], ids=["beside the service", "without the service"])
def test_a_torn_log_is_opened_by_a_decision_alone(up: Up, *, beside: bool) -> None:
    # Given a log that is torn in the last allocation (a wake-up of the worker may be behind it)
    series, entries = issue(up, 5)
    up.kill()
    log = up.directory.redis_log
    assert log
    os.truncate(log, log.read_bytes().rindex(b"XADD") + 7)

    # When the service is started, then it does not allocate
    if beside:
        up.start()
        assert up.state == "halted"
        assert kinds(up) == ["redis"]

    # When it is recovered, then it saves what is whole, and wants a decision for what may have been behind
    found = up.json("recover")
    assert [one["series"] for one in found["doubts"]] == [series]
    (doubt,) = found["doubts"]
    assert (doubt["entries"], doubt["number"], found["recovered"]) == (4, 5, False)

    # When it is asked again, then it still knows; and with a decision it is done
    assert up.json("recover")["doubts"] == [doubt]
    assert up.json("recover", "--resume-at", f"{series}=6")["recovered"]

    # Then what was saved is there, and the number that was lost is not issued again
    if not beside:
        up.start()
    until(lambda: ready(up))
    with up.client() as client:
        for entry in entries[:4]:
            assert put_entry(client, series, entry["id"])["code"] == entry["code"]
        assert client.get(entry_path(series, entries[4]["id"])).status_code == 404
        assert put_entry(client, series, new_id())["number"] == 6
    assert up.json("verify")["sound"]


def test_a_recovery_waits_for_what_a_server_that_still_reads_its_log_comes_to(up: Up) -> None:
    # Given a service whose server dies again and again, after it has read a long log up to its torn end
    issue(up, 5)
    up.kill()
    log = up.directory.redis_log
    assert log
    with log.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n" * 500_000 + b"*3\r\n$3\r\nSET\r\n")
    up.start()
    client = clients.blocking(f"unix://{up.directory.socket}")

    # When a recovery comes while it reads
    until(lambda: is_loading(client))
    torn: list[str] = []
    with serving(up.directory, client, lambda: torn.append("torn")):
        # Then it finds the torn end, and the server runs
        assert client.ping()
    assert torn == ["torn"]
    client.close()


def is_loading(client: redis.Redis) -> bool:
    try:
        client.ping()
    except redis.exceptions.BusyLoadingError:
        return True
    except redis.exceptions.ConnectionError:
        pass
    return False


def test_a_wrong_decision_is_refused(up: Up) -> None:
    for wrong, why in (("nonsense", "must be SERIES=N"), (f"{new_id()}=5", "has lost nothing")):
        up.redis().flushall()
        done = up.run("recover", "--resume-at", wrong, check=False)
        assert done.returncode == 2
        assert why in done.stderr
