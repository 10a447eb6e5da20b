"""API keys: short, shown once, hashed, scoped, bound to one company."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from seriatim import auth
from seriatim.auth import ALPHABET, SCOPES, Authenticator, Principal
from seriatim.config import Config
from seriatim.errors import ConfigError, Unauthorized
from seriatim.http.sequence import Sequence
from seriatim.store import Store
from seriatim.tokens import Tokens
from stack import Up, new_id, put_entry, put_series, until

BASE = "/sequence/v1"
ROUTES = {
    ("GET", "/series"): "read",
    ("GET", "/series/{id}"): "read",
    ("PUT", "/series/{id}"): "manage",
    ("DELETE", "/series/{id}"): "manage",
    ("POST", "/series/{id}/skip"): "manage",
    ("GET", "/series/{id}/report"): "read",
    ("GET", "/series/{id}/preview"): "read",
    ("POST", "/series/preview"): "read",
    ("GET", "/series/{series_id}/entries"): "read",
    ("POST", "/series/{series_id}/entries"): "allocate",
    ("GET", "/series/{series_id}/entries/{id}"): "read",
    ("PUT", "/series/{series_id}/entries/{id}"): "allocate",
    ("POST", "/series/{series_id}/entries/{id}/void"): "allocate",
    ("PUT", "/entries/{id}"): "allocate",
}
"""Every route of the sequence dialect, and the scope that it asks for."""
BODIES: dict[str, Any] = {
    "/series/{id}/skip": {"to": 100, "reason": "test"},
    "/series/{series_id}/entries/{id}/void": {"reason": "test"},
}
TYPE = "of_this_test"


@pytest.fixture(scope="module")
def shared_up() -> Iterator[Up]:
    """A running `seriatim up` with two API processes, which the tests of this module share."""
    path = Path(tempfile.mkdtemp(prefix="seriatim-test-"))
    stack = Up(path, api_processes=2).start()
    assert stack.state == "ready"
    until(lambda: len(stack.pids("seriatim serve")) == 2)
    yield stack
    stack.stop()
    shutil.rmtree(path, ignore_errors=True)


def make_authenticator(store: Store) -> Authenticator:
    return Authenticator(store, Tokens(Config()), rate=0, in_flight=10)


def principal(authenticator: Authenticator, key: str) -> Principal:
    return asyncio.run(authenticator.principal(key, tokens=True))


def call(client: httpx.Client, route: tuple[str, str], series: str, entry: str) -> httpx.Response:
    path = "/sequence/v1" + route[1].format(series_id=series, id=entry if "entries" in route[1] else series)
    body = {"list": [{"id": entry}]} if route == ("POST", "/series/{series_id}/entries") else BODIES.get(route[1], {})
    params = {"type": TYPE} if route[1] == "/entries/{id}" else {}
    return client.request(route[0], path, params=params, json=None if route[0] == "GET" else body)


def create_key(up: Up, company: str, scope: str | None = None) -> str:
    arguments = ["keys", "create", "--company", company, *(["--scope", scope] if scope else [])]
    key: str = up.json(*arguments)["key"]
    return key


# the key itself ---------------------------------------------------------------------------------------------------


def test_a_key_is_short_and_its_secret_is_kept_nowhere(store: Store) -> None:
    # Given a company, when a key is made for it
    company = store.create_company("acme", "test")
    key, kept = auth.create_key(store, [company.id], ("read",), "test")

    # Then it has at most 44 bytes, and the store can find but not tell it
    assert len(key.encode()) <= 44
    assert set(key) <= set(ALPHABET) | {"_"}
    secret = key.removeprefix("seriatim_").removeprefix(kept.id)
    assert len(secret) == 25
    assert store.api_key(kept.id) == kept
    assert secret.encode() not in kept.hash + kept.salt
    assert secret not in repr(kept)


def test_keys_and_their_salts_differ(store: Store) -> None:
    # Given many keys of one company, then nothing about them is the same
    company = store.create_company("acme", "test")
    made = [auth.create_key(store, [company.id], ("read",), "test") for _ in range(50)]
    assert len({key for key, _ in made}) == len({kept.id for _, kept in made}) == 50
    assert len({kept.salt for _, kept in made}) == len({kept.hash for _, kept in made}) == 50


def test_a_key_opens_its_company_and_nothing_near_it_does(store: Store) -> None:
    # Given a key
    company = store.create_company("acme", "test")
    key, kept = auth.create_key(store, [company.id], ("read", "manage"), "test")
    authenticator = make_authenticator(store)

    # When it is checked, then it stands for its company and scopes
    holder = principal(authenticator, key)
    assert (holder.actor, holder.company, holder.companies) == (f"key {kept.id}", company.id, frozenset([company.id]))
    assert holder.scopes == {"read", "manage"}

    # And with any one letter changed, cut off or added it stands for nobody
    for at in range(len(key)):
        other = "A" if key[at] != "A" else "B"
        for wrong in (key[:at] + other + key[at + 1 :], key[:at] + key[at + 1 :], key[:at] + other + key[at:]):
            with pytest.raises(Unauthorized):
                principal(authenticator, wrong)


def test_secrets_are_compared_in_constant_time() -> None:
    # Given the source of the authenticator
    tree = ast.parse(inspect.getsource(auth))

    # When its comparisons are looked at
    compared = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Compare)]
    calls = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]

    # Then hashes meet in hmac.compare_digest and in no operator
    assert any(one.startswith("hmac.compare_digest(kept.hash, ") for one in calls)
    assert not [one for one in compared if "hash" in one or "secret" in one]


@pytest.mark.parametrize("text", ["", "write", "read,", "read,,manage", "READ", "read manage", "read,admin"])
def test_an_unknown_scope_is_refused_with_the_ones_that_exist(text: str) -> None:
    with pytest.raises(ConfigError, match=r"Unknown scope .* The scopes are read, allocate, manage"):
        auth.parse_scopes(text)


def test_scopes_are_read_from_a_list() -> None:
    assert auth.parse_scopes("read") == ("read",)
    assert auth.parse_scopes("manage, read,manage") == ("manage", "read")


# on a running service ---------------------------------------------------------------------------------------------


def test_a_key_works_at_once_and_is_written_nowhere(shared_up: Up) -> None:
    # Given a running service, when a key is made beside it
    key = create_key(shared_up, "default")

    # Then it works at once
    with shared_up.client(key) as other:
        series = put_series(other)
        put_entry(other, series)

    # And no file of the service holds its secret
    secret = key[-25:].encode()
    files = [path for path in shared_up.data_dir.rglob("*") if path.is_file()]
    assert {"store.db", "seriatim.log", "signing-key.json"} <= {path.name for path in files}
    assert [path for path in files if secret in path.read_bytes()] == []


@contextmanager
def asking_each_process(up: Up, key: str) -> Iterator[list[httpx.Client]]:
    """A client of each API process: while its connection is made, the other processes stand still."""
    processes = up.pids("seriatim serve")
    with ExitStack() as stack:
        clients = [stack.enter_context(up.client(key)) for _ in processes]
        for process, client in zip(processes, clients, strict=True):
            others = set(processes) - {process}
            for other in others:
                os.kill(other, signal.SIGSTOP)
            try:
                assert client.get(f"{BASE}/series").status_code == 200
            finally:
                for other in others:
                    os.kill(other, signal.SIGCONT)
        yield clients


@pytest.mark.parametrize("in_use", [True, False], ids=["in use", "idle"])
def test_a_revoked_key_is_refused_within_a_second_in_every_process(shared_up: Up, in_use: bool) -> None:  # noqa: FBT001
    # Given a key that two API processes know
    key = create_key(shared_up, "default")
    with asking_each_process(shared_up, key) as clients:
        assert len(clients) == 2

        # When it is revoked, while it is in use or not
        shared_up.run("keys", "revoke", key.removeprefix("seriatim_")[:10])
        revoked = time.monotonic()
        statuses = []
        while time.monotonic() < revoked + 1.5:
            if in_use or time.monotonic() > revoked + 1:
                began = time.monotonic() - revoked
                statuses += [(began, client.get(f"{BASE}/series").status_code) for client in clients]
            time.sleep(0.005)

    # Then within a second it is refused by both, and stays so
    assert {status for _, status in statuses} <= {200, 401}
    assert [status for began, status in statuses if began > 1].count(401) >= 2
    assert not [began for began, status in statuses if began > 1 and status == 200]
    listed = {one["id"]: one["revoked"] for one in shared_up.json("keys", "list")}
    assert listed[key.removeprefix("seriatim_")[:10]] is True


def test_no_key_or_a_wrong_one_is_told_what_to_send(shared_up: Up) -> None:
    # Given requests without a key, with another scheme and with a key that nobody has
    wrong = "seriatim_" + "A" * 35
    for header in ({}, {"Authorization": "Basic dTpw"}, {"Authorization": f"Bearer {wrong}"}):
        answer = httpx.get(f"{shared_up.url}/sequence/v1/series", headers=header)

        # Then each is a 401 that names the scheme
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.json()["code"] == "unauthorized"
        assert wrong not in answer.text


@pytest.mark.parametrize("scope", SCOPES)
def test_a_key_does_what_its_scope_says_and_nothing_else(shared_up: Up, client: httpx.Client, scope: str) -> None:
    # Given a default series with an entry, and a key with one scope
    series = put_series(client, type=TYPE, default=True)
    entry = put_entry(client, series)["id"]
    with shared_up.client(create_key(shared_up, "default", scope)) as limited:
        for route, wanted in ROUTES.items():
            # When each route is called with it
            answer = call(limited, route, series, entry)

            # Then it answers where the scope is its own, and elsewhere is refused with the scope's name
            allowed = 409 if route[0] == "DELETE" else 200
            assert answer.status_code == (allowed if wanted == scope else 403), (route, answer.text)
            if wanted != scope:
                assert answer.json()["code"] == "forbidden"
                assert repr(wanted) in answer.json()["message"]
    assert client.get(f"/sequence/v1/series/{series}").json()["last_index"] == 1


def test_the_table_of_routes_names_every_route_of_the_dialect() -> None:
    # Given the dialect's own routes, then the tests above and below miss none
    routes = Sequence(cast("Any", None), cast("Any", None), cast("Any", None), 1).routes()
    served = {(method, route.path.removeprefix(BASE)) for route in routes for method in route.methods or ()}
    assert served - {(method, path) for method, path in served if method == "HEAD"} == set(ROUTES)


def test_companies_do_not_see_one_another(shared_up: Up) -> None:
    # Given two companies, one with a series and an entry
    keys = []
    for _ in range(2):
        name = new_id()
        shared_up.run("companies", "create", name)
        keys.append(create_key(shared_up, name))
    with shared_up.client(keys[0]) as owner, shared_up.client(keys[1]) as stranger:
        series = put_series(owner, name="Mine", prefix="M-")
        entry = put_entry(owner, series)["id"]
        before = owner.get(f"/sequence/v1/series/{series}").json()

        # When the other company calls every route that names it
        for route in ROUTES:
            if "{" not in route[1]:
                continue
            answer = call(stranger, route, series, entry)

            # Then there is no such series, in the same words as for one that nobody has
            assert answer.status_code == 404, (route, answer.text)
            missing = new_id()
            if route[0] == "GET":
                nowhere = call(stranger, route, missing, entry)
                assert answer.json()["message"].replace(series, missing) == nowhere.json()["message"]

        # And its list does not show it, and a cursor into it is none
        assert stranger.get("/sequence/v1/series").json()["list"] == []
        assert owner.get(f"/sequence/v1/series/{series}").json() == before


def test_one_id_of_an_entry_is_two_entries_in_two_companies(shared_up: Up, client: httpx.Client) -> None:
    # Given two companies with a series each
    name = new_id()
    shared_up.run("companies", "create", name)
    with shared_up.client(create_key(shared_up, name)) as other:
        mine, theirs, entry = put_series(client, prefix="M-"), put_series(other, prefix="T-"), new_id()

        # When both use the same id, then each gets its own number
        assert put_entry(client, mine, entry)["code"] == "M-1"
        assert put_entry(other, theirs, entry)["code"] == "T-1"
        assert other.get(f"/sequence/v1/series/{theirs}/entries/{entry}").json()["code"] == "T-1"
