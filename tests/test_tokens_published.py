"""Where the keys of tokens come from: files, and web servers that answer rightly, wrongly, late or not at all."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import OctKey

from issuer import SECRET, Publisher, claims, key_set, make_key, publishing, sign, sign_with_bytes
from seriatim import tokens as module
from seriatim.config import Config
from seriatim.errors import ConfigError, Unauthorized, Unavailable
from seriatim.tokens import FETCH_BYTES_MAX, Tokens
from stack import until

OLD, NEW = make_key("ES256", "old"), make_key("ES384", "new")
SLOW_S = 0.3


def opener(source: str) -> Tokens:
    return Tokens(Config(jwt_jwks=source))


def by_old() -> str:
    return sign(OLD, "ES256", claims())


def by_new() -> str:
    return sign(NEW, "ES384", claims())


def opens(tokens: Tokens, token: str) -> bool:
    try:
        return tokens.open(token).subject == "somebody"
    except Unauthorized:
        return False


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    """A web server that publishes what a test says."""
    with publishing() as made:
        yield made


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown key, and keys that could not be read, are looked up again at once."""
    monkeypatch.setattr(module, "FETCH_AGAIN_S", 0.0)


# when they are read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "url"])
@pytest.mark.usefixtures("soon")
def test_rotated_keys_are_picked_up(tmp_path: Path, publisher: Publisher, kind: str) -> None:
    # Given keys in a file or at a URL
    file = tmp_path / "keys.json"
    tokens = opener(str(file) if kind == "file" else publisher.url)

    def publish(content: bytes) -> None:
        file.write_bytes(content)
        publisher.publish(content)

    publish(key_set(OLD))
    assert (opens(tokens, by_old()), opens(tokens, by_new())) == (True, False)

    # When another is published beside it, and later instead of it, then the token of the other is good at once
    publish(key_set(OLD, NEW))
    assert (opens(tokens, by_new()), opens(tokens, by_old())) == (True, True)
    publish(key_set(NEW))
    assert not opens(tokens, sign(make_key("RS256"), "RS256", claims(), kid="unknown"))
    assert (opens(tokens, by_new()), opens(tokens, by_old())) == (True, False)

    # And when none is published any more, then no token is good
    publish(key_set())
    assert not opens(tokens, by_old())
    assert not opens(tokens, by_new())


def test_keys_are_kept_for_a_while_however_many_tokens_come(publisher: Publisher) -> None:
    # Given keys at a URL, when many tokens are opened, with their keys and with unknown ones
    publisher.publish(key_set(OLD))
    tokens = opener(publisher.url)
    assert not publisher.asked
    for _ in range(20):
        assert opens(tokens, by_old())
        assert not opens(tokens, by_new())

    # Then they are fetched once: who does not know any key of ours cannot make us ask for more
    assert len(publisher.asked) == 1


def test_keys_are_read_again_when_they_have_become_old(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given keys that were read, when their time is over, then they are read again
    publisher.publish(key_set(OLD))
    tokens = opener(publisher.url)
    assert opens(tokens, by_old())
    monkeypatch.setattr(module, "FETCH_S", 0.0)
    old = opener(publisher.url)
    assert opens(old, by_old())
    assert opens(old, by_old())
    assert len(publisher.asked) == 3


@pytest.mark.usefixtures("soon")
def test_what_cannot_be_read_leaves_the_keys_that_were(publisher: Publisher) -> None:
    # Given keys that were read, when the server then fails in any way, then they still count
    publisher.publish(key_set(OLD))
    tokens = opener(publisher.url)
    assert opens(tokens, by_old())
    for answer in FAULTS.values():
        publisher.answer = answer
        assert not opens(tokens, by_new())
        assert opens(tokens, by_old())
    publisher.publish(key_set(NEW))
    assert opens(tokens, by_new())


# what cannot be read ----------------------------------------------------------------------------------------------


def answering(content: bytes, status: int = 200, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def writing(raw: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(raw)
        handler.close_connection = True

    return answer


FAULTS: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {
    "nothing": writing(b""),
    "no HTTP": writing(b"\x00\x01\x02\r\n\r\n"),
    "a line without an end": writing(b"HTTP/1.1 " + b"2" * 100_000),
    "a header without an end": writing(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000),
    "too many headers": writing(b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 1000 + b"\r\n" + key_set(OLD)),
    "less than it says": writing(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + key_set(OLD)[:-5]),
    "a wrong chunk": writing(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}"),
    "a page": answering(b"<html>Sign in</html>"),
    "empty": answering(b""),
    "not UTF-8": answering(b"\xff\xfe"),
    "a list": answering(b"[]"),
    "no keys": answering(b"{}"),
    "keys that are no list": answering(b'{"keys": {}}'),
    "keys that are no objects": answering(b'{"keys": ["a"]}'),
    "nested deeply": answering(b'{"keys": [{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]}"),
    "not found": answering(key_set(OLD), 404),
    "a fault": answering(key_set(OLD), 500),
    "no content": answering(b"", 204),
    "too much": answering(key_set(OLD) + b" " * FETCH_BYTES_MAX),
    "a redirect to a file": answering(b"", 302, Location="file:///etc/passwd"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_keys_that_cannot_be_read_are_told_from_tokens_that_are_wrong(publisher: Publisher, name: str) -> None:
    # Given a server with a fault, when a token comes, then nobody knows whether it is good
    publisher.answer = FAULTS[name]
    with pytest.raises(Unavailable, match="cannot be read"):
        opener(publisher.url).open(by_old())
    assert len(publisher.asked) == 1


def test_neither_a_file_nor_a_server_that_is_not_there_is_an_end(tmp_path: Path, publisher: Publisher) -> None:
    # Given a file and a server that are not there yet
    file = tmp_path / "keys.json"
    publisher.server.server_close()
    for source in (str(file), str(tmp_path), publisher.url, "file:///etc/passwd", "ftp://127.0.0.1/keys"):
        with pytest.raises(Unavailable):
            opener(source).open(by_old())


@pytest.mark.usefixtures("soon")
def test_keys_that_could_not_be_read_at_first_are_read_soon(tmp_path: Path) -> None:
    # Given keys that are not there at the first token
    file = tmp_path / "keys.json"
    tokens = opener(str(file))
    with pytest.raises(Unavailable):
        tokens.open(by_old())

    # When they are there, then the next token finds them, long before keys that were read are read again
    file.write_bytes(key_set(OLD))
    assert opens(tokens, by_old())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(publisher: Publisher, status: int) -> None:
    # Given a server that says that the keys are elsewhere, where they are
    with publishing() as other:
        other.publish(key_set(OLD))
        publisher.answer = answering(key_set(OLD), status, Location=other.url)

        # Then nobody looks there, or takes what came with it
        with pytest.raises(Unavailable):
            opener(publisher.url).open(by_old())
        assert not other.asked


@pytest.mark.parametrize("url", ["http://", "https:///keys", "http://:80/keys", "http://host:port/keys", "http://["])
def test_what_is_no_url_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(ConfigError, match="SERIATIM_JWT_JWKS is not a URL"):
        opener(url)


# in time ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["head", "headers", "body", "chunks"])
def test_a_server_that_drips_is_cut_off(publisher: Publisher, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    # Given a server that sends a piece now and then, each in time, and never comes to an end
    begins = {
        "head": b"HTTP/1.1 2",
        "headers": b"HTTP/1.1 200 OK\r\nX: ",
        "body": b"HTTP/1.1 200 OK\r\n\r\n",
        "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    }
    drop = b"1\r\n \r\n" if part == "chunks" else b" "
    cut = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(begins[part])
        try:
            while True:
                handler.wfile.write(drop)
                time.sleep(SLOW_S / 10)
        except OSError:
            cut.set()

    publisher.answer = drip
    monkeypatch.setattr(module, "FETCH_TIMEOUT_S", SLOW_S)

    # When a token comes, then it is soon said that the keys cannot be read, and the server is left alone
    with pytest.raises(Unavailable):
        opener(publisher.url).open(by_old())
    assert cut.wait(20)


def test_a_server_that_sends_without_end_is_not_listened_to(publisher: Publisher) -> None:
    # Given a server that sends, and sends
    sent: list[int] = []
    cut = threading.Event()

    def pour(handler: BaseHTTPRequestHandler) -> None:
        answering(key_set(OLD))(handler)
        try:
            while True:
                sent.append(handler.wfile.write(b" " * 65536))
        except OSError:
            cut.set()

    publisher.answer = pour

    # When a token comes, then no more is taken of it than keys can have
    with pytest.raises(Unavailable):
        opener(publisher.url).open(by_old())
    assert cut.wait(20)
    assert sum(sent) < FETCH_BYTES_MAX * 20


@pytest.mark.usefixtures("soon")
def test_while_keys_are_read_tokens_of_known_keys_do_not_wait(publisher: Publisher) -> None:
    # Given keys that were read, and a server that then stands still
    publisher.publish(key_set(OLD))
    tokens = opener(publisher.url)
    assert opens(tokens, by_old())
    go_on = threading.Event()

    def stand_still(handler: BaseHTTPRequestHandler) -> None:
        go_on.wait(20)
        answering(key_set(OLD, NEW))(handler)

    publisher.answer = stand_still
    told: list[bool] = []
    waiting = threading.Thread(target=lambda: told.append(opens(tokens, by_new())))

    # When a token of a key that is not known waits for it
    waiting.start()
    until(lambda: len(publisher.asked) == 2)

    # Then those of known keys do not, and it is opened when the server answers
    for _ in range(10):
        assert opens(tokens, by_old())
    assert not told
    go_on.set()
    waiting.join()
    assert told == [True]


# what is in them --------------------------------------------------------------------------------------------------


def test_a_secret_in_a_published_set_signs_no_tokens(tmp_path: Path) -> None:
    # Given a set with a shared secret in it
    secret = OctKey.import_key(SECRET, {"kid": "secret"})
    file = tmp_path / "keys.json"
    file.write_bytes(key_set(secret, OLD))
    tokens = opener(str(file))

    # Then whoever reads it there cannot sign with it, and the key beside it counts
    assert not opens(tokens, sign_with_bytes(SECRET.encode(), claims(), kid="secret"))
    assert not opens(tokens, sign(OLD, "ES256", claims(), kid="secret"))
    assert opens(tokens, by_old())
    assert opens(tokens, sign(OLD, "ES256", claims(), header={"alg": "ES256"}))


def test_a_key_that_is_not_understood_does_not_spoil_the_others(tmp_path: Path) -> None:
    # Given a set with keys of unknown kinds and with faults (RFC 7517, section 5: they are ignored)
    good: dict[str, Any] = OLD.as_dict(private=False)
    faults: list[dict[str, Any]] = [
        {},
        {"kty": "AKP", "alg": "ML-DSA-65", "pub": "AAAA", "kid": "old"},
        {"kty": ["EC"]},
        {"kty": None},
        {"kty": "EC"},
        {"kty": "EC", "crv": "P-0", "x": "AA", "y": "AA"},
        {"kty": "RSA", "n": "AQAB", "e": "!"},
        {"kty": "RSA", "n": 5, "e": "AQAB"},
        {"kty": "OKP", "crv": "Ed25519", "x": "AA"},
        {"kty": "OKP", "crv": "Ed1", "x": "AA"},
        {"kty": "oct"},
        good | {"x": good["y"]},
        good | {"x": "=="},
        good | {"kid": 5},
        good | {"kid": "old", "use": "enc"},
        good | {"kid": "old", "use": "tls"},
        good | {"kid": "old", "key_ops": 5},
        good | {"x5u": "file:///etc/passwd"},
    ]
    file = tmp_path / "keys.json"
    file.write_bytes(json.dumps({"keys": [*faults, good, *faults], "more": "of a vendor"}).encode())

    # Then the good one counts
    tokens = opener(str(file))
    assert opens(tokens, by_old())

    # And it is the only one
    file.write_bytes(json.dumps({"keys": faults}).encode())
    assert not opens(opener(str(file)), by_old())


def test_the_url_may_carry_a_name_and_a_password_which_are_not_logged(
    publisher: Publisher, capfd: pytest.CaptureFixture[str]
) -> None:
    # Given a URL with credentials in it
    host = publisher.url.removeprefix("http://")
    publisher.publish(key_set(OLD))
    tokens = opener(f"http://me:hun%20ter2@{host}?token=s3cr3t")

    # When it is read, then the server is told them
    assert opens(tokens, by_old())
    (asked,) = publisher.asked
    assert asked["Authorization"] == "Basic bWU6aHVuIHRlcjI="
    assert asked["path"] == "/keys?token=s3cr3t"

    # And when it cannot be read, then the log does not hold them
    publisher.publish(b"", 401)
    with pytest.raises(Unavailable):
        opener(f"http://me:hunter2@{host}?token=s3cr3t").open(by_old())
    logged = "".join(capfd.readouterr())
    assert "HTTP 401" in logged
    assert not [secret for secret in ("hunter2", "s3cr3t") if secret in logged]
