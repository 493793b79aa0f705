"""Declares the commands `job list`, `job status`, `job logs`, `job attach` and `job stop`."""

import dataclasses
import json
import sys

import click

from promptmill.configs.printing import echo, echo_log
from promptmill.jobs.cli.arguments import takes_address, terminal
from promptmill.jobs.cli.endings import one_line_errors, stop
from promptmill.jobs.clusters.following import follow
from promptmill.jobs.clusters.jobs_api import Remote
from promptmill.jobs.showing.exit_statuses import USAGE


@click.group()
def job() -> None:
    """Jobs that were submitted: list, status, logs, attach, stop."""


@job.command("list")
@takes_address
def list_(address: str) -> None:
    """The jobs that promptmill submitted to a cluster."""
    with one_line_errors():
        for found in Remote(address).jobs():
            echo(f"{found.id:48}{found.status:12}{found.output}")


@job.command()
@click.argument("id")
@takes_address
@click.option("--json", "as_json", is_flag=True, help="Say it as one JSON object.")
def status(id: str, address: str, as_json: bool) -> None:
    """What a job is at; `promptmill status OUT` says what is done."""
    with one_line_errors():
        found = Remote(address).job(id)
        if as_json:
            echo(json.dumps(dataclasses.asdict(found)))
            return
        exit = "" if found.exit is None else f", its run exited with {found.exit}"
        echo(f"{found.status.lower()}{exit}")
        echo(f"output       {found.output}; `promptmill status {found.output}` says what is done")


@job.command()
@click.argument("id")
@takes_address
def logs(id: str, address: str) -> None:
    """All that a job has said so far."""
    with one_line_errors():
        if said := Remote(address).logs(id):
            echo_log(said)


@job.command()
@click.argument("id")
@takes_address
def attach(id: str, address: str) -> None:
    """Follow a job, from its beginning; exits as its run does."""
    with one_line_errors():
        sys.exit(follow(Remote(address), id, terminal()))


@job.command("stop")
@click.argument("id")
@takes_address
def stop_(id: str, address: str) -> None:
    """Have a job finish what is in flight and stop; submitting the same again goes on."""
    with one_line_errors():
        there = Remote(address)
        if there.job(id).ended:
            stop(USAGE, f"{id}: has ended already")
        there.stop(id)
        echo(f"stopping {id}: what is in flight is finished; `promptmill job attach` shows it")
