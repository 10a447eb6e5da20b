"""The nouns: ids, times, canonical JSON and what is derived from them."""

from __future__ import annotations

import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from random import Random

import msgspec
import pytest
import rfc8785
from hypothesis import assume, example, given
from hypothesis import strategies as st

from seriatim.errors import NotFound
from seriatim.model import (
    Numbering,
    canonical_meta,
    fingerprint,
    parse_uuid,
    shard_of,
    timestamp,
    uuid_bytes,
    uuid_text,
)

METAS = st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=8)
YEAR_2100_MS = 4_102_444_800_000


@given(METAS)
@example({})
@example({"\U00010000": "sorts before", "\uffff": "by UTF-16 units, behind by code points"})
@example({"\x00\x1f\x7f\x80\u2028": '"\\/\b\f\n\r\t\x00\x1f\x7f\x80\u2028'})
def test_a_meta_becomes_the_canonical_json_of_rfc_8785(meta: dict[str, str]) -> None:
    # Given any map of strings, when it is made canonical, then an implementation of the RFC agrees
    assert canonical_meta(meta) == rfc8785.dumps(meta)
    assert msgspec.json.decode(canonical_meta(meta)) == meta


@given(METAS, st.randoms())
def test_the_order_of_keys_does_not_change_a_payload(meta: dict[str, str], random: Random) -> None:
    # Given the same meta with its keys in another order
    names = list(meta)
    random.shuffle(names)
    shuffled = {name: meta[name] for name in names}

    # When both are fingerprinted, then they are the same payload
    assert fingerprint(canonical_meta(shuffled)) == fingerprint(canonical_meta(meta))


@given(METAS, METAS)
def test_another_meta_is_another_payload(one: dict[str, str], other: dict[str, str]) -> None:
    # Given two metas that differ
    assume(one != other)

    # When they are fingerprinted, then the marks differ, and have the size that allocate.lua cuts off a tag
    assert fingerprint(canonical_meta(one)) != fingerprint(canonical_meta(other))
    assert len(fingerprint(canonical_meta(one))) == 8


def test_fingerprints_are_what_redis_already_holds() -> None:
    # Given metas of entries issued by earlier releases, then their fingerprints are still the same
    assert fingerprint(b"{}").hex() == "01e7b720ff566d53"
    assert fingerprint(b'{"a":"1"}').hex() == "fb7337e479f3488c"


@given(st.uuids())
def test_a_uuid_survives_its_bytes(value: uuid.UUID) -> None:
    # Given any UUID, then its bytes are Python's and give back its canonical text
    assert uuid_bytes(str(value)) == value.bytes
    assert uuid_text(value.bytes) == str(value)
    assert parse_uuid(str(value).upper(), "entry") == str(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "00000000-0000-0000-0000-00000000000",
        "00000000-0000-0000-0000-0000000000000",
        "00000000-0000-0000-0000-00000000000g",
        "00000000-0000-0000-0000-000000000000\n",
        " 00000000-0000-0000-0000-000000000000",
        "00000000000000000000000000000000",
        "{00000000-0000-0000-0000-000000000000}",
        "urn:uuid:00000000-0000-0000-0000-000000000000",
        "\uff10" * 8 + "-0000-0000-0000-000000000000",
        "\u0660" * 8 + "-0000-0000-0000-000000000000",
    ],
)
def test_what_is_not_a_uuid_names_nothing(text: str) -> None:
    # Given a text that is no UUID, when it is parsed, then there is no such thing, in these words
    with pytest.raises(NotFound, match=r"There is no series .* its id is not a UUID"):
        parse_uuid(text, "series")


@pytest.mark.parametrize(
    ("series", "of_16", "of_1000"),
    [
        ("00000000-0000-0000-0000-000000000000", 14, 166),
        ("ffffffff-ffff-ffff-ffff-ffffffffffff", 7, 695),
        ("123e4567-e89b-12d3-a456-426614174000", 13, 765),
        ("018f5b2e-7c1d-7e3a-9b4f-5d6c7e8f9a0b", 8, 72),
    ],
)
def test_the_shard_of_a_series_never_changes(series: str, of_16: int, of_1000: int) -> None:
    # Given series that Redis holds under the shard of an earlier release, then they are still found there
    assert shard_of(series, 16) == of_16
    assert shard_of(series, 1000) == of_1000
    assert shard_of(series, 1) == 0


def test_series_are_spread_evenly_even_when_their_ids_follow_one_another() -> None:
    # Given 16,000 ids that differ in their last digits only
    ids = [str(uuid.UUID(int=number)) for number in range(16_000)]

    # When each gets its shard of 16
    sizes = Counter(shard_of(one, 16) for one in ids)

    # Then every shard has about a thousand: four standard deviations are 122
    assert sorted(sizes) == list(range(16))
    assert all(878 <= size <= 1122 for size in sizes.values())


@given(st.integers(0, YEAR_2100_MS - 1))
@example(0)
@example(951_782_399_999)  # 2000-02-28T23:59:59.999Z
@example(951_868_800_000)  # 2000-03-01
@example(YEAR_2100_MS - 1)
def test_a_time_is_written_as_rfc_3339_with_milliseconds(ms: int) -> None:
    # Given any millisecond until 2100, when it is written, then reading it gives the same instant
    text = timestamp(ms)
    assert datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%f%z") == datetime.fromtimestamp(0, UTC) + timedelta(
        milliseconds=ms
    )
    assert len(text) == len("2026-11-21T11:22:33.444Z")


@given(st.integers(0, YEAR_2100_MS - 2))
def test_later_times_sort_behind_earlier_ones_as_text(ms: int) -> None:
    assert timestamp(ms) < timestamp(ms + 1)


def test_a_series_without_a_start_begins_with_one() -> None:
    assert Numbering().first == 1
    assert Numbering(start=1).first == 1
    assert Numbering(start=42).first == 42
