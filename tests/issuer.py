"""Who issues the tokens of the tests: keys, tokens signed with them in right and wrong ways, a server of key sets."""

from __future__ import annotations

import base64
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from joserfc import jws
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey

CURVES: dict[str, Literal["P-256", "P-384", "P-521"]] = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
USUAL: Any = object()
SECRET = "a secret of sixty-four bytes, which is as many as HS512 asks for"


@cache
def make_key(algorithm: str, kid: str = "") -> Key:
    """A key for an algorithm; the same one each time, for they take a while to make."""
    named: Any = {"kid": kid} if kid else None
    if algorithm.startswith("HS"):
        return OctKey.import_key(SECRET, named)
    if algorithm in CURVES:
        return ECKey.generate_key(CURVES[algorithm], named)
    if algorithm in ("EdDSA", "Ed25519"):
        return OKPKey.generate_key("Ed25519", named)
    return RSAKey.generate_key(2048, named)


def key_set(*keys: Key, private: bool = False, **more: Any) -> bytes:
    """The JWK set of some keys, without what is private in them."""
    return json.dumps({"keys": [key.as_dict(private=private, **more) for key in keys]}).encode()


def encoded(content: Any) -> str:
    """Base64url of bytes as they are, or of the JSON of anything else."""
    plain = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(plain).rstrip(b"=").decode()


def claims(**more: Any) -> dict[str, Any]:
    """Claims of a token that is good for a minute; None for none."""
    said = {"sub": "somebody", "exp": int(time.time()) + 60, **more}
    return {name: value for name, value in said.items() if value is not None}


def sign(key: Key, algorithm: str, content: Any, *, header: Any = USUAL, **more: Any) -> str:
    """A token with any content and header at all, rightly signed. `more` goes into the header."""
    usual = {"alg": algorithm, "typ": "JWT"} | ({"kid": key.get("kid")} if key.get("kid") else {}) | more
    signed = f"{encoded(usual if header is USUAL else header)}.{encoded(content)}"
    return f"{signed}.{signature(key, algorithm, signed)}"


def signature(key: Key, algorithm: str, signed: str) -> str:
    return encoded(jws.JWSRegistry.algorithms[algorithm].sign(signed.encode(), key))


class Issuer:
    """Somebody who signs tokens with ES256, and whose keys are in a file."""

    def __init__(self, directory: Path, **usual: Any) -> None:
        self.usual = usual
        self.key = ECKey.generate_key("P-256", {"kid": "of the issuer"})
        self.file = directory / "keys-of-the-issuer.json"
        self.file.write_bytes(key_set(self.key))

    def token(self, **more: Any) -> str:
        return sign(self.key, "ES256", claims(**self.usual | more))

    def forgeries(self, **more: Any) -> dict[str, str]:
        """Tokens that say the same and that nobody may accept, by what is wrong with them."""
        said = claims(**self.usual | more)
        public = self.key.as_pem(private=False)
        none = f"{encoded({'alg': 'none', 'typ': 'JWT'})}.{encoded(said)}."
        return {
            "expired JWT": self.token(**more, exp=int(time.time()) - 1),
            "alg none": none,
            "HS256 with the public key as secret": sign_with_bytes(public, said, kid="of the issuer"),
            "wrong audience": self.token(**more | {"aud": "somebody else"}),
        }


def sign_with_bytes(secret: bytes, content: Any, algorithm: str = "HS256", **more: Any) -> str:
    """A token signed with a secret that no library would take for one."""
    signed = f"{encoded({'alg': algorithm, 'typ': 'JWT'} | more)}.{encoded(content)}"
    return f"{signed}.{encoded(hmac.digest(secret, signed.encode(), 'sha' + algorithm[2:]))}"


class Publisher:
    """A web server whose every answer is what `answer` is at that time."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self.answer: Callable[[BaseHTTPRequestHandler], None] = missing
        publisher = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                publisher.asked.append({"path": self.path} | dict(self.headers.items()))
                publisher.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/keys"

    def publish(self, content: bytes, status: int = 200, **headers: str) -> None:
        """Answers with a content from now on."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)

        self.answer = answer


def missing(handler: BaseHTTPRequestHandler) -> None:
    handler.send_error(404)


@contextmanager
def publishing() -> Iterator[Publisher]:
    """A publisher that runs."""
    publisher = Publisher()
    running = threading.Thread(target=publisher.server.serve_forever, args=(0.01,))
    running.start()
    try:
        yield publisher
    finally:
        publisher.server.shutdown()
        publisher.server.server_close()
        running.join()
