"""Random requests against what `/openapi.json` says, in all dialects, by Schemathesis.

None is answered 5xx, or otherwise than described; refusals have their dialect's shape and consume no number. In CI
the requests are always the same. `make fuzz` tries others, for longer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from stack import Up, list_entries, put_entry, put_series

TESTS = Path(__file__).parents[1]
PROGRAM = [sys.executable, "-m", "schemathesis.cli", "--no-color"]
CONFIG = """
hooks = "schema_checks"
request-timeout = 30
[output.sanitization]
enabled = false
[warnings]
enabled = false

[auth.openapi]
sequence = {{ bearer = "{key}" }}
storno = {{ bearer = "{key}" }}
octobat = {{ username = "{key}", password = "" }}
dreamapply = {{ api_key = 'DREAM apikey="{key}"' }}
[parameters]
"header.X-Company" = "{company}"

# Rules that no schema can say answer 422: formats whose codes could repeat, dates that are out of order.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 401, 403, 404, 409, 422]

# A step by itself is quick: what is made in one is used in the next.
[phases.stateful.generation]
max-examples = 12

# Forms have no types: 0 and 1 are taken for false and true.
[[operations]]
include-path-regex = "_numbering_sequences$"
include-method = "POST"
checks = {{ negative_data_rejection = {{ enabled = false }} }}
"""


EXAMPLES = "3"
"""How many requests are drawn for each operation in CI, beside those that belong to its limits."""
TWINS = "^/(credit_note_|api/v8/)"
"""Paths that the same code answers as others; CI leaves them out here."""


SERIES = 12
"""How many series there are to begin with: requests deactivate some, and skip to the end of others."""
USED = 8
"""How many of them have an entry, so that no request can delete them."""
FIELDS: list[dict[str, Any]] = [
    {"prefix": "A-", "chronology": "free"},
    {"format": "%incYearly%/%yearLong%", "chronology": "free"},
    {"type": "credit_note", "padding": 5},
]


class Company:
    """A company of this test's own, with a few series; Schemathesis may do to them what it wants."""

    def __init__(self, up: Up, name: str) -> None:
        self.up = up
        self.id = up.json("companies", "create", name)["id"]
        self.key = up.json("keys", "create", "--company", name)["key"]
        with up.client(self.key) as client:
            self.series = [put_series(client, **FIELDS[number % len(FIELDS)]) for number in range(SERIES)]
            self.issued = [put_entry(client, series) for series in self.series[:USED]]

    def standing(self) -> list[Any]:
        """All that there is: each series with its entries, and what its report says is missing."""
        with self.up.client(self.key) as client:
            return [
                (one, list_entries(client, one["id"]), self._missing(client, one["id"])) for one in self._all(client)
            ]

    def _all(self, client: httpx.Client) -> Iterator[dict[str, Any]]:
        page = client.get("/sequence/v1/series?limit=1000").json()
        while True:
            yield from page["list"]
            if "cursor" not in page:
                return
            page = client.get("/sequence/v1/series", params={"cursor": page["cursor"]}).json()

    def _missing(self, client: httpx.Client, series: str) -> list[Any]:
        lines = client.get(f"/sequence/v1/series/{series}/report").json()["list"]
        return [line["missing"] for line in lines if line["missing"]]


def shown(entry: dict[str, Any]) -> tuple[Any, ...]:
    """What makes an entry this one."""
    return tuple(entry[name] for name in ("series_id", "id", "position", "code"))


class Schemathesis:
    """Its command line. It tries the same in CI, always; for `make fuzz` other things, and tells of them meanwhile."""

    def __init__(self, seconds: int | None, seed: int, directory: Path) -> None:
        self.live = seconds is not None
        self.flags = ["--generation-deterministic", "--max-examples", EXAMPLES, "--exclude-path-regex", TWINS]
        if seconds is not None:
            self.flags = ["--max-time", str(seconds), "--seed", str(seed)]
        self.told = directory / "told"
        self.series = directory / "series"
        self.config = directory / "schemathesis.toml"

    def run(self, up: Up, company: Company, key: str, *flags: str) -> set[tuple[Any, ...]]:
        """Makes requests for a company with a key; returns the entries that callers were told."""
        self.config.write_text(CONFIG.format(key=key, company=company.id))
        self.series.write_text(json.dumps(company.series))
        self.told.touch()
        check = {"SERIATIM_TOLD": str(self.told), "SERIATIM_SERIES": str(self.series)}
        check["SERIATIM_REFUSED"] = json.dumps(key != company.key)
        done = subprocess.run(
            [*PROGRAM, "--config-file", str(self.config), "run", f"{up.url}/openapi.json", *self.flags, *flags],
            env=os.environ | check | {"PYTHONPATH": str(TESTS)},
            cwd=self.config.parent,
            stdout=None if self.live else subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (done.stdout or "")[-20_000:]
        return {tuple(json.loads(line)) for line in self.told.read_text().splitlines()}


@pytest.fixture
def fuzzer(request: pytest.FixtureRequest, tmp_path: Path) -> Schemathesis:
    """Schemathesis, as this run of the tests is to use it."""
    return Schemathesis(request.config.option.fuzz_seconds, request.config.option.fuzz_seed, tmp_path)


@pytest.mark.parametrize(
    ("tags", "phases"),
    [
        ("sequence", "coverage"),
        ("sequence", "examples,fuzzing,stateful"),
        ("storno", "examples,coverage,fuzzing,stateful"),
        ("octobat", "examples,coverage,fuzzing,stateful"),
        ("dreamapply service", "coverage,fuzzing"),
    ],
)
def test_random_requests_are_answered_as_described_and_refused_ones_consume_nothing(
    shared_up: Up, fuzzer: Schemathesis, tags: str, phases: str
) -> None:
    # Given a company for random requests, and another one beside it
    company, bystander = (Company(shared_up, f"{name} {tags} {phases}") for name in ("fuzzed", "bystander"))
    shared_up.settled()
    before = bystander.standing()

    # When requests of a dialect are made from the description, good ones and bad ones
    flags = ["--phases", phases, *(f"--include-tag={tag}" for tag in tags.split())]
    told = fuzzer.run(shared_up, company, company.key, *flags)

    # Then what callers were told is all that there is: in order, and no number without an entry or a skip
    shared_up.settled()
    there = company.standing()
    assert len(told) > 10 or tags != "sequence"
    told |= {shown(one) for one in company.issued}
    assert {shown(one) for _, entries, _ in there for one in entries} == told
    for _, entries, missing in there:
        assert [one["position"] for one in entries] == list(range(1, len(entries) + 1))
        assert missing == []
    assert shared_up.json("verify")["sound"] is True

    # And the other company has seen nothing of it
    assert bystander.standing() == before


def test_random_requests_with_a_wrong_key_are_refused(shared_up: Up, fuzzer: Schemathesis) -> None:
    # Given a company with a revoked key
    company = Company(shared_up, "locked")
    shared_up.settled()
    revoked = shared_up.json("keys", "create", "--company", "locked")
    shared_up.run("keys", "revoke", revoked["id"])
    before = company.standing()

    # When requests of all dialects are made with it
    told = fuzzer.run(shared_up, company, revoked["key"], "--phases", "fuzzing")

    # Then none is answered, and nothing has changed
    assert told == set()
    assert company.standing() == before
