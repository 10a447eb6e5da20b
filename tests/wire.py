"""A bad line: a TCP proxy between a client and a server, which loses requests and answers as it is told."""

from __future__ import annotations

import re
import socket
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from io import BufferedIOBase
from itertools import chain, repeat
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Literal, Self

Fate = Literal["pass", "lose request", "lose answer", "lose half", "say nothing"] | bytes
"""What becomes of a request. Bytes are an answer that the proxy gives itself; the server sees nothing of it."""
LENGTH = re.compile(rb"^content-length: *(\d+)", re.IGNORECASE | re.MULTILINE)
BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 15\r\n\r\n<h1>Oh no!</h1>"


class Wire(ThreadingTCPServer):
    """Listens as long as it is open. Requests meet the fates in turn; those that come after the last one pass."""

    daemon_threads = True

    def __init__(self, url: str, fates: Iterable[Fate] = ()) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        host, port = url.removeprefix("http://").split(":")
        self.to = (host, int(port))
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests: dict[str, list[bytes]] = defaultdict(list)
        """All that came, by method and path, as it came."""
        self.closing = threading.Event()
        self._fates: Iterator[Fate] = chain(fates, repeat("pass"))
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def fate(self, request: bytes) -> Fate:
        with self._lock:
            self.requests[request.split(b" HTTP")[0].decode()].append(request)
            return next(self._fates)


class _Connection(StreamRequestHandler):
    server: Wire

    def handle(self) -> None:
        while request := _message(self.rfile):
            fate = self.server.fate(request)
            if isinstance(fate, bytes):
                self.wfile.write(fate)
                continue
            if fate == "lose request":
                return
            with socket.create_connection(self.server.to) as there:
                there.sendall(request)
                answer = _message(there.makefile("rb"))
            if fate == "say nothing":
                self.server.closing.wait()
            if fate == "lose half":
                self.wfile.write(answer[: len(answer) - 20])
            if fate != "pass":
                return
            self.wfile.write(answer)


def _message(file: BufferedIOBase) -> bytes:
    """The next request or answer, b"" when there is none."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = file.readline()
        if not line:
            return b""
        head += line
    length = LENGTH.search(head)
    return head + file.read(int(length[1]) if length else 0)
