"""How a command ends: its exit status, and the one line a person gets when something is wrong."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from promptmill.actors.flow.actor_slots import AbortError
from promptmill.actors.flow.in_process_pools import still_at_work
from promptmill.actors.pool_sizes import ClusterError, ResourcesError
from promptmill.configs.errors import ConfigError
from promptmill.configs.printing import echo
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.showing.exit_statuses import FAILED, STOPPED, USAGE
from promptmill.pipelines.work.errors import ModelError
from promptmill.shards.commits import CommitError
from promptmill.shards.lease import LeaseError
from promptmill.shards.parts import PartError

LEAVE_S = 2.0  # that a command waits at its end for threads that compute


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user can cause ends in its line or lines and its exit status; anything else is a bug and keeps its traceback."""
    try:
        with _one_line():
            yield
    except SystemExit as leaving:
        if still_at_work(LEAVE_S):
            # Threads that compute cannot be ended, and torch aborts a process that ends around them: what is done is durable.
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(leaving.code if isinstance(leaving.code, int) else FAILED)
        raise


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        stop(STOPPED, "stopped; what is done is durable, and the same command goes on")
    except Exception as raised:
        match cause_of(raised):
            case ConfigError() | PlanError() as error:
                stop(USAGE, *error.problems)
            case ModelError() | ResourcesError() as error:
                stop(USAGE, str(error))
            case CommitError() | PartError() | AbortError() | LeaseError() | ClusterError() as error:
                stop(FAILED, str(error))
            case OSError() as error:
                where = f"{error.filename}: " if error.filename else ""
                stop(FAILED, f"{where}{error.strerror or error}")
            case _:
                raise


def cause_of(error: BaseException) -> BaseException:
    """What lies within a group of one, or within Ray's error of a task: its own text is the whole traceback from over there."""
    while True:
        if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        elif isinstance(cause := getattr(error, "cause", None), BaseException):
            error = cause
        else:
            return error


def stop(status: int, *lines: str) -> NoReturn:
    for line in lines:
        echo(line, err=True)
    sys.exit(status)
