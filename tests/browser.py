"""A real browser, told what to do through its own debugging protocol (Chrome DevTools Protocol over two pipes)."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stack import until

ENDING = b"\0"


class Browser:
    """A browser with one page. `events` are all that it has told, such as each request and each message of the console.

    It reaches this machine alone, and opens nothing but what tests serve: it needs no sandbox, which root does not get.
    """

    def __init__(self, path: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self._number = 0
        self._rest = b""
        self._session = ""
        listening, self._telling = os.pipe()
        self._hearing, answering = os.pipe()
        theirs = [_high(listening), _high(answering)]
        flags = ["--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={path}"]
        flags += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--window-size=1200,1600"]
        # The browser listens on descriptor 3 and answers on 4.
        command = f'exec chromium-headless-shell "$@" 3<&{theirs[0]} 4>&{theirs[1]}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, "browser", *flags],
            pass_fds=theirs,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for descriptor in theirs:
            os.close(descriptor)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime", "Audits"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._telling)
        os.close(self._hearing)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol and returns what it answers."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._telling, json.dumps(message).encode() + ENDING)
        while True:
            heard = self._hear()
            if heard.get("id") == self._number:
                assert "error" not in heard, heard
                result: dict[str, Any] = heard["result"]
                return result
            self.events.append(heard)

    def _hear(self) -> dict[str, Any]:
        while ENDING not in self._rest:
            more = os.read(self._hearing, 65536)
            assert more, f"the browser ended with {self._process.wait()}"
            self._rest += more
        message, _, self._rest = self._rest.partition(ENDING)
        heard: dict[str, Any] = json.loads(message)
        return heard

    def open(self, url: str) -> None:
        """Goes to a page."""
        assert "errorText" not in self.call("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """Returns the value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def shows(self, script: str, within_s: float = 60.0) -> Any:
        """Waits until an expression in the page is true, and returns it."""
        return until(lambda: self.evaluate(script), within_s)

    def told(self, method: str, wanted: Callable[[dict[str, Any]], bool] = lambda _: True) -> list[dict[str, Any]]:
        """What it has told by events of this name."""
        found = [event["params"] for event in self.events if event.get("method") == method]
        return [one for one in found if wanted(one)]


def _high(descriptor: int) -> int:
    """The same file under a number that none of the browser's has."""
    copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD, 100)
    os.close(descriptor)
    return copy
