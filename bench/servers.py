"""Database servers for the rivals, on disk and synced before every answer: Valkey as ours runs it, and PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import redis

from machine import POSTGRESQL, kill
from seriatim.directory import DataDirectory
from seriatim.embedded import server_arguments, server_environment

SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "512MB",
    "wal_buffers": "16MB",
    "max_wal_size": "8GB",  # no checkpoint, and none of its full page images, in a short run
    "checkpoint_timeout": "30min",
    "max_connections": "300",
    "jit": "off",
    "listen_addresses": "",
}
"""Durable, and otherwise in PostgreSQL's favour. The rest is as it comes."""


def until(condition: Callable[[], bool], otherwise: str, process: subprocess.Popen[Any], within_s: float = 30) -> None:
    """Waits for a condition, for as long as a process runs."""
    give_up = time.monotonic() + within_s
    while not condition():
        if process.poll() is not None or time.monotonic() > give_up:
            raise SystemExit(otherwise)
        time.sleep(0.02)


class Valkey:
    """A Valkey as `seriatim up` runs it: append-only file, fsync always."""

    def __init__(self, directory: Path) -> None:
        self._directory = DataDirectory(directory)
        self._directory.redis.mkdir(parents=True, exist_ok=True)
        self._directory.socket.parent.mkdir(parents=True, exist_ok=True)
        self.url = f"unix://{self._directory.socket}"
        self.start()

    def start(self) -> None:
        """Starts it, anew or on what it had."""
        with self._directory.log.open("ab") as log:
            command, environment = server_arguments(self._directory), server_environment(os.environ)
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        with redis.Redis.from_url(self.url) as client:
            until(lambda: _answers(client), "Valkey does not start", self.process)

    def kill(self) -> None:
        """Ends it at once, as a power cut would."""
        self.process.kill()
        self.process.wait()

    def environment(self) -> dict[str, str]:
        """Says to a rival where it is."""
        return {"BENCH_REDIS_URL": self.url}


def _answers(client: redis.Redis) -> bool:
    with contextlib.suppress(redis.exceptions.RedisError):
        return bool(client.ping())
    return False


class PostgreSQL:
    """A PostgreSQL from its wheel, with a database `bench`, on a socket in its directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.user = _prepare_user(directory) if os.geteuid() == 0 else None
        if not (directory / "PG_VERSION").exists():
            make: list[str | Path] = [
                POSTGRESQL / "initdb",
                "--auth=trust",
                "--encoding=utf8",
                "-U",
                "postgres",
                "-D",
                directory,
            ]
            subprocess.run([*make, "--no-sync"], check=True, capture_output=True, user=self.user)
            self.start()
            with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
                connection.execute("CREATE DATABASE bench")
        else:
            self.start()

    def start(self) -> None:
        """Starts it, anew or on what it had."""
        settings = SETTINGS | {"unix_socket_directories": str(self.directory)}
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self.directory / "log").open("ab") as log:
            command: list[str | Path] = [POSTGRESQL / "postgres", "-D", self.directory, *arguments]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, user=self.user)
        until(self._answers, "PostgreSQL does not start", self.process)

    def _answers(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.dsn("postgres")):
            return True
        return False

    def dsn(self, database: str = "bench") -> str:
        """Where to connect to, for drivers that take a URL."""
        return f"postgresql://postgres@/{database}?host={self.directory}"

    def kill(self) -> None:
        """Ends all its processes at once, as a power cut would."""
        kill([self.process.pid])
        self.process.wait()

    def stop(self) -> None:
        """Ends it without a checkpoint, but tidily."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait()

    def empty(self) -> None:
        """Makes the database anew."""
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            connection.execute("DROP DATABASE bench WITH (FORCE)")
            connection.execute("CREATE DATABASE bench")
            connection.execute("CHECKPOINT")

    def environment(self) -> dict[str, str]:
        """Says to a rival where it is."""
        return {"BENCH_PG_HOST": str(self.directory), "BENCH_PG_DSN": self.dsn()}


def _prepare_user(directory: Path) -> str:
    """PostgreSQL refuses to run as root: returns a user that may run it in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in (*POSTGRESQL.parents, *directory.parents):
        mode = path.stat().st_mode
        if ~mode & (stat.S_IXGRP | stat.S_IXOTH):  # its group stays ours
            path.chmod(mode | stat.S_IXGRP | stat.S_IXOTH)
    shutil.chown(directory, "nobody")
    return "nobody"
