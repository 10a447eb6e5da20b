"""Faults planted between the harness and a real server: each is found and named. Delays and cuts are not findings."""

from __future__ import annotations

import json
import time
from typing import Any

from faulty_proxy import Asked, Proxy, Reply, running
from loading import load_through
from stack import Up, seriatim

LOST, FOLLOWING = 20, 21


class DropsAnAcknowledgedEntry(Proxy):
    """Answers a PUT by itself, as the server would have, and forgets it."""

    last: dict[str, Any]

    def reply(self, asked: Asked) -> Reply | None:
        if self.is_put(asked, LOST):
            made_up = self.last | {"id": asked.entry, "previous_id": self.last["id"]}
            made_up |= {name: self.last[name] + 1 for name in ("position", "number")}
            made_up["code"] = f"LOAD-{made_up['number']:07}"
            return Reply(200, [("Content-Type", "application/json")], json.dumps(made_up).encode())
        reply = self.forward(asked)
        if asked.puts_entry:
            self.last = reply.content
        return reply


def test_an_acknowledged_entry_that_is_lost_is_found(shared_up: Up) -> None:
    # Given a proxy that makes up an answer, when one connection loads through it
    ran = load_through(DropsAnAcknowledgedEntry(shared_up.url), shared_up, "--count", "60", "--connections", "1")

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
        repeats = self.is_put(asked, LOST)
        reply = self.forward(asked)
        if repeats:
            same = {name: self.last[name] for name in ("position", "number", "code")}
            return reply.saying(reply.content | same)
        if asked.puts_entry:
            self.last = reply.content
        return reply


def test_a_number_that_is_told_twice_is_found(shared_up: Up) -> None:
    ran = load_through(RepeatsANumber(shared_up.url), shared_up, "--count", "60", "--connections", "1")
    assert ran.exit_code == 1
    assert ran.kinds == {"repeated_position", "wrong_position"}
    (detail,) = ran.details("repeated_position")
    assert "with the same code" in detail
    (detail,) = ran.details("wrong_position")
    assert detail.endswith(f"has {LOST}")


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


def test_an_entry_that_no_page_lists_is_found(shared_up: Up) -> None:
    ran = load_through(HidesAnEntry(shared_up.url), shared_up)
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


def test_entries_that_are_missing_at_the_end_are_found(shared_up: Up) -> None:
    ran = load_through(HidesTheLastEntries(shared_up.url), shared_up)
    assert ran.exit_code == 1
    assert ran.summary["found"] == {"unlisted_entry": 40}


class AnswersAWrongCode(Proxy):
    """Answers another code than the entry has."""

    def reply(self, asked: Asked) -> Reply | None:
        wrong = self.is_put(asked, LOST)
        reply = self.forward(asked)
        return reply.saying(reply.content | {"code": "LOAD-9999999"}) if wrong else reply


def test_a_wrong_code_in_an_answer_is_found(shared_up: Up) -> None:
    ran = load_through(AnswersAWrongCode(shared_up.url), shared_up)
    assert ran.exit_code == 1
    assert ran.summary["found"] == {"wrong_code": 1}


class AnswersAnotherTime(Proxy):
    """Answers another time than the entry keeps."""

    def reply(self, asked: Asked) -> Reply | None:
        wrong = self.is_put(asked, LOST)
        reply = self.forward(asked)
        return reply.saying(reply.content | {"created_at": "2026-01-01T00:00:00.000Z"}) if wrong else reply


def test_an_answer_that_says_something_else_than_the_entry_is_found(shared_up: Up) -> None:
    ran = load_through(AnswersAnotherTime(shared_up.url), shared_up)
    assert ran.exit_code == 1
    assert ran.kinds == {"changed_entry"}


class ListsAWrongCode(Proxy):
    """Lists two entries with the same code, under receipts that say otherwise."""

    def reply(self, asked: Asked) -> Reply | None:
        reply = self.forward(asked)
        if not asked.lists_entries:
            return reply
        page = reply.content
        for entry in page["list"]:
            if entry["position"] == FOLLOWING:
                entry["code"] = f"LOAD-{LOST:07}"
                self.planted += 1
        return reply.saying(page)


def test_a_code_that_is_listed_twice_is_found(shared_up: Up) -> None:
    ran = load_through(ListsAWrongCode(shared_up.url), shared_up)
    assert ran.exit_code == 1
    assert ran.kinds == {"repeated_code", "wrong_code", "unproven"}
    assert ran.details("repeated_code") == [f"LOAD-{LOST:07} is listed at positions [{LOST}, {FOLLOWING}]"]
    assert ran.details("unproven") == ["The entry differs from its receipt in code."]


class AltersMeta(Proxy):
    """Changes the meta on its way to the server."""

    def reply(self, asked: Asked) -> Reply | None:
        if self.is_put(asked, LOST):
            body = asked.body.replace(b"1234.50", b"9234.50")
            asked = Asked(asked.method, asked.path, asked.headers, body)
        return self.forward(asked)


def test_a_meta_that_was_altered_is_found(shared_up: Up) -> None:
    # Given a meta that is altered before the server sees it: answer, list and receipt agree with one another
    ran = load_through(AltersMeta(shared_up.url), shared_up)

    # Then it is found in the answer, and in the list
    assert ran.exit_code == 1
    assert ran.summary["found"] == {"changed_meta": 2}


class ShowsAnotherEntryByItsId(Proxy):
    """Shows every entry, by its id, with the first number."""

    def reply(self, asked: Asked) -> Reply | None:
        reply = self.forward(asked)
        if asked.method == "GET" and "/entries/" in asked.path:
            self.planted += 1
            return reply.saying(reply.content | {"number": 1})
        return reply


def test_an_entry_that_is_another_by_its_id_is_found(shared_up: Up) -> None:
    ran = load_through(ShowsAnotherEntryByItsId(shared_up.url), shared_up)
    assert ran.exit_code == 1
    assert ran.kinds == {"differs_by_id"}


class SwapsReceipts(Proxy):
    """Gives an entry the receipt of the one before."""

    def reply(self, asked: Asked) -> Reply | None:
        reply = self.forward(asked)
        if not asked.lists_entries:
            return reply
        page = reply.content
        if len(page["list"]) > FOLLOWING:
            page["list"][LOST]["sigs"] = page["list"][LOST - 1]["sigs"]
            self.planted += 1
        return reply.saying(page)


def test_a_receipt_of_another_entry_is_found(shared_up: Up) -> None:
    ran = load_through(SwapsReceipts(shared_up.url), shared_up)
    assert ran.exit_code == 1
    assert ran.summary["found"] == {"unproven": 1}


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


def test_a_receipt_that_never_comes_is_found(shared_up: Up) -> None:
    ran = load_through(
        KeepsReceiptsBack(shared_up.url), shared_up, "--count", "60", "--connections", "4", "--settle", "0.5"
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


def test_a_replay_that_is_given_another_number_is_found(shared_up: Up) -> None:
    arguments = ("--count", "60", "--connections", "1", "--mix", "new=90,replay=10")
    ran = load_through(ReplaysAnother(shared_up.url), shared_up, *arguments)
    assert ran.exit_code == 1
    assert ran.kinds == {"changed_replay", "unexpected_entry"}


class Refuses(Proxy):
    """Refuses a PUT that is as it should be."""

    def reply(self, asked: Asked) -> Reply | None:
        if self.is_put(asked, LOST):
            return Reply(409, [], b'{"code":"conflict","message":"No."}')
        return self.forward(asked)


def test_a_refusal_is_a_finding(shared_up: Up) -> None:
    ran = load_through(Refuses(shared_up.url), shared_up)
    assert ran.exit_code == 1
    assert ran.kinds == {"refused"}
    assert ran.details("refused") == ['new: 409 {"code":"conflict","message":"No."}']


class Garbles(Proxy):
    """Answers with what is no entry."""

    def reply(self, asked: Asked) -> Reply | None:
        garbles = self.is_put(asked, LOST)
        reply = self.forward(asked)
        return Reply(200, [], b"<html>") if garbles else reply


def test_an_answer_that_cannot_be_read_is_a_finding_and_its_outcome_unknown(shared_up: Up) -> None:
    ran = load_through(Garbles(shared_up.url), shared_up)
    assert ran.exit_code == 1
    assert ran.kinds == {"malformed_answer"}
    assert ran.summary["audit"]["unknown_issued"] == 1


# what is no fault -------------------------------------------------------------------------------------------------


class CutsAfterForwarding(Proxy):
    """Has some entries made, and cuts the connection instead of answering."""

    def reply(self, asked: Asked) -> Reply | None:
        cuts = self.is_put(asked, 7, LOST, 33)
        reply = self.forward(asked)
        return None if cuts else reply


def test_cut_connections_are_repeated_and_no_finding(shared_up: Up) -> None:
    ran = load_through(CutsAfterForwarding(shared_up.url), shared_up)
    assert ran.exit_code == 0
    assert ran.summary["errors"] == {"dropped": 3}
    assert ran.summary["entries"] == ran.summary["audit"]["listed"] == 60


class PutsOff(Proxy):
    """Says 503 and 429, before and after it has forwarded."""

    def reply(self, asked: Asked) -> Reply | None:
        if self.is_put(asked, 5, 6):
            return Reply(429, [("Retry-After", "0")], b"{}")
        if self.puts in (LOST, FOLLOWING):
            self.forward(asked)
            return Reply(503, [("Retry-After", "0")], b"{}")
        return self.forward(asked)


def test_what_is_put_off_is_repeated_and_no_finding(shared_up: Up) -> None:
    ran = load_through(PutsOff(shared_up.url), shared_up, "--count", "60", "--connections", "1")
    assert ran.exit_code == 0
    assert ran.summary["errors"] == {"429": 2, "503": 2}
    assert ran.summary["entries"] == ran.summary["audit"]["listed"] == 60


class DelaysSome(Proxy):
    """Answers some entries late."""

    def reply(self, asked: Asked) -> Reply | None:
        if self.is_put(asked, LOST, FOLLOWING):
            time.sleep(0.5)
        return self.forward(asked)


def test_late_answers_are_in_the_histogram_and_no_finding(shared_up: Up) -> None:
    # Given two of 60 answers that are late by half a second
    ran = load_through(DelaysSome(shared_up.url), shared_up, "--count", "60", "--connections", "4", "--rate", "100")

    # Then nothing is wrong, and the slowest bars of the histogram hold them
    assert ran.exit_code == 0
    assert sum(bar["count"] for bar in ran.summary["bars"] if bar["to_ms"] > 500) >= 2
    assert sum(bar["count"] for bar in ran.summary["bars"]) == 60


class NeverAnswersOne(Proxy):
    """Has one entry made, and never answers it."""

    def reply(self, asked: Asked) -> Reply | None:
        if self.is_put(asked, LOST):
            self.silent = asked.entry
        if asked.puts_entry and asked.entry == getattr(self, "silent", ""):
            self.forward(asked)
            return Reply(503, [], b"{}")
        return self.forward(asked)


def test_what_is_never_answered_may_be_there_and_is_counted(shared_up: Up) -> None:
    arguments = ("--count", "60", "--connections", "4", "--deadline", "0.5")
    ran = load_through(NeverAnswersOne(shared_up.url), shared_up, *arguments)
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


def test_a_service_that_issues_nothing_could_not_be_tested(shared_up: Up) -> None:
    with running(IssuesNothing(shared_up.url)) as proxy:
        arguments = ("--count", "2", "--connections", "2", "--deadline", "0.3")
        done = seriatim("load", proxy.url, "--key", shared_up.key, *arguments)
    assert done.returncode == 2
    assert "Not one number was issued" in done.stderr
    assert "2 unanswered" in done.stderr


class SpeaksAnotherLanguage(Proxy):
    """Answers everything with a page for people."""

    def reply(self, asked: Asked) -> Reply | None:
        self.planted += 1
        return Reply(200, [("Content-Type", "text/html")], f"<html>{asked.path}</html>".encode())


def test_what_is_no_seriatim_could_not_be_tested(shared_up: Up) -> None:
    with running(SpeaksAnotherLanguage(shared_up.url)) as proxy:
        done = seriatim("load", proxy.url, "--key", shared_up.key)
    assert done.returncode == 2
    assert "but not as Seriatim does" in done.stderr


class TellsABacklog(Proxy):
    """Says how many records wait, as a service may."""

    def reply(self, asked: Asked) -> Reply | None:
        reply = self.forward(asked)
        if asked.path != "/readyz":
            return reply
        self.planted += 1
        return reply.saying(reply.content | {"backlog": 1234})


def test_a_backlog_that_the_service_tells_is_shown(shared_up: Up) -> None:
    ran = load_through(TellsABacklog(shared_up.url), shared_up, "--duration", "1.2", "--rate", "20")
    assert ran.exit_code == 0
    assert "backlog 1,234" in ran.progress
    assert ran.summary["rows"][0]["backlog"] == 1234
