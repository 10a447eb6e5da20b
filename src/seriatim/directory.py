"""The data directory of an embedded setting: where its files are, and whose it is. Quick to import."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from seriatim.config import PREFIX
from seriatim.errors import ConfigError

SOCKET_PATH_BYTES_MAX = 100
LOCK_WAIT_S = 5.0


class DataDirectory:
    """The files of an embedded setting: redis/, store.db, signing-key.json, seriatim.log."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def redis(self) -> Path:
        """The embedded server's files."""
        return self.path / "redis"

    @property
    def log(self) -> Path:
        """What all processes log."""
        return self.path / "seriatim.log"

    @property
    def socket(self) -> Path:
        """Where the embedded server listens: beside its files, or in a short place where that path is too long."""
        beside = self.redis / "valkey.sock"
        if len(os.fsencode(beside)) <= SOCKET_PATH_BYTES_MAX:
            return beside
        name = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"seriatim-{os.getuid()}-{name}" / "valkey.sock"

    @property
    def redis_log(self) -> Path | None:
        """The last file of the embedded server's append-only log, as the log's manifest names it."""
        manifest = self.redis / "appendonlydir" / "appendonly.aof.manifest"
        lines = manifest.read_text().splitlines() if manifest.exists() else []
        names = [line.split()[1] for line in lines if line.endswith(" type i")]
        return manifest.parent / names[-1] if names else None

    def environment(self, outer: Mapping[str, str]) -> dict[str, str]:
        """Returns `outer` with the settings that point into this directory."""
        return dict(outer) | {
            f"{PREFIX}REDIS_URL": f"unix://{self.socket}",
            f"{PREFIX}QUEUE_URL": f"unix://{self.socket}",
            f"{PREFIX}STORE_URL": f"sqlite:///{self.path / 'store.db'}",
            f"{PREFIX}SIGNING_KEY": str(self.path / "signing-key.json"),
        }

    def lock(self) -> int:
        """Returns a descriptor that holds the directory's lock.

        Raises:
            ConfigError: another process holds it.
        """
        self.redis.mkdir(parents=True, exist_ok=True)
        self.socket.parent.mkdir(exist_ok=True)
        if self.socket.parent.stat().st_uid != os.getuid():
            raise ConfigError(
                f"{self.socket.parent} belongs to another user. Remove it, or use another data directory."
            )
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        until = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    os.close(descriptor)
                    raise ConfigError(
                        f"{self.path} is in use by another `seriatim up`. Stop that one, or use another --data-dir."
                    ) from None
                time.sleep(0.1)
            else:
                return descriptor
