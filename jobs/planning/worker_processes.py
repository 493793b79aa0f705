"""Calls a function in several processes of this machine, each of which loads its models once.

A process gets the arguments of one call and returns the result; it writes nothing to an output. A process that dies is replaced,
and its call is made anew.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import IO, Any

from promptmill.actors.flow.actor_slots import AbortError
from promptmill.jobs.planning.processes import cores

MOST_WORKERS = 256
TRIES = 3  # processes that may die of one call
WORKER = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from promptmill.jobs.planning.worker_processes import work; work(sys.stdin.buffer)"
)


def workers_for(threads: int, cards: Sequence[str]) -> int:
    """Return how many processes are as many as this machine can keep busy: one a GPU, or else one for the threads of each."""
    return min(MOST_WORKERS, len(cards) or max(1, cores() // threads))


class WorkerPool:
    """Holds processes that call a function, each for one caller at a time. Each is started when it is first needed.

    Args:
        function: What is called; it can be pickled.
        workers: The number of processes.
        threads: CPU threads that each computes with.
        cards: The GPUs, as in CUDA_VISIBLE_DEVICES, of which each process sees one; none: the environment's.
    """

    def __init__(self, function: Callable[..., Any], workers: int, threads: int = 1, cards: Sequence[str] = ()):
        self._first = pickle.dumps(sys.path) + pickle.dumps((threads, function))
        self._free: SimpleQueue[_Worker] = SimpleQueue()
        self._door = threading.Lock()
        self._closed = False
        self._all = [_Worker(self._first, cards[number % len(cards)] if cards else None) for number in range(workers)]
        for worker in self._all:
            self._free.put(worker)

    @property
    def pids(self) -> list[int]:
        """Return the ids of the processes that have been started."""
        return [worker.process.pid for worker in self._all if worker.process is not None]

    def call(self, what: str, *given: Any) -> Any:
        """Return the function's result; for several threads, which wait where no process is free.

        Args:
            what: What a process does in this call, in words, as `made maps of 3 pictures`.
            given: The arguments.

        Raises:
            AbortError: Processes die of this call, or the pool is closed.
            Exception: As the function.
        """
        worker = self._free.get()
        try:
            for _ in range(TRIES):
                with self._door:  # so that none is started while all are ended
                    if self._closed:
                        raise AbortError("the pool is closed")
                    worker.start()
                if (answer := worker.ask(pickle.dumps(given, pickle.HIGHEST_PROTOCOL))) is not None:
                    made, error = answer
                    if error is not None:
                        raise error
                    return made
        finally:
            self._free.put(worker)
        raise AbortError(f"{TRIES} processes that {what} have died, perhaps for want of memory; try fewer --workers")

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


def work(messages: IO[bytes]) -> None:
    """Call the function until there are no more messages: the function first, then the arguments of one call after another."""
    # Ctrl-C goes to all processes of a terminal; the process that has the output ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Prints go to stderr, since stdout carries the results.
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    threads, function = pickle.load(messages)
    _one_process_of_many(threads)
    with suppress(EOFError, BrokenPipeError):  # the process that has the output is gone, or has ended
        while True:
            given = pickle.load(messages)
            results.write(_called(function, given))
            results.flush()


def _called(function: Callable[..., Any], given: tuple[Any, ...]) -> bytes:
    try:
        return pickle.dumps((function(*given), None), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        return packed_error(error)


def packed_error(error: Exception) -> bytes:
    """Return the answer that is an error; one that another process could not read is sent as a RuntimeError in its words."""
    try:
        packed = pickle.dumps((None, error))
        pickle.loads(packed)
        return packed
    except Exception:  # errors of libraries may hold anything
        return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}")))


def _one_process_of_many(threads: int) -> None:
    import cv2

    cv2.setNumThreads(threads)  # otherwise each process takes all cores; a map's pixels do not depend on the number
