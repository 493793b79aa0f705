"""Declares the command `run`."""

import sys

import click

from promptmill.configs.printing import echo
from promptmill.jobs.cli.arguments import AcceptsChanges, accepts_changes, progress_of, takes_config, terminal
from promptmill.jobs.cli.endings import one_line_errors
from promptmill.jobs.cli.streams import outliving_readers
from promptmill.jobs.clusters.joining import joined_if_named
from promptmill.jobs.planning.accepted_changes import Accepting
from promptmill.jobs.planning.config_and_output import configured
from promptmill.jobs.planning.planned import planned
from promptmill.jobs.planning.unknown_prompts import unknown_prompts
from promptmill.jobs.showing import summary
from promptmill.jobs.showing.shown_run import rendered
from promptmill.shards.lease import await_holder


@click.command(cls=AcceptsChanges)
@takes_config
@click.option("--address", help="The Ray cluster; without it and without runtime.address, this machine by itself.")
@click.option("--retry-failed", is_flag=True, help="Try again what failed by infrastructure: deaths, deadlines, memory.")
@accepts_changes
@click.option(
    "--wait", "wait_s", metavar="SECONDS", type=click.FloatRange(0), default=0, help="For another run of the output to end."
)
def run(
    config: str,
    out: str | None,
    settings: tuple[str, ...],
    address: str | None,
    retry_failed: bool,
    accept_changes: Accepting,
    wait_s: float,
) -> None:
    """Plan if needed, then render, or go on where an earlier run was cut off."""
    with outliving_readers(), one_line_errors():
        loaded, output = configured(config, out, [*settings, *([f"runtime.address={address}"] if address else [])])
        console = terminal()
        await_holder(output, wait_s, lambda line: echo(line, err=True))
        with joined_if_named(loaded, output):
            first = "rewriting prompts" if loaded.rewriting else "checking the manifest"
            with progress_of(console, first) as progress:
                made = planned(loaded, output, progress, accept_changes=accept_changes)
            if accept_changes:
                for line in summary.accepted_lines(made):
                    echo(line, err=True)
            for line in [*summary.warnings(made), *made.notes]:
                echo(line, err=True)
            if beyond := unknown_prompts(made, output):
                echo(beyond.line(), err=True)
            sys.exit(rendered(made, output, console, retry_failed))
