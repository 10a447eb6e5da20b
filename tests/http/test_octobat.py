"""The Octobat dialect, line by line: sequences of invoices and of credit notes. Its samples are in test_seeds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dialects import (
    CREDIT_NOTE_SEQUENCES,
    INVOICE_SEQUENCES,
    OCTOBAT,
    UNKNOWN_ID,
    Tenant,
    new_document_series,
    new_sequence,
    sequence_id,
    series_id,
)
from stack import Up, put_entry, put_series

KINDS = {INVOICE_SEQUENCES: "invoice", CREDIT_NOTE_SEQUENCES: "credit_note"}
both_kinds = pytest.mark.parametrize("path", KINDS)


def page(tenant: Tenant, path: str = INVOICE_SEQUENCES, **params: str) -> dict[str, Any]:
    answer = tenant.octobat.get(path, params=params)
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def prefixes(listed: dict[str, Any]) -> list[str]:
    return [one["prefix"] for one in listed["data"]]


def defaults(listed: dict[str, Any]) -> list[str]:
    return [one["prefix"] for one in listed["data"] if one["is_default"]]


# sequences --------------------------------------------------------------------------------------------------------


@both_kinds
def test_a_company_without_sequences_has_an_empty_list(tenant: Tenant, path: str) -> None:
    assert page(tenant, path) == {
        "object": "list",
        "has_more": False,
        "has_before": False,
        "total_count": 0,
        "request_url": path,
        "data": [],
    }


@both_kinds
@pytest.mark.parametrize("slash", ["", "/"])
def test_every_request_is_answered_with_the_object(tenant: Tenant, path: str, slash: str) -> None:
    # Given two sequences
    first = new_sequence(tenant.octobat, "AAA-", path + slash)
    second = new_sequence(tenant.octobat, "B %/é&=+", path + slash, is_default="false")
    assert re.fullmatch("oc_ns_[0-9a-z]+", first["id"])
    assert first == {
        "id": first["id"],
        "object": f"{KINDS[path]}_numbering_sequence",
        "prefix": "AAA-",
        "is_default": True,
        "next_number": "AAA-1",
    }
    assert (second["prefix"], second["next_number"]) == ("B %/é&=+", "B %/é&=+1")
    assert second["is_default"] is False

    # When they are fetched, changed and made the default, with a slash at the end or without one
    url = f"{path}/{second['id']}"
    fetched = tenant.octobat.get(url + slash)
    changed = tenant.octobat.patch(url + slash, data={"prefix": "CCC-"})
    default = tenant.octobat.patch(f"{url}/default{slash}")

    # Then each answer is the object as it is by then, under the id that it began with
    assert [answer.status_code for answer in (fetched, changed, default)] == [200] * 3
    assert fetched.json() == second
    assert changed.json() == second | {"prefix": "CCC-", "next_number": "CCC-1"}
    assert default.json() == changed.json() | {"is_default": True}
    assert page(tenant, path + slash) == {
        "object": "list",
        "has_more": False,
        "has_before": False,
        "total_count": 2,
        "request_url": path,
        "data": [first | {"is_default": False}, default.json()],
    }


def test_sequences_of_one_kind_are_none_of_the_other(tenant: Tenant) -> None:
    # Given a sequence of each kind, and series of other types
    made = {path: new_sequence(tenant.octobat, "A-", path) for path in KINDS}
    for kind in ("proforma", "delivery_note"):
        new_document_series(tenant.storno, "A-", kind)

    # Then each is listed and known where it was made, and is the default of its kind
    for path, other in zip(KINDS, reversed(KINDS), strict=True):
        assert page(tenant, path)["data"] == [made[path]]
        assert made[path]["is_default"] is True
        missing = f"{path}/{made[other]['id']}"
        OCTOBAT.check_refused(tenant.octobat.get(missing), 404)
        OCTOBAT.check_refused(tenant.octobat.patch(missing, data={"prefix": "B-"}), 404)
        OCTOBAT.check_refused(tenant.octobat.patch(f"{missing}/default"), 404)
        OCTOBAT.check_refused(
            tenant.octobat.get(path, params={"starting_after": made[other]["id"]}), 422, "starting_after"
        )


@both_kinds
@pytest.mark.parametrize(
    ("written", "is_default"), [("true", True), ("1", True), ("True", True), ("false", False), ("0", False)]
)
def test_a_sequence_is_created_as_the_default_or_not(
    tenant: Tenant,
    path: str,
    written: str,
    is_default: bool,  # noqa: FBT001 -- what is expected
) -> None:
    # Given the first sequence, which is the default, even where that was not wanted
    new_sequence(tenant.octobat, "A-", path, is_default="false")
    assert defaults(page(tenant, path)) == ["A-"]

    # When another is to be the default, or not, then there is one default
    made = new_sequence(tenant.octobat, "B-", path, is_default=written)
    assert made["is_default"] is is_default
    assert defaults(page(tenant, path)) == ["B-" if is_default else "A-"]


def test_the_prefix_is_fixed_once_there_is_an_entry(tenant: Tenant) -> None:
    # Given a sequence whose prefix is changed before its first number
    made = new_sequence(tenant.octobat, "A-")
    url = f"{INVOICE_SEQUENCES}/{made['id']}"
    assert tenant.octobat.patch(url, data={"prefix": "B-"}).json()["next_number"] == "B-1"
    assert put_entry(tenant.sequence, series_id(made["id"]))["code"] == "B-1"

    # When it is changed after, then it is refused, and stays; the same prefix again is no change
    OCTOBAT.check_refused(tenant.octobat.patch(url, data={"prefix": "C-"}), 422, "prefix")
    same = tenant.octobat.patch(url, data={"prefix": "B-"})
    assert (same.status_code, same.json()) == (200, made | {"prefix": "B-", "next_number": "B-2"})
    assert put_entry(tenant.sequence, series_id(made["id"]))["code"] == "B-2"
    assert tenant.octobat.get(url).json()["next_number"] == "B-3"


def test_two_sequences_may_have_one_prefix(tenant: Tenant) -> None:
    ids = {new_sequence(tenant.octobat, "A-")["id"] for _ in range(2)}
    assert len(ids) == 2
    assert prefixes(page(tenant)) == ["A-", "A-"]


# refusals ---------------------------------------------------------------------------------------------------------


WRONG_FORMS: list[tuple[str, set[str]]] = [
    ("", {"prefix"}),
    ("prefix=", {"prefix"}),
    ("is_default=true", {"prefix"}),
    ("prefix=A&is_default=yes", {"is_default"}),
    ("prefix=A&is_default=", {"is_default"}),
    ("prefix=&is_default=2", {"prefix", "is_default"}),
    ("prefix=A&start=5", {"start"}),
    ("prefix=A&message=5", set()),
    ("prefix[]=A", {"prefix", "prefix[]"}),
    ("prefix=" + "A" * 65, {"prefix"}),
    ("prefix=A%00", {"prefix"}),
    ("prefix=A%0A", {"prefix"}),
    ('{"prefix": "A"}', {"prefix", '{"prefix": "A"}'}),
]


@both_kinds
@pytest.mark.parametrize(("form", "fields"), WRONG_FORMS)
def test_a_wrong_form_names_what_is_wrong_and_creates_nothing(
    tenant: Tenant, path: str, form: str, fields: set[str]
) -> None:
    OCTOBAT.check_refused(tenant.octobat.post(path, content=form), 422, *fields)
    assert page(tenant, path)["total_count"] == 0


@pytest.mark.parametrize("form", ["", "prefix=", "is_default=true", "prefix=B&is_default=true", "prefix=B%1f"])
def test_a_wrong_change_changes_nothing(tenant: Tenant, form: str) -> None:
    made = new_sequence(tenant.octobat, "A-")
    url = f"{INVOICE_SEQUENCES}/{made['id']}"
    answer = tenant.octobat.patch(url, content=form)
    OCTOBAT.check_refused(answer, 422, *set(answer.json()["errors"]) - {"message"})
    assert tenant.octobat.get(url).json() == made


def test_a_prefix_that_the_series_cannot_write_is_refused_as_prefix(tenant: Tenant) -> None:
    # Given a series of another dialect, whose codes may have four capitals and digits
    url = f"{INVOICE_SEQUENCES}/{sequence_id(put_series(tenant.sequence, prefix='A', max_length=4, charset='A-Z0-9'))}"

    # When its prefix does not fit, then the field of here is named
    for wrong, why in (("ABCDE", "max_length"), ("a", "charset")):
        assert why in OCTOBAT.check_refused(tenant.octobat.patch(url, data={"prefix": wrong}), 422, "prefix")
    assert tenant.octobat.patch(url, data={"prefix": "ABC"}).json()["next_number"] == "ABC1"


@both_kinds
@pytest.mark.parametrize(
    "form", [b"prefix=\xff", b"prefix=%ff", b"prefix=%ED%A0%80", b"a&" * 101 + b"prefix=A", b"\xff"]
)
def test_a_body_that_is_no_form_is_malformed(tenant: Tenant, path: str, form: bytes) -> None:
    made = new_sequence(tenant.octobat, "A-", path)
    OCTOBAT.check_refused(tenant.octobat.post(path, content=form), 400)
    OCTOBAT.check_refused(tenant.octobat.request("GET", path, content=form), 400)
    OCTOBAT.check_refused(tenant.octobat.patch(f"{path}/{made['id']}", content=form), 400)
    assert page(tenant, path)["data"] == [made]


@both_kinds
@pytest.mark.parametrize(
    "named", ["another company's", "unknown", "of another kind", "oc_ns_", "oc_ns_1", "1", "UUID", "upper case"]
)
def test_a_sequence_that_this_company_does_not_have(tenant: Tenant, common_up: Up, path: str, named: str) -> None:
    # Given an id of no sequence of this company and kind
    with Tenant(common_up) as other:
        theirs = new_sequence(other.octobat, "A-", path)
        mine = new_sequence(tenant.octobat, "A-", path)
        ids = {
            "another company's": theirs["id"],
            "unknown": sequence_id(UNKNOWN_ID),
            "of another kind": sequence_id(put_series(tenant.sequence, type="receipt")),
            "UUID": series_id(mine["id"]),
            "upper case": mine["id"].upper(),
        }
        wanted = ids.get(named, named)

        # When everything is tried with it, then there is no such sequence, or nothing behind it to list
        url = f"{path}/{wanted}"
        for answer in (
            tenant.octobat.get(url),
            tenant.octobat.patch(url, data={"prefix": "B-"}),
            tenant.octobat.patch(url),
            tenant.octobat.patch(f"{url}/default"),
        ):
            OCTOBAT.check_refused(answer, 404)
        for where in ("starting_after", "ending_before"):
            OCTOBAT.check_refused(tenant.octobat.get(path, params={where: wanted}), 422, where)

        # And both are as they were
        assert page(other, path)["data"] == [theirs]
        assert page(tenant, path)["data"] == [mine]


# pages ------------------------------------------------------------------------------------------------------------


COUNT = 23


class Shelf:
    """A company with a fixed list of sequences of a kind, some of others between them, and some deleted."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.all: list[dict[str, Any]] = []
        for number in range(COUNT):
            self.all.append(new_sequence(tenant.octobat, f"{number % 3}-"))
            if number % 4 == 0:
                new_sequence(tenant.octobat, f"{number}-", CREDIT_NOTE_SEQUENCES)
            if number % 5 == 0:
                gone = series_id(new_sequence(tenant.octobat, "gone")["id"])
                assert tenant.sequence.delete(f"/sequence/v1/series/{gone}").status_code == 204

    def expected(self, limit: int, after: int | None, before: int | None) -> dict[str, Any]:
        """The page that must come: of the sequences between two others, the first, or the last before one."""
        among = range(COUNT)[(after + 1 if after is not None else 0) : before]
        shown = among[:limit] if before is None else among[-limit:]
        first = shown[0] if shown else (after + 1 if after is not None else 0)
        return {
            "object": "list",
            "has_more": first + len(shown) < COUNT,
            "has_before": first > 0,
            "total_count": COUNT,
            "request_url": INVOICE_SEQUENCES,
            "data": [self.all[number] for number in shown],
        }


@pytest.fixture(scope="module")
def shelf(common_up: Up) -> Iterator[Shelf]:
    with Tenant(common_up) as tenant:
        yield Shelf(tenant)


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    limit=st.none() | st.integers(1, 100) | st.sampled_from([1, COUNT - 1, COUNT, COUNT + 1]),
    anchor=st.none() | st.tuples(st.booleans(), st.integers(0, COUNT - 1)),
    in_body=st.sets(st.sampled_from(["limit", "starting_after", "ending_before"])),
)
def test_a_page_is_what_a_plain_list_has_there(
    shelf: Shelf, limit: int | None, anchor: tuple[bool, int] | None, in_body: set[str]
) -> None:
    # Given a request for a page, whose parameters are in the query, in a form-encoded body, or in both
    after, before = (None, None) if anchor is None else (anchor[1], None) if anchor[0] else (None, anchor[1])
    wanted = {"limit": limit, "starting_after": after, "ending_before": before}
    said = {name: str(value) for name, value in wanted.items() if value is not None}
    said |= {name: shelf.all[int(said[name])]["id"] for name in said.keys() - {"limit"}}

    # When it is sent
    answer = shelf.tenant.octobat.request(
        "GET",
        INVOICE_SEQUENCES,
        params={name: value for name, value in said.items() if name not in in_body},
        data={name: value for name, value in said.items() if name in in_body},
    )

    # Then the page is the one of the list
    assert answer.status_code == 200, answer.text
    assert answer.json() == shelf.expected(10 if limit is None else limit, after, before)


@pytest.mark.parametrize("in_body", [False, True])
def test_pages_forward_and_back_show_each_once(shelf: Shelf, in_body: bool) -> None:  # noqa: FBT001 -- the case
    # Given pages of four, asked for as clients of either kind do
    def ask(**said: str) -> dict[str, Any]:
        body, query = (said, None) if in_body else (None, said)
        content: dict[str, Any] = shelf.tenant.octobat.request("GET", INVOICE_SEQUENCES, data=body, params=query).json()
        return content

    # When one turns them to the end
    pages = [ask(limit="4")]
    while pages[-1]["has_more"]:
        pages.append(ask(limit="4", starting_after=pages[-1]["data"][-1]["id"]))
    assert [one for listed in pages for one in listed["data"]] == shelf.all

    # Then one gets back by the way one came, and before the first there is nothing
    back = [pages[-1]]
    while back[-1]["has_before"]:
        back.append(ask(limit="4", ending_before=back[-1]["data"][0]["id"]))
    assert [one for listed in reversed(back) for one in listed["data"]] == shelf.all
    assert ask(ending_before=shelf.all[0]["id"])["data"] == []


WRONG_PAGES = {
    "limit": ["limit=0", "limit=101", "limit=-1", "limit=ten", "limit=", "limit=1.5", "limit=%D9%A1", "limit=1000000"],
    "starting_after": ["starting_after=x", f"starting_after={sequence_id(UNKNOWN_ID)}"],
    "ending_before": [
        "ending_before=x",
        f"ending_before={sequence_id(UNKNOWN_ID)}",
        "starting_after={}&ending_before={}",
    ],
}


@pytest.mark.parametrize(
    ("field", "query"), [(field, query) for field, listed in WRONG_PAGES.items() for query in listed]
)
def test_a_page_that_cannot_be(shelf: Shelf, field: str, query: str) -> None:
    # Given a request for it, in the query or in the body, then the field is named
    client, asked = shelf.tenant.octobat, query.replace("{}", shelf.all[3]["id"])
    OCTOBAT.check_refused(client.get(f"{INVOICE_SEQUENCES}?{asked}"), 422, field)
    OCTOBAT.check_refused(client.request("GET", INVOICE_SEQUENCES, content=asked), 422, field)


def test_parameters_of_a_page_that_are_empty_or_unknown_are_as_if_not_given(shelf: Shelf) -> None:
    plain = shelf.tenant.octobat.get(INVOICE_SEQUENCES).content
    for more in ("starting_after=", "ending_before=", "expand[]=all", "starting_after=&ending_before=&x=y"):
        assert shelf.tenant.octobat.get(f"{INVOICE_SEQUENCES}?{more}").content == plain
