"""Companies of a running stack, the programs that they have in every dialect, and how each dialect refuses."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import httpx

from seriatim import auth
from seriatim.store import Store
from stack import Up, new_id

SERIES = "/sequence/v1/series"
INVOICE_SERIES = "/api/v9/invoices/series"
DOCUMENT_SERIES = "/api/v1/document-series"
INVOICE_SEQUENCES = "/invoice_numbering_sequences"
CREDIT_NOTE_SEQUENCES = "/credit_note_numbering_sequences"
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"
"""Of nothing that there is."""


def basic(user: str, password: str = "") -> str:
    """What follows `Authorization: ` where a user has a name and a password."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


# how each refuses -------------------------------------------------------------------------------------------------


def _plain_error(content: dict[str, Any], _status: int, fields: set[str]) -> None:
    assert set(content) == {"code", "message"} | ({"fields"} if fields else set())
    assert re.fullmatch("[a-z_]+", content["code"])
    assert set(content.get("fields", {})) == fields
    assert all(content.get("fields", {"": "why"}).values())


WORDS = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "bad_request",
    422: "validation_error",
    429: "rate_limited",
    500: "internal_error",
    503: "unavailable",
}
"""Storno's word for each status."""


def _storno_error(content: dict[str, Any], status: int, fields: set[str]) -> None:
    assert set(content) == {"error", "message", "code"} | ({"errors"} if status == 422 else set())
    assert (content["error"], content["code"]) == (WORDS[status], status)
    assert set(content.get("errors", {})) == fields
    assert all(content.get("errors", {"": "why"}).values())


def _octobat_error(content: dict[str, Any], _status: int, fields: set[str]) -> None:
    assert set(content) == {"errors"}
    errors = content["errors"]
    assert set(errors) == (fields or {"global"}) | {"message"}
    for name in set(errors) - {"message"}:
        assert [set(one) for one in errors[name]] == [{"details"}]
        assert errors[name][0]["details"]


def _message(content: dict[str, Any]) -> Any:
    return content["errors"]["message"] if "message" not in content else content["message"]


@dataclass(frozen=True)
class Dialect:
    """How a dialect is spoken: where its series are listed, with which credentials, and how it refuses."""

    name: str
    lists: str
    challenge: str
    credentials: Callable[[str], str]
    error: Callable[[dict[str, Any], int, set[str]], None]

    def headers(self, key: str, company: str) -> dict[str, str]:
        """What its programs send with every request."""
        said = {"Authorization": self.credentials(key)}
        return said | ({"X-Company": company} if self.name == "storno" else {})

    def check_refused(self, answer: httpx.Response, status: int, *fields: str) -> str:
        """Checks a refusal's status, headers and shape, and that it names exactly these fields; its message."""
        assert answer.status_code == status, (answer.status_code, answer.text[:500])
        assert answer.headers["Content-Type"] == "application/json"
        assert re.fullmatch("[A-Za-z0-9._:-]+", answer.headers["X-Request-Id"])
        assert answer.headers.get("WWW-Authenticate") == (self.challenge if status == 401 else None)
        assert ("Retry-After" in answer.headers) == (status in (429, 503))
        assert ("Allow" in answer.headers) == (status == 405)
        content = answer.json()
        self.error(content, status, set(fields))
        message: str = _message(content)
        assert len(message) > 10
        return message


SEQUENCE = Dialect("sequence", SERIES, "Bearer", "Bearer {}".format, _plain_error)
DREAMAPPLY = Dialect("dreamapply", INVOICE_SERIES, "DREAM", 'DREAM apikey="{}"'.format, _plain_error)
STORNO = Dialect("storno", DOCUMENT_SERIES, "Bearer", "Bearer {}".format, _storno_error)
OCTOBAT = Dialect("octobat", INVOICE_SEQUENCES, 'Basic realm="seriatim"', basic, _octobat_error)
DIALECTS = (SEQUENCE, DREAMAPPLY, STORNO, OCTOBAT)


# who speaks them --------------------------------------------------------------------------------------------------


class Tenant:
    """A company of a running stack, with an API key, and a client for each dialect. Paths are given in full."""

    def __init__(self, up: Up) -> None:
        self.up = up
        self._closing = ExitStack()
        self._store = Store(up.directory.environment(os.environ)["SERIATIM_STORE_URL"])
        self._closing.callback(self._store.close)
        self.company = self._store.create_company(new_id(), "test").id
        self.key = self.new_key()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def new_key(self, *scopes: str) -> str:
        """Makes another API key, with some scopes or all."""
        return auth.create_key(self._store, [self.company], scopes or auth.SCOPES, "test")[0]

    def client(self, dialect: Dialect, key: str | None = None) -> httpx.Client:
        """Returns another client that speaks a dialect, with this company's key or another."""
        return self._client(dialect.headers(self.key if key is None else key, self.company))

    def nobody(self) -> httpx.Client:
        """Returns a client without credentials."""
        return self._client({})

    def _client(self, headers: Mapping[str, str]) -> httpx.Client:
        made = httpx.Client(base_url=self.up.url, headers=headers, timeout=20, verify=False)
        return self._closing.enter_context(made)

    @cached_property
    def sequence(self) -> httpx.Client:
        return self.client(SEQUENCE)

    @cached_property
    def dreamapply(self) -> httpx.Client:
        return self.client(DREAMAPPLY)

    @cached_property
    def storno(self) -> httpx.Client:
        return self.client(STORNO)

    @cached_property
    def octobat(self) -> httpx.Client:
        return self.client(OCTOBAT)


def new_document_series(client: httpx.Client, prefix: str, kind: str = "invoice", **more: Any) -> dict[str, Any]:
    """Creates a series in Storno's dialect and returns it."""
    answer = client.post(DOCUMENT_SERIES, json={"prefix": prefix, "type": kind, **more})
    assert answer.status_code == 201, answer.text
    content: dict[str, Any] = answer.json()
    return content


def new_sequence(client: httpx.Client, prefix: str, path: str = INVOICE_SEQUENCES, **more: str) -> dict[str, Any]:
    """Creates a sequence in Octobat's dialect and returns it."""
    answer = client.post(path, data={"prefix": prefix, **more})
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def sequence_id(series: str) -> str:
    """How Octobat's dialect calls a series."""
    return f"oc_ns_{series.replace('-', '')}"


def series_id(sequence: str) -> str:
    """How the others call one of Octobat's sequences."""
    digits = sequence.removeprefix("oc_ns_")
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
