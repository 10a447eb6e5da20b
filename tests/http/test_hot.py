"""The hot path answers as the ordinary way does, and steps aside for whatever is not plain."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from dialects import Tenant
from plain_socket import Answer, Wire, request
from seriatim import groups
from seriatim.http import heads
from seriatim.http.dialect import encode
from seriatim.http.hot import issued_content
from seriatim.http.sequence import entry_answer
from seriatim.keyspace import Issued, Run, pack_request
from seriatim.model import Numbering, canonical_meta, uuid_text
from stack import Up, entry_path, list_entries, new_id, put_entry, put_series, until

META = {"country": "AE", "type": "invoice", "code": "001", "payable": "1795.50"}
VARYING = ("date", "x-request-id")


@pytest.fixture
def wire(tenant: Tenant) -> Iterator[Wire]:
    with Wire(tenant.up.url) as made:
        yield made


def put(tenant: Tenant, series: str, entry: str, body: bytes, **more: str) -> bytes:
    """A PUT of an entry, as bytes."""
    headers = {"Authorization": f"Bearer {tenant.key}", "Content-Type": "application/json"}
    return request("PUT", entry_path(series, entry), headers | more, body)


def body(**fields: object) -> bytes:
    return json.dumps(fields, ensure_ascii=False).encode()


def known(tenant: Tenant, wire: Wire) -> str:
    """A new series that this API process knows, as it does the key: its first entry has taken the ordinary way."""
    series = put_series(tenant.sequence, prefix="H-", padding=3)
    wire.send(put(tenant, series, new_id(), b"{}"))
    assert wire.answer().status == 200
    return series


def was_hot(answer: Answer) -> bool:
    """Whether an answer came by the hot path: it writes its headers in another order."""
    names = list(answer.headers)
    return names.index("content-length") > names.index("cross-origin-resource-policy")


def same(answer: Answer) -> tuple[int, dict[str, str], bytes]:
    return answer.status, {name: value for name, value in answer.headers.items() if name not in VARYING}, answer.body


def test_uvicorn_has_what_the_hot_path_replaces() -> None:
    # Given the server beneath, then requests begin and end where connections of ours expect it
    for name in ("on_message_begin", "on_headers_complete", "on_message_complete", "on_response_complete"):
        assert callable(getattr(HttpToolsProtocol, name))
    assert callable(HttpToolsProtocol._start_asgi_task)
    assert callable(RequestResponseCycle.run_asgi)


PLAIN = {
    "a meta": body(meta=META),
    "no meta": b"{}",
    "no body": b"",
    "spaces": b' { "meta" : { "b" : "2", "a" : "1" } } ',
    "escapes": b'{"meta":{"a":"line\\nquote\\"slash\\/ \\u00e9 \\ud83d\\ude00"}}',
    "letters beyond ASCII": body(meta={"käufer": "Müller & Söhne 😀"}),
    "letters beyond ASCII in values": body(meta={"customer": "Müller & Söhne 😀", "city": "Iași\x7f"}),
    "a value beyond ASCII that is as long as may be": body(meta={"k": "é" * 512}),
    "a date": body(meta=META, date="2026-01-02"),
    "a signature": body(sig="eyJhbGciOiJFUzI1NiJ9.e30.c2ln"),
    "nulls": b'{"meta":null,"sig":null,"date":null,"id":null}',
    "as long as may be": body(meta={f"{number:02}".rjust(64, "k"): "v" * 150 for number in range(64)}),
}


IDS = st.uuids().map(lambda one: one.bytes)
FORMATS = ["INV-%inc%", "%yearLong%/%incYearly%", '100 %% %inc% "ü\\', "%incYearly%-%incMonthly%-%inc%", "%inc%"]
RENDERINGS = st.builds(
    lambda template, padding, day: groups.rendering(Numbering(format=template, padding=padding), day),
    st.sampled_from(FORMATS),
    st.integers(0, 20),
    st.dates(date(2000, 1, 1), date(2099, 12, 31)),
)
RUNS = st.builds(
    lambda made, name, first, time: Run(
        str(name), first, 0, 32, time, b"", tuple(first + n for n in range(len(made.fields))), made
    ),
    RENDERINGS,
    st.uuids(),
    st.integers(1, 2**52),
    st.integers(0, 2**42),
)
REQUESTS = st.builds(
    lambda entry, meta, sig: pack_request(entry + bytes(8), canonical_meta(meta) if meta else b"", sig),
    IDS,
    st.dictionaries(st.text(), st.text(), max_size=3),
    st.sampled_from([b"", b"a.b.c"]),
)


@given(run=RUNS, nth=st.integers(0, 31), request=REQUESTS, previous=IDS | st.just(b""))
def test_an_entry_is_written_at_once_as_step_by_step(run: Run, nth: int, request: bytes, previous: bytes) -> None:
    # Given an entry of a run, of any series and with any content
    issued = Issued(run, nth, request, previous)

    # When it is answered, then its bytes are those that the ordinary way makes of it
    content = issued_content(run.series, uuid_text(request[:16]), issued)
    assert content == encode(entry_answer(issued.entry()))


@pytest.mark.parametrize("content", PLAIN.values(), ids=PLAIN)
def test_an_answer_is_the_same_by_both_ways(tenant: Tenant, wire: Wire, content: bytes) -> None:
    # Given a series that takes any date, and an entry that came by the hot path
    series = put_series(tenant.sequence, prefix="H-", chronology="free")
    wire.send(put(tenant, series, new_id(), b"{}"))
    wire.answer()
    entry = new_id()
    wire.send(put(tenant, series, entry, content))
    issued = wire.answer()
    assert issued.status == 200
    assert was_hot(issued)

    # When it is asked for again by both ways
    wire.send(put(tenant, series, entry, content))
    replayed = wire.answer()
    wire.send(put(tenant, series, entry, content, **{"X-Company": tenant.company}))
    ordinary = wire.answer()

    # Then the answers differ in nothing, and the first one only in saying that it was the first
    assert not was_hot(ordinary)
    assert same(replayed) == same(ordinary)
    assert replayed.headers["idempotent-replayed"] == "true"
    if replayed.json()["updated_at"] == issued.json()["updated_at"]:  # no worker has settled it meanwhile
        assert issued.body == replayed.body
    assert "idempotent-replayed" not in issued.headers


REFUSED = {
    "no JSON": (b"{", 400),
    "no object": (b"[]", 400),
    "an unknown field": (b'{"x":1}', 422),
    "a number in a meta": (b'{"meta":{"a":1}}', 422),
    "a key too long": (body(meta={"k" * 65: "v"}), 422),
    "a value too long": (body(meta={"k": "v" * 1025}), 422),
    "a value too long in bytes": (body(meta={"k": "é" * 513}), 422),
    "a key too long in bytes": (body(meta={"é" * 33: "v"}), 422),
    "too many keys": (body(meta={f"k{number}": "" for number in range(65)}), 422),
    "an empty key": (body(meta={"": "v"}), 422),
    "NUL": (b'{"meta":{"k":"\\u0000"}}', 422),
    "a raw control character": (b'{"meta":{"k":"\x01"}}', 400),
    "broken UTF-8": (b'{"meta":{"k":"\xff"}}', 400),
    "another id": (body(id=new_id()), 422),
    "a wrong date": (body(date="2026-02-30"), 422),
    "a date that the series does not take": (body(date="2020-01-01"), 422),
    "no JWS": (body(sig="x"), 422),
    "too much": (b" " * 300_000, 413),
}


@pytest.mark.parametrize(("content", "status"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_is_the_same_by_both_ways_and_consumes_nothing(
    tenant: Tenant, wire: Wire, content: bytes, status: int
) -> None:
    # Given a series that is known
    series, entry = known(tenant, wire), new_id()
    tenant.sequence.put(f"/sequence/v1/series/{series}", json={"prefix": "H-", "padding": 3}).raise_for_status()

    # When something wrong is sent both ways
    answers = []
    for more in ({}, {"X-Company": tenant.company}):
        with Wire(tenant.up.url) as own:
            own.send(put(tenant, series, entry, content, **more))
            answers.append(own.answer())

    # Then it is refused in the same words, and the next number is the next
    assert same(answers[0]) == same(answers[1])
    assert answers[0].status == status
    assert put_entry(tenant.sequence, series)["position"] == 2


def test_what_is_not_plain_takes_the_ordinary_way(tenant: Tenant, wire: Wire) -> None:
    # Given a series that is known
    series = known(tenant, wire)
    first = put(tenant, series, new_id(), b"{}")

    # When requests are sent that ask for more than a number, or in other words
    upper = first.replace(series.encode(), series.upper().encode())
    sent = {
        "a company": put(tenant, series, new_id(), b"{}", **{"X-Company": tenant.company}),
        "a longer body": put(tenant, series, new_id(), body(meta={}).ljust(heads.BODY_BYTES_MAX + 1)),
        "upper case": upper,
        "a query": first.replace(b" HTTP/1.1", b"?x=1 HTTP/1.1"),
        "a percent": first.replace(b"/sequence/v1", b"/%73equence/v1"),
        "chunks": first.replace(
            b"Content-Length: 2\r\n\r\n{}", b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        ),
        "a scheme in another case": put(tenant, series, new_id(), b"{}").replace(b"Bearer", b"bearer"),
    }
    for name, data in sent.items():
        wire.send(data)
        answer = wire.answer()

        # Then they are answered all the same
        assert answer.status == 200, name
        assert was_hot(answer) == (name == "a scheme in another case"), name

    # And so are conflicts, and series that are not there
    conflict = put(tenant, series, wire_id(first), body(meta={"k": "v"}))
    wire.send(conflict)
    assert wire.answer().status == 409
    wire.send(put(tenant, new_id(), new_id(), b"{}"))
    assert wire.answer().status == 404


def test_the_first_request_of_a_connection_may_be_one_that_is_not_parsed(tenant: Tenant, wire: Wire) -> None:
    # Given requests whose head has come on another connection
    series, entry = known(tenant, wire), new_id()
    wire.send(put(tenant, series, entry, body(meta=META)))
    assert wire.answer().status == 200
    sent = {
        "new": (put(tenant, series, new_id(), b"{}"), 200),
        "known": (put(tenant, series, entry, body(meta=META)), 200),
        "a conflict": (put(tenant, series, entry, b"{}"), 409),
        "wrong": (put(tenant, series, entry, b'{"x":1}'), 422),
        "no series": (put(tenant, new_id(), new_id(), b"{}"), 404),
    }

    # When each is the first on a connection of its own, then it is answered, and so is one behind it
    for name, (data, status) in sent.items():
        with Wire(tenant.up.url) as own:
            for _ in range(2):
                own.send(data)
                assert own.answer().status == status, name


def wire_id(sent: bytes) -> str:
    """The entry's id in a request."""
    return sent.split(b" ")[1].rpartition(b"/")[2].decode()


def test_of_two_authorizations_the_first_counts(tenant: Tenant, wire: Wire) -> None:
    # Given requests with credentials beside none at all
    series = known(tenant, wire)
    given = f"Authorization: Bearer {tenant.key}\r\n".encode()
    for first, second, status in ((b"Authorization: \r\n", given, 401), (given, b"Authorization: \r\n", 200)):
        # When they are sent, then they are answered as by the ordinary way
        answers = []
        for more in ({}, {"X-Company": tenant.company}):
            wire.send(put(tenant, series, new_id(), b"{}", **more).replace(given, first + second))
            answers.append(wire.answer().status)
        assert answers == [status, status]


def test_a_request_in_pieces_is_one(tenant: Tenant, wire: Wire) -> None:
    # Given a request that arrives byte by byte
    series = known(tenant, wire)
    sent = put(tenant, series, new_id(), body(meta=META))
    for at in range(len(sent)):
        wire.send(sent[at : at + 1])

    # Then it is answered, by the hot path
    answer = wire.answer()
    assert (answer.status, answer.json()["position"], was_hot(answer)) == (200, 2, True)


def test_pipelined_requests_of_both_ways_are_answered_in_their_order(tenant: Tenant, wire: Wire) -> None:
    # Given requests sent at once, for the hot path and not, good ones and bad ones
    series = known(tenant, wire)
    sent = []
    for number in range(12):
        content = b"{" if number % 5 == 4 else body(meta={"n": str(number)})
        more = {"X-Company": tenant.company} if number % 3 == 1 else {}
        sent.append(put(tenant, series, new_id(), content, **more, **{"X-Request-Id": f"r{number}"}))
    wire.send(b"".join(sent))

    # When they are answered
    answers = [wire.answer() for _ in sent]

    # Then each got its own answer, in the order of the requests
    assert [answer.headers["x-request-id"] for answer in answers] == [f"r{number}" for number in range(len(sent))]
    assert [answer.status for answer in answers] == [400 if number % 5 == 4 else 200 for number in range(len(sent))]
    issued = [answer.json() for answer in answers if answer.status == 200]
    assert [one["position"] for one in issued] == list(range(2, len(issued) + 2))
    assert any(map(was_hot, answers))
    listed = list_entries(tenant.sequence, series)
    assert [one["meta"] for one in listed[1:]] == [one["meta"] for one in issued]


def test_a_connection_is_closed_behind_the_answer_when_the_client_wishes_so(tenant: Tenant, wire: Wire) -> None:
    # Given a request that says so
    series = known(tenant, wire)
    wire.send(put(tenant, series, new_id(), b"{}", Connection="close"))

    # Then it is answered, and nothing comes behind
    answer = wire.answer()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    with pytest.raises(AssertionError, match="closed the connection"):
        wire.answer()


def test_requests_whose_clients_have_gone_are_no_longer_at_work(tmp_path: Path) -> None:
    # Given a service where a key may have two requests at work
    limits = {"SERIATIM_KEY_IN_FLIGHT_MAX": "2", "SERIATIM_IN_FLIGHT_MAX": "4"}
    up = Up(tmp_path, environment=limits).start()
    try:
        with up.client() as client:
            series = put_series(client)
            put_entry(client, series)
            headers = {"Authorization": client.headers["Authorization"], "Content-Length": "10"}
            head = request("PUT", entry_path(series, new_id()), headers)

            def are_two_at_work() -> bool:
                with Wire(up.url) as one, Wire(up.url) as other:
                    one.send(head + b"{")
                    other.send(head + b"{")
                    return client.put(entry_path(series, new_id()), json={}).status_code == 503

            # When clients come and go in the middle of their bodies, again and again
            for _ in range(10):
                until(are_two_at_work)

            # Then all that was counted is given back
            with Wire(up.url) as one:
                one.send(head + b"{")
                until(lambda: client.put(entry_path(series, new_id()), json={}).status_code == 200)
    finally:
        up.stop()


def test_a_refused_request_counts_once(tmp_path: Path) -> None:
    # Given a service where a key may send ten requests a second
    up = Up(tmp_path, environment={"SERIATIM_KEY_RATE_MAX": "10"}).start()
    try:
        with up.client() as client:
            series = put_series(client)
            until(lambda: client.put(entry_path(series, new_id()), json={}).status_code == 200)

            # When bad requests are sent as fast as that goes, which begin on the hot path and end on the other
            def burst() -> list[int]:
                time.sleep(1.2)  # until all ten are there again
                return [client.put(entry_path(series, new_id()), json={"x": 1}).status_code for _ in range(10)]

            # Then each counts as one
            assert until(lambda: burst() == [422] * 10 or None, within_s=30)
    finally:
        up.stop()
