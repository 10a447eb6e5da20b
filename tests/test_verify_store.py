"""The audit of the store: what anybody did to its rows is found, and named where it was done."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import ECKey

from forgery import COUNT, Sound, digest, forge, found
from stack import Up, put_entry, put_series, seriatim


@pytest.fixture(scope="module")
def sound(shared_up: Up) -> Sound:
    return Sound(shared_up)


@pytest.fixture
def stranger() -> ECKey:
    """The key of somebody who is not the service."""
    return ECKey.generate_key("P-256")


# the store --------------------------------------------------------------------------------------------------------


class StoreCopy:
    """A copy of a data directory that no server works on, for somebody with sqlite3."""

    def __init__(self, path: Path, sound: Sound) -> None:
        self.path = path
        self.series = sound.series
        for name in ("store.db", "store.db-wal", "signing-key.json"):
            shutil.copy(sound.data_dir / name, path / name)

    def edit(self, *statements: str, **values: Any) -> None:
        of = "series = (SELECT pk FROM series WHERE id = :id)"
        with closing(sqlite3.connect(self.path / "store.db")) as connection, connection:
            for statement in statements:
                connection.execute(statement.replace("{of}", of), {"id": self.series.replace("-", "")} | values)

    def receipt(self, position: int) -> str:
        with closing(sqlite3.connect(self.path / "store.db")) as connection:
            select = "SELECT receipt FROM entries e JOIN series s ON s.pk = e.series WHERE s.id = ? AND e.position = ?"
            receipt: str = connection.execute(select, (self.series.replace("-", ""), position)).fetchone()[0]
        return receipt

    def verify(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return seriatim("verify", "--json", "--data-dir", str(self.path), *arguments)


@pytest.fixture
def stored(tmp_path: Path, sound: Sound) -> StoreCopy:
    return StoreCopy(tmp_path, sound)


def test_a_sound_store_is_sound_without_any_server(stored: StoreCopy, sound: Sound) -> None:
    # Given a copy of the store, when all of it is verified, then it is sound, and this series stands where it did
    done = stored.verify()
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert (result["sound"], result["findings"]) == (True, [])
    assert result["entries"] >= COUNT
    assert json.loads(sound.checkpoint)["checkpoints"][0] in result["checkpoints"]


def test_a_code_changed_in_the_store_is_found(stored: StoreCopy) -> None:
    stored.edit("UPDATE entries SET code = 'ES-9999' WHERE {of} AND position = 3")
    assert found(stored.verify(), stored.series) == [("changed_record", 3)]


def test_a_meta_changed_in_the_store_is_found(stored: StoreCopy) -> None:
    stored.edit("UPDATE entries SET meta = :meta WHERE {of} AND position = 3", meta=b'{"number":"4"}')
    assert found(stored.verify("--series", stored.series), stored.series) == [("changed_record", 3)]


@pytest.mark.parametrize("change", ["meta = 'text'", "numbers = '{'", "id = 'x'", "created_at = 'x'", "position = 'x'"])
def test_what_cannot_be_stored_is_found_in_the_store(stored: StoreCopy, change: str) -> None:
    # Given a row that holds what Seriatim would never write there, when it is verified, then the row is named
    stored.edit("UPDATE entries SET " + change + " WHERE {of} AND position = 3")
    kinds = {"malformed", "changed_record", "missing_record"}
    assert {where for where in found(stored.verify(), stored.series) if where[1] == 3} & {(kind, 3) for kind in kinds}


def test_a_row_deleted_from_the_store_is_found(stored: StoreCopy) -> None:
    stored.edit("DELETE FROM entries WHERE {of} AND position = 3")
    assert found(stored.verify(), stored.series) == [("missing_record", 3)]


def test_a_last_row_deleted_from_the_store_is_found(stored: StoreCopy) -> None:
    stored.edit("DELETE FROM entries WHERE {of} AND position = 6")
    assert found(stored.verify(), stored.series) == [("truncated_tail", COUNT - 1)]


def test_a_last_row_deleted_with_its_traces_is_found_by_a_checkpoint(stored: StoreCopy, sound: Sound) -> None:
    # Given a store that was set back by one entry in every table
    (stored.path / "checkpoint").write_bytes(sound.checkpoint)
    stored.edit(
        "DELETE FROM entries WHERE {of} AND position = 6",
        "UPDATE counters SET value = 15 WHERE {of}",
        "UPDATE series SET position = 5, head = :head WHERE id = :id",
        head=digest(stored.receipt(5).encode()),
    )

    # When it is verified, then it looks sound, and whoever kept a checkpoint knows better
    assert stored.verify("--series", stored.series).returncode == 0
    done = stored.verify("--checkpoint", str(stored.path / "checkpoint"))
    assert found(done, stored.series) == [("truncated_tail", COUNT - 1)]


def test_a_receipt_changed_in_the_store_is_found(stored: StoreCopy, stranger: ECKey, sound: Sound) -> None:
    receipt = forge(stored.receipt(3), stranger, sound.kid)
    stored.edit("UPDATE entries SET receipt = :receipt WHERE {of} AND position = 3", receipt=receipt)
    assert found(stored.verify(), stored.series) == [("bad_signature", 3), ("broken_link", 4)]


def test_a_row_added_to_the_store_is_found(stored: StoreCopy) -> None:
    # Given a seventh row, which the series' position does not count
    columns = "numbers, date, created_at, meta, sig, fingerprint, receipt, settled_at"
    stored.edit(
        f"INSERT INTO entries (series, position, id, code, previous_id, {columns}) "
        f"SELECT series, 7, '{'0' * 32}', 'ES-0017', id, {columns} FROM entries WHERE {{of}} AND position = 6"
    )
    assert found(stored.verify(), stored.series) == [("added_record", 7)]


def test_rows_swapped_in_the_store_are_found(stored: StoreCopy) -> None:
    stored.edit(
        "UPDATE entries SET position = 99 WHERE {of} AND position = 3",
        "UPDATE entries SET position = 3 WHERE {of} AND position = 4",
        "UPDATE entries SET position = 4 WHERE {of} AND position = 99",
    )
    assert {("changed_record", 3), ("changed_record", 4)} <= set(found(stored.verify(), stored.series))


def test_a_key_slipped_into_the_store_is_found_with_the_keys_that_were_published(
    stored: StoreCopy, sound: Sound, tmp_path: Path
) -> None:
    # Given a store whose last receipt was signed by somebody who also published his key there
    key = ECKey.generate_key("P-256")
    kid = key.thumbprint()
    forged = forge(stored.receipt(6), key, kid)
    jwk = json.dumps(key.as_dict(private=False) | {"kid": kid})
    stored.edit(
        "INSERT INTO signing_keys (kid, jwk, created_at) VALUES (:kid, :jwk, 0)",
        "UPDATE entries SET receipt = :receipt WHERE {of} AND position = 6",
        "UPDATE series SET head = :head WHERE id = :id",
        kid=kid,
        jwk=jwk,
        receipt=forged,
        head=digest(forged.encode()),
    )

    # When it is verified with the keys that an auditor has from before, then nobody knows that key
    (tmp_path / "jwks").write_bytes(sound.jwks)
    done = stored.verify("--jwks", str(tmp_path / "jwks"))
    assert found(done, stored.series) == [("unknown_key", COUNT)]


def test_a_store_is_sound_while_it_grows(shared_up: Up) -> None:
    # Given a series that gets entries all the time
    with shared_up.client() as client, ThreadPoolExecutor(4) as pool:
        series = put_series(client)
        growing = pool.map(lambda _: put_entry(client, series), range(1500))

        # When it is verified meanwhile, then no settlement in between is taken for a fault
        results: list[dict[str, Any]] = []
        while not results or results[-1]["entries"] < 1000:
            results.append(shared_up.json("verify", "--series", series))
        assert len(list(growing)) == 1500
    assert [result for result in results if result["findings"]] == []
    assert len(results) > 2
