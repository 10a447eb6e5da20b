"""`seriatim doctor`: what is wrong with a setting, and what to do about it. Changes nothing."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec
import redis
from rq import Worker

from seriatim import clients, recovery, scripts
from seriatim.clients import Server
from seriatim.config import Config
from seriatim.errors import ConfigError, Halted, Stale, Unavailable
from seriatim.signing import Signer
from seriatim.store import DataSet, Store

RECOVER = "Run `seriatim recover`: it says what may be lost before it changes anything."
FREE_BYTES_MIN = 2**30
TRIES = 5
TRY_PAUSE_S = 0.2
"""What is found but once was looked at while it changed."""


class Finding(msgspec.Struct, frozen=True):
    """Something that is wrong, and what to do about it."""

    kind: str
    detail: str
    advice: str


def diagnose(
    client: redis.Redis, queue: redis.Redis, store: Store, config: Config, data_dir: Path | None
) -> list[Finding]:
    """Returns what is wrong, the most urgent first; nothing for a setting that can issue and settle.

    Args:
        client: the Redis server's that allocates.
        queue: of the one that wake-ups travel on.
        store: the system of record.
        config: the setting.
        data_dir: the directory of an embedded one.
    """
    return [*_service(client, queue, store, config), *_surroundings(config, data_dir)]


def _service(client: redis.Redis, queue: redis.Redis, store: Store, config: Config) -> Iterator[Finding]:
    try:
        data = store.data_set()
    except Unavailable as error:
        yield Finding("store", error.message, "See that the database of SERIATIM_STORE_URL runs and can be reached.")
        data = None
    if data is not None and data.state == "halted":
        yield Finding("halted", data.reason or "Allocation was stopped.", RECOVER)
    try:
        yield from _server(client, store, config, data)
        waiting = scripts.backlog(client, data.shards) if data else 0
    except Unavailable as error:
        yield Finding("redis", error.message, "See that the server of SERIATIM_REDIS_URL runs and can be reached.")
    else:
        yield from _waiting(queue, waiting, config)


def _server(client: redis.Redis, store: Store, config: Config, data: DataSet | None) -> Iterator[Finding]:
    with clients.pinned(client) as (_, servers):
        seen = [clients.look(server) for server in servers]
        checks: list[tuple[str, Callable[[], None]]] = [("server", partial(recovery.check_roles, client, seen))]
        for server in servers:
            checks.append(("settings", partial(recovery.check_settings, server, config.ack)))
            checks.append(("clock", partial(recovery.check_clock, server)))
        if data is not None and config.ack == "fsync":
            checks.append(("settings", store.check_durable))
        for kind, check in checks:
            try:
                check()
            except Halted as error:
                yield Finding(kind, error.message, "Allocation goes on by itself within seconds of the change.")
    if data is None or data.state != "live":
        return
    try:
        _examine(client, seen, store)
    except Halted as error:
        yield Finding("data", error.message, RECOVER)
    except Unavailable as error:
        if not isinstance(error, Stale):  # another server is being met at this moment
            raise


def _examine(client: redis.Redis, seen: Sequence[Server], store: Store) -> None:
    for left in reversed(range(TRIES)):
        try:
            recovery.examine(client, seen, store, store.data_set())
        except Halted:
            if not left:
                raise
            time.sleep(TRY_PAUSE_S)
        else:
            break


def _waiting(queue: redis.Redis, waiting: int, config: Config) -> Iterator[Finding]:
    try:
        with scripts.translated():
            workers = Worker.count(connection=queue)
    except Unavailable as error:
        advice = "See that the server of SERIATIM_QUEUE_URL runs and can be reached. Until then records wait in Redis."
        yield Finding("queue", error.message, advice)
        workers = 1
    if waiting and not workers:
        advice = "Start `seriatim worker`, or `seriatim up` with --workers."
        yield Finding("worker", f"{waiting:,} records wait for the store, and no worker runs.", advice)
    if waiting > config.backlog_max / 2:
        said = f"{waiting:,} records wait for the store; at {config.backlog_max:,} allocation is refused."
        yield Finding("backlog", said, "See in the workers' log what keeps them, and how fast the store's disk is.")


def _surroundings(config: Config, data_dir: Path | None) -> Iterator[Finding]:
    path = Path(config.signing_key)
    try:
        Signer(path, config.issuer)
    except ConfigError as error:
        yield Finding("signing key", error.message, "Without it no record is settled, while numbers are still issued.")
    else:
        if path.stat().st_mode & 0o077:
            yield Finding("signing key", f"Others may read or write {path}.", f"Run `chmod 600 {path}`.")
    if data_dir is not None:
        free = shutil.disk_usage(data_dir).free
        if free < FREE_BYTES_MIN:
            said = f"{data_dir} has {free // 2**20:,} MiB of disk space left."
            yield Finding("disk", said, "Make room: when there is none, allocation stops.")
