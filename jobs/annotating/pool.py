"""Shares the parts of a dataset of maps among processes of this machine, of which each loads the annotators once.

Rows depend on their own pictures alone, so that the dataset equals that of a single process, to the byte.
"""

from collections.abc import Sequence
from typing import Any

from promptmill.jobs.annotating.inputs import Inputs
from promptmill.jobs.annotating.rows import RowMaker
from promptmill.jobs.planning import worker_processes
from promptmill.jobs.planning.worker_processes import WorkerPool
from promptmill.pipelines.work.units import Placed


def workers_for(inputs: Inputs) -> int:
    """Return how many processes are as many as this machine can keep busy: one a GPU, or else one for the threads of each."""
    return worker_processes.workers_for(inputs.threads, _cards(inputs))


class AnnotatorPool:
    """Holds processes that make rows, each for one caller at a time.

    Args:
        inputs: What the dataset is made from.
        workers: The number of processes.
    """

    def __init__(self, inputs: Inputs, workers: int):
        self._pool = WorkerPool(RowMaker(inputs).rows, workers, inputs.threads, _cards(inputs))

    def rows(self, shard: int, some: Sequence[Placed]) -> list[dict[str, Any]]:
        """Return the dataset's rows for rows of the manifest; for several threads, which wait where no process is free.

        Raises:
            AbortError: Processes die of these rows, or the pool is closed.
            ModelError, UnreachableError: As `RowMaker.rows`.
        """
        pictures = f"pictures {some[0].row:,} to {some[-1].row:,} of shard {shard}"
        made: list[dict[str, Any]] = self._pool.call(f"made maps of {pictures}", shard, some)
        return made

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        self._pool.close()


def _cards(inputs: Inputs) -> list[str]:
    if not inputs.annotators:
        return []
    from promptmill.pipelines.rendering.gpus import alike

    return alike()
