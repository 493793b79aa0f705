"""Rewrites the prompts of a config's manifest, and writes the rows into a file of a person's choice."""

from pathlib import Path
from typing import Literal

from promptmill.configs.schema import Config
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.planning.rewriting import Progress, rewrite, rewritten_rows
from promptmill.jobs.planning.sources import look
from promptmill.jobs.sharing.made_manifest import write_rows
from promptmill.jobs.sharing.row_files import check_ending
from promptmill.shards.lease import hold


def rewritten_to(
    config: Config,
    output: str,
    file: Path | None = None,
    progress: Progress = lambda rows: None,
    workers: int | Literal["auto"] = 1,
) -> int:
    """Rewrite the prompts of a config's manifest under its output, as a run does before it plans; return the number of rows.

    Args:
        config: The config.
        output: The dataset's URI, where the texts are durable.
        file: JSON lines or Parquet with the rows.
        progress: Called with the number of rows that are done.
        workers: Processes that have the model, as for `rewrite`.

    Raises:
        PlanError: The config rewrites nothing; or as `rewrite`, or, with a file, a row was not rewritten.
        ExportError: As `made_manifest.write_manifest`.
    """
    if config.rewriting is None:
        raise PlanError(["prompts.rewrite: is not there; this command is for a config that says how prompts are rewritten"])
    if file is not None:
        check_ending(file)
    sources = look(config, output)
    with hold(output):
        rewrite(sources, output, progress, workers)
        rows = rewritten_rows(sources)
        return write_rows(rows, file) if file is not None else sum(1 for _ in rows)
