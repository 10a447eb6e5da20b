"""The gap report: what became of every number, beside a model that counts them one by one."""

from __future__ import annotations

from datetime import UTC, date, datetime

from hypothesis import given
from hypothesis import strategies as st

from seriatim.model import Counted, Numbering, Skip
from seriatim.report import Line, Report

FEBRUARY = datetime(2026, 2, 10, 12, tzinfo=UTC)
STEPS = st.lists(st.sampled_from(["issue", "issue", "skip", "lose", "void"]), max_size=30)
DAYS = st.sampled_from(["2026-01-31", "2026-02-01", "2026-02-28", "2026-03-01"])


def make_skip(first: int, last: int, at: datetime = FEBRUARY) -> Skip:
    return Skip("", 1, 1, "inc", "", first, last, "why", "who", int(at.timestamp() * 1000))


@given(steps=STEPS, start=st.sampled_from([1, 1, 7]), size=st.integers(1, 3))
def test_every_number_is_issued_skipped_or_missing(steps: list[str], start: int, size: int) -> None:
    # Given numbers that are issued, skipped, and lost without a trace
    report = Report(Numbering(start=start), None, None)
    issued: list[int] = []
    skipped: list[int] = []
    lost: list[int] = []
    voided = 0
    following, position = start, 0
    for step in steps:
        if step in ("issue", "void"):
            position += 1
            voided += step == "void"
            report.add(position, (Counted("inc", "", following),), "2026-02-01", void=step == "void")
            issued.append(following)
            following += 1
        elif step == "skip":
            report.skip(make_skip(following, following + size - 1))
            skipped += range(following, following + size)
            following += size
        else:
            lost += range(following, following + size)
            following += size

    # When the report is made
    lines = report.lines()

    # Then it names what no skip explains; what was lost behind the last entry nobody can know
    assert len(lines) == (1 if issued or skipped else 0)
    if issued:
        (line,) = lines
        assert (line.first, line.last, line.issued, line.voided) == (issued[0], issued[-1], len(issued), voided)
        missing = [number for begin, end in line.missing for number in range(begin, end + 1)]
        assert missing == [number for number in lost if number < issued[-1]]
        explained = [number for skip in line.skipped for number in range(skip.first, skip.last + 1)]
        assert explained == skipped


@given(days=st.lists(DAYS, max_size=20))
def test_a_report_of_a_month_leaves_out_what_is_not_dated_in_it(days: list[str]) -> None:
    # Given entries of some days in any order, and a report of February
    report = Report(Numbering(), date(2026, 2, 1), date(2026, 2, 28))
    for position, day in enumerate(days, 1):
        report.add(position, (Counted("inc", "", position),), day, void=False)

    # Then it counts February's, and the numbers between them that others have are not missing
    within = [position for position, day in enumerate(days, 1) if day.startswith("2026-02")]
    wanted = [Line("inc", "", within[0], within[-1], len(within))] if within else []
    assert report.lines() == wanted


def test_a_skip_is_reported_on_the_day_that_it_has_in_the_zone_of_the_series() -> None:
    # Given a skip at half past eleven in the evening of 31 January in UTC, which is February in Bucharest
    late = make_skip(1, 9, datetime(2026, 1, 31, 23, 30, tzinfo=UTC))
    for zone, days in (("UTC", 0), ("Europe/Bucharest", 1)):
        report = Report(Numbering(timezone=zone), date(2026, 2, 1), None)
        report.skip(late)

        # Then a report from February on has it in Bucharest only
        assert [len(line.skipped) for line in report.lines()] == [1] * days


def test_periods_are_reported_in_order_and_each_begins_with_one_but_the_first() -> None:
    # Given a series that starts at 5, with entries of two years
    report = Report(Numbering(start=5), None, None)
    for position, (period, value) in enumerate([("2026", 5), ("2026", 6), ("2027", 1), ("2027", 3)], 1):
        report.add(position, (Counted("incYearly", period, value),), f"{period}-06-01", void=False)

    # Then only what is not there is missing
    assert [(line.period, line.first, line.last, line.missing) for line in report.lines()] == [
        ("2026", 5, 6, []),
        ("2027", 1, 3, [(2, 2)]),
    ]


def test_a_period_that_a_skip_began_before_the_first_entry_begins_with_start() -> None:
    # Given a series that starts at 7, of whose second period 7 to 9 were skipped before anything was issued
    report = Report(Numbering(start=7), None, None)
    report.add(1, (Counted("incYearly", "2026", 7),), "2026-12-31", void=False)
    report.add(2, (Counted("incYearly", "2027", 10),), "2027-01-01", void=False)
    begun = Skip("", 0, 1, "incYearly", "2027", 7, 9, "why", "who", int(FEBRUARY.timestamp() * 1000))
    report.skip(begun)

    # Then nothing is missing in either
    assert [(line.period, line.missing) for line in report.lines()] == [("2026", []), ("2027", [])]
