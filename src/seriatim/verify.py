"""Audit of a series' chain, from the store or from an export. Needs only the records and the public keys."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import Any, BinaryIO, Literal, TypeVar

import msgspec

from seriatim import formats, signing
from seriatim.errors import ConfigError, Damaged, Invalid
from seriatim.model import (
    Counted,
    Entry,
    Numbering,
    Place,
    Record,
    Series,
    Skip,
    Void,
    parse_day,
    place_text,
    timestamp,
)
from seriatim.signing import BadSignature, JsonWebKeySet, UnknownKey
from seriatim.store import Store

T = TypeVar("T", bound=msgspec.Struct)

PAGE = 1000
CSV_FIELDS = (
    "kind",
    "position",
    "k",
    "id",
    "code",
    "number",
    "date",
    "created_at",
    "previous_id",
    "meta",
    "sig",
    "void",
    "voids",
    "counter",
    "period",
    "from",
    "to",
    "reason",
    "actor",
    "receipt",
)
"""A row for every record; `void` is why an entry is void, `voids` the position that a void names."""

Kind = Literal[
    "malformed",
    "missing_record",
    "added_record",
    "out_of_order",
    "changed_record",
    "broken_link",
    "bad_signature",
    "unknown_key",
    "number_gap",
    "wrong_void",
    "wrong_code",
    "repeated_id",
    "repeated_code",
    "truncated_tail",
]


class Finding(msgspec.Struct, frozen=True):
    """Something that is wrong, and where."""

    series: str
    position: int
    kind: Kind
    detail: str


class Checkpoint(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a series' chain stood at some time; kept apart, it shows later whether a tail was cut off."""

    series: str
    position: int
    hash: str
    k: int = 0

    @property
    def place(self) -> Place:
        """The last record."""
        return self.position, self.k


class EntryLine(msgspec.Struct, frozen=True, tag="entry", tag_field="kind"):
    """An entry as an export carries it."""

    position: int
    id: str
    code: str
    numbers: tuple[Counted, ...]
    date: str
    created_at: int
    previous_id: str | None
    meta: str
    sig: str | None
    receipt: str


class SkipLine(msgspec.Struct, frozen=True, tag="skip", tag_field="kind", rename={"first": "from", "last": "to"}):
    """A skip as an export carries it."""

    position: int
    k: int
    counter: str
    period: str
    first: int
    last: int
    reason: str
    actor: str
    created_at: int
    receipt: str


class VoidLine(msgspec.Struct, frozen=True, tag="void", tag_field="kind"):
    """A void as an export carries it."""

    position: int
    k: int
    voids: int
    reason: str
    actor: str
    created_at: int
    receipt: str


class Audit:
    """Checks one series, record by record, in the order that they come in."""

    def __init__(self, genesis: bytes, keys: JsonWebKeySet, checkpoint: Checkpoint | None) -> None:
        definition = msgspec.json.decode(genesis, type=dict[str, Any])
        self.series: str = definition["series"]
        self.findings: list[Finding] = []
        self.entries = 0
        self.head = signing.digest(genesis)
        self._keys = keys
        self._checkpoint = checkpoint
        self._place: Place = (0, 0)
        self._numbering = _numbering(definition)
        self._values: dict[tuple[str, str], int] = {}
        self._previous_id: str | None = None
        self._ids: set[str] = set()
        self._codes: set[str] = set()
        self._voided: set[int] = set()

    @property
    def checkpoint(self) -> Checkpoint:
        """Where the chain stands after what was checked."""
        return Checkpoint(self.series, self._place[0], self.head, self._place[1])

    def check(self, record: Record) -> None:
        """Checks the next record."""
        said = self._check_receipt(record)
        if isinstance(record, Entry):
            self.entries += 1
            self._check_uniqueness(record)
        if record.place <= self._place:
            self.find(record.position, "out_of_order", f"stands behind {place_text(self._place)}")
            return
        if self._follows(record, said):
            self._check_content(record)
        self._place = record.place
        if isinstance(record, Entry):
            self._previous_id = record.id
            self._values |= {(one.counter, one.period): one.value for one in record.numbers}
        elif isinstance(record, Skip):
            self._values[record.counter, record.period] = record.last
        self.head = signing.digest((record.receipt or "").encode())
        if self._checkpoint and self._checkpoint.place == record.place and self._checkpoint.hash != self.head:
            self.find(record.position, "broken_link", "the chain is not the one that the checkpoint saw")

    def close(self, end: Checkpoint | None) -> None:
        """Checks that the records end where their source says (None: it does not), and not before the checkpoint."""
        position = self._place[0]
        if end is None:
            self.find(position, "truncated_tail", "there is no end line")
        elif end.place > self._place:
            self.find(position, "truncated_tail", f"the chain ends at {place_text(end.place)}")
        elif end.place < self._place:
            at = end.position + (end.position < position)
            self.find(at, "added_record", f"the chain ends at {place_text(end.place)}")
        elif end != self.checkpoint:
            self.find(position, "broken_link", "the chain does not end with this record")
        if self._checkpoint and self._checkpoint.place > self._place:
            reached = place_text(self._checkpoint.place)
            self.find(position, "truncated_tail", f"the checkpoint saw the chain reach {reached}")

    def find(self, position: int, kind: Kind, detail: str) -> None:
        """Notes that something is wrong."""
        self.findings.append(Finding(self.series, position, kind, detail))

    def _check_uniqueness(self, entry: Entry) -> None:
        if entry.id in self._ids:
            self.find(entry.position, "repeated_id", f"the id {entry.id} was issued before")
        if entry.code in self._codes:
            self.find(entry.position, "repeated_code", f"the code {entry.code} was issued before")
        self._ids.add(entry.id)
        self._codes.add(entry.code)

    def _follows(self, record: Record, said: dict[str, Any] | None) -> bool:
        position, k = self._place
        if record.place not in ((position + 1, 0), (position, k + 1)):
            wanted = position + 1 if record.position > position else position
            missing = f"{wanted}" if record.position <= wanted + 1 else f"{wanted} to {record.position - 1}"
            self.find(wanted, "missing_record", f"no record at {missing}")
            return False
        if said is not None and said.get("prev") != self.head:
            self.find(record.position, "broken_link", "its receipt does not continue the one before")
        return True

    def _check_content(self, record: Record) -> None:
        if isinstance(record, Void):
            if record.voids in self._voided or not 1 <= record.voids <= record.position:
                self.find(record.position, "wrong_void", f"voids {record.voids}, which is none that it can void")
            self._voided.add(record.voids)
            return
        if isinstance(record, Skip):
            if record.last < record.first:
                self.find(record.position, "number_gap", f"a skip leaves out {record.first} to {record.last}")
            self._check_number(record.position, Counted(record.counter, record.period, record.first))
            return
        for one in record.numbers:
            self._check_number(record.position, one)
        if record.previous_id != self._previous_id:
            self.find(record.position, "broken_link", f"previous_id is {record.previous_id}, not {self._previous_id}")

    def _check_number(self, position: int, one: Counted) -> None:
        unused = self._numbering.first - 1 if self._place[0] == 0 else 0
        last = self._values.get((one.counter, one.period), unused)
        if one.value != last + 1:
            where = f" of {one.period}" if one.period else ""
            self.find(position, "number_gap", f"{one.counter}{where}: {one.value} follows {last}")

    def _check_receipt(self, record: Record) -> dict[str, Any] | None:
        try:
            said = self._keys.open(record.receipt or "")
        except UnknownKey as error:
            self.find(record.position, "unknown_key", f"no public key has the kid {error}")
            return None
        except BadSignature as error:
            self.find(record.position, "bad_signature", f"the receipt does not hold: {error}")
            return None
        try:
            claims = signing.claims(record)
        except (OverflowError, OSError, ValueError):
            self.find(record.position, "malformed", f"created_at is {record.created_at}, which is no time")
            return said
        differing = sorted(
            name for name in claims.keys() | said.keys() - {"iss", "prev"} if claims.get(name) != said.get(name)
        )
        if differing:
            self.find(record.position, "changed_record", f"differs from its receipt in {', '.join(differing)}")
        elif isinstance(record, Entry) and not self._written_as_defined(record):
            why = f"{record.code} is not what the series' format makes of its numbers"
            self.find(record.position, "wrong_code", why)
        return said

    def _written_as_defined(self, entry: Entry) -> bool:
        return formats.fits(self._numbering, parse_day(entry.date), entry.numbers, entry.code)


def audit_store(store: Store, series: Series, keys: JsonWebKeySet, checkpoint: Checkpoint | None) -> Iterator[Audit]:
    """Checks a series in the store; yields the audit after every record, for progress, and once at the end.

    Raises:
        ConfigError: the series' genesis cannot be read.
    """
    genesis = series.genesis or signing.genesis(series)
    try:
        audit = Audit(genesis, keys, checkpoint)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"The genesis of series {series.id} in the store cannot be read: {error}.") from error
    try:
        for record in settled_records(store, series):
            audit.check(record)
            yield audit
        audit.close(Checkpoint(series.id, series.position, series.head or signing.digest(genesis), series.k))
        beyond = next(stored_records(store, series, series.place), None)
        # The worker commits rows and place together: read in this order, no row is beyond the place.
        if beyond and beyond.place > (store.series(series.id) or series).place:
            audit.find(beyond.position, "added_record", f"the chain ends at {place_text(series.place)}")
    except Damaged as error:
        audit.find(audit.checkpoint.position + 1, "malformed", error.message)
    yield audit


def settled_records(store: Store, series: Series) -> Iterator[Record]:
    """Yields the records of a series up to the place that `series` says, in order."""
    return takewhile(lambda record: record.place <= series.place, stored_records(store, series))


def stored_records(store: Store, series: Series, after: Place = (0, 0)) -> Iterator[Record]:
    """Yields the records of a series in the store behind a place, in order.

    Raises:
        Damaged: a row holds what is never stored there.
    """
    size = PAGE
    while True:
        try:
            page = [_of_its_types(record) for record in store.records_after(series, after, size)]
        except (TypeError, ValueError) as error:
            if size == 1:
                at = place_text(after)
                raise Damaged(f"The row behind position {at} of series {series.id} cannot be read: {error}.") from error
            size = 1  # to find the row
            continue
        if not page:
            return
        yield from page
        after = page[-1].place


def _of_its_types(record: Record) -> Record:
    # SQLite keeps a value of any type in any column.
    return msgspec.convert(msgspec.to_builtins(record, builtin_types=(bytes,)), type(record), builtin_types=(bytes,))


def audit_export(lines: Iterable[bytes], keys: JsonWebKeySet, checkpoints: dict[str, Checkpoint]) -> Iterator[Audit]:
    """Checks an export, which may hold several series; yields the audit of the series at hand after every line.

    Raises:
        ConfigError: a line is not one of an export.
    """
    audit: Audit | None = None
    ended = True
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        try:
            kind = msgspec.json.decode(line, type=dict[str, Any])["kind"]
            if kind == "series":
                yield from _cut_off(audit, ended=ended)
                genesis = str(msgspec.json.decode(line)["genesis"]).encode()
                audit = Audit(genesis, keys, checkpoints.get(msgspec.json.decode(genesis)["series"]))
                if audit.series in seen:
                    raise ConfigError(
                        f"Line {number} of the export begins a series that it holds already. Export again."
                    )
                seen.add(audit.series)
                ended = False
            elif audit is None or ended:
                raise ConfigError(f"Line {number} of the export belongs to no series. Export again.")
            elif kind == "end":
                audit.close(msgspec.json.decode(line, type=Checkpoint))
                ended = True
            else:
                audit.check(_exported(audit.series, _line_of.decode(line)))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"Line {number} of the export cannot be read: {error}. Export again.") from error
        yield audit
    if audit is None:
        raise ConfigError("The export is empty. Export again.")
    yield from _cut_off(audit, ended=ended)


def _cut_off(audit: Audit | None, *, ended: bool) -> Iterator[Audit]:
    if audit is not None and not ended:
        audit.close(None)
        yield audit


def export_jsonl(store: Store, series: Series, to: BinaryIO) -> None:
    """Writes a series' settled records: a line for its genesis, one for each record, and one where it ends."""
    genesis = (series.genesis or signing.genesis(series)).decode()
    head = series.head or signing.digest(genesis.encode())
    to.write(_line({"kind": "series", "genesis": genesis, "name": series.name}))
    to.writelines(_line(_exportable(record)) for record in settled_records(store, series))
    end = Checkpoint(series.id, series.position, head, series.k)
    to.write(_line({"kind": "end"} | msgspec.to_builtins(end)))


def export_csv(store: Store, series: Series, to: BinaryIO) -> None:
    """Writes a series' settled records for a spreadsheet."""
    text = io.TextIOWrapper(to, encoding="utf-8", newline="", write_through=True)
    writer = csv.DictWriter(text, CSV_FIELDS, extrasaction="ignore")
    writer.writeheader()
    for record in settled_records(store, series):
        row = msgspec.to_builtins(_exportable(record)) | {"created_at": timestamp(record.created_at)}
        if isinstance(record, Entry):
            row |= {"number": record.number, "void": record.void.reason if record.void else ""}
        writer.writerow(row)
    text.detach()


def read_checkpoints(text: bytes) -> dict[str, Checkpoint]:
    """Returns checkpoints by series, from the JSON that `seriatim verify --json` printed, or a list of them.

    Raises:
        ConfigError: it is neither.
    """
    try:
        content = msgspec.json.decode(text)
        listed = content["checkpoints"] if isinstance(content, dict) and "checkpoints" in content else content
        checkpoints = msgspec.convert(listed if isinstance(listed, list) else [listed], list[Checkpoint])
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"This is no checkpoint file: {error}. `seriatim verify --json` prints one.") from error
    return {checkpoint.series: checkpoint for checkpoint in checkpoints}


def _numbering(definition: dict[str, Any]) -> Numbering:
    known = {name: definition[name] for name in Numbering.__struct_fields__ if name in definition}
    numbering = msgspec.convert(known | {"start": definition["start"]}, Numbering)
    try:
        formats.check(numbering)
    except Invalid as error:
        raise ValueError(error.message) from error
    return numbering


_line_of = msgspec.json.Decoder(EntryLine | SkipLine | VoidLine)


def _exportable(record: Record) -> EntryLine | SkipLine | VoidLine:
    values = msgspec.structs.asdict(record)
    if isinstance(record, Entry):
        return _struct(EntryLine, values | {"meta": record.meta.decode()})
    return _struct(SkipLine, values) if isinstance(record, Skip) else _struct(VoidLine, values)


def _struct(kind: type[T], values: dict[str, Any]) -> T:
    return kind(**{name: values[name] for name in kind.__struct_fields__})


def _exported(series_id: str, line: EntryLine | SkipLine | VoidLine) -> Record:
    values = msgspec.structs.asdict(line) | {"series": series_id}
    if isinstance(line, EntryLine):
        return Entry(**values | {"meta": line.meta.encode(), "fingerprint": b""})
    return Skip(**values) if isinstance(line, SkipLine) else Void(**values)


def _line(content: Any) -> bytes:
    return msgspec.json.encode(content) + b"\n"
