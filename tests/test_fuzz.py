"""Whatever a file, a token or a cursor holds: a finding, a refusal that says so, or what it said before; no trace.

In CI the inputs are always the same. `make fuzz` tries others, and more of them.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from bad_input import ANYTHING
from issuer import SECRET, claims, make_key, sign
from seriatim.cli import main
from seriatim.config import Config
from seriatim.errors import Invalid, Unauthorized
from seriatim.http.sequence import _read_cursor
from seriatim.signing import BadSignature, JsonWebKeySet, Signer, UnknownKey
from seriatim.tokens import Tokens
from stack import new_id
from test_verify_any_change import SIGNED_FIELDS, chain
from test_verify_any_change import signer as signer  # noqa: PLC0414 -- a fixture

Fuzz = Callable[[Callable[[st.DataObject], None]], None]
RECORDS = [({}, False), ({"k": "v"}, True), 3, ({}, False), 0, ({}, False)]
PIECES = (
    b"",
    b"\0",
    b"\xff",
    b'"',
    b"\\",
    b"{",
    b"]",
    b"\n",
    b"null",
    b"1e999",
    b"-",
    b"9" * 400,
    b"[" * 3000,
    "\ud7ff".encode(),
)


@pytest.fixture
def fuzz(pytestconfig: pytest.Config) -> Fuzz:
    """Tries a check with the same inputs each time, or for `make fuzz` with others."""
    seconds: int | None = pytestconfig.option.fuzz_seconds

    def run(check: Callable[[st.DataObject], None]) -> None:
        give_up = time.monotonic() + (seconds or 0) / 5
        number: int = pytestconfig.option.fuzz_seed
        while True:
            quiet = list(HealthCheck)
            bounds = settings(max_examples=250, database=None, deadline=None, suppress_health_check=quiet)
            trying: Any = given(st.data())(check)
            if seconds is None:
                settings(bounds, derandomize=True)(trying)()
                return
            seed(number)(bounds(trying))()
            number += 1
            if time.monotonic() >= give_up:
                return

    return run


def changed(data: st.DataObject, text: bytes) -> bytes:
    """The text with some bytes removed, put in, or put elsewhere."""
    for _ in range(data.draw(st.integers(1, 3))):
        first, last = sorted(data.draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
        last = data.draw(st.sampled_from((first, min(first + 1, len(text)), last)))
        middle = data.draw(st.sampled_from(PIECES) | st.binary(max_size=3) | st.just(text[first:last] * 2))
        text = text[:first] + middle + text[last:]
    return text


def retyped(data: st.DataObject, lines: list[dict[str, Any]]) -> bytes:
    """Lines of JSON of which one has another value somewhere, of any type, or no value."""
    copied = json.loads(json.dumps(lines))
    line = data.draw(st.sampled_from(copied))
    name = data.draw(st.sampled_from(sorted(line)))
    if data.draw(st.booleans()):
        line[name] = data.draw(ANYTHING | st.integers(2**62, 2**70))
    else:
        del line[name]
    return as_lines(copied)


def as_lines(lines: list[Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def known(text: bytes) -> list[Any]:
    """What of an export is signed."""
    lines = [json.loads(line) for line in text.splitlines()]
    return [[line["kind"], *map(line.get, SIGNED_FIELDS[line["kind"]])] for line in lines]


def verify(tmp_path: Path, export: bytes, keys: bytes, checkpoint: bytes) -> int:
    """Runs the command on three files, checks what it prints, and returns its exit code."""
    files = {"export": export, "jwks": keys, "checkpoint": checkpoint}
    flags: list[str] = []
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        flags += [f"--{name}", str(tmp_path / name)]
    done = CliRunner().invoke(main, ["verify", "--json", *flags])
    assert done.exception is None or isinstance(done.exception, SystemExit), (files, done.exception)
    if done.exit_code == 2:
        assert done.stderr.strip()
        assert not done.stdout
    else:
        said = json.loads(done.stdout)
        assert said["sound"] is (done.exit_code == 0)
        assert bool(said["findings"]) is (done.exit_code == 1)
    return done.exit_code


def test_a_changed_export_is_found_out_or_cannot_be_read(signer: Signer, tmp_path: Path, fuzz: Fuzz) -> None:
    # Given a sound export, the keys and a checkpoint
    lines = chain(signer, RECORDS)  # type: ignore[arg-type]
    export, keys = as_lines(lines), b'{"keys":[' + signer.public_jwk.encode() + b"]}"
    checkpoint = json.dumps([{name: lines[-1][name] for name in ("series", "position", "k", "hash")}]).encode()
    assert verify(tmp_path, export, keys, checkpoint) == 0

    def check(data: st.DataObject) -> None:
        # When any of them is changed anyhow
        which = data.draw(st.sampled_from(("bytes", "values", "keys", "checkpoint")))
        files = {"export": export, "keys": keys, "checkpoint": checkpoint}
        if which == "values":
            files["export"] = retyped(data, lines)
        else:
            name = "export" if which == "bytes" else which
            files[name] = changed(data, files[name])

        # Then something is found, or the command says what it cannot read, or nothing was changed that is signed
        if verify(tmp_path, **files) == 0:
            assert known(files["export"]) == known(export)

    fuzz(check)


def test_a_changed_token_is_refused(fuzz: Fuzz) -> None:
    # Given a token that is good
    tokens = Tokens(Config(jwt_secret=SECRET))
    good = sign(make_key("HS256"), "HS256", claims(company=new_id()))
    opened = tokens.open(good)

    def check(data: st.DataObject) -> None:
        # When it is changed anyhow, or signs anything at all
        if data.draw(st.booleans()):
            token = changed(data, good.encode()).decode("latin-1")
        else:
            more = data.draw(st.dictionaries(st.sampled_from(sorted(claims())), ANYTHING, max_size=3))
            token = sign(make_key("HS256"), "HS256", claims() | more)

        # Then it is refused, or says what a token may say
        try:
            said = tokens.open(token)
        except Unauthorized as error:
            error.message.encode()
        else:
            assert said == opened or said.subject.isprintable()

    fuzz(check)


def test_a_changed_receipt_does_not_open(signer: Signer, fuzz: Fuzz) -> None:
    # Given a receipt
    receipt = chain(signer, [({}, False)])[1]["receipt"]
    keys = JsonWebKeySet(b'{"keys":[' + signer.public_jwk.encode() + b"]}")
    opened = keys.open(receipt)

    def check(data: st.DataObject) -> None:
        # When it is changed anyhow, then it does not open, or says the same
        with suppress(BadSignature, UnknownKey):
            assert keys.open(changed(data, receipt.encode()).decode("latin-1")) == opened

    fuzz(check)


def test_a_changed_cursor_is_refused(fuzz: Fuzz) -> None:
    # Given a cursor
    inside = json.dumps({"id": new_id(), "limit": 5}).encode()
    good = base64.b64encode(inside)

    def check(data: st.DataObject) -> None:
        # When it is changed anyhow, within or without, then it is refused, or names an id and a limit
        outside = changed(data, good) if data.draw(st.booleans()) else base64.b64encode(changed(data, inside))
        try:
            entry, limit = _read_cursor(outside.decode("latin-1"))
        except Invalid as error:
            assert set(error.fields) == {"cursor"}  # noqa: PT017 -- either is right
        else:
            assert len(entry) == 36
            assert isinstance(limit, int)

    fuzz(check)
