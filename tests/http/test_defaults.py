"""Default series: numbers without naming a series, the same for a retry however late; over real HTTP."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from stack import Up, entry_path, list_entries, new_id, put_entry, put_series


def put(client: httpx.Client, entry: str, kind: str, **body: Any) -> httpx.Response:
    return client.put(f"/sequence/v1/entries/{entry}", params={"type": kind}, json=body)


def series_path(series: str) -> str:
    return f"/sequence/v1/series/{series}"


def new_type() -> str:
    return f"t{new_id().replace('-', '')[:20]}"


def test_a_number_comes_from_the_default_series_of_its_type(shared_up: Up, client: httpx.Client) -> None:
    # Given two series of one type, the first of which is its default, and one of another
    kind, other = new_type(), new_type()
    first, second = put_series(client, type=kind, prefix="A-"), put_series(client, type=kind, prefix="B-")
    put_series(client, type=other, prefix="C-")

    # When numbers are asked for by type
    entry = put(client, new_id(), kind, meta={"k": "v"}).json()
    assert (entry["code"], entry["series_id"], entry["position"]) == ("A-1", first, 1)
    assert put(client, new_id(), other).json()["code"] == "C-1"

    # Then they are entries like any others of that series
    assert client.get(entry_path(first, entry["id"])).json()["meta"] == {"k": "v"}
    assert put_entry(client, first)["code"] == "A-2"

    # And when another series is made the default, then new ids go there
    assert client.put(series_path(second), json={"default": True}).json()["default"] is True
    assert client.get(series_path(first)).json()["default"] is False
    assert put(client, new_id(), kind).json()["code"] == "B-1"
    shared_up.settled()
    assert shared_up.json("verify", "--series", first, "--series", second)["sound"] is True


def test_a_retry_lands_where_its_id_first_came(shared_up: Up, client: httpx.Client) -> None:
    # Given an entry of the default series
    kind, entry = new_type(), new_id()
    first = put_series(client, type=kind, prefix="A-")
    told = put(client, entry, kind, meta={"n": "1"}).json()

    # When the default changes, and the id comes again, unsettled and settled
    second = put_series(client, type=kind, prefix="B-", default=True)
    for settled in (False, True):
        if settled:
            shared_up.settled()
        again = put(client, entry, kind, meta={"n": "1"})

        # Then it is the same entry of the first series
        assert again.headers["Idempotent-Replayed"] == "true"
        assert (again.json()["code"], again.json()["series_id"]) == (told["code"], first)

    # And another payload is a conflict, and the same id of another type another entry
    assert put(client, entry, kind, meta={"n": "2"}).status_code == 409
    other = new_type()
    assert put(client, entry, other).status_code == 404
    put_series(client, type=other, prefix="O-")
    assert put(client, entry, other).json()["code"] == "O-1"
    assert list_entries(client, second) == []


def test_a_claimed_id_waits_for_its_series(client: httpx.Client) -> None:
    # Given an inactive default series, and an id that was refused there
    kind, entry = new_type(), new_id()
    first = put_series(client, type=kind, prefix="A-", active=False)
    assert put(client, entry, kind).status_code == 409

    # When another series becomes the default, then the id is still refused, and a new one is not
    second = put_series(client, type=kind, prefix="B-", default=True)
    assert put(client, entry, kind).status_code == 409
    assert put(client, new_id(), kind).json()["code"] == "B-1"

    # And once its series is active, the id gets its number there
    client.put(series_path(first), json={"active": True})
    assert put(client, entry, kind).json()["code"] == "A-1"

    # And an id that belongs to a series that was deleted says so
    third = put_series(client, type=kind, prefix="D-", default=True, active=False)
    entry = new_id()
    assert put(client, entry, kind).status_code == 409
    assert client.delete(series_path(third)).status_code == 204
    refused = put(client, entry, kind)
    assert refused.status_code == 409
    assert "deleted" in refused.json()["message"]
    assert put(client, new_id(), kind).status_code == 404  # it was the default
    client.put(series_path(second), json={"default": True})
    assert put(client, new_id(), kind).json()["code"] == "B-2"


def test_without_a_default_the_type_is_named(client: httpx.Client) -> None:
    # Given no series of a type
    kind = new_type()
    answer = put(client, new_id(), kind)

    # Then the refusal names it
    assert answer.status_code == 404
    assert kind in answer.json()["message"]

    # And a type that is none, an id that is none and a wrong body are refused as elsewhere
    assert set(put(client, new_id(), "No Type!").json()["fields"]) == {"type"}
    assert client.put("/sequence/v1/entries/none", json={}).status_code == 400
    assert set(put(client, new_id(), kind, date="soon", meta={"k": "x" * 2000}).json()["fields"]) == {"date", "meta.k"}

    # And a series that is no longer the default leaves none
    series = put_series(client, type=kind)
    client.put(series_path(series), json={"default": False})
    assert put(client, new_id(), kind).status_code == 404


def test_every_id_lands_once_while_the_default_changes(shared_up: Up, client: httpx.Client) -> None:
    # Given a type with four series of which another becomes the default all the time
    kind = new_type()
    series = [put_series(client, type=kind, prefix=f"{name}-") for name in "ABCD"]
    done = threading.Event()

    def change() -> int:
        turns = 0
        with shared_up.client() as changing:
            while not done.is_set():
                answer = changing.put(series_path(series[turns % 4]), json={"default": True})
                assert answer.status_code == 200, answer.text
                turns += 1
        return turns

    def thrice(entry: str) -> set[tuple[str, str]]:
        answers = [put(many, entry, kind, meta={"entry": entry}) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200] * 3, [answer.text for answer in answers]
        return {(answer.json()["series_id"], answer.json()["code"]) for answer in answers}

    # When ids come, three times each
    with shared_up.client() as many, ThreadPoolExecutor(17) as pool:
        changing = pool.submit(change)
        told = list(pool.map(thrice, (new_id() for _ in range(300))))
        done.set()
        assert changing.result() > 4

    # Then each has one code in one series, and the series are whole
    assert all(len(one) == 1 for one in told)
    codes = [code for one in told for _, code in one]
    assert len(set(codes)) == 300
    listed = [entry["code"] for one in series for entry in list_entries(client, one)]
    assert sorted(listed) == sorted(codes)
    assert len({code[0] for code in codes}) > 1
