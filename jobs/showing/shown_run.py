"""Runs a plan and shows on a terminal, or in lines of JSON, how the run goes."""

from collections.abc import Mapping

from rich.console import Console

from promptmill.configs.printing import echo
from promptmill.jobs.figures.ranked import Ranked, look_back, ranked_facts
from promptmill.jobs.planning.plan import Plan
from promptmill.jobs.showing import summary
from promptmill.jobs.showing.exit_statuses import FAILED, SOME_FAILED, STOPPED
from promptmill.jobs.showing.progress import JsonLines, Tally, Terminal


def rendered(
    plan: Plan, output: str, console: Console | None, retry_failed: bool = False, generations: Mapping[int, int] | None = None
) -> int:
    """Run a plan, show how the run goes, and return the exit status.

    Args:
        plan: Of the output.
        output: The dataset's URI.
        console: The terminal to draw on; without one, events are printed as lines of JSON.
        retry_failed, generations: As `jobs.running.run.run`.

    Raises:
        As `jobs.running.run.run`, but for the errors that only say that the run has stopped or could not start.
    """
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
    """Return what ranking came to; of a dataset that cannot be read back `verify` is the one to tell."""
    try:
        return look_back(output, plan)
    except (OSError, ValueError, LookupError):
        return None
