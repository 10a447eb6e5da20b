"""Runs `seriatim load` as a user does, and reads what it prints."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from faulty_proxy import Proxy, running
from stack import Up, seriatim


class Ran(msgspec.Struct):
    """A load test that has run."""

    exit_code: int
    summary: dict[str, Any]
    progress: str

    @property
    def kinds(self) -> set[str]:
        """The kinds of findings."""
        return set(self.summary["found"])

    def details(self, kind: str) -> list[str]:
        return [one["detail"] for one in self.summary["findings"] if one["kind"] == kind]


def load(up: Up, *arguments: str, url: str | None = None) -> Ran:
    done = seriatim("load", url or up.url, "--key", up.key, "--json", *arguments)
    assert done.stdout, done.stderr
    return Ran(done.returncode, json.loads(done.stdout), done.stderr)


def load_through(proxy: Proxy, up: Up, *arguments: str) -> Ran:
    """Loads a server through a proxy that plants a fault, and makes sure that it did."""
    with running(proxy):
        ran = load(up, *(arguments or ("--count", "60", "--connections", "4")), url=proxy.url)
    assert proxy.planted, "the fault was not planted"
    return ran
