"""What commands are given: a config, an output, and where they show what they do."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from configs.loading import load
from configs.schema import Config
from jobs.plan import PlanError
from shards.storage import StorageError, check_uri, is_local, local_path

Command = Callable[..., Any]


def takes_settings(command: Command) -> Command:
    """CONFIG and --set, for a command that takes a config and makes no dataset."""
    setting = click.option(
        "--set",
        "settings",
        metavar="KEY=VALUE",
        multiple=True,
        help="Override a key of the config; repeatable. VALUE is YAML, or the text as it stands where the key takes text.",
    )
    return click.argument("config")(setting(command))


def takes_config(command: Command) -> Command:
    """CONFIG, --out and --set, for every command that takes a config and makes a dataset."""
    out = click.option("--out", metavar="URI", help="Where the dataset goes; else the config's output, else runs/NAME.")
    return out(takes_settings(command))


def configured(config: str, out: str | None, settings: Sequence[str]) -> tuple[Config, str]:
    """The config, and the output as an absolute path or a URI: workers do not stand where we stand."""
    loaded = load(config, settings)
    output = out or loaded.output or f"runs/{Path(config).stem}"
    without_credentials(loaded.model.base)
    for manifest in [loaded.manifest] if isinstance(loaded.manifest, str) else loaded.manifest:
        without_credentials(manifest)
    return loaded, absolute(output)


def without_credentials(uri: str) -> str:
    """A URI, which says nothing that belongs into the environment."""
    try:
        check_uri(uri)
    except StorageError as error:
        raise PlanError([str(error)]) from None
    return uri


def absolute(output: str) -> str:
    """An output as an absolute path or a URI."""
    output = without_credentials(output)
    return str(local_path(output).absolute()) if is_local(output) else output.rstrip("/")


def terminal() -> Console | None:
    """The terminal to draw on, if there is one."""
    return Console() if sys.stdout.isatty() else None
