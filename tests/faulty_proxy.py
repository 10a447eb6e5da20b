"""A real HTTP proxy between the harness and a server; what a subclass makes of answers is the fault that it plants."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import msgspec


class Asked(msgspec.Struct, frozen=True):
    """A request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def puts_entry(self) -> bool:
        return self.method == "PUT" and "/entries/" in self.path

    @property
    def lists_entries(self) -> bool:
        return self.method == "GET" and urlsplit(self.path).path.endswith("/entries")

    @property
    def entry(self) -> str:
        return self.path.rpartition("/")[2]


class Reply(msgspec.Struct):
    """An answer."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def content(self) -> Any:
        return json.loads(self.body)

    def saying(self, content: Any) -> Reply:
        """The same answer with another content."""
        return Reply(self.status, self.headers, json.dumps(content).encode())


class Proxy(ThreadingHTTPServer):
    """Forwards everything; a subclass overrides `reply`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = upstream
        self.puts = 0
        self.planted = 0
        self.lock = threading.Lock()
        self.local = threading.local()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def reply(self, asked: Asked) -> Reply | None:
        """What to answer; None cuts the connection."""
        return self.forward(asked)

    def forward(self, asked: Asked) -> Reply:
        if not hasattr(self.local, "connection"):
            self.local.connection = http.client.HTTPConnection(urlsplit(self.upstream).netloc)
        connection: http.client.HTTPConnection = self.local.connection
        connection.request(asked.method, asked.path, asked.body, asked.headers)
        answer = connection.getresponse()
        return Reply(answer.status, answer.getheaders(), answer.read())

    def planting(self, asked: Asked, *which: int) -> int:
        """The number of a PUT of an entry, counted from 1, where it is one of those that get a fault; otherwise 0."""
        if not asked.puts_entry:
            return 0
        with self.lock:
            self.puts += 1
            number = self.puts if self.puts in which else 0
            self.planted += bool(number)
            return number


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Proxy
    disable_nagle_algorithm = True

    def serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        reply = self.server.reply(Asked(self.command, self.path, dict(self.headers.items()), body))
        if reply is None:
            self.close_connection = True
            return
        self.send_response_only(reply.status)
        for name, value in reply.headers:
            if name.lower() != "content-length":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    do_GET = do_PUT = do_POST = serve  # noqa: N815 -- as the library calls them

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextmanager
def running(proxy: Proxy) -> Iterator[Proxy]:
    thread = threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
