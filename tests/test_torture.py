"""Short tortures of real stacks: nothing is lost or repeated, and what halts is recovered."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from pathlib import Path

import pytest

from stack import put_entry, put_series, running
from torture import planted, rounds
from torture.journal import Journal
from torture.rounds import Plan

HERE = Path(__file__).parent


@pytest.mark.parametrize(("stack", "losses"), [("embedded", 1), ("postgresql", 0)])
def test_a_short_torture_finds_nothing(stack: str, losses: int) -> None:
    # Given a stack under load, when it is hurt, halted and recovered
    seed = random.randrange(2**32)
    journal = Journal()
    rounds.run(Plan(stack, seed, faults=8, halts=0, losses=losses, rate=60, deadline_s=5), journal)

    # Then the audits find nothing
    assert journal.findings == [], f"seed {seed}"
    assert journal.faults.total() == 8 + losses
    assert journal.entries > 300


@pytest.mark.parametrize("plant", planted.PLANTS)
def test_a_torture_finds_what_is_planted(plant: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a Seriatim with a fault, when it is tortured, which leaves its files to be looked at
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    journal = Journal()
    program = [sys.executable, str(HERE / "torture" / "planted.py"), plant, "seriatim"]
    rounds.run(Plan("sqlite", 1, faults=1, halts=0, losses=0, deadline_s=5, patience_s=5), journal, program)

    # Then it is found: by the audit, or because Seriatim stops, as it also does for some
    assert any("replay" in found or "'halted': '" in found for found in journal.findings)


def test_what_no_disk_holds_any_more_cannot_be_noticed() -> None:
    # Given answered numbers that are not settled, in a log that ends before the last two: a disk lied about a sync
    with running(workers=0) as up:
        with up.client() as client:
            series = put_series(client, prefix="A-")
            kept = [put_entry(client, series) for _ in range(3)]
            log = up.directory.redis_log
            assert log
            whole = log.stat().st_size
            lost = [put_entry(client, series) for _ in range(2)]
        up.kill()
        os.truncate(log, whole)

        # When it is started again, then nothing looks wrong, and numbers that were answered come again
        up.start()
        assert up.state == "ready"
        with up.client() as client:
            again = [put_entry(client, series) for _ in range(2)]
            assert [entry["code"] for entry in again] == [entry["code"] for entry in lost]
            assert [put_entry(client, series, entry["id"])["code"] for entry in kept] == ["A-1", "A-2", "A-3"]
        assert up.json("doctor")["findings"][0]["kind"] == "worker"
        assert up.json("verify")["sound"]
