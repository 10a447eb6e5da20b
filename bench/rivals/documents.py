"""What the rivals take and answer: ours in size, but for its chain, signatures and scopes, which they do not have."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

KEY = os.environ.get("BENCH_KEY", "rival_0000000000000000000000000000000000000")
"""The one API key that they know. To compare with it is all of their access control."""
BEARER = f"Bearer {KEY}"
COMPANY = "5f2c8f0e-6a3b-4f0f-9d8e-2b1c7a9e4d10"
BATCH_MAX = 256
META = {
    "country": "AE",
    "type": "invoice",
    "series": "SAMPLE",
    "code": "001",
    "issue_date": "2022-02-01",
    "currency": "AED",
    "supplier": "Provide One LLC",
    "customer": "Sample Consumer",
    "payable": "1795.50",
}
"""What every entry carries."""

encode = msgspec.json.Encoder().encode


class Body(msgspec.Struct):
    """A request's body."""

    meta: dict[str, str] = {}


decode = msgspec.json.Decoder(Body).decode


def now_ms() -> int:
    """Returns the time, in ms since 1970."""
    return int(datetime.now(UTC).timestamp() * 1000)


def document(series: str, entry: str, number: int, meta: Any, created_ms: int) -> dict[str, Any]:
    """Returns what a rival answers for an entry. `meta` is a map, or the JSON of one as `msgspec.Raw`."""
    created = _written(created_ms)
    return {
        "id": entry,
        "series_id": series,
        "code": f"INV-{number:06d}",
        "number": number,
        "date": created[:10],
        "meta": meta,
        "state": "issued",
        "created_at": created,
        "updated_at": created,
        "company_id": COMPANY,
    }


@lru_cache(64)
def _written(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


SAMPLE = encode(
    document(
        COMPANY,
        COMPANY,
        1000,
        META,
        now_ms(),
    )
)
"""An answer of the usual size."""
