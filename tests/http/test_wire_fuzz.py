"""Bytes that nearly are requests, on real connections: none is answered 5xx, none hangs, none refused takes a number.

In CI the bytes are always the same. `make fuzz` tries others, for longer.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable

import httpx
import msgspec
import pytest

from plain_socket import Wire, request
from stack import Up, entry_path, list_entries, new_id, put_entry, put_series

EXAMPLES = 1500
AT_ONCE = 32
QUIET_S = 0.04
PATIENCE_S = 0.25
"""So long after the last byte of an answer nothing more is expected: when all is answered, and when it is not."""
END_S = 10.0
STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) ")
PIECES = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"\r\n\r\n", b"0\r\n\r\n", b"\xff\xfe", b"{}", b"%00", b"%",
    b"Content-Length: 2\r\n", b"Content-Length: 0\r\n", b"Content-Length: +2\r\n", b"a" * 70_000,
    b"Content-Length: 99999999999999999999\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Expect: 100-continue\r\n",
    b"Connection: close\r\n", b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    b"Host: other\r\n", b"X-Company: x\r\n", b"Authorization: Bearer x\r\n", b"X-Request-Id: \xff\r\n", b" folded\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"HTTP/1.0", b"HTTP/2", b"GET", b"CONNECT",
    b"OPTIONS * HTTP/1.1\r\n", b"//", b"?", b"#",
]  # fmt: skip


class Sent(msgspec.Struct):
    """What went out on a connection, in pieces, the entries that it may be about, and what came back."""

    pieces: list[bytes]
    ids: list[str]
    answered: bytes = b""

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in STATUS.findall(self.answered)]

    @property
    def unanswered(self) -> int:
        """How many requests had no answer when the connection ended: what became of them is unknown."""
        final = [status for status in self.statuses if status >= 200]
        return max(0, b"".join(self.pieces).count(b" HTTP/1.1\r\n") - len(final))


class Mutator:
    """Makes connections' worth of bytes of requests that were right."""

    def __init__(self, seed: int, series: str, key: str) -> None:
        self.random = random.Random(seed)
        self.series = series
        self.headers = {"Authorization": f"Bearer {key}"}
        self.changes: list[Callable[[bytes], bytes]] = [
            self.cut,
            self.removed,
            self.inserted,
            self.inserted,
            self.flipped,
            self.doubled,
            self.lengthened,
            bytes,
        ]

    def sent(self) -> Sent:
        ids = [new_id() for _ in range(self.random.choice((1, 1, 2, 3)))]
        data = b"".join(self.request(one) for one in ids)
        for _ in range(self.random.choice((1, 1, 2, 4))):
            data = self.random.choice(self.changes)(data)
        return Sent(self.divided(data), ids)

    def request(self, entry: str) -> bytes:
        body = self.random.choice((b"{}", b'{"meta":{"k":"v"}}', b'{"meta":{"k":"%b"}}' % (b"v" * 300)))
        path = entry_path(self.series, entry)
        kind = self.random.randrange(4)
        if kind == 0:
            chunked = self.headers | {"Transfer-Encoding": "chunked"}
            return request("PUT", path, chunked) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        if kind == 1:
            body = b'{"list":[{"id":"%b"}]}' % entry.encode()
            return request("POST", f"/sequence/v1/series/{self.series}/entries", self.headers, body)
        return request("PUT", path, self.headers, body)

    def place(self, data: bytes) -> int:
        return self.random.randrange(len(data) + 1)

    def cut(self, data: bytes) -> bytes:
        return data[: self.place(data)]

    def removed(self, data: bytes) -> bytes:
        at = self.place(data)
        return data[:at] + data[at + self.random.choice((1, 2, 10, 100)) :]

    def inserted(self, data: bytes) -> bytes:
        piece = self.random.choice(PIECES)
        at = self.place(data)
        if piece.endswith(b"\r\n") and b"\r\n" in data:  # where a header could be
            at = self.random.choice([found.end() for found in re.finditer(rb"\r\n", data)])
        return data[:at] + piece + data[at:]

    def flipped(self, data: bytes) -> bytes:
        at = self.place(data)
        return data[:at] + bytes(byte ^ 1 << self.random.randrange(8) for byte in data[at : at + 1]) + data[at + 1 :]

    def doubled(self, data: bytes) -> bytes:
        first, last = sorted((self.place(data), self.place(data)))
        return data[:last] + data[first:last] + data[last:]

    def lengthened(self, data: bytes) -> bytes:
        wrong = self.random.choice(
            (b"0", b"1", b"-1", b"2 ", b"0x2", b"19", b"3", b"262145", b"1e1", b"02", b"", b"2, 2")
        )
        return re.sub(rb"Content-Length: [0-9]+", b"Content-Length: " + wrong, data, count=1)

    def divided(self, data: bytes) -> list[bytes]:
        places = sorted(self.place(data) for _ in range(self.random.choice((0, 0, 1, 3))))
        return [data[one:other] for one, other in zip([0, *places], [*places, len(data)], strict=True) if one < other]


async def exchange(url: str, sent: Sent) -> None:
    """Sends the pieces, reads until nothing more comes, then closes the sending side, which ends the connection."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for piece in sent.pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        while data := await asyncio.wait_for(reader.read(65536), PATIENCE_S if sent.unanswered else QUIET_S):
            sent.answered += data
    except TimeoutError:
        writer.write_eof()
        async with asyncio.timeout(END_S):
            sent.answered += await reader.read()
    except ConnectionError:  # refused before all was sent
        pass
    finally:
        writer.close()


async def exchange_all(url: str, everything: list[Sent]) -> None:
    waiting = iter(everything)

    async def some() -> None:
        for sent in waiting:
            await exchange(url, sent)

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))


def test_no_bytes_are_answered_5xx_or_hang_or_take_a_number_when_refused(
    shared_up: Up, client: httpx.Client, pytestconfig: pytest.Config
) -> None:
    # Given connections' worth of bytes that were requests before they were changed
    seconds: int | None = pytestconfig.option.fuzz_seconds
    seed: int = pytestconfig.option.fuzz_seed if seconds else 1
    give_up = time.monotonic() + (seconds or 0)
    while True:
        series = put_series(client, prefix="W-")
        mutator = Mutator(seed, series, shared_up.key)
        everything = [mutator.sent() for _ in range(EXAMPLES)]

        # When they are sent
        asyncio.run(exchange_all(shared_up.url, everything))

        # Then what was refused took no number, and what was told is there
        issued = {entry["id"] for entry in list_entries(client, series)}
        told = 0
        for sent in everything:
            assert all(status < 500 for status in sent.statuses), sent
            numbers = sent.statuses.count(200)
            if any(status >= 400 for status in sent.statuses):
                assert len(issued.intersection(sent.ids)) <= numbers + sent.unanswered, sent
            told += numbers
        assert EXAMPLES / 5 < told < 3 * EXAMPLES
        positions = [entry["position"] for entry in list_entries(client, series)]
        assert positions == list(range(1, len(positions) + 1))
        if time.monotonic() >= give_up:
            break
        seed += 1
    assert put_entry(client, series)["position"] == len(positions) + 1
    log = shared_up.directory.log.read_text()
    assert "Traceback" not in log
    assert "a fault of ours" not in log


@pytest.mark.parametrize("garbage", [b"x", b"\r\n\r\nnonsense\r\n\r\n", b"PUT / HTTP/1.1\r\nA: " + b"a" * 300_000])
def test_nonsense_behind_a_request_is_not_the_answer_to_it(shared_up: Up, client: httpx.Client, garbage: bytes) -> None:
    # Given a request for a number on the hot path, and one on the ordinary way, each with nonsense behind it
    series = put_series(client, prefix="N-")
    headers = {"Authorization": f"Bearer {shared_up.key}"}
    for position, more in enumerate(({}, {"Expect": "100-continue"}), 1):
        entry = new_id()
        sent = request("PUT", entry_path(series, entry), headers | more, b"{}") + garbage

        # When it is sent, then its answer is that of the request, and the connection ends
        with Wire(shared_up.url) as wire:
            wire.send(sent)
            answer = wire.answer()
            while answer.status == 100:
                answer = wire.answer()
            assert answer.status == 200
            assert answer.json()["position"] == position
            with pytest.raises(AssertionError, match="closed the connection"):
                wire.answer()


def test_who_offers_another_protocol_is_served_in_this_one(shared_up: Up, client: httpx.Client) -> None:
    # Given a client that asks for HTTP/2 with its first request, as some do, and sends the next ones at once
    series = put_series(client, prefix="U-")
    headers = {"Authorization": f"Bearer {shared_up.key}"}
    offered = headers | {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAAP"}
    with Wire(shared_up.url) as wire:
        # When it sends them at once, and again some byte by byte
        meta = b'{"meta":{"k":"v"}}'
        chunked = request("PUT", entry_path(series, new_id()), offered | {"Transfer-Encoding": "chunked"})
        sent = [request("PUT", entry_path(series, new_id()), offered, meta)]
        sent += [chunked + b"5\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (meta[:5], len(meta) - 5, meta[5:])]
        sent += [request("GET", "/healthz", offered)]
        sent += [request("PUT", entry_path(series, new_id()), headers, meta) for _ in range(2)]
        wire.send(b"".join(sent))
        for byte in b"".join(sent[:2]):
            wire.send(bytes([byte]))
        answers = [wire.answer().json() for _ in range(7)]

    # Then all are answered, with what they said
    numbered = [answer for answer in answers if "position" in answer]
    assert [answer["position"] for answer in numbered] == [1, 2, 3, 4, 1, 2]
    assert all(answer["meta"] == {"k": "v"} for answer in numbered)
