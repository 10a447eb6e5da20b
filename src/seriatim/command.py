"""What every command has: its options, where it prints, which setting it is about, and how it fails."""

from __future__ import annotations

import enum
import os
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from seriatim import config, errors
from seriatim.directory import DataDirectory

R = TypeVar("R")


class Exit(enum.IntEnum):
    """What the exit codes mean."""

    OK = 0
    FINDINGS = 1
    FAILED = 2


class Output:
    """Prints for people, or with --json for machines; one JSON value a result."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def show(self, value: Any, text: str) -> None:
        """Prints a result: `value` for machines, `text` for people."""
        click.echo(msgspec.json.encode(value).decode() if self.as_json else text)

    def fail(self, error: errors.SeriatimError) -> None:
        """Prints why a command could not run."""
        value = {"error": error.code, "message": error.message}
        text = f"Error: {error.message}"
        if isinstance(error, errors.Unavailable) and error.__cause__:
            text += f" ({str(error.__cause__).splitlines()[0]})"
        click.echo(msgspec.json.encode(value).decode() if self.as_json else text, err=True)


def common(command: Callable[..., R]) -> Callable[..., R]:
    """Adds --json and --data-dir; turns our errors into messages and exit codes."""

    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @click.option(
        "--data-dir",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="SERIATIM_DATA_DIR",
        show_envvar=True,
        help="Directory of `seriatim up`. [default: ./data, unless SERIATIM_STORE_URL is set]",
    )
    @wraps(command)
    def wrapped(*args: Any, as_json: bool, data_dir: Path | None, **kwargs: Any) -> R:
        printed = Output(as_json=as_json)
        click.get_current_context().obj = (printed, data_dir)
        try:
            return command(*args, **kwargs)
        except errors.SeriatimError as error:
            printed.fail(error)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):  # click knows what to do
            raise
        except Exception as error:  # noqa: BLE001 -- exit code 1 says that something was found
            if isinstance(error, OSError) and error.filename:
                printed.fail(errors.ConfigError(f"{error}. Check the path and who may use it."))
            else:
                traceback.print_exc()
        sys.exit(Exit.FAILED)

    return wrapped


def output() -> Output:
    """Returns where the command at hand prints."""
    found: Output = click.get_current_context().obj[0]
    return found


def data_dir() -> Path:
    """Returns the directory of an embedded setting."""
    chosen: Path | None = click.get_current_context().obj[1]
    return chosen or Path("data")


def embedded() -> DataDirectory | None:
    """Returns the directory of an embedded setting where that is meant."""
    if click.get_current_context().obj[1] is None and "SERIATIM_STORE_URL" in os.environ:
        return None
    return DataDirectory(data_dir())


def environment() -> dict[str, str]:
    """Returns the environment, pointed at the embedded setting where that is meant."""
    directory = embedded()
    return directory.environment(os.environ) if directory else dict(os.environ)


def configuration() -> config.Config:
    """Returns the settings of the command at hand.

    Raises:
        ConfigError: one is wrong.
    """
    return config.read(environment())


def open_store() -> Any:
    """Returns the store, which is closed when the command ends.

    Raises:
        ConfigError: there is none.
    """
    from seriatim.store import Store

    given = configuration()
    path = given.store_url.removeprefix("sqlite:///")
    if path != given.store_url and not Path(path).exists():
        raise errors.ConfigError(f"There is no store at {path}. Run `seriatim up` first, or name its --data-dir.")
    store = Store(given.store_url)
    click.get_current_context().call_on_close(store.close)
    return store
