"""A queue on a server of its own: wake-ups travel on it, and nothing is lost with it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import redis
from rq.serializers import JSONSerializer

from seriatim import worker
from several import Member, Service
from stack import Valkey, entry_path, new_id, put_entry, put_series, until
from torture.link import Link


@pytest.fixture
def queue(directory: Path) -> Iterator[Member]:
    server = Member(directory / "queue")
    yield server
    server.kill()


@pytest.fixture
def service(directory: Path, valkey: Valkey, queue: Member) -> Iterator[Service]:
    started = Service(directory, redis_url=valkey.url, queue_url=f"redis://127.0.0.1:{queue.port}")
    yield started
    started.stop()


def registered(queue: Member) -> bool:
    try:
        (worker,) = queue.client.smembers("rq:workers")
        return bool(queue.client.hget(worker, "hostname"))
    except (ValueError, redis.exceptions.RedisError):
        return False


def test_nothing_is_lost_with_the_queues_server(service: Service, valkey: Valkey, queue: Member) -> None:
    headers = {"Authorization": f"Bearer {service.key}"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=20) as client:

        def settles() -> None:
            entry = put_entry(client, series, new_id())["id"]
            until(lambda: client.get(entry_path(series, entry)).json()["sigs"])

        # Given a service with a queue of its own, on which alone RQ has its keys
        until(lambda: service.ready(client))
        series = put_series(client)
        settles()
        assert queue.client.keys("rq:*")
        assert not valkey.client.keys("rq:*")
        assert service.run("doctor").stdout == "Nothing is wrong.\n"

        # When the queue's server loses everything, then the worker registers anew, and records are settled as before
        queue.client.flushall()
        settles()
        until(lambda: registered(queue))

        # When it is killed, then records are settled all the same, and the doctor says what is wrong
        queue.kill()
        for _ in range(5):
            settles()
        found = service.run("doctor")
        assert found.returncode == 1
        assert found.stdout.startswith("queue: Redis does not answer.")

        # When it comes back empty, then the worker is back on it
        shutil.rmtree(queue.directory.redis)
        queue.directory.redis.mkdir()
        queue.start()
        until(lambda: registered(queue))
        settles()
        assert service.run("verify").stdout == "8 entries in 1 series: sound\n"


def test_a_queue_that_falls_silent_delays_and_loses_nothing(directory: Path, valkey: Valkey, queue: Member) -> None:
    # Given a service whose worker waits for a job
    link = Link([queue.port])
    service = Service(directory, redis_url=valkey.url, queue_url=f"redis://127.0.0.1:{link.port}")
    try:
        headers = {"Authorization": f"Bearer {service.key}"}
        with httpx.Client(base_url=service.url, headers=headers, timeout=20) as client:
            until(lambda: service.ready(client) and registered(queue))
            series = put_series(client)

            # When the queue's server is not reached any more, and nobody is told so
            link.turn("silent")
            entry = put_entry(client, series)["id"]

            # Then the worker does not wait for it for long
            until(lambda: client.get(entry_path(series, entry)).json()["sigs"], 40)
    finally:
        link.turn("fair")
        service.stop()
        link.close()


def test_both_threads_of_a_worker_may_register_it_at_once(valkey: Valkey) -> None:
    # Given a worker, which registers when it starts to work
    made = worker._Worker([worker.queue(valkey.client)], connection=valkey.client, serializer=JSONSerializer)
    with ThreadPoolExecutor(2) as threads:
        for _ in range(200):
            valkey.client.delete(made.key)

            # When a sweep registers it meanwhile, then neither is told that there is another of its name
            for done in [threads.submit(made.register_birth), threads.submit(made.register)]:
                done.result()

            # And it is registered, by the next sweep at the latest
            made.register()
            assert valkey.client.hexists(made.key, "birth")
