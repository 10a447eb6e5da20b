"""What tests of bad input share: how a refusal looks, a series that must not change, and JSON of any shape."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
from hypothesis import strategies as st

from seriatim.keyspace import State
from stack import Up, entry_path, new_id, put_entry, put_series

BASE = "/sequence/v1"
HEADER = base64.urlsafe_b64encode(b'{"alg":"ES256"}').decode().rstrip("=")
"""Of a compact JWS."""
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=8), inside, max_size=4),
    max_leaves=8,
)

Standing = tuple[dict[str, Any], tuple[State, dict[Any, Any]]]
"""A series as it is shown, and where it stands in Redis, with the counters that are kept aside."""


def check_refused(answer: httpx.Response, status: int, *fields: str) -> dict[str, Any]:
    """Checks a refusal's status and shape, and that it names exactly these fields; returns it."""
    assert answer.status_code == status, (answer.status_code, answer.text[:500])
    assert answer.headers["Content-Type"] == "application/json"
    assert re.fullmatch("[A-Za-z0-9._:-]+", answer.headers["X-Request-Id"])
    content: dict[str, Any] = answer.json()
    assert set(content) == ({"code", "message", "fields"} if fields else {"code", "message"})
    assert re.fullmatch("[a-z_]+", content["code"])
    assert len(content["message"]) > 10
    assert content["message"].endswith(".") or fields
    assert set(content.get("fields", {})) == set(fields)
    assert all(content.get("fields", {"": "why"}).values())
    return content


class Numbered:
    """A series with an entry of 1 May 2024, the second month of its fiscal year."""

    day = "2024-05-01"

    def __init__(self, up: Up, client: httpx.Client, **more: Any) -> None:
        self.up = up
        self.client = client
        numbering = {"format": "B-%fyShort%-%incYearly%/%inc%", "fiscal_year_start": "04-01", "max_length": 16}
        self.series = put_series(client, **(numbering | {"charset": "A-Z0-9/-"} | more))
        self.path = f"{BASE}/series/{self.series}"
        self.entry = put_entry(client, self.series, date=self.day)["id"]
        self.known = self.standing()

    def put(self, body: Any) -> httpx.Response:
        """Puts a new entry."""
        return self.client.put(entry_path(self.series, new_id()), content=json.dumps(body))

    def post(self, body: Any = None, *, content: bytes | Iterator[bytes] | None = None) -> httpx.Response:
        """Posts a batch."""
        return self.client.post(f"{self.path}/entries", content=json.dumps(body) if content is None else content)

    def standing(self) -> Standing:
        redis = self.up.redis()
        found = (redis.hget(key, self.series) for key in redis.scan_iter("{s*}:series", count=10_000))
        (state,) = (State.unpack(packed) for packed in found if isinstance(packed, bytes))
        (aside,) = [redis.hgetall(key) for key in redis.scan_iter(f"*:{self.series}:counters", count=10_000)] or [{}]
        return self.client.get(self.path).json(), (state, aside)

    def look(self) -> tuple[Standing, Standing]:
        """How it stood at the last look, and how it stands now."""
        before, self.known = self.known, self.standing()
        return before, self.known
