"""Declares the command `report`."""

from pathlib import Path

import click

from promptmill.configs.printing import echo
from promptmill.jobs.cli.endings import one_line_errors, stop
from promptmill.jobs.planning.config_and_output import absolute
from promptmill.jobs.showing.exit_statuses import FAILED
from promptmill.shards.places_to_write import write_file


@click.command()
@click.argument("out")
@click.option("--to", "file", type=click.Path(path_type=Path, dir_okay=False), default=Path("report.html"), show_default=True)
def report(out: str, file: Path) -> None:
    """A dataset as one HTML file: numbers, scores, the best and the worst. Exits with 1 where something could not be read."""
    from promptmill.jobs.report.making import make
    from promptmill.jobs.report.page import page
    from promptmill.jobs.showing.summary import many, size

    with one_line_errors():
        made = make(absolute(out))
        html = page(made)
        write_file(file, html)
        seen = "" if made.sample.whole else f", a sample of {len(made.sample.records):,} of them"
        echo(f"{file}: {many(made.totals.kept, 'kept image')} in {many(made.totals.shards, 'shard')}{seen} ({size(len(html))})")
        if made.problems:
            stop(FAILED, *made.problems, f"the page is without these; `promptmill verify {out}` says what else is wrong")
