"""Audit of a series' chain, from the store or from an export. Needs only the records and the public keys."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import Any, BinaryIO, Literal

import msgspec

from seriatim import formats, signing
from seriatim.errors import ConfigError, Damaged, Invalid
from seriatim.model import Counted, Entry, Numbering, Series, parse_day, timestamp
from seriatim.signing import BadSignature, JsonWebKeySet, UnknownKey
from seriatim.store import Store

PAGE = 1000
CSV_FIELDS = (
    "position",
    "id",
    "code",
    "number",
    "date",
    "created_at",
    "previous_id",
    "meta",
    "sig",
    "receipt",
)

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


class Checkpoint(msgspec.Struct, frozen=True):
    """Where a series' chain stood at some time; kept apart, it shows later whether a tail was cut off."""

    series: str
    position: int
    hash: str


class Record(msgspec.Struct, frozen=True):
    """An entry as an export carries it."""

    kind: Literal["entry"]
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
        self._position = 0
        self._numbering = _numbering(definition)
        self._values: dict[tuple[str, str], int] = {}
        self._previous_id: str | None = None
        self._ids: set[str] = set()
        self._codes: set[str] = set()

    @property
    def checkpoint(self) -> Checkpoint:
        """Where the chain stands after what was checked."""
        return Checkpoint(self.series, self._position, self.head)

    def check(self, entry: Entry) -> None:
        """Checks the next record."""
        self.entries += 1
        said = self._check_receipt(entry)
        if entry.id in self._ids:
            self.find(entry.position, "repeated_id", f"the id {entry.id} was issued before")
        if entry.code in self._codes:
            self.find(entry.position, "repeated_code", f"the code {entry.code} was issued before")
        self._ids.add(entry.id)
        self._codes.add(entry.code)
        if entry.position <= self._position:
            self.find(entry.position, "out_of_order", f"stands behind position {self._position}")
            return
        self._check_succession(entry, said)
        self._position, self._previous_id = entry.position, entry.id
        self._values |= {(one.counter, one.period): one.value for one in entry.numbers}
        self.head = signing.digest((entry.receipt or "").encode())
        if self._checkpoint and self._checkpoint.position == entry.position and self._checkpoint.hash != self.head:
            self.find(entry.position, "broken_link", "the chain is not the one that the checkpoint saw")

    def close(self, end: Checkpoint | None) -> None:
        """Checks that the records end where their source says (None: it does not), and not before the checkpoint."""
        if end is None:
            self.find(self._position, "truncated_tail", "there is no end line")
        elif end.position > self._position:
            self.find(self._position, "truncated_tail", f"the chain ends at {end.position}")
        elif end.position < self._position:
            self.find(end.position + 1, "added_record", f"the chain ends at {end.position}")
        elif end != self.checkpoint:
            self.find(self._position, "broken_link", "the chain does not end with this record")
        if self._checkpoint and self._checkpoint.position > self._position:
            self.find(
                self._position,
                "truncated_tail",
                f"the checkpoint saw the chain reach {self._checkpoint.position}",
            )

    def find(self, position: int, kind: Kind, detail: str) -> None:
        """Notes that something is wrong."""
        self.findings.append(Finding(self.series, position, kind, detail))

    def _check_succession(self, entry: Entry, said: dict[str, Any] | None) -> None:
        wanted = self._position + 1
        if entry.position > wanted:
            missing = f"{wanted}" if entry.position == wanted + 1 else f"{wanted} to {entry.position - 1}"
            self.find(wanted, "missing_record", f"no record at {missing}")
            return
        unused = self._numbering.first - 1 if entry.position == 1 else 0
        for one in entry.numbers:
            last = self._values.get((one.counter, one.period), unused)
            if one.value != last + 1:
                where = f" of {one.period}" if one.period else ""
                self.find(entry.position, "number_gap", f"{one.counter}{where}: {one.value} follows {last}")
        if entry.previous_id != self._previous_id:
            self.find(entry.position, "broken_link", f"previous_id is {entry.previous_id}, not {self._previous_id}")
        if said is not None and said.get("prev") != self.head:
            self.find(entry.position, "broken_link", "its receipt does not continue the one before")

    def _check_receipt(self, entry: Entry) -> dict[str, Any] | None:
        try:
            said = self._keys.open(entry.receipt or "")
        except UnknownKey as error:
            self.find(entry.position, "unknown_key", f"no public key has the kid {error}")
            return None
        except BadSignature as error:
            self.find(entry.position, "bad_signature", f"the receipt does not hold: {error}")
            return None
        try:
            claims = signing.claims(entry)
        except (OverflowError, OSError, ValueError):
            self.find(entry.position, "malformed", f"created_at is {entry.created_at}, which is no time")
            return said
        differing = sorted(
            name for name in claims.keys() | said.keys() - {"iss", "prev"} if claims.get(name) != said.get(name)
        )
        if differing:
            self.find(entry.position, "changed_record", f"differs from its receipt in {', '.join(differing)}")
        elif not self._written_as_defined(entry):
            self.find(entry.position, "wrong_code", f"{entry.code} is not what the series' format makes of its numbers")
        return said

    def _written_as_defined(self, entry: Entry) -> bool:
        day = parse_day(entry.date)
        if day is None or tuple(map(formats.field, entry.numbers)) != formats.fields_of(self._numbering, day):
            return False
        return entry.code == formats.code(self._numbering, day, (one.value for one in entry.numbers))


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
        for entry in settled_entries(store, series):
            audit.check(entry)
            yield audit
        audit.close(Checkpoint(series.id, series.position, series.head or signing.digest(genesis)))
        beyond = next(stored_entries(store, series, series.position), None)
        # The worker commits rows and position together: read in this order, no row is beyond the position.
        if beyond and beyond.position > (store.series(series.id) or series).position:
            audit.find(beyond.position, "added_record", f"the chain ends at {series.position}")
    except Damaged as error:
        audit.find(audit.checkpoint.position + 1, "malformed", error.message)
    yield audit


def settled_entries(store: Store, series: Series) -> Iterator[Entry]:
    """Yields the entries of a series up to the position that `series` says, in order."""
    return takewhile(lambda entry: entry.position <= series.position, stored_entries(store, series))


def stored_entries(store: Store, series: Series, after: int = 0) -> Iterator[Entry]:
    """Yields the entries of a series in the store behind position `after`, in order.

    Raises:
        Damaged: a row holds what is never stored there.
    """
    size = PAGE
    while True:
        try:
            page = [_of_its_types(entry) for entry in store.entries_after(series, after, size)]
        except (TypeError, ValueError) as error:
            if size == 1:
                raise Damaged(
                    f"The row behind position {after} of series {series.id} cannot be read: {error}."
                ) from error
            size = 1  # to find the row
            continue
        if not page:
            return
        yield from page
        after = page[-1].position


def _of_its_types(entry: Entry) -> Entry:
    # SQLite keeps a value of any type in any column.
    return msgspec.convert(msgspec.structs.asdict(entry), Entry, builtin_types=(bytes,))


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
                audit.check(_exported_entry(audit.series, msgspec.json.decode(line, type=Record)))
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
    to.writelines(_line(_record(entry)) for entry in settled_entries(store, series))
    to.write(_line({"kind": "end", "series": series.id, "position": series.position, "hash": head}))


def export_csv(store: Store, series: Series, to: BinaryIO) -> None:
    """Writes a series' settled records for a spreadsheet."""
    text = io.TextIOWrapper(to, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text)
    writer.writerow(CSV_FIELDS)
    for entry in settled_entries(store, series):
        row = {name: getattr(entry, name) for name in CSV_FIELDS}
        row |= {"created_at": timestamp(entry.created_at), "meta": entry.meta.decode()}
        writer.writerow([row[name] for name in CSV_FIELDS])
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


def _record(entry: Entry) -> Record:
    fields = {name: getattr(entry, name) for name in Record.__struct_fields__ if name not in ("kind", "meta")}
    return Record(kind="entry", meta=entry.meta.decode(), **fields)


def _exported_entry(series_id: str, record: Record) -> Entry:
    values = msgspec.structs.asdict(record)
    del values["kind"]
    return Entry(**values | {"series": series_id, "meta": record.meta.encode(), "fingerprint": b""})


def _line(content: Any) -> bytes:
    return msgspec.json.encode(content) + b"\n"
