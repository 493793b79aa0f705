"""Declares the command `convert`."""

from pathlib import Path

import click

from promptmill.configs.errors import quoted
from promptmill.configs.printing import echo
from promptmill.jobs.cli.endings import one_line_errors
from promptmill.jobs.showing import summary


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--to", type=click.Path(path_type=Path), help="The new file; beside FILE if not said.")
def convert(file: Path, to: Path | None) -> None:
    """Write the tensors of FILE, a .pth of torch.save, as safetensors. Nothing that FILE names is run."""
    from promptmill.pipelines.models.converting import convert

    with one_line_errors():
        place = to or file.with_suffix(".safetensors")
        done = convert(file, place)
        wrapped = f", from under {quoted(done.wrapper)}" if done.wrapper else ""
        left = f"; left out, as no tensors: {', '.join(done.left_out)}" if done.left_out else ""
        echo(f"{place}: {summary.many(done.tensors, 'tensor')}, {done.bytes / 1e6:,.1f} MB{wrapped}{left}")
