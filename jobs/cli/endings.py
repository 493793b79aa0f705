"""Ends commands: with an exit status, and with one line for a person when something is wrong."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from promptmill.configs.printing import echo
from promptmill.jobs.showing.exit_statuses import FAILED, STOPPED
from promptmill.jobs.showing.user_errors import lines_of

LEAVE_S = 2.0  # that a command waits at its end for threads that compute


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End errors that a user can cause in their line or lines and exit status; any other error is a bug and keeps its traceback.

    A process whose threads still compute ends at once: torch aborts a process that ends in order around such threads.
    """
    try:
        with _one_line():
            yield
    except SystemExit as leaving:
        workers = sys.modules.get("promptmill.actors.flow.in_process_pools")  # imported by runs alone
        if workers is not None and workers.still_at_work(LEAVE_S):
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
        known = lines_of(raised)
        if known is None:
            raise
        status, lines = known
        stop(status, *lines)


def stop(status: int, *lines: str) -> NoReturn:
    """Print lines to stderr, and end the process with an exit status."""
    for line in lines:
        echo(line, err=True)
    sys.exit(status)
