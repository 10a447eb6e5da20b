"""What goes into a call of allocate.lua: requests, grouped by series, and how the call is packed. No I/O."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import date
from functools import lru_cache

import msgspec

from seriatim import formats
from seriatim.formats import Window
from seriatim.keyspace import Rendering, shard_keys
from seriatim.model import Numbering, Series


class Order(msgspec.Struct, frozen=True, gc=False):
    """A number that is asked for.

    Args:
        request: as `keyspace.pack_request` returns it.
        day: the document's date; None for today.
        claimed: it comes to this series because that is the company's default.
    """

    request: bytes
    day: date | None = None
    claimed: bool = False


class Group(msgspec.Struct, frozen=True, gc=False):
    """The orders of one series in a call of allocate.lua, and the day that it is there."""

    series: Series
    window: Window
    orders: Sequence[Order]


_pack = msgspec.msgpack.Encoder().encode
_group = struct.Struct(">HdH").pack
_stretch = struct.Struct(">HH").pack


@lru_cache(maxsize=4096)
def ruled(numbering: Numbering, window: Window) -> bytes:
    """Returns a group's rules, packed."""
    rules = (
        window.from_ms,
        window.until_ms,
        window.today.isoformat(),
        numbering.chronology == "strict",
        formats.digits_max(numbering),
        numbering.first,
    )
    return _pack(rules)


@lru_cache(maxsize=4096)
def rendered(numbering: Numbering, day: date, claimed: bool = False) -> bytes:  # noqa: FBT001, FBT002 -- a kind
    """Returns a rendering as allocate.lua takes it, packed."""
    kept = rendering(numbering, day, claimed=claimed)
    said = msgspec.json.encode(kept).decode()
    return _pack((kept.date, " ".join(kept.fields), kept.counted, numbering.padding, claimed, said))


def rendering(numbering: Numbering, day: date, *, claimed: bool = False) -> Rendering:
    """Returns what the entries of a run have from their series' format and their date."""
    made = formats.rendering(numbering, day)
    digits = f"%0{numbering.padding}d" if numbering.padding else "%d"
    code = "".join(piece.replace("%", "%%") if isinstance(piece, str) else digits for piece in made.pieces)
    counted = tuple(piece for piece in made.pieces if isinstance(piece, int))
    return Rendering(made.date, made.fields, code, counted, claimed)


def packed(groups: Sequence[Group]) -> tuple[list[str], list[int], list[bytes | str]]:
    """Returns the keys of a call, the shards that it touches, and its last arguments.

    Raises:
        ValueError: the groups are not in the order of their shards.
    """
    shards: dict[int, int] = {}
    before = 0
    rules: dict[bytes, int] = {}
    renderings: dict[bytes, int] = {}
    parts: list[bytes] = []
    for group in groups:
        series, window, orders = group.series, group.window, group.orders
        shard = series.shard
        if shard < before:
            raise ValueError("groups must be in the order of their shards")
        before = shard
        shards[shard] = shards.get(shard, 0) + 1
        applying = rules.setdefault(ruled(series.numbering, window), len(rules) + 1)
        stretches = _stretches(series.numbering, window.today, orders)
        parts.append(_group(applying, series.version, len(stretches)))
        for rendering, requests in stretches:
            parts.append(_stretch(renderings.setdefault(rendering, len(renderings) + 1), len(requests)))
            parts += requests
    keys = [key for shard in shards for key in shard_keys(shard)]
    common = _pack((list(shards.values()), list(map(msgspec.Raw, rules)), list(map(msgspec.Raw, renderings))))
    return keys, list(shards), [common, b"".join(parts), *[group.series.id for group in groups]]


def _stretches(numbering: Numbering, today: date, orders: Sequence[Order]) -> list[tuple[bytes, list[bytes]]]:
    """Returns the requests of orders that follow one another and have the same rendering, behind that."""
    found: list[tuple[bytes, list[bytes]]] = []
    day, claimed = orders[0].day, orders[0].claimed
    requests: list[bytes] = []
    for order in orders:
        if not found or order.day != day or order.claimed is not claimed:
            day, claimed = order.day, order.claimed
            rendering = rendered(numbering, day or today, claimed)
            if not found or found[-1][0] != rendering:
                requests = []
                found.append((rendering, requests))
        requests.append(order.request)
    return found
