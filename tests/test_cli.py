"""The command line, as users and scripts run it: results, JSON, exit codes, and what to do when it fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner

from seriatim import __version__
from seriatim.cli import main
from seriatim.config import MEANINGS, PREFIX
from stack import SERIATIM, Up, new_id, put_entry, put_series

CREATED = re.compile(r"seriatim_[A-Za-z0-9]{35}")


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a directory of its own, with no setting but these."""
    outer = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return subprocess.run(
        [*SERIATIM, *arguments],
        cwd=cwd,
        env=outer | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def why(done: subprocess.CompletedProcess[str]) -> str:
    """The message of a command that could not run: on standard error, on one line, and not a trace."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    message = done.stderr.strip()
    assert "\n" not in message
    return message.removeprefix("Error: ")


def error(up: Up, *arguments: str) -> dict[str, str]:
    """The JSON of a command that could not run."""
    done = up.run(*arguments, "--json", check=False)
    value: dict[str, str] = json.loads(why(done))
    assert set(value) == {"error", "message"}
    return value


# companies --------------------------------------------------------------------------------------------------------


def test_a_company_is_created_and_listed(shared_up: Up) -> None:
    # Given a service, when a company is created with --json
    name = f"Müller & Söhne {new_id()}"
    made = shared_up.json("companies", "create", name)

    # Then it is what scripts depend on, and both lists show it behind `default`
    assert made == {"id": str(uuid.UUID(made["id"])), "name": name}
    listed = shared_up.json("companies", "list")
    assert listed[0]["name"] == "default"
    assert made in listed
    assert f"{made['id']}  {name}" in shared_up.run("companies", "list").stdout.splitlines()


def test_a_company_s_name_is_taken_once(shared_up: Up) -> None:
    name = new_id()
    created = shared_up.run("companies", "create", name)
    assert re.fullmatch(rf"[0-9a-f-]{{36}}  {name}\n", created.stdout)
    taken = error(shared_up, "companies", "create", name)
    assert taken == {"error": "conflict", "message": f"A company named '{name}' exists. Choose another name."}


@pytest.mark.parametrize("name", ["", "   ", "two\nlines"])
def test_a_company_needs_a_name_that_a_list_can_show(shared_up: Up, name: str) -> None:
    assert "name" in why(shared_up.run("companies", "create", name, check=False))


# keys -------------------------------------------------------------------------------------------------------------


def test_a_key_is_created_shown_once_listed_and_revoked(shared_up: Up) -> None:
    # Given a company
    name = new_id()
    company = shared_up.json("companies", "create", name)["id"]

    # When a key is made for it, by name or by id
    made = shared_up.json("keys", "create", "--company", name, "--scope", "read,allocate")
    everything = shared_up.json("keys", "create", "--company", company)

    # Then the JSON is what scripts depend on
    assert made == {"key": made["key"], "id": made["id"], "company": company, "scopes": ["read", "allocate"]}
    assert CREATED.fullmatch(made["key"])
    assert made["key"].startswith(f"seriatim_{made['id']}")
    assert everything["scopes"] == ["read", "allocate", "manage"]

    # And lists show neither key again, and which one was revoked
    assert shared_up.json("keys", "revoke", made["id"]) == {"revoked": made["id"]}
    listed = {key["id"]: key for key in shared_up.json("keys", "list")}
    assert listed[made["id"]] == {
        "id": made["id"],
        "company": company,
        "companies": [company],
        "scopes": ["read", "allocate"],
        "revoked": True,
    }
    assert listed[everything["id"]]["revoked"] is False
    shown = shared_up.run("keys", "list").stdout
    assert f"{made['id']}  {company}  read,allocate  revoked" in shown.splitlines()
    assert not CREATED.search(shown)


def test_a_key_for_people_comes_with_a_warning(shared_up: Up) -> None:
    lines = shared_up.run("keys", "create", "--company", "default").stdout.splitlines()
    assert CREATED.fullmatch(lines[0])
    assert lines[1] == f"Keep it: it is not shown again. Its id is {lines[0][9:19]}."


def test_keys_of_nobody_are_refused_with_advice(shared_up: Up) -> None:
    # Given no such company, scope or key, then each message says where to look
    missing = error(shared_up, "keys", "create", "--company", "nobody")
    assert missing == {
        "error": "not_found",
        "message": "There is no company 'nobody'. `seriatim companies list` shows them.",
    }
    unknown = shared_up.run("keys", "create", "--company", "default", "--scope", "read,admin", check=False)
    assert why(unknown) == "Unknown scope 'admin'. The scopes are read, allocate, manage."
    assert error(shared_up, "keys", "revoke", "nothing")["message"].endswith("`seriatim keys list` shows them.")
    assert len({key["id"] for key in shared_up.json("keys", "list") if key["scopes"] == ["read", "admin"]}) == 0


def test_a_user_s_mistake_is_not_called_an_internal_error(shared_up: Up) -> None:
    wrong = error(shared_up, "keys", "create", "--company", "default", "--scope", "admin")
    assert wrong["error"] != "internal_error"


# series -----------------------------------------------------------------------------------------------------------


def test_series_are_listed_and_shown(shared_up: Up, client: httpx.Client) -> None:
    # Given a series with two settled entries
    series = put_series(client, name="Verkauf", prefix="R-", padding=5, start=7, type="receipt")
    for _ in range(2):
        put_entry(client, series)
    shared_up.settled()

    # When it is shown and listed, then the JSON says how it counts and how far it is settled
    shown = shared_up.json("series", "show", series)
    assert shown == {
        "id": series,
        "company": shared_up.json("companies", "list")[0]["id"],
        "type": "receipt",
        "name": "Verkauf",
        "active": True,
        "default": True,
        "position": 2,
        "prefix": "R-",
        "padding": 5,
        "suffix": "",
        "start": 7,
        "format": None,
        "timezone": "UTC",
        "fiscal_year_start": "01-01",
        "chronology": "strict",
        "max_length": None,
        "charset": None,
    }
    assert shown in shared_up.json("series", "list")
    assert "name: Verkauf" in shared_up.run("series", "show", series).stdout.splitlines()
    line = next(line for line in shared_up.run("series", "list").stdout.splitlines() if line.startswith(series))
    assert line == f"{series}  {shown['company']}  receipt  2 settled  Verkauf"


@pytest.mark.parametrize("command", [["series", "show"], ["export", "--series"], ["verify", "--series"]])
def test_an_unknown_series_is_named_with_advice(shared_up: Up, command: list[str]) -> None:
    for series in (new_id(), "nonsense"):
        missing = error(shared_up, *command, series)
        assert missing["error"] == "not_found"
        assert series in missing["message"]
        assert "`seriatim series list`" in missing["message"]


def test_a_series_is_found_however_its_id_is_written(shared_up: Up, client: httpx.Client) -> None:
    series = put_series(client)
    assert shared_up.json("series", "show", series)["id"] == series
    assert shared_up.run("series", "show", series.upper(), "--json", check=False).stdout != ""


# series and the audit log -----------------------------------------------------------------------------------------


def test_a_series_is_created_and_previewed_beside_a_running_service(shared_up: Up, client: httpx.Client) -> None:
    # Given a definition, when it is previewed, then its first codes are shown and nothing is made
    before = shared_up.json("series", "list")
    definition = ["--format", "T-%fyLong%-%incYearly%", "--padding", "4", "--start", "7"]
    definition += ["--fiscal-year-start", "04-01"]
    refused = shared_up.run("series", "preview", "--format", "T-%incYearly%", check=False)
    assert refused.returncode == 2
    assert "would repeat" in refused.stderr
    preview = shared_up.json("series", "preview", *definition)
    assert [code[-4:] for code in preview["next"]] == ["0007", "0008", "0009", "0010", "0011"]
    assert set(preview["after"]) == {"day", "month", "year", "fiscal_year"}
    assert preview["after"]["fiscal_year"]["date"].endswith("-04-01")
    assert shared_up.json("series", "list") == before

    # When it is created, as the default of a type
    chosen = new_id()
    made = shared_up.json(
        "series", "create", "--id", chosen, "--type", "till", "--name", "Till", "--default", *definition
    )
    assert (made["id"], made["type"], made["default"], made["next"]) == (chosen, "till", True, preview["next"])

    # Then the service issues what was previewed, and the preview goes on with it
    entry = client.put(f"/sequence/v1/entries/{new_id()}", params={"type": "till"}).json()
    assert (entry["series_id"], entry["code"]) == (chosen, preview["next"][0])
    assert shared_up.json("series", "preview", chosen)["next"][0] == preview["next"][1]

    # And what cannot be is refused with its reason
    for arguments, shown in (
        (["create", "--id", chosen], "exists"),
        (["create", "--id", "none"], "UUID"),
        (["create", "--company", "nobody"], "nobody"),
        (["create", "--type", "No Type"], "type"),
        (["create", "--max-length", "1", "--prefix", "LONG"], "max_length"),
        (["preview", new_id()], "no series"),
        (["preview", chosen, "--prefix", "A"], "not both"),
    ):
        done = shared_up.run("series", *arguments, check=False)
        assert done.returncode == 2
        assert shown in done.stderr


def test_a_series_is_created_where_nothing_runs(directory: Path) -> None:
    # Given a setting that was started once, and is stopped
    up = Up(directory).start()
    with up.client() as client:
        put_entry(client, put_series(client))
    up.stop()

    # When a series is created there, then it is there at the next start
    made = json.loads(up.run("series", "create", "--prefix", "N-", "--json").stdout)
    assert made["next"][0] == "N-1"
    up.start()
    with up.client() as client:
        assert put_entry(client, made["id"])["code"] == "N-1"
    up.stop()


def test_the_audit_log_says_who_did_what(shared_up: Up) -> None:
    # Given a company that was made, when the audit log is read, then it is the last line
    name = new_id()
    shared_up.run("companies", "create", name)
    last = shared_up.json("audit-log")[-1]
    assert (last["actor"], last["action"], last["detail"]["name"]) == ("cli", "create company", name)
    assert f"cli  create company  company={last['detail']['company']} name={name}" in shared_up.run("audit-log").stdout


# export -----------------------------------------------------------------------------------------------------------


def test_an_export_is_lines_of_json_and_its_csv_has_a_header(shared_up: Up, client: httpx.Client) -> None:
    # Given a series with a settled entry
    series = put_series(client, prefix="E-", name="Ausfuhr")
    entry = put_entry(client, series, meta={"k": "v"})["id"]
    shared_up.settled()

    # When it is exported
    begin, record, end = map(json.loads, shared_up.run("export", "--series", series).stdout.splitlines())

    # Then a line each says where it begins, what it holds, and where it ends
    assert (begin["kind"], begin["name"], json.loads(begin["genesis"])["series"]) == ("series", "Ausfuhr", series)
    assert (record["kind"], record["id"], record["position"], record["meta"]) == ("entry", entry, 1, '{"k":"v"}')
    assert (end["kind"], end["series"], end["position"]) == ("end", series, 1)

    # And as CSV it has a header
    lines = shared_up.run("export", "--series", series, "--format", "csv").stdout.splitlines()
    assert lines[0].startswith("kind,position,k,id,code,number,date,created_at,previous_id,meta,sig,void,")
    assert lines[1].startswith(f"entry,1,,{entry},E-1,1,")


def test_an_export_in_an_unknown_format_names_the_known_ones(shared_up: Up) -> None:
    done = shared_up.run("export", "--series", new_id(), "--format", "xml", check=False)
    assert done.returncode == 2
    assert "'jsonl', 'csv'" in done.stderr


def test_verify_prints_what_scripts_depend_on(shared_up: Up, client: httpx.Client) -> None:
    series = put_series(client)
    put_entry(client, series)
    shared_up.settled()
    result = shared_up.json("verify", "--series", series)
    assert (result["sound"], result["entries"], result["findings"]) == (True, 1, [])
    done = shared_up.run("verify", "--series", series)
    assert (done.returncode, done.stdout) == (0, "1 entries in 1 series: sound\n")


# config -----------------------------------------------------------------------------------------------------------


def test_settings_are_listed_with_value_origin_and_meaning(tmp_path: Path) -> None:
    # Given an environment with a secret in it, when the settings are listed both ways
    environment = {
        "SERIATIM_STORE_URL": "postgresql+psycopg://me:hunter2@db/seriatim",
        "SERIATIM_SHARDS": "32",
    }
    listed = json.loads(run("config", "--json", cwd=tmp_path, **environment).stdout)
    text = run("config", cwd=tmp_path, **environment).stdout

    # Then each is there with its origin and meaning, and the secret is not
    by_name = {one["name"]: one for one in listed}
    assert set(by_name) == {PREFIX + name.upper() for name in MEANINGS}
    assert by_name["SERIATIM_SHARDS"] == {
        "name": "SERIATIM_SHARDS",
        "value": "32",
        "origin": "environment",
        "meaning": MEANINGS["shards"],
    }
    assert by_name["SERIATIM_ISSUER"]["origin"] == "default"
    assert "SERIATIM_SHARDS=32  (environment)" in text
    assert "hunter2" not in text + json.dumps(listed)


def test_a_setting_of_the_data_directory_is_not_called_one_of_the_environment(tmp_path: Path) -> None:
    # Given no environment, but a data directory, when the settings are listed, then none is from the environment
    listed = json.loads(run("config", "--json", "--data-dir", "d", cwd=tmp_path).stdout)
    assert [one["name"] for one in listed if one["origin"] == "environment"] == []
    assert next(one["value"] for one in listed if one["name"] == "SERIATIM_SIGNING_KEY").endswith("d/signing-key.json")


@pytest.mark.parametrize("command", [["companies", "list"], ["config"], ["verify"], ["serve"], ["worker"], ["up"]])
def test_a_setting_that_nobody_knows_stops_every_command(tmp_path: Path, command: list[str]) -> None:
    done = run(*command, cwd=tmp_path, SERIATIM_SHARD="4", SERIATIM_STORE_URL="sqlite:///x.db")
    message = why(done)
    assert message.startswith("Unknown setting SERIATIM_SHARD. ")
    assert "SERIATIM_SHARDS" in message


# where there is nothing -------------------------------------------------------------------------------------------

NEEDS_STORE = [
    ["companies", "list"],
    ["companies", "create", "acme"],
    ["keys", "list"],
    ["keys", "create", "--company", "acme"],
    ["keys", "revoke", "x"],
    ["series", "list"],
    ["series", "show", "x"],
    ["export", "--series", "x"],
    ["verify"],
]


@pytest.mark.parametrize("command", NEEDS_STORE, ids=" ".join)
def test_without_a_store_there_is_advice_and_no_new_file(tmp_path: Path, command: list[str]) -> None:
    # Given an empty directory, when a command needs a store, then it says how to get one, and leaves nothing behind
    message = why(run(*command, cwd=tmp_path))
    assert f"There is no store at {tmp_path / 'data' / 'store.db'}" in message
    assert "Run `seriatim up` first, or name its --data-dir." in message
    assert list(tmp_path.iterdir()) == []


def test_a_data_directory_can_be_named_by_flag_and_by_environment(shared_up: Up, tmp_path: Path) -> None:
    # Given a service elsewhere, when its directory is named in either way, then its store is found
    for arguments, environment in (
        (["--data-dir", str(shared_up.data_dir)], {}),
        ([], {"SERIATIM_DATA_DIR": str(shared_up.data_dir)}),
        ([], {"SERIATIM_STORE_URL": f"sqlite:///{shared_up.data_dir / 'store.db'}"}),
    ):
        done = run("companies", "list", "--json", *arguments, cwd=tmp_path, **environment)
        assert json.loads(done.stdout)[0]["name"] == "default"


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("nonsense", "SERIATIM_STORE_URL"),
        ("mysql://db/x", "sqlite:/// or postgresql"),
        ("sqlite:///nowhere/store.db", "`seriatim up`"),
        ("postgresql+psycopg://nobody@127.0.0.1:1/x", "store"),
    ],
)
def test_a_store_that_cannot_be_reached_is_said_so(tmp_path: Path, url: str, advice: str) -> None:
    assert advice in why(run("companies", "list", cwd=tmp_path, SERIATIM_STORE_URL=url))


@pytest.mark.parametrize("command", [["companies", "list"], ["verify"]], ids=" ".join)
@pytest.mark.parametrize("content", [b"", b"this is no database", b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_file_that_is_no_store_is_said_so(tmp_path: Path, command: list[str], content: bytes) -> None:
    # Given something else where the store should be, when a command reads it, then it could not run, and says why
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "store.db").write_bytes(content)
    assert "store" in why(run(*command, cwd=tmp_path))


def test_a_store_of_which_a_page_is_damaged_is_said_so(shared_up: Up, tmp_path: Path) -> None:
    # Given a copy of a store whose pages are overwritten behind the first
    shutil.copytree(shared_up.data_dir, tmp_path / "data", ignore=shutil.ignore_patterns("redis", "lock"))
    with closing(sqlite3.connect(tmp_path / "data" / "store.db")) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    with (tmp_path / "data" / "store.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096 * 40)

    # When it is verified, then that could not be done; it is no finding
    assert "store" in why(run("verify", cwd=tmp_path))


# the program itself -----------------------------------------------------------------------------------------------


def test_the_program_says_its_version_and_its_exit_codes(tmp_path: Path) -> None:
    assert __version__ in run("--version", cwd=tmp_path).stdout
    shown = run("--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert "Exit codes: 0 done, 1 findings" in shown.stdout


def test_every_command_has_help_and_takes_json_and_a_data_directory() -> None:
    # Given the whole tree of commands, when each is asked for help, then it has a sentence and the common flags
    waiting: list[tuple[list[str], click.Command]] = [([], main)]
    while waiting:
        words, command = waiting.pop()
        shown = CliRunner().invoke(main, [*words, "--help"])
        assert shown.exit_code == 0
        assert command.help, words
        if isinstance(command, click.Group):
            waiting += [([*words, name], one) for name, one in command.commands.items()]
        else:
            assert "--json" in shown.output, words
            assert "--data-dir" in shown.output, words


@pytest.mark.parametrize("command", [["nope"], ["keys", "nope"], ["keys", "create"], ["verify", "--export", "nope"]])
def test_a_command_that_is_none_exits_with_2_and_says_where_help_is(tmp_path: Path, command: list[str]) -> None:
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 2
    assert "--help" in done.stderr
    assert "Traceback" not in done.stderr


def test_json_is_one_value_a_result(shared_up: Up, client: httpx.Client) -> None:
    # Given the commands that only read, when each runs with --json, then it prints one JSON value and nothing else
    series = put_series(client)
    commands: list[list[str]] = [
        ["companies", "list"],
        ["keys", "list"],
        ["series", "list"],
        ["series", "show", series],
        ["config"],
        ["verify"],
    ]
    for command in commands:
        done = shared_up.run(*command, "--json")
        value: Any = json.loads(done.stdout)
        assert value
        assert done.stderr == ""
        assert done.stdout.count("\n") == 1
