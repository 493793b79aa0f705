"""Declares the arguments that several commands share: a config, settings, accepted changes, places of images, the terminal."""

import functools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import click
from rich.console import Console

from promptmill.configs.schema import HOST
from promptmill.jobs.cli.endings import stop
from promptmill.jobs.planning.accepted_changes import Accepting
from promptmill.jobs.showing.exit_statuses import USAGE
from promptmill.jobs.verifying.image_places import Given

Command = Callable[..., Any]


def takes_settings(command: Command) -> Command:
    """Add CONFIG and --set to a command that takes a config and makes no dataset."""
    setting = click.option(
        "--set",
        "settings",
        metavar="KEY=VALUE",
        multiple=True,
        help="Override a key of the config; repeatable. VALUE is YAML, or the text as it stands where the key takes text.",
    )
    return click.argument("config")(setting(command))


def takes_config(command: Command) -> Command:
    """Add CONFIG, --out and --set to a command that takes a config and makes a dataset."""
    out = click.option("--out", metavar="URI", help="Where the dataset goes; else the config's output, else runs/NAME.")
    return out(takes_settings(command))


ACCEPT = "--accept-changes"
ASK = "ask"  # what the option means without a value


class AcceptsChanges(click.Command):
    """Parses a command's --accept-changes also without a value, whatever follows it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f"{ACCEPT}={ASK}" if argument == ACCEPT else argument for argument in args])


class _Accepting(click.ParamType):
    name = "accepting"

    def convert(self, value: str | bool, param: click.Parameter | None, ctx: click.Context | None) -> Accepting:
        known: dict[str | bool, Accepting] = {ASK: True, True: True, "keep": "keep", "rerender": "rerender"}
        if value not in known:
            self.fail(f"{value!r} is neither keep nor rerender", param, ctx)
        return known[value]


def accepts_changes(command: Command) -> Command:
    """Add --accept-changes[=keep|rerender] to a command of the class `AcceptsChanges`."""
    return click.option(
        ACCEPT,
        metavar="[=keep|rerender]",
        type=_Accepting(),
        default=None,
        callback=lambda ctx, param, value: value or False,
        help="Go on though the plan changed; committed shards stay as they are. Committed rows that were edited keep their images,"
        " or are rendered again, as said here.",
    )(command)


def accepting_option(accepting: Accepting) -> list[str]:
    """Return the option in the form for another promptmill's command line."""
    return [ACCEPT] if accepting is True else [f"{ACCEPT}={accepting}"] if accepting else []


def takes_image_places(of: str = "") -> Callable[[Command], Command]:
    """Add --image-root and its like to a command that reads the images that a dataset was made from; the command gets them as
    `given`.

    Args:
        of: The beginning of the help, where the options go with another.
    """

    def takes(command: Command) -> Command:
        @functools.wraps(command)
        def with_given(
            *arguments: Any, image_root: tuple[str, ...], url_host: tuple[str, ...], max_image_pixels: int | None, **options: Any
        ) -> Any:
            return command(*arguments, given=Given(image_root, url_host, max_image_pixels), **options)

        for option in (
            click.option("--max-image-pixels", metavar="NUMBER", type=click.IntRange(1), help=f"{of}As runtime.max_image_pixels."),
            click.option(
                "--url-host",
                metavar="HOST",
                multiple=True,
                callback=_hosts,
                help=f"{of}A host of images; repeatable.",
            ),
            click.option(
                "--image-root", metavar="FOLDER", multiple=True, help=f"{of}Where the manifest's images lie now; repeatable."
            ),
        ):
            with_given = option(with_given)
        return with_given

    return takes


def _hosts(context: click.Context, option: click.Parameter, hosts: tuple[str, ...]) -> tuple[str, ...]:
    for host in hosts:
        if not HOST.fullmatch(host):
            raise click.BadParameter("write a host as example.com, or example.com:8443 with its port")
    return tuple(host.lower() for host in hosts)


def first_given(given: Given) -> str:
    """Return the name of the first option that was given."""
    return "--image-root" if given.roots else "--url-host" if given.hosts else "--max-image-pixels"


def terminal() -> Console | None:
    """Return the terminal to draw on, or None."""
    return Console() if sys.stdout.isatty() else None


@contextmanager
def progress_of(console: Console | None, what: str) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with a number of rows, which a terminal shows as `what: 1,234 rows`, and nothing else shows."""
    if console is None:
        yield lambda rows: None
        return
    with console.status(what) as status:
        yield lambda rows: status.update(f"{what}: {rows:,} rows")


def takes_address(command: Command, required: bool = True) -> Command:
    """Add --address, of a cluster's dashboard."""
    help = "The cluster's dashboard, http://HOST:8265."
    return click.option("--address", required=required, envvar="PROMPTMILL_ADDRESS", show_envvar=True, help=help)(command)


def number_of_workers(said: str) -> int | Literal["auto"]:
    """Return the number of processes that --workers says; end the command where it says none."""
    from promptmill.jobs.planning.worker_processes import MOST_WORKERS

    if said == "auto":
        return "auto"
    if not (re.fullmatch(r"\d{1,3}", said) and 1 <= int(said) <= MOST_WORKERS):
        stop(USAGE, f"--workers {said!r:.40}: is a number of processes from 1 to {MOST_WORKERS}, or auto")
    return int(said)
