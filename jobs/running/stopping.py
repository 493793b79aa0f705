"""Passes on the wish to stop a run: from the terminal, from a supervisor, from another thread."""

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

ONE_REQUEST_S = 1.0  # within which a second SIGTERM is the first one again


class Stop:
    """Asks a run to stop, from any thread: the first call lets the run finish what is in flight, the second ends it at once."""

    def __init__(self) -> None:
        self._lock, self._asked = threading.Lock(), 0
        self._hear: Callable[[], object] | None = None

    def __call__(self) -> None:
        with self._lock:
            self._asked += 1
            if self._hear is not None:
                self._hear()

    @contextmanager
    def heard(self, asked: Callable[[], object]) -> Iterator[None]:
        """Call `asked` in the running event loop for each request, those from before included.

        SIGINT and SIGTERM are requests too where this is the main thread; elsewhere Python hands out no signals.
        """
        loop = asyncio.get_running_loop()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(asked)

        with self._lock:
            self._hear = tell
            for _ in range(self._asked):
                tell()
        try:
            with _signals(loop, asked):
                yield
        finally:
            with self._lock:
                self._hear = None


@contextmanager
def _signals(loop: asyncio.AbstractEventLoop, asked: Callable[[], object]) -> Iterator[None]:
    latest = [-ONE_REQUEST_S]

    def terminated() -> None:
        # `timeout` and other supervisors signal a process and then its group: one request, which arrives twice.
        before, latest[0] = latest[0], time.monotonic()
        if latest[0] - before >= ONE_REQUEST_S:
            asked()

    try:
        loop.add_signal_handler(signal.SIGINT, asked)
        loop.add_signal_handler(signal.SIGTERM, terminated)
    except (ValueError, NotImplementedError, RuntimeError):
        yield  # not the main thread
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)
