"""Prints what a command has to say. Nothing else in `jobs` writes to stdout or stderr.

Keys, columns, paths and messages may be a stranger's: here each becomes safe to print, wherever a line was put together.
"""

import re
import sys

import click

from promptmill.configs.errors import escaped

COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # of logs: Ray's own


def echo(line: str, err: bool = False) -> None:
    """Print one line, of JSON too; a line end in it is escaped as any other control is."""
    click.echo(escaped(line), err=err)


def echo_log(text: str, err: bool = False) -> None:
    """Print a log of many lines, as it is but for colours and for what else would steer a terminal."""
    for line in text.replace("\r\n", "\n").removesuffix("\n").split("\n"):
        click.echo(log_line(line), err=err)


def log_line(line: str) -> str:
    """Return a line of a log as it is safe to print, tabs kept."""
    return "\t".join(escaped(piece) for piece in COLOUR.sub("", line).split("\t"))


def show_cursor() -> None:
    """Bring the terminal's cursor back, where whoever hid it cannot any more."""
    sys.stdout.write("\x1b[?25h")
