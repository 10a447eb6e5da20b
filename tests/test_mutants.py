"""Deliberate bugs can still be planted where they were; `make mutants` plants them, and sees that tests find each."""

from __future__ import annotations

from pathlib import Path

import pytest

from mutants import MUTANTS, ROOT, Mutant, is_caught, planted


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_bug_can_be_planted(mutant: Mutant) -> None:
    text = (ROOT / mutant.path).read_text()
    assert planted(mutant, text) != text
    assert all((ROOT / word).exists() for word in mutant.tests.split() if word.startswith("tests/"))


def test_a_bug_is_caught_and_what_is_none_is_not(tmp_path: Path) -> None:
    # Given a bug and a change that is none
    bug = next(one for one in MUTANTS if one.name == "another epoch may allocate")
    none = Mutant("a comment", bug.path, bug.said, f"{bug.said} -- as it was", bug.tests)

    # When the same tests run on both, then they tell them apart
    assert is_caught(bug, tmp_path / "bug")
    assert not is_caught(none, tmp_path / "none")
