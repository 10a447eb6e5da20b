"""Faults planted between the harness and a real server: each is found and named. Delays and cuts are not findings."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import redis

from faulty_proxy import Asked, Proxy, Reply, running
from loading import load_through
from seriatim.keyspace import State
from stack import Up, seriatim

LOST, FOLLOWING, SWAPPED = 20, 21, 40


class DropsAnAcknowledgedEntry(Proxy):
    """Answers a PUT by itself, as the server would have, and forgets it."""

    last: dict[str, Any]

    def reply(self, asked: Asked) -> Reply | None:
        if self.planting(asked, LOST):
            made_up = self.last | {"id": asked.entry, "previous_id": self.last["id"]}
            made_up |= {name: self.last[name] + 1 for name in ("position", "number")}
            made_up["code"] = f"LOAD-{made_up['number']:07}"
            return Reply(200, [("Content-Type", "application/json")], json.dumps(made_up).encode())
        reply = self.forward(asked)
        if asked.puts_entry:
            self.last = reply.content
        return reply


def test_an_acknowledged_entry_that_is_lost_is_found(common_up: Up) -> None:
    # Given a proxy that makes up an answer, when one connection loads through it
    ran = load_through(DropsAnAcknowledgedEntry(common_up.url), common_up, "--count", "60", "--connections", "1")

    # Then the entry is missed, and its number was told twice
    assert ran.exit_code == 1
    assert ran.kinds == {"lost_entry", "repeated_position"}
    (detail,) = ran.details("lost_entry")
    assert "is not there" in detail
    assert [one["position"] for one in ran.summary["findings"]] == [LOST, LOST]
    assert ran.summary["audit"]["listed"] == 59


class RepeatsANumber(Proxy):
    """Answers an entry with the number of the one before."""

    last: dict[str, Any]

    def reply(self, asked: Asked) -> Reply | None:
        repeats = self.planting(asked, LOST)
        reply = self.forward(asked)
        if repeats:
            same = {name: self.last[name] for name in ("position", "number", "code")}
            return reply.saying(reply.content | same)
        if asked.puts_entry:
            self.last = reply.content
        return reply


def test_a_number_that_is_told_twice_is_found(common_up: Up) -> None:
    ran = load_through(RepeatsANumber(common_up.url), common_up, "--count", "60", "--connections", "1")
    assert ran.exit_code == 1
    assert ran.kinds == {"repeated_position", "wrong_position"}
    (detail,) = ran.details("repeated_position")
    assert "with the same code" in detail
    (detail,) = ran.details("wrong_position")
    assert detail.endswith(f"has {LOST}")


class SkipsANumber(Proxy):
    """Raises a counter in Redis, behind the service's back: the next number is left out, and nobody explains it."""

    redis: redis.Redis

    def reply(self, asked: Asked) -> Reply | None:
        if self.planting(asked, LOST):
            series = asked.path.split("/")[-3]
            for key in self.redis.scan_iter("*:series", count=10_000):
                if isinstance(packed := self.redis.hget(key, series), bytes):
                    state = State.unpack(packed)
                    raised = {"inc": state.counters["inc"] + 1}
                    self.redis.hset(key, series, msgspec.structs.replace(state, counters=raised).pack())
        return self.forward(asked)


def test_a_number_that_is_skipped_is_found(common_up: Up) -> None:
    # Given entries that settle with receipts that hold, in a chain that is whole
    proxy = SkipsANumber(common_up.url)
    proxy.redis = common_up.redis()
    ran = load_through(proxy, common_up, "--count", "60", "--connections", "1")

    # Then it is their numbers that give it away
    assert ran.exit_code == 1
    assert ran.summary["found"] == {"number_gap": 1}
    assert ran.details("number_gap") == [f"inc : {FOLLOWING} follows {LOST - 1}"]
    assert ran.summary["audit"]["receipts"] == 60


class HidesAnEntry(Proxy):
    """Leaves an entry out of the pages that it is on."""

    def reply(self, asked: Asked) -> Reply | None:
        reply = self.forward(asked)
        if not asked.lists_entries:
            return reply
        page = reply.content
        shown = [entry for entry in page["list"] if entry["position"] != LOST]
        self.planted += len(shown) < len(page["list"])
        return reply.saying(page | {"list": shown})


def test_an_entry_that_no_page_lists_is_found(common_up: Up) -> None:
    ran = load_through(HidesAnEntry(common_up.url), common_up)
    assert ran.exit_code == 1
    assert ran.kinds == {"missing_position", "unlisted_entry"}
    assert ran.details("missing_position") == [f"no entry is listed at {LOST}"]


class HidesTheLastEntries(HidesAnEntry):
    """Ends every list early."""

    def reply(self, asked: Asked) -> Reply | None:
        reply = self.forward(asked)
        if not asked.lists_entries:
            return reply
        page = reply.content
        self.planted += len(page["list"]) > LOST
        return reply.saying(page | {"list": page["list"][:LOST]})


def test_entries_that_are_missing_at_the_end_are_found(common_up: Up) -> None:
    ran = load_through(HidesTheLastEntries(common_up.url), common_up)
    assert ran.exit_code == 1
    assert ran.summary["found"] == {"unlisted_entry": 40}


class AnswersWrongly(Proxy):
    """Gets some answers wrong, each in its own way."""

    def reply(self, asked: Asked) -> Reply | None:
        fault = self.planting(asked, 10, 20, 30, 40, 50)
        if fault == 10:
            return Reply(409, [], b'{"code":"conflict","message":"No."}')
        if fault == 20:
            altered = asked.body.replace(b"1234.50", b"9234.50")
            return self.forward(Asked(asked.method, asked.path, asked.headers, altered))
        reply = self.forward(asked)
        if fault == 30:
            return reply.saying(reply.content | {"code": "LOAD-9999999"})
        if fault == 40:
            return reply.saying(reply.content | {"created_at": "2026-01-01T00:00:00.000Z"})
        return Reply(200, [], b"<html>") if fault == 50 else reply


def test_every_wrong_answer_is_found_and_named(common_up: Up) -> None:
    # Given a refusal, a meta that is altered on its way, a wrong code, another time, and what is no entry
    ran = load_through(AnswersWrongly(common_up.url), common_up)

    # Then each is a finding; of the meta, answer, list and receipt agree with one another and not with what was sent
    assert ran.exit_code == 1
    wanted = {"refused": 1, "changed_meta": 2, "wrong_code": 1, "changed_entry": 1, "malformed_answer": 1}
    assert ran.summary["found"] == wanted
    assert ran.details("refused") == ['new: 409 {"code":"conflict","message":"No."}']
    (detail,) = ran.details("wrong_code")
    assert "was answered with another code than LOAD-" in detail

    # And what could not be read has a number, as unknown ones may
    assert ran.summary["entries"] == 58
    assert ran.summary["audit"]["unknown"] == ran.summary["audit"]["unknown_issued"] == 1


class ListsWrongly(Proxy):
    """Lists two entries with the same code, under receipts that say otherwise; and one with another's receipt."""

    def reply(self, asked: Asked) -> Reply | None:
        reply = self.forward(asked)
        if not asked.lists_entries:
            return reply
        page = reply.content
        if len(page["list"]) > SWAPPED:
            page["list"][FOLLOWING - 1]["code"] = page["list"][LOST - 1]["code"]
            page["list"][SWAPPED - 1]["sigs"] = page["list"][SWAPPED]["sigs"]
            self.planted += 1
        return reply.saying(page)


def test_a_code_that_is_listed_twice_and_a_receipt_of_another_entry_are_found(common_up: Up) -> None:
    ran = load_through(ListsWrongly(common_up.url), common_up)
    assert ran.exit_code == 1
    assert ran.summary["found"] == {"repeated_code": 1, "wrong_code": 1, "unproven": 2}
    assert ran.details("repeated_code") == [f"LOAD-{LOST:07} is listed at positions [{LOST}, {FOLLOWING}]"]
    first, second = ran.details("unproven")
    assert first == "The entry differs from its receipt in code."
    assert second.startswith("The entry differs from its receipt in code, ")


class ShowsAnotherEntryByItsId(Proxy):
    """Shows every entry, by its id, with the first number."""

    def reply(self, asked: Asked) -> Reply | None:
        reply = self.forward(asked)
        if asked.method == "GET" and "/entries/" in asked.path:
            self.planted += 1
            return reply.saying(reply.content | {"number": 1})
        return reply


def test_an_entry_that_is_another_by_its_id_is_found(common_up: Up) -> None:
    ran = load_through(ShowsAnotherEntryByItsId(common_up.url), common_up)
    assert ran.exit_code == 1
    assert ran.kinds == {"differs_by_id"}


class KeepsReceiptsBack(Proxy):
    """Shows one entry without its receipt, for ever."""

    def reply(self, asked: Asked) -> Reply | None:
        reply = self.forward(asked)
        if not asked.lists_entries:
            return reply
        page = reply.content
        if len(page["list"]) > LOST:
            page["list"][LOST]["sigs"] = []
            self.planted += 1
        return reply.saying(page)


def test_a_receipt_that_never_comes_is_found(common_up: Up) -> None:
    ran = load_through(
        KeepsReceiptsBack(common_up.url), common_up, "--count", "60", "--connections", "4", "--settle", "0.5"
    )
    assert ran.exit_code == 1
    assert ran.kinds == {"unsettled"}
    assert ran.summary["audit"]["receipts"] == 59


class ReplaysAnother(Proxy):
    """Answers a replay with a new entry: the server is asked under another id."""

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.seen: set[str] = set()

    def reply(self, asked: Asked) -> Reply | None:
        if not asked.puts_entry:
            return self.forward(asked)
        if asked.entry not in self.seen:
            self.seen.add(asked.entry)
            return self.forward(asked)
        self.planted += 1
        other = asked.entry[:-4] + ("0000" if asked.entry[-4:] != "0000" else "1111")
        reply = self.forward(Asked(asked.method, asked.path.replace(asked.entry, other), asked.headers, asked.body))
        return reply.saying(reply.content | {"id": asked.entry})


def test_a_replay_that_is_given_another_number_is_found(common_up: Up) -> None:
    arguments = ("--count", "60", "--connections", "1", "--mix", "new=90,replay=10")
    ran = load_through(ReplaysAnother(common_up.url), common_up, *arguments)
    assert ran.exit_code == 1
    assert ran.kinds == {"changed_replay", "unexpected_entry"}


# what is no fault -------------------------------------------------------------------------------------------------


class CutsAndPutsOff(Proxy):
    """Cuts connections after an entry was made, and says 429 and 503, before and after it has forwarded."""

    def reply(self, asked: Asked) -> Reply | None:
        fault = self.planting(asked, 5, 10, 15, 20, 25)
        if fault == 5:
            return Reply(429, [("Retry-After", "0")], b"{}")
        reply = self.forward(asked)
        if fault in (10, 15):
            return Reply(503, [("Retry-After", "0")], b"{}")
        return None if fault else reply


def test_what_is_cut_or_put_off_is_repeated_and_no_finding(common_up: Up) -> None:
    ran = load_through(CutsAndPutsOff(common_up.url), common_up)
    assert ran.exit_code == 0
    assert ran.summary["errors"] == {"429": 1, "503": 2, "dropped": 2}
    assert ran.summary["entries"] == ran.summary["audit"]["listed"] == 60


class NeverAnswersOne(Proxy):
    """Has one entry made, and never answers it."""

    def reply(self, asked: Asked) -> Reply | None:
        if self.planting(asked, LOST):
            self.silent = asked.entry
        if asked.puts_entry and asked.entry == getattr(self, "silent", ""):
            self.forward(asked)
            return Reply(503, [], b"{}")
        return self.forward(asked)


def test_what_is_never_answered_may_be_there_and_is_counted(common_up: Up) -> None:
    arguments = ("--count", "60", "--connections", "4", "--deadline", "0.5")
    ran = load_through(NeverAnswersOne(common_up.url), common_up, *arguments)
    assert ran.exit_code == 0
    assert ran.summary["errors"]["unanswered"] == 1
    assert ran.summary["entries"] == 59
    assert ran.summary["audit"]["unknown"] == ran.summary["audit"]["unknown_issued"] == 1
    assert ran.summary["audit"]["listed"] == 60


class IssuesNothing(Proxy):
    """Says 503 to whoever wants a number."""

    def reply(self, asked: Asked) -> Reply | None:
        self.planted += asked.puts_entry
        return Reply(503, [], b"{}") if asked.puts_entry else self.forward(asked)


def test_a_service_that_issues_nothing_could_not_be_tested(common_up: Up) -> None:
    with running(IssuesNothing(common_up.url)) as proxy:
        arguments = ("--count", "2", "--connections", "2", "--deadline", "0.3")
        done = seriatim("load", proxy.url, "--key", common_up.key, *arguments)
    assert done.returncode == 2
    assert "Not one number was issued" in done.stderr
    assert "2 unanswered" in done.stderr


class SpeaksAnotherLanguage(Proxy):
    """Answers everything with a page for people."""

    def reply(self, asked: Asked) -> Reply | None:
        self.planted += 1
        return Reply(200, [("Content-Type", "text/html")], f"<html>{asked.path}</html>".encode())


def test_what_is_no_seriatim_could_not_be_tested(common_up: Up) -> None:
    with running(SpeaksAnotherLanguage(common_up.url)) as proxy:
        done = seriatim("load", proxy.url, "--key", common_up.key)
    assert done.returncode == 2
    assert "but not as Seriatim does" in done.stderr
