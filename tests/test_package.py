"""What is installed: the wheel brings its scripts and migrations along, a checkout uses those that lie there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import msgspec
import pytest

from seriatim import scripts

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as a release builds it."""
    directory = tmp_path_factory.mktemp("wheel")
    _run("-m", "hatchling", "build", "--target", "wheel", "--directory", str(directory), cwd=ROOT)
    (made,) = directory.glob("*.whl")
    return made


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    # Given the files of the checkout
    source = ROOT / "src"
    package = {
        path.relative_to(source).as_posix()
        for path in (source / "seriatim").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    lua = {f"seriatim/lua/{path.name}" for path in (ROOT / "lua").glob("*.lua")}

    # When the wheel is looked into
    held = set(zipfile.ZipFile(wheel).namelist())

    # Then they are all there, and nothing else
    assert {name for name in held if ".dist-info/" not in name} == package | lua
    assert {"seriatim/migrations/env.py", "seriatim/py.typed", "seriatim/lua/allocate.lua"} <= held
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in held)


def test_a_source_archive_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    # Given a source archive
    _run("-m", "hatchling", "build", "--target", "sdist", "--directory", str(tmp_path), cwd=ROOT)
    (archive,) = tmp_path.glob("*.tar.gz")

    # When a wheel is built from that alone
    pip = ["-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    _run(*pip, "--wheel-dir", str(tmp_path), str(archive), cwd=tmp_path)

    # Then it holds what the checkout's wheel holds
    (again,) = tmp_path.glob("*.whl")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_the_image_copies_all_that_the_wheel_is_made_of(wheel: Path, tmp_path: Path) -> None:
    # Given what the first stage of the Dockerfile copies, each file or directory under its own name
    stage = (ROOT / "Dockerfile").read_text().split("\nFROM ")[1]
    for copied in re.findall(r"^COPY (.+) (\S+)$", stage, re.MULTILINE):
        for name in copied[0].split():
            assert copied[1].removeprefix("./") in ("", ".", name)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, tmp_path)

    # When the wheel is built from that alone
    _run("-m", "hatchling", "build", "--target", "wheel", "--directory", "made", cwd=tmp_path)

    # Then nothing is missing from it
    (made,) = (tmp_path / "made").glob("*.whl")
    assert sorted(zipfile.ZipFile(made).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())
    assert (tmp_path / "requirements.lock").exists()


def test_an_installed_wheel_needs_no_checkout(wheel: Path, tmp_path: Path) -> None:
    # Given the wheel installed into a directory of its own
    target = tmp_path / "installed"
    pip = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    _run(*pip, "--target", str(target), str(wheel), cwd=tmp_path)

    # When it loads its scripts and makes a store
    program = """
import json, seriatim
from seriatim import scripts
folder = next(folder for folder in scripts.FOLDERS if folder.is_dir())
texts = {name: scripts.script(name).text for name in scripts.NAMES}
print(json.dumps({"package": seriatim.__file__, "folder": str(folder), "texts": texts}))
"""
    environment = {"PYTHONPATH": str(target), "SERIATIM_STORE_URL": f"sqlite:///{tmp_path / 'store.db'}"}
    found = msgspec.json.decode(_run("-c", program, cwd=tmp_path, **environment))
    migrated = _run("-m", "seriatim", "migrate", "--json", cwd=tmp_path, **environment)

    # Then both came from there, and the scripts are those of the checkout
    assert found["package"] == str(target / "seriatim" / "__init__.py")
    assert found["folder"] == str(target / "seriatim" / "lua")
    assert found["texts"] == {name: scripts.script(name).text for name in scripts.NAMES}
    assert msgspec.json.decode(migrated) == {"migrated": True}
    assert (tmp_path / "store.db").exists()


def test_a_checkout_uses_the_scripts_at_its_top() -> None:
    # Given these tests, which run on an editable installation
    origin = msgspec.json.decode(distribution("seriatim").read_text("direct_url.json") or "{}")
    assert origin["dir_info"] == {"editable": True}

    # When a script is looked for
    folder = next(folder for folder in scripts.FOLDERS if folder.is_dir())

    # Then it is the one that people edit
    assert folder == ROOT / "lua"


def test_the_lock_pins_every_package_by_hash_and_names_no_registry() -> None:
    # Given the lock and what the project asks for
    lock = (ROOT / "requirements.lock").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    assert {"include-group": "bench"} in groups["dev"]
    grouped = [name for group in groups.values() for name in group if isinstance(name, str)]
    wanted = [*project["project"]["dependencies"], *grouped]

    # When the lock is read line by line
    pinned = re.findall(r"^([a-z0-9-]+)==\S+ (?:; [^\\\n]+)?\\\n +--hash=sha256:[0-9a-f]{64}", lock, re.MULTILINE)
    lines = [line for line in lock.splitlines() if not line.lstrip().startswith(("#", "--hash=sha256:"))]

    # Then it is nothing but pinned packages, all that are wanted among them, from wherever they are had
    assert len(pinned) == len(lines)
    assert {re.split(r"[^a-z0-9-]", name)[0] for name in wanted} <= set(pinned)
    assert not re.search(r"://|@|--(index|extra|find|trusted)|^ *# +/", lock, re.MULTILINE)


def test_time_zones_need_nothing_of_the_system(tmp_path: Path) -> None:
    # Given a Python that looks for time zones in its packages alone, as on a slim machine
    program = """
import datetime, json, zoneinfo
from seriatim import formats
from seriatim.model import Numbering
now_ms = int(datetime.datetime(2026, 10, 25, 11, tzinfo=datetime.UTC).timestamp()) * 1000
formats.check(Numbering(timezone="Europe/Bucharest"))
day = formats.window("Europe/Bucharest", now_ms)
days = {formats.window(name, now_ms).today.day for name in formats.timezones()}
print(json.dumps([zoneinfo.TZPATH, len(formats.timezones()), (day.until_ms - day.from_ms) / 3_600_000, sorted(days)]))
"""

    # When it is asked which day it is in all of them, at 11:00 in UTC
    path, zones, hours, days = msgspec.json.decode(_run("-c", program, cwd=tmp_path, PYTHONTZPATH=""))

    # Then it knows them all, and the longest day in Bucharest; as Seriatim asks for what that takes
    assert path == []
    assert zones > 500
    assert hours == 25
    assert days == [24, 25, 26]
    assert any(re.match("tzdata>=", wanted) for wanted in distribution("seriatim").requires or [])


def _run(*arguments: str, cwd: Path, **environment: str) -> str:
    """Runs this Python elsewhere, and returns what it prints."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SERIATIM_", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=cwd, env=clean | environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
