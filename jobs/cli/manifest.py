"""Declares the command `manifest`."""

from pathlib import Path

import click

from promptmill.configs.loading import load
from promptmill.configs.printing import echo
from promptmill.jobs.cli.arguments import takes_settings
from promptmill.jobs.cli.endings import one_line_errors, stop
from promptmill.jobs.showing.exit_statuses import FAILED, USAGE
from promptmill.shards.places_to_write import write_file


@click.command()
@takes_settings
@click.option("--to", "file", type=click.Path(path_type=Path, dir_okay=False), help="All rows, as .jsonl or .parquet.")
@click.option("--preview", type=click.IntRange(1, 1000), help="Print so many of the first rows.")
@click.option(
    "--sheet",
    type=click.Path(path_type=Path, dir_okay=False),
    help="--preview: render one picture of each row, and draw them here.",
)
def manifest(config: str, settings: tuple[str, ...], file: Path | None, preview: int | None, sheet: Path | None) -> None:
    """Write or show the rows of a manifest that a config makes."""
    from promptmill.jobs.sharing import made_manifest
    from promptmill.jobs.sharing.row_files import ExportError

    with one_line_errors():
        if (file is None) == (preview is None):
            stop(USAGE, "give one of --to FILE and --preview ROWS")
        if sheet and preview is None:
            stop(USAGE, "--sheet is for --preview")
        loaded = load(config, settings)
        if file:
            try:
                count = made_manifest.write_manifest(loaded, file)
            except ExportError as error:
                stop(FAILED, str(error))
            echo(f"{count:,} rows in {file}")
            return
        assert preview is not None
        for line in made_manifest.lines_of(loaded, preview):
            echo(line)
        if sheet:
            from promptmill.jobs.showing.contact_sheet import ENDINGS, LETTERS, encoded
            from promptmill.jobs.showing.contact_sheet import sheet as sheet_of
            from promptmill.jobs.showing.lettering import Lettering

            if sheet.suffix.lower() not in ENDINGS:
                stop(USAGE, f"{sheet}: no ending of an image; use one of {' '.join(ENDINGS)}")
            shown = made_manifest.preview(loaded, preview)
            if not shown:
                stop(FAILED, "no row makes an image")
            write_file(sheet, encoded(sheet_of(shown, 5, Lettering(LETTERS, None)), sheet.suffix))
            echo(f"{len(shown)} images in {sheet}")
