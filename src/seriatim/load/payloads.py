"""The documents that numbers are asked for: their metas, encoded beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from seriatim.errors import ConfigError
from seriatim.model import canonical_meta

T = TypeVar("T")

EXAMPLE = {
    "country": "RO",
    "type": "invoice",
    "issue_date": "2026-01-31",
    "currency": "RON",
    "supplier": "Exemplu Furnizor SRL",
    "customer": "Exemplu Client SA",
    "payable": "1234.50",
}


class Payload(msgspec.Struct, frozen=True):
    """A meta in the forms that are needed of it."""

    meta: dict[str, str]
    canonical: bytes


def read(path: Path | None) -> list[Payload]:
    """Returns the metas of a file of JSON lines; without a file, a made-up one.

    Numbers and truth values become texts, and null is left out: a meta is made of texts.

    Raises:
        ConfigError: the file holds something else.
    """
    if path is None:
        return [_payload(EXAMPLE)]
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            fields = msgspec.json.decode(line, type=dict[str, str | int | float | bool | None])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            why = f"Line {number} of {path} is not an object of texts and numbers: {error}."
            raise ConfigError(why) from error
        found.append(_payload({name: _text(value) for name, value in fields.items() if value is not None}))
    if not found:
        raise ConfigError(f"{path} has no lines.")
    return found


def _payload(meta: dict[str, str]) -> Payload:
    return Payload(meta, canonical_meta(meta))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def pick(forms: Sequence[T], entry_id: str) -> T:
    """Returns the meta that goes with an id, in some form: nobody needs to keep which one it was."""
    return forms[int(entry_id[-8:], 16) % len(forms)]
