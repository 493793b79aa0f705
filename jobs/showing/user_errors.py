"""Tells what a user can cause from bugs: of the former each error is its lines and its exit status."""

from promptmill.actors.flow.actor_slots import AbortError, StartError
from promptmill.actors.pool_sizes import ClusterError, ResourcesError
from promptmill.configs.errors import ConfigError
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.showing.exit_statuses import FAILED, USAGE
from promptmill.manifests.rows import ManifestError
from promptmill.pipelines.work.errors import ModelError
from promptmill.shards.commits import CommitError
from promptmill.shards.lease import LeaseError
from promptmill.shards.parts import PartError


def lines_of(raised: BaseException) -> tuple[int, tuple[str, ...]] | None:
    """Return the exit status and the lines of an error that a user can cause; None for a bug, which keeps its traceback."""
    match cause_of(raised):
        case ConfigError() | PlanError() as error:
            return USAGE, tuple(error.problems)
        case ModelError() | ResourcesError() | ManifestError() as error:
            return USAGE, (str(error),)
        case CommitError() | PartError() | AbortError() | StartError() | LeaseError() | ClusterError() as error:
            return FAILED, (str(error),)
        case OSError() as error:
            where = f"{error.filename}: " if error.filename else ""
            return FAILED, (f"{where}{error.strerror or error}",)
        case _:
            return None


def cause_of(error: BaseException) -> BaseException:
    """Return what lies within a group of one, or within Ray's error of a task: its own text is the whole traceback from there."""
    while True:
        if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        elif isinstance(cause := getattr(error, "cause", None), BaseException):
            error = cause
        else:
            return error
