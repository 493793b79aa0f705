"""Shares the parts of a dataset of maps among processes of this machine, of which each loads the annotators once.

A process gets the rows of one part, and returns what they became; it writes nothing to the output. Rows depend on their own
pictures alone, so that the dataset equals that of a single process, to the byte. A process that dies is replaced, and its part is
made anew.
"""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from promptmill.actors.flow.actor_slots import AbortError
from promptmill.jobs.annotating.inputs import Inputs
from promptmill.jobs.planning.processes import cores
from promptmill.pipelines.work.units import Placed

MOST_WORKERS = 256
TRIES = 3  # processes that may die of one part
WORKER = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from promptmill.jobs.annotating.process import work; work(sys.stdin.buffer)"
)


def workers_for(inputs: Inputs) -> int:
    """Return how many processes are as many as this machine can keep busy: one a GPU, or else one for the threads of each."""
    return min(MOST_WORKERS, len(_cards(inputs)) or max(1, cores() // inputs.threads))


class AnnotatorPool:
    """Holds processes that make rows, each for one caller at a time. Each is started when it is first needed.

    Args:
        inputs: What the dataset is made from.
        workers: The number of processes.
    """

    def __init__(self, inputs: Inputs, workers: int):
        self._first = pickle.dumps(sys.path) + pickle.dumps(inputs)
        self._free: SimpleQueue[_Worker] = SimpleQueue()
        self._door = threading.Lock()
        self._closed = False
        cards = _cards(inputs)
        self._all = [_Worker(self._first, cards[number % len(cards)] if cards else None) for number in range(workers)]
        for worker in self._all:
            self._free.put(worker)

    @property
    def pids(self) -> list[int]:
        """Return the ids of the processes that have been started."""
        return [worker.process.pid for worker in self._all if worker.process is not None]

    def rows(self, shard: int, some: Sequence[Placed]) -> list[dict[str, Any]]:
        """Return the dataset's rows for rows of the manifest; for several threads, which wait where no process is free.

        Raises:
            AbortError: Processes die of these rows, or the pool is closed.
            ModelError, UnreachableError: As `RowMaker.rows`.
        """
        worker = self._free.get()
        try:
            for _ in range(TRIES):
                with self._door:  # so that none is started while all are ended
                    if self._closed:
                        raise AbortError("the pool is closed")
                    worker.start()
                if (answer := worker.ask(pickle.dumps((shard, some), pickle.HIGHEST_PROTOCOL))) is not None:
                    made, error = answer
                    if error is not None:
                        raise error
                    return made
        finally:
            self._free.put(worker)
        pictures = f"pictures {some[0].row:,} to {some[-1].row:,} of shard {shard}"
        raise AbortError(
            f"{TRIES} processes that made maps of {pictures} have died, perhaps for want of memory; try fewer --workers"
        )

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        with self._door:
            self._closed = True
            for worker in self._all:
                worker.end()


class _Worker:
    """Runs one process, and another where that has died.

    Args:
        first: What each process is told first.
        card: The GPU that it sees, as in CUDA_VISIBLE_DEVICES; None: the environment's.
    """

    def __init__(self, first: bytes, card: str | None):
        self._first = first
        self._environment: Mapping[str, str] | None = None if card is None else {**os.environ, "CUDA_VISIBLE_DEVICES": card}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process where there is none, or it has died."""
        if self.process is not None and self.process.poll() is None:
            return
        self._drop()
        # Without -P, a file in the current folder could take the place of a module. Warnings go to this process's stderr.
        command, pipe = [sys.executable, "-P", "-c", WORKER], subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=self._environment)
        self._send(self._first)

    def ask(self, message: bytes) -> tuple[Any, Exception | None] | None:
        """Return the process's answer to a message; None where it has died."""
        assert self.process is not None and self.process.stdout is not None
        self._send(message)
        try:
            return pickle.load(self.process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            self.end()
            return None

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _send(self, message: bytes) -> None:
        assert self.process is not None and self.process.stdin is not None
        with suppress(OSError):  # of a process that has died, which the answer tells
            self.process.stdin.write(message)
            self.process.stdin.flush()

    def _drop(self) -> None:
        for stream in (self.process.stdin, self.process.stdout) if self.process is not None else ():
            assert stream is not None
            with suppress(OSError):
                stream.close()


def _cards(inputs: Inputs) -> list[str]:
    if not inputs.annotators:
        return []
    from promptmill.pipelines.rendering.gpus import alike

    return alike()
