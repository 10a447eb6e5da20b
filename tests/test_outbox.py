"""The outbox of a shard on a real Valkey: items of runs, and what reads, repeats and settles them."""

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
    records_of,
    said,
    settle,
    stands,
)
from seriatim import keyspace, outbox, scripts
from seriatim.errors import Damaged
from seriatim.formats import Window
from seriatim.keyspace import RUN_MAX
from seriatim.model import COUNTER_MAX, Entry, Place, Record, Series, Skip, Void, Why, follows
from seriatim.outbox import entries_at, records_after
from stack import Valkey, new_id

T = TypeVar("T")
WHY = Why("because", "somebody")
BACKLOG_MAX = 10**6
OUTBOX = keyspace.outbox_key(SHARD)


@pytest.fixture
def server(valkey: Valkey) -> Valkey:
    return enrolled(valkey)


def items(server: Valkey) -> list[tuple[bytes, dict[bytes, bytes]]]:
    return cast("list[tuple[bytes, dict[bytes, bytes]]]", server.client.xrange(OUTBOX))


def places(server: Valkey) -> list[list[Place]]:
    """The places of what each item has."""
    parts = ([keyspace.part_records(part) for part in fields.items()] for _, fields in items(server))
    return [[record.place for part in item for record in part] for item in parts]


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

    # Then each run is one item, and so is each skip and void
    assert [(item[0], item[-1]) for item in places(server)] == [
        ((0, 1), (0, 1)),
        ((1, 0), (3, 0)),
        ((3, 1), (3, 1)),
        ((4, 0), (4, 0)),
        ((4, 1), (4, 1)),
        ((4, 2), (4, 2)),
        ((5, 0), (36, 0)),
        ((36, 1), (36, 1)),
        ((37, 0), (38, 0)),
        ((38, 1), (38, 1)),
    ]

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

    # And the last entry is there, behind the void of which there is only more to look for
    last = stands(server.client, SHARD, series.id)
    there = ask(server, lambda client: entries_at(client, [(series, last.position, last.item)]))
    assert there == ([], [(series, 38)])
    there = ask(server, lambda client: entries_at(client, [(series, last.position, last.item - 1)]))
    assert ([(one.position, one.id) for one in there[0]], there[1]) == ([(38, ids[-1])], [])
    there = ask(server, lambda client: entries_at(client, [(series, last.position, 0)]))
    assert there == ([], [])


def test_series_of_a_shard_share_items_and_keep_apart(server: Valkey) -> None:
    # Given calls that issue in several series, one of which has many entries
    all_series = [opened(server, make_series()) for _ in range(3)]
    ids = [[new_id() for _ in range(length)] for length in (2, RUN_MAX + 3, 1)]
    for _ in range(2):
        allocate(server, *(group(one, some) for one, some in zip(all_series, ids, strict=True)))
        ids = [[new_id() for _ in some] for some in ids]

    # Then an item has what fits, by the call's order
    assert [len(item) for item in places(server)] == [2, RUN_MAX, 3 + 1] * 2

    # And who looks for records of one sees no others, from wherever he looks
    for one, length in zip(all_series, (2, RUN_MAX + 3, 1), strict=True):
        whole = records_of(server, one)
        assert [record.place for record in whole] == [(at, 0) for at in range(1, 2 * length + 1)]
        for after in range(2 * length + 1):
            assert listed(server, one, (after, COUNTER_MAX), 10**5) == whole[after:]


def test_what_is_settled_is_the_stores_to_answer(server: Valkey) -> None:
    # Given two runs, of which the first is settled
    series = opened(server, make_series())
    ids = [new_id() for _ in range(8)]
    allocate(server, group(series, ids[:5]))
    allocate(server, group(series, ids[5:]))
    assert settle(server, 1) == 5

    # Then those who wait are answered with their entries, and the others as settled
    assert [reply[0] for reply in allocate(server, group(series, ids))] == [b"settled"] * 5 + [b"replayed"] * 3
    found = find_all(server, series, ids)
    assert [one is not None and one.entry is not None for one in found] == [False] * 5 + [True] * 3

    # And an entry that is looked for by its position is not taken for another
    wanted = [(series, position, item) for position in (5, 6) for item in (1, 2)]
    there, behind = ask(server, lambda client: entries_at(client, wanted))
    assert ([one.position for one in there], behind) == ([6], [(series, 5)])


def test_a_batch_of_a_thousand_waits_in_few_items(server: Valkey) -> None:
    # Given a batch of a thousand, behind a skip
    series = opened(server, make_series())
    skip(server, series, 10)
    ids = [new_id() for _ in range(1000)]
    first = allocate(server, group(series, ids), atomic=True)
    assert [reply[:2] for reply in first] == [[b"issued", at] for at in range(1, 1001)]

    # Then no item holds more than it may, and all are there once, linked to those before
    assert [len(item) for item in places(server)] == [1, *[RUN_MAX] * (1000 // RUN_MAX), 1000 % RUN_MAX]
    records = records_of(server, series)
    assert [(one.place, one.id) for one in records if isinstance(one, Entry)] == [
        ((at, 0), one) for at, one in enumerate(ids, 1)
    ]
    entries = [one for one in records if isinstance(one, Entry)]
    assert all(later.previous_id == earlier.id for earlier, later in pairwise(entries))
    parts = [keyspace.part_places(part) for part in outbox.parts(server.client, SHARD)]
    assert all(before == last for (_, last), (before, _) in pairwise(parts))
    assert backlog(server) == 1001

    # And the same batch is answered as before, and settled it leaves nothing
    again = allocate(server, group(series, ids), atomic=True)
    assert again == [[b"replayed", *reply[1:]] for reply in first]
    assert settle(server) == 1001
    assert (server.client.xlen(OUTBOX), backlog(server)) == (0, 0)


# damage -----------------------------------------------------------------------------------------------------------


def rewrite(server: Valkey, change: Callable[[bytes], bytes]) -> None:
    """Changes what the first run holds."""
    kept: Any = items(server)
    server.client.delete(OUTBOX)
    for number, (name, fields) in enumerate(kept):
        changed = {head: run if number else change(run) for head, run in fields.items()}
        server.client.xadd(OUTBOX, cast("Any", changed), id=name)


def found(one: scripts.Found | None) -> scripts.Found:
    assert one is not None
    return one


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
    rewrite(server, cut_off)
    before = server.dump()

    # When its entries are asked for again or looked for, then it is the store that has to have what is gone
    replies = allocate(server, group(series, ids[:4]))
    assert [at for at, reply in enumerate(replies, 1) if reply[0] == b"settled"] == lost
    assert {reply[0] for reply in replies} <= {b"settled", b"replayed"}
    assert [one.position for one in map(found, find_all(server, series, ids)) if one.entry is None] == lost

    # And whoever reads the outbox is told so
    with pytest.raises(Damaged, match=f"outbox of series {series.id} is cut short"):
        outbox.read(server.client, SHARD, 0, 100)
    with pytest.raises(Damaged, match=f"outbox of series {series.id} is cut short"):
        listed(server, series, (0, 0), 100)

    # And the other run is as it was
    assert [reply[0] for reply in allocate(server, group(series, ids[4:]))] == [b"replayed"] * 2
    assert server.dump() == before


FILL = """
for item = 2, 65536 do
  redis.call('XADD', KEYS[2], item .. '-0', 'note', '')
end
redis.call('HSET', KEYS[1], 'written', 65536, 'backlog', 65536)
"""


def test_an_entry_is_found_among_as_many_items_as_may_wait(server: Valkey) -> None:
    # Given an entry in the first item, and one in an item so far behind it that both leave the same in the index
    series = opened(server, make_series())
    ids = [new_id(), new_id()]
    allocate(server, group(series, ids[:1]))
    server.client.eval(FILL, 2, keyspace.shard_key(SHARD), OUTBOX)
    allocate(server, group(series, ids[1:]))

    # When they are asked for again or looked for, then each is found
    assert [reply[:2] for reply in allocate(server, group(series, ids))] == [[b"replayed", 1], [b"replayed", 2]]
    assert [one.entry.id if one.entry else "" for one in map(found, find_all(server, series, ids))] == ids

    # And once the first is settled, it is not looked for in the other's item
    server.client.xtrim(OUTBOX, minid="2", approximate=False)
    server.client.hset(keyspace.shard_key(SHARD), "settled", 1)
    assert [reply[:2] for reply in allocate(server, group(series, ids))] == [[b"settled", 1], [b"replayed", 2]]


def test_an_entry_is_not_answered_with_another_that_is_in_its_place(server: Valkey) -> None:
    # Given a run in which one record has been replaced by another entry's
    series = opened(server, make_series())
    ids = [new_id() for _ in range(2)]
    allocate(server, group(series, ids))
    rewrite(server, lambda run: without_first(run) * 2)

    # When the entry is asked for again or looked for, then it is the store that has to have it
    assert [reply[0] for reply in allocate(server, group(series, ids))] == [b"settled", b"replayed"]
    first, second = map(found, find_all(server, series, ids))
    assert (first.position, first.entry) == (1, None)
    assert second.entry is not None


def test_a_way_back_that_is_broken_is_damage(server: Valkey) -> None:
    # Given a series with entries in several items, one of which belongs to another series now
    series, other = (opened(server, make_series()) for _ in range(2))
    issue(server, series, [1, 1, 1])
    kept: Any = items(server)
    server.client.delete(OUTBOX)
    for number, (name, fields) in enumerate(kept):
        changed = {head.replace(series.id.encode(), other.id.encode()): run for head, run in fields.items()}
        server.client.xadd(OUTBOX, changed if number == 1 else fields, id=name)

    # When its records are read, then no page leaves out what is gone
    with pytest.raises(Damaged, match="item 2 of the outbox is missing, or is another"):
        listed(server, series, (0, 0), 100)
    assert [one.place for one in listed(server, series, (2, 0), 100)] == [(3, 0)]


# reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 5, RUN_MAX])
@pytest.mark.parametrize("limit", [1, 51, 500])
def test_little_more_is_fetched_than_is_wanted(
    server: Valkey, monkeypatch: pytest.MonkeyPatch, length: int, limit: int
) -> None:
    # Given more records than are wanted, in runs of one length, and somebody who counts what is fetched
    series = opened(server, make_series())
    issue(server, series, [length] * (800 // length))
    rounds: list[int] = []
    some, fetch = outbox._some, outbox._items

    def counted(*given: Any) -> list[Any]:
        found = some(*given)
        rounds.append(len(found) * length)
        return found

    async def counted_too(*given: Any) -> list[Any]:
        found = await fetch(*given)
        rounds.append(len(found) * length)
        return found

    monkeypatch.setattr(outbox, "_some", counted)
    monkeypatch.setattr(outbox, "_items", counted_too)

    # When a worker or a reader of pages wants some, then so many rounds are as if one had known how many items it
    # takes, or a few more
    reads: list[Callable[[], list[Record]]] = [
        lambda: outbox.read(server.client, SHARD, 0, limit).records[series.id],
        lambda: listed(server, series, (0, 0), limit),
    ]
    for read in reads:
        rounds.clear()
        assert limit <= len(read()) < limit + length
        assert sum(rounds) <= limit + 2 * length
        assert len(rounds) <= 7


@pytest.mark.parametrize("length", [1, 5, RUN_MAX])
@pytest.mark.parametrize("limit", [1, 51, 500])
def test_a_worker_reads_about_as_much_as_it_wants(server: Valkey, length: int, limit: int) -> None:
    # Given more records than are wanted, in runs of one length
    series = opened(server, make_series())
    issue(server, series, [length] * (800 // length))

    # When they are read, slice by slice
    slices = [outbox.read(server.client, SHARD, 0, limit)]
    while slices[-1].count:
        slices.append(outbox.read(server.client, SHARD, slices[-1].upto, limit))

    # Then each but the last is as long as it should be or a little longer, and all follow one another
    assert all(limit <= one.count < limit + length for one in slices[:-2])
    assert [(one.after, one.upto) for one in slices[1:]] == list(pairwise([one.upto for one in slices]))
    records = [record for one in slices for record in one.records.get(series.id, [])]
    assert records == records_of(server, series)
    assert sum(one.count for one in slices) == len(records) == 800 // length * length


def test_what_is_settled_while_it_is_read_leaves_no_gap(server: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a reader of many runs, who knows where they are
    series = opened(server, make_series())
    issue(server, series, [3] * 20)
    fetch, fetched = outbox._items, list[int]()

    async def settling(*given: Any) -> Any:
        found = await fetch(*given)
        fetched.append(len(found))
        if len(fetched) == 1:
            await asyncio.to_thread(settle, server, 10)
        return found

    monkeypatch.setattr(outbox, "_items", settling)

    # When what it has read, and more, is settled before it has read all
    found = listed(server, series, (2, 0), 50)

    # Then it goes on behind that, without what it had: the store has all of it
    assert len(fetched) > 1
    assert [one.place for one in found] == [(at, 0) for at in range(31, 61)]


# anything, against a plain model ----------------------------------------------------------------------------------

LENGTHS = st.integers(1, 5) | st.integers(1, 2 * RUN_MAX + 3)
LIMITS = st.integers(1, 12) | st.integers(1, 400)
POINTS = st.floats(0, 1)
WHICH = st.integers(0, 2)


class Machine(RuleBasedStateMachine):
    """The records of some series, as a list of what each item has of them, and as the scripts tell them."""

    server: ClassVar[Valkey]
    runner: ClassVar[asyncio.Runner]
    client: ClassVar[redis.asyncio.Redis]

    @initialize()
    def begin(self) -> None:
        settle(self.server)  # what an example before has left
        self.series = [opened(self.server, make_series()) for _ in range(3)]
        self.before = scripts.settled(self.server.client, SHARD)
        self.items: list[list[tuple[int, Place]]] = []
        self.settled = 0
        self.ids: list[list[str]] = [[] for _ in self.series]
        self.voided: set[str] = set()

    # what there must be -------------------------------------------------------------------------------------------

    def places(self, which: int, first: int = 0) -> list[Place]:
        """Those of the records of a series, from an item on."""
        return [place for item in self.items[first:] for series, place in item if series == which]

    def last(self, which: int) -> Place:
        return (self.places(which) or [(0, 0)])[-1]

    def place(self, which: int, point: float) -> Place:
        """A place somewhere among the records, or before them, or past what is said of an entry."""
        among = [(0, 0), *self.places(which)]
        position, k = among[round(point * (len(among) - 1))]
        return (position, COUNTER_MAX) if k == 0 and point * 100 % 1 > 0.8 else (position, k)

    # steps --------------------------------------------------------------------------------------------------------

    def ask(self, call: Awaitable[T]) -> T:
        async def run() -> T:
            return await call

        return self.runner.run(run())

    def allocate(self, asked: dict[int, list[str]]) -> list[list[Any]]:
        groups = [group(self.series[which], ids) for which, ids in asked.items()]
        call = scripts.allocate(self.client, STANDING, groups, backlog_max=BACKLOG_MAX, atomic=len(asked) == 1)
        return list(map(said, self.ask(call).told()))

    @rule(lengths=st.dictionaries(WHICH, LENGTHS, min_size=1, max_size=3))
    def issue(self, lengths: dict[int, int]) -> None:
        asked = {which: [new_id() for _ in range(length)] for which, length in lengths.items()}
        begins = {which: self.last(which)[0] for which in asked}
        replies = self.allocate(asked)
        places = [(which, (begins[which] + at, 0)) for which, ids in asked.items() for at in range(1, len(ids) + 1)]
        assert [reply[:2] for reply in replies] == [[b"issued", position] for _, (position, _) in places]
        item: list[tuple[int, Place]] = []
        for which, ids in asked.items():
            for first in range(0, len(ids), RUN_MAX):
                run, places = places[: len(ids[first : first + RUN_MAX])], places[len(ids[first : first + RUN_MAX]) :]
                if len(item) + len(run) > RUN_MAX:
                    self.items.append(item)
                    item = []
                item += run
            self.ids[which] += ids
        self.items.append(item)

    def note(self, which: int) -> None:
        position, k = self.last(which)
        self.items.append([(which, (position, k + 1))])

    @rule(which=WHICH)
    def skip(self, which: int) -> None:
        series = self.series[which]
        values, _ = self.ask(scripts.counters(self.client, series))
        skip(self.server, series, values.get("inc", 0) + 3)
        self.note(which)

    @rule(which=WHICH, point=POINTS)
    def void(self, which: int, point: float) -> None:
        left = [one for one in self.ids[which] if one not in self.voided]
        if left:
            chosen = left[round(point * (len(left) - 1))]
            void(self.server, self.series[which], chosen)
            self.voided.add(chosen)
            self.note(which)

    @rule(point=POINTS)
    def settle(self, point: float) -> None:
        some = round(point * (len(self.items) - self.settled))
        count = settle(self.server, some)
        assert count == sum(map(len, self.items[self.settled : self.settled + some]))
        self.settled += some

    @rule(which=WHICH, points=st.lists(POINTS, min_size=1, max_size=40))
    def repeat(self, which: int, points: list[float]) -> None:
        ids = self.ids[which]
        if not ids:
            return
        waiting = {position for position, k in self.places(which, self.settled) if not k}
        positions = [round(point * (len(ids) - 1)) + 1 for point in points]
        replies = self.allocate({which: [ids[position - 1] for position in positions]})
        assert [reply[:2] for reply in replies] == [
            [b"replayed" if position in waiting else b"settled", position] for position in positions
        ]
        found = self.ask(scripts.find(self.client, STANDING, self.series[which], ids[positions[0] - 1]))
        assert found is not None
        assert found.position == positions[0]
        assert (found.entry is not None) == (positions[0] in waiting)
        assert found.entry is None or found.entry.id == ids[positions[0] - 1]

    @rule(which=WHICH, point=POINTS, limit=LIMITS)
    def list_page(self, which: int, point: float, limit: int) -> None:
        place = self.place(which, point)
        outbox = self.ask(records_after(self.client, STANDING, self.series[which], place, limit))
        waiting = [one for one in self.places(which, self.settled) if one > place]
        self.check(which, outbox.records, waiting[:limit])
        assert outbox.voids == any(one in self.voided for one in self.ids[which])

    @rule(limit=LIMITS)
    def read_ahead(self, limit: int) -> None:
        read = outbox.read(self.server.client, SHARD, self.before + self.settled, limit)
        upto = self.settled
        while upto < len(self.items) and sum(map(len, self.items[self.settled : upto])) < limit:
            upto += 1
        assert (read.upto, read.count) == (self.before + upto, sum(map(len, self.items[self.settled : upto])))
        for which, series in enumerate(self.series):
            expected = [place for item in self.items[self.settled : upto] for one, place in item if one == which]
            self.check(which, read.records.get(series.id, []), expected)

    def check(self, which: int, records: list[Record], places: list[Place]) -> None:
        assert [record.place for record in records] == places
        assert all(follows(*pair) for pair in pairwise(places))
        for record in records:
            if isinstance(record, Entry):
                previous = self.ids[which][record.position - 2] if record.position > 1 else None
                assert (record.id, record.previous_id) == (self.ids[which][record.position - 1], previous)
                assert record.meta == b'{"k":"v"}'
            else:
                assert isinstance(record, Skip | Void)
                assert (record.reason, record.actor) == ("because", "somebody")

    # what must hold at every moment -------------------------------------------------------------------------------

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "series"):
            return
        assert backlog(self.server) == sum(map(len, self.items[self.settled :]))
        assert places(self.server) == [[place for _, place in item] for item in self.items[self.settled :]]
        assert [keyspace.item_number(one) for one in items(self.server)] == [
            self.before + number for number in range(self.settled + 1, len(self.items) + 1)
        ]
        named = [series.id for series in self.series]
        for part in outbox.parts(self.server.client, SHARD):
            before, last = keyspace.part_places(part)
            had = [(0, 0), *self.places(named.index(keyspace.part_series(part)))]
            assert had[had.index(last) - len(keyspace.part_records(part))] == before
        for which, series in enumerate(self.series):
            state = stands(self.server.client, SHARD, series.id)
            holding = [number for number, item in enumerate(self.items, 1) if any(one == which for one, _ in item)]
            assert (state.place, state.item) == (self.last(which), self.before + holding[-1] if holding else 0)


def test_an_outbox_is_what_a_plain_list_is(server: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts, "TRACED_AT_ONCE", 3)
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
