"""The main job on real input: 20,000 numbers through 64 connections, all of them proved afterwards."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import uvloop

from callers import Request, put_all
from stack import Up, list_entries, new_id, put_series, unsettled

ENTRIES = 20_000
DATA = Path(os.environ.get("SERIATIM_TEST_DATA", Path(__file__).parents[2] / "shared" / "data" / "invoices.jsonl"))
STAND_IN = [
    {"country": country, "type": kind, "supplier": f"Társaság {country} №{number}", "customer": None, "payable": "1.50"}
    for number, country in enumerate(("AE", "AR", "ES", "RO", "NZ"))
    for kind in ("invoice", "credit_note")
]
"""Where the data is not at hand; SERIATIM_TEST_DATA names a file of such JSON lines."""


def invoices() -> list[dict[str, Any]]:
    return [json.loads(line) for line in DATA.read_text().splitlines()] if DATA.exists() else STAND_IN


def make_requests(up: Up) -> list[Request]:
    """A series for each country and type; each invoice many times over, with a fresh id each."""
    series: dict[tuple[str, str], str] = {}
    requests: list[Request] = []
    with up.client() as client:
        for invoice in invoices():
            kind = invoice["country"], invoice["type"]
            if kind not in series:
                prefix = f"{kind[0]}-{kind[1][:1].upper()}-"
                series[kind] = put_series(client, prefix=prefix, padding=6, type=kind[1], name=" ".join(kind))
    while len(requests) < ENTRIES:
        for invoice in invoices():
            meta = {name: value for name, value in invoice.items() if isinstance(value, str)}
            requests.append((series[invoice["country"], invoice["type"]], new_id(), meta))
    return requests[:ENTRIES]


@pytest.mark.timeout(600)
def test_twenty_thousand_real_invoices_are_numbered_once_and_proved(up: Up) -> None:
    # Given invoices of many countries and types, and a series for each kind
    requests = make_requests(up)

    # When they are numbered through 64 connections
    told = uvloop.run(put_all([up.url], up.key, requests))
    assert len(told) == ENTRIES
    assert not any(one.replayed for one in told.values())

    # Then every answer is in the store, signed, and equals what the store holds
    up.settled()
    by_series: dict[str, set[str]] = defaultdict(set)
    for series, entry, _ in requests:
        by_series[series].add(entry)
    with up.client() as client:
        for series, entries in by_series.items():
            listed = list_entries(client, series)
            assert {entry["id"] for entry in listed} == entries
            assert [entry["position"] for entry in listed] == list(range(1, len(entries) + 1))
            assert len({entry["code"] for entry in listed}) == len(entries)
            for held in listed:
                assert len(held["sigs"]) == 1
                assert unsettled(held) == unsettled(told[held["id"]].body)

    # And the chains and signatures of all series hold
    verified = up.json("verify")
    assert (verified["sound"], verified["entries"], verified["findings"]) == (True, ENTRIES, [])

    # And the same requests again give the same answers and consume nothing
    again = uvloop.run(put_all([up.url], up.key, requests))
    assert all(one.replayed for one in again.values())
    assert {entry: unsettled(one.body) for entry, one in again.items()} == {
        entry: unsettled(one.body) for entry, one in told.items()
    }
    assert up.json("verify")["entries"] == ENTRIES
