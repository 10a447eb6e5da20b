"""What Schemathesis does and checks beside what the description says. Its command line loads this.

`SERIATIM_TOLD` names the file into which all entries go that callers were told, `SERIATIM_SERIES` one with the series
that there are; `SERIATIM_REFUSED` is `true` when the credentials are wrong, so that nobody may be told anything.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import uuid
import zlib
from pathlib import Path
from typing import Any

import schemathesis
from schemathesis import Case, CheckContext, HookContext, Response

TOLD = Path(os.environ["SERIATIM_TOLD"])
REFUSED = os.environ["SERIATIM_REFUSED"] == "true"
SERIES: list[str] = json.loads(Path(os.environ["SERIATIM_SERIES"]).read_text())
COUNT = itertools.count()
UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
SEQUENCE = re.compile("oc_ns_[0-9a-f]{32}")
JWS = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]+")
REAL_JWS = "eyJhbGciOiJFUzI1NiJ9.e30.c2ln"
CREATES = "PUT /sequence/v1/series/{id}"
TEXT_KEYS = {"code", "message"}
STORNO_WORDS = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "bad_request",
    422: "validation_error",
}


@schemathesis.hook
def before_call(_context: HookContext, case: Case[Any], _kwargs: dict[str, Any]) -> None:
    """Makes what is drawn fit what no schema can say: series that there are, new ids, the path's id in the body.

    In its last phase Schemathesis makes the series that it uses.
    """
    path = case.path_parameters
    if not case.meta or case.meta.phase.name == "stateful":
        return
    for name, value in path.items():
        before = case.path.partition("{" + name)[0].rstrip("/").rpartition("/")[2]
        if case.operation.label == CREATES:
            continue
        if before in ("series", "document-series") and UUID.fullmatch(str(value)):
            path[name] = chosen(value)
        elif before.endswith("_sequences") and SEQUENCE.fullmatch(str(value)):
            path[name] = "oc_ns_" + chosen(value).replace("-", "")
        elif before == "entries" and case.method == "PUT" and UUID.fullmatch(str(value)):
            path[name] = another(value)
    if case.media_type == "application/json" and isinstance(case.body, dict):
        _fit(case.body, path.get("id"))


def _fit(body: dict[str, Any], path_id: str | None) -> None:
    elements = [one for one in _list(body.get("list")) if isinstance(one, dict)]
    for one in (body, *elements):
        if one.get("sig") and JWS.fullmatch(str(one["sig"])):
            one["sig"] = REAL_JWS
    for one in elements:
        if UUID.fullmatch(str(one.get("id"))):
            one["id"] = another(one["id"])
    if path_id and UUID.fullmatch(str(body.get("id"))):
        body["id"] = path_id


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def another(value: str) -> str:
    """Two times of three a new id, else this one again."""
    count = next(COUNT)
    return value if count % 3 == 0 else str(uuid.uuid5(uuid.NAMESPACE_OID, f"{value}{count}"))


def chosen(value: str) -> str:
    """One of the series, always the same for a value."""
    return SERIES[zlib.crc32(value.encode()) % len(SERIES)]


@schemathesis.hook
def after_call(_context: HookContext, case: Case[Any], response: Response) -> None:
    """Notes the entries that a caller is told: those are all that there may be."""
    if response.status_code != 200 or case.operation.definition.raw.get("security") != [{"sequence": ["allocate"]}]:
        return
    content = response.json()
    entries = [[one["series_id"], one["id"], one["position"], one["code"]] for one in content.get("list", [content])]
    with TOLD.open("a") as told:
        told.writelines(json.dumps(entry) + "\n" for entry in entries)


@schemathesis.check
def refusals_have_the_shape_of_their_dialect(_context: CheckContext, response: Response, case: Case[Any]) -> None:
    """Checks every refusal, those too that the description does not list: unknown paths, other methods."""
    if response.status_code < 400 or case.path == "/readyz":
        return
    assert headers(response, "content-type") == ["application/json"]
    if response.status_code == 401:
        assert headers(response, "www-authenticate"), "a 401 names no scheme"
    if response.status_code == 405:
        assert headers(response, "allow"), "a 405 names no methods"
    if response.request.method == "HEAD":
        return
    content = response.json()
    if "_numbering_sequences" in case.path:
        check_octobat(content)
    elif case.path.startswith("/api/v1/"):
        check_storno(content, response.status_code)
    else:
        check_native(content, response.status_code)


def check_native(content: dict[str, Any], status: int) -> None:
    assert set(content) - {"fields"} == TEXT_KEYS
    assert "fields" in content or status != 422
    assert re.fullmatch("[a-z_]+", content["code"])
    assert is_sentence(content["message"])
    assert are_sentences(content.get("fields", {}))


def check_storno(content: dict[str, Any], status: int) -> None:
    expected = {"error", "message", "code"}
    assert set(content) == (expected | {"errors"} if status == 422 else expected)
    assert content["error"] == STORNO_WORDS[status]
    assert content["code"] == status
    assert is_sentence(content["message"])
    assert are_sentences(content.get("errors", {}))


def check_octobat(content: dict[str, Any]) -> None:
    assert set(content) == {"errors"}
    errors = dict(content["errors"])
    assert is_sentence(errors.pop("message", None))
    assert errors
    assert are_sentences({name: one["details"] for name, (one,) in errors.items()})


def is_sentence(text: object) -> bool:
    return isinstance(text, str) and len(text) > 5


def are_sentences(texts: dict[str, Any]) -> bool:
    return all(is_sentence(text) for text in texts.values())


@schemathesis.check
def every_answer_has_an_id_and_no_key(_context: CheckContext, response: Response, _case: Case[Any]) -> None:
    """Checks headers that belong to every answer, and that none says a key back."""
    assert re.fullmatch("[A-Za-z0-9._:-]+", headers(response, "x-request-id")[0])
    assert headers(response, "x-content-type-options") == ["nosniff"]
    assert headers(response, "content-security-policy")
    assert not re.search("seriatim_[A-Za-z0-9]{35}", response.text)


@schemathesis.check
def whoever_has_no_key_is_told_nothing(_context: CheckContext, response: Response, case: Case[Any]) -> None:
    """Checks that wrong credentials end in a 401, except where there is nothing at all."""
    if REFUSED and case.operation.definition.raw["security"]:
        assert response.status_code in {401, 404, 405}


def headers(response: Response, name: str) -> list[str]:
    return response.headers.get(name, [])
