"""The main job on real input: 20,000 numbers through 64 connections, all of them proved afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from stack import Up, entry_path, list_entries, new_id, put_series, unsettled

ENTRIES = 20_000
CONNECTIONS = 64
DATA = Path(os.environ.get("SERIATIM_TEST_DATA", Path(__file__).parents[2] / "shared" / "data" / "invoices.jsonl"))
STAND_IN = [
    {"country": country, "type": kind, "supplier": f"Társaság {country} №{number}", "customer": None, "payable": "1.50"}
    for number, country in enumerate(("AE", "AR", "ES", "RO", "NZ"))
    for kind in ("invoice", "credit_note")
]
"""Where the data is not at hand; SERIATIM_TEST_DATA names a file of such JSON lines."""

Request = tuple[str, str, dict[str, str]]


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


async def put_all(up: Up, requests: list[Request]) -> tuple[dict[str, dict[str, Any]], int]:
    """Puts all through 64 connections at once; answers each body by the entry's id, and how many were replays.

    Speaks HTTP by itself: a client library would need more of the machine than the service that is tested.
    """
    waiting = iter(requests)
    told: dict[str, dict[str, Any]] = {}
    replays = 0
    host, port = up.url.removeprefix("http://").split(":")

    async def caller() -> None:
        nonlocal replays
        reader, writer = await asyncio.open_connection(host, int(port))
        for series, entry, meta in waiting:
            body = msgspec.json.encode({"meta": meta})
            headers = f"Host: {host}\r\nAuthorization: Bearer {up.key}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(f"PUT {entry_path(series, entry)} HTTP/1.1\r\n{headers}".encode() + body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = re.search(r"content-length: (\d+)", head)
            assert length is not None, head
            answer = await reader.readexactly(int(length[1]))
            assert head.startswith("http/1.1 200 "), answer
            told[entry] = msgspec.json.decode(answer)
            replays += "idempotent-replayed: true" in head
        writer.close()

    await asyncio.gather(*(caller() for _ in range(CONNECTIONS)))
    return told, replays


@pytest.mark.timeout(600)
def test_twenty_thousand_real_invoices_are_numbered_once_and_proved(up: Up) -> None:
    # Given invoices of many countries and types, and a series for each kind
    requests = make_requests(up)

    # When they are numbered through 64 connections
    told, replays = uvloop.run(put_all(up, requests))
    assert len(told) == ENTRIES
    assert replays == 0

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
                assert unsettled(held) == unsettled(told[held["id"]])

    # And the chains and signatures of all series hold
    verified = up.json("verify")
    assert (verified["sound"], verified["entries"], verified["findings"]) == (True, ENTRIES, [])

    # And the same requests again give the same answers and consume nothing
    again, replays = uvloop.run(put_all(up, requests))
    assert replays == ENTRIES
    assert {entry: unsettled(body) for entry, body in again.items()} == {
        entry: unsettled(body) for entry, body in told.items()
    }
    assert up.json("verify")["entries"] == ENTRIES
