"""Exports of real entries, and the tools of those who would change them unnoticed."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from typing import Any

import rfc8785
from joserfc import jws
from joserfc.jwk import ECKey

from stack import SERIATIM, Up, list_entries, put_entry, put_series

COUNT = 6
CLIENT_SIG = "eyJhbGciOiJFUzI1NiJ9.e30.c2ln"
Where = tuple[str, int]


def digest(data: bytes) -> str:
    """As RFC 7515 writes a hash; on purpose not the code under test."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


class Export:
    """An export to tamper with: the line of its series, its records, the line of its end."""

    def __init__(self, text: bytes) -> None:
        self.begin, *self.records, self.end = (json.loads(line) for line in text.splitlines())

    def at(self, position: int) -> dict[str, Any]:
        found: dict[str, Any] = next(record for record in self.records if record["position"] == position)
        return found

    def end_with_what_is_there(self) -> None:
        """What somebody does who removes or adds records and knows the format."""
        last = self.records[-1]
        self.end |= {"position": last["position"], "hash": digest(last["receipt"].encode())}

    def lines(self) -> list[bytes]:
        return [json.dumps(line).encode() + b"\n" for line in (self.begin, *self.records, self.end)]

    def sign_again(self, key: ECKey, kid: str) -> None:
        """What somebody does who changes records, puts them in order and has a key."""
        head = digest(self.begin["genesis"].encode())
        previous = None
        for position, record in enumerate(self.records, 1):
            changes = {name: record[name] for name in ("code", "numbers", "date")} | {
                "position": position,
                "prev": head,
            }
            if previous is not None:
                changes["previous_id"] = previous
            record |= {"position": position, "previous_id": previous}
            record["receipt"] = forge(record["receipt"], key, kid, **changes)
            head, previous = digest(record["receipt"].encode()), record["id"]
        self.end_with_what_is_there()


def claims(receipt: str) -> dict[str, Any]:
    payload = receipt.split(".")[1]
    said: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return said


def forge(receipt: str, key: ECKey, kid: str, **changes: Any) -> str:
    """Signs a receipt with changes, under whatever kid."""
    header = {"alg": "ES256", "kid": kid, "typ": "seriatim-receipt"}
    return jws.serialize_compact(header, rfc8785.dumps(claims(receipt) | changes), key, ["ES256"])


class Sound:
    """A series of a running service, settled, exported and verified."""

    def __init__(self, up: Up) -> None:
        self.data_dir = up.data_dir
        with up.client() as client:
            self.series = put_series(client, prefix="ES-", padding=4, start=11)
            for number in range(1, COUNT + 1):
                more = {"sig": CLIENT_SIG} if number == 3 else {}
                put_entry(client, self.series, meta={"number": str(number), "ключ": "значение"}, **more)
            up.settled()
            self.jwks = client.get("/.well-known/jwks.json").content
            self.entries = list_entries(client, self.series)
        self.text = self.export(up)
        self.kid: str = json.loads(self.jwks)["keys"][0]["kid"]
        verified = up.run("verify", "--series", self.series, "--json")
        self.checkpoint = verified.stdout.encode()

    def export(self, up: Up, *arguments: str) -> bytes:
        command = [*SERIATIM, "export", "--series", self.series, "--data-dir", str(up.data_dir), *arguments]
        return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout


def found(done: subprocess.CompletedProcess[str], series: str) -> list[Where]:
    assert done.returncode == 1, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["sound"] is False
    assert {finding["series"] for finding in result["findings"]} == {series}
    assert all(finding["detail"] for finding in result["findings"])
    return [(finding["kind"], finding["position"]) for finding in result["findings"]]
