"""Rewrites the prompts of a manifest by a language model, before anything is planned; cut off, the step goes on where it was."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.planning.rewritten_prompts import FOLDER, Part, Step, refused
from promptmill.jobs.planning.sources import Sources
from promptmill.manifests.checking import check_rows
from promptmill.manifests.rows import ManifestError, Row
from promptmill.manifests.sources import read_rows
from promptmill.pipelines.work.errors import FatalError
from promptmill.shards.storage import delete, join, names

if TYPE_CHECKING:
    from promptmill.pipelines.rendering.rewriting import Rewriter

MOST_PROBLEMS = 50  # lines

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Due:
    """Counts the rows whose prompts are to be rewritten.

    Attributes:
        rows: Rows whose prompts wait for the model.
        of: Rows whose prompts are rewritten in all, those that are done with them.
        source: Where the model comes from.
    """

    rows: int
    of: int
    source: str

    def line(self) -> str:
        """Return the counts in words, for a person."""
        return f"the prompts of {self.rows:,} of {self.of:,} rows are to be rewritten by {self.source}"


class RewritingDueError(PlanError):
    """Reports a manifest whose prompts have to be rewritten before anything is planned."""

    def __init__(self, due: Due):
        super().__init__([f"{due.line()}; `promptmill run` and `promptmill rewrite` do so"])
        self.due = due


def due(sources: Sources) -> Due | None:
    """Return how many rows are to be rewritten before a plan can be made; None where none are.

    Raises:
        PlanError: A row makes no request as it is, or the manifest cannot be read.
    """
    step = sources.rules.rewritten
    if not isinstance(step, Step):
        return None
    waiting = every = 0
    try:
        for part in step.parts(read_rows(sources.files)):
            every += len(part.prompts)
            waiting += 0 if step.is_done(part) else len(part.prompts)
    except ManifestError as error:
        raise PlanError([str(error)]) from None
    if waiting:
        _check(sources)
    return Due(waiting, every, step.rewriting.model.source) if waiting else None


def rewrite(sources: Sources, output: str, progress: Progress = lambda rows: None) -> None:
    """Rewrite the prompts of a manifest that are not rewritten yet; the caller holds the output.

    Args:
        sources: The plan's inputs.
        output: The dataset's URI.
        progress: Called with the number of rows that are done.

    Raises:
        PlanError: As `due`; or memory ran out, or the GPU failed.
        ModelError: The model cannot be loaded.
        StorageError: The output cannot be written.
    """
    step = sources.rules.rewritten
    if not isinstance(step, Step) or due(sources) is None:
        return
    done, kept = 0, set[str]()
    with _Loading(step) as loading:
        for part in step.parts(read_rows(sources.files)):
            if not step.is_done(part):
                loading.make(part)
            done += len(part.rows)
            kept.add(part.name)
            progress(done)
    for name in names(join(output, FOLDER, "parts")):
        if name not in kept:
            delete(join(output, FOLDER, "parts", name))


class _Loading:
    """Loads the model when it is first needed, and gives the model's memory back at the end, for the workers of the run."""

    def __init__(self, step: Step):
        self._step = step
        self._rewriter: Rewriter | None = None

    def __enter__(self) -> "_Loading":
        return self

    def make(self, part: Part) -> None:
        """Rewrite the prompts of a part."""
        from promptmill.pipelines.rendering.loading import device_here
        from promptmill.pipelines.rendering.rewriting import load_rewriter

        if self._rewriter is None:
            self._rewriter = load_rewriter(self._step.rewriting, device_here(), self._step.threads)
        try:
            self._step.make(part, self._rewriter)
        except FatalError as error:
            raise PlanError([f"prompts.rewrite: {error}"]) from error

    def __exit__(self, *error: object) -> None:
        if self._rewriter is not None:
            self._rewriter.close()


def _check(sources: Sources) -> None:
    """Raise PlanError where rows make no request as they are, and bad rows are refused: a model may take hours for the others."""
    if sources.config.runtime.on_bad_row == "record":
        return
    wrong, more = list[str](), 0
    try:
        for checked in check_rows(sources.files, replace(sources.rules, rewritten=partial(map, refused))):
            for line in checked.lines():
                if len(wrong) < MOST_PROBLEMS:
                    wrong.append(line)
                else:
                    more += 1
    except ManifestError as error:
        raise PlanError([*wrong, str(error)]) from None
    if wrong:
        raise PlanError([*wrong, *([f"… and {more:,} more like these"] if more else [])])


def rewritten_rows(sources: Sources) -> Iterator[Row]:
    """Return the rows of a manifest with their rewritten prompts.

    Raises:
        ManifestError: As `Step.__call__`.
    """
    return sources.rules.rewritten(read_rows(sources.files))
