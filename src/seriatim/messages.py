"""What travels in the sequence dialect's JSON, field by field: the service writes it, the client reads it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from seriatim.model import COUNTER_MAX

BATCH_MAX = 1000
PAGE_DEFAULT = 20
PAGE_MAX = 1000

Id = Annotated[str, Meta(description="UUID of any version.", examples=["a8904315-3d16-4a95-91c1-30d6cdde553e"])]
Time = Annotated[str, Meta(description="RFC 3339, in UTC.", examples=["2026-10-01T00:00:00.000Z"])]
Day = Annotated[str, Meta(description="A day as YYYY-MM-DD.", examples=["2026-12-31"])]
Jws = Annotated[str, Meta(description="JSON Web Signature in its compact form (RFC 7515).")]
MetaMap = Annotated[
    dict[str, str],
    Meta(description="Key/value pairs to keep with the entry; kept in its receipt as a hash.", examples=[{"no": "1"}]),
]


class SeriesBody(msgspec.Struct, forbid_unknown_fields=True):
    """A series to create or to change; what is omitted, "" or 0 is not given."""

    id: str | None = None
    name: str | None = None
    description: str | None = None
    code: Annotated[str | None, Meta(description="An internal label, never part of a number.")] = None
    prefix: str | None = None
    padding: int | None = None
    suffix: str | None = None
    start: int | None = None
    format: Annotated[str | None, Meta(examples=["INV-%yearLong%-%incYearly%"])] = None
    timezone: str | None = None
    fiscal_year_start: Annotated[str | None, Meta(description="Month and day, MM-DD.")] = None
    chronology: Annotated[str | None, Meta(description="strict, or free: dates in any order.")] = None
    max_length: int | None = None
    charset: str | None = None
    sig: str | None = None
    type: str | None = None
    default: bool | None = None
    active: bool | None = None


class EntryBody(msgspec.Struct, forbid_unknown_fields=True):
    """An entry to create."""

    id: str | None = None
    meta: MetaMap | None = None
    sig: Jws | None = None
    date: Day | None = None


class BatchBody(msgspec.Struct, forbid_unknown_fields=True):
    """Entries to create in one contiguous run, or none of them; each with its `id`."""

    entries: Annotated[list[EntryBody], Meta(description=f"1 to {BATCH_MAX} entries.")] = msgspec.field(name="list")


class VoidBody(msgspec.Struct, forbid_unknown_fields=True):
    """Why an entry is void."""

    reason: str | None = None


class SkipBody(msgspec.Struct, forbid_unknown_fields=True):
    """What the next number is to be, and why; `counter` is the format's first unless given."""

    to: int | None = None
    reason: str | None = None
    counter: str | None = None


class PageQuery(msgspec.Struct):
    """Which page of a list."""

    limit: Annotated[int, Meta(ge=1, le=PAGE_MAX)] = PAGE_DEFAULT
    cursor: Annotated[str | None, Meta(description="The cursor that the page before ended with.")] = None


class ReportQuery(msgspec.Struct):
    """Which entries a report is about: those dated `from` to `to`."""

    first: Day | None = msgspec.field(name="from", default=None)
    last: Day | None = msgspec.field(name="to", default=None)


class TypeQuery(msgspec.Struct):
    """Of which type of document."""

    type: str = "invoice"


class SeriesAnswer(msgspec.Struct, omit_defaults=True):
    """A series."""

    id: Id
    type: str
    name: str
    description: str
    code: Annotated[str, Meta(description="An internal label, never part of a number.")]
    prefix: str
    padding: int
    suffix: str
    last_index: Annotated[int, Meta(ge=0, le=COUNTER_MAX, description="The last assigned number.")]
    sigs: list[Jws]
    active: bool
    default: bool
    created_at: Time
    updated_at: Time
    format: str
    timezone: str
    fiscal_year_start: str
    chronology: Literal["strict", "free"]
    start: int | None = None
    max_length: int | None = None
    charset: str | None = None
    last_entry_id: Id | None = None


class VoidAnswer(msgspec.Struct, omit_defaults=True):
    """Why an entry is void; `sig` is the receipt, once a worker has stored it."""

    reason: str
    actor: str
    created_at: Time
    sig: Jws | None = None


class EntryAnswer(msgspec.Struct, omit_defaults=True):
    """An issued number."""

    id: Id
    series_id: Id
    code: Annotated[str, Meta(description="The number as it goes on the document.", examples=["INV-2026-00042"])]
    position: Annotated[int, Meta(ge=1, le=COUNTER_MAX, description="Its place in the series: 1, 2, 3 ...")]
    number: Annotated[int, Meta(ge=1, le=COUNTER_MAX, description="The value of the format's first counter.")]
    date: Day
    meta: MetaMap
    sigs: Annotated[list[Jws], Meta(description="The client's signature, if any, then the service's receipt.")]
    created_at: Time
    updated_at: Time
    previous_id: Id | None = None
    void: VoidAnswer | None = None


class SeriesPage(msgspec.Struct, omit_defaults=True):
    """A page of series; `cursor` is absent on the last."""

    series: list[SeriesAnswer] = msgspec.field(name="list")
    limit: int
    cursor: str | None = None


class EntryPage(msgspec.Struct, omit_defaults=True):
    """A page of entries, oldest first; `cursor` is absent on the last."""

    series_id: Id
    entries: list[EntryAnswer] = msgspec.field(name="list")
    limit: int
    cursor: str | None = None


class BatchAnswer(msgspec.Struct):
    """The entries of a batch, in its order."""

    entries: list[EntryAnswer] = msgspec.field(name="list")


class SkippedAnswer(msgspec.Struct, omit_defaults=True):
    """Numbers that were left out, both ends included."""

    first: int = msgspec.field(name="from")
    last: int = msgspec.field(name="to")
    reason: str
    actor: str
    created_at: Time


class SkipAnswer(msgspec.Struct, omit_defaults=True):
    """How a counter stands after a skip; what was left out, if anything had to be."""

    series_id: Id
    counter: str
    next: int
    period: str | None = None
    first: int | None = msgspec.field(name="from", default=None)
    last: int | None = msgspec.field(name="to", default=None)
    reason: str | None = None
    actor: str | None = None
    created_at: Time | None = None


class RangeAnswer(msgspec.Struct):
    """A range of numbers, both ends included."""

    first: int = msgspec.field(name="from")
    last: int = msgspec.field(name="to")


class LineAnswer(msgspec.Struct):
    """What became of the numbers of one counter in one period."""

    counter: str
    period: str
    first: int | None
    last: int | None
    issued: int
    voided: int
    skipped: list[SkippedAnswer]
    missing: list[RangeAnswer]


class ReportAnswer(msgspec.Struct):
    """What became of every number of a series."""

    series_id: Id
    lines: list[LineAnswer] = msgspec.field(name="list")


class ErrorAnswer(msgspec.Struct, omit_defaults=True):
    """Why a request was refused."""

    code: Annotated[str, Meta(description="A word for programs.")]
    message: Annotated[str, Meta(description="A sentence for people.")]
    fields: Annotated[dict[str, str], Meta(description="Which fields are wrong, and why.")] = {}
