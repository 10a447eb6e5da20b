"""What travels in the sequence dialect's JSON, field by field: the service writes it, the client reads it."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from seriatim.model import COUNTER_MAX

BATCH_MAX = 1000
PAGE_DEFAULT = 20
PAGE_MAX = 1000
META_KEYS_MAX = 64
META_KEY_BYTES_MAX = 64
META_VALUE_BYTES_MAX = 1024
META_BYTES_MAX = 16 * 1024
SIG_BYTES_MAX = 8 * 1024
REASON_BYTES_MAX = 1024
LABEL_BYTES_MAX = {
    "name": 255,
    "description": 2048,
    "code": 64,
    "prefix": 64,
    "suffix": 64,
    "format": 255,
    "timezone": 64,
    "fiscal_year_start": 5,
    "charset": 128,
}
RANGES = {"padding": (0, 20), "start": (1, COUNTER_MAX), "max_length": (1, 255)}

UUID = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
TYPE = "[a-z][a-z0-9_-]{0,31}"
JWS = r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]+"
DAY = "20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
MONTH_DAY = "(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
NO_CONTROL = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"

EXAMPLE_ID = "a8904315-3d16-4a95-91c1-30d6cdde553e"
EXAMPLE_DAY = "2026-12-31"
EXAMPLE_JWS = "eyJhbGciOiJFUzI1NiJ9.e30.c2ln"


def shown(description: str, *examples: Any, **rules: Any) -> Meta:
    """Returns what the API's description says of a field, rules included.

    Decoding does not enforce them: they are checked where all wrong fields can be named at once. The rule `needed` is
    for a field that decodes without a value, and is refused then.
    """
    return Meta(description=description, examples=list(examples) or None, extra_json_schema=rules or None)


def or_empty(pattern: str) -> str:
    """Returns a pattern for all of a text that may also be empty, as clients send what they leave unset."""
    return f"^({pattern})?$"


def _label(name: str, description: str, *examples: Any, **rules: Any) -> Meta:
    most = LABEL_BYTES_MAX[name]
    length = {"maxLength": most, "pattern": NO_CONTROL}
    return shown(f"{description} At most {most} bytes.", *examples, **length | rules)


def _amount(name: str, description: str, *examples: Any) -> Meta:
    return shown(description, *examples, minimum=0, maximum=RANGES[name][1])


Id = Annotated[str, shown("UUID of any version.", EXAMPLE_ID, format="uuid", pattern=f"^{UUID}$")]
SameId = Annotated[str, shown("The id in the path, if any.", EXAMPLE_ID, pattern=or_empty(UUID))]
Time = Annotated[str, shown("RFC 3339, in UTC.", "2026-10-01T00:00:00.000Z", format="date-time")]
Day = Annotated[str, shown("A day as YYYY-MM-DD.", EXAMPLE_DAY, format="date")]
AnyDay = Annotated[
    str, shown("A day as YYYY-MM-DD, 2000-01-01 to 2099-12-31; none unless given.", EXAMPLE_DAY, pattern=or_empty(DAY))
]
Jws = Annotated[str, shown("JSON Web Signature in its compact form (RFC 7515).", EXAMPLE_JWS, pattern=f"^{JWS}$")]
AnyJws = Annotated[
    str,
    shown(
        "JSON Web Signature of the key properties in its compact form (RFC 7515). Its form is checked, not its truth.",
        EXAMPLE_JWS,
        pattern=or_empty(JWS),
        maxLength=SIG_BYTES_MAX,
    ),
]
MetaKey = Annotated[
    str, Meta(extra_json_schema={"minLength": 1, "maxLength": META_KEY_BYTES_MAX, "pattern": r"^[^\x00]*$"})
]
MetaValue = Annotated[str, Meta(extra_json_schema={"maxLength": META_VALUE_BYTES_MAX, "pattern": r"^[^\x00]*$"})]
MetaMap = Annotated[
    dict[MetaKey, MetaValue],
    shown(
        f"Key/value pairs to keep with the entry, of at most {META_BYTES_MAX} bytes in all; in its receipt as a hash.",
        {"order": "A-1001"},
        maxProperties=META_KEYS_MAX,
    ),
]
KeptMeta = Annotated[dict[str, str], shown("Key/value pairs that were given for the entry.", {"order": "A-1001"})]
Kind = Annotated[str, shown("Type of document.", "invoice", pattern=f"^{TYPE}$")]
Reason = Annotated[
    str,
    shown(
        f"Why, for an auditor; a line of at most {REASON_BYTES_MAX} bytes.",
        "cancelled by the customer",
        minLength=1,
        maxLength=REASON_BYTES_MAX,
        pattern=NO_CONTROL,
        needed=True,
    ),
]
Cursor = Annotated[
    str,
    shown(
        "Where the page before ended.", "eyJpZCI6ImE4OTA0MzE1LTNkMTYtNGE5NS05MWMxLTMwZDZjZGRlNTUzZSIsImxpbWl0IjoyMH0="
    ),
]
Code = Annotated[str, Meta(description="The number as it goes on the document.", examples=["INV-2026-00042"])]
KeptReason = Annotated[str, Meta(examples=["cancelled by the customer"])]
Count = Annotated[int, Meta(ge=0)]
Number = Annotated[int, Meta(ge=1, le=COUNTER_MAX)]
Actor = Annotated[str, Meta(description="The key or token of who did it.", examples=["key LXsSxAIeQz"])]
Counter = Annotated[str, Meta(description="Name of the counter, as its marker has it.", examples=["incYearly"])]
Period = Annotated[
    str, Meta(description="The period that it counts in: a year, month or day; empty for ever.", examples=["2026"])
]


class SeriesBody(msgspec.Struct, forbid_unknown_fields=True):
    """A series to create or to change; what is omitted, null, "" or 0 is not given."""

    id: SameId | None = None
    name: Annotated[str | None, _label("name", "For people.", "Sales")] = None
    description: Annotated[str | None, _label("description", "For people.", "Invoices of the shop")] = None
    code: Annotated[str | None, _label("code", "An internal label, never part of a number.", "S1")] = None
    prefix: Annotated[str | None, _label("prefix", "Before the number, taken literally.", "INV-")] = None
    padding: Annotated[int | None, _amount("padding", "How many digits numbers have at least.", 5)] = None
    suffix: Annotated[str | None, _label("suffix", "Behind the number, taken literally.", "-F1")] = None
    start: Annotated[int | None, _amount("start", "The first number of every counter.", 1)] = None
    format: Annotated[
        str | None,
        _label("format", "Literals and markers, instead of prefix and suffix.", "INV-%yearLong%-%incYearly%"),
    ] = None
    timezone: Annotated[
        str | None, _label("timezone", "Name of the tz database; UTC unless given.", "Europe/Bucharest")
    ] = None
    fiscal_year_start: Annotated[
        str | None, _label("fiscal_year_start", "Month and day, MM-DD.", "04-01", pattern=or_empty(MONTH_DAY))
    ] = None
    chronology: Annotated[
        str | None,
        shown("Dates do not go back (strict), or come in any order (free).", "strict", pattern="^(strict|free)?$"),
    ] = None
    max_length: Annotated[int | None, _amount("max_length", "How long codes may be.", 20)] = None
    charset: Annotated[str | None, _label("charset", "Of which characters codes may be.", "A-Z0-9/-")] = None
    sig: AnyJws | None = None
    type: Annotated[str | None, shown("Type of document; invoice unless given.", "invoice", pattern=or_empty(TYPE))] = (
        None
    )
    default: Annotated[bool | None, Meta(description="Whether it is the default one of its type.")] = None
    active: Annotated[bool | None, Meta(description="Whether it issues numbers.")] = None


class EntryBody(msgspec.Struct, forbid_unknown_fields=True):
    """An entry to create."""

    id: SameId | None = None
    meta: MetaMap | None = None
    sig: AnyJws | None = None
    date: AnyDay | None = None


class BatchElement(EntryBody, forbid_unknown_fields=True):
    """An entry of a batch."""

    id: Annotated[Id | None, Meta(extra_json_schema={"needed": True})] = None


class BatchBody(msgspec.Struct, forbid_unknown_fields=True):
    """Entries to create in one contiguous run, or none of them."""

    entries: Annotated[list[BatchElement], shown(f"1 to {BATCH_MAX} entries.", minItems=1, maxItems=BATCH_MAX)] = (
        msgspec.field(name="list")
    )


class VoidBody(msgspec.Struct, forbid_unknown_fields=True):
    """Why an entry is void."""

    reason: Reason | None = None


class SkipBody(msgspec.Struct, forbid_unknown_fields=True):
    """What the next number is to be, and why."""

    to: Annotated[int | None, shown("The next number.", 1000, minimum=1, maximum=COUNTER_MAX, needed=True)] = None
    reason: Reason | None = None
    counter: Annotated[str | None, shown("Of which counter; of the format's first unless given.", "inc")] = None


class PageQuery(msgspec.Struct):
    """Which page of a list."""

    limit: Annotated[int, Meta(ge=1, le=PAGE_MAX, description="How many it may have.")] = PAGE_DEFAULT
    cursor: Cursor | None = None


class ReportQuery(msgspec.Struct):
    """Which entries a report is about: those dated `from` to `to`."""

    first: AnyDay | None = msgspec.field(name="from", default=None)
    last: AnyDay | None = msgspec.field(name="to", default=None)


class TypeQuery(msgspec.Struct):
    """Of which type of document."""

    type: Annotated[str, shown("Type of document.", "invoice", pattern=or_empty(TYPE))] = "invoice"


class SeriesAnswer(msgspec.Struct, omit_defaults=True):
    """A series."""

    id: Id
    type: Kind
    name: Annotated[str, Meta(examples=["Sales"])]
    description: Annotated[str, Meta(examples=["Invoices of the shop"])]
    code: Annotated[str, Meta(description="An internal label, never part of a number.", examples=["S1"])]
    prefix: Annotated[str, Meta(description="Empty where the format says it all.", examples=["INV-"])]
    padding: Annotated[int, Meta(ge=0, description="How many digits numbers have at least.", examples=[5])]
    suffix: Annotated[str, Meta(description="Empty where the format says it all.", examples=["-F1"])]
    last_index: Annotated[
        int,
        Meta(ge=0, le=COUNTER_MAX, description="The last assigned number; `start` before the first.", examples=[42]),
    ]
    sigs: Annotated[list[Jws], Meta(description="The signature that its creation carried, if any.")]
    active: Annotated[bool, Meta(description="Whether it issues numbers.")]
    default: Annotated[bool, Meta(description="Whether it is the default one of its type.")]
    created_at: Time
    updated_at: Time
    format: Annotated[str, Meta(description="What prefix and suffix stand for, too.", examples=["INV-%inc%-F1"])]
    timezone: Annotated[str, Meta(examples=["UTC"])]
    fiscal_year_start: Annotated[str, Meta(description="Month and day, MM-DD.", examples=["01-01"])]
    chronology: Literal["strict", "free"]
    start: Annotated[Number | None, Meta(description="The first number of every counter.")] = None
    max_length: Annotated[int | None, Meta(description="How long codes may be.", examples=[20])] = None
    charset: Annotated[str | None, Meta(description="Of which characters codes may be.", examples=["A-Z0-9-"])] = None
    last_entry_id: Id | None = None


class VoidAnswer(msgspec.Struct, omit_defaults=True):
    """Why an entry is void; `sig` is the receipt, once a worker has stored it."""

    reason: KeptReason
    actor: Actor
    created_at: Time
    sig: Jws | None = None


class EntryAnswer(msgspec.Struct, omit_defaults=True, gc=False):
    """An issued number."""

    id: Id
    series_id: Id
    code: Code
    position: Annotated[int, Meta(ge=1, le=COUNTER_MAX, description="Its place in the series: 1, 2, 3 ...")]
    number: Annotated[int, Meta(ge=1, le=COUNTER_MAX, description="The value of the format's first counter.")]
    date: Day
    meta: KeptMeta
    sigs: Annotated[list[Jws], Meta(description="The client's signature, if any, then the service's receipt.")]
    created_at: Time
    updated_at: Time
    previous_id: Annotated[Id | None, Meta(description="UUID of the entry before; absent for the first.")] = None
    void: VoidAnswer | None = None


class SeriesPage(msgspec.Struct, omit_defaults=True):
    """A page of series; `cursor` is absent on the last."""

    series: list[SeriesAnswer] = msgspec.field(name="list")
    limit: Annotated[int, Meta(description="How many it may have.", examples=[PAGE_DEFAULT])]
    cursor: Cursor | None = None


class EntryPage(msgspec.Struct, omit_defaults=True):
    """A page of entries, oldest first; `cursor` is absent on the last."""

    series_id: Id
    entries: list[EntryAnswer] = msgspec.field(name="list")
    limit: Annotated[int, Meta(description="How many it may have.", examples=[PAGE_DEFAULT])]
    cursor: Cursor | None = None


def cursor_behind(entry_id: str, limit: int) -> str:
    """Returns what a page would have ended with whose last entry was this one."""
    return base64.b64encode(msgspec.json.encode({"id": entry_id, "limit": limit})).decode()


class BatchAnswer(msgspec.Struct):
    """The entries of a batch, in its order."""

    entries: list[EntryAnswer] = msgspec.field(name="list")


class SkippedAnswer(msgspec.Struct, omit_defaults=True):
    """Numbers that were left out, both ends included."""

    first: Number = msgspec.field(name="from")
    last: Number = msgspec.field(name="to")
    reason: KeptReason
    actor: Actor
    created_at: Time


class SkipAnswer(msgspec.Struct, omit_defaults=True):
    """How a counter stands after a skip; what was left out, if anything had to be."""

    series_id: Id
    counter: Counter
    next: Number
    period: Period | None = None
    first: Number | None = msgspec.field(name="from", default=None)
    last: Number | None = msgspec.field(name="to", default=None)
    reason: KeptReason | None = None
    actor: Actor | None = None
    created_at: Time | None = None


class RangeAnswer(msgspec.Struct):
    """A range of numbers, both ends included."""

    first: Number = msgspec.field(name="from")
    last: Number = msgspec.field(name="to")


class LineAnswer(msgspec.Struct):
    """What became of the numbers of one counter in one period."""

    counter: Counter
    period: Period
    first: Annotated[Number | None, Meta(description="null where none was issued.")]
    last: Number | None
    issued: Count
    voided: Count
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
