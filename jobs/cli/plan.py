"""Declares the command `plan`."""

import dataclasses
import json

import click

from promptmill.configs.printing import echo
from promptmill.jobs.cli.arguments import progress_of, takes_config, terminal
from promptmill.jobs.cli.endings import one_line_errors
from promptmill.jobs.planning.config_and_output import configured
from promptmill.jobs.planning.estimate import estimated
from promptmill.jobs.planning.planned import planned, tuned_batch
from promptmill.jobs.planning.rewriting import RewritingDueError
from promptmill.jobs.planning.unknown_prompts import unknown_prompts
from promptmill.jobs.showing import summary


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
        tuned = tuned_batch(loaded, output) if tune else None
        for line in summary.tuned_lines(tuned) if tuned else ():
            echo(line, err=True)
        try:
            with progress_of(terminal(), "checking the manifest") as progress:
                made = planned(loaded, output, progress, tuned.batch if tuned else None, rewrites=False)
        except RewritingDueError as error:
            # Nothing is wrong, and nothing is planned.
            rewriting = {"rows": error.due.rows, "of": error.due.of, "model": error.due.source}
            said = json.dumps({"output": output, "rewriting": rewriting}) if as_json else f"rewriting    {error}"
            echo(said)
            return
        estimate = None
        if measure is not False:
            estimate, why = estimated(made, output, asked=measure is True)
            if why:
                echo(f"no estimate of the time: {why}", err=True)
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
