"""The audit after a load: does the service hold what it told, in order, once, signed and linked?"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

import msgspec

from seriatim.load.book import Books, Distinct, Findings, Sheet, Slot, digests
from seriatim.load.children import Children, Link, Proved, Task
from seriatim.load.requests import pick
from seriatim.load.target import Target
from seriatim.messages import PAGE_MAX, EntryAnswer
from seriatim.model import Counted, uuid_bytes, uuid_text
from seriatim.receipts import settled

SAMPLE = 100
"""How many entries are also fetched by their ids."""
LOOK_UPS_MAX = 20_000
"""How many missing entries of a series are looked for by their ids, to say what became of them."""
SERIES_AT_ONCE = 4
UNSETTLED_PAUSE_S = 0.2


class Audited(msgspec.Struct):
    """What was looked at."""

    series: int = 0
    entries: int = 0
    """Acknowledged ones."""
    listed: int = 0
    receipts: int = 0
    sampled: int = 0
    replays: int = 0
    foreign: int = 0
    """Entries that others made meanwhile, in series that were not made for the load."""
    unknown: int = 0
    """Ids that were sent and never answered."""
    unknown_issued: int = 0
    """How many of them have a number."""
    seconds: float = 0.0


class Service(msgspec.Struct, frozen=True):
    """What an audit asks, and how long it waits for receipts; 0: it does without them."""

    target: Target
    children: Children
    metas: list[dict[str, str]]
    settle_s: float


def audit(service: Service, books: Books) -> Audited:
    """Audits all series of which something was told; notes in `books.findings` what is wrong."""
    begun = time.monotonic()
    total = Audited()
    sheets = [sheet for sheet in books.sheets if sheet.told or sheet.unknown]
    with (
        ThreadPoolExecutor(len(service.children)) as provers,
        ThreadPoolExecutor(min(SERIES_AT_ONCE, max(1, len(sheets)))) as walkers,
    ):
        walk = Walk(service, provers, begun + service.settle_s)
        audits = [SeriesAudit(walk, *one) for one in zip(sheets, _sample(sheets), strict=True)]
        for done in walkers.map(SeriesAudit.run, audits):
            books.findings.merge(done.findings)
            for name in Audited.__struct_fields__:
                setattr(total, name, getattr(total, name) + getattr(done.audited, name))
    total.seconds = round(time.monotonic() - begun, 3)
    return total


def _sample(sheets: list[Sheet]) -> list[set[int]]:
    """Returns some positions of each sheet of which something was told."""
    sampled: list[set[int]] = [set() for _ in sheets]
    placed = [sheet.told - len(sheet.strays) for sheet in sheets]
    if any(placed):
        for number in random.choices(range(len(sheets)), placed, k=SAMPLE):  # noqa: S311 -- no secret
            sampled[number].add(sheets[number].any_told())
    return sampled


class Walk(msgspec.Struct, frozen=True):
    """What the audits of all series share."""

    service: Service
    provers: ThreadPoolExecutor
    deadline: float
    """Until when receipts are waited for."""


class SeriesAudit:
    """The audit of one series: walks its list, and holds each entry against what was told, and the one before.

    Args:
        walk: what all series share.
        sheet: what was told of this one.
        sampled: positions whose entries are fetched by their ids as well.
    """

    def __init__(self, walk: Walk, sheet: Sheet, sampled: set[int]) -> None:
        self.findings = Findings()
        self.audited = Audited(series=1, entries=sheet.told, unknown=len(sheet.unknown))
        self._walk = walk
        self._service = walk.service
        self._sheet = sheet
        self._lane = sheet.lane
        self._sampled = sampled
        self._position = self._lane.base
        self._last_id: str | None = self._lane.base_id
        self._hash: str | None = None
        """Of the last receipt; None where the next one's link cannot be followed."""
        self._values: dict[tuple[str, str], int] = {}
        self._codes = Distinct()
        self._missed: list[tuple[int, Slot]] = []
        self._unplaced: dict[bytes, int] = {}
        self._unsigned: list[int] = []

    def run(self) -> SeriesAudit:
        """Audits the series to its end; where others write too, to the last entry that was told."""
        waiting: deque[tuple[list[EntryAnswer], Future[Proved] | None]] = deque()
        for listed in self._lists():
            waiting.append((listed, self._prove(listed)))
            if len(waiting) > len(self._service.children):
                self._check(*waiting.popleft())
        for listed, proving in waiting:
            self._check(listed, proving)
        self._missed += self._sheet.between(self._position + 1, self._sheet.end)
        self._account_for_missed()
        self._find_repeated_codes()
        if self._unsigned:
            detail = f"{len(self._unsigned)} entries have no receipt after {self._service.settle_s:.0f} s"
            self._find(self._unsigned[0], "unsettled", detail)
        return self

    def _find(self, position: int, kind: str, detail: str) -> None:
        self.findings.add(self._lane.id, position, kind, detail)

    # lists ------------------------------------------------------------------------------------------------------------

    def _lists(self) -> Iterator[list[EntryAnswer]]:
        """Yields what the service lists, in order; where others write too, up to what was told."""
        after, reached = self._lane.base_id, self._lane.base
        while self._lane.owned or reached < self._sheet.end:
            listed = self._settled(after)
            yield listed
            if len(listed) < PAGE_MAX:
                return
            after, reached = listed[-1].id, listed[-1].position

    def _settled(self, after: str | None) -> list[EntryAnswer]:
        """Lists entries, again while receipts are missing and there is time to wait for them."""
        while True:
            listed = self._service.target.entries(self._lane.id, after)
            if all(map(settled, listed)) or time.monotonic() > self._walk.deadline:
                return listed
            time.sleep(UNSETTLED_PAUSE_S)

    def _prove(self, listed: list[EntryAnswer]) -> Future[Proved] | None:
        if not self._service.settle_s:
            return None
        task = Task(msgspec.json.encode(listed), self._service.target.jwks, self._lane.numbering)
        return self._walk.provers.submit(self._service.children.prove, task)

    def _check(self, listed: list[EntryAnswer], proving: Future[Proved] | None) -> None:
        proved = proving.result() if proving else None
        for position, kind, detail in proved.wrong if proved else ():
            self._find(position, kind, detail)
        for number, entry in enumerate(listed):
            self._check_order(entry)
            self._check_told(entry)
            self._codes.add(entry.code)
            if proved:
                self._check_link(entry, proved.links[number])
        self.audited.listed += len(listed)

    # entries ----------------------------------------------------------------------------------------------------------

    def _check_order(self, entry: EntryAnswer) -> None:
        wanted = self._position + 1
        if entry.series_id != self._lane.id:
            self._find(entry.position, "wrong_series", f"{entry.id} is listed here and says {entry.series_id}")
        if entry.position < wanted:
            self._find(entry.position, "repeated_position", f"{entry.id} is listed behind position {self._position}")
            return
        if entry.position > wanted:
            missing = f"{wanted}" if entry.position == wanted + 1 else f"{wanted} to {entry.position - 1}"
            self._find(wanted, "missing_position", f"no entry is listed at {missing}")
            self._missed += self._sheet.between(wanted, entry.position - 1)
            self._lose_thread()
        elif entry.previous_id != self._last_id:
            detail = f"previous_id is {entry.previous_id}, and {self._last_id} is listed before it"
            self._find(entry.position, "broken_link", detail)
        self._position = entry.position
        self._last_id = entry.id

    def _check_told(self, entry: EntryAnswer) -> None:
        """Holds a listed entry against what was told of its position."""
        entry_id = uuid_bytes(entry.id)
        slot = self._sheet.at(entry.position)
        if slot is not None and slot[0] == entry_id:
            self._check_same(entry, slot)
            return
        if slot is not None:
            self._missed.append((entry.position, slot))
        if entry_id in self._sheet.unknown:
            self.audited.unknown_issued += 1
            self._check_meta(entry)
        elif self._lane.owned:
            self._unplaced[entry_id] = entry.position
        else:
            self.audited.foreign += 1

    def _check_same(self, entry: EntryAnswer, slot: Slot) -> None:
        code, rest = digests(entry)
        if slot[1] != code:
            self._find(entry.position, "wrong_code", f"{entry.id} was answered with another code than {entry.code}")
        if slot[2] != rest:
            detail = f"{entry.id} was answered with another number, date, created_at or previous_id than it has"
            self._find(entry.position, "changed_entry", detail)
        self._check_meta(entry)
        if entry.position in self._sampled and slot[1:] == (code, rest):
            self._fetch(entry, slot)

    def _fetch(self, entry: EntryAnswer, slot: Slot) -> None:
        self.audited.sampled += 1
        by_id = self._service.target.entry(self._lane.id, entry.id)
        if by_id is None or by_id.position != entry.position or digests(by_id) != slot[1:]:
            self._find(entry.position, "differs_by_id", f"{entry.id} is not by its id what it is in the list")

    def _check_meta(self, entry: EntryAnswer) -> None:
        if entry.meta != pick(self._service.metas, entry.id):
            self._find(entry.position, "changed_meta", f"{entry.id} has another meta than was sent")

    # the chain --------------------------------------------------------------------------------------------------------

    def _check_link(self, entry: EntryAnswer, link: Link | None) -> None:
        if link is None:
            if not settled(entry):
                self._unsigned.append(entry.position)
            self._lose_thread()
            return
        self.audited.receipts += 1
        if self._hash is not None and link.prev != self._hash and not self._explained:
            self._find(entry.position, "broken_link", "its receipt does not continue the one before")
        self._hash = link.hash
        for one in link.numbers:
            self._check_number(entry, one)

    def _lose_thread(self) -> None:
        """Notes that the next receipt follows one that was not seen."""
        self._hash = None
        self._values.clear()

    def _check_number(self, entry: EntryAnswer, one: Counted) -> None:
        field = one.counter, one.period
        last = self._values.get(field)
        if last is None and entry.position == 1:
            last = self._lane.numbering.first - 1
        if last is not None and one.value <= last:
            self._find(entry.position, "repeated_number", f"{one.counter} {one.period}: {one.value} follows {last}")
        elif last is not None and one.value > last + 1 and not self._explained:
            self._find(entry.position, "number_gap", f"{one.counter} {one.period}: {one.value} follows {last}")
        self._values[field] = one.value

    @cached_property
    def _explained(self) -> bool:
        """Whether there are skips or voids: a list does not show where they stand in the chain."""
        lines = self._service.target.report(self._lane.id).lines
        return any(line.voided or line.skipped for line in lines)

    # the end ----------------------------------------------------------------------------------------------------------

    def _account_for_missed(self) -> None:
        """Says what became of entries that were told and not listed at their positions."""
        for _, slot in [*self._missed, *self._sheet.strays]:
            self._unplaced.pop(slot[0], None)
        for position, slot in self._missed[:LOOK_UPS_MAX]:
            if self._looked_up(position, slot):
                detail = f"{uuid_text(slot[0])} is found by its id, and it is not listed there"
                self._find(position, "unlisted_entry", detail)
        for position, slot in self._missed[LOOK_UPS_MAX:]:
            detail = f"{uuid_text(slot[0])} was answered this position, is not listed there, and was not looked for"
            self._find(position, "unlisted_entry", detail)
        for position, slot in self._sheet.strays[:LOOK_UPS_MAX]:
            entry = self._looked_up(position, slot)
            if entry:
                self._check_same(entry, slot)
        for entry_id, position in self._unplaced.items():
            self._find(position, "unexpected_entry", f"{uuid_text(entry_id)} was not answered, and nobody else is here")

    def _looked_up(self, position: int, slot: Slot) -> EntryAnswer | None:
        """Returns an entry by its id if it has the position that was told; otherwise says what became of it."""
        entry = self._service.target.entry(self._lane.id, uuid_text(slot[0]))
        if entry is None:
            self._find(position, "lost_entry", f"{uuid_text(slot[0])} was answered this position and is not there")
        elif entry.position != position:
            self._find(position, "wrong_position", f"{entry.id} was answered this position and has {entry.position}")
        else:
            return entry
        return None

    def _find_repeated_codes(self) -> None:
        """Walks the list again when codes are repeated, to name them."""
        repeated = self._codes.repeated()
        if not repeated:
            return
        places: dict[str, list[int]] = {}
        for listed in self._lists():
            for entry in listed:
                if Distinct.value(entry.code) in repeated:
                    places.setdefault(entry.code, []).append(entry.position)
        for code, positions in places.items():
            self._find(positions[-1], "repeated_code", f"{code} is listed at positions {positions}")
