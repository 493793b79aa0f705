"""Declares the command `sheet`."""

from pathlib import Path

import click

from promptmill.configs.printing import echo
from promptmill.jobs.cli.endings import one_line_errors, stop
from promptmill.jobs.planning.config_and_output import without_credentials
from promptmill.jobs.showing.exit_statuses import FAILED, USAGE
from promptmill.jobs.showing.summary import many
from promptmill.shards.places_to_write import write_file


@click.command()
@click.argument("out")
@click.option("--to", "file", type=click.Path(path_type=Path, dir_okay=False), default=Path("sheet.png"), show_default=True)
@click.option("--most", type=click.IntRange(1), default=28, show_default=True, help="Images to show.")
@click.option("--columns", type=click.IntRange(1), default=7, show_default=True)
@click.option(
    "--font",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A font file to draw the words in; else those found here.",
)
@click.option("--grid", metavar="AXES", help="Plot the images of sweeps instead, as x=steps,y=guidance_scale,z=scheduler.")
def sheet(out: str, file: Path, most: int, columns: int, font: Path | None, grid: str | None) -> None:
    """Draw a contact sheet of the kept images, or a plot of sweeps, as one PNG, JPEG or WebP."""
    from promptmill.jobs.showing.contact_sheet import ENDINGS, LETTERS, SheetError, encoded, kept_images
    from promptmill.jobs.showing.contact_sheet import sheet as sheet_of
    from promptmill.jobs.showing.grid import GridError, parse_axes, plots
    from promptmill.jobs.showing.grid import grid as grid_of
    from promptmill.jobs.showing.lettering import Lettering

    with one_line_errors():
        if file.suffix.lower() not in ENDINGS:
            stop(USAGE, f"{file}: no ending of an image; use one of {' '.join(ENDINGS)}")
        try:
            letters = Lettering(LETTERS, font)
        except OSError:
            stop(USAGE, f"--font {font}: not a font that can be read; give a TrueType or OpenType file")
        try:
            without_credentials(out)
            if grid:
                axes = parse_axes(grid)
                made = list(plots(out, axes))
                drawn, count = (grid_of(made, axes, letters) if made else None), sum(len(plot.cells) for plot in made)
            else:
                shown = list(kept_images(out, most))
                drawn, count = (sheet_of(shown, columns, letters) if shown else None), len(shown)
        except GridError as error:
            stop(USAGE, str(error))
        except SheetError as error:
            stop(FAILED, f"{error}; `promptmill verify {out}` says what else is wrong")
        if drawn is None:
            stop(FAILED, f"{out}: nothing is kept there yet")
        write_file(file, encoded(drawn, file.suffix))
        echo(f"{many(count, 'image')} in {file}")
        if letters.missing:
            # A letter that a terminal cannot show either is printed as its number.
            some = " ".join(c if c.isprintable() else ascii(c)[1:-1] for c in sorted(letters.missing)[:10])
            more = f" and {len(letters.missing) - 10} more letters" if len(letters.missing) > 10 else ""
            echo(f"{file}: no font here has {some}{more}; --font FILE draws in one that has them", err=True)
