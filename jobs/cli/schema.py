"""Declares the command `schema`."""

import click

from promptmill.configs.loading import json_schema
from promptmill.configs.printing import echo_log


@click.command()
def schema() -> None:
    """The JSON Schema of a config, for editors."""
    echo_log(json_schema())
