"""Declares the command `status`."""

import json

import click

from promptmill.configs.printing import echo
from promptmill.jobs.cli.endings import one_line_errors, stop
from promptmill.jobs.planning.config_and_output import without_credentials
from promptmill.jobs.showing import summary
from promptmill.jobs.showing.exit_statuses import USAGE


@click.command()
@click.argument("out")
@click.option("--json", "as_json", is_flag=True, help="Say it as one JSON object.")
def status(out: str, as_json: bool) -> None:
    """What is done, failed and left, from the records alone."""
    with one_line_errors():
        without_credentials(out)
        found = summary.status(out)
        if found is None:
            stop(USAGE, f"{out}: nothing was planned there")
        if as_json:
            echo(json.dumps(summary.status_facts(found)))
            return
        for line in summary.status_lines(found):
            echo(line)
