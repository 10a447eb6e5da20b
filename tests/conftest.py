"""Servers for the tests. Nothing here stands in for anything: each is the real thing."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from dialects import Tenant
from faketime import Clock
from postgres import Postgres
from seriatim.store import Store
from stack import Up, Valkey, running


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a path short enough for a socket in it."""
    path = Path(tempfile.mkdtemp(prefix="seriatim-test-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


ON_BOTH = {"test_scripts", "test_scripts_explained", "test_line"}
"""Modules whose tests run on Valkey and on Redis. `--redis` is for all."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Says which tests run on which server."""
    if "valkey" in metafunc.fixturenames and metafunc.module.__name__ in ON_BOTH:
        metafunc.parametrize("valkey", ["valkey", "redis"], indirect=True)


@pytest.fixture
def valkey(request: pytest.FixtureRequest, directory: Path) -> Iterator[Valkey]:
    """A Valkey of this test's own; beside PostgreSQL a Redis, as in docker-compose.yml."""
    with_postgresql = "store_url" in request.fixturenames and "postgresql" in request.getfixturevalue("store_url")
    server = Valkey(directory, brand=getattr(request, "param", "redis" if with_postgresql else None))
    yield server
    server.kill()


def pytest_configure(config: pytest.Config) -> None:
    """Does what `--redis` says."""
    if config.option.redis:
        Valkey.brand = "redis"


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Postgres]:
    """A PostgreSQL server for this session."""
    path = Path(tempfile.mkdtemp(prefix="seriatim-pg-"))
    server = Postgres(path).start()
    yield server
    server.stop()
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def postgresql_url(postgresql: Postgres) -> str:
    """An empty database in it."""
    return postgresql.create_database()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, directory: Path) -> str:
    """An empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{directory / 'store.db'}"
    url: str = request.getfixturevalue("postgresql_url")
    return url


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """A store with its schema, not yet live."""
    made = Store(store_url)
    made.migrate()
    made.prepare(shards=4)
    yield made
    made.close()


@pytest.fixture
def up(directory: Path) -> Iterator[Up]:
    """A running `seriatim up` of this test's own."""
    stack = Up(directory).start()
    assert stack.state == "ready"
    yield stack
    stack.stop()


@pytest.fixture(scope="module")
def shared_up() -> Iterator[Up]:
    """A running `seriatim up` that the tests of a module share: each makes series of its own."""
    with running() as stack:
        yield stack


@pytest.fixture(scope="session")
def common_up() -> Iterator[Up]:
    """A running `seriatim up` that many modules share: each test has a company of its own."""
    with running() as stack:
        yield stack
        stack.stop()
        assert [line for line in stack.directory.log.read_text().splitlines() if "a fault of ours" in line] == []


@pytest.fixture
def tenant(common_up: Up) -> Iterator[Tenant]:
    """A company of the common server."""
    with Tenant(common_up) as made:
        yield made


@pytest.fixture(scope="session")
def clocked_up() -> Iterator[tuple[Up, Clock]]:
    """A running `seriatim up` without workers that many modules share, and the clock that it goes by."""
    path = Path(tempfile.mkdtemp(prefix="seriatim-test-"))
    clock = Clock(path / "clock", "2025-01-01")
    stack = Up(path, workers=0, environment=clock.environment).start()
    assert stack.state == "ready"
    yield stack, clock
    stack.stop()
    assert [line for line in stack.directory.log.read_text().splitlines() if "a fault of ours" in line] == []
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def client(shared_up: Up) -> Iterator[httpx.Client]:
    """An HTTP client of the module's server."""
    with shared_up.client() as made:
        yield made


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds what `make fuzz` says."""
    group = parser.getgroup("seriatim")
    group.addoption("--redis", action="store_true", help="start Redis wherever a test starts a Valkey of its own")
    group.addoption("--fuzz-seconds", type=int, help="try random requests for so long, other ones each time")
    seed = random.randrange(2**32)
    group.addoption("--fuzz-seed", type=int, default=seed, help="try those of this seed again")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Says how to try the same random requests again."""
    seconds, seed = config.option.fuzz_seconds, config.option.fuzz_seed
    return [f"again: make fuzz ARGS='--fuzz-seconds {seconds} --fuzz-seed {seed}'"] if seconds else []


def pytest_xdist_auto_num_workers() -> int:
    """Tests wait for servers much of their time."""
    return (os.cpu_count() or 1) + 1
