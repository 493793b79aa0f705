"""Prints the lines of a command; no other code in `jobs` writes to stdout or stderr.

Keys, columns, paths and messages may be a stranger's: here each becomes safe to print, wherever the line was put together.
"""

import re
import sys

import click

from promptmill.configs.errors import escaped

COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # of logs: Ray's own


def echo(line: str, err: bool = False) -> None:
    """Print one line, also one of JSON; a line end in the line is escaped as any other control is."""
    click.echo(escaped(line), err=err)


def echo_log(text: str, err: bool = False) -> None:
    """Print a log of many lines, without colours and without characters that would steer a terminal."""
    for line in text.replace("\r\n", "\n").removesuffix("\n").split("\n"):
        click.echo(log_line(line), err=err)


def log_line(line: str) -> str:
    """Return a line of a log that is safe to print, tabs kept."""
    return "\t".join(escaped(piece) for piece in COLOUR.sub("", line).split("\t"))


def show_cursor() -> None:
    """Show the terminal's cursor again after a process that hid the cursor has ended."""
    sys.stdout.write("\x1b[?25h")
