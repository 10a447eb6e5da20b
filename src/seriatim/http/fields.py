"""What callers may send, whatever the dialect: limits, and checks that say what is wrong by field."""

from __future__ import annotations

import base64
import binascii
import re
from datetime import date
from typing import Any

import msgspec

from seriatim.errors import Invalid
from seriatim.formats import LAST_DAY, YEARS
from seriatim.messages import (
    JWS,
    LABEL_BYTES_MAX,
    META_BYTES_MAX,
    META_KEY_BYTES_MAX,
    META_KEYS_MAX,
    META_VALUE_BYTES_MAX,
    RANGES,
    REASON_BYTES_MAX,
    SIG_BYTES_MAX,
    TYPE,
)
from seriatim.model import COUNTER_MAX, SeriesFields, parse_day

DAYS = (date(YEARS[0], 1, 1), LAST_DAY)
TYPE_PATTERN = re.compile(rf"{TYPE}\Z")
TYPE_RULE = "must be a lower-case word such as invoice, credit_note or receipt, of at most 32 characters"
COMPACT_JWS = re.compile(rf"{JWS}\Z")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def check_meta(meta: dict[str, str]) -> dict[str, str]:
    """Returns what is wrong with a meta, by field."""
    if len(meta) > META_KEYS_MAX:
        return {"meta": f"has {len(meta)} keys; at most {META_KEYS_MAX} are allowed"}
    wrong: dict[str, str] = {}
    size = 0
    for key, value in meta.items():
        key_bytes, value_bytes = len(key.encode()), len(value.encode())
        size += key_bytes + value_bytes
        if not 0 < key_bytes <= META_KEY_BYTES_MAX:
            wrong["meta"] = f"key {key[:64]!r} has {key_bytes} bytes; 1 to {META_KEY_BYTES_MAX} are allowed"
        elif value_bytes > META_VALUE_BYTES_MAX:
            wrong[f"meta.{key}"] = f"has {value_bytes} bytes; at most {META_VALUE_BYTES_MAX} are allowed"
        elif "\0" in key or "\0" in value:
            wrong["meta"] = f"key {key!r} or its value contains NUL"
    if size > META_BYTES_MAX:
        wrong["meta"] = f"has {size} bytes; at most {META_BYTES_MAX} are allowed in all"
    return wrong


def check_sig(sig: str | None) -> dict[str, str]:
    """Returns what is wrong with a client's signature: its form is checked (RFC 7515, section 7.1), not its truth."""
    if not sig:
        return {}
    if len(sig) > SIG_BYTES_MAX:
        return {"sig": f"has {len(sig)} bytes; at most {SIG_BYTES_MAX} are allowed"}
    if COMPACT_JWS.match(sig):
        try:
            parts = [base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in sig.split(".")]
            header = msgspec.json.decode(parts[0])
            if isinstance(header, dict) and isinstance(header.get("alg"), str):
                return {}
        except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
    return {"sig": "is not a compact JWS (three base64url parts, the first a JSON object with `alg`)"}


def check_day(text: str | None, name: str, wrong: dict[str, str]) -> date | None:
    """Returns the day that a client gives, if any, or notes that it is wrong."""
    day = parse_day(text) if text else None
    if text and (day is None or not DAYS[0] <= day <= DAYS[1]):
        wrong[name] = f"must be a day as YYYY-MM-DD, {DAYS[0]} to {DAYS[1]}"
    return day


def check_reason(reason: str | None) -> dict[str, str]:
    """Returns what is wrong with the reason for what needs one."""
    if not reason or not reason.strip():
        return {"reason": "must say why"}
    if len(reason.encode()) > REASON_BYTES_MAX:
        return {"reason": f"has {len(reason.encode())} bytes; at most {REASON_BYTES_MAX} are allowed"}
    if CONTROL.search(reason):
        return {"reason": "contains a control character"}
    return {}


def check_type(kind: str) -> dict[str, str]:
    """Returns what is wrong with the type of a series."""
    return {} if TYPE_PATTERN.match(kind) else {"type": TYPE_RULE}


def about(name: str, wrong: Invalid, *same: str) -> Invalid:
    """Returns what the core finds wrong as wrong in a dialect's field `name`, which the core calls one of `same`."""
    whys = (why if said in (name, *same) else f"{said} {why}" for said, why in wrong.fields.items())
    return Invalid({name: "; ".join(whys)})


def series_fields(said: dict[str, Any]) -> SeriesFields:
    """Returns what a request says of a series; "" and 0 mean "not given".

    Raises:
        Invalid: a field is wrong.
    """
    given: dict[str, Any] = {name: value for name, value in said.items() if value is False or value}
    wrong = check_sig(given.get("sig"))
    for name, bytes_max in LABEL_BYTES_MAX.items():
        text = given.get(name, "")
        if len(text.encode()) > bytes_max:
            wrong[name] = f"has {len(text.encode())} bytes; at most {bytes_max} are allowed"
        elif CONTROL.search(text):
            wrong[name] = "contains a control character"
    for name, (least, most) in RANGES.items():
        if not least <= given.get(name, least) <= most:
            wrong[name] = f"must be {least} to {'2^53 - 1' if most == COUNTER_MAX else most}"
    if given.get("chronology", "strict") not in ("strict", "free"):
        wrong["chronology"] = "must be strict or free"
    if "format" in given and ("prefix" in given or "suffix" in given):
        wrong["format"] = "stands for prefix and suffix: write them into it"
    wrong |= check_type(given.get("type", "invoice"))
    if wrong:
        raise Invalid(wrong)
    return SeriesFields(**given)
