"""The layout that the design promises: who imports whom, what the Lua headers say, how long a file may be."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from seriatim import scripts
from seriatim.cli import main
from seriatim.config import FLAGS, MEANINGS, PREFIX, Config

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "seriatim"
LUA = sorted((ROOT / "lua").glob("*.lua"))
LINES_MAX = 600

BASE = {"errors", "config", "model", "formats", "metrics"}
MAY_IMPORT = {
    **dict.fromkeys(BASE, BASE),
    "logs": set(),
    "keyspace": BASE,
    "clients": BASE | {"line", "scripts"},
    "report": BASE,
    "groups": BASE | {"keyspace"},
    "line": BASE,
    "scripts": BASE | {"keyspace", "groups", "line"},
    "outbox": BASE | {"keyspace", "scripts"},
    "tables": set(),
    "database": BASE,
    "registry": BASE | {"tables", "database"},
    "store": BASE | {"tables", "registry"},
    "signing": BASE,
    "signing_process": BASE | {"signing"},
    "allocator": BASE | {"keyspace", "groups", "scripts"},
    "definitions": BASE | {"keyspace", "scripts", "registry", "store", "allocator"},
    "ledger": BASE | {"keyspace", "groups", "scripts", "outbox", "store", "allocator", "definitions", "report"},
    "messages": BASE,
    "receipts": BASE | {"messages", "signing"},
    "attempts": BASE | {"messages"},
    "client": BASE | {"messages", "receipts", "signing", "attempts"},
    "tokens": BASE,
    "auth": BASE | {"registry", "tokens"},
    "http.edge": BASE,
    "http.dialect": BASE | {"auth"},
    "http.fields": BASE | {"messages"},
    "http.openapi": BASE | {"auth", "messages", "http.dialect"},
    "http.docs": set(),
    "http.heads": BASE | {"http.dialect", "http.edge"},
    "http.hot": BASE
    | {"auth", "keyspace", "ledger", "messages", "http.dialect", "http.edge", "http.heads", "http.sequence"},
    "http.server": BASE | {"keyspace", "ledger", "http.heads", "http.hot"},
}
"""Of our own modules, what each may import; modules that build things are free."""
DIALECT_MAY_IMPORT = BASE | {
    "messages",
    "report",
    "definitions",
    "ledger",
    "auth",
    "http.dialect",
    "http.edge",
    "http.fields",
}
HARNESS = "load"
HARNESS_MAY_IMPORT = BASE | {"messages", "signing", "receipts", "attempts", "client"}
"""It speaks HTTP only: what it says of a service, it has heard from it."""
NOT_DIALECTS = {
    "http",
    "http.app",
    "http.dialect",
    "http.edge",
    "http.fields",
    "http.openapi",
    "http.docs",
    "http.console",
    "http.heads",
    "http.hot",
    "http.server",
}
BUILDERS = {"http.app", "worker", "cli", "command", "clients"}
DRIVERS = {"redis", "rq", "sqlalchemy", "psycopg"}


@cache
def modules() -> dict[str, ast.Module]:
    """Our modules by their names below `seriatim`; '' is the package itself."""
    return {_name(path): ast.parse(path.read_text(), str(path)) for path in sorted(SOURCE.rglob("*.py"))}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


NAMES = [name for name in modules() if not name.startswith("migrations")]
DIALECTS = [name for name in NAMES if name.startswith("http") and name not in NOT_DIALECTS]


@cache
def imports(name: str) -> frozenset[str]:
    """What a module imports anywhere in it: our own by their names, others by `package:` and theirs."""
    found: set[str] = set()
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(_ours(full) or f"package:{full.split('.')[0]}" for full in found)


def _ours(full: str) -> str | None:
    if full.split(".", maxsplit=1)[0] != "seriatim":
        return None
    inside = full.split(".")[1:]
    while inside and ".".join(inside) not in modules():  # a name in a module
        inside.pop()
    return ".".join(inside) or "package itself"


def reaches(name: str) -> set[str]:
    """All of our modules that a module imports, and those that they import."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        fresh = {one for one in imports(waiting.pop()) if ":" not in one and one != "package itself"} - seen
        seen |= fresh
        waiting += fresh
    return seen


# who imports whom -------------------------------------------------------------------------------------------------


def test_the_modules_of_the_design_are_looked_at() -> None:
    assert {"errors", "allocator", "ledger", "http.app", "http.sequence", "worker", "verify"} <= set(NAMES)
    assert "http.sequence" in DIALECTS
    assert imports("ledger") >= {"allocator", "store", "scripts", "package:redis"}


@pytest.mark.parametrize("name", sorted(set(MAY_IMPORT) & set(NAMES)))
def test_a_module_imports_what_it_may(name: str) -> None:
    ours = {one for one in imports(name) if ":" not in one}
    assert ours <= MAY_IMPORT[name] | {"package itself"}


@pytest.mark.parametrize("name", DIALECTS)
def test_a_dialect_imports_ledger_auth_and_edge_and_no_other_dialect(name: str) -> None:
    ours = {one for one in imports(name) if ":" not in one}
    assert ours <= DIALECT_MAY_IMPORT | {"package itself"}
    assert not imports(name) & {f"package:{driver}" for driver in DRIVERS}


@pytest.mark.parametrize("name", [name for name in NAMES if name.split(".")[0] == HARNESS])
def test_the_harness_speaks_http_only(name: str) -> None:
    near = {one for one in reaches(name) if one.split(".")[0] != HARNESS}
    assert near <= HARNESS_MAY_IMPORT
    assert not imports(name) & {f"package:{driver}" for driver in DRIVERS}


def test_a_module_of_the_harness_imports_those_before_it_only() -> None:
    # Given the order in which the harness says what its modules are
    described = ast.get_docstring(modules()[HARNESS]) or ""
    order = [f"{HARNESS}.{name}" for name in re.findall(r"^(\w+)  +", described, re.MULTILINE)]

    # Then it is that of the imports, and names every module
    assert set(order) == {name for name in NAMES if name.startswith(f"{HARNESS}.")}
    for number, name in enumerate(order):
        assert {one for one in imports(name) if one.split(".")[0] == HARNESS} - {HARNESS} <= set(order[:number])


@pytest.mark.parametrize("name", sorted(BASE & set(NAMES)))
def test_the_base_knows_no_server(name: str) -> None:
    assert not imports(name) & {f"package:{driver}" for driver in DRIVERS}


def test_the_allocator_never_touches_store_signing_or_rq() -> None:
    near = reaches("allocator") | {"allocator"}
    assert not near & {"store", "signing", "worker"}
    assert not {one for name in near for one in imports(name)} & {"package:rq", "package:sqlalchemy", "package:joserfc"}


@pytest.mark.parametrize("name", ["worker", "verify", "recovery", "rebuild", "doctor"])
def test_what_works_behind_the_api_never_imports_http(name: str) -> None:
    assert not {one for one in reaches(name) if one.split(".")[0] == "http"}
    assert not imports(name) & {"package:starlette", "package:uvicorn"}


@pytest.mark.parametrize("name", sorted(set(NAMES) - BUILDERS))
def test_clients_are_built_in_app_worker_and_cli_only(name: str) -> None:
    built = [
        f"line {node.lineno}: {ast.unparse(node.func)}"
        for node in ast.walk(modules()[name])
        if isinstance(node, ast.Call)
        and re.search(r"(^|\.)(from_url|Redis|Store|clients\.blocking|clients\.asynchronous)$", ast.unparse(node.func))
    ]
    assert built == []


def test_modules_do_not_import_one_another_in_a_circle() -> None:
    assert [name for name in NAMES if name in reaches(name)] == []


# Lua --------------------------------------------------------------------------------------------------------------


class Script:
    """A Lua file in its parts: the header's comment, and the code without comments."""

    def __init__(self, path: Path) -> None:
        lines = path.read_text().splitlines()
        self.runs = lines[0] == "#!lua"
        body = lines[1:] if self.runs else lines
        end = next(number for number, line in enumerate(body) if not line.startswith("--"))
        self.header = "\n".join(line.removeprefix("--").strip() for line in body[:end])
        self.code = "\n".join(re.sub(r"--.*", "", line) for line in body[end:])
        self.includes = [
            path.parent / name for name in re.findall(r"^-- @include (\S+)", "\n".join(lines), re.MULTILINE)
        ]

    def numbered(self, part: str, name: str) -> list[int]:
        """The numbers N of `name[N]`."""
        return sorted({int(number) for number in re.findall(rf"{name}\[(\d+)\]", part)})

    def replies_in_header(self) -> set[str]:
        _, replies, described = self.header.partition("Replies")
        assert replies, "the header says nothing of replies"
        return set(re.findall(r"'([a-z]+)'", described))

    def replies_in_code(self) -> set[str]:
        code = self.code + "".join(self.included_functions(self.code))
        tables = re.findall(r"(?:return\b[^\n{]*|(?:replies\[\w+\]|said) = )\{ '([a-z]+)'", code)
        return {*tables, *re.findall(r"return (?:nil, )?'([a-z]+)'", code)}

    def included_functions(self, code: str) -> list[str]:
        """The functions of included files that code calls, or these in their turn, in their text."""
        functions = [
            found
            for path in self.includes
            for found in re.findall(r"^function (\w+\.\w+)\((.*?)^end", path.read_text(), re.MULTILINE | re.DOTALL)
        ]
        called: list[str] = []
        while more := [body for name, body in functions if f"{name}(" in code + "".join(called) and body not in called]:
            called += more
        return called


@pytest.mark.parametrize("path", LUA, ids=lambda path: path.stem)
def test_a_lua_file_opens_with_its_contract(path: Path) -> None:
    # Given a Lua file, then it says first what it does, and a script what it takes and replies
    script = Script(path)
    assert re.match(rf"{path.name}: \S.{{20,}}", script.header)
    assert script.runs == (path.stem in scripts.NAMES)
    if script.runs:
        for word in (r"KEYS\[1(\.\.)?\]", r"ARGV\[1\]", "Replies"):
            assert re.search(word, script.header)


@pytest.mark.parametrize("path", [path for path in LUA if Script(path).runs], ids=lambda path: path.stem)
@pytest.mark.parametrize("name", ["KEYS", "ARGV"])
def test_a_header_names_the_keys_and_arguments_that_the_code_uses(path: Path, name: str) -> None:
    # Given a script, when header and code are compared
    script = Script(path)
    documented, used = script.numbered(script.header, name), script.numbered(script.code, name)

    # Then both number the same ones, from 1 on; what has no fixed number is a `[N..]` in the header
    assert documented == used == list(range(1, len(documented) + 1))
    open_ended = re.findall(rf"{name}\[(\w+)\.\.\]", script.header)
    computed = re.findall(rf"\b{name}\b(?!\[\d+\])", script.code)
    assert len(open_ended) == (1 if computed else 0)


@pytest.mark.parametrize("path", [path for path in LUA if Script(path).runs], ids=lambda path: path.stem)
def test_a_header_names_the_replies_that_the_code_gives(path: Path) -> None:
    script = Script(path)
    assert script.replies_in_header() == script.replies_in_code()
    assert len(script.replies_in_code()) > 1


def test_every_script_is_loaded_and_every_include_is_there() -> None:
    files = {path.stem: Script(path) for path in LUA}
    assert {name for name, script in files.items() if script.runs} == set(scripts.NAMES)
    for name in scripts.NAMES:
        text = scripts.script(name).text
        assert "@include" not in text
        assert text.startswith("#!lua\n")


# files and settings -----------------------------------------------------------------------------------------------

FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder, pattern in (("src", "*.py"), ("lua", "*.lua"), ("tests", "*.py"), ("bench", "*.py"))
    for path in (ROOT / folder).rglob(pattern)
)


def test_no_file_is_longer_than_a_reader_follows() -> None:
    assert "src/seriatim/store.py" in FILES
    lengths = {name: len((ROOT / name).read_text().splitlines()) for name in FILES}
    assert {name: length for name, length in lengths.items() if length > LINES_MAX} == {}


def test_every_setting_has_a_meaning_and_every_flag_an_option() -> None:
    # Given the settings and the command line, then each setting is explained, and each flag's variable is read
    assert set(MEANINGS) == set(Config.__struct_fields__)
    assert all(len(meaning) > 10 for meaning in MEANINGS.values())
    variables = {parameter.envvar for parameter in main.commands["up"].params}
    assert {PREFIX + flag.upper() for flag in FLAGS} == variables - {None}
