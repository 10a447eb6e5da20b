"""What a call of allocate.lua is packed of."""

from __future__ import annotations

import struct
from datetime import date
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripted import ALWAYS, TODAY, make_series
from seriatim.formats import Window
from seriatim.groups import Group, Order, packed, rendered
from seriatim.keyspace import pack_request
from seriatim.model import Series

SIZE = len(pack_request(bytes(24)))
DAYS = (None, TODAY, date(2026, 11, 20))
ORDERS = st.lists(
    st.builds(
        lambda number, day, claimed: Order(pack_request(number.to_bytes(24)), day and day.replace(), claimed),
        st.integers(0, 2**64),
        st.sampled_from(DAYS),
        st.booleans(),
    ),
    min_size=1,
    max_size=20,
)


def group(series: Series, orders: list[Order]) -> Group:
    return Group(series, Window(*ALWAYS, TODAY), orders)


@given(asked=st.lists(ORDERS, min_size=1, max_size=4))
def test_orders_are_packed_as_they_came_in_as_few_stretches_as_can_be(asked: list[list[Order]]) -> None:
    # Given orders of some series, for today, for named days that may be today, or as the company's default
    series = [make_series(shard=number // 2) for number in range(len(asked))]

    # When they are packed
    keys, shards, (common, requests, *ids) = packed(list(map(group, series, asked)))

    # Then each series has its orders, those with the same rendering together as long as they follow one another
    assert len(keys) == 4 * len(shards)
    assert ids == [one.id for one in series]
    assert isinstance(common, bytes)
    assert isinstance(requests, bytes)
    counts, rules, renderings = msgspec.msgpack.decode(
        common, type=tuple[list[int], list[msgspec.Raw], list[msgspec.Raw]]
    )
    assert (sum(counts), len(rules)) == (len(series), 1)
    at = 0
    for one, orders in zip(series, asked, strict=True):
        _, version, stretches = struct.unpack_from(">HdH", requests, at)
        assert version == one.version
        at += 12
        said: list[tuple[bytes, bytes]] = []
        kinds = []
        for _ in range(stretches):
            nth, count = struct.unpack_from(">HH", requests, at)
            kinds.append(nth)
            at += 4
            for _ in range(count):
                said.append((bytes(renderings[nth - 1]), requests[at : at + SIZE]))
                at += SIZE
        wanted = [(rendered(one.numbering, order.day or TODAY, order.claimed), order.request) for order in orders]
        assert said == wanted
        assert all(before != after for before, after in pairwise(kinds))
    assert at == len(requests)


def test_groups_that_are_not_in_the_order_of_their_shards_are_refused() -> None:
    asked = [group(make_series(shard=shard), [Order(pack_request(bytes(24)))]) for shard in (2, 1)]
    with pytest.raises(ValueError, match="in the order of their shards"):
        packed(asked)
