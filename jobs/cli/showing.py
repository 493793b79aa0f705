"""The commands that show a dataset: sheet, report."""

from pathlib import Path

import click

from jobs.cli.arguments import absolute, without_credentials
from jobs.cli.endings import FAILED, USAGE, one_line_errors, stop
from jobs.printing import echo


@click.command()
@click.argument("out")
@click.option("--to", "file", type=click.Path(path_type=Path, dir_okay=False), default=Path("sheet.png"), show_default=True)
@click.option("--most", type=click.IntRange(1), default=28, show_default=True, help="Images to show.")
@click.option("--columns", type=click.IntRange(1), default=7, show_default=True)
def sheet(out: str, file: Path, most: int, columns: int) -> None:
    """A contact sheet of the kept images, as one PNG, JPEG or WebP."""
    from jobs.sheet import ENDINGS, SheetError, kept_images
    from jobs.sheet import sheet as sheet_of

    with one_line_errors():
        if file.suffix.lower() not in ENDINGS:
            stop(USAGE, f"{file}: no ending of an image; use one of {' '.join(ENDINGS)}")
        try:
            without_credentials(out)
            shown = list(kept_images(out, most))
        except SheetError as error:
            stop(FAILED, f"{error}; `promptmill verify {out}` says what else is wrong")
        if not shown:
            stop(FAILED, f"{out}: nothing is kept there yet")
        sheet_of(shown, columns).save(file)
        echo(f"{len(shown)} images in {file}")


@click.command()
@click.argument("out")
@click.option("--to", "file", type=click.Path(path_type=Path, dir_okay=False), default=Path("report.html"), show_default=True)
def report(out: str, file: Path) -> None:
    """A dataset as one HTML file: numbers, scores, the best and the worst. Exits with 1 where something could not be read."""
    from jobs.report.making import make
    from jobs.report.page import page
    from jobs.summary import many, size

    with one_line_errors():
        made = make(absolute(out))
        html = page(made)
        file.write_bytes(html)
        seen = "" if made.sample.whole else f", a sample of {len(made.sample.records):,} of them"
        echo(f"{file}: {many(made.totals.kept, 'kept image')} in {many(made.totals.shards, 'shard')}{seen} ({size(len(html))})")
        if made.problems:
            stop(FAILED, *made.problems, f"the page is without these; `promptmill verify {out}` says what else is wrong")
