"""The command line. Every command takes --json, and says what to do next when it fails."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeVar, cast

import click
import msgspec

from seriatim import __version__, config, errors
from seriatim.command import Exit, common, configuration, data_dir, embedded, environment, open_store, output
from seriatim.load.options import load_options

R = TypeVar("R")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Seriatim hands out gap-free, sequential document numbers and proves that none was lost.

    Exit codes: 0 done, 1 findings (verify, load, doctor; recover wants a decision), 2 could not run.
    """


@main.command()
@click.option("--host", default="127.0.0.1", envvar="SERIATIM_HOST", show_default=True, show_envvar=True)
@click.option(
    "--port",
    default=8000,
    type=click.IntRange(0, 65535),
    envvar="SERIATIM_PORT",
    show_default=True,
    show_envvar=True,
)
@click.option(
    "--workers",
    default=1,
    type=click.IntRange(0, 64),
    envvar="SERIATIM_WORKERS",
    show_default=True,
    show_envvar=True,
)
@click.option(
    "--api-processes",
    default=1,
    type=click.IntRange(1, 64),
    envvar="SERIATIM_API_PROCESSES",
    show_default=True,
    show_envvar=True,
)
@common
def up(host: str, port: int, workers: int, api_processes: int) -> None:
    """Run everything on this machine: embedded Valkey, SQLite store, API and workers."""
    from seriatim.directory import DataDirectory
    from seriatim.embedded import Supervisor

    supervisor = Supervisor(
        DataDirectory(data_dir()),
        (host, port),
        workers=workers,
        api_processes=api_processes,
        say=_say,
    )
    supervisor.run(_first_start)


def _say(event: str, text: str) -> None:
    texts = {"key": "API key (shown once, keep it): {}", "ready": "ready {}", "halted": "halted {}"}
    output().show({"event": event, event: text}, texts[event].format(text))
    sys.stdout.flush()


def _first_start(settings: config.Config) -> None:
    """Makes what an embedded setting needs: the schema, the signing key, and a first company with a key."""
    from seriatim import auth, signing
    from seriatim.store import Store
    from seriatim.tokens import Tokens

    Tokens(settings)  # what is wrong in them is better said here than in the log of an API process
    store = Store(settings.store_url)
    store.migrate()
    store.prepare(settings.shards)
    signing.create_key(Path(settings.signing_key))
    if not store.companies():
        company = store.create_company("default", "up")
        key, _ = auth.create_key(store, [company.id], auth.SCOPES, "up")
        _say("key", key)
    store.close()


@main.command()
@click.option("--host", default="127.0.0.1", envvar="SERIATIM_HOST", show_default=True, show_envvar=True)
@click.option("--port", default=8000, type=int, envvar="SERIATIM_PORT", show_default=True, show_envvar=True)
@click.option("--fd", type=int, help="Serve on this inherited socket instead.")
@common
def serve(host: str, port: int, fd: int | None) -> None:
    """Run the API alone, against SERIATIM_REDIS_URL and SERIATIM_STORE_URL."""
    import socket

    import uvicorn

    from seriatim import logs
    from seriatim.http.app import Front

    settings = config.read(os.environ)
    logs.configure(settings.log_level)
    front = Front(settings)
    edge = front.app()
    server = uvicorn.Server(
        uvicorn.Config(
            edge,
            host=host,
            port=port,
            loop="uvloop",
            http=cast("type[asyncio.Protocol]", front.connections(edge)),
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=5,
        )
    )
    _collect_seldom()
    server.run(sockets=None if fd is None else [socket.socket(fileno=fd)])


def _collect_seldom() -> None:
    # What is there now stays; what a request or a slice leaves behind is mostly gone without the collector's help.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@main.command()
@common
def worker() -> None:
    """Run a worker alone, against SERIATIM_REDIS_URL and SERIATIM_STORE_URL."""
    from seriatim import logs
    from seriatim import worker as workers

    settings = config.read(os.environ)
    logs.configure(settings.log_level)
    _collect_seldom()
    workers.run(settings)


@main.command()
@common
def migrate() -> None:
    """Bring the store's schema to this version, and prepare an empty store."""
    from seriatim.store import Store

    settings = configuration()
    store = Store(settings.store_url)
    store.migrate()
    store.prepare(settings.shards)
    output().show({"migrated": True}, "The store is ready.")


@main.command("config")
@common
def show_config() -> None:
    """List the settings: value, origin and meaning; passwords hidden."""
    listed = config.settings(environment(), os.environ)
    lines = [f"{one.name}={one.value}  ({one.origin})\n    {one.meaning}" for one in listed]
    output().show(listed, "\n".join(lines))


@main.group()
def companies() -> None:
    """Tenants."""


@companies.command("create")
@click.argument("name")
@common
def create_company(name: str) -> None:
    """Create a company."""
    company = open_store().create_company(name, "cli")
    output().show({"id": company.id, "name": company.name}, f"{company.id}  {company.name}")


@companies.command("list")
@common
def list_companies() -> None:
    """List the companies."""
    listed = open_store().companies()
    lines = [f"{one.id}  {one.name}" for one in listed]
    output().show([{"id": one.id, "name": one.name} for one in listed], "\n".join(lines))


@main.group()
def keys() -> None:
    """API keys."""


@keys.command("create")
@click.option(
    "--company", "companies", required=True, multiple=True, help="Name or id; again for more, the first leads."
)
@click.option("--scope", "scope", default="read,allocate,manage", show_default=True, help="What the key may do.")
@common
def create_key(companies: tuple[str, ...], scope: str) -> None:
    """Create an API key; it is shown once."""
    from seriatim import auth

    store = open_store()
    owners = list(dict.fromkeys(store.company(company).id for company in companies))
    key, kept = auth.create_key(store, owners, auth.parse_scopes(scope), "cli")
    value = {"key": key, "id": kept.id, "company": kept.company, "scopes": kept.scopes}
    output().show(value, f"{key}\nKeep it: it is not shown again. Its id is {kept.id}.")


@keys.command("list")
@common
def list_keys() -> None:
    """List the API keys, without their secrets."""
    listed = [
        {
            "id": key.id,
            "company": key.company,
            "companies": key.companies,
            "scopes": key.scopes,
            "revoked": key.revoked_at is not None,
        }
        for key in open_store().api_keys()
    ]
    lines = [
        f"{key['id']}  {','.join(key['companies'])}  {','.join(key['scopes'])}{'  revoked' if key['revoked'] else ''}"
        for key in listed
    ]
    output().show(listed, "\n".join(lines))


@keys.command("revoke")
@click.argument("key_id")
@common
def revoke_key(key_id: str) -> None:
    """Revoke an API key, by its id, within a second."""
    open_store().revoke_key(key_id, "cli")
    output().show({"revoked": key_id}, f"Revoked {key_id}.")


@main.group()
def series() -> None:
    """Numbering definitions."""


@series.command("list")
@common
def list_series() -> None:
    """List the series of all companies."""
    listed = open_store().list_series()
    lines = [f"{one.id}  {one.company}  {one.type}  {one.position} settled  {one.name}" for one in listed]
    output().show([_series_value(one) for one in listed], "\n".join(lines))


@series.command("show")
@click.argument("series_id")
@common
def show_series(series_id: str) -> None:
    """Show a series as the store has it."""
    value = _series_value(_series(open_store(), series_id))
    output().show(value, "\n".join(f"{name}: {content}" for name, content in value.items()))


def numbering(command: Callable[..., R]) -> Callable[..., R]:
    """Adds the options that define a series' numbers."""
    for option in (
        click.option("--charset", help="Characters that codes may have, such as A-Z0-9/-."),
        click.option("--max-length", type=int, help="Characters that a code may have at most."),
        click.option("--chronology", type=click.Choice(["strict", "free"]), help="Whether dates may go back."),
        click.option("--fiscal-year-start", help="First day of the fiscal year, MM-DD.  [default: 01-01]"),
        click.option("--timezone", help="Name in the tz database.  [default: UTC]"),
        click.option("--start", type=int, help="First number.  [default: 1]"),
        click.option("--suffix", help="What stands behind the number."),
        click.option("--padding", type=int, help="Digits that a number has at least."),
        click.option("--prefix", help="What stands before the number."),
        click.option("--format", "format", help="With markers, such as INV-%yearLong%-%incYearly%."),
    ):
        command = option(command)
    return command


@series.command("create")
@click.option("--company", default="default", show_default=True, help="Name or id.")
@click.option("--id", "series_id", help="UUID of the series.  [default: a new one]")
@click.option("--type", help="Type of its documents.  [default: invoice]")
@click.option("--name", help="Its name.")
@click.option("--default/--no-default", default=None, help="Whether it is the default of its type.")
@numbering
@common
def create_series(company: str, series_id: str | None, **said: Any) -> None:
    """Create a series, and show the first codes that it will issue."""
    from seriatim.http.fields import series_fields
    from seriatim.model import UUID_PATTERN

    fields = series_fields(said)
    chosen = (series_id or str(uuid.uuid4())).lower()
    if not UUID_PATTERN.match(chosen):
        raise errors.Invalid({"id": "is not a UUID (8-4-4-4-12 hex digits)"})
    store = open_store()
    owner = store.company(company)
    if store.series(chosen):
        raise errors.Conflict(f"Series {chosen} exists. `seriatim series show {chosen}` shows it.")
    view, preview = asyncio.run(_create_series(owner.id, chosen, fields))
    value = _series_value(view.series) | {"next": preview.next}
    output().show(value, f"{chosen}\nIts first codes: {', '.join(preview.next)}")


async def _create_series(company: str, series_id: str, fields: Any) -> Any:
    async with _front() as front:
        view = await front.definitions.put(company, series_id, fields)
        return view, await front.definitions.preview(company, series_id)


@series.command("preview")
@click.argument("series_id", required=False)
@numbering
@common
def preview_series(series_id: str | None, **said: Any) -> None:
    """Show the next codes of a series, or the first ones of a definition that is checked and not created."""
    from seriatim import definitions
    from seriatim.http.fields import series_fields
    from seriatim.registry import now_ms

    if series_id is None:
        preview = definitions.preview_new(series_fields(said), now_ms())
    elif any(value is not None for value in said.values()):
        raise errors.ConfigError("Name a series or give a definition, not both.")
    else:
        preview = asyncio.run(_preview_series(_series(open_store(), series_id)))
    after = [f"after the coming change of {what}, {one.date}: {one.code}" for what, one in preview.after.items()]
    output().show(msgspec.to_builtins(preview), "\n".join([*preview.next, *after]))


async def _preview_series(one: Any) -> Any:
    async with _front() as front:
        return await front.definitions.preview(one.company, one.id)


@asynccontextmanager
async def _front() -> AsyncIterator[Any]:
    """The parts of an API process, without its HTTP; beside a running service, or without its Redis server."""
    from seriatim import recovery
    from seriatim.http.app import Front

    front = Front(configuration())
    with suppress(errors.Unavailable):
        front.gate.open(await asyncio.to_thread(recovery.meet, front.blocking, front.store, front.config.ack))
    try:
        yield front
    finally:
        await front.close()


@main.command("audit-log")
@common
def show_audit_log() -> None:
    """Show what was done out of the ordinary: who, when, what; oldest first."""
    from seriatim.model import timestamp

    listed = list(open_store().logged())
    values = [msgspec.structs.asdict(one) | {"at": timestamp(one.at)} for one in listed]
    lines = [f"{one['at']}  {one['actor']}  {one['action']}  {_said(one['detail'])}" for one in values]
    output().show(values, "\n".join(lines))


def _said(detail: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in detail.items())


@main.command()
@common
def doctor() -> None:
    """Say what is wrong, and what to do about it. Changes nothing; exit code 1 when something is wrong."""
    from seriatim import doctor as doctors

    directory = embedded()
    given = configuration()
    with closing(_redis(given.redis_url)) as client, closing(_redis(given.queue_url or given.redis_url)) as queue:
        found = doctors.diagnose(client, queue, open_store(), given, directory.path if directory else None)
    text = "\n".join(f"{one.kind}: {one.detail}\n    {one.advice}" for one in found)
    output().show({"healthy": not found, "findings": found}, text or "Nothing is wrong.")
    sys.exit(Exit.FINDINGS if found else Exit.OK)


@main.command()
@click.option("--accept-loss", is_flag=True, help="Go on, though numbers may be issued again.")
@click.option(
    "--resume-at",
    "resumed",
    multiple=True,
    metavar="SERIES=N",
    help="Go on with N in a series; what is left out is recorded. May be given again.",
)
@common
def recover(accept_loss: bool, resumed: tuple[str, ...]) -> None:
    """Build Redis anew from the store, when it has lost data or allocation was halted. Runs beside the service.

    Where acknowledged numbers may be lost it says so, and changes nothing until --resume-at or --accept-loss decides.
    """
    from seriatim import rebuild, signing
    from seriatim.embedded import serving

    choice = rebuild.Choice(dict(map(_resumed, resumed)), accept_loss)
    store, given, directory = open_store(), configuration(), embedded()
    signing.create_key(Path(given.signing_key))
    signer = signing.Signer(Path(given.signing_key), given.issuer)
    store.add_signing_key(signer.kid, signer.public_jwk)

    def torn() -> None:
        store.halt(rebuild.UNDER_WAY, rebuild.ACTOR, "the end of Redis' log was torn")

    with closing(_redis(given.redis_url)) as client, serving(directory, client, torn) if directory else nullcontext():
        recovery = rebuild.Recovery(client, store, signer, given, partial(click.echo, err=True))
        outcome = recovery.run(choice)
    output().show(msgspec.to_builtins(outcome), _recovered(outcome))
    sys.exit(Exit.FINDINGS if outcome.doubts else Exit.OK)


def _resumed(text: str) -> tuple[str, int]:
    series_id, sign, number = text.partition("=")
    if not sign or not number.isdecimal():
        raise errors.Invalid({"resume-at": f"must be SERIES=N, a series' id and a number, not {text!r}"})
    return series_id, int(number)


def _recovered(outcome: Any) -> str:
    if outcome.recovered:
        return f"Redis was built anew: {outcome.series:,} series, {outcome.entries:,} entries. Allocation goes on."
    if not outcome.doubts:
        return "Nothing is to be recovered: Redis holds all that the store lacks."
    lines = []
    for one in outcome.doubts:
        from_where = f"{one.counter} may have been issued from {one.number} on; " if one.counter else ""
        lines.append(f"{one.series}: {from_where}{one.why}")
    advice = "Give --resume-at SERIES=N with a number that surely was not issued, or --accept-loss: numbers may repeat."
    return "\n".join(["Acknowledged numbers may be lost:", *lines, advice])


def _redis(url: str) -> Any:
    from seriatim import clients

    return clients.blocking(url, 30)


@main.command()
@click.option("--series", "series_ids", multiple=True, help="Only this series; may be given again.")
@click.option("--export", "export_file", type=click.File("rb"), help="Check this export instead of the store.")
@click.option("--jwks", type=click.File("rb"), help="Public keys to check an export with.")
@click.option("--checkpoint", type=click.File("rb"), help="What an earlier `verify --json` printed.")
@common
def verify(
    series_ids: tuple[str, ...],
    export_file: BinaryIO | None,
    jwks: BinaryIO | None,
    checkpoint: BinaryIO | None,
) -> None:
    """Audit the chain of every series: nothing missing, changed, added or swapped."""
    from seriatim import verify as audits
    from seriatim.signing import JsonWebKeySet

    checkpoints = audits.read_checkpoints(checkpoint.read()) if checkpoint else {}
    if export_file is not None:
        if jwks is None:
            raise errors.ConfigError("Name the public keys with --jwks FILE (GET /.well-known/jwks.json).")
        running = audits.audit_export(export_file, JsonWebKeySet(jwks.read()), checkpoints)
        _report(list(_shown(running, None)), checkpoints, series_ids)
        return
    store = open_store()
    keys_text = b'{"keys":[' + ",".join(store.signing_keys()).encode() + b"]}"
    key_set = JsonWebKeySet(jwks.read() if jwks else keys_text)
    chosen = [_series(store, one) for one in series_ids] if series_ids else store.list_series()
    done: list[Any] = []
    for one in chosen:
        done += _shown(audits.audit_store(store, one, key_set, checkpoints.get(one.id)), one.position)
    _report(done, checkpoints, series_ids)


def _shown(running: Any, length: int | None) -> list[Any]:
    """Runs audits to their ends with a progress bar on a terminal; returns the audit of each series."""
    audits = {}
    hidden = not sys.stderr.isatty()
    with click.progressbar(running, length=length, label="Verifying", file=sys.stderr, hidden=hidden) as steps:
        for audit in steps:
            audits[audit.series] = audit
    return list(audits.values())


def _report(audits: list[Any], checkpoints: dict[str, Any], wanted: tuple[str, ...]) -> None:
    unseen = (set(wanted) | (set() if wanted else set(checkpoints))) - {audit.series for audit in audits}
    if unseen:
        raise errors.ConfigError(f"There is no series {min(unseen)} to check. Name another, or export it.")
    findings = [finding for audit in audits for finding in audit.findings]
    value = {
        "sound": not findings,
        "entries": sum(audit.entries for audit in audits),
        "findings": findings,
        "checkpoints": [audit.checkpoint for audit in audits],
    }
    lines = [f"{one.kind}: series {one.series}, position {one.position}: {one.detail}" for one in findings]
    summary = f"{value['entries']} entries in {len(audits)} series: "
    lines.append(summary + (f"{len(findings)} findings" if findings else "sound"))
    output().show(value, "\n".join(lines))
    sys.exit(Exit.FINDINGS if findings else Exit.OK)


@main.command()
@click.argument("url")
@load_options
@common
def load(page: TextIO | None, **said: Any) -> None:
    """Load the service at URL, then audit it: does it hold what it answered, in order, once, signed and linked?"""
    from seriatim.load import harness, report
    from seriatim.load.options import Options

    done = harness.run(Options(**said), lambda line: click.echo(line, err=True))
    if page:
        page.write(report.html(done))
    output().show(done, report.text(done))
    sys.exit(Exit.OK if done.sound else Exit.FINDINGS)


@main.command()
@click.option("--series", "series_id", required=True, help="Which series.")
@click.option("--format", "kind", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
@common
def export(series_id: str, kind: str) -> None:
    """Write a series' settled records to standard output; `verify --export` checks the JSON lines."""
    from seriatim import verify as audits

    store = open_store()
    writers = {"jsonl": audits.export_jsonl, "csv": audits.export_csv}
    writers[kind](store, _series(store, series_id), sys.stdout.buffer)


def _series(store: Any, series_id: str) -> Any:
    from seriatim.model import parse_uuid

    try:
        found = store.series(parse_uuid(series_id, "series"))
    except errors.NotFound:
        found = None
    if found is None:
        raise errors.NotFound(f"There is no series {series_id}. `seriatim series list` shows them.")
    return found


def _series_value(one: Any) -> dict[str, Any]:
    names = ("id", "company", "type", "name", "active", "default", "position")
    return {name: getattr(one, name) for name in names} | msgspec.structs.asdict(one.numbering)
