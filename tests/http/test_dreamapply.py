"""The DreamApply dialect, line by line: the list of invoice series. Its sample is in test_seeds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dialects import (
    DOCUMENT_SERIES,
    DREAMAPPLY,
    INVOICE_SERIES,
    Tenant,
    new_document_series,
    new_sequence,
)
from stack import Up, entry_path, new_id, put_entry, put_series

V8 = "/api/v8/invoices/series"


def listed(tenant: Tenant) -> dict[str, dict[str, Any]]:
    answer = tenant.dreamapply.get(INVOICE_SERIES)
    assert answer.status_code == 200, answer.text
    content: dict[str, dict[str, Any]] = answer.json()
    assert answer.headers["X-Count"] == str(len(content))
    assert all(key == str(one["id"]) for key, one in content.items())
    return content


def test_a_company_without_series_has_an_empty_object(tenant: Tenant) -> None:
    assert listed(tenant) == {}


def test_series_have_their_name_and_format_and_no_last_before_the_first_number(tenant: Tenant) -> None:
    # Given a series with a format, and one in the short form, whose prefix has a percent sign
    formatted = "TF-%incYearly%%day%%month%%yearShort%"
    put_series(tenant.sequence, name="Tuition fee", format=formatted, type="invoice")
    put_series(tenant.sequence, name="5 % off", prefix="5%-", suffix="/%", padding=4)

    # Then each is listed under its id, exactly so
    assert listed(tenant) == {
        "1": {"id": 1, "name": "Tuition fee", "format": formatted, "last": None},
        "2": {"id": 2, "name": "5 % off", "format": "5%%-%inc%/%%", "last": None},
    }


def test_last_is_the_last_number_and_when_it_was_issued(tenant: Tenant) -> None:
    # Given a series that takes dates in any order
    series = put_series(tenant.sequence, format="%yearLong%/%incYearly%", chronology="free")
    first = put_entry(tenant.sequence, series, date="2031-05-06")
    assert listed(tenant)["1"]["last"]["number"] == first["code"] == "2031/1"

    # When a document of an earlier year follows
    second = put_entry(tenant.sequence, series, date="2019-05-06")

    # Then it is the last one, at the time of its issue in UTC, to the second
    last = listed(tenant)["1"]["last"]
    assert last == {"when": f"{second['created_at'][:19]}+00:00", "number": "2019/1"}

    # And it stays so when it is made void, and when its id comes again
    tenant.sequence.post(f"{entry_path(series, second['id'])}/void", json={"reason": "torn"})
    put_entry(tenant.sequence, series, first["id"], date="2031-05-06")
    assert listed(tenant)["1"]["last"] == last


def test_head_has_the_headers_of_get_and_no_body(tenant: Tenant) -> None:
    # Given a series
    put_series(tenant.sequence, name="Fees")
    for path in (INVOICE_SERIES, V8):
        # When it is asked for by GET and by HEAD
        whole, head = tenant.dreamapply.get(path), tenant.dreamapply.head(path)

        # Then the headers are the same, but for those that name the request and the time
        assert (head.status_code, head.content) == (200, b"")
        headers = [
            {name: value for name, value in answer.headers.items() if name not in ("date", "x-request-id")}
            for answer in (whole, head)
        ]
        assert headers[0] == headers[1]
        assert headers[0]["x-count"] == "1"
        assert int(headers[0]["content-length"]) == len(whole.content)


def test_v8_is_v9(tenant: Tenant) -> None:
    # Given a series with a number
    put_entry(tenant.sequence, put_series(tenant.sequence, prefix="A-"))

    # Then both versions answer alike: lists, and refusals
    old, new = tenant.dreamapply.get(V8), tenant.dreamapply.get(INVOICE_SERIES)
    assert old.content == new.content
    assert old.headers["X-Count"] == new.headers["X-Count"] == "1"
    for method, path, status in (("GET", "/invoices", 404), ("GET", "", 404), ("POST", "/invoices/series", 405)):
        refused = [tenant.dreamapply.request(method, f"/api/{version}{path}") for version in ("v8", "v9")]
        for answer in refused:
            DREAMAPPLY.check_refused(answer, status)
        assert refused[0].content == refused[1].content


def test_only_series_of_type_invoice_are_listed(tenant: Tenant) -> None:
    # Given series of all types, made in all dialects
    for kind in ("invoice", "proforma", "credit_note", "delivery_note"):
        new_document_series(tenant.storno, f"S-{kind}", kind)
    put_series(tenant.sequence, prefix="R-", type="receipt")
    new_sequence(tenant.octobat, "O-")
    new_sequence(tenant.octobat, "C-", "/credit_note_numbering_sequences")
    put_series(tenant.sequence, prefix="I-")

    # Then invoices are listed, with the ids that count all series
    assert {key: one["format"] for key, one in listed(tenant).items()} == {
        "1": "S-invoice%inc%",
        "6": "O-%inc%",
        "8": "I-%inc%",
    }


def test_inactive_series_are_listed(tenant: Tenant) -> None:
    put_series(tenant.sequence, prefix="A-", active=False)
    assert set(listed(tenant)) == {"1"}


def test_ids_count_the_series_of_each_company_and_are_never_used_again(tenant: Tenant, common_up: Up) -> None:
    # Given two companies that make series in turns
    with Tenant(common_up) as other:
        series = {}
        for number in (1, 2, 3):
            for one in (tenant, other):
                series[one.company, number] = put_series(one.sequence, name=str(number))

        # When one of them deletes the last one, and later the first one, in two dialects, and makes others
        assert tenant.sequence.delete(f"/sequence/v1/series/{series[tenant.company, 3]}").status_code == 204
        put_series(tenant.sequence, name="4")
        assert tenant.storno.delete(f"{DOCUMENT_SERIES}/{series[tenant.company, 1]}").status_code == 204
        put_series(tenant.sequence, name="5")

        # Then its ids go on, and those of the other are as they were
        assert {one["id"]: one["name"] for one in listed(tenant).values()} == {2: "2", 4: "4", 5: "5"}
        assert {one["id"]: one["name"] for one in listed(other).values()} == {1: "1", 2: "2", 3: "3"}

    # And a refused creation takes no id, nor does a creating request that comes again
    assert tenant.sequence.put(f"/sequence/v1/series/{new_id()}", json={"format": "no counter"}).status_code == 422
    new_document_series(tenant.storno, "S-")
    assert tenant.storno.post(DOCUMENT_SERIES, json={"prefix": "S-", "type": "invoice"}).status_code == 422
    again = new_id()
    for _ in range(2):
        assert tenant.sequence.put(f"/sequence/v1/series/{again}", json={"name": "7"}).status_code == 200
    assert [one["id"] for one in listed(tenant).values()] == [2, 4, 5, 6, 7]


def test_ids_are_dense_when_series_are_made_at_once(tenant: Tenant) -> None:
    # Given many threads that make series of one company in all dialects, some of a name that is taken
    def make(number: int) -> int:
        if number % 3 == 0:
            return tenant.sequence.put(f"/sequence/v1/series/{new_id()}", json={"name": str(number)}).status_code
        if number % 3 == 1:
            body = {"prefix": f"S-{number % 2}", "type": "invoice"}
            return tenant.storno.post(DOCUMENT_SERIES, json=body).status_code
        return tenant.octobat.post("/invoice_numbering_sequences", data={"prefix": f"O-{number}"}).status_code

    # When they are done
    with ThreadPoolExecutor(12) as pool:
        made = [status for status in pool.map(make, range(36)) if status in (200, 201)]

    # Then the ids are 1, 2, 3 ..., as many as were made, and one of those is the default
    assert sorted(map(int, listed(tenant))) == list(range(1, len(made) + 1))
    assert len(made) == 12 + 2 + 12
    assert sum(one["isDefault"] for one in tenant.storno.get(DOCUMENT_SERIES).json()) == 1


def test_a_company_sees_its_own_series(tenant: Tenant, common_up: Up) -> None:
    with Tenant(common_up) as other:
        put_entry(tenant.sequence, put_series(tenant.sequence, name="mine"))
        assert listed(other) == {}
        put_series(other.sequence, name="theirs")
        assert [one["name"] for one in listed(tenant).values()] == ["mine"]


def test_what_clients_add_to_the_list_does_not_matter(tenant: Tenant) -> None:
    # Given a list asked for with parameters and headers that we do not know
    put_series(tenant.sequence)
    plain = tenant.dreamapply.get(INVOICE_SERIES)
    answer = tenant.dreamapply.get(
        INVOICE_SERIES,
        params={"expand": "last", "page": "2"},
        headers={"Accept": "text/xml", "X-Company": tenant.company},
    )

    # Then it is the list
    assert answer.content == plain.content
    assert answer.headers["Content-Type"] == "application/json"
