"""Settings: read from the environment, refused with their names, listed without secrets."""

from __future__ import annotations

import re

import pytest

from seriatim.config import FLAGS, HIDDEN, MEANINGS, PREFIX, Config, read, settings
from seriatim.errors import ConfigError

FIELDS = set(Config.__struct_fields__)


def test_settings_come_from_the_environment_and_have_defaults() -> None:
    # Given an environment with some settings, some flags and what is none of ours
    environment = {
        "SERIATIM_REDIS_URL": "rediss://cache:6380/1",
        "SERIATIM_SHARDS": "64",
        "SERIATIM_ACK": "memory",
        "SERIATIM_PORT": "9000",
        "SERIATIM_DATA_DIR": "somewhere",
        "PATH": "/bin",
        "REDIS_URL": "redis://elsewhere",
    }

    # When it is read
    config = read(environment)

    # Then what is given counts, and the rest is the default
    assert (config.redis_url, config.shards, config.ack) == ("rediss://cache:6380/1", 64, "memory")
    assert (config.body_bytes_max, config.issuer) == (256 * 1024, "seriatim")
    assert read({}) == Config()
    assert read({}).ack == "fsync"


def test_an_unknown_setting_is_refused_by_its_name() -> None:
    # Given a misspelt setting, when the environment is read, then it is named, and the right one among the others
    with pytest.raises(ConfigError, match=r"Unknown setting SERIATIM_SHARD[.] .*SERIATIM_SHARDS"):
        read({"SERIATIM_SHARD": "4"})


def test_all_unknown_settings_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"SERIATIM_A, SERIATIM_B[.]"):
        read({"SERIATIM_B": "", "SERIATIM_A": "", "SERIATIM_SHARDS": "4"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SERIATIM_SHARDS", "0"),
        ("SERIATIM_SHARDS", "1001"),
        ("SERIATIM_SHARDS", "many"),
        ("SERIATIM_SHARDS", ""),
        ("SERIATIM_ACK", "FSYNC"),
        ("SERIATIM_ISSUER", ""),
        ("SERIATIM_ISSUER", "x" * 256),
        ("SERIATIM_BODY_BYTES_MAX", "-1"),
        ("SERIATIM_BACKLOG_MAX", "0"),
        ("SERIATIM_LOG_LEVEL", "loud"),
        ("SERIATIM_REDIS_URL", "localhost:6379"),
    ],
)
def test_a_wrong_value_is_refused_with_the_setting_s_name_and_meaning(name: str, value: str) -> None:
    # Given a setting with a value that it may not have, when it is read, then the message names and explains it
    with pytest.raises(ConfigError) as refused:
        read({name: value})
    assert refused.value.message.startswith(f"{name} is wrong: ")
    assert MEANINGS[name.removeprefix(PREFIX).lower()] in refused.value.message


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("SERIATIM_REDIS_URL", "redis://:hunter2@cache:6379/0", "redis://:***@cache:6379/0"),
        ("SERIATIM_REDIS_URL", "redis://me:hunter2@cache/0", "redis://me:***@cache/0"),
        ("SERIATIM_REDIS_URL", "redis://cache/0?password=hunter2&db=1", "redis://cache/0?password=***&db=1"),
        ("SERIATIM_QUEUE_URL", "redis://me:hunter2@queue/0", "redis://me:***@queue/0"),
        (
            "SERIATIM_REDIS_URL",
            "redis+sentinel://me:hunter2@a,b/n?sentinel_password=hunter2",
            "redis+sentinel://me:***@a,b/n?sentinel_password=***",
        ),
        ("SERIATIM_STORE_URL", "postgresql+psycopg://me:hun@ter2@db/x", "postgresql+psycopg://me:***@db/x"),
        ("SERIATIM_STORE_URL", "postgresql+psycopg://me@db/x?password=hunter2", None),
        ("SERIATIM_STORE_URL", "sqlite:////data/store.db", "sqlite:////data/store.db"),
        ("SERIATIM_REDIS_URL", "unix:///run/valkey.sock?db=1", "unix:///run/valkey.sock?db=1"),
        ("SERIATIM_JWT_SECRET", "hunter2" * 5, "***"),
        ("SERIATIM_JWT_SECRET", "a://hun@ter2" * 5, "***"),
        ("SERIATIM_JWT_JWKS", "https://me:hunter2@issuer/keys", "https://***@issuer/keys"),
        ("SERIATIM_JWT_JWKS", "https://hunter2@issuer/keys", "https://***@issuer/keys"),
        ("SERIATIM_JWT_JWKS", "https://me:hun?ter2@issuer/keys?token=hunter2", "https://***@issuer/keys?***"),
        ("SERIATIM_JWT_JWKS", "https://issuer/keys?token=hunter2", "https://issuer/keys?***"),
        ("SERIATIM_JWT_JWKS", "https://issuer/keys", "https://issuer/keys"),
        ("SERIATIM_JWT_JWKS", "/etc/seriatim/keys.json", "/etc/seriatim/keys.json"),
    ],
)
def test_passwords_are_hidden_where_settings_are_listed(name: str, value: str, shown: str | None) -> None:
    # Given a URL with or without a password, when the settings are listed
    listed = {one.name: one for one in settings({name: value}, {name: value})}[name]

    # Then the password is not, and the rest is
    assert not re.search("hun|ter2", listed.value)
    assert shown is None or listed.value == shown
    assert listed.origin == "environment"


def test_every_setting_is_listed_with_its_origin_and_meaning() -> None:
    # Given an environment with one setting, when the settings are listed
    listed = settings({"SERIATIM_SHARDS": "32"}, {"SERIATIM_SHARDS": "32"})

    # Then each is there once, with its meaning, and only that one is not a default
    assert {one.name for one in listed} == {PREFIX + name.upper() for name in FIELDS}
    assert len(listed) == len(FIELDS)
    assert all(one.meaning for one in listed)
    assert [(one.name, one.value) for one in listed if one.origin == "environment"] == [("SERIATIM_SHARDS", "32")]


def test_every_setting_has_a_meaning_and_no_flag_is_one() -> None:
    assert set(MEANINGS) == FIELDS
    assert set(HIDDEN) <= FIELDS
    assert not FLAGS & FIELDS
