"""The commands that run on a cluster elsewhere: submit, and job list, status, logs, attach, stop."""

import asyncio
import dataclasses
import functools
import json
import re
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from promptmill.configs.errors import shown
from promptmill.configs.printing import echo, echo_log
from promptmill.configs.schema import Config
from promptmill.jobs.cli.arguments import (
    AcceptsChanges,
    Command,
    accepting_option,
    accepts_changes,
    configured,
    takes_config,
    terminal,
)
from promptmill.jobs.cli.endings import FAILED, STOPPED, USAGE, one_line_errors, stop
from promptmill.jobs.planning.accepted_changes import Accepting
from promptmill.shards.storage import is_local, local_path

if TYPE_CHECKING:
    from promptmill.jobs.clusters.jobs_api import Remote

SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|API_KEY")


def takes_address(command: Command, required: bool = True) -> Command:
    """--address of a cluster's dashboard."""
    help = "The cluster's dashboard, http://HOST:8265."
    return click.option("--address", required=required, envvar="PROMPTMILL_ADDRESS", show_envvar=True, help=help)(command)


def remote(address: str) -> "Remote":
    from promptmill.jobs.clusters.jobs_api import Remote

    return Remote(address)


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
            _list(loaded, output)
            return
        if address is None:
            raise click.MissingParameter(param_hint="'--address'", param_type="option")
        given = dict(_variable(text) for text in variables)
        options = ["--retry-failed"] * retry_failed + accepting_option(accept_changes)
        there = remote(address)
        id = there.submit(
            loaded, output, f"promptmill-{_plain(config)}", options, given, install, lambda line: echo(line, err=True)
        )
        echo(f"job {id} on {there.address}", err=True)
        echo(f"`promptmill job attach {id} --address {there.address}` follows it, `promptmill job stop` ends it", err=True)
        if detach:
            echo(id)
            return
        sys.exit(follow(there, id))


def _list(config: Config, output: str) -> None:
    """Say what a job would take along: of promptmill's own folders the sums, of everything else each file."""
    from promptmill.jobs.clusters.packaging import PACKAGE, pack, packed

    with tempfile.TemporaryDirectory(prefix="promptmill-") as folder:
        left, files = pack(config, output, Path(folder)), packed(Path(folder))
    sums: dict[str, tuple[int, int]] = {}
    for name, size in files:
        whole = name.partition("/")[0]
        key = f"{whole}/" if whole == PACKAGE else name
        count, bytes = sums.get(key, (0, 0))
        sums[key] = count + 1, bytes + size
    for key, (count, bytes) in sums.items():
        echo(f"{bytes:>12,}  {shown(key, 1000)}{f' ({count:,} files of promptmill)' if key.endswith('/') else ''}")
    echo(f"{sum(size for _, size in files):>12,}  bytes would be shipped")
    for line in left:
        echo(line, err=True)


def _plain(config: str) -> str:
    """The name of a config as it goes into an id."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", Path(config).stem)[:40]


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        stop(USAGE, f"--env {name}: not of the form NAME=VALUE")
    if SECRET.search(name.upper()):
        stop(USAGE, f"--env {name}: looks like a secret, and all who reach the dashboard could read it; give it to the nodes")
    return name, value


def follow(there: "Remote", id: str) -> int:
    """Show a job until it ends; returns the exit status of its run. Ctrl-C leaves it running."""
    from promptmill.jobs.clusters.following import Follower

    async def shown() -> None:
        loop, work = asyncio.get_running_loop(), asyncio.current_task()
        assert work is not None
        loop.add_signal_handler(signal.SIGINT, work.cancel)
        with Follower(terminal()) as follower:
            async for line in there.lines(id):
                follower.line(line)

    there.job(id)  # a job that is not there is said in one line
    with suppress(asyncio.CancelledError):
        asyncio.run(shown())
    job = there.job(id)
    if not job.ended:
        echo(f"left job {id} running; `promptmill job attach {id} --address {there.address}` follows it again", err=True)
        return STOPPED
    return ended(there, id)


def ended(there: "Remote", id: str) -> int:
    """The exit status of a job's run: the driver's own, since Ray takes 3, done but some rows failed, for a failure."""
    job = there.job(id)
    if job.status == "STOPPED":
        return STOPPED
    if job.exit is None:
        echo(f"job {id}: {job.status.lower()}: {' '.join(job.message.split())[:500]}", err=True)
        return FAILED
    return job.exit


@click.group()
def job() -> None:
    """Jobs that were submitted: list, status, logs, attach, stop."""


@job.command("list")
@takes_address
def list_(address: str) -> None:
    """The jobs that promptmill submitted to a cluster."""
    with one_line_errors():
        for found in remote(address).jobs():
            echo(f"{found.id:48}{found.status:12}{found.output}")


@job.command()
@click.argument("id")
@takes_address
@click.option("--json", "as_json", is_flag=True, help="Say it as one JSON object.")
def status(id: str, address: str, as_json: bool) -> None:
    """What a job is at; `promptmill status OUT` says what is done."""
    with one_line_errors():
        found = remote(address).job(id)
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
        if said := remote(address).logs(id):
            echo_log(said)


@job.command()
@click.argument("id")
@takes_address
def attach(id: str, address: str) -> None:
    """Follow a job, from its beginning; exits as its run does."""
    with one_line_errors():
        sys.exit(follow(remote(address), id))


@job.command("stop")
@click.argument("id")
@takes_address
def stop_(id: str, address: str) -> None:
    """Have a job finish what is in flight and stop; submitting the same again goes on."""
    with one_line_errors():
        there = remote(address)
        if there.job(id).ended:
            stop(USAGE, f"{id}: has ended already")
        there.stop(id)
        echo(f"stopping {id}: what is in flight is finished; `promptmill job attach` shows it")
