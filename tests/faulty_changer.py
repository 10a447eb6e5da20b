"""An API process that changes a series and dies by SIGKILL at a named step; the fault lives here, outside the product.

Usage: faulty_changer.py CHANGE STEP COMPANY SERIES, with the settings in the environment.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from core import running_front
from faulty_worker import after, die
from seriatim import scripts
from seriatim.config import read
from seriatim.http.app import Front
from seriatim.model import SeriesFields
from seriatim.store import Store

FIELDS = {
    "numbering": SeriesFields(prefix="NEW-"),
    "activity": SeriesFields(active=False),
    "default": SeriesFields(default=True),
}
STEPS: dict[str, tuple[Any, str]] = {
    "marking": (scripts, "change"),
    "marking the defaults": (scripts, "change_defaults"),
    "committing": (Store, "change_series"),
    "deleting": (Store, "delete_series"),
    "installing": (scripts, "install"),
    "installing the defaults": (scripts, "install_defaults"),
    "removing": (scripts, "remove"),
}
OF_A_SERIES = ("marking", "committing", "installing")
OF_A_DEFAULT = ("marking the defaults", "marking", "committing", "installing", "installing the defaults")
OF_A_DELETION = ("marking the defaults", "marking", "deleting", "removing", "installing the defaults")
CHANGES = {"numbering": OF_A_SERIES, "activity": OF_A_SERIES, "default": OF_A_DEFAULT, "deletion": OF_A_DELETION}
POINTS = [
    (change, f"{when} {step}") for change, steps in CHANGES.items() for step in steps for when in ("before", "after")
]


async def change(kind: str, company: str, series: str) -> None:
    async with running_front(read(os.environ)) as front:
        await _change(front, kind, company, series)


async def _change(front: Front, kind: str, company: str, series: str) -> None:
    if kind == "deletion":
        await front.definitions.delete(company, series, "test")
    else:
        await front.definitions.put(company, series, FIELDS[kind])


if __name__ == "__main__":
    kind, step, company, series = sys.argv[1:]
    when, _, name = step.partition(" ")
    holder, function = STEPS[name]
    setattr(holder, function, die if when == "before" else after(getattr(holder, function), 1))
    asyncio.run(change(kind, company, series))
