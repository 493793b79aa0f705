"""The commands that plan and render: plan, run."""

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import click
from rich.console import Console

from promptmill.configs.printing import echo
from promptmill.configs.schema import Config
from promptmill.jobs.cli.arguments import AcceptsChanges, accepts_changes, configured, takes_config, terminal
from promptmill.jobs.cli.endings import FAILED, SOME_FAILED, STOPPED, one_line_errors
from promptmill.jobs.cli.streams import outliving_readers
from promptmill.jobs.figures.ranked import Ranked, look_back, ranked_facts
from promptmill.jobs.planning.accepted_changes import Accepting
from promptmill.jobs.planning.estimate import Estimate
from promptmill.jobs.planning.making import Sources, first_request, look, make_plan, with_batch
from promptmill.jobs.planning.plan import Plan, PlanError, read_plan, read_shard
from promptmill.jobs.planning.unknown_prompts import unknown_prompts
from promptmill.jobs.showing import summary
from promptmill.jobs.showing.progress import JsonLines, Tally, Terminal
from promptmill.shards.lease import hold, holder_of


def planned(
    config: Config, output: str, console: Console | None, tuned: int | None = None, accept_changes: Accepting = False
) -> Plan:
    """The plan of the output, made if it is not there."""
    sources = look(config if tuned is None else with_batch(config, tuned), output)
    # Nobody else may plan meanwhile, nor run what changes are accepted of.
    with hold(output) if accept_changes or read_plan(output) is None else nullcontext():
        return _planned(sources, output, console, tuned, accept_changes)


def _planned(sources: Sources, output: str, console: Console | None, tuned: int | None, accept_changes: Accepting) -> Plan:
    if console is None:
        return make_plan(sources, output, tuned_batch=tuned, accept_changes=accept_changes)
    with console.status("checking the manifest") as status:

        def progress(rows: int) -> None:
            status.update(f"checking the manifest: {rows:,} rows")

        return make_plan(sources, output, progress, tuned, accept_changes)


def tuned_batch(config: Config, output: str) -> int:
    """Try batch sizes here, show them, and return the one that pays."""
    from promptmill.jobs.planning.estimate import tried

    if read_plan(output) is not None:
        raise PlanError([f"{output} is planned already, and its batch decides its bytes; give another --out to tune"])
    sources = look(config)
    found = tried(sources.config, first_request(sources), sources.roots)
    for line in summary.tuned_lines(found):
        echo(line, err=True)
    return found.batch


@click.command()
@takes_config
@click.option(
    "--measure/--no-measure", default=None, help="Render a batch here to estimate time and disk.  [default: if it is quick]"
)
@click.option("--tune", is_flag=True, help="Try batch sizes on the real model here, and plan with the one that pays.")
@click.option("--json", "as_json", is_flag=True, help="Say it as one JSON object.")
def plan(config: str, out: str | None, settings: tuple[str, ...], measure: bool | None, tune: bool, as_json: bool) -> None:
    """Check everything, and say what a run would render and cost. Writes nothing but the plan."""
    with one_line_errors():
        loaded, output = configured(config, out, settings)
        made = planned(loaded, output, terminal(), tuned_batch(loaded, output) if tune else None)
        estimate = None
        if measure is not False:
            estimate = estimated(made, output, asked=measure is True)
        beyond = unknown_prompts(made, output)
        if as_json:
            unknown = {"unknown_prompts": dataclasses.asdict(beyond) if beyond else None}
            echo(json.dumps({"output": output, **summary.plan_facts(made, estimate), **unknown}))
            return
        for line in summary.plan_lines(made, estimate):
            echo(line)
        if beyond:
            echo(f"warning      {beyond.line()}")
        echo(f"plan         {output}/plan; `promptmill run` with the same arguments renders it")


def estimated(plan: Plan, output: str, asked: bool) -> Estimate | None:
    """What the plan will cost, by rendering a batch of it here, unless that would itself cost much and nobody asked for it."""
    from promptmill.jobs.planning.estimate import measure, worth_measuring

    reason = None if asked else worth_measuring(plan)
    if reason:
        echo(f"no estimate of the time: {reason}; --measure renders a batch all the same", err=True)
        return None
    shards = (read_shard(output, number, plan) for number in range(plan.shards))
    estimate = measure(plan, next(shard for shard in shards if shard.requests))
    if estimate is None:
        echo("no estimate of the time: the request that was tried could not be rendered", err=True)
    return estimate


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
        await_holder(output, wait_s)
        with on_cluster(loaded, output):
            made = planned(loaded, output, console, accept_changes=accept_changes)
            if accept_changes:
                for line in summary.accepted_lines(made):
                    echo(line, err=True)
            for line in [*summary.warnings(made), *made.notes]:
                echo(line, err=True)
            if beyond := unknown_prompts(made, output):
                echo(beyond.line(), err=True)
            sys.exit(rendered(made, output, console, retry_failed))


def await_holder(output: str, wait_s: float) -> None:
    """Wait for whoever writes an output; that of a dead one on another machine looks alive until its lease expires."""
    until = time.monotonic() + wait_s
    while time.monotonic() < until and (holder := holder_of(output)) is not None:
        echo(f"waiting for {holder}", err=True)
        time.sleep(min(5.0, max(0.0, until - time.monotonic())))


def on_cluster(config: Config, output: str) -> AbstractContextManager[None]:
    """The config's cluster, found to have room and to reach what the run needs before a long manifest is gone through."""
    if not config.runtime.address:
        return nullcontext()
    # Ray takes a second to import, which only a cluster is worth.
    from promptmill.jobs.clusters.node_checks import joined

    return joined(config, output)


def rendered(
    plan: Plan, output: str, console: Console | None, retry_failed: bool = False, generations: Mapping[int, int] | None = None
) -> int:
    """Run a plan, showing how it goes; returns the exit status."""
    # Ray takes a second to import, which only this command has to wait for.
    from promptmill.actors.flow.actor_slots import StartError
    from promptmill.jobs.running.run import StoppedError
    from promptmill.jobs.running.run import run as run_plan

    tally = Tally(plan.counts.candidates)
    shown = Terminal(tally, console) if console else JsonLines(tally)
    try:
        with shown:
            totals = run_plan(plan, output, shown, shown.say, retry_failed, generations)
    except StoppedError:
        echo(f"stopped; what is done is durable, and the same command goes on: {output}", err=True)
        return STOPPED
    except StartError as error:
        echo(str(error), err=True)
        return FAILED
    status = SOME_FAILED if totals.failed or totals.failed_requests else 0
    ranked = _looked_back(output, plan)
    if isinstance(shown, JsonLines):
        spent = {name: round(seconds, 3) for name, seconds in tally.seconds().items()}
        ranking = ranked_facts(ranked) if ranked else None
        shown.event("done", exit=status, output=output, totals=summary.totals_facts(totals), seconds=spent, ranking=ranking)
    for line in summary.run_lines(totals, tally, output, ranked):
        echo(line, err=console is None)
    return status


def _looked_back(output: str, plan: Plan) -> Ranked | None:
    """What ranking came to; of a dataset that cannot be read back `verify` is the one to tell."""
    try:
        return look_back(output, plan)
    except (OSError, ValueError, LookupError):
        return None
