"""What `seriatim load` is asked to do: its options, checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import click
import msgspec

from seriatim.errors import ConfigError

R = TypeVar("R")

KINDS = ("new", "replay", "batch", "list")
DURATION_S = 10.0


class Address(msgspec.Struct, frozen=True):
    """Where the service is."""

    host: str
    port: int
    tls: bool
    base: str
    """What paths begin with; empty as a rule."""

    @property
    def host_header(self) -> str:
        """The value of a request's Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


class Options(msgspec.Struct, frozen=True):
    """A load test, as the command line says it."""

    url: str
    key: str
    series: tuple[str, ...] = ()
    series_count: int = 1
    zipf: float = 0.0
    rate: float | None = None
    connections: int = 64
    processes: int = 1
    duration: float | None = None
    count: int | None = None
    warm_up: float = 0.0
    data: Path | None = None
    mix: str = "new=1"
    batch_size: int = 100
    deadline: float = 30.0
    settle: float = 60.0

    @property
    def address(self) -> Address:
        """The parts of the URL; whether it is one, the client has looked at."""
        url = urlsplit(self.url)
        tls = url.scheme == "https"
        return Address(url.hostname or "", url.port or (443 if tls else 80), tls, url.path.rstrip("/"))

    @property
    def weights(self) -> dict[str, float]:
        """How often each kind of request is sent.

        Raises:
            ConfigError: the mix cannot be read, or has no new entries.
        """
        weights: dict[str, float] = {}
        for part in self.mix.split(","):
            kind, _, share = part.strip().partition("=")
            try:
                weights[kind] = float(share)
            except ValueError:
                raise ConfigError(f"{part!r} in --mix is not a kind and its share, such as new=90.") from None
        if set(weights) - set(KINDS) or min(weights.values()) < 0:
            raise ConfigError(f"--mix is made of {', '.join(KINDS)}, each with its share, such as new=90,replay=10.")
        if not weights.get("new") and not weights.get("batch"):
            raise ConfigError("--mix needs new or batch: the other kinds ask for what these were told.")
        return {kind: share for kind, share in weights.items() if share}

    @property
    def seconds(self) -> float | None:
        """How long to send, warm-up included; None where the number of requests alone ends it."""
        if self.duration is None and self.count is not None:
            return None
        return self.warm_up + (DURATION_S if self.duration is None else self.duration)


def load_options(command: Callable[..., R]) -> Callable[..., R]:
    """Adds the options of `seriatim load`."""
    share = click.FloatRange(min=0)
    some = click.IntRange(min=1)
    seconds = click.FloatRange(min=0)
    for option in (
        click.option("--report", "page", type=click.File("w", "utf-8", lazy=False), help="Write this HTML file."),
        click.option(
            "--settle",
            type=seconds,
            default=60,
            show_default=True,
            help="Seconds to wait for receipts; 0: do without them.",
        ),
        click.option(
            "--deadline",
            type=click.FloatRange(min=0, min_open=True),
            default=30,
            show_default=True,
            help="Seconds that a request is repeated for.",
        ),
        click.option("--batch-size", type=click.IntRange(1, 1000), default=100, show_default=True),
        click.option(
            "--mix",
            default="new=1",
            show_default=True,
            help=f"Shares of {', '.join(KINDS)}: new=90,replay=5,batch=3,list=2.",
        ),
        click.option(
            "--data", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="JSON lines: each one a meta."
        ),
        click.option("--warm-up", type=seconds, default=0, show_default=True, help="Seconds before it is measured."),
        click.option("--count", type=some, help="End after so many requests."),
        click.option("--duration", type=seconds, help=f"Seconds to measure.  [default: {DURATION_S:.0f}, or --count]"),
        click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="That send."),
        click.option("--connections", type=some, default=64, show_default=True, help="In all."),
        click.option(
            "--rate",
            type=click.FloatRange(min=0, min_open=True),
            help="Requests a second, however slowly they are answered.  [default: each connection sends when it can]",
        ),
        click.option("--zipf", type=share, default=0, show_default=True, help="Exponent of the series' popularity."),
        click.option("--series-count", type=some, default=1, show_default=True, help="Series to make."),
        click.option("--series", multiple=True, help="Use this series, and make none; may be given again."),
        click.option("--key", required=True, help="API key; to make series it needs the scope manage."),
    ):
        command = option(command)
    return command
