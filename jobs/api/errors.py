"""Raises as one type what a user can cause; anything else is a bug and keeps its type."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from promptmill.jobs.showing.user_errors import lines_of

MANIFEST = "manifest"  # the folder of a dataset that holds the rows that a program gave
ROWS = re.compile(rf"\S*/{MANIFEST}/[0-9a-f]{{16}}/rows\.(?:jsonl|parquet)")


class Error(Exception):
    """Says what is wrong and what would do, in the lines that the command line prints.

    Attributes:
        problems: The lines.
    """

    def __init__(self, problems: tuple[str, ...]):
        self.problems = problems
        super().__init__("\n".join(problems))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Raise what a user can cause as an `Error`, its cause the error itself.

    Rows that a program gave are called `rows`, not by the file that was made of them; overrides are called by their keys alone.
    """
    try:
        yield
    except Exception as raised:
        known = lines_of(raised)
        if known is None or isinstance(raised, Error):
            raise
        raise Error(tuple(ROWS.sub("rows", line).removeprefix("--set ") for line in known[1])) from raised
