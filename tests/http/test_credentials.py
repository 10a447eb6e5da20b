"""How credentials are sent: the schemes of the dialects, and for which company a caller acts."""

from __future__ import annotations

import base64
import shutil
import tempfile
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest

from issuer import Issuer, claims, encoded, sign
from stack import Up, new_id, put_entry, put_series, seriatim

SEQUENCE, DREAMAPPLY, STORNO = "/sequence/v1/series", "/api/v9/invoices/series", "/api/v1/document-series"
OCTOBAT = "/invoice_numbering_sequences"
LISTS = (SEQUENCE, DREAMAPPLY, STORNO, OCTOBAT)


class Service:
    """A running service that accepts tokens, with two companies of one key, and a third one."""

    def __init__(self, directory: Path) -> None:
        self.issuer = Issuer(directory, scope="read manage allocate")
        self.up = Up(directory, environment={"SERIATIM_JWT_JWKS": str(self.issuer.file)}).start()
        self.first, self.second, self.third = (
            self.up.json("companies", "create", name)["id"] for name in ("first", "second", "third")
        )
        self.key = self.up.json("keys", "create", "--company", "first", "--company", self.second)["key"]
        self.prefixes = {self.first: "FIRST-", self.second: "SECOND-"}
        for company, prefix in self.prefixes.items():
            with self.up.client(self.key) as client:
                put_series(_acting(client, company), prefix=prefix)

    def get(
        self, path: str, authorization: str | bytes, company: str | None = None, *, named: bool = True
    ) -> httpx.Response:
        """Asks for a list, with any header at all, by a client that does not look at what it sends."""
        if company is None and path == STORNO and named:  # whose callers always say for whom they act
            company = self.first
        headers = {"Authorization": authorization} | ({} if company is None else {"X-Company": company})
        connection = HTTPConnection(self.up.url.removeprefix("http://"), timeout=20)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read())
        finally:
            connection.close()

    def sees(self, path: str, authorization: str, company: str | None = None) -> set[str]:
        """The companies whose series a list shows."""
        answer = self.get(path, authorization, company)
        assert answer.status_code == 200, answer.text
        return {one for one, prefix in self.prefixes.items() if prefix in answer.text}


def _acting(client: httpx.Client, company: str) -> httpx.Client:
    client.headers["X-Company"] = company
    return client


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    directory = Path(tempfile.mkdtemp(prefix="seriatim-test-"))
    made = Service(directory)
    yield made
    made.up.stop()
    shutil.rmtree(directory, ignore_errors=True)


def basic(text: str | bytes) -> str:
    return f"Basic {base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()}"


def authorization(path: str, credentials: str) -> str:
    schemes = {DREAMAPPLY: f'DREAM apikey="{credentials}"', OCTOBAT: basic(f"{credentials}:")}
    return schemes.get(path, f"Bearer {credentials}")


# schemes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [SEQUENCE, STORNO])
def test_bearer_is_a_word_and_a_token(service: Service, path: str) -> None:
    # Given headers as clients write them, then the key is found, whatever the case of the scheme
    for scheme in ("Bearer ", "bearer ", "BEARER ", "Bearer  ", " Bearer "):
        assert service.get(path, scheme + service.key).status_code == 200

    # And nothing else is one
    key = service.key
    wrong = [key, f"Bearer{key}", "Bearer", "Bearer ", f"Bearer {key} {key}", f"Bearer {key},", f'Bearer "{key}"']
    wrong += [f"Token {key}", f"Basic {key}", basic(f"{key}:"), f'DREAM apikey="{key}"', f"Bearer apikey={key}"]
    for header in wrong:
        assert service.get(path, header).status_code == 401, header


def test_dream_is_a_word_and_an_apikey_with_or_without_quotes(service: Service) -> None:
    # Given headers as clients write them, then the key is found
    key = service.key
    for header in (
        f'DREAM apikey="{key}"',
        f"DREAM apikey={key}",
        f'dream apikey="{key}"',
        f'Dream APIKEY="{key}"',
        f'DREAM  apikey = "{key}" ',
    ):
        assert service.get(DREAMAPPLY, header).status_code == 200, header

    # And nothing else is one
    for header in (
        f"DREAM {key}",
        f'DREAM "{key}"',
        f'DREAM apikey="{key}',
        f"DREAM apikey={key}, realm=x",
        f'DREAM apikey="{key}" x',
        f'DREAM apikey=" {key}"',
        'DREAM apikey=""',
        "DREAM apikey=",
        f'DREAMapikey="{key}"',
        f"Bearer {key}",
        basic(f"{key}:"),
    ):
        assert service.get(DREAMAPPLY, header).status_code == 401, header


def test_basic_is_the_key_as_user_without_a_password(service: Service) -> None:
    # Given headers as clients write them, then the key is found
    key = service.key
    for header in (basic(f"{key}:"), basic(f"{key}:").replace("Basic", "basic"), basic(key)):
        assert service.get(OCTOBAT, header).status_code == 200, header

    # And nothing else is one: with a password, not base64, not UTF-8, not ASCII
    for wrong in (
        basic(f"{key}:secret"),
        basic(f"{key}: "),
        basic(f":{key}"),
        basic(f"x:{key}"),
        basic(f"{key}::"),
        basic(":"),
        basic(""),
        basic(b"\xff\xfe:"),
        basic(f"{key}\x00:"),
        f"Basic {key}:",
        "Basic",
        "Basic ====",
        "Basic a",
        basic(f"{key}:") + "!",
        basic(f"{key}:").encode() + b"\xe9",
        b"Basic \xff",
        f"Bearer {key}",
        f'DREAM apikey="{key}"',
    ):
        assert service.get(OCTOBAT, wrong).status_code == 401, wrong


@pytest.mark.parametrize("path", LISTS)
def test_garbage_is_nobody_s_and_no_fault_of_ours(service: Service, path: str) -> None:
    # Given what can stand in a header: other characters, long, or a token whose parts are of odd types
    key = service.issuer.key
    odd: list[Any] = [["alg"], "alg", None, 5, {"alg": "ES256", "crit": 5}, {"alg": "ES256", "crit": [[]]}]
    odd += [{"alg": "\ud800"}, {"alg": "ES256", "kid": "\ud800"}, {"alg": 5}, {"alg": "ES256", "b64": False}]
    tokens = [sign(key, "ES256", claims(), header=header) for header in odd]
    tokens += [f"{encoded(b'[' * 3000)}.a.b", sign(key, "ES256", b'{"x":' + b"[" * 4000 + b"]" * 4000 + b"}")]
    tokens += [sign(key, "ES256", b'{"sub":"\\ud800","exp":9999999999}'), sign(key, "ES256", claims(sub="a\nb"))]
    texts = ["..", ".", "A" * 9000, "seriatim_", "seriatim_" + "A" * 35, "seriatim_" + "A" * 5000, "%00", "'--"]
    for text in [*tokens, *texts]:
        answer = service.get(path, authorization(path, text))

        # Then it is refused as any wrong key is
        assert answer.status_code == 401, (text, answer.text)
        assert answer.headers["WWW-Authenticate"]
    for raw in (b"Bearer \xe9", b"Bearer seriatim_" + b"\xe9" * 35, b"\xff\xfe", b"DREAM apikey=\xe9", b"Basic \xe9"):
        assert service.get(path, raw).status_code == 401, raw


# companies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", LISTS)
def test_a_key_of_several_companies_acts_for_the_one_that_is_named(service: Service, path: str) -> None:
    # Given a key of two companies
    header = authorization(path, service.key)

    # When it names one of them, in any case, or none, then it acts for that one, or for the first
    assert service.sees(path, header, service.first) == {service.first}
    assert service.sees(path, header, service.second) == {service.second}
    assert service.sees(path, header, service.second.upper()) == {service.second}
    if path == STORNO:
        assert service.get(path, header, named=False).status_code == 403
    else:
        assert service.sees(path, header) == {service.first}

    # And when it names another, one that nobody has, or none in a right way, then it is refused
    wrong = ["", "first", "*", service.first[:-1], service.first.replace("-", ""), f"{{{service.first}}}"]
    for company in [service.third, new_id(), f"{service.first},{service.second}", "' OR 1=1 --", *wrong]:
        answer = service.get(path, header, company)
        assert answer.status_code == 403, (company, answer.text)
        assert "FIRST-" not in answer.text


def test_what_a_key_makes_is_the_named_company_s(service: Service) -> None:
    # Given a key of two companies, when it makes series and entries for the second
    with service.up.client(service.key) as client:
        _acting(client, service.second)
        series = put_series(client, prefix="MADE-")
        assert put_entry(client, series)["code"] == "MADE-1"

        # Then they are not there for the first
        _acting(client, service.first)
        assert client.get(f"{SEQUENCE}/{series}").status_code == 404
        assert client.put(f"{SEQUENCE}/{series}/entries/{new_id()}").status_code == 404
        _acting(client, service.second)
        assert put_entry(client, series)["code"] == "MADE-2"


def test_the_keys_are_listed_with_their_companies(service: Service) -> None:
    # Given a key of two companies, when the keys are listed, then it stands there with both and without its secret
    listed = {one["id"]: one for one in service.up.json("keys", "list")}
    assert listed[service.key[9:19]]["companies"] == [service.first, service.second]
    assert service.key[19:] not in service.up.run("keys", "list").stdout


@pytest.mark.parametrize("path", [SEQUENCE, STORNO])
def test_a_token_acts_for_the_companies_that_it_names(service: Service, path: str) -> None:
    # Given tokens that name a default company, several, both, or neither, in any case
    first, second, third = service.first, service.second, service.third
    named = {"company": first}
    several: dict[str, Any] = {"companies": [first, second.upper()]}
    both = {"company": second.upper(), "companies": [first]}
    unknown = new_id()
    odd: dict[str, Any] = {"company": unknown, "companies": [second, new_id(), "acme"]}
    none: list[dict[str, Any]] = [{}, {"company": "acme"}, {"company": ""}, {"companies": []}]

    def acts(said: dict[str, Any], company: str | None) -> set[str] | int:
        # A request that names no company, which is asked of Storno's callers.
        answer = service.get(path, f"Bearer {service.issuer.token(**said)}", company, named=False)
        shown = {one for one, prefix in service.prefixes.items() if prefix in answer.text}
        return shown if answer.status_code == 200 else answer.status_code

    # Then a default counts where none is named, and what is named must be among them, and ours
    unnamed: set[str] | int = 403
    assert acts(named, None) == ({first} if path == SEQUENCE else unnamed)
    assert acts(both, None) == ({second} if path == SEQUENCE else unnamed)
    for said in [several, odd, *none]:
        assert acts(said, None) == 403
    assert (acts(named, first), acts(named, second)) == ({first}, 403)
    assert (acts(several, first), acts(several, second.upper()), acts(several, third)) == ({first}, {second}, 403)
    assert (acts(both, first), acts(both, second)) == ({first}, {second})
    assert (acts(odd, second), acts(odd, unknown), acts(odd, "acme")) == ({second}, 403, 403)
    assert acts({}, first) == 403


def test_what_a_token_did_is_signed_with_its_subject(service: Service) -> None:
    # Given a token, when its holder leaves numbers out, then the record says who it was
    with service.up.client(service.issuer.token(sub="Jörg@issuer", company=service.first)) as client:
        series = put_series(client, prefix="T-")
        skipped = client.post(f"{SEQUENCE}/{series}/skip", json={"to": 5, "reason": "test"})
        assert skipped.json()["actor"] == "token Jörg@issuer"


def test_a_token_does_what_its_scopes_say(service: Service) -> None:
    # Given tokens with scopes, known or not, then each does what they say
    for scope, statuses in {
        "": (403, 403),
        "read": (200, 403),
        "manage": (403, 200),
        "admin *": (403, 403),
        "openid read email manage": (200, 200),
        "READ": (403, 403),
        "read,manage": (403, 403),
    }.items():
        with service.up.client(service.issuer.token(company=service.first, scope=scope)) as client:
            told = client.get(SEQUENCE).status_code, client.put(f"{SEQUENCE}/{new_id()}", json={}).status_code
        assert told == statuses, scope


def test_a_token_ends_although_in_use(service: Service) -> None:
    # Given a token with moments left, when it is used all the time, then it is good until its end and no longer
    ends = int(time.time()) + 2
    with service.up.client(service.issuer.token(company=service.first, exp=ends)) as client:
        while True:
            began = time.time()
            if client.get(SEQUENCE).status_code == 401:
                break
            assert began < ends
    assert time.time() >= ends


# settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"SERIATIM_JWT_SECRET": "short"}, "at least 32 random bytes"),
        ({"SERIATIM_JWT_SECRET": "s" * 32, "SERIATIM_JWT_JWKS": "keys.json"}, "not both"),
        ({"SERIATIM_JWT_JWKS": "https:///keys.json"}, "is not a URL"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_starts(
    directory: Path, settings: dict[str, str], why: str
) -> None:
    done = seriatim("up", "--port", "0", "--data-dir", str(directory), environment=settings)
    assert done.returncode == 2
    assert why in done.stderr
    assert not (directory / "store.db").exists()
