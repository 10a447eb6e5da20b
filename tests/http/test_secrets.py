"""No secret is written anywhere: neither those that are sent, rightly or wrongly, nor those that are configured."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import sqlite3
import tempfile
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
from joserfc.jwk import OctKey

from issuer import SECRET, claims, sign, sign_with_bytes
from stack import Up, entry_path, new_id, put_series

LISTS = (
    "/sequence/v1/series",
    "/api/v9/invoices/series",
    "/api/v1/document-series",
    "/invoice_numbering_sequences",
    "/nowhere",
)
PASSWORD = "hunter2hunter2"


class Talkative:
    """A service that logs all it can, and whoever talks to it; what they say is remembered."""

    def __init__(self, directory: Path) -> None:
        settings = {"SERIATIM_JWT_SECRET": SECRET, "SERIATIM_LOG_LEVEL": "debug"}
        self.up = Up(directory, environment=settings).start()
        self.secrets = {SECRET, self.up.key[19:]}
        self.company = self.up.json("companies", "list")[0]["id"]

    def token(self, **more: object) -> str:
        key = OctKey.import_key(SECRET)
        return sign(key, "HS256", claims(company=self.company, scope="read manage allocate", **more))

    def key(self) -> str:
        key: str = self.up.json("keys", "create", "--company", self.company)["key"]
        self.secrets.add(key[19:])
        return key

    def say(self, credentials: str) -> set[int]:
        """Sends credentials in all ways, right and wrong; the statuses of the answers."""
        basic = base64.b64encode(f"{credentials}:".encode()).decode()
        self.secrets |= {credentials.rpartition(".")[2] if "." in credentials else credentials[19:], basic[30:]}
        headers = [f"{scheme} {credentials}" for scheme in ("Bearer", "Token", "Basic", "Digest", "")]
        headers += [f'DREAM apikey="{credentials}"', f"DREAM {credentials}", f"Basic {basic}", f"Basic {basic}!"]
        headers += [f"Bearer {credentials}é", f"Bearer {credentials} {credentials}"]
        statuses = set()
        for path in LISTS:
            for header in headers:
                statuses.add(self.send("GET", path, {"Authorization": header, "X-Company": self.company}))
            query = f"?access_token={credentials}&apikey={credentials}&limit={credentials}"
            statuses.add(self.send("GET", path + query, {"Cookie": f"token={credentials}"}))
            statuses.add(self.send("GET", path + query, {"Authorization": f"Bearer {credentials}"}))
            statuses.add(self.send("GET", f"{path}/{credentials}/{credentials}", {}))
            more = {"X-Request-Id": f"a {credentials}", "X-Api-Key": credentials, "X-Company": credentials}
            statuses.add(self.send("PATCH", path, more | {"Authorization": f"Bearer {credentials}"}, credentials))
        return statuses

    def send(self, method: str, path: str, headers: dict[str, str], body: str = "") -> int:
        connection = HTTPConnection(self.up.url.removeprefix("http://"), timeout=20)
        try:
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()

    def send_raw(self, text: str) -> None:
        """Sends what is no HTTP."""
        host, _, port = self.up.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(text.encode())
            connection.recv(4096)

    def store(self, statement: str, *values: str) -> None:
        """Changes the store as nobody should."""
        database = sqlite3.connect(self.up.data_dir / "store.db", timeout=20)
        with database:
            database.execute(statement, values)
        database.close()

    def written(self) -> dict[str, bytes]:
        """Everything that was written: all files, what the processes were started with, and what a user is shown."""
        files = {str(path): path.read_bytes() for path in self.up.data_dir.rglob("*") if path.is_file()}
        pids = [self.up.process.pid, *self.up.pids("")]
        assert len(pids) >= 4
        lines = {f"command line {pid}": Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids}
        shown = [["config"], ["config", "--json"], ["keys", "list"], ["audit-log"], ["companies", "list"]]
        return files | lines | {" ".join(one): self.up.run(*one).stdout.encode() for one in shown}


@pytest.fixture
def talkative() -> Iterator[Talkative]:
    directory = Path(tempfile.mkdtemp(prefix="seriatim-test-"))
    made = Talkative(directory)
    yield made
    made.up.stop()
    shutil.rmtree(directory, ignore_errors=True)


def test_nothing_that_is_sent_or_set_is_written_anywhere(talkative: Talkative) -> None:
    # Given a service that logs all it can, and credentials of all kinds, right and wrong
    up = talkative.up
    right, token = talkative.key(), talkative.token()
    revoked = talkative.key()
    up.run("keys", "revoke", revoked[9:19])
    wrong = right[:19] + new_id().replace("-", "")[:25]
    expired, forged = talkative.token(exp=1), sign_with_bytes(PASSWORD.encode() * 3, claims())

    # When they are sent in all ways, to every dialect
    assert talkative.say(right) >= {200, 401, 403, 404}
    assert talkative.say(token) >= {200, 401, 403, 404}
    for nobody in (wrong, revoked, expired, forged):
        assert talkative.say(nobody) <= {401, 404, 405}
    talkative.send_raw(f"GET / HTTP/1.1\r\nAuthorization Bearer {right}\r\n\r\n")
    talkative.send_raw(f"{right}\r\n\r\n")
    talkative.send_raw(f"GET /sequence/v1/series HTTP/9 {right}\r\nAuthorization: Bearer {right}\r\n\r\n")

    # And when there are faults of ours, and servers that do not answer
    with up.client(right) as client:
        series = put_series(client)
        (server,) = up.pids("valkey-server")
        os.kill(server, signal.SIGSTOP)
        try:
            assert client.put(entry_path(series, new_id())).status_code == 503
        finally:
            os.kill(server, signal.SIGCONT)
        talkative.store("UPDATE series SET timezone = 'No/Where' WHERE id = ?", series.replace("-", ""))
        assert client.get(f"/sequence/v1/series/{series}").status_code == 500
    with up.client(token) as client:
        assert client.get("/sequence/v1/series").status_code == 500
    talkative.store("ALTER TABLE api_keys RENAME TO elsewhere")
    for one in (wrong, revoked):
        assert talkative.send("GET", LISTS[0], {"Authorization": f"Bearer {one}"}) == 503
    talkative.store("ALTER TABLE companies RENAME TO nowhere")
    assert talkative.send("GET", LISTS[0], {"Authorization": f"Bearer {talkative.token(sub='new')}"}) == 503
    talkative.store("ALTER TABLE nowhere RENAME TO companies")
    talkative.store("ALTER TABLE elsewhere RENAME TO api_keys")

    # Then there is much in the log, the traces of the faults among it, and no secret anywhere
    log = up.directory.log.read_text()
    assert "a fault of ours" in log
    assert "Traceback" in log
    assert log.count("refused") > 100
    for where, text in talkative.written().items():
        found = [secret for secret in talkative.secrets if secret.encode() in text]
        assert not found, where
