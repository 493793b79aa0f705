"""The command line: what a person types. A module a group of commands; `endings` says how each ends."""
# ruff: noqa: E402

from promptmill.actors.local_ray.import_path import leave_out_here

leave_out_here()  # before anything else is imported, lest it come from where the person stands

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from click.exceptions import NoArgsIsHelpError

from promptmill.configs.errors import escaped
from promptmill.jobs.cli.calibrating import calibrate
from promptmill.jobs.cli.checking import regenerate, status, verify
from promptmill.jobs.cli.clusters import job, submit
from promptmill.jobs.cli.curating import dedup
from promptmill.jobs.cli.machine import doctor, presets, schema
from promptmill.jobs.cli.rendering import plan, run
from promptmill.jobs.cli.sharing import export, push
from promptmill.jobs.cli.showing import report, sheet
from promptmill.jobs.cli.streams import begin_in_utf8


class _Safely(click.Group):
    """Says what is wrong with its arguments, which a shell may have made of files' names, as safely as all else is said."""

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        with _escaping():
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        with _escaping():
            return super().invoke(ctx)


@contextmanager
def _escaping() -> Iterator[None]:
    try:
        yield
    except NoArgsIsHelpError:
        raise  # its message is the help
    except click.UsageError as error:
        raise click.UsageError(escaped(error.format_message()), error.ctx) from None
    except click.ClickException as error:
        raise click.ClickException(escaped(error.format_message())) from None


@click.group(cls=_Safely, context_settings={"help_option_names": ["-h", "--help"]})
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
