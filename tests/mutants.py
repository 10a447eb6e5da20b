"""Deliberate bugs, and the tests that find each: `make mutants` plants one after the other in a copy of the tree.

A mutant says which text of which file it replaces; test_mutants.py holds that each text is still there, once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[1]
TREE = ("src", "lua", "tests", "bench", "docs", "pyproject.toml")
AT_MOST_S = 200


class Mutant(msgspec.Struct, frozen=True):
    """A bug: in `path`, `says` stands where the tree has `said`; `tests` must find it."""

    name: str
    path: str
    said: str
    says: str
    tests: str


MUTANTS = (
    Mutant(
        "a replay takes a number",
        "lua/allocate.lua",
        "  if value then\n",
        "  if value then\n    redis.call('HINCRBY', state.shard.key, 'written', 1)\n",
        "tests/test_scripts.py",
    ),
    Mutant(
        "an id whose bucket is missing is new",
        "lua/index.lua",
        "ids.lost or not (found[1] or found[2])\n",
        "false\n",
        "tests/test_scripts.py -k deleted_key",
    ),
    Mutant(
        "an id of another series of the call is known",
        "lua/allocate.lua",
        "if twin and twin > state.before then",
        "if twin then",
        "tests/test_scripts.py -k one_call",
    ),
    Mutant(
        "a second run of a call is behind the notes before the first",
        "lua/allocate.lua",
        "k = count == 0 and state.k or 0,",
        "k = state.k,",
        "tests/test_outbox.py -k thousand",
    ),
    Mutant(
        "another epoch may allocate",
        "lua/series.lua",
        "shard[1] ~= epoch or shard[2] ~= generation then",
        "shard[2] ~= generation then",
        "tests/test_scripts.py -k epoch",
    ),
    Mutant(
        "another generation may allocate",
        "lua/series.lua",
        "shard[1] ~= epoch or shard[2] ~= generation then",
        "shard[1] ~= epoch then",
        "tests/test_scripts.py -k epoch",
    ),
    Mutant(
        "a halted shard goes on",
        "lua/series.lua",
        "  elseif shard[3] then\n",
        "  elseif shard[3] == '' then\n",
        "tests/test_scripts.py -k halted",
    ),
    Mutant(
        "a hash that is missing is zero",
        "lua/series.lua",
        "if not (h[4] and h[5] and h[6]) then",
        "if not (h[5] and h[6]) then",
        "tests/test_scripts.py -k 'deleted_key or cannot_go_on'",
    ),
    Mutant(
        "an outbox that lacks items goes on",
        "lua/series.lua",
        "length ~= waiting and",
        "length > waiting and",
        "tests/test_scripts.py -k deleted",
    ),
    Mutant(
        "settling drops one item too many",
        "lua/settle.lua",
        "text(upto + 1))",
        "text(upto + 2))",
        "tests/test_scripts.py tests/test_outbox.py -k settl",
    ),
    Mutant(
        "large numbers are written as 1e+14",
        "lua/series.lua",
        "  return format('%d', number)\n",
        "  return '' .. number\n",
        "tests/test_scripts_explained.py -k digit_by_digit",
    ),
    Mutant(
        "everysec is accepted",
        "src/seriatim/recovery.py",
        'if ack == "fsync" or name in SETTINGS_FOR_MEMORY}',
        'if name != "appendfsync"}',
        "tests/test_recovery.py -k settings",
    ),
    Mutant(
        "a number is answered before it is on disk, unless one asks for that",
        "src/seriatim/config.py",
        'ack: Literal["fsync", "memory"] = "fsync"',
        'ack: Literal["fsync", "memory"] = "memory"',
        "tests/test_config.py tests/test_embedded.py -k 'defaults or durability'",
    ),
    Mutant(
        "the generation is not raised",
        "src/seriatim/recovery.py",
        "    store.begin_generation(data.generation)\n",
        "    return Standing(data.epoch, data.generation)\n    store.begin_generation(data.generation)\n",
        "tests/test_recovery.py -k 'generation or copy'",
    ),
    Mutant(
        "positions are not compared at a meeting",
        "src/seriatim/recovery.py",
        "        check_positions(client, data, all_series, found)\n",
        "",
        "tests/test_recovery.py -k 'copy or lost_part'",
    ),
    Mutant(
        "claims are not compared at a meeting",
        "src/seriatim/recovery.py",
        "        check_claims(client, data, all_series, store.loaded_companies(data.epoch))\n",
        "",
        "tests/test_recovery.py -k claims",
    ),
    Mutant(
        "only one shard is halted",
        "src/seriatim/recovery.py",
        "            for shard in range(store.data_set().shards):\n",
        "            for shard in range(1):\n",
        "tests/test_recovery.py -k contradiction",
    ),
    Mutant(
        "what is about to be committed is settled already",
        "src/seriatim/worker.py",
        "            self._store.commit(read.standing, slices)\n",
        "            upto, count = read.waiting.upto, read.waiting.count\n"
        "            scripts.settle(\n"
        "                self.client, read.standing, read.shard, after=read.waiting.after, upto=upto, count=count\n"
        "            )\n"
        "            self._store.commit(read.standing, slices)\n",
        "tests/test_worker.py -k killed_at",
    ),
    Mutant(
        "records are not compared with the store's",
        "src/seriatim/worker.py",
        "            if [_unsettled(record) for record in held] != stored:\n",
        "            if not held:\n",
        "tests/test_worker.py -k differ",
    ),
    Mutant(
        "a series is moved from wherever it stands",
        "src/seriatim/store.py",
        'series.c.position == sa.bindparam("from_position"), series.c.k == sa.bindparam("from_k")',
        'sa.bindparam("from_position") >= 0, sa.bindparam("from_k") >= 0',
        "tests/test_worker.py -k 'behind or fork'",
    ),
    Mutant(
        "a worker of an old generation commits",
        "src/seriatim/store.py",
        "if tuple(current) != (standing.epoch, standing.generation, state):",
        "if current.state != state:",
        "tests/test_worker.py -k behind",
    ),
    Mutant(
        "a recovery asks nobody",
        "src/seriatim/rebuild.py",
        "            if undecided:\n",
        "            if undecided and not self._ack:\n",
        "tests/test_rebuild.py tests/test_doctor.py -k 'old_copy or anew'",
    ),
    Mutant(
        "a recovery keeps the epoch",
        "src/seriatim/rebuild.py",
        "standing = Standing(data.next_epoch, data.generation + 1)",
        "standing = Standing(data.epoch, data.generation + 1)",
        "tests/test_rebuild.py -k 'nothing_had_happened or by_itself'",
    ),
    Mutant(
        "what only Redis holds is not saved by a recovery",
        "src/seriatim/rebuild.py",
        "            saved = self._save(data) if legible else 0\n",
        "            saved = 0\n",
        "tests/test_rebuild.py -k only_redis_held",
    ),
)


def planted(mutant: Mutant, text: str) -> str:
    """The text of the mutant's file with its bug."""
    assert text.count(mutant.said) == 1, f"{mutant.path} has not once: {mutant.said}"
    return text.replace(mutant.said, mutant.says)


def is_caught(mutant: Mutant, directory: Path) -> bool:
    """Whether the mutant's tests fail on a copy of the tree that has it, made in `directory`."""
    directory.mkdir(exist_ok=True)
    for name in TREE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, directory / name)
    file = directory / mutant.path
    file.write_text(planted(mutant, file.read_text()))
    where = os.pathsep.join(str(directory / name) for name in ("src", "tests", "bench"))
    command = f'"{sys.executable}" -m pytest -n 0 -x -p no:cacheprovider {mutant.tests}'
    environment = dict(os.environ) | {"PYTHONPATH": where, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, shell=True, cwd=directory, env=environment, capture_output=True, timeout=AT_MOST_S, check=False
    )
    if done.returncode not in (0, 1):  # of pytest: neither passed nor failed
        raise SystemExit(done.stdout.decode() + done.stderr.decode())
    return done.returncode == 1


def main() -> None:
    """Plants all, or those whose names contain an argument; ends with 1 when one is not caught."""
    missed = []
    for mutant in MUTANTS:
        if not all(word in mutant.name for word in sys.argv[1:]):
            continue
        with tempfile.TemporaryDirectory(prefix="mutant-") as directory:
            caught = is_caught(mutant, Path(directory))
        sys.stdout.write(f"{'caught' if caught else 'MISSED'}  {mutant.name}: {mutant.tests}\n")
        sys.stdout.flush()
        if not caught:
            missed.append(mutant.name)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
