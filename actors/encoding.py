"""Holds the threads in which a scorer hashes and encodes images."""

import math
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Value = TypeVar("Value")
Made = TypeVar("Made")


class Encoders:
    """Calls a function with each of some values, in as many threads as keep up with the generators of a scorer.

    How many that is, is measured: one thread at the start, and after each unit as many as the units so far would have needed. In
    the time in which each of the scorer's generators renders a unit, the scorer has to score, hash and encode as many units. A slow
    model on a CPU needs one thread; a few-step model on a GPU needs several. Threads go again once half of them would do; the means
    over all units then have halved, so that the number cannot swing. The results are the same.

    Args:
        generators: How many generators the scorer serves.
        most: The greatest number of threads; by default the CPUs that this process may use.

    Attributes:
        threads: The number of threads for the next values.
    """

    def __init__(self, generators: int, most: int | None = None):
        self.threads = 1
        self._generators = generators
        self._most = most or len(os.sched_getaffinity(0))
        self._pool: ThreadPoolExecutor | None = None
        self._worked_s = 0.0  # of the threads, by their own clocks
        self._waited_s = 0.0  # for the threads
        self._rendered_s = 0.0
        self._finished_s = 0.0

    def map(self, function: Callable[[Value], Made], values: Iterable[Value]) -> list[Made]:
        """Return a list of the function's answers, in the order of the values."""

        def timed(value: Value) -> tuple[Made, float]:
            started = time.thread_time()
            made = function(value)
            return made, time.thread_time() - started

        started = time.monotonic()
        answers = [*(map(timed, values) if self._pool is None else self._pool.map(timed, values))]
        self._waited_s += time.monotonic() - started
        self._worked_s += sum(spent for _, spent in answers)
        return [made for made, _ in answers]

    def keep_up(self, rendered_s: float, finished_s: float) -> None:
        """Take the times of one more unit into account; change the number of threads where they do not keep up, or half would do.

        Args:
            rendered_s: Seconds of a generator that the unit took.
            finished_s: Seconds of this scorer that the unit took, with those of `map`.
        """
        self._rendered_s += rendered_s
        self._finished_s += finished_s
        beside_s = self._finished_s - self._waited_s
        needed = threads_needed(self._rendered_s / self._generators, beside_s, self._worked_s, self._most)
        if needed > self.threads or 2 * needed <= self.threads:
            self.close()
            self.threads = needed
            if needed > 1:
                self._pool = ThreadPoolExecutor(needed, "encoder")

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def threads_needed(there_s: float, beside_s: float, work_s: float, most: int) -> int:
    """Return the number of threads that do some work in half of the time that is left beside other work, from 1 to `most`.

    In all of the time, the work would be done in time on average, and units that take longer would wait for one another.

    Args:
        there_s: The seconds that there are.
        beside_s: The seconds of these that one thread spends otherwise. Where they leave less than a quarter, a quarter is taken:
            more threads would not help, more scorers would.
        work_s: The seconds that the work takes of one thread.
        most: The greatest number of threads.
    """
    left_s = max(there_s - beside_s, there_s / 4) / 2
    return max(1, min(most, math.ceil(work_s / left_s))) if left_s > 0 else 1
