"""Rewrites the prompts of a manifest by a language model, before anything is planned; cut off, the step goes on where it was."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from promptmill.configs.language_models import Rewriting
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.planning.rewritten_prompts import FOLDER, Part, Step, refused
from promptmill.jobs.planning.sources import Sources
from promptmill.jobs.planning.worker_processes import WorkerPool, workers_for
from promptmill.manifests.checking import check_rows
from promptmill.manifests.rows import ManifestError, Row
from promptmill.manifests.sources import read_rows
from promptmill.pipelines.work.errors import FatalError
from promptmill.shards.storage import delete, join, names

if TYPE_CHECKING:
    from promptmill.pipelines.rendering.rewriting import Rewriter
    from promptmill.pipelines.work.results import Failure

AHEAD = 2  # parts a process: one to work at, one to go on with
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


def rewrite(sources: Sources, output: str, progress: Progress = lambda rows: None, workers: int | Literal["auto"] = 1) -> None:
    """Rewrite the prompts of a manifest that are not rewritten yet; the caller holds the output.

    Args:
        sources: The plan's inputs.
        output: The dataset's URI.
        progress: Called with the number of rows that are done.
        workers: Processes that have the model, which changes no text. 1: this process; "auto": one a GPU, or one for each
            `model.threads` of the processors.

    Raises:
        AbortError: Processes with the model have died of the same prompts again and again.
        PlanError: As `due`; or memory ran out, or the GPU failed.
        ModelError: The model cannot be loaded.
        StorageError: The output cannot be written.
    """
    step = sources.rules.rewritten
    if not isinstance(step, Step) or due(sources) is None:
        return
    done, kept, begun = 0, set[str](), deque[tuple[Part, Future[None] | None]]()
    with _writing(step, workers) as (start, at_once):

        def finish(most: int) -> None:
            nonlocal done
            while len(begun) > most:
                part, making = begun.popleft()
                if making is not None:
                    making.result()
                done += len(part.rows)
                progress(done)

        try:
            for part in step.parts(read_rows(sources.files)):
                kept.add(part.name)
                begun.append((part, None if step.is_done(part) else start(part)))
                finish(at_once)
            finish(0)
        except FatalError as error:
            raise PlanError([f"prompts.rewrite: {error}"]) from error
    for name in names(join(output, FOLDER, "parts")):
        if name not in kept:
            delete(join(output, FOLDER, "parts", name))


@contextmanager
def _writing(step: Step, workers: int | Literal["auto"]) -> Iterator[tuple[Callable[[Part], "Future[None]"], int]]:
    """Yield a function that has a part made, here or in another process, and how many parts may be under way."""
    texts = ModelTexts(step.rewriting, step.threads)
    cards = _cards() if workers != 1 else []
    number = workers_for(step.threads, cards) if workers == "auto" else workers
    if number == 1:

        def here(part: Part) -> "Future[None]":
            made: Future[None] = Future()
            step.make(part, texts)
            made.set_result(None)
            return made

        try:
            yield here, 0
        finally:
            texts.close()
        return
    pool, threads = WorkerPool(texts, number, step.threads, cards), ThreadPoolExecutor(number)

    def elsewhere(part: Part) -> "Future[None]":
        said = f"rewrote the prompts of {len(part.rows)} rows, from {part.rows[0].where},"
        return threads.submit(step.make, part, partial(pool.call, said))

    try:
        yield elsewhere, AHEAD * number
    finally:
        pool.close()
        threads.shutdown(cancel_futures=True)


def _cards() -> list[str]:
    from promptmill.pipelines.rendering.gpus import alike

    return alike()


@dataclass
class ModelTexts:
    """Rewrites prompts by a model, which is loaded when it is first needed, in whatever process that is.

    Attributes:
        rewriting: What the config says of rewriting.
        threads: CPU threads that compute.
    """

    rewriting: Rewriting
    threads: int
    _rewriter: "Rewriter | None" = None

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> "list[str | Failure]":
        """Return the rewritten prompts, as `Rewriter.rewritten`; raise ModelError where the model cannot be loaded."""
        from promptmill.pipelines.rendering.loading import device_here
        from promptmill.pipelines.rendering.rewriting import load_rewriter

        if self._rewriter is None:
            self._rewriter = load_rewriter(self.rewriting, device_here(), self.threads)
        return self._rewriter.rewritten(prompts, seeds)

    def close(self) -> None:
        """Give the memory of the model back, for the workers of the run."""
        if self._rewriter is not None:
            self._rewriter.close()
            self._rewriter = None


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
