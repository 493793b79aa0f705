"""Writes the rows of a made manifest into a file, and renders the first of them for a look."""

import io
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from promptmill.configs.made_manifests import MadeManifest
from promptmill.configs.schema import Config
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.planning.sources import look
from promptmill.jobs.running.run import run
from promptmill.jobs.sharing.row_files import JSONL, ExportError, check_ending, writing
from promptmill.jobs.showing.contact_sheet import Shown, kept_images
from promptmill.jobs.showing.progress import JsonLines, Tally
from promptmill.manifests.made_rows import Rows, with_lines
from promptmill.manifests.rows import ManifestError, Row

AT_ONCE = 10_000  # rows
OF_TYPES = (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError)  # raised for values that have no type in common


def rows_of(config: Config) -> Iterator[Row]:
    """Return the rows of a config's made manifest.

    Raises:
        PlanError: The config's manifest is not made; or a file or template of the manifest is wrong.
    """
    if not isinstance(config.manifest, MadeManifest):
        raise PlanError(["manifest: is of files; this command is for one that is made, with rows, seed and columns"])
    try:
        return iter(Rows(with_lines(config.manifest)))
    except ManifestError as error:
        raise PlanError([str(error)]) from None


def write_manifest(config: Config, file: Path) -> int:
    """Write all rows of a config's made manifest into JSON lines or Parquet; return the number of rows.

    Raises:
        ExportError: The file is of neither format, a row cannot be made, or a column of Parquet has values of several types.
        PlanError: As `rows_of`.
    """
    check_ending(file)
    return write_rows(rows_of(config), file)


def write_rows(rows: Iterator[Row], file: Path) -> int:
    """Write rows into JSON lines or Parquet; return their number. Raises ExportError as `write_manifest`."""
    chunks = _chunks(rows)
    first = next(chunks, [])
    form = pa.schema([]) if file.suffix == JSONL else _form(first)
    count = 0
    with writing(file, form) as write:
        for chunk in itertools.chain([first], chunks):
            try:
                write(chunk)
            except OF_TYPES as error:
                raise ExportError(f"{file}: {_unfit(error)}") from None
            count += len(chunk)
    return count


def _chunks(rows: Iterator[Row]) -> Iterator[list[dict[str, Any]]]:
    while some := list(itertools.islice(rows, AT_ONCE)):
        if (broken := next((row for row in some if row.broken), None)) is not None:
            raise ExportError(f"{broken.where}: {broken.broken}")
        yield [row.values for row in some]


def _form(rows: list[dict[str, Any]]) -> pa.Schema:
    try:
        return pa.Table.from_pylist(rows).schema
    except OF_TYPES as error:
        raise ExportError(_unfit(error)) from None


def _unfit(error: Exception) -> str:
    """Return in words why values have no type of Parquet."""
    what = "a number has more than 64 bits" if isinstance(error, OverflowError) else "a column has values of several types"
    return f"{what} ({' '.join(str(error).split())[:200]}); write {JSONL}"


def preview(config: Config, most: int) -> list[Shown]:
    """Render one picture of each of the first rows of a made manifest, in this process, and return the pictures.

    Raises:
        PlanError: As `rows_of` and `make_plan`; and whatever a run raises.
    """
    made = config.manifest
    if not isinstance(made, MadeManifest):
        next(rows_of(config))
    assert isinstance(made, MadeManifest)
    columns = {name: value for name, value in made.columns.items() if name not in ("candidates", "keep")}
    few = made.model_copy(update={"rows": min(most, made.rows), "columns": columns or made.columns})
    one = config.defaults.model_copy(update={"candidates": 1, "keep": 1})
    ranking = config.ranking.model_copy(update={"drafts": (), "min_score": None})
    runtime = config.runtime.model_copy(
        update={"workers": "here", "generators": "auto", "scorers": "auto", "address": None, "metrics_port": None}
    )
    changed = {"manifest": few, "defaults": one, "ranking": ranking, "runtime": runtime, "stages": (), "captions": None}
    with tempfile.TemporaryDirectory(prefix="promptmill-") as folder:
        plan = make_plan(look(config.model_copy(update=changed)), folder)
        run(plan, folder, JsonLines(Tally(plan.counts.candidates), io.StringIO()))
        return list(kept_images(folder, few.rows))


def lines_of(config: Config, most: int) -> Iterator[str]:
    """Yield the first rows as JSON, a line each; a row that cannot be made as what is wrong with it."""
    for row in itertools.islice(rows_of(config), most):
        yield f"{row.where}: {row.broken}" if row.broken else json.dumps(row.values, ensure_ascii=False)
