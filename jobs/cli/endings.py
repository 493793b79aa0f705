"""Ends commands: with an exit status, and with one line for a person when something is wrong."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from promptmill.configs.printing import echo
from promptmill.jobs.showing.exit_statuses import STOPPED
from promptmill.jobs.showing.user_errors import lines_of


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End errors that a user can cause in their line or lines and exit status; any other error is a bug and keeps its traceback."""
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
