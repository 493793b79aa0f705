"""Declares the command `regenerate`."""

from pathlib import Path

import click

from promptmill.configs.printing import echo
from promptmill.jobs.cli.arguments import takes_image_places
from promptmill.jobs.cli.endings import one_line_errors, stop
from promptmill.jobs.planning.config_and_output import without_credentials
from promptmill.jobs.showing.exit_statuses import FAILED, USAGE
from promptmill.jobs.verifying.image_places import Given
from promptmill.shards.places_to_write import write_file


@click.command()
@click.argument("out")
@click.argument("key")
@click.option("--to", "file", type=click.Path(path_type=Path, dir_okay=False), help="Where the image goes; else it is not kept.")
@takes_image_places()
def regenerate(out: str, key: str, file: Path | None, given: Given) -> None:
    """Make one image again, alone, and compare it. Exits with 1 where its pixels are others. One that failed is tried again, one
    that was only drafted is made in full. Writes nothing but what --to asks for."""
    from promptmill.jobs.verifying.regenerate import regenerate as made_again

    with one_line_errors():
        without_credentials(out)
        if file is not None and not file.absolute().parent.is_dir():
            stop(USAGE, f"--to {file}: there is no folder {file.absolute().parent}")
        made = made_again(out, key, given)
        place, kept = file or key, "" if file else f"; --to FILE.{made.ending} keeps the image"
        if file is not None:
            write_file(file, made.image)
        if made.same is None:
            said = (
                "was only drafted; this is what it would have been" if made.drafted else "became an image this time; it had failed"
            )
            echo(f"{place}: {said}{kept}")
            return
        if not made.same:
            why = f": made on {made.hardware}" if made.hardware else ""
            stop(FAILED, f"{place}: not the pixels of {out}{why}{kept}")
        echo(f"{place}: the same pixels, bit for bit{kept}")
