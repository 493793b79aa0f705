"""Shares the shards of a plan among processes that check rows, cut units and write JSON, while this one reads the manifest.

A worker gets the rows of some shards and returns their files' contents and a tally. Results are taken in the order of the rows, so
that the plan equals that of a single process, to the byte. Where a worker is gone, or its result depends on all rows before, the
shards are made here.

Workers are started as plain interpreters and told what to import. The multiprocessing module would run the caller's main script in
each, and look for its own modules in the current folder.
"""

import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue

from promptmill.jobs.planning.shard_making import NumberedRows, PackedShard, ShardRules, Share
from promptmill.manifests.rows import Row

MAX_WORKERS = 4  # more than reading can keep busy
BATCH_ROWS = 2000  # at least, where shards are smaller; a pipe is slow to turn around
BATCH_BYTES = 4 * 2**20  # enough for a batch of fewer rows
AHEAD = 2  # batches a worker has: one to work at, one to go on with
AHEAD_BYTES = 64 * 2**20  # waiting in all batches together, at most, without the last batch
MAX_SHARD = 10_000  # rows of a shard that is still shared: as many again are in memory for each worker

WORKER = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from promptmill.jobs.planning.process import work; work(sys.stdin.buffer)"
)

# The packed shards, and the tally of their rows; None where they cannot be made apart from the rows before.
Made = tuple[list[PackedShard], Share] | None


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """Holds the workers, and the shards that they are making.

    Args:
        recipe: The constants that shards are made with.
        take: Called with each batch of shards in order: the rows of its shards, and the worker's result, or None.
        workers: The number of workers.
    """

    def __init__(self, recipe: ShardRules, take: Callable[[Iterable[NumberedRows], Made], None], workers: int):
        self._take = take
        self._workers: list[_Worker] = []
        for _ in range(workers):
            with suppress(OSError, RuntimeError):  # no more processes or threads are allowed here
                self._workers.append(_Worker(recipe))
        self._first, self._rows, self._batch = 0, 0, list[bytes]()
        self._given: deque[tuple[list[bytes], Future[Made]]] = deque()

    def ready(self) -> bool:
        """Return whether shards can be given: all workers have started or failed, and not all have failed."""
        return all(worker.started.done() for worker in self._workers) and any(worker.alive for worker in self._workers)

    def give(self, shard: int, rows: NumberedRows) -> bool:
        """Give a shard to the workers, the one behind that given before; where many have been given, results are taken meanwhile.

        Returns:
            False where these rows cannot be sent.
        """
        try:
            content = _dumps(rows)
        except RecursionError:  # JSON may nest lists deeper than a row may
            return False
        if not self._batch:
            self._first, self._rows = shard, 0
        self._batch.append(content)
        self._rows += len(rows)
        if self._rows >= BATCH_ROWS or _size(self._batch) >= BATCH_BYTES:
            self._submit()
        return True

    def drain(self) -> None:
        """Take the results of all shards that were given."""
        self._submit()
        while self._given:
            self._take_one()

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        for worker in self._workers:
            worker.close()

    def _submit(self) -> None:
        if not self._batch:
            return
        batch, self._batch = self._batch, []
        while self._given and (
            len(self._given) >= AHEAD * len(self._workers) or sum(_size(each) for each, _ in self._given) > AHEAD_BYTES
        ):
            self._take_one()
        worker = min(self._workers, key=lambda each: (not each.alive, each.waiting))
        self._given.append((batch, worker.submit(pickle.dumps((self._first, batch)))))

    def _take_one(self) -> None:
        batch, future = self._given.popleft()
        self._take(map(loads, batch), future.result())


class _Worker:
    """Runs one process, a thread that sends to it and one that receives from it: neither may hold up the reading of rows."""

    def __init__(self, recipe: ShardRules):
        # Without -P, a file in the current folder could take the place of a module.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._lock = threading.Lock()
        self._waiting: deque[Future[Made]] = deque()
        self._messages: SimpleQueue[bytes | None] = SimpleQueue()
        self.alive = True
        self.started = self.submit(pickle.dumps(sys.path) + pickle.dumps(recipe))
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, message: bytes) -> "Future[Made]":
        future: Future[Made] = Future()
        with self._lock:
            if self.alive:
                self._waiting.append(future)
                self._messages.put(message)
            else:
                future.set_result(None)
        return future

    def close(self) -> None:
        self._process.kill()
        self._messages.put(None)
        for thread in self._threads:
            thread.join()
        self._process.wait()

    def _send(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError), self._process.stdin as stream:
            while (message := self._messages.get()) is not None:
                stream.write(message)
                stream.flush()

    def _receive(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            while True:
                try:
                    made = pickle.load(stream)
                except (EOFError, OSError, pickle.UnpicklingError):
                    break
                with self._lock:
                    future = self._waiting.popleft()
                future.set_result(made)
        with self._lock:
            self.alive = False
            for future in self._waiting:
                future.set_result(None)
            self._waiting.clear()


def _size(batch: Sequence[bytes]) -> int:
    return sum(map(len, batch))


def _dumps(rows: NumberedRows) -> bytes:
    values = [(number, row.file, row.number, row.values, row.broken, row.notes, row.images, row.picture) for number, row in rows]
    return pickle.dumps(values, pickle.HIGHEST_PROTOCOL)


def loads(rows: bytes) -> NumberedRows:
    """Return the rows that `_dumps` has packed."""
    return [(number, Row(*values)) for number, *values in pickle.loads(rows)]
