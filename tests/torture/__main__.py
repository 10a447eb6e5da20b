"""`python -m torture`: tortures a stack for a while, and says what was done and found."""

from __future__ import annotations

import argparse
import random
import sys

from torture.journal import Journal
from torture.rounds import Plan, run
from torture.services import STACKS


def main() -> None:
    """Reads the flags, and ends with 1 when anything was found."""
    parser = argparse.ArgumentParser(prog="torture", description=__doc__, formatter_class=_Defaults)
    parser.add_argument("--stack", choices=[*STACKS, "all"], default="all", help="what to torture")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="draws all faults")
    parser.add_argument("--storms", type=int, default=1, help="rounds of faults that pass by themselves")
    parser.add_argument("--faults", type=int, default=60, help="how many in a storm")
    parser.add_argument("--halts", type=int, default=9, help="damages that must be recovered, while all is settled")
    parser.add_argument("--losses", type=int, default=5, help="damages that lose numbers")
    parser.add_argument("--rate", type=float, default=150, help="requests a second")
    given = parser.parse_args()
    sys.stdout.write(f"again: make torture ARGS='{_again(given)}'\n")
    journal = Journal()
    for stack in STACKS if given.stack == "all" else [given.stack]:
        journal.say(f"{stack}, seed {given.seed}")
        run(Plan(**{**vars(given), "stack": stack}), journal)
    sys.stdout.write(f"{journal.summary()}\n")
    sys.exit(1 if journal.findings else 0)


def _again(given: argparse.Namespace) -> str:
    return " ".join(f"--{name} {value}" for name, value in vars(given).items())


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults."""


if __name__ == "__main__":
    main()
