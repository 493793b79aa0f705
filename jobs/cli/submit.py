"""Declares the command `submit`."""

import functools
import sys

import click

from promptmill.configs.printing import echo
from promptmill.jobs.cli.arguments import (
    AcceptsChanges,
    accepting_option,
    accepts_changes,
    takes_address,
    takes_config,
    terminal,
)
from promptmill.jobs.cli.endings import one_line_errors, stop
from promptmill.jobs.clusters import jobs_api
from promptmill.jobs.clusters.following import follow
from promptmill.jobs.planning.accepted_changes import Accepting
from promptmill.jobs.planning.config_and_output import configured
from promptmill.jobs.showing.exit_statuses import USAGE
from promptmill.shards.storage import is_local, local_path


@click.command(cls=AcceptsChanges)
@takes_config
@functools.partial(takes_address, required=False)
@click.option("--dry-run", is_flag=True, help="List what would be shipped, with sizes, and do nothing; needs no --address.")
@click.option("--detach", is_flag=True, help="Do not follow the job; say its id and return.")
@click.option("--retry-failed", is_flag=True, help="As of `promptmill run`.")
@accepts_changes
@click.option("--env", "variables", metavar="NAME=VALUE", multiple=True, help="Of the job's environment; never a secret.")
@click.option("--install", is_flag=True, help="Have each node install what requirements.lock pins, where its image lacks it.")
def submit(
    config: str,
    out: str | None,
    settings: tuple[str, ...],
    address: str | None,
    dry_run: bool,
    detach: bool,
    retry_failed: bool,
    accept_changes: Accepting,
    variables: tuple[str, ...],
    install: bool,
) -> None:
    """The same run as a job of a Ray cluster: ships promptmill, the config and its manifest, and follows the job."""
    with one_line_errors():
        loaded, _ = configured(config, out, settings)
        output = out or loaded.output
        if output is None:
            stop(USAGE, "--out: missing; say where all nodes of the cluster can write, such as s3://bucket/dataset")
        if is_local(output) and local_path(output).is_absolute():
            output = str(local_path(output))
        if dry_run:
            from promptmill.jobs.clusters.packaging import listing

            shipped, left = listing(loaded, output)
            for line in shipped:
                echo(line)
            for line in left:
                echo(line, err=True)
            return
        if address is None:
            raise click.MissingParameter(param_hint="'--address'", param_type="option")
        given = dict(jobs_api.variable(text) for text in variables)
        options = ["--retry-failed"] * retry_failed + accepting_option(accept_changes)
        there = jobs_api.Remote(address)
        id = there.submit(
            loaded, output, f"promptmill-{jobs_api.plain_name(config)}", options, given, install, lambda line: echo(line, err=True)
        )
        echo(f"job {id} on {there.address}", err=True)
        echo(f"`promptmill job attach {id} --address {there.address}` follows it, `promptmill job stop` ends it", err=True)
        if detach:
            echo(id)
            return
        sys.exit(follow(there, id, terminal()))
