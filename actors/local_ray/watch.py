"""Watches the processes of a Ray that this process has started, and keeps what Ray itself says of their ends off the terminal.

Where its raylet dies, Ray prints pages of the raylet's log and goes on with what it has; where its GCS dies, it waits for a minute
and aborts. A run ends with a line of its own before that.
"""

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil  # type: ignore[import-untyped]  # accelerate brings it
from ray import exceptions
from ray._private import ray_constants, worker

from promptmill.actors.local_ray.memory_limits import MEMORY, REMEDY
from promptmill.actors.pool_sizes import ClusterError
from promptmill.configs.printing import echo, show_cursor

WATCHED = {ray_constants.PROCESS_TYPE_RAYLET: "raylet", ray_constants.PROCESS_TYPE_GCS_SERVER: "GCS server"}
EVERY_S = 0.5
LEAVE_S = 10.0
GOES_ON = "what is done is durable, and the same command goes on"
# How Ray's memory monitor tells of the memory of a node, and of the share of it from which on it ends processes.
USED = re.compile(r"was ([0-9.]+)GB(?: used)? / ([0-9.]+)GB")
THRESHOLD = re.compile(r"exceeded threshold of [0-9]+B \(([0-9.]+)%")


def death() -> str | None:
    """Return one line on the process of this machine's own Ray that has died, or None where all are alive or Ray is another's."""
    node: Any = worker._global_node
    for kind, name in WATCHED.items():
        for started in node.all_processes.get(kind, ()) if node is not None else ():
            code = started.process.poll()
            if code is not None:
                return f"Ray on this machine has ended: its {name} {_end(code)}; {GOES_ON}"
    return None


def _end(code: int) -> str:
    if code >= 0:
        return f"exited with {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was ended by {name}" + (", as the system does where memory runs out" if -code == signal.SIGKILL else "")


class RayWatch:
    """A thread that looks whether this machine's own Ray is alive; used as a context around the whole of Ray's life.

    Where Ray has died, the run is told, and should end by itself. A call of Ray that waits for a dead GCS server cannot be
    interrupted, and Ray ends the whole process a minute later. So a run that has not ended within LEAVE_S is ended here.

    Args:
        last: Called before this process is ended, by the thread.

    Attributes:
        on_death: Called once with the line of `death`, by the thread.
    """

    def __init__(self, last: Callable[[], object]):
        self.on_death: Callable[[str], object] = lambda line: None
        self._family: list[psutil.Process] = []  # what has to be gone with the dead one
        self._last, self._over, self._lock, self._looks = last, threading.Event(), threading.Lock(), False
        self._thread = threading.Thread(target=self._watch, name="ray-watch", daemon=True)

    def __enter__(self) -> "RayWatch":
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        _kill(self._family)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look for deaths inside only: a Ray that is shut down ends its processes itself."""
        self._looks = True
        try:
            yield
        finally:
            with self._lock:
                self._looks = False

    def _watch(self) -> None:
        while not self._over.wait(EVERY_S):
            with self._lock:
                line = death() if self._looks else None
            if line is not None:
                self._family = _family()
                self.on_death(line)
                if not self._over.wait(LEAVE_S):
                    self._end(line)
                return

    def _end(self, line: str) -> None:
        with suppress(Exception):
            self._last()
        with suppress(Exception):
            _kill(self._family)
        if sys.stdout.isatty():
            show_cursor()
            sys.stdout.flush()
        echo(line, err=True)
        sys.stderr.flush()
        os._exit(1)


def _family() -> list[psutil.Process]:
    """Return the processes that this machine's own Ray has started and those below them; agents outlive a raylet without a GCS."""
    node: Any = worker._global_node
    found: list[psutil.Process] = []
    for started in node.all_processes.values() if node is not None else ():
        with suppress(psutil.Error):
            top = psutil.Process(started[0].process.pid)
            found += [top, *top.children(recursive=True)]
    return found


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):  # gone already
            process.kill()


def ended_for_memory(error: exceptions.OutOfMemoryError) -> str:
    """Return one line of the page in which Ray's memory monitor tells of a process that it has ended."""
    said = str(error)
    used, share = USED.search(said), THRESHOLD.search(said)
    how = f"{used[1]} GB of {used[2]} GB were in use" if used else "its node had too little left"
    how += f", and it allows {share[1]}%" if share else ""
    return f"{MEMORY}: Ray has ended a process of this run, since {how}; {REMEDY}"


@contextmanager
def one_line_of_ray() -> Iterator[None]:
    """Have an error of Ray itself end as one line.

    Errors that a task or an actor has raised pass through unchanged, since their cause says what is wrong.

    Raises:
        ClusterError: A process of this machine's own Ray has died, or Ray has failed otherwise.
    """
    try:
        yield
    except exceptions.RayTaskError:
        raise
    except exceptions.OutOfMemoryError as error:
        raise ClusterError(f"{ended_for_memory(error)}; {GOES_ON}") from None
    except exceptions.RayError as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ClusterError(death() or f"Ray has failed: {said}; {GOES_ON}") from None


@contextmanager
def unsaid() -> Iterator[None]:
    """Have a driver that connects inside print nothing of what Ray tells all drivers: pages of a dead raylet's log, say."""
    said, worker.listen_error_messages = worker.listen_error_messages, lambda *_: None
    try:
        yield
    finally:
        worker.listen_error_messages = said
