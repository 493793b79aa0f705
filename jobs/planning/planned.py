"""Returns the plan of an output, made where there is none yet."""

from contextlib import nullcontext
from typing import TYPE_CHECKING

from promptmill.configs.schema import Config
from promptmill.jobs.planning.accepted_changes import Accepting, changes
from promptmill.jobs.planning.making import Progress, make_plan
from promptmill.jobs.planning.plan import Plan, PlanError, read_plan
from promptmill.jobs.planning.rewriting import RewritingDueError, due, rewrite
from promptmill.jobs.planning.sources import first_request, look, with_batch
from promptmill.shards.lease import hold

if TYPE_CHECKING:
    from promptmill.pipelines.rendering.tuning import Tuned


def planned(
    config: Config,
    output: str,
    progress: Progress = lambda rows: None,
    tuned: int | None = None,
    accept_changes: Accepting = False,
    rewrites: bool = True,
) -> Plan:
    """Return the plan of an output, made if it is not there.

    Args:
        config: The run's config.
        output: The dataset's URI.
        progress: Called with the number of rows read.
        tuned: The denoising batch, where it was tuned.
        accept_changes: As `make_plan`.
        rewrites: Whether prompts are rewritten now, where the config says so and they are not yet.

    Raises:
        RewritingDueError: Prompts are not rewritten yet, and are not to be now.
        ModelError: The model that rewrites prompts cannot be loaded.
        PlanError: As `look`, `rewrite` and `make_plan`.
        LeaseError: Another process is writing there.
    """
    sources = look(config if tuned is None else with_batch(config, tuned), output)
    # No other process may plan meanwhile, nor run the plan whose changes are accepted.
    there = read_plan(output)
    with hold(output) if accept_changes or there is None else nullcontext():
        if there is None or (accept_changes and changes(there, sources.inputs)):
            if not rewrites and (waiting := due(sources)) is not None:
                raise RewritingDueError(waiting)
            rewrite(sources, output, progress)
        return make_plan(sources, output, progress, tuned, accept_changes)


def tuned_batch(config: Config, output: str) -> "Tuned":
    """Try batch sizes of the denoiser on this machine.

    Raises:
        PlanError: The output is planned already, or no row makes a request.
    """
    from promptmill.jobs.planning.estimate import tried

    if read_plan(output) is not None:
        raise PlanError([f"{output} is planned already, and its batch decides its bytes; give another --out to tune"])
    sources = look(config)
    return tried(sources.config, first_request(sources), sources.roots)
