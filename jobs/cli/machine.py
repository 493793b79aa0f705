"""The commands that say what is here: doctor, schema, presets."""

import sys

import click

from promptmill.configs.loading import json_schema, preset_names
from promptmill.configs.printing import echo, echo_log
from promptmill.jobs.cli.endings import FAILED


@click.command()
def doctor() -> None:
    """What this machine has: GPU, versions, model caches, Ray."""
    from promptmill.jobs.clusters.doctor import doctor as look_around

    findings = look_around()
    for finding in findings:
        echo(f"{finding.level:5}{finding.subject:20}{finding.text}")
    if any(finding.level == "fail" for finding in findings):
        sys.exit(FAILED)


@click.command()
def schema() -> None:
    """The JSON Schema of a config, for editors."""
    echo_log(json_schema())


@click.command()
def presets() -> None:
    """The configs that come with promptmill, by name."""
    for name in preset_names():
        echo(name)
