"""Who may do what where: every route of every dialect with every kind of credentials, right and wrong ones."""

from __future__ import annotations

import base64
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from issuer import Issuer
from seriatim import config
from seriatim.http.app import Front
from stack import Up, new_id, put_entry, put_series

# Columns: the owner's key; the key of another company, alone and with the owner's company in X-Company; a key of
# both companies, the other one leading, alone and with the owner's company; the owner's token; a token of both
# companies with the owner's; the token of another company; what is refused whatever it asks for; and a key of the
# owner's that may do everything but this.
TABLE = """
       path                                                own other foreign both both+ token token+ other's bad scope
GET    /sequence/v1/series                                 200   200     403  200   200   200    200     200 401   403
GET    /sequence/v1/series/{id}                            200   404     403  404   200   200    200     404 401   403
PUT    /sequence/v1/series/{id}                            200   404     403  404   200   200    200     404 401   403
DELETE /sequence/v1/series/{id}                            409   404     403  404   409   409    409     404 401   403
POST   /sequence/v1/series/{id}/skip                       200   404     403  404   200   200    200     404 401   403
GET    /sequence/v1/series/{id}/report                     200   404     403  404   200   200    200     404 401   403
GET    /sequence/v1/series/{id}/preview                    200   404     403  404   200   200    200     404 401   403
POST   /sequence/v1/series/preview                         200   200     403  200   200   200    200     200 401   403
GET    /sequence/v1/series/{series_id}/entries             200   404     403  404   200   200    200     404 401   403
POST   /sequence/v1/series/{series_id}/entries             200   404     403  404   200   200    200     404 401   403
GET    /sequence/v1/series/{series_id}/entries/{id}        200   404     403  404   200   200    200     404 401   403
PUT    /sequence/v1/series/{series_id}/entries/{id}        200   404     403  404   200   200    200     404 401   403
POST   /sequence/v1/series/{series_id}/entries/{id}/void   200   404     403  404   200   200    200     404 401   403
PUT    /sequence/v1/entries/{id}                           200   404     403  404   200   200    200     404 401   403

GET    /api/v9/invoices/series                             200   200     403  200   200   401    401     401 401   403
GET    /api/v8/invoices/series                             200   200     403  200   200   401    401     401 401   403

GET    /api/v1/document-series                             200   200     403  403   200   200    200     200 401   403
POST   /api/v1/document-series                             201   201     403  403   201   201    201     201 401   403
PATCH  /api/v1/document-series/{uuid}                      200   404     403  403   200   200    200     404 401   403
POST   /api/v1/document-series/{uuid}/set-default          200   404     403  403   200   200    200     404 401   403
DELETE /api/v1/document-series/{uuid}                      409   404     403  403   409   409    409     404 401   403

GET    /invoice_numbering_sequences                        200   200     403  200   200   401    401     401 401   403
POST   /invoice_numbering_sequences                        200   200     403  200   200   401    401     401 401   403
GET    /invoice_numbering_sequences/{id}                   200   404     403  404   200   401    401     401 401   403
PATCH  /invoice_numbering_sequences/{id}                   200   404     403  404   200   401    401     401 401   403
PATCH  /invoice_numbering_sequences/{id}/default           200   404     403  404   200   401    401     401 401   403

GET    /credit_note_numbering_sequences                    200   200     403  200   200   401    401     401 401   403
POST   /credit_note_numbering_sequences                    200   200     403  200   200   401    401     401 401   403
GET    /credit_note_numbering_sequences/{id}               200   404     403  404   200   401    401     401 401   403
PATCH  /credit_note_numbering_sequences/{id}               200   404     403  404   200   401    401     401 401   403
PATCH  /credit_note_numbering_sequences/{id}/default       200   404     403  404   200   401    401     401 401   403
"""
OPEN = {"/healthz", "/readyz", "/.well-known/jwks.json", "/openapi.json", "/docs"}
"""Paths for everybody, and those below them: they tell nothing of any company."""
DIALECTS = {
    "/sequence/v1": "sequence",
    "/api/v9": "dreamapply",
    "/api/v8": "dreamapply",
    "/api/v1": "storno",
    "/invoice_numbering_sequences": "octobat",
    "/credit_note_numbering_sequences": "octobat",
}
CHALLENGES = {"sequence": "Bearer", "dreamapply": "DREAM", "storno": "Bearer", "octobat": 'Basic realm="seriatim"'}
OCTOBAT = ("/invoice_numbering_sequences", "/credit_note_numbering_sequences")
AUDIENCE = "seriatim"
TYPE = "of_the_owner"
SCOPES = ("read", "allocate", "manage")


def expected() -> dict[tuple[str, str], dict[str, int]]:
    """The table, by method and path."""
    head, *lines = [line.split() for line in TABLE.splitlines() if line]
    rows = {(line[0], line[1]): dict(zip(head[1:], map(int, line[2:]), strict=True)) for line in lines}
    assert len(rows) == len(lines)
    return rows


def dialect_at(path: str) -> str:
    return next(name for base, name in DIALECTS.items() if path.startswith(base))


class Tenants:
    """A running service with the companies of the table, what one of them owns, and credentials of all kinds."""

    def __init__(self, directory: Path) -> None:
        self.issuer = Issuer(directory, aud=AUDIENCE, scope=" ".join(SCOPES))
        keys = {"SERIATIM_JWT_JWKS": str(self.issuer.file), "SERIATIM_JWT_AUDIENCE": AUDIENCE}
        self.up = Up(directory, environment=keys).start()
        self.marks = {"name": "Owned-by-nobody-else", "prefix": "OWNED-", "description": "Hush-hush"}
        self.owner, self.other, self.empty = (
            self.up.json("companies", "create", name)["id"] for name in ("The-owner", "The-other", "The-empty")
        )
        self.own = self.key(self.owner)
        self.numbers = count(100)
        with self.up.client(self.own) as client:
            self.series = {
                kind: put_series(client, type=kind, default=True, **self.marks)
                for kind in ("invoice", "credit_note", TYPE)
            }
            self.entries = {
                kind: put_entry(client, series, meta={"note": "Hush-hush"})["id"]
                for kind, series in self.series.items()
            }
        self.routes = self._routes()
        self.credentials = self._credentials()

    def key(self, *companies: str, scope: str = ",".join(SCOPES)) -> str:
        named = [word for company in companies for word in ("--company", company)]
        key: str = self.up.json("keys", "create", *named, "--scope", scope)["key"]
        return key

    def _routes(self) -> dict[tuple[str, str], str]:
        """Every method and path that the app serves, and the scope that it asks for."""
        front = Front(config.read(self.up.directory.environment(os.environ)))
        scopes = {
            (operation.method, base + operation.path): operation.scope
            for dialect in front.dialects().all
            for base in dialect.bases
            for operation in dialect.operations
        }
        edge: Any = front.app()
        served: list[Route] = edge._app.routes
        found = {(method, route.path) for route in served for method in route.methods or ()}
        return {one: scopes.get(_row(*one), "") for one in found if not _is_open(one[1])}

    def _credentials(self) -> dict[str, str | dict[str, str]]:
        """Credentials of each kind; where they depend on the scope of the route, by scope."""
        revoked = self.key(self.owner)
        self.up.run("keys", "revoke", revoked.removeprefix("seriatim_")[:10])
        lacking = {one: self.key(self.owner, scope=",".join(set(SCOPES) - {one})) for one in SCOPES}
        token = self.issuer.token
        forged: dict[str, str | dict[str, str]] = {**self.issuer.forgeries(company=self.owner)}
        return forged | {
            "no key": "",
            "wrong key": self.own[:-1] + ("A" if self.own[-1] != "A" else "B"),
            "revoked key": revoked,
            "key without the scope": lacking,
            "own": self.own,
            "other": self.key(self.other),
            "both": self.key(self.other, self.owner),
            "token": token(company=self.owner),
            "token+": token(company=self.other, companies=[self.other, self.owner]),
            "other's": token(company=self.other),
            "token without the scope": {
                one: token(company=self.owner, scope=" ".join(set(SCOPES) - {one})) for one in SCOPES
            },
        }

    def call(self, client: httpx.Client, route: tuple[str, str], kind: str, **ids: str) -> httpx.Response:
        """Calls a route with credentials of a kind."""
        column, company = KINDS[kind]
        one = self.credentials[column]
        credentials = one if isinstance(one, str) else one[self.routes[route]]
        headers = authorization(dialect_at(route[1]), credentials)
        company = company or self._leading(kind, dialect_at(route[1]))
        headers |= {"X-Company": getattr(self, company)} if company else {}
        return client.request(route[0], self.path(route[1], **ids), headers=headers, **self.body(*_row(*route)))

    def _leading(self, kind: str, dialect: str) -> str:
        # Storno's callers always say for whom they act; others when it is not the one that their credentials lead with.
        if dialect != "storno" or kind == "both":
            return ""
        return "other" if kind in ("other", "other's") else "owner"

    def path(self, path: str, **ids: str) -> str:
        kind = "credit_note" if path.startswith("/credit_note") else "invoice"
        series = ids.get("series") or self.series[kind]
        entry = ids.get("entry") or (new_id() if "/v1/entries/" in path else self.entries[kind])
        own = entry if "/entries/" in path else series
        own = f"oc_ns_{series.replace('-', '')}" if dialect_at(path) == "octobat" else own
        return path.format(id=own, series_id=series, uuid=series)

    def body(self, method: str, path: str) -> dict[str, Any]:
        """What a request to a route has in it, so that whoever may do it succeeds."""
        number = next(self.numbers)
        owned = {"data": {"prefix": self.marks["prefix"]}}
        bodies: dict[str, dict[str, Any]] = {
            "PUT /sequence/v1/series/{id}": {"json": {}},
            "POST /sequence/v1/series/{id}/skip": {"json": {"to": number, "reason": "test"}},
            "POST /sequence/v1/series/preview": {"json": {"prefix": "P-"}},
            "POST /sequence/v1/series/{series_id}/entries": {"json": {"list": [{"id": new_id()}]}},
            "PUT /sequence/v1/series/{series_id}/entries/{id}": {"json": {"meta": {"note": "Hush-hush"}}},
            "POST /sequence/v1/series/{series_id}/entries/{id}/void": {"json": {"reason": "test"}},
            "PUT /sequence/v1/entries/{id}": {"params": {"type": TYPE}},
            "POST /api/v1/document-series": {"json": {"prefix": f"S{number}-", "type": "proforma"}},
            "PATCH /api/v1/document-series/{uuid}": {"json": {"active": True}},
            "POST /invoice_numbering_sequences": {"data": {"prefix": f"O{number}-"}},
            "PATCH /invoice_numbering_sequences/{id}": owned,
            "POST /credit_note_numbering_sequences": {"data": {"prefix": f"O{number}-"}},
            "PATCH /credit_note_numbering_sequences/{id}": owned,
        }
        return bodies.get(f"{method} {path}", {})

    def state(self) -> dict[str, Any]:
        """All that there is of the owner's: as every dialect shows it, in Redis and in the store."""
        self.up.settled()
        shown = {}
        with httpx.Client(base_url=self.up.url, timeout=20, verify=False) as client:
            for route in sorted(self.routes):
                if route[0] == "GET" and "preview" not in route[1]:
                    shown[route[1]] = self.call(client, route, "own").json()
        ids = {self.owner, *self.series.values()}
        with self.up.redis() as redis:
            keys = [key for key in redis.scan_iter() if any(one in key.decode() for one in ids)]
            held = {key: redis.dump(key) for key in keys}
        return {"shown": shown, "held": held, "stored": self._stored()}

    def _stored(self) -> dict[str, Any]:
        database = sqlite3.connect(f"file:{self.up.data_dir / 'store.db'}?mode=ro", uri=True)
        pks = [pk for (pk,) in database.execute("SELECT pk FROM series WHERE company = ?", [_hex(self.owner)])]
        assert len(pks) >= 3
        marks = ",".join("?" * len(pks))
        tables = ("entries", "skips", "voids", "counters")
        rows = {one: list(database.execute(f"SELECT * FROM {one} WHERE series IN ({marks})", pks)) for one in tables}
        rows["series"] = list(database.execute(f"SELECT * FROM series WHERE pk IN ({marks})", pks))
        rows["companies"] = list(database.execute("SELECT * FROM companies WHERE id = ?", [_hex(self.owner)]))
        rows["deleted_series"] = list(database.execute("SELECT * FROM deleted_series"))
        database.close()
        return rows

    def secrets(self) -> list[str]:
        """Whatever nobody else may be told."""
        numbers = [*self.series.values(), *self.entries.values(), self.owner]
        return [*self.marks.values(), "The-owner", *numbers, *(one.replace("-", "") for one in numbers)]


KINDS: dict[str, tuple[str, str]] = {
    "own": ("own", ""),
    "other": ("other", ""),
    "foreign": ("other", "owner"),
    "both": ("both", ""),
    "both+": ("both", "owner"),
    "token": ("token", ""),
    "token+": ("token+", "owner"),
    "other's": ("other's", ""),
    "no key": ("no key", ""),
    "wrong key": ("wrong key", ""),
    "revoked key": ("revoked key", ""),
    "expired JWT": ("expired JWT", ""),
    "alg none": ("alg none", ""),
    "HS256 with the public key as secret": ("HS256 with the public key as secret", ""),
    "wrong audience": ("wrong audience", ""),
    "key without the scope": ("key without the scope", ""),
    "token without the scope": ("token without the scope", ""),
}
"""The kinds of callers: which credentials they send, and for whom they say in X-Company that they act, if they must."""
COLUMNS = {"key without the scope": "scope", "token without the scope": "scope"}
NOBODY = [
    "no key",
    "wrong key",
    "revoked key",
    "expired JWT",
    "alg none",
    "HS256 with the public key as secret",
    "wrong audience",
]
WITHOUT_RIGHT = ["key without the scope", "token without the scope", "foreign"]
STRANGERS = ["other", "both", "other's"]
OWNERS = ["own", "both+", "token", "token+"]


def authorization(dialect: str, credentials: str) -> dict[str, str]:
    if not credentials:
        return {}
    basic = base64.b64encode(f"{credentials}:".encode()).decode()
    schemes = {"dreamapply": f'DREAM apikey="{credentials}"', "octobat": f"Basic {basic}"}
    return {"Authorization": schemes.get(dialect, f"Bearer {credentials}")}


def _hex(uuid: str) -> str:
    return uuid.replace("-", "")


def _row(method: str, path: str) -> tuple[str, str]:
    """The row of the table that a route has: HEAD that of GET, a path with a slash behind it that of the path."""
    return ("GET" if method == "HEAD" else method), path.rstrip("/")


def _is_open(path: str) -> bool:
    return path in OPEN or any(path.startswith(f"{one}/") for one in OPEN)


@cache
def _shape(dialect: str) -> Callable[[Any, int], bool]:
    def storno(content: Any, status: int) -> bool:
        return set(content) - {"errors"} == {"error", "message", "code"} and content["code"] == status

    def octobat(content: Any, _status: int) -> bool:
        told = content["errors"].pop("message")
        details = [one for listed in content["errors"].values() for one in listed]
        return set(content) == {"errors"} and bool(told) and all(set(one) == {"details"} for one in details)

    def native(content: Any, _status: int) -> bool:
        return set(content) - {"fields"} == {"code", "message"} and content["code"].islower()

    return {"storno": storno, "octobat": octobat}.get(dialect, native)


def check_refusal(route: tuple[str, str], answer: httpx.Response) -> None:
    """An error is told in the shape of the route's dialect, and keeps to itself what was sent."""
    dialect = dialect_at(route[1])
    if route[0] == "HEAD":
        assert not answer.content, route
    else:
        assert _shape(dialect)(answer.json(), answer.status_code), (route, answer.text)
    if answer.status_code == 401:
        assert answer.headers["WWW-Authenticate"] == CHALLENGES[dialect], route
    assert answer.headers["Cache-Control"] == "no-store", route
    sent = answer.request.headers.get("Authorization", "-").rpartition(" ")[2].strip('apikey="')
    assert len(sent) < 10 or sent not in answer.text, route


@pytest.fixture(scope="module")
def tenants() -> Iterator[Tenants]:
    directory = Path(tempfile.mkdtemp(prefix="seriatim-test-"))
    made = Tenants(directory)
    yield made
    made.up.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def client(tenants: Tenants) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=tenants.up.url, timeout=20, verify=False) as made:
        yield made


def call_all(tenants: Tenants, client: httpx.Client, kind: str) -> dict[tuple[str, str], httpx.Response]:
    """Calls every route, each with credentials of a kind, and compares with the table."""
    rows = expected()
    column = "bad" if kind in NOBODY else COLUMNS.get(kind, kind)
    answers, wrong = {}, {}
    for route in sorted(tenants.routes):
        answer = answers[route] = tenants.call(client, route, kind)
        wanted = rows[_row(*route)][column]
        if kind == "token without the scope" and rows[_row(*route)]["token"] == 401:
            wanted = 401
        if answer.status_code != wanted:
            wrong[route] = (wanted, answer.status_code, answer.text)
        elif answer.status_code >= 400:
            check_refusal(route, answer)
    assert not wrong
    return answers


def test_the_table_has_a_row_for_every_route(tenants: Tenants) -> None:
    # Given the routes of the running app, then each has a row, and each row a route
    assert {_row(*route) for route in tenants.routes} == set(expected())
    assert all(tenants.routes.values())

    # And the kinds of callers are those of the table
    columns = set(next(iter(expected().values())))
    assert columns == {"bad" if kind in NOBODY else COLUMNS.get(kind, kind) for kind in KINDS}
    assert set(KINDS) == {*NOBODY, *WITHOUT_RIGHT, *STRANGERS, *OWNERS}


@pytest.mark.parametrize("kind", [*NOBODY, *WITHOUT_RIGHT])
def test_who_is_not_known_or_has_no_right_is_refused_everywhere_and_changes_nothing(
    tenants: Tenants, client: httpx.Client, kind: str
) -> None:
    # Given what the owner has
    before = tenants.state()

    # When such a caller tries everything
    answers = call_all(tenants, client, kind)

    # Then they are told nothing of it, and all is as it was
    for route, answer in answers.items():
        told = [secret for secret in tenants.secrets() if secret in answer.text]
        assert not told, (route, answer.text)
    assert tenants.state() == before


@pytest.mark.parametrize("kind", STRANGERS)
def test_other_companies_see_and_change_nothing(tenants: Tenants, client: httpx.Client, kind: str) -> None:
    # Given what the owner has
    before = tenants.state()

    # When somebody tries everything who acts for another company
    answers = call_all(tenants, client, kind)

    # Then they are told nothing of it but the ids that they brought along, and all is as it was
    for route, answer in answers.items():
        known = [one for one in tenants.secrets() if one in str(answer.request.url)]
        told = [one for one in tenants.secrets() if one in answer.text and one not in known]
        assert not told, (route, answer.text)
        assert "X-Count" not in answer.headers or int(answer.headers["X-Count"]) <= 2 * len(STRANGERS)
    assert tenants.state() == before


def test_what_others_own_is_as_if_it_were_nowhere(tenants: Tenants, client: httpx.Client) -> None:
    # Given the owner's ids, and ids that nobody has
    series, entry = new_id(), new_id()
    for route in sorted(tenants.routes):
        if "{" not in route[1] or route == ("PUT", "/sequence/v1/series/{id}"):  # an id that is free can be taken
            continue

        # When a stranger asks for either, then the answers are the same but for the ids
        theirs = tenants.call(client, route, "other")
        nowhere = tenants.call(client, route, "other", series=series, entry=entry)
        assert theirs.status_code == nowhere.status_code, route
        assert told(theirs) == told(nowhere), route
        names = {name for answer in (theirs, nowhere) for name in answer.headers} - {"content-length"}
        assert all((name in theirs.headers) == (name in nowhere.headers) for name in names)


def told(answer: httpx.Response) -> str:
    """What an answer says, without the ids that were asked for."""
    text = answer.text
    for part in answer.request.url.path.split("/"):
        text = text.replace(part, "<id>") if len(part) > 30 else text
    return text


def test_a_cursor_into_what_others_own_is_none(tenants: Tenants, client: httpx.Client) -> None:
    # Given ids of the owner's series and entries, and ids that nobody has
    def refusals(series: str, entry: str) -> list[Any]:
        octobat = f"oc_ns_{series.replace('-', '')}"
        asked = [(path, {name: octobat}) for path in OCTOBAT for name in ("starting_after", "ending_before")]
        asked += [("/sequence/v1/series", {"cursor": cursor(series)})]
        asked += [(f"/sequence/v1/series/{mine}/entries", {"cursor": cursor(entry)})]
        answers = [
            client.get(path, params=params, headers=authorization(dialect_at(path), key)) for path, params in asked
        ]
        return [(answer.status_code, answer.json()) for answer in answers]

    def cursor(last: str) -> str:
        return base64.b64encode(json.dumps({"id": last, "limit": 5}).encode()).decode()

    key = tenants.key(tenants.other)
    with tenants.up.client(key) as other:
        mine = put_series(other)

    # When a stranger goes on from either, then there is no telling them apart
    for kind, series in tenants.series.items():
        told = refusals(series, tenants.entries[kind])
        assert told == refusals(new_id(), new_id())
        assert {status for status, _ in told} == {422}


def test_lists_of_a_company_that_has_nothing_are_empty(tenants: Tenants, client: httpx.Client) -> None:
    # Given a company without series, when it lists in every dialect, then there is nothing
    key = tenants.key(tenants.empty)
    empty: dict[str, Any] = {"sequence": {"list": [], "limit": 20}, "dreamapply": {}, "storno": []}
    listing = [route for route in sorted(tenants.routes) if route[0] == "GET" and "{" not in route[1]]
    assert len({dialect_at(path) for _, path in listing}) == 4
    for _, path in listing:
        headers = authorization(dialect_at(path), key) | {"X-Company": tenants.empty}
        answer = client.get(path, headers=headers)
        content = answer.json()
        if dialect_at(path) == "octobat":
            assert (content["data"], content["total_count"], content["has_more"]) == ([], 0, False)
        else:
            assert content == empty[dialect_at(path)]
        assert answer.headers.get("X-Count", "0") == "0"


@pytest.mark.parametrize("kind", OWNERS)
def test_who_acts_for_the_owner_may_do_it_all(tenants: Tenants, client: httpx.Client, kind: str) -> None:
    # Given credentials that act for the owner, when they try everything, then it is as the table says
    answers = call_all(tenants, client, kind)

    # And what they are told is the owner's
    for route, answer in answers.items():
        if answer.status_code == 200 and route[0] == "GET":
            assert tenants.marks["prefix"] in answer.text or "report" in route[1] or "preview" in route[1], route


def test_unknown_paths_and_wrong_methods_tell_nothing_to_anybody(tenants: Tenants, client: httpx.Client) -> None:
    # Given paths below each base that are none, and methods that no path takes, when anybody asks
    for base, dialect in DIALECTS.items():
        for method, path in [("GET", f"{base}/no/such/path"), ("TRACE", tenants.path(_known(tenants, base)))]:
            for credentials in ("", tenants.own):
                answer = client.request(method, path, headers=authorization(dialect, credentials))

                # Then it is a 404 or a 405 in the dialect's shape, whoever it is
                assert answer.status_code == (404 if method == "GET" else 405), (method, path, answer.text)
                check_refusal((method, path), answer)
                assert not [one for one in tenants.marks.values() if one in json.dumps(answer.text)]


def _known(tenants: Tenants, base: str) -> str:
    return next(path for _, path in sorted(tenants.routes) if path.startswith(base))
