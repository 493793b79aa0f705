"""Declares the command `rewrite`."""

from pathlib import Path

import click

from promptmill.configs.printing import echo
from promptmill.jobs.cli.arguments import number_of_workers, progress_of, takes_config, terminal
from promptmill.jobs.cli.endings import one_line_errors, stop
from promptmill.jobs.planning.config_and_output import configured
from promptmill.jobs.showing.exit_statuses import FAILED


@click.command()
@takes_config
@click.option("--to", "file", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows as .jsonl or .parquet as well.")
@click.option(
    "--workers", metavar="N", default="1", show_default=True, help="Processes that have the model; auto: as many as fit here."
)
def rewrite(config: str, out: str | None, settings: tuple[str, ...], file: Path | None, workers: str) -> None:
    """Rewrite the prompts of a config's manifest, or go on with it; a run of the same output takes the texts over."""
    from promptmill.jobs.sharing.rewritten_manifest import rewritten_to
    from promptmill.jobs.sharing.row_files import ExportError

    with one_line_errors():
        number = number_of_workers(workers)
        loaded, output = configured(config, out, settings)
        try:
            with progress_of(terminal(), "rewriting prompts") as progress:
                done = rewritten_to(loaded, output, file, progress, number)
        except ExportError as error:
            stop(FAILED, str(error))
        where = f"{file}" if file else f"{output}; `promptmill run` with the same arguments renders them"
        echo(f"{done:,} rows in {where}")
