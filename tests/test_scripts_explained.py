"""The scripts beside allocation: skips, voids, claims of default series, removal; each checks first and writes last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from scripted import (
    ALWAYS,
    SHARD,
    STANDING,
    TODAY,
    allocate,
    ask,
    enrolled,
    group,
    make_series,
    opened,
    records_of,
    settle,
    told,
)
from seriatim import keyspace, scripts
from seriatim.errors import Damaged, Halted, Stale
from seriatim.formats import Window
from seriatim.model import Defaults, Entry, Series, Skip, Standing, Void, Why
from stack import Valkey, new_id

WHY = Why("because", "somebody")
COMPANY = "c0c0c0c0-0000-4000-8000-000000000000"
FOREIGN = Standing("another", 1)
Reply = list[Any]


@pytest.fixture
def server(valkey: Valkey) -> Valkey:
    return enrolled(valkey)


def skip(  # noqa: PLR0913 -- all but the first three have a default
    server: Valkey,
    series: Series,
    to: int,
    *,
    counter: int = 1,
    standing: Standing = STANDING,
    backlog_max: int = 10**6,
    window: tuple[int, int] = ALWAYS,
) -> Reply:
    answered = ask(
        server,
        lambda client: scripts.skip(
            client,
            standing,
            series,
            window=Window(*window, TODAY),
            counter=counter,
            to=to,
            why=WHY,
            backlog_max=backlog_max,
        ),
    )
    reply: Reply
    (reply,) = answered.replies
    return reply


def void(
    server: Valkey, series: Series, entry: str, *, standing: Standing = STANDING, backlog_max: int = 10**6
) -> Reply:
    answered = ask(
        server, lambda client: scripts.void(client, standing, series, entry, why=WHY, backlog_max=backlog_max)
    )
    reply: Reply
    (reply,) = answered.replies
    return reply


def claim(server: Valkey, entry: str, kind: str = "invoice", *, standing: Standing = STANDING) -> tuple[str, Any]:
    return ask(
        server,
        lambda client: scripts.claim(client, standing, SHARD, company=COMPANY, kind=kind, entry_id=entry),
    )


def defaults(version: int = 1, **series: str) -> Defaults:
    return Defaults(COMPANY, SHARD, version, None, series)


def install(server: Valkey, given: Defaults) -> None:
    assert scripts.install_defaults(server.client, STANDING, given, opened=False)
    assert scripts.install_defaults(server.client, STANDING, given, opened=True)


def test_records_follow_the_last_entry_in_order(server: Valkey) -> None:
    # Given a skip before the first entry, and then entries, skips and voids in turn
    series = opened(server, make_series())
    ids = [new_id() for _ in range(3)]
    assert skip(server, series, 5)[0] == b"skipped"
    allocate(server, group(series, ids[:2]))
    void(server, series, ids[0])
    skip(server, series, 10)
    allocate(server, group(series, ids[2:]))
    void(server, series, ids[1])

    # Then each stands where it was recorded, with what it says
    kept = records_of(server, series)
    assert [(type(one), one.place) for one in kept] == [
        (Skip, (0, 1)),
        (Entry, (1, 0)),
        (Entry, (2, 0)),
        (Void, (2, 1)),
        (Skip, (2, 2)),
        (Entry, (3, 0)),
        (Void, (3, 1)),
    ]
    assert [(one.first, one.last, one.reason, one.actor) for one in kept if isinstance(one, Skip)] == [
        (1, 4, "because", "somebody"),
        (7, 9, "because", "somebody"),
    ]
    assert [one.voids for one in kept if isinstance(one, Void)] == [1, 2]
    assert [one.number for one in kept if isinstance(one, Entry)] == [5, 6, 10]

    # And times never go back, and each is settled with those before it
    times = [one.created_at for one in kept]
    assert times == sorted(times)
    assert [settle(server, 1) for _ in range(6)] == [1, 2, 1, 1, 1, 1]
    assert server.client.hget(keyspace.shard_key(SHARD), "backlog") == b"0"
    assert not server.client.xlen(keyspace.outbox_key(SHARD))


def test_a_void_is_known_for_ever(server: Valkey) -> None:
    # Given a void that has been settled
    series, entry = opened(server, make_series()), new_id()
    allocate(server, group(series, [entry]))
    first = void(server, series, entry)
    settle(server)

    # When the entry is made void again, then it is the same void, and nothing is recorded
    before = server.dump()
    assert void(server, series, entry) == first
    assert server.dump() == before

    # And the entry's replay carries it
    (reply,) = allocate(server, group(series, [entry]))
    assert reply[:2] == [b"settled", 1]
    known = keyspace.unpack_void(series.id, 1, reply[2])
    assert known is not None
    assert (known.voids, known.reason, known.actor, known.place) == (1, "because", "somebody", (1, 1))


REFUSALS: dict[str, Callable[[Valkey, Series, str], tuple[Reply, bytes]]] = {
    "a skip that lowers": lambda server, series, _: (skip(server, series, 2), b"lowers"),
    "a skip to what is next": lambda server, series, _: (skip(server, series, 4), b"next"),
    "a skip beyond max_length": lambda server, series, _: (skip(server, series, 10**6), b"overflow"),
    "a skip when the backlog is full": lambda server, series, _: (skip(server, series, 9, backlog_max=3), b"backlog"),
    "a skip outside of the day": lambda server, series, _: (skip(server, series, 9, window=(0, 1)), b"window"),
    "a skip by an old definition": lambda server, series, _: (
        skip(server, msgspec.structs.replace(series, version=0), 9),
        b"version",
    ),
    "a skip in a series that is not loaded": lambda server, _, __: (skip(server, make_series(), 9), b"unloaded"),
    "a void when the backlog is full": lambda server, series, entry: (
        void(server, series, entry, backlog_max=3),
        b"backlog",
    ),
    "a void of nothing": lambda server, series, _: (void(server, series, new_id()), b"unknown"),
    "a void in a series that is not loaded": lambda server, _, entry: (void(server, make_series(), entry), b"unloaded"),
}


@pytest.mark.parametrize("refused", REFUSALS)
def test_a_refusal_writes_nothing(server: Valkey, refused: str) -> None:
    # Given a series with three entries
    series = opened(server, make_series(max_length=8))
    ids = [new_id() for _ in range(3)]
    allocate(server, group(series, ids))
    before = server.dump()

    # When something is asked for that cannot be, then it is refused and every key is as it was
    reply, word = REFUSALS[refused](server, series, ids[0])
    assert reply[0] == word
    assert server.dump() == before


OUTBOX = keyspace.outbox_key(SHARD)


def go_on(server: Valkey) -> None:
    server.client.xdel(OUTBOX, "1-0")
    server.client.xadd(OUTBOX, {"note": "record"}, id="4-0")


DAMAGE: dict[str, Callable[[Valkey], Any]] = {
    "a record behind the last, for the first": go_on,
    "a record lost": lambda server: server.client.xdel(OUTBOX, "2-0"),
    "the last record lost": lambda server: server.client.xdel(OUTBOX, "3-0"),
    "a record added": lambda server: server.client.xadd(OUTBOX, {"note": "record"}, id="3-1"),
    "all lost": lambda server: server.client.delete(OUTBOX),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_outbox_takes_no_more_records(server: Valkey, damage: str) -> None:
    # Given a series of a shard whose outbox is not what its hash says
    series = opened(server, make_series())
    ids = [new_id() for _ in range(3)]
    for one in ids:
        allocate(server, group(series, [one]))
    DAMAGE[damage](server)
    before = server.dump()

    # When something is to be recorded, then that is damage, and nothing is written
    assert skip(server, series, 9)[0] == b"damaged"
    assert void(server, series, ids[0])[0] == b"damaged"
    assert allocate(server, group(series, [new_id()]))[0][0] == b"damaged"
    assert server.dump() == before


def test_a_lost_bucket_is_damage_for_a_void(server: Valkey) -> None:
    series, entry = opened(server, make_series()), new_id()
    allocate(server, group(series, [entry]))
    server.client.delete(f"{keyspace.index_prefix(SHARD, series.id)}:0")
    assert void(server, series, entry)[0] == b"damaged"


def test_large_counters_are_kept_aside_digit_by_digit(server: Valkey) -> None:
    # Given a free series that counts by day, and has come far in one
    first = 10**14 + 1
    daily: dict[str, Any] = {
        "format": "%incDaily%/%yearLong%%month%%day%",
        "prefix": "",
        "chronology": "free",
        "start": first,
    }
    series = opened(server, make_series(**daily))

    # When it goes to another day and back, and back again by a skip, then it goes on behind its last number there
    days = ["2026-11-20", "2026-11-21", "2026-11-20"]
    numbers = [told(reply).number for reply in allocate(server, group(series, [new_id() for _ in days], *days))]
    assert numbers == [first, 1, first + 1]
    assert skip(server, series, first + 8)[3:6] == [b"incDaily:2026-11-21", b"2", b"%d" % (first + 7)]
    numbers = [told(reply).number for reply in allocate(server, group(series, [new_id() for _ in days], *days))]
    assert numbers == [first + 2, first + 8, first + 3]


# claims -----------------------------------------------------------------------------------------------------------


def test_a_claim_is_for_good(server: Valkey) -> None:
    # Given a company with a default series, and more ids than a bucket holds
    first, second = new_id(), new_id()
    install(server, defaults(invoice=first, receipt=second))
    early = [new_id() for _ in range(150)]
    assert {claim(server, entry) for entry in early} == {("claimed", first)}

    # When the default changes
    install(server, defaults(2, invoice=second))

    # Then ids that came before stay with the first, new ones go to the second, and each type has its own
    late = [new_id() for _ in range(50)]
    assert {claim(server, entry) for entry in late} == {("claimed", second)}
    assert {claim(server, entry) for entry in early} == {("claimed", first)}
    assert claim(server, early[0], "receipt") == ("none", None)
    assert server.client.hget(keyspace.company_key(SHARD, COMPANY), "claims") == b"200"

    # And an older version does not come back
    install(server, defaults(1, invoice=first))
    assert claim(server, new_id()) == ("claimed", second)


def test_while_a_default_changes_no_id_is_claimed(server: Valkey) -> None:
    # Given a company whose defaults are being changed
    first = new_id()
    known = new_id()
    install(server, defaults(invoice=first))
    claim(server, known)
    assert scripts.change_defaults(server.client, STANDING, defaults(1)) == ("ok", 0)
    before = server.dump()

    # Then a known id is answered, a new one waits, and another change, too
    assert claim(server, known) == ("claimed", first)
    word, for_ms = claim(server, new_id())
    assert (word, 0 <= for_ms < 60_000) == ("changing", True)
    assert scripts.change_defaults(server.client, STANDING, defaults(1))[0] == "changing"
    assert server.dump() == before

    # And the new version ends it
    install(server, defaults(2, invoice=first))
    assert claim(server, new_id()) == ("claimed", first)
    assert scripts.change_defaults(server.client, STANDING, defaults(1)) == ("version", 0)


def test_claims_that_are_lost_are_damage(server: Valkey) -> None:
    # Given a company that is not loaded, then one is told so
    assert claim(server, new_id()) == ("unloaded", None)
    install(server, defaults(invoice=new_id()))
    for _ in range(100):
        claim(server, new_id())

    # When buckets are gone, then an id of theirs may have been claimed before
    for bucket in range(3):
        server.client.delete(f"{keyspace.claims_prefix(SHARD, COMPANY)}:{bucket}")
    with pytest.raises(Damaged, match=COMPANY):
        claim(server, new_id())

    # And a company's hash that is gone while its claims are there, too
    server.client.hset(f"{keyspace.claims_prefix(SHARD, COMPANY)}:0", "", "")
    server.client.delete(keyspace.company_key(SHARD, COMPANY))
    with pytest.raises(Damaged, match=COMPANY):
        scripts.install_defaults(server.client, STANDING, defaults(), opened=False)


# all --------------------------------------------------------------------------------------------------------------


def test_only_what_has_no_records_is_removed(server: Valkey) -> None:
    # Given an unused series, one with an entry, and one with a skip
    unused, used, skipped = (opened(server, make_series()) for _ in range(3))
    allocate(server, group(used, [new_id()]))
    skip(server, skipped, 9)

    # When they are removed, then the unused one leaves nothing behind, and the others stay
    scripts.remove(server.client, STANDING, unused)
    assert not list(server.client.scan_iter(f"*{unused.id}*"))
    for series in (used, skipped):
        before = server.dump()
        with pytest.raises(Damaged, match=series.id):
            scripts.remove(server.client, STANDING, series)
        assert scripts.change(server.client, STANDING, series, unused=True)[0] == "used"
        assert server.dump() == before


def test_a_foreign_or_halted_server_is_left_alone(server: Valkey) -> None:
    # Given a series, an entry and a company's defaults
    series, entry = opened(server, make_series()), new_id()
    allocate(server, group(series, [entry]))
    install(server, defaults(invoice=series.id))
    before = server.dump()

    # When a process of another epoch calls the scripts, then it is told so, and nothing is written
    calls: list[Callable[[Standing], Any]] = [
        lambda standing: skip(server, series, 9, standing=standing),
        lambda standing: void(server, series, entry, standing=standing),
        lambda standing: claim(server, new_id(), standing=standing),
    ]
    changes: list[Callable[[Standing], Any]] = [
        lambda standing: scripts.install_defaults(server.client, standing, defaults(), opened=True),
        lambda standing: scripts.change_defaults(server.client, standing, defaults()),
        lambda standing: scripts.remove(server.client, standing, make_series()),
    ]
    for call in calls + changes:
        with pytest.raises(Stale):
            call(FOREIGN)
    assert server.dump() == before

    # And on a halted server nothing is recorded
    server.client.hset(keyspace.shard_key(SHARD), "halted", "the reason")
    for call in calls:
        with pytest.raises(Halted, match="the reason"):
            call(STANDING)
    server.client.delete(keyspace.shard_key(SHARD))
    for call in calls:
        with pytest.raises(Stale):
            call(STANDING)
