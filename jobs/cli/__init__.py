"""Holds the command line: a module a command, named as the command, without logic of its own; `endings` says how each ends."""
# ruff: noqa: E402

from promptmill.actors.local_ray.import_path import leave_out_here

leave_out_here()  # before other imports, so that no module is taken from the current folder

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click
from click.exceptions import NoArgsIsHelpError

from promptmill.configs.errors import escaped
from promptmill.jobs.cli.streams import begin_in_utf8

# In the order of the help; each is a module of this folder, with a command of its name.
COMMANDS = (
    "plan",
    "manifest",
    "rewrite",
    "calibrate",
    "run",
    "submit",
    "job",
    "annotate",
    "status",
    "verify",
    "regenerate",
    "sheet",
    "report",
    "push",
    "export",
    "dedup",
    "convert",
    "doctor",
    "schema",
    "presets",
)


class _Commands(click.Group):
    """Holds the commands, and imports the module of one when it is asked for.

    Errors in arguments, which a shell may have made of files' names, are printed as safely as everything else.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"{__name__}.{cmd_name}"), cmd_name)
        return command

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
        raise  # the error's message is the help
    except click.UsageError as error:
        raise click.UsageError(escaped(error.format_message()), error.ctx) from None
    except click.ClickException as error:
        raise click.ClickException(escaped(error.format_message())) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="promptmill")
def main() -> None:
    """Render synthetic image datasets in bulk: prompts in, CLIP-ranked WebDataset shards out."""
    begin_in_utf8()
