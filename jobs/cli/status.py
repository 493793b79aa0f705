"""Declares the command `status`."""

import json
from dataclasses import asdict

import click

from promptmill.configs.printing import echo
from promptmill.jobs.annotating import checking
from promptmill.jobs.cli.endings import one_line_errors, stop
from promptmill.jobs.planning.config_and_output import without_credentials
from promptmill.jobs.showing import summary
from promptmill.jobs.showing.exit_statuses import USAGE


@click.command()
@click.argument("out")
@click.option("--json", "as_json", is_flag=True, help="Say it as one JSON object.")
def status(out: str, as_json: bool) -> None:
    """Show the state of a dataset, done, failed and left, from the records alone."""
    with one_line_errors():
        without_credentials(out)
        if checking.is_annotated(out):
            _show_maps(checking.progress(out), as_json)
            return
        found = summary.status(out)
        if found is None:
            stop(USAGE, f"{out}: nothing was planned there")
        if as_json:
            echo(json.dumps(summary.status_facts(found)))
            return
        for line in summary.status_lines(found):
            echo(line)


def _show_maps(there: checking.Progress, as_json: bool) -> None:
    if as_json:
        echo(json.dumps(asdict(there)))
        return
    left = there.rows - there.kept - there.failed
    state = "finished" if there.finished else f"unfinished, {summary.many(left, 'row')} left; the same `annotate` goes on"
    echo(f"{summary.many(there.kept, 'picture')} with maps, {summary.many(there.failed, 'row')} without a picture: {state}")
