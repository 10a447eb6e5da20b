"""What a client does when answers are lost, late or refused: it asks again for the same, and nothing else."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from blocking import calling
from seriatim import errors
from seriatim.attempts import BACKOFF_S, BACKOFF_S_MAX, Plan, Requests
from seriatim.client import AsyncClient, Client, EntryBody, Issued
from seriatim.errors import Busy, Invalid, NotFound, SeriatimError, Unavailable
from seriatim.http.sequence import Sequence
from stack import Up, new_id, until
from wire import BAD_GATEWAY, Fate, Wire

FAULTS: tuple[Fate, ...] = ("pass", "lose request", "lose answer", "lose half", "say nothing", BAD_GATEWAY)
ERRORS = [
    kind("Do something else.", fields={"a": "is wrong"})
    for kind in (
        errors.BadRequest,
        errors.Unauthorized,
        errors.Forbidden,
        errors.NotFound,
        errors.NotAllowed,
        errors.Conflict,
        errors.TooLarge,
        errors.Busy,
        errors.Unavailable,
        errors.Halted,
        errors.SeriatimError,
    )
] + [Invalid({"a": "is wrong"})]


@pytest.fixture
def client(shared_up: Up) -> Iterator[Client]:
    with calling("Client", shared_up.url, shared_up.key) as made:
        yield made


@pytest.fixture
def series(client: Client) -> str:
    return client.put_series(new_id(), prefix="C-").id


# on a bad line ----------------------------------------------------------------------------------------------------


def test_on_a_bad_line_no_number_is_lost_and_none_issued_twice(shared_up: Up, client: Client, series: str) -> None:
    # Given a line that loses requests, answers and halves of them, and at times says nothing at all
    fates = random.Random(7).choices(FAULTS, k=150)
    with Wire(shared_up.url, fates) as wire:

        def by_threads() -> list[Issued]:
            with calling("Client", wire.url, shared_up.key, timeout=0.5) as bad, ThreadPoolExecutor(6) as pool:
                return list(pool.map(lambda number: bad.issue(series, meta={"n": str(number)}), range(30)))

        async def by_tasks() -> list[Issued]:
            async with AsyncClient(wire.url, shared_up.key, timeout=0.5) as bad:
                return await asyncio.gather(*(bad.issue(series, meta={"n": str(number)}) for number in range(30, 60)))

        # When numbers are issued over it, by threads and by tasks
        with ThreadPoolExecutor(1) as aside:
            threads = aside.submit(by_threads)
            issued = asyncio.run(by_tasks()) + threads.result()

    # Then each call has returned a number of its own, and there are no others
    assert {entry.meta["n"] for entry in issued} == {str(number) for number in range(60)}
    listed = list(client.entries(series))
    assert [entry.number for entry in listed] == list(range(1, 61))
    assert {entry.id: entry.code for entry in listed} == {entry.id: entry.code for entry in issued}

    # And what was asked again was asked in the same words; whether it was done before is told
    assert len(wire.requests) == 60
    assert all(len(set(asked)) == 1 for asked in wire.requests.values())
    assert sum(len(asked) for asked in wire.requests.values()) > 100
    assert {entry.replayed for entry in issued} == {False, True}


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda client, series: client.put_series(series, name="Sales").name, "Sales"),
        (lambda client, _: client.put_series(new_id(), prefix="X-").last_index, 0),
        (lambda client, _: client.delete_series(client.put_series(new_id()).id), None),
        (lambda client, series: [one.code for one in client.issue_batch(series, [EntryBody()] * 2)], ["C-2", "C-3"]),
        (lambda client, series: client.skip(series, 10, "why").next, 10),
        (lambda client, series: client.void(series, next(client.entries(series)).id, "why").void.reason, "why"),
        (lambda client, series: [one.code for one in client.entries(series)], ["C-1"]),
        (lambda client, series: client.preview(series).next[0], "C-2"),
        (lambda client, _: client.preview_new(prefix="X-").next[0], "X-1"),
        (lambda client, series: client.report(series).lines[0].issued, 1),
    ],
)
def test_every_call_may_be_repeated(
    shared_up: Up, client: Client, series: str, act: Callable[[Client, str], Any], expected: Any
) -> None:
    # Given a series with an entry, and a line that loses every other answer
    client.issue(series)
    fates: list[Fate] = ["lose answer", "pass"]
    with Wire(shared_up.url, fates * 3) as wire, calling("Client", wire.url, shared_up.key) as bad:
        # When something is done over it, then it is done, once
        assert act(bad, series) == expected
        assert {len(asked) for asked in wire.requests.values()} == {2}
    (line,) = client.report(series).lines
    assert [(skip.first, skip.last) for skip in line.skipped] in ([], [(2, 9)])


def test_a_series_that_was_never_there_is_missing_on_a_bad_line_too(shared_up: Up) -> None:
    # Given a service that first wants to be left alone, when a series is deleted that nobody made
    busy = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"
    with Wire(shared_up.url, [busy]) as wire, calling("Client", wire.url, shared_up.key) as client:
        # Then that is said: the first attempt cannot have deleted it
        with pytest.raises(NotFound):
            client.delete_series(new_id())
        assert [len(asked) for asked in wire.requests.values()] == [2]


def test_who_gets_no_answer_in_time_can_ask_again_by_the_ids(shared_up: Up, client: Client, series: str) -> None:
    # Given a line that says nothing any more
    silence: list[Fate] = ["say nothing"] * 100
    with (
        Wire(shared_up.url, silence) as wire,
        calling("Client", wire.url, shared_up.key, timeout=0.1, deadline=0.5) as bad,
    ):
        # When a number and a batch are asked for, then in the end the error names the ids, and why
        with pytest.raises(Unavailable, match=r"Timeout.*same ids") as one:
            bad.issue(series)
        until(lambda: client.get_series(series).last_index == 1)
        with pytest.raises(Unavailable) as batch:
            bad.issue_batch(series, [EntryBody()] * 2)
        until(lambda: client.get_series(series).last_index == 3)
    assert isinstance(one.value.__cause__, httpx.TimeoutException)

    # And over a good one they tell what became of it
    known = client.issue(series, one.value.ids[0])
    assert (known.code, known.replayed) == ("C-1", True)
    again = client.issue_batch(series, [EntryBody(entry) for entry in batch.value.ids])
    assert [entry.code for entry in again] == ["C-2", "C-3"]


def test_a_task_that_waits_for_its_next_attempt_can_be_cancelled(shared_up: Up) -> None:
    async def cancel() -> None:
        # Given a client that nobody answers, when its task is given up, then it ends
        async with AsyncClient("http://127.0.0.1:1", shared_up.key) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.issue(new_id()), 0.2)

    asyncio.run(cancel())


# at a service that stops ------------------------------------------------------------------------------------------


@pytest.fixture
def up_at_home(directory: Path) -> Iterator[Up]:
    """A service that keeps its port when it is started again."""
    up = Up(directory)
    up.arguments[up.arguments.index("--port") + 1] = str(_free_port())
    with _running(up):
        yield up


@contextmanager
def _running(up: Up) -> Iterator[None]:
    try:
        up.start()
        yield
    finally:
        up.stop()


def _free_port() -> int:
    """A port that the system gives to nobody by itself, so that it is still free after a restart."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


def test_a_service_that_is_killed_meanwhile_loses_and_repeats_no_number(up_at_home: Up) -> None:
    # Given threads and tasks that issue numbers all the time
    issued: list[Issued] = []
    stopping = threading.Event()
    up = up_at_home
    with calling("Client", up.url, up.key, timeout=5, deadline=100) as client:
        series = client.put_series(new_id()).id

        def issue() -> None:
            while not stopping.is_set():
                issued.append(client.issue(series, meta={"by": "thread"}))

        async def issue_all() -> None:
            async with AsyncClient(up.url, up.key, timeout=5, deadline=100) as waited:

                async def issue() -> None:
                    while not stopping.is_set():
                        issued.append(await waited.issue(series, meta={"by": "task"}))

                await asyncio.gather(*(issue() for _ in range(4)))

        def reached_more() -> None:
            goal = len(issued) + 30
            until(lambda: len(issued) >= goal, 100)

        with ThreadPoolExecutor(5) as pool:
            running = [pool.submit(issue) for _ in range(4)] + [pool.submit(asyncio.run, issue_all())]

            # When the API is killed, and then everything, and started again
            reached_more()
            for pid in up.pids("seriatim serve"):
                os.kill(pid, signal.SIGKILL)
            reached_more()
            up.kill()
            up.start()
            reached_more()
            stopping.set()
            for one in running:
                one.result()

        # Then every call has returned, and what they were told is what there is
        up.settled()
        listed = list(client.entries(series, limit=1000))
        assert {entry.id: entry.code for entry in listed} == {entry.id: entry.code for entry in issued}
        assert len(listed) == len(issued)
        assert [entry.number for entry in listed] == list(range(1, len(listed) + 1))
    assert up.json("verify")["sound"] is True


def test_a_key_that_may_not_send_more_is_slowed_down(directory: Path) -> None:
    # Given a service that takes ten requests a second of one key
    up = Up(directory, workers=0, environment={"SERIATIM_KEY_RATE_MAX": "10"})
    statuses: list[int] = []
    hooks = {"response": [lambda answer: statuses.append(answer.status_code)]}
    with _running(up), httpx.Client(event_hooks=hooks, verify=False) as http:
        client = Client(up.url, up.key, http=http)
        series = client.put_series(new_id()).id

        # When more are sent at once
        with ThreadPoolExecutor(20) as pool:
            issued = list(pool.map(lambda _: client.issue(series), range(20)))

        # Then some were told to wait, and all have their numbers in the end
        assert {entry.number for entry in issued} == set(range(1, 21))
        assert set(statuses) == {200, 429}

        # And who cannot wait is told that
        hurried = Client(up.url, up.key, http=http, deadline=0.5)
        with pytest.raises(Busy, match="10 requests a second"), ThreadPoolExecutor(20) as pool:
            list(pool.map(lambda _: hurried.get_series(series), range(40)))


# what is tried again, and when ------------------------------------------------------------------------------------


def make_requests(deadline_s: float = 60.0) -> Requests:
    return Requests("http://h", "key", None, timeout_s=10.0, deadline_s=deadline_s)


def pauses(plan: Plan[Any], answers: list[httpx.Response]) -> list[float]:
    """How long a plan waits after each of the answers."""
    assert next(plan).pause_s == 0
    return [plan.send(answer).pause_s for answer in answers]


def answer(status: int, headers: dict[str, str] | None = None, content: bytes = b"") -> httpx.Response:
    return httpx.Response(status, headers=headers, content=content, request=httpx.Request("GET", "http://h"))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_arrives_as_it_was_raised(error: SeriatimError) -> None:
    # Given an error, as the service writes it
    written = Sequence(cast("Any", None), cast("Any", None), cast("Any", None), 1).refusal(error)
    plan = make_requests(deadline_s=0.001).answer("GET", "/")
    next(plan)

    # When a client reads it, then it raises the same
    with pytest.raises(SeriatimError) as raised:
        plan.send(answer(written.status_code, dict(written.headers), bytes(written.body)))
    assert type(raised.value) is type(error)
    assert (raised.value.message, raised.value.fields) == (error.message, error.fields)


def test_the_errors_above_are_all_that_travel() -> None:
    # Given the tree of errors, then those that are left out never leave their process, or travel as their parents
    def kinds(kind: type[SeriatimError]) -> set[type[SeriatimError]]:
        return {kind}.union(*map(kinds, kind.__subclasses__()))

    left_out = kinds(SeriatimError) - {type(error) for error in ERRORS}
    names = {kind.__name__ for kind in left_out if kind.__module__ == errors.__name__}
    assert names == {"ConfigError", "Unproven", "Unsettled", "Stale", "Damaged"}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 413, 422, 500, 501])
def test_a_refusal_is_final(status: int) -> None:
    plan = make_requests().answer("GET", "/")
    next(plan)
    with pytest.raises(SeriatimError):
        plan.send(answer(status))


def test_pauses_grow_and_differ_from_client_to_client() -> None:
    # Given many clients whose service answers 503, without saying for how long
    runs = [pauses(make_requests().answer("GET", "/"), [answer(503)] * 12) for _ in range(20)]

    # Then each waits about twice as long as before, up to a bound, and no two alike
    for number, waited in enumerate(zip(*runs, strict=True)):
        most = min(BACKOFF_S_MAX, BACKOFF_S * 2**number)
        assert all(most / 2 <= pause <= most for pause in waited)
        assert len(set(waited)) == len(runs)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.parametrize(("text", "least"), [("0", 0), ("7", 7), ("", 0), ("soon", 0), ("-3", 0), ("1e3", 0)])
def test_the_service_says_how_long_to_wait_at_least(status: int, text: str, least: float) -> None:
    (pause,) = pauses(make_requests().answer("GET", "/"), [answer(status, {"Retry-After": text})])
    assert least < pause <= least + BACKOFF_S


@pytest.mark.parametrize(("ahead_s", "least"), [(1000, 900), (-1000, 0)])
def test_the_service_may_say_until_when_to_wait(ahead_s: int, least: float) -> None:
    text = format_datetime(datetime.now(UTC) + timedelta(seconds=ahead_s), usegmt=True)
    (pause,) = pauses(make_requests(deadline_s=5000).answer("GET", "/"), [answer(503, {"Retry-After": text})])
    assert least < pause <= max(0, ahead_s) + BACKOFF_S


def test_who_would_wait_beyond_the_deadline_does_not_begin_to() -> None:
    # Given a deadline in a minute, when the service wants to be asked in an hour, then that is said at once
    plan = make_requests().answer("GET", "/")
    next(plan)
    with pytest.raises(Unavailable):
        plan.send(answer(503, {"Retry-After": "3600"}))


def test_an_attempt_waits_no_longer_than_the_call_may() -> None:
    # Given less time for the call than for an attempt, then the attempt has that, and the next one what is left of it
    plan = make_requests(deadline_s=5).answer("GET", "/")
    first, second = next(plan), plan.send(answer(503, {"Retry-After": "2"}))
    assert first.request.extensions["timeout"] == dict.fromkeys(("connect", "read", "write", "pool"), 5)
    assert second.request.extensions["timeout"]["read"] < 3


def test_an_error_tells_of_an_attempt_before_that_may_have_been_carried_out() -> None:
    # Given an attempt that was answered by 503, when the next one is refused, then the error has it as its cause
    plan = make_requests().answer("GET", "/")
    next(plan)
    plan.send(answer(503))
    plan.send(answer(429))
    with pytest.raises(errors.Unauthorized) as refused:
        plan.send(answer(401))
    assert isinstance(refused.value.__cause__, Unavailable)
