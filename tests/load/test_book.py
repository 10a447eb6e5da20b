"""What a process keeps of what it was told, and what all of them make of it."""

from __future__ import annotations

import uuid
from collections import Counter

import msgspec

from seriatim.load.book import RECORD, Book, Books, Distinct, Findings, Lane, Sheet, digests
from seriatim.load.requests import Popularity
from seriatim.messages import EntryAnswer
from seriatim.model import Numbering, uuid_bytes
from stack import new_id

LANE = Lane("0f8fad5b-d9cb-469f-a165-70867728950e", Numbering(), owned=True, base=10)
TIME = "2026-01-31T12:00:00.000Z"
TOLD = EntryAnswer("", LANE.id, "A-1", 11, 1, "2026-01-31", {}, [], TIME, TIME, "before")


def record(position: int, entry_id: str | None = None, code: str = "A-1") -> bytes:
    return RECORD.pack(0, uuid_bytes(entry_id or new_id()), position, *digests(changed(code=code)))


def changed(**fields: object) -> EntryAnswer:
    return msgspec.structs.replace(TOLD, **fields)


def test_ids_are_random_uuids_and_never_the_same() -> None:
    book = Book()
    ids = [book.new_id() for _ in range(1000)]
    assert {uuid.UUID(one).version for one in ids} == {4}
    assert {uuid.UUID(one).variant for one in ids} == {uuid.RFC_4122}
    assert len(set(ids)) == 1000


def test_digests_tell_every_part_of_an_answer_from_another() -> None:
    code, rest = digests(TOLD)
    assert digests(changed(code="A-2"))[0] != code
    assert digests(changed(code="A-2"))[1] == rest
    for field, value in {"number": 2, "date": "2026-02-01", "created_at": "x", "previous_id": None}.items():
        assert digests(changed(**{field: value}))[0] == code
        assert digests(changed(**{field: value}))[1] != rest


def test_the_first_series_are_asked_for_most_by_zipf() -> None:
    counts = Counter(Popularity(10, 1).pick() for _ in range(20_000))
    # The weights are 1, 1/2, 1/3 ... of their sum, 2.93
    assert 0.3 < counts[0] / 20_000 < 0.38
    assert 0.13 < counts[1] / 20_000 < 0.21
    assert set(counts) == set(range(10))
    even = Counter(Popularity(10, 0).pick() for _ in range(20_000))
    assert max(even.values()) < 1.3 * min(even.values())


def test_the_books_find_what_was_told_by_position() -> None:
    # Given records in no order, from position 11 on
    ids = [new_id() for _ in range(5)]
    books = Books([LANE], 5)
    books.take(b"".join(record(11 + number, ids[number]) for number in (4, 0, 2)))
    (sheet,) = books.sheets

    # Then each is at its position, and the others are empty
    assert [sheet.at(position) is None for position in range(9, 18)] == [
        *(True, True, False, True, False, True),
        *(False, True, True),
    ]
    assert sheet.end == 15
    assert [position for position, _ in sheet.between(0, 14)] == [11, 13]
    assert sheet.any_told() in (11, 13, 15)
    assert books.findings.counts == {}


def test_a_position_that_is_told_twice_is_a_finding_and_both_are_kept() -> None:
    first, second = new_id(), new_id()
    books = Books([LANE], 2)
    books.take(record(12, first) + record(12, second, code="A-9"))
    (finding,) = books.findings.told
    assert (finding.kind, finding.position) == ("repeated_position", 12)
    assert finding.detail == f"was answered to {first} and to {second}, with different codes"
    assert [position for position, _ in books.sheets[0].strays] == [12]


def test_a_position_that_cannot_be_costs_no_memory() -> None:
    # Given answers of a position of before, and of one as far away as numbers go
    sheet = Sheet(LANE)
    for position in (10, 2**53 - 1):
        sheet.place(position, (b"0" * 16, 0, 0), 1000, Findings())

    # Then they are kept apart
    assert sheet.end == LANE.base
    assert [position for position, _ in sheet.strays] == [10, 2**53 - 1]


def test_repeated_texts_are_found_among_many() -> None:
    seen = Distinct()
    for number in range(10_000):
        seen.add(f"A-{number}")
    assert seen.repeated() == set()
    seen.add("A-77")
    assert seen.repeated() == {Distinct.value("A-77")}


def test_findings_are_all_counted_and_the_first_ones_told() -> None:
    one, other = Findings(), Findings()
    for position in range(150):
        one.add("series", position, "lost_entry", "")
    other.add("series", 1, "wrong_code", "")
    one.merge(other)
    assert one.counts == {"lost_entry": 150, "wrong_code": 1}
    assert len(one.told) == 100
