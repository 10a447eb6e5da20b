"""Settings: environment variables `SERIATIM_*`, read once into a frozen struct."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from seriatim.errors import ConfigError

PREFIX = "SERIATIM_"
FLAGS = {"data_dir", "host", "port", "workers", "api_processes"}
"""Variables that stand for flags of the command line."""
POSITIVE = Meta(ge=1)


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Each field is the environment variable `SERIATIM_<NAME>`; `MEANINGS` says what it is for."""

    redis_url: Annotated[str, Meta(pattern=r"^(rediss?(\+cluster|\+sentinel)?|unix)://")] = "redis://127.0.0.1:6379/0"
    queue_url: Annotated[str, Meta(pattern=r"^$|^(rediss?(\+sentinel)?|unix)://")] = ""
    lease_s: Annotated[int, Meta(ge=2, le=3600)] = 30
    store_url: str = "sqlite:///store.db"
    signing_key: str = "signing-key.json"
    issuer: Annotated[str, Meta(min_length=1, max_length=255)] = "seriatim"
    shards: Annotated[int, Meta(ge=1, le=1000)] = 8
    ack: Literal["fsync", "memory"] = "fsync"
    body_bytes_max: Annotated[int, POSITIVE] = 256 * 1024
    in_flight_max: Annotated[int, POSITIVE] = 1000
    key_in_flight_max: Annotated[int, POSITIVE] = 500
    key_rate_max: Annotated[int, Meta(ge=0)] = 0
    backlog_max: Annotated[int, POSITIVE] = 1_000_000
    series_max: Annotated[int, POSITIVE] = 10_000
    jwt_jwks: str = ""
    jwt_secret: str = ""
    jwt_issuer: str = ""
    jwt_audience: str = ""
    log_level: Literal["debug", "info", "warning", "error"] = "info"


MEANINGS = {
    "redis_url": "Redis or Valkey that allocates; redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://",
    "queue_url": "Redis for RQ, which wakes workers; it may lose everything. Empty: that of SERIATIM_REDIS_URL",
    "lease_s": "how long Redis with replicas is used without the store; recover waits as long. The same everywhere",
    "store_url": "system of record; sqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST/NAME",
    "signing_key": "file with the private key (JWK) that signs receipts; made with mode 0600 if missing",
    "issuer": "who signs, as receipts name it",
    "shards": "how many shards series are spread over; fixed at the store's first start",
    "ack": "fsync: answer when the number is on disk; memory: faster, LOSES NUMBERS in a crash, for tests only",
    "body_bytes_max": "largest request body",
    "in_flight_max": "requests that one API process works on at once",
    "key_in_flight_max": "requests of one API key or token that one API process works on at once",
    "key_rate_max": "requests a second that one API key or token may send to one API process; 0: any number",
    "backlog_max": "records that may wait for the store",
    "series_max": "series that one company may have",
    "jwt_jwks": "file or URL of the public keys (JWK set) that tokens are signed with; empty: none are accepted",
    "jwt_secret": "shared secret that tokens are signed with (HS256 to HS512), of at least 32 bytes; instead of keys",
    "jwt_issuer": "the `iss` that tokens must have; empty: any",
    "jwt_audience": "the `aud` that tokens must have; empty: tokens must have none",
    "log_level": "debug, info, warning or error",
}
Origin = Literal["default", "environment", "data directory"]


class Setting(msgspec.Struct, frozen=True):
    """One line of `seriatim config`."""

    name: str
    value: str
    origin: Origin
    meaning: str


def read(environment: Mapping[str, str]) -> Config:
    """Returns the settings that `environment` makes.

    Raises:
        ConfigError: a variable is unknown, or its value is not allowed.
    """
    given = {name.removeprefix(PREFIX).lower(): value for name, value in environment.items() if name.startswith(PREFIX)}
    given = {name: value for name, value in given.items() if name not in FLAGS}
    unknown = sorted(set(given) - set(Config.__struct_fields__))
    if unknown:
        names = ", ".join(PREFIX + name.upper() for name in unknown)
        known = ", ".join(PREFIX + name.upper() for name in Config.__struct_fields__)
        raise ConfigError(f"Unknown setting {names}. Unset it, or use one of {known}.")
    try:
        config = msgspec.convert(given, Config, strict=False)
    except msgspec.ValidationError as error:
        why, _, name = str(error).rstrip("`").partition(" - at `$.")
        raise ConfigError(f"{PREFIX}{name.upper()} is wrong: {why}. Its meaning: {MEANINGS[name]}.") from error
    if "+cluster:" in config.redis_url and not config.queue_url:
        raise ConfigError("RQ does not run on a cluster. Set SERIATIM_QUEUE_URL to another Redis, which need not last.")
    for url in (config.redis_url, config.queue_url):
        if re.match(r"rediss?\+sentinel://[^/]*/?$", url):
            raise ConfigError("A URL of Sentinels names what to ask them for: redis+sentinel://HOST:PORT/NAME.")
    return config


def settings(environment: Mapping[str, str], outer: Mapping[str, str]) -> list[Setting]:
    """Returns each setting with its value, where that comes from, and its meaning; passwords in URLs are hidden.

    Args:
        environment: what the settings are read from.
        outer: the environment of the process, before a data directory was put into it.
    """
    config = read(environment)
    return [
        Setting(
            name=PREFIX + name.upper(),
            value=HIDDEN.get(name, str)(str(getattr(config, name))),
            origin=_origin(PREFIX + name.upper(), environment, outer),
            meaning=MEANINGS[name],
        )
        for name in Config.__struct_fields__
    ]


def _origin(name: str, environment: Mapping[str, str], outer: Mapping[str, str]) -> Origin:
    if name not in environment:
        return "default"
    return "environment" if outer.get(name) == environment[name] else "data directory"


def without_credentials(source: str) -> str:
    """Returns a URL without what may be secret in it, or a path as it is."""
    return re.sub(r"^([^?]*)\?.*", r"\1?***", re.sub("://.*@", "://***@", source))


def _without_password(url: str) -> str:
    scheme, separator, rest = re.sub("(?i)(password=)[^&]*", r"\1***", url).partition("://")
    credentials, at, host = rest.rpartition("@")
    if not at:
        return scheme + separator + rest
    return f"{scheme}{separator}{credentials.partition(':')[0]}:***@{host}"


def _masked(secret: str) -> str:
    return "***" if secret else ""


HIDDEN = {
    "redis_url": _without_password,
    "queue_url": _without_password,
    "store_url": _without_password,
    "jwt_jwks": without_credentials,
    "jwt_secret": _masked,
}
"""Settings that may hold secrets, and what shows them without."""
