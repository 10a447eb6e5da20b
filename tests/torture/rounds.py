"""All of it: rounds of load beside faults, each with its audit."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from stack import SERIATIM
from torture import faults, halts
from torture.journal import Journal
from torture.load import MIX, MIX_OF_NEW, Load
from torture.services import STACKS, NotReadyError, Services

GAP_S = (0.2, 1.2)
"""Between the beginnings of two faults, which may overlap."""
AT_ONCE = 3
CALM_S = 1.0
LOST = {"lost_entry", "repeated_position"}
"""What the audit may find where records were lost that nothing held: that they were lost, and their positions taken."""


class Plan(msgspec.Struct, frozen=True):
    """A torture.

    Args:
        stack: a name in STACKS.
        seed: draws everything.
        storms: rounds of faults that pass by themselves.
        faults: how many of them in a storm.
        halts: how many of those that must be recovered, while all is settled; each kind in its turn.
        losses: how many while records wait.
        rate: requests a second.
        deadline_s: for how long a request is repeated; longer than any fault, so that every one is answered in the end.
        patience_s: how long services may take to be ready after what was done to them.
    """

    stack: str
    seed: int
    storms: int = 1
    faults: int = 60
    halts: int = len(halts.HALTS)
    losses: int = 3
    rate: float = 150.0
    deadline_s: float = 240.0
    patience_s: float = 90.0


def run(plan: Plan, journal: Journal, program: Sequence[str] = SERIATIM) -> None:
    """Tortures a stack; what is wrong is in the journal's findings."""
    path = Path(tempfile.mkdtemp(prefix="torture-"))
    rng = Random(plan.seed)
    services = STACKS[plan.stack](path, program)
    try:
        services.start()
        for _ in range(plan.storms if plan.faults else 0):
            with loaded(services, plan, journal, MIX):
                storm(services, Random(rng.random()), plan.faults, journal)
        fitting = [halt for halt in halts.HALTS if services.fits(halt.needs)]
        sound = [fitting[number % len(fitting)] for number in range(plan.halts)]
        losing = [halt for halt in fitting if halt.loses]
        for chosen, lossy in ((sound, False), ([losing[n % len(losing)] for n in range(plan.losses)], True)):
            if chosen:
                with loaded(services, plan, journal, MIX_OF_NEW if lossy else MIX, lossy=lossy):
                    for halt in chosen:
                        halts.play(services, Random(rng.random()), halt, journal, lossy=lossy)
    except NotReadyError as error:
        journal.find(str(error))
    finally:
        services.close()
        if journal.findings:
            journal.say(f"what was left is in {path}")
        else:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def loaded(services: Services, plan: Plan, journal: Journal, mix: str, *, lossy: bool = False) -> Iterator[None]:
    """A load beside what is done here, and its audit."""
    load = Load(services, plan.rate, plan.deadline_s, mix)
    try:
        yield
        time.sleep(CALM_S)
        services.ready(plan.patience_s)
        audited = load.end()
    finally:
        load.kill()
    judge(audited, journal, lossy=lossy)
    code, verified = services.command("verify")
    if code != 0:
        journal.find(f"verify: {verified}")
    code, found = services.command("doctor")
    wrong = [one for one in found["findings"] if one["kind"] != "disk"]  # of the machine that this runs on
    if wrong:
        journal.find(f"doctor: {wrong}")


def judge(audited: dict[str, Any], journal: Journal, *, lossy: bool) -> None:
    """Takes the audit of a load into the journal."""
    journal.entries += audited["entries"]
    found = dict(audited["found"])
    journal.say(f"audit: {audited['entries']} entries, {found or 'sound'}; errors {audited.get('errors')}")
    told = audited["findings"]
    for kind, count in found.items():
        if not (lossy and kind in LOST):
            journal.find(f"{count} {kind}: {[one for one in told if one['kind'] == kind][:3]}")
    if any("with the same code" in one["detail"] for one in told):
        journal.find("a number was issued twice")


def storm(services: Services, rng: Random, count: int, journal: Journal) -> None:
    """Injects faults one after the other, some at a time, and waits until all have passed."""
    slots = threading.Semaphore(AT_ONCE)
    threads = []
    for fault in faults.draw(services, rng, count):
        time.sleep(rng.uniform(*GAP_S))
        slots.acquire()
        thread = threading.Thread(target=_injure, args=(services, fault, rng.random(), journal, slots.release))
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()
    services.clock.step(0)


def _injure(services: Services, fault: faults.Fault, seed: float, journal: Journal, done: Callable[[], None]) -> None:
    try:
        journal.fault(fault.kind, fault.injure(services, Random(seed)) or "")
    except Exception as error:  # noqa: BLE001 -- a torture that breaks has not shown anything
        journal.find(f"{fault.kind} could not be injected: {error!r}")
    finally:
        done()
