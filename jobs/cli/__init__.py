"""The command line: what a person types. A module a group of commands; `endings` says how each ends."""

import click

from jobs.cli.calibrating import calibrate
from jobs.cli.checking import regenerate, status, verify
from jobs.cli.clusters import job, submit
from jobs.cli.curating import dedup
from jobs.cli.machine import doctor, presets, schema
from jobs.cli.rendering import plan, run
from jobs.cli.sharing import export, push
from jobs.cli.showing import report, sheet
from jobs.cli.streams import begin_in_utf8


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="promptmill")
def main() -> None:
    """Batch rendering of synthetic image datasets: prompts in, CLIP-ranked WebDataset shards out."""
    begin_in_utf8()


COMMANDS = (
    plan,
    calibrate,
    run,
    submit,
    job,
    status,
    verify,
    regenerate,
    sheet,
    report,
    push,
    export,
    dedup,
    doctor,
    schema,
    presets,
)

for command in COMMANDS:
    main.add_command(command)
