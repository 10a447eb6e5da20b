"""The outbox on a real Valkey: runs of entries as single items, and what reads, repeats and settles them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any, ClassVar, TypeVar, cast

import pytest
import redis.asyncio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from scripted import (
    ALWAYS,
    SHARD,
    STANDING,
    TODAY,
    allocate,
    ask,
    enrolled,
    find_all,
    group,
    make_series,
    opened,
    said,
    settle,
    stands,
)
from seriatim import keyspace, scripts
from seriatim.errors import Damaged
from seriatim.formats import Window
from seriatim.keyspace import RUN_MAX
from seriatim.model import COUNTER_MAX, Entry, Place, Record, Series, Skip, Void, Why, follows
from seriatim.outbox import Reading, entries_at, records_after, records_of
from stack import Valkey, new_id

T = TypeVar("T")
WHY = Why("because", "somebody")
BACKLOG_MAX = 10**6


@pytest.fixture
def server(valkey: Valkey) -> Valkey:
    return enrolled(valkey)


def outbox(series: Series) -> str:
    return keyspace.outbox_key(SHARD, series.id)


def items(server: Valkey, series: Series) -> list[tuple[bytes, dict[bytes, bytes]]]:
    return cast("list[tuple[bytes, dict[bytes, bytes]]]", server.client.xrange(outbox(series)))


def waiting(server: Valkey, series: Series, after: Place = (0, 0), limit: int = 10**5) -> list[Record]:
    """What a worker would read."""
    return records_of(server.client, SHARD, {series.id: after}, limit)[series.id]


def listed(server: Valkey, series: Series, place: Place, limit: int) -> list[Record]:
    """What a reader of pages would read."""
    return ask(server, lambda client: records_after(client, STANDING, series, place, limit)).records


def skip(server: Valkey, series: Series, to: int) -> None:
    window = Window(*ALWAYS, TODAY)
    said = ask(
        server,
        lambda client: scripts.skip(
            client, STANDING, series, window=window, counter=1, to=to, why=WHY, backlog_max=BACKLOG_MAX
        ),
    )
    assert said.replies[0][0] == b"skipped"


def void(server: Valkey, series: Series, entry: str) -> None:
    said = ask(server, lambda client: scripts.void(client, STANDING, series, entry, why=WHY, backlog_max=BACKLOG_MAX))
    assert said.replies[0][0] == b"voided"


def issue(server: Valkey, series: Series, lengths: list[int]) -> None:
    """Issues entries, so many a call."""

    async def call(client: redis.asyncio.Redis) -> None:
        for length in lengths:
            groups = [group(series, [new_id() for _ in range(length)])]
            await scripts.allocate(client, STANDING, groups, backlog_max=BACKLOG_MAX)

    ask(server, call)


def backlog(server: Valkey) -> int:
    return int(server.client.hget(keyspace.shard_key(SHARD), "backlog") or -1)


# runs -------------------------------------------------------------------------------------------------------------


def test_an_entry_is_found_and_repeated_wherever_it_stands_in_a_run(server: Valkey) -> None:
    # Given runs of several lengths, with skips and voids between them
    series = opened(server, make_series())
    runs = [[new_id() for _ in range(length)] for length in (3, 1, RUN_MAX, 2)]
    skip(server, series, 10)
    first: list[list[Any]] = []
    for number, run in enumerate(runs):
        first += allocate(server, group(series, run))
        void(server, series, run[0])
        if number == 1:
            skip(server, series, 100)
    ids = [one for run in runs for one in run]

    # Then each run is one item, by the position of its last entry, and so is each skip and void
    kept = [name.decode() for name, _ in items(server, series)]
    assert kept == ["0-1", "3-0", "3-1", "4-0", "4-1", "4-2", "36-0", "36-1", "38-0", "38-1"]

    # And every entry is found, and repeated as it was said first
    found = find_all(server, series, ids)
    assert [one and one.entry and one.entry.id for one in found] == ids
    repeated = [reply for one in ids for reply in allocate(server, group(series, [one]))]
    assert [reply[0] for reply in repeated] == [b"replayed"] * len(ids)
    assert [reply[1:3] for reply in repeated] == [reply[1:3] for reply in first]
    assert [bool(reply[3]) for reply in repeated] == [one in [run[0] for run in runs] for one in ids]

    # And so it is when they are asked for in one call, in any order
    mixed = [*ids[::-2], *ids[::3]]
    order = {one: number for number, one in enumerate(ids)}
    assert allocate(server, group(series, mixed)) == [repeated[order[one]] for one in mixed]

    # And the entry at a position is there, in whatever run it is, and none where there is none
    wanted = [(series, position) for position in (1, 2, 3, 4, 5, 36, 37, 38, 39)]
    there = ask(server, lambda client: entries_at(client, wanted))
    assert [(one.position, one.id) for one in there] == [(at, ids[at - 1]) for _, at in wanted[:-1]]


def test_what_is_settled_of_a_run_is_the_stores_to_answer(server: Valkey) -> None:
    # Given a run, and another behind it, settled up to the middle of the first
    series = opened(server, make_series())
    ids = [new_id() for _ in range(8)]
    allocate(server, group(series, ids[:5]))
    allocate(server, group(series, ids[5:]))
    assert settle(server, series, (3, 0)) == 5

    # Then the run is still there for those who wait, and the others are answered as settled
    assert [reply[0] for reply in allocate(server, group(series, ids))] == [b"settled"] * 3 + [b"replayed"] * 5
    found = find_all(server, series, ids)
    assert [one is not None and one.entry is not None for one in found] == [False] * 3 + [True] * 5

    # And when the run has gone, too: an entry that is looked for by its position is not taken for another
    assert settle(server, series, (5, 0)) == 3
    wanted = [(series, position) for position in (4, 5, 6)]
    assert [one.position for one in ask(server, lambda client: entries_at(client, wanted))] == [6]


def test_a_batch_of_a_thousand_waits_in_few_items(server: Valkey) -> None:
    # Given a batch of a thousand
    series = opened(server, make_series())
    ids = [new_id() for _ in range(1000)]
    first = allocate(server, group(series, ids), atomic=True)
    assert [reply[:2] for reply in first] == [[b"issued", at] for at in range(1, 1001)]

    # Then no item holds more than it may, and all are there once, linked to those before
    assert len(items(server, series)) == -(-1000 // RUN_MAX)
    records = waiting(server, series)
    assert max(len(keyspace.item_records(series.id, item)) for item in items(server, series)) == RUN_MAX
    assert [(one.place, one.id) for one in records if isinstance(one, Entry)] == [
        ((at, 0), one) for at, one in enumerate(ids, 1)
    ]
    entries = [one for one in records if isinstance(one, Entry)]
    assert all(later.previous_id == earlier.id for earlier, later in pairwise(entries))
    assert backlog(server) == 1000

    # And the same batch is answered as before, and settled it leaves nothing
    again = allocate(server, group(series, ids), atomic=True)
    assert again == [[b"replayed", *reply[1:]] for reply in first]
    assert settle(server, series, (1000, 0)) == 0
    assert not server.client.exists(outbox(series), keyspace.dirty_key(SHARD))
    assert backlog(server) == 0


# damage -----------------------------------------------------------------------------------------------------------


def rewrite(server: Valkey, series: Series, change: Callable[[bytes], bytes]) -> None:
    """Changes what the first run holds."""
    kept: Any = items(server, series)
    server.client.delete(outbox(series))
    for number, (name, fields) in enumerate(kept):
        if number == 0:
            fields[b"e"] = change(fields[b"e"])
        server.client.xadd(outbox(series), fields, id=name)


def without_first(run: bytes) -> bytes:
    return run[28 + int.from_bytes(run[24:28]) :]


CUTS: dict[str, tuple[Callable[[bytes], bytes], list[int]]] = {
    "the last byte": (lambda run: run[:-1], [4]),
    "all but a length": (lambda run: run[:28], [1, 2, 3, 4]),
    "all but half a length": (lambda run: run[:26], [1, 2, 3, 4]),
    "the first record": (without_first, [1]),
    "everything": (lambda run: run[:0], [1, 2, 3, 4]),
}
"""What is cut off, and which entries are not whole then."""


@pytest.mark.parametrize("cut", CUTS)
def test_a_run_that_is_cut_short_is_damage(server: Valkey, cut: str) -> None:
    # Given two runs, the first of which loses a part
    series = opened(server, make_series())
    ids = [new_id() for _ in range(6)]
    allocate(server, group(series, ids[:4]))
    allocate(server, group(series, ids[4:]))
    cut_off, lost = CUTS[cut]
    rewrite(server, series, cut_off)
    before = server.dump()

    # When its entries are asked for again or looked for, then what is gone is damage
    replies = allocate(server, group(series, ids[:4]))
    assert [at for at, reply in enumerate(replies, 1) if reply[0] == b"damaged"] == lost
    assert {reply[0] for reply in replies} <= {b"damaged", b"replayed"}
    for at in lost:
        with pytest.raises(Damaged, match=f"entry {at} is neither"):
            find_all(server, series, [ids[at - 1]])

    # And whoever reads the outbox is told so
    with pytest.raises(Damaged, match=f"outbox of series {series.id} is cut short"):
        waiting(server, series)
    with pytest.raises(Damaged, match=f"outbox of series {series.id} is cut short"):
        listed(server, series, (0, 0), 100)

    # And the other run is as it was
    assert [reply[0] for reply in allocate(server, group(series, ids[4:]))] == [b"replayed"] * 2
    assert server.dump() == before


def test_another_entry_in_the_place_of_one_is_damage(server: Valkey) -> None:
    # Given a run in which one record has been replaced by another entry's
    series = opened(server, make_series())
    ids = [new_id() for _ in range(2)]
    allocate(server, group(series, ids))
    rewrite(server, series, lambda run: without_first(run) * 2)

    # When the entry is asked for again, then it is not answered with the other one's number
    assert [reply[0] for reply in allocate(server, group(series, ids))] == [b"damaged", b"replayed"]
    with pytest.raises(Damaged):
        find_all(server, series, ids[:1])


# reading in rounds ------------------------------------------------------------------------------------------------


def read(server: Valkey, series: Series, reading: Reading) -> int:
    """Reads one round; returns how many records were fetched."""
    fetched: Any = server.client.xrange(outbox(series), *reading.range())
    reading.take(fetched)
    return sum(len(keyspace.item_records(series.id, item)) for item in fetched)


@pytest.mark.parametrize("length", [1, 5, RUN_MAX])
@pytest.mark.parametrize("limit", [1, 51, 500])
def test_little_more_is_fetched_than_is_wanted(server: Valkey, length: int, limit: int) -> None:
    # Given more records than are wanted, in runs of one length
    series = opened(server, make_series())
    issue(server, series, [length] * (800 // length))

    # When they are read, then so many rounds are as if one had known how many items it takes, or a few more
    reading, fetched, rounds = Reading(series.id, (0, 0), limit), 0, 0
    while not reading.ended:
        fetched += read(server, series, reading)
        rounds += 1
    assert limit <= len(reading.records) < limit + length
    assert fetched <= limit + 2 * length
    assert rounds <= 7


def test_what_is_settled_between_two_rounds_leaves_no_gap(server: Valkey) -> None:
    # Given a reader of many runs who has had a first round
    series = opened(server, make_series())
    issue(server, series, [3] * 20)
    reading = Reading(series.id, (2, 0), 50)
    read(server, series, reading)
    assert [one.place for one in reading.records] == [(3, 0), (4, 0), (5, 0), (6, 0)]

    # When what it has, and more, is settled before the next
    settle(server, series, (31, 0))
    while not reading.ended:
        read(server, series, reading)

    # Then it goes on behind that, without what it had: the store has all of it
    assert [one.place for one in reading.records] == [(at, 0) for at in range(31, 61)]

    # And what is settled no further than it has read changes nothing
    reading = Reading(series.id, (0, 0), 50)
    read(server, series, reading)
    settle(server, series, (33, 0))
    while not reading.ended:
        read(server, series, reading)
    assert [one.place for one in reading.records] == [(at, 0) for at in range(31, 61)]


def test_several_outboxes_are_read_together_each_from_its_place(server: Valkey) -> None:
    # Given three series, the second with many runs, and the third without any
    one, many, none = (opened(server, make_series()) for _ in range(3))
    issue(server, one, [4])
    issue(server, many, [7] * 30)

    # When they are read from where somebody has read to
    after = {one.id: (2, 0), many.id: (10, COUNTER_MAX), none.id: (0, 0)}
    found = records_of(server.client, SHARD, after, 60)

    # Then each gets its share, to the end of a run
    assert {name: [record.place[0] for record in records] for name, records in found.items()} == {
        one.id: [3, 4],
        many.id: list(range(11, 36)),
        none.id: [],
    }


# anything, against a plain model ----------------------------------------------------------------------------------

LENGTHS = st.integers(1, 5) | st.integers(1, 2 * RUN_MAX + 3)
LIMITS = st.integers(1, 12) | st.integers(1, 400)
POINTS = st.floats(0, 1)


class Machine(RuleBasedStateMachine):
    """The records of a series, as a list of those that were recorded, and as the scripts tell them."""

    server: ClassVar[Valkey]
    runner: ClassVar[asyncio.Runner]
    client: ClassVar[redis.asyncio.Redis]

    @initialize()
    def begin(self) -> None:
        self.series = opened(self.server, make_series())
        self.others = backlog(self.server)
        self.items: list[list[Place]] = []
        self.ids: list[str] = []
        self.voided: set[str] = set()
        self.settled: Place = (0, 0)

    # what there must be -------------------------------------------------------------------------------------------

    @property
    def places(self) -> list[Place]:
        return [place for item in self.items for place in item]

    @property
    def last(self) -> Place:
        return self.places[-1] if self.items else (0, 0)

    @property
    def held(self) -> list[list[Place]]:
        """The items that are not settled whole."""
        return [item for item in self.items if item[-1] > self.settled]

    @property
    def unsettled(self) -> int:
        return sum(place > self.settled for place in self.places)

    def place(self, point: float) -> Place:
        """A place somewhere among the records, or before them, or past what is said of an entry."""
        among = [(0, 0), *self.places]
        position, k = among[round(point * (len(among) - 1))]
        return (position, COUNTER_MAX) if k == 0 and point * 100 % 1 > 0.8 else (position, k)

    # steps --------------------------------------------------------------------------------------------------------

    def ask(self, call: Awaitable[T]) -> T:
        async def run() -> T:
            return await call

        return self.runner.run(run())

    def allocate(self, ids: list[str]) -> list[list[Any]]:
        groups = [group(self.series, ids)]
        call = scripts.allocate(self.client, STANDING, groups, backlog_max=BACKLOG_MAX, atomic=len(ids) % 2 == 0)
        return list(map(said, self.ask(call).told()))

    @rule(length=LENGTHS)
    def issue(self, length: int) -> None:
        fresh = [new_id() for _ in range(length)]
        position = self.last[0]
        replies = self.allocate(fresh)
        assert [reply[:2] for reply in replies] == [[b"issued", position + at] for at in range(1, length + 1)]
        for first in range(0, length, RUN_MAX):
            ends = min(first + RUN_MAX, length)
            self.items.append([(position + at, 0) for at in range(first + 1, ends + 1)])
        self.ids += fresh

    @rule()
    def skip(self) -> None:
        last = int(self.server.client.hget(keyspace.series_key(SHARD, self.series.id), "inc") or 0)
        skip(self.server, self.series, last + 3)
        self.items.append([(self.last[0], self.last[1] + 1)])

    @rule(point=POINTS)
    def void(self, point: float) -> None:
        left = [one for one in self.ids if one not in self.voided]
        if left:
            chosen = left[round(point * (len(left) - 1))]
            void(self.server, self.series, chosen)
            self.voided.add(chosen)
            self.items.append([(self.last[0], self.last[1] + 1)])

    @rule(point=POINTS)
    def settle(self, point: float) -> None:
        upto = ([(0, 0), *self.places])[round(point * len(self.places))]
        left = settle(self.server, self.series, upto)
        self.settled = max(self.settled, upto)
        assert left == self.unsettled

    @rule(points=st.lists(POINTS, min_size=1, max_size=40))
    def repeat(self, points: list[float]) -> None:
        if not self.ids:
            return
        positions = [round(point * (len(self.ids) - 1)) + 1 for point in points]
        replies = self.allocate([self.ids[position - 1] for position in positions])
        assert [reply[:2] for reply in replies] == [
            [b"settled" if (position, 0) <= self.settled else b"replayed", position] for position in positions
        ]
        found = self.ask(scripts.find(self.client, STANDING, self.series, self.ids[positions[0] - 1]))
        assert found is not None
        assert found.position == positions[0]
        assert (found.entry is None) == ((positions[0], 0) <= self.settled)
        assert found.entry is None or found.entry.id == self.ids[positions[0] - 1]

    @rule(point=POINTS, limit=LIMITS)
    def list_page(self, point: float, limit: int) -> None:
        place = self.place(point)
        outbox = self.ask(records_after(self.client, STANDING, self.series, place, limit))
        held = [one for item in self.held for one in item if one > place]
        self.check(outbox.records, held[:limit])
        assert outbox.voids == bool(self.voided)

    @rule(point=POINTS, limit=LIMITS)
    def read_ahead(self, point: float, limit: int) -> None:
        place = self.place(point)
        expected: list[Place] = []
        for item in self.held:
            if len(expected) < limit:
                expected += [one for one in item if one > place]
        self.check(waiting(self.server, self.series, place, limit), expected)

    def check(self, records: list[Record], places: list[Place]) -> None:
        assert [record.place for record in records] == places
        assert all(follows(*pair) for pair in pairwise(places))
        for record in records:
            if isinstance(record, Entry):
                previous = self.ids[record.position - 2] if record.position > 1 else None
                assert (record.id, record.previous_id) == (self.ids[record.position - 1], previous)
                assert record.meta == b'{"k":"v"}'
            else:
                assert isinstance(record, Skip | Void)
                assert (record.reason, record.actor) == ("because", "somebody")

    # what must hold at every moment -------------------------------------------------------------------------------

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "series"):
            return
        assert backlog(self.server) == self.others + self.unsettled
        at = stands(self.server.client, SHARD, self.series.id)
        assert (at.items, at.notes) == (len(self.held), sum(item[-1][1] > 0 for item in self.held))
        assert [name for name, _ in items(self.server, self.series)] == [b"%d-%d" % item[-1] for item in self.held]
        dirty = self.server.client.sismember(keyspace.dirty_key(SHARD), self.series.id)
        assert bool(dirty) == bool(self.held)


def test_an_outbox_is_what_a_plain_list_is(server: Valkey) -> None:
    # Given a model that knows lists of records only, then whatever is done, all readers and counts agree with it
    Machine.server = server
    with asyncio.Runner() as runner:
        Machine.runner, Machine.client = runner, redis.asyncio.Redis.from_url(server.url)
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
        runner.run(Machine.client.aclose())
