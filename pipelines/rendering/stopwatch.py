"""Measures how long a device takes for calls, whether or not the host waits for the device."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Stopwatch:
    """Adds up the seconds of calls: on a CPU by the clock, on a GPU by events that the GPU records between its kernels.

    By the clock, a call on a GPU takes as long as its kernels take to be launched. Events are read once the GPU has passed them, so
    that nobody waits for the GPU.
    """

    _passed: float = 0.0
    _waiting: deque[tuple[Any, Any]] = field(default_factory=deque)  # CUDA events, before and behind a call

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of the calls inside."""
        if torch.cuda.is_initialized():
            before, behind = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            yield
            behind.record()
            self._waiting.append((before, behind))
        else:
            started = time.monotonic()
            yield
            self._passed += time.monotonic() - started

    @property
    def seconds(self) -> float:
        """Return the seconds of all calls that have ended by now."""
        while self._waiting and self._waiting[0][1].query():
            before, behind = self._waiting.popleft()
            self._passed += before.elapsed_time(behind) / 1000
        return self._passed
