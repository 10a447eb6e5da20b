"""The description of the API: valid, complete, true, and all that the documented sequence API promises."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openapi_spec_validator
import pytest
import yaml
from jsonschema.exceptions import ValidationError
from openapi_schema_validator import OAS30Validator, OAS31Validator, oas30_format_checker, oas31_format_checker

from stack import Up, entry_path, new_id, put_entry, put_series
from superset import missing

SEEDS = Path(__file__).parents[1] / "seeds"
SEED_NAMES = ["invopop-create-entry.txt", "invopop-list-entries.txt"]
SERIES_PATH = "/sequence/v1/series/{id}"
ENTRY_PATH = "/sequence/v1/series/{series_id}/entries/{id}"
ENTRIES_PATH = "/sequence/v1/series/{series_id}/entries"
SIG = "eyJhbGciOiJFUzI1NiJ9.e30.c2ln"

Document = dict[str, Any]


@pytest.fixture(scope="module")
def document(shared_up: Up) -> Document:
    """The description as anybody gets it."""
    with httpx.Client(verify=False) as client:
        answer = client.get(f"{shared_up.url}/openapi.json")
    assert answer.status_code == 200
    content: Document = answer.json()
    return content


def seed(name: str) -> Document:
    """The OpenAPI document in a page of the documented API."""
    (block,) = re.findall(r"^````yaml[^\n]*\n(.*?)^````", (SEEDS / name).read_text(), re.MULTILINE | re.DOTALL)
    content: Document = yaml.safe_load(block)
    assert content["openapi"] == "3.0.0"
    return content


# the document itself ----------------------------------------------------------------------------------------------


def test_the_description_is_openapi_3_1(document: Document) -> None:
    assert document["openapi"].startswith("3.1.")
    openapi_spec_validator.validate(document)


def test_a_description_that_is_wrong_would_be_seen(document: Document) -> None:
    # Given ways to break the description, when each is planted, then the validator tells
    planted: list[Callable[[Document], Any]] = [
        lambda broken: broken.pop("info"),
        lambda broken: _entry(broken)["parameters"].pop(0),
        lambda broken: _entry(broken)["parameters"][0].update({"in": "somewhere"}),
        lambda broken: _entry(broken)["responses"]["200"].pop("description"),
        lambda broken: _schemas(broken)["SequenceEntry"]["properties"].update(id={"type": "text"}),
        lambda broken: broken["paths"]["/healthz"]["get"].update(operationId="service_readyz"),
    ]
    for plant in planted:
        broken = copy.deepcopy(document)
        plant(broken)
        with pytest.raises(ValidationError):
            openapi_spec_validator.validate(broken)


def test_the_description_is_for_anybody_and_is_kept_until_it_changes(shared_up: Up) -> None:
    with httpx.Client(base_url=shared_up.url, verify=False) as client:
        # Given the description, fetched without credentials
        first = client.get("/openapi.json")
        assert first.headers["Content-Type"] == "application/json"
        assert first.headers["Cache-Control"] == "no-cache"

        # When it is fetched again, by whoever has it and by whoever has another
        known = client.get("/openapi.json", headers={"If-None-Match": first.headers["ETag"]})
        other = client.get("/openapi.json", headers={"If-None-Match": '"other"'})

        # Then it travels to the latter alone
        assert (known.status_code, known.content) == (304, b"")
        assert known.headers["ETag"] == first.headers["ETag"]
        assert (other.status_code, other.content) == (200, first.content)


def operations(document: Document) -> Iterator[tuple[str, str, Document]]:
    for path, methods in document["paths"].items():
        for method, one in methods.items():
            yield method, path, one


def test_every_operation_says_what_it_is_for_and_who_may_call_it(document: Document) -> None:
    described = [one for _, _, one in operations(document)]
    assert len({one["operationId"] for one in described}) == len(described)
    tags = {tag["name"]: tag["description"] for tag in document["tags"]}
    for one in described:
        assert re.fullmatch("[a-z0-9_]+", one["operationId"])
        assert len(one["summary"]) > 10
        (tag,) = one["tags"]
        assert len(tags[tag]) > 10
        assert one["security"] == [] if tag == "service" else list(one["security"][0]) == [tag]
        assert {"500", "503"} <= set(one["responses"])
        assert one["security"] == [] or {"401", "403", "429"} <= set(one["responses"])
        for parameter in one.get("parameters", ()):
            assert len(parameter["description"]) > 10


def test_the_names_of_operations_stay_as_generated_clients_have_them(document: Document) -> None:
    names = {one["operationId"] for _, _, one in operations(document)}
    assert names >= {
        "sequence_v1_put_entry",
        "sequence_v1_list_entries",
        "dreamapply_v9_list_series",
        "storno_v1_set_default",
        "octobat_invoice_numbering_sequences_create",
        "octobat_credit_note_numbering_sequences_create",
        "service_readyz",
    }


def test_schemas_have_plain_names_and_say_what_they_are(document: Document) -> None:
    schemas = document["components"]["schemas"]
    assert {"SequenceSeries", "StornoSeries", "DreamapplySeries", "OctobatSequence"} <= set(schemas)
    for name, schema in schemas.items():
        assert re.fullmatch("([A-Z][a-z]+)+", name), name
        assert schema["description"].endswith(".")
        assert "\n    " not in schema["description"]


def test_every_path_of_the_server_is_described_and_none_besides(shared_up: Up, document: Document) -> None:
    # Given each path of the description, with ids that fit
    fitting = {"uuid": new_id(), "series_id": new_id()}
    with shared_up.client() as client:
        for path, methods in document["paths"].items():
            concrete = path.format(id="oc_ns_" + "0" * 32 if "_sequences" in path else new_id(), **fitting)

            # When a method is used that it never has, then it names those that it has: the described ones
            answer = client.request("TRACE", concrete)
            assert answer.status_code == 405, path
            taken = set(answer.headers["Allow"].lower().split(", "))
            implied = {"head"} if "get" in methods else set()
            assert taken == set(methods) | implied, path


def test_examples_of_requests_are_taken_as_they_stand(shared_up: Up, document: Document) -> None:
    # Given each request body that the description shows for a JSON dialect, when it is sent, then it is taken
    series = ""
    with shared_up.client() as client:
        for path in (SERIES_PATH, "/sequence/v1/series/preview", ENTRY_PATH, "/sequence/v1/entries/{id}"):
            for method, one in document["paths"][path].items():
                if "requestBody" in one:
                    body = one["requestBody"]["content"]["application/json"]["example"]
                    here = new_id()
                    answer = client.request(method, path.format(id=here, series_id=series), json=body)
                    assert answer.status_code == 200, (path, answer.text)
                    series = here if path == SERIES_PATH else series


# a superset of the documented API ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEED_NAMES)
def test_whoever_was_written_for_the_documented_api_misses_nothing(document: Document, name: str) -> None:
    assert missing(seed(name), document) == []


def _entry(document: Document) -> Document:
    put: Document = document["paths"][ENTRY_PATH]["put"]
    return put


def _schemas(document: Document) -> Document:
    schemas: Document = document["components"]["schemas"]
    return schemas


def _fields(document: Document, name: str) -> Document:
    fields: Document = _schemas(document)[name]["properties"]
    return fields


PLANTED: list[tuple[str, Callable[[Document], Any]]] = [
    (f"put {ENTRY_PATH}: is not there", lambda ours: ours["paths"].pop(ENTRY_PATH)),
    (f"get {ENTRIES_PATH}: is not there", lambda ours: ours["paths"][ENTRIES_PATH].pop("get")),
    ("has no parameter id", lambda ours: _entry(ours)["parameters"].pop(1)),
    ("id is of type integer", lambda ours: _entry(ours)["parameters"][1]["schema"].update(type="integer")),
    ("requires another parameter", lambda ours: _entry(ours)["parameters"][2].update(required=True)),
    ("requires a body", lambda ours: _entry(ours)["requestBody"].update(required=True)),
    ("request is not application/json", lambda ours: _entry(ours)["requestBody"]["content"].clear()),
    ("has no 200", lambda ours: _entry(ours)["responses"].pop("200")),
    ("cannot be called with http bearer", lambda ours: _entry(ours).update(security=[{"octobat": []}])),
    ("request has no sig", lambda ours: _fields(ours, "SequenceEntryBody").pop("sig")),
    ("request.meta is required", lambda ours: _schemas(ours)["SequenceEntryBody"].update(required=["meta"])),
    ("request.meta is of type array", lambda ours: _fields(ours, "SequenceEntryBody")["meta"].update(type="array")),
    (
        "request.meta[] is of type integer",
        lambda ours: _fields(ours, "SequenceEntryBody")["meta"]["additionalProperties"].update(type="integer"),
    ),
    ("200 has no code", lambda ours: _fields(ours, "SequenceEntry").pop("code")),
    (
        "200.previous_id is of type null or string",
        lambda ours: _fields(ours, "SequenceEntry")["previous_id"].update(type=["string", "null"]),
    ),
    (
        "200.sigs[] is of type object",
        lambda ours: _fields(ours, "SequenceEntry")["sigs"]["items"].update(type="object"),
    ),
    ("200 has no cursor", lambda ours: _fields(ours, "SequenceEntryPage").pop("cursor")),
    ("200.limit is of type number", lambda ours: _fields(ours, "SequenceEntryPage")["limit"].update(type="number")),
    ("200.list[] has no series_id", lambda ours: _fields(ours, "SequenceEntry").pop("series_id")),
]


def test_a_difference_from_the_documented_api_would_be_seen(document: Document) -> None:
    # Given each way in which ours could lack something, when it is planted, then it is told
    for gap, plant in PLANTED:
        ours = copy.deepcopy(document)
        plant(ours)
        found = [one for name in SEED_NAMES for one in missing(seed(name), ours)]
        assert any(gap in one for one in found), (gap, found)


@pytest.mark.parametrize("name", SEED_NAMES)
def test_the_examples_of_the_documented_api_fit_ours(document: Document, name: str) -> None:
    # Given the example of each property in the documented schemas
    theirs = seed(name)["components"]["schemas"]
    for title, ours in (("SequenceEntry", "SequenceEntry"), ("SequenceCreateEntry", "SequenceEntryBody")):
        for key, one in theirs.get(title, {}).get("properties", {}).items():
            # Then it is one of ours, too
            if "example" in one:
                check_ours(document, document["components"]["schemas"][ours]["properties"][key], one["example"])


# what the server really says --------------------------------------------------------------------------------------


def check_ours(document: Document, schema: Document, content: Any) -> None:
    """Checks that content is what our description says."""
    whole = {"components": document["components"]} | schema
    OAS31Validator.check_schema(whole)
    OAS31Validator(whole, format_checker=oas31_format_checker).validate(content)


def check_seed(name: str, path: str, method: str, content: Any) -> None:
    """Checks that content is what the documented API says."""
    known = seed(name)
    schema = known["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
    whole = {"components": known["components"]} | schema
    OAS30Validator(whole, format_checker=oas30_format_checker).validate(content)


def test_live_entries_are_what_both_descriptions_say(shared_up: Up, client: httpx.Client, document: Document) -> None:
    # Given a series with a first entry, one that a client signed, one that is void, and all settled
    series = put_series(client, format="%yearLong%/%incYearly%", padding=4)
    first = put_entry(client, series)
    signed = put_entry(client, series, meta={"k": "v", "\u00fc": ""}, sig=SIG)
    void = put_entry(client, series)
    client.post(f"{entry_path(series, void['id'])}/void", json={"reason": "cancelled"}).raise_for_status()
    shared_up.settled()

    # When they are put again, fetched and listed, page by page
    puts = [first, signed, put_entry(client, series, first["id"])]
    puts += [client.get(entry_path(series, one["id"])).json() for one in (first, signed, void)]
    pages = [client.get(f"/sequence/v1/series/{one}/entries").json() for one in (series, put_series(client))]
    pages.append(client.get(f"/sequence/v1/series/{series}/entries?limit=1").json())

    # Then all of it is as both say
    entry = {"$ref": "#/components/schemas/SequenceEntry"}
    for one in puts:
        check_ours(document, entry, one)
        check_seed("invopop-create-entry.txt", ENTRY_PATH, "put", one)
    for page in pages:
        check_ours(document, {"$ref": "#/components/schemas/SequenceEntryPage"}, page)
        check_seed("invopop-list-entries.txt", ENTRIES_PATH, "get", page)
    assert "void" in puts[-1]
    assert len(puts[-2]["sigs"]) == 2
    assert [len(page["list"]) for page in pages] == [3, 0, 1]
    assert "cursor" in pages[-1]


def test_a_body_that_says_nothing_is_within_the_description(client: httpx.Client, document: Document) -> None:
    # Given bodies as clients send them that leave everything unset
    texts = (
        "name",
        "description",
        "code",
        "prefix",
        "suffix",
        "format",
        "timezone",
        "fiscal_year_start",
        "sig",
        "type",
    )
    empty: Document = dict.fromkeys((*texts, "chronology", "charset", "id"), "") | dict.fromkeys(
        ("padding", "start", "max_length"), 0
    )
    nothing: Document = dict.fromkeys([*empty, "default", "active"])
    bodies: dict[str, list[Document]] = {
        "SequenceSeriesBody": [{}, empty, nothing],
        "SequenceEntryBody": [{}, {"id": "", "sig": "", "date": ""}, dict.fromkeys(("id", "meta", "sig", "date"))],
    }

    # When they are sent, then they are taken, and the description permits them
    series = put_series(client)
    paths: dict[str, Callable[[], str]] = {
        "SequenceSeriesBody": lambda: f"/sequence/v1/series/{new_id()}",
        "SequenceEntryBody": lambda: entry_path(series, new_id()),
    }
    for name, known in bodies.items():
        for body in known:
            check_ours(document, document["components"]["schemas"][name], body)
            answer = client.put(paths[name](), content=json.dumps(body))
            assert answer.status_code == 200, answer.text


def test_readiness_health_and_keys_are_what_the_description_says(client: httpx.Client, document: Document) -> None:
    for path in ("/healthz", "/readyz", "/.well-known/jwks.json"):
        answer = client.get(path)
        (media_type, content) = next(
            iter(document["paths"][path]["get"]["responses"][str(answer.status_code)]["content"].items())
        )
        assert answer.headers["Content-Type"] == media_type
        check_ours(document, content["schema"], answer.json())
