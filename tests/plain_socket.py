"""HTTP over a socket, byte by byte, for what no HTTP library sends."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Answer:
    """What came back. The names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def request(method: str, path: str, headers: Mapping[str, str], body: bytes | None = None) -> bytes:
    """A request as bytes; without a body it has no Content-Length either."""
    lines = [f"{method} {path} HTTP/1.1", "Host: numbers.example"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


class Wire:
    """A connection to a server."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=10)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def answer(self, *, to_head: bool = False) -> Answer:
        """Reads the next answer. One to HEAD has no body, whatever its headers say; nor has a 100."""
        first = self._file.readline()
        assert first, "the server has closed the connection"
        status = int(first.split()[1])
        headers: dict[str, str] = {}
        while (line := self._file.readline().decode()) != "\r\n":
            assert line, "the server has closed the connection"
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        length = 0 if to_head or status in (100, 204) else int(headers["content-length"])
        return Answer(status, headers, self._file.read(length))

    def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None) -> Answer:
        """Sends a request and reads its answer."""
        self.send(request(method, path, headers, body))
        return self.answer(to_head=method == "HEAD")
