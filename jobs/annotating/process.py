"""Runs in a process of `pool.AnnotatorPool` that makes maps: reads pictures from a pipe and writes rows to another."""

import os
import pickle
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

from promptmill.jobs.annotating.inputs import Inputs
from promptmill.jobs.annotating.rows import RowMaker
from promptmill.pipelines.work.units import Placed


def work(messages: IO[bytes]) -> None:
    """Make rows until there are no more messages: the inputs first, then the rows of one part after another."""
    # Ctrl-C goes to all processes of a terminal; the process that has the output ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Prints go to stderr, since stdout carries the results.
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    inputs: Inputs = pickle.load(messages)
    _one_process_of_many(inputs.threads)
    maker = RowMaker(inputs)
    with suppress(EOFError, BrokenPipeError):  # the process that has the output is gone, or has ended
        while True:
            shard, some = pickle.load(messages)
            results.write(_made(maker, shard, some))
            results.flush()


def _made(maker: RowMaker, shard: int, some: Sequence[Placed]) -> bytes:
    try:
        return pickle.dumps((maker.rows(shard, some), None), pickle.HIGHEST_PROTOCOL)
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
