"""Declares the command `presets`."""

import click

from promptmill.configs.loading import preset_names
from promptmill.configs.printing import echo


@click.command()
def presets() -> None:
    """The configs that come with promptmill, by name."""
    for name in preset_names():
        echo(name)
