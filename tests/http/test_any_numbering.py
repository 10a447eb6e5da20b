"""Definitions, entries, batches and previews of any JSON at all: an answer, or a refusal that changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bad_input import ANYTHING, BASE, HEADER, Numbered, check_refused
from stack import Up, entry_path, list_entries, new_id, put_entry

IDS = ["5f0c4c8e-0000-4000-8000-000000000001", "5f0c4c8e-0000-4000-8000-000000000002"]
MARKERS = [
    "%inc%",
    "%incYearly%",
    "%incDaily%",
    "%yearLong%",
    "%fyShort%",
    "%month%",
    "%day%",
    "%%",
    "-",
    "7",
    "\u00e9",
]
WILD = (
    ANYTHING
    | st.sampled_from([2**53, 2**63, -(2**63) - 1, 2**64, 10**400, -(10**400)])
    | st.text(st.sampled_from("\ud800\udfff\0\x7f%-a\u2028"), max_size=6)
)
Fields = dict[str, st.SearchStrategy[Any]]
SERIES: Fields = {
    "format": st.lists(st.sampled_from(MARKERS), max_size=8).map("".join),
    "timezone": st.sampled_from(["UTC", "Pacific/Apia", "localtime"]),
    "fiscal_year_start": st.sampled_from(["04-01", "12-31", "02-29"]),
    "chronology": st.sampled_from(["strict", "free"]),
    "max_length": st.integers(1, 255),
    "charset": st.text("09-AZ\u00e9", max_size=8) | st.just("0-9A-Z/-"),
    "padding": st.integers(0, 20),
    "start": st.integers(0, 2**53),
    "name": st.text("a\u00e9", max_size=3),
}
ENTRY: Fields = {
    "date": st.dates(date(2000, 1, 1), date(2099, 12, 31)).map(str),
    "meta": st.dictionaries(st.text("ab", min_size=1, max_size=3), st.text("a\u00e9", max_size=3), max_size=3),
    "sig": st.just(f"{HEADER}.e30.c2ln"),
}
ID: Fields = {"id": st.sampled_from(IDS) | st.uuids().map(str)}


def objects(required: Fields, optional: Fields) -> st.SearchStrategy[Any]:
    """Objects whose fields are near to what they should be, and such with anything in some of them."""
    wild = {name: values | WILD for name, values in (required | optional).items()} | {"more": WILD}
    return st.fixed_dictionaries(required, optional=optional) | st.fixed_dictionaries({}, optional=wild)


def batches() -> st.SearchStrategy[Any]:
    lists = st.lists(st.fixed_dictionaries(ID, optional=ENTRY), min_size=1, max_size=3) | st.lists(
        objects(ID, ENTRY), max_size=3
    )
    return objects({"list": lists}, {})


def written(body: Any, *, ascii_only: bool) -> bytes:
    return json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


def contents(*bodies: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """JSON of these bodies, of any shape, and nested deeper than anything can be read."""
    deep = st.tuples(st.sampled_from(["list", "format", "date", "meta"]), st.sampled_from([1, 60, 2_000, 100_000]))
    return st.one_of(
        *(st.builds(written, body, ascii_only=st.booleans()) for body in (*bodies, *bodies, *bodies, WILD)),
        deep.map(lambda pair: b'{"%s": %s%s}' % (pair[0].encode(), b"[" * pair[1], b"]" * pair[1])),
    )


class Lasting(Numbered):
    """A series for all examples; what it shows and counts is known at any time."""

    def __init__(self, up: Up, client: httpx.Client) -> None:
        super().__init__(up, client, max_length=40, chronology="free")

    def check(self, answer: httpx.Response, *, issues: bool) -> None:
        """Checks that a refusal has its shape and changed nothing, and that an answer changed what it says."""
        (shown, counted), (now_shown, now_counted) = self.look()
        if answer.status_code != 200:
            assert answer.status_code in {400, 409, 422}, answer.text
            check_refused(answer, answer.status_code, *answer.json().get("fields", {}))
            assert (now_shown, now_counted) == (shown, counted)
        elif issues:
            before, after = counted[0].position, now_counted[0].position
            positions = {entry["position"] for entry in answer.json().get("list", [answer.json()])}
            assert {position for position in positions if position > before} == set(range(before + 1, after + 1))
        else:
            labels = {"name": "", "updated_at": ""}
            assert (now_shown | labels, now_counted) == (shown | labels, counted)


@pytest.fixture(scope="module")
def lasting(shared_up: Up) -> Iterator[Lasting]:
    """A series that is still whole when all examples are through."""
    with shared_up.client() as client:
        made = Lasting(shared_up, client)
        yield made
        entries = list_entries(client, made.series)
        assert [entry["position"] for entry in entries] == list(range(1, len(entries) + 1))
        assert len({entry["code"] for entry in entries}) == len(entries)
        assert made.known[0]["last_entry_id"] == entries[-1]["id"]


def send(client: httpx.Client, lasting: Lasting, place: str, content: bytes) -> httpx.Response:
    match place:
        case "series":
            return client.put(lasting.path, content=content)
        case "entry":
            return client.put(entry_path(lasting.series, new_id()), content=content)
        case "batch":
            return lasting.post(content=content)
        case _:
            return client.post(f"{BASE}/series/preview", content=content)


@pytest.mark.parametrize(
    ("place", "sent"),
    [
        ("series", contents(objects({}, SERIES))),
        ("entry", contents(objects({}, ENTRY))),
        ("batch", contents(batches())),
        ("preview", contents(objects({}, SERIES))),
    ],
)
def test_any_json_is_answered_or_refused_and_a_refusal_changes_nothing(
    lasting: Lasting, place: str, sent: st.SearchStrategy[bytes]
) -> None:
    seen: set[int] = set()
    new_and_taken = {"list": [{"id": new_id()}, {"id": lasting.entry, "meta": {"k": "v"}}]}

    @given(content=sent)
    @example(content=written(new_and_taken, ascii_only=True))
    @example(content=written({"list": [{"id": new_id()}]} if place == "batch" else {}, ascii_only=True))
    @hypothesis_settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
    def holds(content: bytes) -> None:
        answer = send(lasting.client, lasting, place, content)
        lasting.check(answer, issues=place in ("entry", "batch"))
        seen.add(answer.status_code)

    holds()
    assert {200, 400, 422} <= seen


@given(content=contents(objects({}, SERIES)))
@example(content=b"{}")
@hypothesis_settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_any_new_series_begins_as_its_preview_shows_or_is_not_made(lasting: Lasting, content: bytes) -> None:
    # Given any definition, when its preview is asked for, and a series of it
    client, series = lasting.client, new_id()
    preview = client.post(f"{BASE}/series/preview", content=content)
    answer = client.put(f"{BASE}/series/{series}", content=content)

    # Then its first code is the one that was shown, or both are refused alike
    if answer.status_code == 200:
        assert put_entry(client, series)["code"] == preview.json()["next"][0]
    else:
        check_refused(answer, answer.status_code, *answer.json().get("fields", {}))
        check_refused(client.get(f"{BASE}/series/{series}"), 404)
        assert (preview.status_code, preview.json()) == (answer.status_code, answer.json())
