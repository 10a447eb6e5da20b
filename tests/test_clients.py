"""What a URL of Redis means."""

from __future__ import annotations

import pytest

from seriatim.clients import Address, address
from seriatim.config import read
from seriatim.errors import ConfigError

SECRET = {"username": "me", "password": "p@ss"}


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("redis://:p@cache/0", Address("one")),
        ("unix:///run/valkey.sock", Address("one")),
        ("redis+cluster://cache", Address("cluster", [("cache", 6379)])),
        (
            "rediss+cluster://me:p%40ss@a:7000,[::1]:7001,c",
            Address("cluster", [("a", 7000), ("::1", 7001), ("c", 6379)], {**SECRET, "ssl": True}),
        ),
        ("redis+sentinel://a/numbers", Address("sentinel", [("a", 26379)], {"db": 0}, "numbers")),
        (
            "redis+sentinel://:p%40ss@a:1,b/numbers/2?sentinel_password=s",
            Address("sentinel", [("a", 1), ("b", 26379)], {"password": "p@ss", "db": 2}, "numbers", {"password": "s"}),
        ),
    ],
)
def test_a_url_means_servers_and_how_they_are_reached(url: str, meant: Address) -> None:
    assert address(url) == meant


def test_a_cluster_wants_a_queue_elsewhere() -> None:
    # Given a cluster without a queue, or with itself as one, when settings are read, then it is said what to set
    cluster = {"SERIATIM_REDIS_URL": "redis+cluster://cache"}
    with pytest.raises(ConfigError, match=r"RQ does not run on a cluster\. Set SERIATIM_QUEUE_URL"):
        read(cluster)
    with pytest.raises(ConfigError, match="SERIATIM_QUEUE_URL is wrong"):
        read(cluster | {"SERIATIM_QUEUE_URL": "redis+cluster://cache"})
    assert read(cluster | {"SERIATIM_QUEUE_URL": "redis://queue"}).queue_url == "redis://queue"


def test_a_sentinel_url_names_what_to_ask_for() -> None:
    with pytest.raises(ConfigError, match=r"redis[+]sentinel://HOST:PORT/NAME"):
        read({"SERIATIM_REDIS_URL": "redis+sentinel://a:26379"})
