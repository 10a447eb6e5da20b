"""Measures Seriatim beside its rivals: `make bench` measures all and keeps it in bench/results/.

`python -m bench` measures the parts that are named, or all, and prints tables; it keeps them with --results alone.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT / "tests")]  # tests: whose helpers call scripts

import batches  # noqa: E402
import growth  # noqa: E402
import guard  # noqa: E402
import puts  # noqa: E402
import report  # noqa: E402
import settlement  # noqa: E402
from contenders import NAMES, TITLES, Arena  # noqa: E402
from machine import about, check_disk  # noqa: E402
from options import FULL, QUICK, Options  # noqa: E402
from results import Results, Stage, load, save  # noqa: E402

PARTS: dict[str, Callable[[Arena, Options, Results], object]] = {
    "puts": lambda arena, options, _: puts.measure(arena, options),
    "cells": lambda arena, options, _: puts.measure_cells(arena, options),
    "open": lambda arena, options, results: puts.measure_open(arena, options, results.puts),
    "sustained": lambda arena, options, _: puts.measure_sustained(arena, options),
    "steady": lambda arena, options, results: puts.measure_steady(arena, options, results.puts),
    "batches": lambda arena, options, _: batches.measure(arena, options),
    "settlement": lambda arena, options, _: settlement.measure(arena, options),
    "growth": lambda arena, options, _: growth.measure(arena, options),
    "guard": lambda arena, options, _: guard.measure(arena, options),
    "clients": lambda arena, options, _: puts.measure_clients(arena, options),
}
FILE = "measured.json"
FIGURES = {field.name: field.type for field in msgspec.structs.fields(Options) if field.type in (int, float)}


def main() -> None:
    """Measures parts one after the other, and keeps each when it is done."""
    parser, arguments = _arguments()
    if arguments.results and arguments.only:
        parser.error("--only prints what it measured: results that are kept are of all contenders")
    check_disk(arguments.directory)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that contenders end, and their data go
    results = load(arguments.results / FILE) if arguments.results else Results()
    with _scratch(arguments.directory) as scratch, closing(Arena(scratch)) as arena:
        results.about = about(arena.directory())
        for part in arguments.parts or PARTS:
            _measure(part, arena, _options(arguments), results)
            if arguments.results:
                arguments.results.mkdir(parents=True, exist_ok=True)
                save(arguments.results / FILE, results)
                report.write(results, arguments.results)
    print(report.reached(results) if arguments.results else report.text(results))


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """A directory for what contenders have. It stays when a part fails, with the logs that may say why."""
    made = Path(tempfile.mkdtemp(prefix="bench-", dir=directory))
    with ExitStack() as left:
        left.callback(shutil.rmtree, made, ignore_errors=True)
        try:
            yield made
        except (Exception, SystemExit):
            left.pop_all()
            print(f"What the contenders had, with their logs, is in {made}.", file=sys.stderr)
            raise


def _arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all, unless some are named")
    known = ", ".join(f"{name} ({title})" for name, title in TITLES.items())
    parser.add_argument("--only", type=_names, default=(), metavar="NAMES", help=f"of {known}; separated by commas")
    parser.add_argument("--full", action="store_true", help="longer, with millions of entries")
    parser.add_argument("--results", type=Path, help="where to keep them; parts that are not measured stay")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on a disk, for data")  # noqa: S108
    for name, kind in FIGURES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help="instead of the usual figure")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(unknown)}")
    return parser, arguments


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(NAMES):
        raise argparse.ArgumentTypeError(f"there is no contender {', '.join(unknown)}")
    return names


def _options(arguments: argparse.Namespace) -> Options:
    given = {name: getattr(arguments, name) for name in FIGURES if getattr(arguments, name) is not None}
    given["contenders"] = arguments.only or NAMES
    return msgspec.structs.replace(FULL if arguments.full else QUICK, **given)


def _measure(part: str, arena: Arena, options: Options, results: Results) -> None:
    options.say(part)
    commit = _commit()
    setattr(results, part, PARTS[part](arena, options, results))
    results.stages[part] = Stage(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", commit, options, results.about["Disk"])


def _commit() -> str:
    """Returns what code is measured; that of older results may have been changed."""
    said = [_git("rev-parse", "--short", "HEAD"), _git("status", "--porcelain", "--", "src", "lua", "bench/*.[cp]*")]
    return f"{said[0]}, changed" if said[1] else said[0]


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=False, capture_output=True, text=True, cwd=ROOT).stdout.strip()


main()
