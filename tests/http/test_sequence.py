"""The sequence dialect, over real HTTP."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor

import httpx

from stack import Up, entry_path, list_entries, new_id, put_entry, put_series, until


def test_first_numbers_of_a_series(client: httpx.Client) -> None:
    # Given a series with prefix, padding, suffix and start
    series = put_series(client, prefix="ES-", padding=5, suffix="/F", start=7, name="Sales")

    # When two entries are created
    first = put_entry(client, series, meta={"b": "2", "a": "1"})
    second = put_entry(client, series)

    # Then their codes follow one another and each names the one before
    assert first["code"] == "ES-00007/F"
    assert first["position"] == 1
    assert first["number"] == 7
    assert first["meta"] == {"a": "1", "b": "2"}
    assert "previous_id" not in first
    assert second["code"] == "ES-00008/F"
    assert second["previous_id"] == first["id"]
    shown = client.get(f"/sequence/v1/series/{series}").json()
    assert shown["last_index"] == 8
    assert shown["last_entry_id"] == second["id"]


def test_a_hundred_concurrent_puts_of_one_id_make_one_number(shared_up: Up, client: httpx.Client) -> None:
    # Given a series
    series, entry = put_series(client, prefix="A-"), new_id()

    # When one id is put a hundred times at once
    with shared_up.client() as many, ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda _: many.put(entry_path(series, entry), json={"meta": {"k": "v"}}), range(100)))

    # Then there is one number, and the bodies differ in nothing but what settlement adds
    assert [answer.status_code for answer in answers] == [200] * 100
    bodies = [
        {name: value for name, value in answer.json().items() if name not in ("sigs", "updated_at")}
        for answer in answers
    ]
    assert all(body == bodies[0] for body in bodies)
    assert sum("Idempotent-Replayed" not in answer.headers for answer in answers) == 1
    assert client.get(f"/sequence/v1/series/{series}").json()["last_index"] == 1


def test_replay_after_settlement_answers_the_same_entry_with_its_receipt(client: httpx.Client) -> None:
    # Given a settled entry
    series, entry = put_series(client), new_id()
    first = put_entry(client, series, entry, meta={"k": "v"})
    until(lambda: client.get(entry_path(series, entry)).json()["sigs"])

    # When it is put again, in other clothes
    answer = client.put(
        entry_path(series, entry.upper()), content=b'{"meta": {"k": "v"}, "id": "' + entry.encode() + b'"}'
    )

    # Then the answer is that entry, now with a receipt
    assert answer.status_code == 200
    assert answer.headers["Idempotent-Replayed"] == "true"
    again = answer.json()
    assert len(again["sigs"]) == 1
    assert again["updated_at"] >= first["updated_at"]
    assert {**again, "sigs": [], "updated_at": ""} == {**first, "sigs": [], "updated_at": ""}


def test_another_payload_under_the_same_id_is_a_conflict(client: httpx.Client) -> None:
    # Given an entry
    series, entry = put_series(client), new_id()
    put_entry(client, series, entry, meta={"k": "v"})

    # When the id comes with another meta
    answer = client.put(entry_path(series, entry), json={"meta": {"k": "w"}})

    # Then it is refused and nothing is consumed
    assert answer.status_code == 409
    assert answer.json()["code"] == "conflict"
    assert client.get(f"/sequence/v1/series/{series}").json()["last_index"] == 1


def test_listing_pages_through_outbox_and_store(client: httpx.Client) -> None:
    # Given 45 entries, some of them settled by now
    series = put_series(client, prefix="L")
    ids = [put_entry(client, series)["id"] for _ in range(45)]

    # When they are listed by pages of the default size
    first = client.get(f"/sequence/v1/series/{series}/entries").json()

    # Then the page says how it goes on, as the user's documents show it
    assert first["series_id"] == series
    assert first["limit"] == 20
    assert json.loads(base64.b64decode(first["cursor"])) == {"id": ids[19], "limit": 20}
    assert [entry["id"] for entry in list_entries(client, series, 7)] == ids
    assert [entry["position"] for entry in list_entries(client, series)] == list(range(1, 46))


def test_creating_request_again_changes_nothing_and_another_one_updates(client: httpx.Client) -> None:
    # Given a series, renamed since
    series = new_id()
    path = f"/sequence/v1/series/{series}"
    creation = {"name": "Sales", "prefix": "S-", "padding": 0, "start": 0, "suffix": "", "type": "receipt"}
    assert client.put(path, json=creation).status_code == 200
    renamed = client.put(path, json={"name": "Shop", "prefix": ""}).json()

    # When the creating request comes again
    again = client.put(path, json=creation).json()

    # Then the series is as it is now: empty values were not given
    assert again == renamed
    assert (again["name"], again["prefix"], again["type"]) == ("Shop", "S-", "receipt")


def test_numbering_is_fixed_by_the_first_entry(client: httpx.Client) -> None:
    # Given a series whose prefix changes before it is used
    series = put_series(client, prefix="OLD-")
    path = f"/sequence/v1/series/{series}"
    assert client.put(path, json={"prefix": "NEW-"}).json()["prefix"] == "NEW-"
    assert put_entry(client, series)["code"] == "NEW-1"

    # When it changes after
    answer = client.put(path, json={"prefix": "LATE-"})

    # Then that is refused, and labels still change
    assert answer.status_code == 409
    assert client.put(path, json={"description": "late"}).json()["description"] == "late"
    assert put_entry(client, series)["code"] == "NEW-2"


def test_an_inactive_series_issues_nothing_and_replays_what_it_issued(client: httpx.Client) -> None:
    # Given a series with an entry, deactivated
    series = put_series(client)
    entry = put_entry(client, series)
    assert client.put(f"/sequence/v1/series/{series}", json={"active": False}).json()["active"] is False

    # When a new id and the old one are put
    refused = client.put(entry_path(series, new_id()))
    replayed = client.put(entry_path(series, entry["id"]))

    # Then only the old one is answered; activation lets new ones through, without a gap
    assert refused.status_code == 409
    assert replayed.json()["code"] == entry["code"]
    client.put(f"/sequence/v1/series/{series}", json={"active": True})
    assert put_entry(client, series)["position"] == 2


def test_the_first_series_of_a_type_is_its_default_until_another_takes_over(client: httpx.Client) -> None:
    # Given two series of a type
    first = put_series(client, type="waybill")
    second = put_series(client, type="waybill")
    path = "/sequence/v1/series/"
    assert client.get(path + first).json()["default"] is True
    assert client.get(path + second).json()["default"] is False

    # When the second becomes the default
    client.put(path + second, json={"default": True})

    # Then the first is no longer
    assert client.get(path + first).json()["default"] is False
    assert client.get(path + second).json()["default"] is True


def test_series_are_listed_by_pages(shared_up: Up) -> None:
    # Given a company with five series
    shared_up.run("companies", "create", "lister")
    key = shared_up.json("keys", "create", "--company", "lister")["key"]
    with shared_up.client(key) as client:
        ids = [put_series(client, name=str(number)) for number in range(5)]

        # When they are listed by twos
        first = client.get("/sequence/v1/series", params={"limit": "2"}).json()
        second = client.get("/sequence/v1/series", params={"cursor": first["cursor"]}).json()
        third = client.get("/sequence/v1/series", params={"cursor": second["cursor"]}).json()

    # Then each comes once, oldest first
    assert [one["id"] for page in (first, second, third) for one in page["list"]] == ids
    assert "cursor" not in third
