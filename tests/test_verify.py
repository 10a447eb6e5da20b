"""The audit of exports: what anybody did to one is found, and named where it was done."""

from __future__ import annotations

import base64
import copy
import csv
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from joserfc.jwk import ECKey

from forgery import CLIENT_SIG, COUNT, Export, Sound, Where, claims, digest, forge, found
from stack import SERIATIM, Up, list_entries, put_entry, put_series, seriatim, until


class Verifier:
    """`seriatim verify --json` on files, as an auditor far away runs it."""

    def __init__(self, directory: Path, sound: Sound) -> None:
        self.directory = directory
        self.sound = sound

    def run(
        self, text: bytes, *, jwks: bytes | None = None, checkpoint: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        contents = {"export": text, "jwks": self.sound.jwks if jwks is None else jwks, "checkpoint": checkpoint}
        arguments = []
        for name, content in contents.items():
            if content is not None:
                (self.directory / name).write_bytes(content)
                arguments += [f"--{name}", str(self.directory / name)]
        return seriatim("verify", "--json", *arguments)

    def findings(self, export: Export, checkpoint: bytes | None = None) -> list[Where]:
        """What is found in an export that cannot be sound: kinds and positions, all of this series."""
        done = self.run(b"".join(export.lines()), checkpoint=checkpoint)
        return found(done, self.sound.series)

    def refusal(self, text: bytes, **more: bytes) -> str:
        """Why an export could not be verified at all."""
        done = self.run(text, **more)
        assert done.returncode == 2, done.stdout + done.stderr
        assert done.stdout == ""
        message: str = json.loads(done.stderr)["message"]
        return message


@pytest.fixture(scope="module")
def sound(shared_up: Up) -> Sound:
    return Sound(shared_up)


@pytest.fixture
def export(sound: Sound) -> Export:
    return Export(sound.text)


@pytest.fixture
def stranger() -> ECKey:
    """The key of somebody who is not the service."""
    return ECKey.generate_key("P-256")


@pytest.fixture
def verifier(tmp_path: Path, sound: Sound) -> Verifier:
    return Verifier(tmp_path, sound)


# exports ----------------------------------------------------------------------------------------------------------


def test_a_sound_export_is_sound_for_whoever_has_the_keys(verifier: Verifier, sound: Sound) -> None:
    # Given an export, the published keys and an earlier checkpoint, when they are verified far from the service
    done = verifier.run(sound.text, checkpoint=sound.checkpoint)

    # Then all is well, and the result says where the chain stands now
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["sound"], result["entries"], result["findings"]) == (True, COUNT, [])
    assert result["checkpoints"] == json.loads(sound.checkpoint)["checkpoints"]
    last = sound.entries[-1]["sigs"][-1]
    assert result["checkpoints"] == [{"series": sound.series, "position": COUNT, "hash": digest(last.encode())}]


def test_a_deleted_entry_is_found(verifier: Verifier, export: Export) -> None:
    # Given an export without its third record, when it is verified, then that is what is missing
    export.records.remove(export.at(3))
    assert verifier.findings(export) == [("missing_record", 3)]


def test_a_deleted_first_entry_is_found(verifier: Verifier, export: Export) -> None:
    export.records.remove(export.at(1))
    assert verifier.findings(export) == [("missing_record", 1)]


def test_a_deleted_entry_is_found_when_the_rest_is_renumbered(verifier: Verifier, export: Export) -> None:
    # Given an export without its third record, where the rest has moved up
    export.records.remove(export.at(3))
    for position, record in enumerate(export.records, 1):
        record["position"] = position
    export.end_with_what_is_there()

    # When it is verified, then each that moved is found
    findings = verifier.findings(export)
    assert {("changed_record", 3), ("broken_link", 3), ("changed_record", 4), ("changed_record", 5)} <= set(findings)
    assert not [where for where in findings if where[1] < 3]


def test_a_deleted_tail_is_found_by_an_earlier_checkpoint(verifier: Verifier, sound: Sound, export: Export) -> None:
    # Given an export without its last two records, and an end line that agrees
    del export.records[-2:]
    export.end_with_what_is_there()

    # When it is verified, then what is left looks sound, and whoever kept a checkpoint knows better
    assert verifier.run(b"".join(export.lines())).returncode == 0
    assert verifier.findings(export, sound.checkpoint) == [("truncated_tail", COUNT - 2)]


def test_a_deleted_tail_is_found_by_the_end_line(verifier: Verifier, export: Export) -> None:
    del export.records[-2:]
    assert verifier.findings(export) == [("truncated_tail", COUNT - 2)]


def test_a_file_that_ends_too_early_is_found(verifier: Verifier, sound: Sound, export: Export) -> None:
    # Given an export that was cut off between two lines, when it is verified, then its end is missing
    done = verifier.run(b"".join(export.lines()[:-1]))
    assert found(done, sound.series) == [("truncated_tail", COUNT)]

    # And cut off within a line, that line cannot be read
    assert "Line 7 of the export cannot be read" in verifier.refusal(b"".join(export.lines()[:-1])[:-9])


def test_a_changed_code_is_found(verifier: Verifier, export: Export) -> None:
    # Given an export with another code in a record
    export.at(3)["code"] = "ES-9999"

    # When it is verified, then the record is named, and what about it differs
    assert verifier.findings(export) == [("changed_record", 3)]
    detail = json.loads(verifier.run(b"".join(export.lines())).stdout)["findings"][0]["detail"]
    assert detail == "differs from its receipt in code"


def test_a_code_given_twice_is_found(verifier: Verifier, export: Export) -> None:
    export.at(4)["code"] = export.at(3)["code"]
    assert set(verifier.findings(export)) == {("changed_record", 4), ("repeated_code", 4)}


def test_a_changed_meta_is_found(verifier: Verifier, export: Export) -> None:
    export.at(3)["meta"] = export.at(3)["meta"].replace("3", "4")
    assert verifier.findings(export) == [("changed_record", 3)]


@pytest.mark.parametrize("sig", [None, CLIENT_SIG[:-1]])
def test_a_changed_client_signature_is_found(verifier: Verifier, export: Export, sig: str | None) -> None:
    assert export.at(3)["sig"] == CLIENT_SIG
    export.at(3)["sig"] = sig
    assert verifier.findings(export) == [("changed_record", 3)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("date", "2020-01-01"),
        ("created_at", 0),
        ("id", "00000000-0000-4000-8000-000000000000"),
        ("numbers", [{"counter": "inc", "period": "", "value": 999}]),
        ("numbers", []),
    ],
)
def test_any_other_changed_field_is_found(verifier: Verifier, export: Export, name: str, value: Any) -> None:
    export.at(3)[name] = value
    assert ("changed_record", 3) in verifier.findings(export)


@pytest.mark.parametrize("created_at", [2**63 - 1, -(2**62), 10**17])
def test_a_time_that_is_none_is_found(verifier: Verifier, export: Export, created_at: int) -> None:
    export.at(3)["created_at"] = created_at
    assert verifier.findings(export) == [("malformed", 3)]


def test_two_swapped_lines_are_found(verifier: Verifier, export: Export) -> None:
    # Given an export with two lines that changed places, when it is verified, then one is where it should not be
    third, fourth = export.at(3), export.at(4)
    export.records[2:4] = [fourth, third]
    assert verifier.findings(export) == [("missing_record", 3), ("out_of_order", 3)]


def test_two_swapped_entries_are_found_when_they_are_renumbered(verifier: Verifier, export: Export) -> None:
    # Given an export with two records that changed places and positions
    third, fourth = export.at(3), export.at(4)
    export.records[2:4] = [fourth, third]
    third["position"], fourth["position"] = 4, 3

    # When it is verified, then both are found to be others than were signed, out of their links and numbers
    findings = verifier.findings(export)
    for position in (3, 4):
        assert {("changed_record", position), ("broken_link", position), ("number_gap", position)} <= set(findings)
    assert not [where for where in findings if where[1] in (1, 2, 6)]


def test_a_record_that_comes_twice_is_found(verifier: Verifier, export: Export) -> None:
    export.records.insert(4, copy.deepcopy(export.at(3)))
    assert set(verifier.findings(export)) == {("out_of_order", 3), ("repeated_id", 3), ("repeated_code", 3)}


def test_a_forged_signature_is_found(verifier: Verifier, sound: Sound, export: Export, stranger: ECKey) -> None:
    # Given a record that somebody else signed in the service's name
    export.at(3)["receipt"] = forge(export.at(3)["receipt"], stranger, sound.kid)

    # When it is verified, then the signature does not hold, and the next record links to another receipt
    assert verifier.findings(export) == [("bad_signature", 3), ("broken_link", 4)]


def test_an_unknown_key_is_found(verifier: Verifier, export: Export, stranger: ECKey) -> None:
    # Given a record that somebody else signed in his own name, then nobody published that key
    export.at(3)["receipt"] = forge(export.at(3)["receipt"], stranger, "stranger")
    assert verifier.findings(export) == [("unknown_key", 3), ("broken_link", 4)]


def test_an_edited_receipt_is_found(verifier: Verifier, export: Export) -> None:
    # Given a record whose code was changed in its receipt too, under the old signature
    header, _, signature = export.at(3)["receipt"].split(".")
    said = rfc8785.dumps(claims(export.at(3)["receipt"]) | {"code": "ES-9999"})
    payload = base64.urlsafe_b64encode(said).decode().rstrip("=")
    export.at(3).update(code="ES-9999", receipt=f"{header}.{payload}.{signature}")

    # When it is verified, then the signature does not hold, and the next record links to another receipt
    assert verifier.findings(export) == [("bad_signature", 3), ("broken_link", 4)]


@pytest.mark.parametrize("receipt", ["", "x", "a.b.c", "..", "\u00e9.\u00e9.\u00e9", "W10.e30.c2ln"])
def test_what_is_no_receipt_is_found(verifier: Verifier, export: Export, receipt: str) -> None:
    export.at(COUNT)["receipt"] = receipt
    assert verifier.findings(export) == [("bad_signature", COUNT), ("broken_link", COUNT)]


def test_an_entry_added_at_the_end_is_found(verifier: Verifier, sound: Sound, export: Export, stranger: ECKey) -> None:
    # Given a seventh record that follows the sixth in everything, with an end line that agrees
    sixth = export.at(COUNT)
    changes: dict[str, Any] = {
        "position": 7,
        "id": "00000000-0000-4000-8000-000000000007",
        "code": "ES-0017",
        "numbers": [{"counter": "inc", "period": "", "value": 17}],
        "previous_id": sixth["id"],
    }
    link = {"prev": digest(sixth["receipt"].encode())}
    for kid, kind in ((sound.kid, "bad_signature"), ("stranger", "unknown_key")):
        receipt = forge(sixth["receipt"], stranger, kid, **changes, **link)
        export.records[COUNT:] = [sixth | changes | {"receipt": receipt}]
        export.end_with_what_is_there()

        # When it is verified, then it is found by whose name it is signed in
        assert verifier.findings(export) == [(kind, 7)]

    # And with the sixth's own receipt it is found by what it says
    export.records[COUNT:] = [sixth | changes]
    export.end_with_what_is_there()
    assert set(verifier.findings(export)) == {("changed_record", 7), ("broken_link", 7)}


def test_an_entry_added_behind_the_end_is_found(verifier: Verifier, sound: Sound, export: Export) -> None:
    # Given a record that was added, and the end line as it was, then the end line knows of it nothing
    export.records.append(export.at(COUNT) | {"position": 7})
    assert ("added_record", 7) in verifier.findings(export)

    # And one line behind the end belongs to nothing
    lines = Export(sound.text).lines()
    assert "Line 9 of the export belongs to no series" in verifier.refusal(b"".join([*lines, lines[-2]]))


def test_a_chain_signed_again_by_somebody_else_is_found(
    verifier: Verifier, sound: Sound, export: Export, stranger: ECKey
) -> None:
    # Given an export without its third record, numbered, linked and signed again from the first to the last
    export.records.remove(export.at(3))
    for value, record in enumerate(export.records, 11):
        record |= {"code": f"ES-{value:04d}", "numbers": [{"counter": "inc", "period": "", "value": value}]}
    for kid, kind in ((sound.kid, "bad_signature"), ("stranger", "unknown_key")):
        export.sign_again(stranger, kid)

        # When it is verified, then not one of its receipts holds
        assert verifier.findings(export) == [(kind, position) for position in range(1, COUNT)]


def test_a_chain_signed_again_with_the_service_s_own_key_is_found_by_a_checkpoint(
    verifier: Verifier, sound: Sound, export: Export
) -> None:
    # Given somebody with the private key, who leaves out a record and signs all again
    key = ECKey.import_key(json.loads((sound.data_dir / "signing-key.json").read_text()))
    export.records.remove(export.at(3))
    for value, record in enumerate(export.records, 11):
        record |= {"code": f"ES-{value:04d}", "numbers": [{"counter": "inc", "period": "", "value": value}]}
    export.sign_again(key, sound.kid)

    # When it is verified, then it looks sound, and whoever kept a checkpoint knows better
    assert verifier.run(b"".join(export.lines())).returncode == 0
    assert verifier.findings(export, sound.checkpoint) == [("truncated_tail", COUNT - 1)]

    # And when a record was changed, not left out, the checkpoint's hash tells
    changed = Export(sound.text)
    changed.at(2)["date"] = "2020-02-29"
    changed.sign_again(key, sound.kid)
    assert verifier.run(b"".join(changed.lines())).returncode == 0
    assert verifier.findings(changed, sound.checkpoint) == [("broken_link", COUNT)]


def test_a_changed_genesis_is_found(verifier: Verifier, export: Export) -> None:
    # Given an export that tells another beginning, when it is verified, then the first link does not hold
    sound = export.begin["genesis"]
    export.begin["genesis"] = sound.replace('"type":"invoice"', '"type":"receipt"')
    assert verifier.findings(export) == [("broken_link", 1)]

    # And when it tells of another format, no code is what it makes of the numbers
    export.begin["genesis"] = sound.replace('"padding":4', '"padding":5')
    wrong = [("wrong_code", position) for position in range(1, COUNT + 1)]
    assert sorted(verifier.findings(export)) == [("broken_link", 1), *wrong]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"hash": "A" * 43}, ("broken_link", COUNT)),
        ({"position": COUNT + 1}, ("truncated_tail", COUNT)),
        ({"position": COUNT - 1}, ("added_record", COUNT)),
        ({"series": "00000000-0000-4000-8000-000000000000"}, ("broken_link", COUNT)),
    ],
)
def test_a_changed_end_is_found(verifier: Verifier, export: Export, change: dict[str, Any], where: Where) -> None:
    export.end |= change
    assert verifier.findings(export) == [where]


# what is no export ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage", [b"garbage\n", b"\n", b"{}\n", b"[]\n", b"\xff\n", b'{"kind":"entry"}\n', b"[" * 100_000 + b"\n"]
)
def test_a_line_that_is_none_is_named(verifier: Verifier, export: Export, garbage: bytes) -> None:
    lines = export.lines()
    assert "Line 4 of the export cannot be read" in verifier.refusal(b"".join([*lines[:3], garbage, *lines[3:]]))


def test_an_empty_export_proves_nothing(verifier: Verifier) -> None:
    assert verifier.refusal(b"") == "The export is empty. Export again."


def test_an_export_that_begins_in_the_middle_is_none(verifier: Verifier, export: Export) -> None:
    assert "Line 1 of the export belongs to no series" in verifier.refusal(b"".join(export.lines()[1:]))


def test_a_series_that_comes_twice_cannot_hide_the_first_time(verifier: Verifier, sound: Sound, export: Export) -> None:
    export.at(3)["code"] = "ES-9999"
    assert "begins a series that it holds already" in verifier.refusal(b"".join(export.lines()) + sound.text)


@pytest.mark.parametrize("jwks", [b"", b"{}", b'{"keys":[{"kid":"a"}]}', b"<html>not found</html>"])
def test_keys_that_are_none_are_refused(verifier: Verifier, sound: Sound, jwks: bytes) -> None:
    assert "This is not a JSON Web Key Set" in verifier.refusal(sound.text, jwks=jwks)


def test_an_export_without_keys_is_refused_with_advice(sound: Sound, tmp_path: Path) -> None:
    # Given an export alone, when it is verified, then the message says where the keys are
    (tmp_path / "export").write_bytes(sound.text)
    done = subprocess.run(
        [*SERIATIM, "verify", "--export", "export"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "/.well-known/jwks.json" in done.stderr


@pytest.mark.parametrize("checkpoint", [b"", b"{}", b"[5]", b'{"checkpoints":[{"series":"a"}]}', b"\xff"])
def test_a_checkpoint_that_is_none_is_refused(verifier: Verifier, sound: Sound, checkpoint: bytes) -> None:
    assert "This is no checkpoint file" in verifier.refusal(sound.text, checkpoint=checkpoint)


def test_a_checkpoint_of_a_series_that_is_not_there_is_not_passed_over(verifier: Verifier, sound: Sound) -> None:
    other = {"series": "00000000-0000-4000-8000-000000000000", "position": 1, "hash": "A" * 43}
    checkpoint = json.dumps({"checkpoints": [other]}).encode()
    assert "There is no series 00000000-0000-4000-8000-000000000000" in verifier.refusal(
        sound.text, checkpoint=checkpoint
    )


def test_people_read_what_was_found(verifier: Verifier, sound: Sound, export: Export) -> None:
    # Given an export without its third record, when it is verified without --json
    export.records.remove(export.at(3))
    verifier.run(b"".join(export.lines()))
    command = [*SERIATIM, "verify", "--export", "export", "--jwks", "jwks"]
    done = subprocess.run(command, cwd=verifier.directory, capture_output=True, text=True, check=False)

    # Then each finding is a line, and the last one sums up
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"missing_record: series {sound.series}, position 3: no record at 3",
        f"{COUNT - 1} entries in 1 series: 1 findings",
    ]


# for spreadsheets -------------------------------------------------------------------------------------------------


def test_a_csv_export_says_what_the_api_says(shared_up: Up, sound: Sound) -> None:
    # Given a settled series, when it is exported as CSV
    text = sound.export(shared_up, "--format", "csv").decode()

    # Then there is a line for each entry, with the fields that the API shows
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["position"] for row in rows] == [str(entry["position"]) for entry in sound.entries]
    for row, entry in zip(rows, sound.entries, strict=True):
        for name in ("id", "code", "date", "created_at"):
            assert row[name] == entry[name]
        assert row["number"] == str(entry["number"])
        assert row["previous_id"] == entry.get("previous_id", "")
        assert json.loads(row["meta"]) == entry["meta"]
        assert [one for one in (row["sig"], row["receipt"]) if one] == entry["sigs"]


def test_a_csv_export_keeps_commas_quotes_and_other_scripts(shared_up: Up) -> None:
    # Given an entry full of what CSV must quote
    meta = {"a,b": 'He said "no"', "строка": "1\r\n2", "\U0001f4a9": "=1+1"}
    with shared_up.client() as client:
        series = put_series(client, prefix='"A", ')
        put_entry(client, series, meta=meta)
        until(lambda: list_entries(client, series)[0]["sigs"])

    # When it is exported as CSV, then reading it gives the same back
    text = shared_up.run("export", "--series", series, "--format", "csv").stdout
    row = next(csv.DictReader(io.StringIO(text, newline="")))
    assert row["code"] == '"A", 1'
    assert json.loads(row["meta"]) == meta


def test_an_export_of_a_series_without_entries_is_sound(verifier: Verifier, shared_up: Up) -> None:
    with shared_up.client() as client:
        series = put_series(client)
    done = verifier.run(shared_up.run("export", "--series", series).stdout.encode())
    assert (done.returncode, json.loads(done.stdout)["entries"]) == (0, 0)
