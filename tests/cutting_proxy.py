"""A real proxy before a server's socket, which cuts a connection when something is asked there, or carried out."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

When = Literal["before it is carried out", "before it is answered"]


class CuttingProxy:
    """Forwards everything. Of the next `cuts` requests with `mark` in them, it cuts the connections."""

    def __init__(self, path: Path, upstream: Path, mark: bytes, when: When) -> None:
        self.cut = 0
        self.cuts = 0
        self.mark = mark
        self.when = when
        self._upstream = upstream
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(50)

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self._upstream))
                threading.Thread(target=self._forward, args=(client, server), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with client, server, suppress(OSError):
            while True:
                ready, _, _ = select.select([client, server], [], [])
                for one in ready:
                    data = one.recv(65536)
                    if not data:
                        return
                    if one is client and self.mark in data and self.cuts:
                        self.cuts -= 1
                        self.cut += 1
                        if self.when == "before it is answered":
                            server.sendall(data)
                            server.recv(65536)
                        return
                    (server if one is client else client).sendall(data)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def cutting(path: Path, upstream: Path, mark: bytes, when: When) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(path, upstream, mark, when)
    threading.Thread(target=proxy.accept, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.close()
