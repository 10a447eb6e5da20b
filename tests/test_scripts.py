"""The Lua scripts on a real Valkey: what they promise, and that they write nothing when they refuse."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from scripted import (
    LOAD,
    MARK,
    SHARD,
    STANDING,
    allocate,
    allocated,
    enrolled,
    find_all,
    group,
    make_series,
    opened,
    records_of,
    settle,
    stands,
    told,
)
from seriatim import keyspace, outbox, scripts
from seriatim.errors import Damaged, Halted, Stale, Unavailable
from seriatim.groups import Group, Order
from seriatim.model import COUNTER_MAX, Counted, Series, uuid_bytes
from stack import Valkey, new_id

ELSEWHERE = 9


@pytest.fixture
def server(valkey: Valkey) -> Valkey:
    return enrolled(valkey, ELSEWHERE)


def backlog(server: Valkey, shard: int) -> int:
    return int(server.client.hget(keyspace.shard_key(shard), "backlog") or -1)


def test_one_call_answers_each_request_for_itself(server: Valkey) -> None:
    # Given two series, and an id issued in the first
    one, other = opened(server, make_series()), opened(server, make_series(start=998))
    old, new, last = new_id(), new_id(), new_id()
    allocate(server, group(one, [old]))

    # When one call carries a conflict, a new id, the new id again, and requests for the other series, one with that id
    mixed = [
        Order(keyspace.pack_request(uuid_bytes(old) + b"another!")),
        Order(keyspace.pack_request(uuid_bytes(new) + MARK, sig=b"a.b.c")),
        Order(keyspace.pack_request(uuid_bytes(new) + MARK, sig=b"d.e.f")),
        Order(keyspace.pack_request(uuid_bytes(old) + MARK)),
    ]
    replies = allocate(server, replace(group(one, []), orders=mixed), group(other, [new, last]))

    # Then the conflict touches no neighbour, the repetition is a replay, and each series counts for itself, as later
    assert [reply[0] for reply in replies] == [b"conflict", b"issued", b"replayed", b"replayed", b"issued", b"issued"]
    assert [reply[1] for reply in replies[1:]] == [2, 2, 1, 1, 2]
    assert (told(replies[2]).sig, backlog(server, SHARD)) == ("a.b.c", 4)
    followed = [told(reply) for reply in (*replies[4:], *allocate(server, group(other, [new_id()])))]
    assert [(one.code, one.previous_id) for one in followed] == [("A-998", None), ("A-999", new), ("A-1000", last)]


def test_no_number_of_a_call_is_too_long(server: Valkey) -> None:
    # Given a series that begins just below the longest code that it may have
    series = opened(server, make_series(prefix="", padding=0, start=998, max_length=3))

    # When one call asks for more numbers than there are
    replies = allocate(server, group(series, [new_id() for _ in range(4)]))

    # Then those that fit are issued, in runs of their own, and the others refused
    assert replies[2:] == [[b"overflow", 4]] * 2
    assert [told(reply).code for reply in replies[:2]] == ["998", "999"]
    assert len(list(outbox.parts(server.client, SHARD))) == 2


def test_more_digits_than_the_padding_are_written_in_full(server: Valkey) -> None:
    # Given a series just below 1000 with padding 3
    series = opened(server, make_series(start=999))

    # When two numbers are issued
    codes = [told(reply).code for reply in allocate(server, group(series, [new_id(), new_id()]))]

    # Then the second has four digits
    assert codes == ["A-999", "A-1000"]


@pytest.mark.parametrize("padding", [0, 3])
def test_the_counter_stops_at_the_largest_exact_number(server: Valkey, padding: int) -> None:
    # Given a series with two numbers left, one of which is issued
    series = opened(server, make_series(start=COUNTER_MAX - 1, padding=padding))
    allocate(server, group(series, [new_id()]))

    # When two more are asked for
    replies = allocate(server, group(series, [new_id(), new_id()]))

    # Then the last is written digit by digit and the next is refused
    assert (told(replies[0]).number, told(replies[0]).code) == (COUNTER_MAX, "A-9007199254740991")
    assert replies[1] == [b"exhausted"]


def test_the_index_finds_every_id_while_it_grows(server: Valkey) -> None:
    # Given ids of all sorts: random, counting up, and differing only at the front
    series = opened(server, make_series())
    ids = [new_id() for _ in range(1500)]
    ids += [str(uuid.UUID(int=number)) for number in range(1000)]
    ids += [str(uuid.UUID(int=(number << 100) | 5)) for number in range(1000, 1500)]

    # When they are issued in calls of uneven size
    at = 0
    while at < len(ids):
        size = 1 + at * 7 % 256
        allocate(server, group(series, ids[at : at + size]))
        at += size

    # Then each is found where it was issued, replays say so, and an unknown id is unknown
    assert [one.position if one else None for one in find_all(server, series, ids)] == list(range(1, len(ids) + 1))
    replies = allocate(server, group(series, ids[:256]))
    assert [reply[:2] for reply in replies] == [[b"replayed", position] for position in range(1, 257)]
    assert find_all(server, series, [new_id()]) == [None]
    buckets = list(server.client.scan_iter(keyspace.index_prefix(SHARD, series.id) + ":*"))
    assert len(buckets) == -(-len(ids) // LOAD)
    assert {server.client.object("encoding", bucket) for bucket in buckets} == {b"listpack"}


def refused_series(server: Valkey) -> dict[str, tuple[Group, bytes]]:
    """Groups that are refused as a whole, and the word for it."""
    inactive = opened(server, make_series(active=False))
    changing = opened(server, make_series())
    scripts.change(server.client, STANDING, changing, unused=False)
    closed = make_series()
    scripts.install(server.client, STANDING, closed, opened=False)
    good = opened(server, make_series())
    newer = opened(server, make_series(version=2))
    used = opened(server, make_series())
    allocate(server, group(used, [new_id()]))
    long = opened(server, make_series(start=1000, max_length=5))
    return {
        "inactive": (group(inactive, [new_id()]), b"inactive"),
        "changing": (group(changing, [new_id()]), b"changing"),
        "closed": (group(closed, [new_id()]), b"unloaded"),
        "unknown": (group(make_series(), [new_id()]), b"unloaded"),
        "past window": (group(good, [new_id()], window=(0, 1)), b"window"),
        "future window": (group(good, [new_id()], window=(2**51, 2**52)), b"window"),
        "old definition": (group(replace(newer, version=1), [new_id()]), b"version"),
        "tomorrow": (group(good, [new_id()], "2026-11-22"), b"future"),
        "yesterday": (group(used, [new_id()], "2026-11-20"), b"past"),
        "long": (group(long, [new_id()]), b"overflow"),
    }


def test_refusals_leave_every_key_as_it_was(server: Valkey) -> None:
    # Given series that cannot issue, for every reason there is
    cases = refused_series(server)
    before = server.dump()

    for name, (refused, word) in cases.items():
        # When they are asked for a number
        replies = allocate(server, refused)

        # Then the answer says why, and nothing has changed
        assert replies[0][0] == word, name
        assert server.dump() == before, name


FORMAT = "%incYearly%/%yearLong%-%incMonthly%/%month%-%incDaily%"


def test_each_counter_begins_anew_with_its_period_and_a_free_series_goes_back_to_any(server: Valkey) -> None:
    # Given a free series that counts by year, month and day, and begins with 7
    series = opened(server, make_series(start=7, prefix="", padding=2, format=FORMAT, chronology="free"))

    # When numbers are asked for in one call: over a new day, month and year, and back
    days = ["2026-12-30", "2026-12-30", "2026-12-31", "2027-01-01", "2026-12-30", "2026-11-30", "2027-01-01"]
    replies = allocate(server, group(series, [new_id() for _ in days], *days))

    # Then every counter continues where it stood in that period; `start` holds for the first periods alone
    assert [told(reply).code for reply in replies] == [
        "07/2026-07/12-07",
        "08/2026-08/12-08",
        "09/2026-09/12-01",
        "01/2027-01/01-01",
        "10/2026-10/12-09",
        "11/2026-01/11-01",
        "02/2027-02/01-02",
    ]
    assert [told(reply).date for reply in replies] == days
    assert told(replies[0]).numbers == (
        Counted("incYearly", "2026", 7),
        Counted("incMonthly", "2026-12", 7),
        Counted("incDaily", "2026-12-30", 7),
    )

    # And so does the next call
    (reply,) = allocate(server, group(series, [new_id()], "2026-12-30"))
    assert told(reply).code == "12/2026-11/12-10"


def test_a_strict_series_goes_neither_back_nor_ahead_and_forgets_what_is_over(server: Valkey) -> None:
    # Given a strict series with an entry of today's
    series = opened(server, make_series(prefix="", format=FORMAT))
    known = new_id()
    allocate(server, group(series, [known], "2026-11-20"))

    # When one call asks for the day before, the day after, and today
    days = ["2026-11-19", "2026-11-22", "2026-11-21", "2026-11-20"]
    replies = allocate(server, group(series, [new_id() for _ in days], *days))

    # Then today's is issued, and the others are refused with what they would have to follow
    assert replies[0] == [b"past", b"2026-11-20"]
    assert replies[1] == [b"future", b"2026-11-21"]
    assert told(replies[2]).code == "002/2026-002/11-001"
    assert replies[3] == [b"past", b"2026-11-21"]

    # And the counter of a day that is over takes no more room, while its entry is still found
    kept = {"incDaily:2026-11-21": 1, "incMonthly:2026-11": 2, "incYearly:2026": 2}
    assert stands(server.client, SHARD, series.id).counters == kept
    assert not server.client.exists(keyspace.counters_key(SHARD, series.id))
    assert allocate(server, group(series, [known], "2026-11-20"))[0][:2] == [b"replayed", 1]


def test_the_digits_of_all_counters_count_towards_the_longest_code(server: Valkey) -> None:
    # Given a series whose code has room for three digits, of two counters
    series = opened(server, make_series(padding=0, format="%inc%-%incDaily%", max_length=4, start=9, prefix=""))

    # When it counts from 9 to 10
    replies = allocate(server, group(series, [new_id(), new_id()]))

    # Then the first code fits, and the second with its four digits is refused
    assert told(replies[0]).code == "9-9"
    assert replies[1] == [b"overflow", 4]
    assert stands(server.client, SHARD, series.id).position == 1


def test_a_batch_is_one_run_or_nothing(server: Valkey) -> None:
    # Given a series with an entry
    series = opened(server, make_series(chronology="free"))
    known = new_id()
    allocate(server, group(series, [known]))

    # When a batch carries new ids, the known one in the middle, and a new one twice
    one, two = new_id(), new_id()
    replies = allocate(server, group(series, [one, known, two, one]), atomic=True)

    # Then the new ones follow one another, and repetitions are answered in their places
    assert [reply[:2] for reply in replies] == [[b"issued", 2], [b"replayed", 1], [b"issued", 3], [b"replayed", 2]]

    # And with one element that is refused, nothing changes at all
    before = server.dump()
    sound = group(series, [new_id(), new_id()])
    refused = replace(sound, orders=[*sound.orders, Order(keyspace.pack_request(uuid_bytes(known) + b"another!"))])
    assert [reply[0] for reply in allocate(server, refused, atomic=True)] == [b"issued", b"issued", b"conflict"]
    assert server.dump() == before
    assert allocate(server, group(series, [new_id() for _ in range(3)]), backlog_max=5, atomic=True)[2] == [b"backlog"]
    assert server.dump() == before


def test_a_full_backlog_refuses_only_what_does_not_fit(server: Valkey) -> None:
    # Given room for two records
    series = opened(server, make_series())
    first = new_id()

    # When three are asked for, and then the first again
    replies = allocate(server, group(series, [first, new_id(), new_id()]), backlog_max=2)
    again = allocate(server, group(series, [first]), backlog_max=2)

    # Then the third is refused, and a replay never is
    assert [reply[0] for reply in replies] == [b"issued", b"issued", b"backlog"]
    assert again[0][0] == b"replayed"


# shards -----------------------------------------------------------------------------------------------------------


def test_a_call_carries_series_of_several_shards(server: Valkey) -> None:
    # Given series of two shards
    here, also_here, there = (opened(server, make_series(shard=shard)) for shard in (SHARD, SHARD, ELSEWHERE))
    known = new_id()
    assert allocated(server, group(there, [known])).turned_dirty == [ELSEWHERE]

    # When one call asks for numbers in all of them
    groups = group(here, [new_id(), new_id()]), group(also_here, [new_id()]), group(there, [new_id(), known])
    answered = allocated(server, *groups)

    # Then the replies are in the order of the groups
    assert [reply[:2] for reply in answered.replies] == [
        [b"issued", 1],
        [b"issued", 2],
        [b"issued", 1],
        [b"issued", 2],
        [b"replayed", 1],
    ]

    # And each shard has its own series and records, and only what was clean has turned dirty
    assert answered.turned_dirty == [SHARD]
    assert (backlog(server, SHARD), backlog(server, ELSEWHERE)) == (3, 2)
    assert [len(records_of(server, one)) for one in (here, also_here, there)] == [2, 1, 2]

    # And each is settled by itself
    assert settle(server) == 3
    assert (backlog(server, SHARD), backlog(server, ELSEWHERE)) == (0, 2)


def test_a_call_that_only_repeats_turns_no_shard_dirty(server: Valkey) -> None:
    # Given settled entries in two shards
    both = [opened(server, make_series(shard=shard)) for shard in (SHARD, ELSEWHERE)]
    ids = [new_id(), new_id()]
    groups = [group(series, [one]) for series, one in zip(both, ids, strict=True)]
    assert allocated(server, *groups).turned_dirty == [SHARD, ELSEWHERE]
    for series in both:
        settle(server, shard=series.shard)
    before = server.dump()

    # When they are asked for again, then they are answered, and nothing has changed
    answered = allocated(server, *groups)
    assert [reply[0] for reply in answered.replies] == [b"settled", b"settled"]
    assert answered.turned_dirty == []
    assert server.dump() == before


def test_each_shard_has_room_for_itself(server: Valkey) -> None:
    # Given a shard with room for one record, and another that is empty
    here, also_here, there = (opened(server, make_series(shard=shard)) for shard in (SHARD, SHARD, ELSEWHERE))
    allocate(server, group(here, [new_id()]))

    # When one call asks for two numbers in each series
    before = server.dump()
    groups = [group(series, [new_id(), new_id()]) for series in (here, also_here, there)]
    words = [b"issued", b"backlog", b"backlog", b"backlog", b"issued", b"issued"]

    # Then as a batch it writes nothing, and otherwise what has room
    refused = allocated(server, *groups, backlog_max=2, atomic=True)
    assert ([reply[0] for reply in refused.replies], refused.turned_dirty) == (words, [])
    assert server.dump() == before
    assert [reply[0] for reply in allocate(server, *groups, backlog_max=2)] == words
    assert (backlog(server, SHARD), backlog(server, ELSEWHERE)) == (2, 2)


SPOILT: dict[str, tuple[Callable[[Valkey, str], object], type[Exception]]] = {
    "lost": (lambda server, key: server.client.delete(key), Stale),
    "without a backlog": (lambda server, key: server.client.hdel(key, "backlog"), Stale),
    "without the last item's number": (lambda server, key: server.client.hdel(key, "written"), Stale),
    "of another epoch": (lambda server, key: server.client.hset(key, "epoch", "another"), Stale),
    "of another generation": (lambda server, key: server.client.hset(key, "generation", "2"), Stale),
    "halted": (lambda server, key: server.client.hset(key, "halted", "the reason"), Halted),
}


@pytest.mark.parametrize("spoilt", SPOILT)
@pytest.mark.parametrize("shard", [SHARD, ELSEWHERE])
def test_one_shard_that_cannot_go_on_refuses_the_whole_call(server: Valkey, shard: int, spoilt: str) -> None:
    # Given series of two shards, one of which is lost, foreign or halted
    groups = [group(opened(server, make_series(shard=of)), [new_id()]) for of in (SHARD, ELSEWHERE)]
    spoil, error = SPOILT[spoilt]
    spoil(server, keyspace.shard_key(shard))
    before = server.dump()

    # When one call asks for numbers in both, then it is refused, and every key is as it was
    with pytest.raises(error):
        allocate(server, *groups)
    assert server.dump() == before


# faults -----------------------------------------------------------------------------------------------------------

KEYS: dict[str, Callable[[Series], str]] = {
    "shard": lambda _: keyspace.shard_key(SHARD),
    "series": lambda _: keyspace.series_key(SHARD),
    "outbox": lambda _: keyspace.outbox_key(SHARD),
    "counters": lambda series: keyspace.counters_key(SHARD, series.id),
    "bucket": lambda series: keyspace.index_prefix(SHARD, series.id) + ":0",
    "next bucket": lambda series: keyspace.index_prefix(SHARD, series.id) + ":1",
}


@pytest.mark.parametrize(("planted", "used"), [(key, used) for key in KEYS for used in {False, key != "counters"}])
def test_a_wrong_type_at_any_key_leaves_every_key_as_it_was(server: Valkey, planted: str, *, used: bool) -> None:
    # Given a series about to split its index, with a value of a wrong type at one of its keys
    series, near, far = (opened(server, make_series(shard=shard)) for shard in (SHARD, SHARD, ELSEWHERE))
    if used:
        allocate(server, group(series, [new_id() for _ in range(LOAD - 1)]))
    key = KEYS[planted](series)
    server.client.delete(key)
    server.client.set(key, "planted")
    before = server.dump()

    # When numbers are asked for, beside those of sound series, enough for the index to split
    neighbours = [group(one, [new_id()]) for one in (near, far)]
    try:
        replies = allocate(server, group(series, [new_id() for _ in range(2 * LOAD)]), *neighbours)
    except Unavailable:
        # Then the call is refused and nothing has changed
        assert server.dump() == before
    else:
        # Or only the neighbours' numbers were issued, and the damage is named
        assert {reply[0] for reply in replies[:-2]} == {b"damaged"}
        assert [reply[0] for reply in replies[-2:]] == [b"issued", b"issued"]
        untouched = {name: value for name, value in before.items() if series.id.encode() in name}
        after = server.dump()
        assert {name: after.get(name) for name in untouched} == untouched


@pytest.mark.parametrize("lost", ["shard", "series", "outbox", "bucket"])
def test_a_deleted_key_is_loss_and_never_zero(server: Valkey, lost: str) -> None:
    # Given a series with a few entries
    series = opened(server, make_series())
    ids = [new_id() for _ in range(5)]
    allocate(server, group(series, ids))

    # When one of its keys is deleted
    server.client.delete(KEYS[lost](series))
    before = server.dump()

    # Then nothing is issued
    try:
        replies = allocate(server, group(series, [new_id()]))
    except Stale:
        assert lost == "shard"
    else:
        assert replies[0][0] == (b"unloaded" if lost == "series" else b"damaged")
    assert server.dump() == before


@pytest.mark.parametrize("nth", [0, 1])
def test_a_series_that_lost_ids_keeps_no_other_of_the_call_from_its_numbers(server: Valkey, nth: int) -> None:
    # Given two series, one of which has lost the bucket of its ids
    both = [opened(server, make_series()) for _ in range(2)]
    allocate(server, *(group(one, [new_id()]) for one in both))
    server.client.delete(KEYS["bucket"](both[nth]))

    # When one call asks for two numbers in each
    replies = allocate(server, *(group(one, [new_id(), new_id()]) for one in both))

    # Then only the one that is whole issues, and the other issues nothing
    assert [reply[0] for reply in replies] == [b"damaged", b"damaged", b"issued", b"issued"][:: 1 - 2 * nth]
    assert [stands(server.client, SHARD, one.id).position for one in both] == ([1, 3] if nth == 0 else [3, 1])


def test_a_record_deleted_from_the_outbox_is_noticed(server: Valkey) -> None:
    # Given three entries that wait, each issued by itself
    series = opened(server, make_series())
    for _ in range(3):
        allocate(server, group(series, [new_id()]))

    # When the one in the middle disappears
    server.client.xdel(keyspace.outbox_key(SHARD), "2-0")

    # Then the shard issues nothing, and settling it is refused
    for one in (series, opened(server, make_series())):
        assert allocate(server, group(one, [new_id()])) == [[b"damaged", b"the outbox holds 2 items instead of 3"]]
    with pytest.raises(Damaged, match="2 items instead of 3"):
        settle(server)


@pytest.mark.parametrize("spoilt", [SHARD, ELSEWHERE])
def test_an_outbox_that_goes_on_takes_no_more(server: Valkey, spoilt: int) -> None:
    # Given shards with an entry each, in one of which the outbox has gone on to an item that nobody wrote
    here, there = (opened(server, make_series(shard=shard)) for shard in (SHARD, ELSEWHERE))
    allocate(server, group(here, [new_id()]), group(there, [new_id()]))
    outbox_key = keyspace.outbox_key(spoilt)
    tag = outbox_key.removesuffix("outbox").encode()
    server.client.xadd(outbox_key, {"a": "b"}, "7-0")
    server.client.xdel(outbox_key, "7-0")

    # When one call asks for numbers in both, then only the other shard issues
    before = {name: value for name, value in server.dump().items() if name.startswith(tag)}
    replies = allocate(server, *(group(one, [new_id(), new_id()]) for one in (here, there)))
    words = [b"damaged" if one.shard == spoilt else b"issued" for one in (here, there) for _ in range(2)]
    assert [reply[0] for reply in replies] == words
    assert {name: value for name, value in server.dump().items() if name.startswith(tag)} == before


@pytest.mark.parametrize("at_once", [5, 1])
def test_settling_drops_exactly_what_is_committed_and_may_be_repeated(server: Valkey, at_once: int) -> None:
    # Given entries that wait in two series of a shard, in two items of the outbox or in ten
    both = [opened(server, make_series()) for _ in range(2)]
    ids = [new_id() for _ in range(10)]
    for start in range(0, 10, at_once):
        allocate(server, group(both[start // 5], ids[start : start + at_once]))

    # When those of the first are settled, twice
    items = 5 // at_once
    for _ in range(2):
        scripts.settle(server.client, STANDING, SHARD, after=0, upto=items, count=5)

    # Then what is left is what was not committed, whatever somebody says who has not heard of it
    with pytest.raises(Stale):
        scripts.settle(server.client, STANDING, SHARD, after=0, upto=items + 1, count=10)
    assert [len(records_of(server, one)) for one in both] == [0, 5]
    assert backlog(server, SHARD) == 5

    # And when all are, then nothing is left, and the store answers for them
    assert settle(server) == 5
    assert (server.client.xlen(keyspace.outbox_key(SHARD)), backlog(server, SHARD)) == (0, 0)
    replies = [allocate(server, group(one, ids[nth : nth + 5]))[4] for one, nth in zip(both, (0, 5), strict=True)]
    assert replies == [[b"settled", 5, b""]] * 2


@pytest.mark.parametrize(
    ("after", "upto", "what"), [(0, 3, "at item 3, beyond 2"), (1, 2, "behind item 1 instead of 0")]
)
def test_what_the_store_cannot_have_settled_is_damage(server: Valkey, after: int, upto: int, what: str) -> None:
    # Given two items that wait
    series = opened(server, make_series())
    for _ in range(2):
        allocate(server, group(series, [new_id()]))

    # When the store claims more, or not what comes first, then settling is refused and drops nothing
    before = server.dump()
    with pytest.raises(Damaged, match=what):
        scripts.settle(server.client, STANDING, SHARD, after=after, upto=upto, count=1)
    assert server.dump() == before


def test_another_epoch_or_generation_is_stale_everywhere(server: Valkey) -> None:
    # Given a series, and a server that has moved on to generation 2
    series = opened(server, make_series())
    assert scripts.enroll(server.client, STANDING.epoch, SHARD, 1, 2) == "ok"
    before = server.dump()

    # When a process of generation 1 calls any script, then it is told so and nothing changes
    with pytest.raises(Stale):
        allocate(server, group(series, [new_id()]))
    with pytest.raises(Stale):
        find_all(server, series, [new_id()])
    with pytest.raises(Stale):
        scripts.settle(server.client, STANDING, SHARD, after=0, upto=0, count=0)
    with pytest.raises(Stale):
        scripts.install(server.client, STANDING, series, opened=True)
    with pytest.raises(Stale):
        scripts.change(server.client, STANDING, series, unused=False)
    assert server.dump() == before


def test_enrolling_ties_a_shard_to_one_epoch(server: Valkey) -> None:
    # Given a shard at generation 1
    enroll = scripts.enroll

    # Then the first start may be repeated, a raise may be repeated, and everything else is refused
    assert enroll(server.client, "epoch", SHARD, 0, 1) == "ok"
    assert enroll(server.client, "epoch", SHARD, 1, 2) == "ok"
    assert enroll(server.client, "epoch", SHARD, 1, 2) == "ok"
    assert enroll(server.client, "epoch", SHARD, 4, 5) == "generation"
    assert enroll(server.client, "other", SHARD, 2, 3) == "foreign"
    assert enroll(server.client, "epoch", SHARD + 1, 2, 3) == "missing"


def test_a_halted_shard_says_why(server: Valkey) -> None:
    # Given a shard that somebody halted
    series = opened(server, make_series())
    server.client.hset(keyspace.shard_key(SHARD), "halted", "the reason")

    # When a number is asked for, then that is the answer
    with pytest.raises(Halted, match="the reason"):
        allocate(server, group(series, [new_id()]))


def test_a_flushed_script_cache_means_that_the_server_must_be_met(server: Valkey) -> None:
    # Given a server that has forgotten its scripts
    series = opened(server, make_series())
    server.client.script_flush()

    # When a number is asked for, then the process is stale
    with pytest.raises(Stale):
        allocate(server, group(series, [new_id()]))


def test_a_definition_change_blocks_new_ids_until_the_new_version_is_there(server: Valkey) -> None:
    # Given an unused series whose numbering is being changed
    series = opened(server, make_series())
    assert scripts.change(server.client, STANDING, series, unused=True)[0] == "ok"
    assert scripts.change(server.client, STANDING, series, unused=True)[0] == "changing"

    # When the new version is installed
    changed = replace(series, version=2)
    assert scripts.install(server.client, STANDING, changed, opened=True)

    # Then it issues, an older version does not come back, and a used series' numbering is fixed
    assert allocate(server, group(changed, [new_id()]))[0][0] == b"issued"
    assert scripts.install(server.client, STANDING, series, opened=True)
    assert allocate(server, group(changed, [new_id()]))[0][0] == b"issued"
    assert scripts.change(server.client, STANDING, changed, unused=True)[0] == "used"
    assert scripts.change(server.client, STANDING, series, unused=False)[0] == "version"


def test_memory_that_is_full_refuses_before_the_first_write(server: Valkey) -> None:
    # Given a server that has no memory left
    series = opened(server, make_series())
    server.client.config_set("maxmemory", "1mb")
    before = server.dump()

    # When a number is asked for, then it is refused and nothing has changed
    with pytest.raises(Unavailable, match="refuses"):
        allocate(server, group(series, [new_id()]))
    assert server.dump() == before
