"""Declares the command `doctor`."""

import sys

import click

from promptmill.configs.printing import echo
from promptmill.jobs.showing.exit_statuses import FAILED


@click.command()
def doctor() -> None:
    """What this machine has: GPU, versions, model caches, Ray."""
    from promptmill.jobs.clusters.doctor import doctor as look_around

    findings = look_around()
    for finding in findings:
        echo(f"{finding.level:5}{finding.subject:20}{finding.text}")
    if any(finding.level == "fail" for finding in findings):
        sys.exit(FAILED)
