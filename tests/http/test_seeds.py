"""What the users' own documents show is what they get: every sample and every request in tests/seeds, as it stands.

The samples are read from the documents. The clock stands still at their times, so that times are compared, too.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import yaml

from dialects import (
    CREDIT_NOTE_SEQUENCES,
    DOCUMENT_SERIES,
    DREAMAPPLY,
    INVOICE_SEQUENCES,
    INVOICE_SERIES,
    STORNO,
    Tenant,
    basic,
    new_document_series,
    new_sequence,
)
from faketime import Clock
from plain_socket import Wire
from stack import Up, entry_path, new_id, put_entry, put_series, until

SEEDS = Path(__file__).parents[1] / "seeds"

At = Callable[[str], None]


def seed(name: str) -> str:
    return (SEEDS / f"{name}.txt").read_text()


def sample(name: str, before: str) -> Any:
    """The JSON that follows some words in a document."""
    text = seed(name).partition(before)[2].replace("{...}", "null")
    start = re.search(r"[{\[]$", text, re.MULTILINE)
    assert start, f"{name} shows nothing behind {before!r}"
    return json.JSONDecoder().raw_decode(text, start.start())[0]


def table(name: str, heading: str) -> list[list[str]]:
    """The rows of the Markdown table under a heading, without its head."""
    rows = seed(name).partition(f"\n{heading}\n")[2].partition("|\n\n")[0].strip().splitlines()
    return [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in rows[2:]]


def assert_like(live: Any, shown: Any) -> None:
    """Checks that something live has at least what is shown, and of the same types."""
    assert type(live) is type(shown)
    if isinstance(shown, dict):
        for name, value in shown.items():
            assert name in live
            assert_like(live[name], value)
    elif isinstance(shown, list):
        assert live
        for one in live:
            assert_like(one, shown[0])


@pytest.fixture
def at(clocked_up: tuple[Up, Clock]) -> At:
    """Stops the clock of the whole stack at a time in UTC."""
    up, clock = clocked_up

    def stop_clock(moment: str) -> None:
        clock.stop_at(moment)
        with httpx.Client(base_url=up.url) as client:
            until(lambda: client.get("/readyz").status_code == 200)

    return stop_clock


@pytest.fixture
def tenant(clocked_up: tuple[Up, Clock]) -> Iterator[Tenant]:
    with Tenant(clocked_up[0]) as made:
        yield made


# DreamApply -------------------------------------------------------------------------------------------------------


LAST = {"1": 9, "2": 105, "100": 57, "200": 386}
"""How many numbers of its year each series has issued, going by its last one."""


def test_dreamapplys_list_of_four_series_is_answered_to_the_letter(tenant: Tenant, at: At) -> None:
    # Given the series of the sample, created in the order of their ids, among others of types that are not listed
    shown = sample("dreamapply-invoice-series", "Example response")
    assert set(shown) == set(LAST)
    at("2025-01-01 08:00:00")
    series = {}
    for ordinal in map(str, range(1, max(map(int, shown)) + 1)):
        if ordinal in shown:
            series[ordinal] = put_series(
                tenant.sequence, name=shown[ordinal]["name"], format=shown[ordinal]["format"], type="invoice"
            )
        else:
            put_series(tenant.sequence, type="receipt")

    # When each issues as many numbers in its year as the sample says, the last one at the sample's time
    for ordinal in sorted(shown, key=lambda one: shown[one]["last"]["when"]):
        at(shown[ordinal]["last"]["when"].removesuffix("+00:00"))
        before = [{"id": new_id(), "date": "2025-01-01"} for _ in range(LAST[ordinal] - 1)]
        answer = tenant.sequence.post(f"/sequence/v1/series/{series[ordinal]}/entries", json={"list": before})
        assert answer.status_code == 200, answer.text
        put_entry(tenant.sequence, series[ordinal])

    # Then the answer is the sample, ids, times and numbers included, with the headers that are described
    answer = tenant.dreamapply.get(INVOICE_SERIES)
    assert answer.json() == shown
    described = {"Content-Type": "application/json", "Content-Length": str(len(answer.content)), "X-Count": "4"}
    assert {name: answer.headers[name] for name in described} == described
    headers = seed("dreamapply-invoice-series").partition("\nResponse headers\n")[2].partition("\nResponse codes")[0]
    assert re.findall("^(Content-Type|Content-Length|X-Count)", headers, re.MULTILINE) == list(described)
    assert len(headers.strip().splitlines()) == 1 + len(described)


def test_dreamapplys_request_works_as_it_is_written(tenant: Tenant) -> None:
    # Given the request in the words of HTTP, with the host and the key of here
    lines = seed("dreamapply-invoice-series").partition("\nSyntax\n")[2].partition("\n\n")[0].splitlines()
    assert lines[0] == f"GET {INVOICE_SERIES}"
    lines[0] += " HTTP/1.1"

    # When it is sent, then it is answered
    with Wire(tenant.up.url) as wire:
        wire.send("\r\n".join([*lines, "", ""]).replace("...", tenant.key).encode())
        answer = wire.answer()
    assert (answer.status, answer.json()) == (200, {})


# Storno -----------------------------------------------------------------------------------------------------------


def test_stornos_list_of_three_series_is_answered_to_the_letter(tenant: Tenant, at: At) -> None:
    # Given the series of the sample, each created at its time and set to its number at the time of its last change
    shown = sample("storno-document-series", "## Example Response")
    series = {}
    for one in sorted(shown, key=lambda one: one["createdAt"]):
        at(one["createdAt"].removesuffix("Z"))
        series[one["prefix"]] = new_document_series(tenant.storno, one["prefix"], one["type"])["uuid"]
    for one in sorted(shown, key=lambda one: one["updatedAt"]):
        at(one["updatedAt"].removesuffix("Z"))
        change = {"currentNumber": one["currentNumber"], "active": one["active"]}
        assert tenant.storno.patch(f"{DOCUMENT_SERIES}/{series[one['prefix']]}", json=change).status_code == 200

    # When they are listed
    listed = tenant.storno.get(DOCUMENT_SERIES, params={"type": "invoice"}).json()

    # Then they are the sample, in its order; what is more is `id` and `isDefault`
    assert_like(listed, shown)
    assert [{name: one[name] for name in shown[0]} for one in listed] == [
        one | {"uuid": series[one["prefix"]]} for one in shown
    ]
    assert {frozenset(set(one) - set(shown[0])) for one in listed} == {frozenset({"id", "isDefault"})}


def test_stornos_tables_hold(tenant: Tenant, at: At) -> None:
    # Given the tables of the object, of the types and of the errors
    fields = table("storno-document-series", "### Document Series Object")
    kinds = re.findall(r"^- `(\w+)` - ", seed("storno-document-series"), re.MULTILINE)
    errors = {int(status): word for status, word, _ in table("storno-document-series", "## Errors")}
    assert (len(fields), len(kinds), set(errors)) == (8, 4, {401, 403, 422})

    # When a series of each type is made and listed, then it has the fields, of their types
    at("2025-06-15 09:00:00")
    python = {"string": str, "integer": int, "boolean": bool}
    for kind in kinds:
        made = new_document_series(tenant.storno, "FAC", kind)
        (listed,) = tenant.storno.get(DOCUMENT_SERIES, params={"type": kind}).json()
        assert listed == made
        assert {name: type(listed[name]) for name, _, _ in fields} == {name: python[of] for name, of, _ in fields}
        assert listed["nextNumber"] == listed["currentNumber"] + 1

    # And the errors are those
    bearer, company = {"Authorization": f"Bearer {tenant.key}"}, {"X-Company": tenant.company}
    refused = [
        httpx.get(tenant.up.url + DOCUMENT_SERIES, params=params, headers=headers)
        for params, headers in (({}, company), ({}, bearer), ({"type": "bill"}, bearer | company))
    ]
    assert {one.status_code: one.json()["error"] for one in refused} == errors


# Octobat ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [INVOICE_SEQUENCES, CREDIT_NOTE_SEQUENCES])
def test_octobats_object_and_list_are_answered_as_shown(tenant: Tenant, path: str) -> None:
    # Given three sequences, the first like the sample
    shown = sample("octobat-numbering-sequences", "> Example object")
    shown_list = sample("octobat-numbering-sequences", "# Example response")
    assert shown_list["data"][1:] == [None, None]
    assert shown_list["data"][0] == shown
    first = new_sequence(tenant.octobat, shown["prefix"], path)
    for prefix in ("BBB-", "CCC-"):
        new_sequence(tenant.octobat, prefix, path)

    # Then the object and the list are the samples, but for the ids and the other two
    here = shown | {"id": first["id"], "object": path.strip("/").removesuffix("s")}
    assert re.fullmatch(r"oc_ns_[0-9a-z]+", first["id"])
    assert re.fullmatch(r"oc_ns_[0-9a-z]+", shown["id"])
    assert first == tenant.octobat.get(f"{path}/{first['id']}").json() == here
    listed = tenant.octobat.get(path).json()
    assert {name: listed[name] for name in shown_list} == shown_list | {"data": listed["data"]}
    assert listed["data"][0] == here
    assert_like(listed["data"], [shown])
    assert len(listed["data"]) == 3


def test_octobats_table_of_attributes_holds(tenant: Tenant) -> None:
    names = re.findall(r'<td class="attribute"><strong>(\w+)</strong>', seed("octobat-numbering-sequences"))
    assert set(new_sequence(tenant.octobat, "AAA-")) == set(names) == {*names, "id", "object", "next_number"}


# Invopop ----------------------------------------------------------------------------------------------------------


def schemas(name: str) -> dict[str, Any]:
    """The schemas of a document's OpenAPI."""
    described = yaml.safe_load(re.split(r"^`{4}.*$", seed(name), flags=re.MULTILINE)[1])
    components: dict[str, Any] = described["components"]
    return components


def check_schema(name: str, wanted: str, content: Any) -> None:
    schema = {"$ref": f"#/components/schemas/{wanted}", "components": schemas(name)}
    jsonschema.validate(content, schema, jsonschema.Draft202012Validator)


def jws() -> str:
    parts = (b'{"alg":"ES256"}', b"{}", b"signature")
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def test_invopops_entry_is_answered_as_shown(tenant: Tenant) -> None:
    # Given the sample of the answer, and the example of a request in the document's OpenAPI
    shown = sample("invopop-create-entry", "<ResponseExample>")
    body = schemas("invopop-create-entry")["schemas"]["SequenceCreateEntry"]["properties"]
    meta = body["meta"]["example"]
    assert set(body) == {"meta", "sig"}

    # When the second entry of a series is created so, with the three keys of the sample's meta as well
    series = put_series(tenant.sequence, prefix="INV-", padding=5, suffix="-F1")
    first = put_entry(tenant.sequence, series)
    example_id = "a8904315-3d16-4a95-91c1-30d6cdde553e"
    assert example_id in seed("invopop-create-entry")
    entry = put_entry(tenant.sequence, series, example_id, meta=shown["meta"] | meta, sig=jws())

    # Then the answer, and what is fetched later, has the sample's keys and types, and fits the schema
    assert_like(entry, shown)
    for one in (first, entry, tenant.sequence.get(entry_path(series, example_id)).json()):
        check_schema("invopop-create-entry", "SequenceEntry", one)
    assert (entry["id"], entry["series_id"], entry["previous_id"]) == (example_id, series, first["id"])
    assert (entry["meta"], entry["sigs"]) == (shown["meta"] | meta, [jws()])
    assert first["code"] == "INV-00001-F1"
    assert first["code"] in seed("invopop-create-entry")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", shown["created_at"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["created_at"])


def test_invopops_list_is_answered_as_shown_and_its_cursor_is_ours(tenant: Tenant) -> None:
    # Given a series with more than a page of entries, the last of the first page with the id of the example
    shown = sample("invopop-list-entries", "<ResponseExample>")
    cursor, limit = (
        schemas("invopop-list-entries")["schemas"]["SequenceEntryCollection"]["properties"][name]["example"]
        for name in ("cursor", "limit")
    )
    last = json.loads(base64.b64decode(cursor))["id"]
    series = put_series(tenant.sequence)
    ids = [new_id() for _ in range(limit - 1)] + [last] + [new_id() for _ in range(3)]
    for number, entry in enumerate(ids):
        put_entry(tenant.sequence, series, entry, meta=shown["list"][0]["meta"], **({"sig": jws()} if number else {}))

    # When it is listed
    path = f"/sequence/v1/series/{series}/entries"
    page = tenant.sequence.get(path).json()

    # Then the page has the sample's keys and types and the very cursor of the document, which leads on
    assert_like(page | {"list": page["list"][1:]}, shown)  # the first entry has no previous one, and here no sig
    assert (page["series_id"], page["limit"], page["cursor"]) == (series, limit, cursor)
    rest = tenant.sequence.get(path, params={"cursor": cursor}).json()
    assert [entry["id"] for entry in (*page["list"], *rest["list"])] == ids
    for one in (page, rest):
        check_schema("invopop-list-entries", "SequenceEntryCollection", one)


# requests ---------------------------------------------------------------------------------------------------------


def curl(command: str) -> tuple[int, Any]:
    """Runs a curl command as a shell does; its status and what it prints."""
    quiet = re.sub(r"^curl\b", "curl --silent --noproxy '*' --write-out '\\\\n%{http_code}'", command)
    done = subprocess.run(["sh", "-c", quiet], capture_output=True, text=True, timeout=20, check=True)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(body)


def commands(name: str) -> list[str]:
    """The curl commands of a document."""
    return re.findall(r"^(?:\$ )?(curl\b(?:.*\\\n)*.*)$", seed(name), re.MULTILINE)


def test_curl_as_dreamapply_shows_it(tenant: Tenant) -> None:
    # Given a series, and the document's command with the address and the key of here
    put_series(tenant.sequence, name="Tuition fee")
    (command,) = [one for one in commands("dreamapply-invoice-series") if " " in one]
    here = command.replace("https://apply.example.edu", tenant.up.url).replace("YOUR-API-KEY", tenant.key)

    # When it is run, then the series is listed
    status, listed = curl(here)
    assert (status, [one["name"] for one in listed.values()]) == (200, ["Tuition fee"])
    assert DREAMAPPLY.credentials("YOUR-API-KEY") in command.replace('\\"', '"')


def test_curl_as_storno_shows_it(tenant: Tenant) -> None:
    # Given series of two types, and the document's command with the address and the credentials of here
    for kind in ("invoice", "proforma"):
        new_document_series(tenant.storno, "FAC", kind)
    (command,) = commands("storno-document-series")
    here = command.replace("https://api.storno.ro", tenant.up.url).replace("company-uuid", tenant.company)

    # When it is run, then the series of its type is listed
    status, listed = curl(here.replace("YOUR_TOKEN", tenant.key))
    assert (status, [one["type"] for one in listed]) == (200, ["invoice"])
    assert set(STORNO.headers("", "")) == {row[0] for row in table("storno-document-series", "### Headers")}


def test_curl_as_octobat_shows_it(tenant: Tenant) -> None:
    # Given a sequence, and the document's command and definition, with the address and the key of here
    new_sequence(tenant.octobat, "AAA-")
    (command,) = commands("octobat-numbering-sequences")
    (user,) = re.findall(r"-u (\w+):", command)
    (defined,) = re.findall(r"^GET https://apiv2.octobat.com(\S+)$", seed("octobat-numbering-sequences"), re.MULTILINE)
    here = command.replace("https://apiv2.octobat.com", tenant.up.url).replace(user, tenant.key)

    # When they are followed, then the sequence is listed
    status, listed = curl(here)
    assert (status, [one["prefix"] for one in listed["data"]]) == (200, ["AAA-"])
    assert defined.endswith("/")
    answer = httpx.get(tenant.up.url + defined, headers={"Authorization": basic(tenant.key)})
    assert answer.json() == listed


@pytest.mark.parametrize(("name", "method"), [("invopop-create-entry", "PUT"), ("invopop-list-entries", "GET")])
def test_invopops_requests_have_the_paths_of_the_documents(tenant: Tenant, name: str, method: str) -> None:
    # Given the request that a document describes, filled in
    ((described, path),) = re.findall(r"^`{4}yaml (\w+) (\S+)$", seed(name), re.MULTILINE)
    filled = path.format(series_id=put_series(tenant.sequence), id=new_id())

    # Then it is answered
    assert described == method
    assert tenant.sequence.request(method, filled).status_code == 200
