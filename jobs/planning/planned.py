"""Returns the plan of an output, made where there is none yet."""

from contextlib import nullcontext
from typing import TYPE_CHECKING

from promptmill.configs.schema import Config
from promptmill.jobs.planning.accepted_changes import Accepting
from promptmill.jobs.planning.making import Progress, first_request, look, make_plan, with_batch
from promptmill.jobs.planning.plan import Plan, PlanError, read_plan
from promptmill.shards.lease import hold

if TYPE_CHECKING:
    from promptmill.pipelines.rendering.tuning import Tuned


def planned(
    config: Config,
    output: str,
    progress: Progress = lambda rows: None,
    tuned: int | None = None,
    accept_changes: Accepting = False,
) -> Plan:
    """Return the plan of an output, made if it is not there.

    Args:
        config: Of the run.
        output: The dataset's URI.
        progress: Told of the rows gone through.
        tuned: The denoising batch, where it was tuned.
        accept_changes: As `make_plan`.

    Raises:
        PlanError: As `look` and `make_plan`.
        LeaseError: Another process is writing there.
    """
    sources = look(config if tuned is None else with_batch(config, tuned), output)
    # Nobody else may plan meanwhile, nor run what changes are accepted of.
    with hold(output) if accept_changes or read_plan(output) is None else nullcontext():
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
