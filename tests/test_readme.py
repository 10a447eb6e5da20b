"""The documents are true: every command in them runs here, in order, and prints what they say it prints."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stdout
from pathlib import Path
from typing import IO, Any

import msgspec
import pytest
import yaml

from stack import Up

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    "docs/operating.md",
    "docs/numbering.md",
    "docs/gaps.md",
    "docs/client.md",
    "docs/dialects.md",
    "docs/access.md",
    "docs/load.md",
    "docs/guarantees.md",
)
START = "make run\n"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]*)(?:#([^)]*))?\)")
DOCKER = re.compile(r"export POSTGRES_PASSWORD=|docker compose ")
VARIABLE = re.compile(
    r"(?P<key>seriatim_[A-Za-z0-9]{35})"
    r"|(?P<uuid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
    r"|(?P<receipt>eyJ[\w.-]+)"
    r"|(?P<time>\d{4}-\d\d-\d\dT[\d:.]+Z)"
    r"|(?P<date>\b\d{4}-\d\d-\d\d\b|\b20\d{6}\b)"
)
"""What differs from run to run."""
KEY_ID = slice(9, 19)
SECRET = re.compile(r"^export (SERIATIM_JWT_SECRET)=(\S+)$", re.MULTILINE)
"""What a document says that the service was started with."""
DONE = "-- done --"


class Snippet(msgspec.Struct):
    """Commands of a shell or of Python, and what a document says that they print."""

    commands: str
    language: str
    printed: str | None = None


def read(document: str) -> list[Snippet]:
    """Returns the commands of a document. No block may be anything else, or it would go untested."""
    text = (ROOT / document).read_text()
    found: list[Snippet] = []
    end = 0
    for block in BLOCK.finditer(text):
        language, content = block.groups()
        if language in ("sh", "python"):
            found.append(Snippet(content, language))
        else:
            assert language == "text", f"{document}: a block must be sh, python or text: {content}"
            assert text[end : block.start()].isspace(), f"{document}: output must follow its commands: {content}"
            found[-1].printed = content
        end = block.end()
    assert text.count("```") == 2 * len(BLOCK.findall(text)), f"{document} has a block that cannot be read"
    return found


class Names:
    """The names that vary on one side, in a document or here, each with a neutral one in the order of appearance."""

    def __init__(self, address: str) -> None:
        self.neutral_of = {address: "<address 0>"}

    def add(self, name: str, kind: str) -> None:
        self.neutral_of.setdefault(name, f"<{kind} {len(self.neutral_of)}>")

    def neutral(self, text: str) -> str:
        for found in VARIABLE.finditer(text):
            self.add(found[0], str(found.lastgroup))
            if found["key"]:
                self.add(found[0][KEY_ID], "id")
        names = sorted(self.neutral_of, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, names)), lambda found: self.neutral_of[found[0]], text)


class Transcript:
    """What the documents show, and what happens here."""

    def __init__(self, address: str) -> None:
        self.shown = Names("127.0.0.1:8000")
        self.here = Names(address)

    def commands(self, text: str) -> str:
        """Commands with the names of here. A name that they bring up themselves is the same here."""
        neutral = self.shown.neutral(text)
        known = set(self.here.neutral_of.values())
        self.here.neutral_of |= {name: to for name, to in self.shown.neutral_of.items() if to not in known}
        names = {to: name for name, to in self.here.neutral_of.items()}
        return re.sub(r"<\w+ \d+>", lambda found: names[found[0]], neutral)

    def compare(self, snippet: Snippet, printed: str) -> None:
        if snippet.printed is not None:
            assert self.here.neutral(printed) == self.shown.neutral(snippet.printed), snippet.commands


class Shell:
    """One bash for all snippets, as its user has one terminal for them."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            ["bash", "-eo", "pipefail"],
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, commands: str) -> str:
        """Runs commands, each of which must succeed, and returns what they print."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{{ {commands}\n}} </dev/null\necho; echo {DONE}\n")
        self.process.stdin.flush()
        printed = ""
        while not printed.endswith(f"\n{DONE}\n"):
            line = self.process.stdout.readline()
            assert line, f"a command failed:\n{commands}\n{printed}"
            printed += line
        return printed.removesuffix(f"{DONE}\n").rstrip("\n") + "\n"


class Program:
    """One Python program of all snippets."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.names: dict[str, Any] = {}

    def run(self, commands: str) -> str:
        """Runs commands, and returns what they print."""
        printed = io.StringIO()
        with chdir(self.directory), redirect_stdout(printed):
            exec(compile(commands, "a document", "exec"), self.names)
        return printed.getvalue()


@contextmanager
def making(data_dir: Path, port: int, settings: dict[str, str]) -> Iterator[IO[str]]:
    """`make run` with the Python of these tests, on another port and directory; yields what it prints."""
    # What an outer `make test` hands down is not meant for this one, and the environment is as it should be already.
    environment = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "ARGS"}}
    environment |= settings
    target = ["-o", f"{sys.prefix}/stamp", f"VENV={sys.prefix}", "run", f"ARGS=--port {port} --data-dir {data_dir}"]
    process = subprocess.Popen(
        ["make", *target], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(25)


@pytest.mark.timeout(300)  # there are many, and a slow machine takes two seconds for each
def test_the_documents_are_true(directory: Path, tmp_path: Path) -> None:
    # Given the commands of all documents, in order, and what they print
    snippets = [snippet for document in DOCUMENTS for snippet in read(document)]
    start = snippets.pop(0)
    assert start.commands == START
    assert start.printed

    # When the first starts everything
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    transcript = Transcript(f"127.0.0.1:{port}")
    settings = dict(SECRET.findall("".join(snippet.commands for snippet in snippets)))
    assert settings
    with making(directory, port, settings) as output:
        printed = "".join(output.readline() for _ in start.printed.splitlines())
        transcript.compare(start, printed)

        # Then each of the others does what it shows
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        shell = Shell(tmp_path, dict(os.environ) | {"PATH": path, "SERIATIM_DATA_DIR": str(directory)})
        program = Program(tmp_path)
        for snippet in snippets:
            if all(DOCKER.match(line) for line in snippet.commands.splitlines()):
                continue  # below
            Up(directory).settled()  # it is faster than whoever types
            runs = shell if snippet.language == "sh" else program
            transcript.compare(snippet, runs.run(transcript.commands(snippet.commands)))
        shell.process.communicate()


def test_docker_is_asked_for_what_there_is() -> None:
    # No container engine runs here; what the services do without one is tested in test_compose.py.
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    shown = [line for document in DOCUMENTS for snippet in read(document) for line in snippet.commands.splitlines()]
    for line in filter(DOCKER.match, shown):
        words = line.split()
        if words[0] == "export":
            continue
        if words[2] == "exec":
            assert words[3] in services
            assert words[4] == "seriatim"
            called = [sys.executable, "-m", "seriatim", *words[5:7], "--help"]
            assert subprocess.run(called, capture_output=True, check=False).returncode == 0, line
        else:
            assert words[2] in {"up", "down", "ps", "logs"}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    for path, anchor in LINK.findall((ROOT / document).read_text()):
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
