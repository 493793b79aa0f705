"""Forks processes from a warm parent: `python -m tests.warm FD NAMES` has imported what the programs need, and serves a socket.

A process that is forked is one like any other: it has its own number, it is killed by SIGKILL, and no thread of its parent comes
with it. Only the seconds that Python takes to import Ray, torch and promptmill are spent once a session, not once a process.
"""

import array
import atexit
import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]


def _driver() -> Callable[[], object]:
    # All that a driver imports on its way, too.
    import promptmill.actors.flow.ray_pools
    import promptmill.jobs.running.on_ray
    import promptmill.jobs.running.run  # noqa: F401
    from tests.chaos import driver

    return driver.main


def _command() -> Callable[[], object]:
    # All that a run with its workers in the process imports, and so no Ray.
    import promptmill.jobs.running.run
    import promptmill.pipelines.rendering.engine
    import promptmill.pipelines.scoring.scorers  # noqa: F401
    from promptmill.jobs.cli import main

    return main


def _training() -> Callable[[], object]:
    from promptmill.embedded.train import main

    return main


# What a forked process runs, by name: how to import it.
PROGRAMS: dict[str, Callable[[], Callable[[], object]]] = {"driver": _driver, "promptmill": _command, "train": _training}
TOGETHER = {"driver": ("driver",), "promptmill": ("promptmill", "train"), "train": ("promptmill", "train")}  # in one parent


class Forked:
    """Holds a process that a warm parent has forked, with the part of `subprocess.Popen` that tests use.

    Attributes:
        stdout: What the process says, where nobody gave a file for that; None else.
        stderr: Likewise its errors, in a file.
    """

    def __init__(self, said: socket.socket, stdout: IO[str] | None = None, stderr: IO[str] | None = None):
        self._said, self.returncode = said, None
        self.stdout, self.stderr = stdout, stderr
        self._lines = said.makefile("r")
        self.pid = int(self._lines.readline())

    def poll(self) -> int | None:
        return self._take(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the process's end; return its exit status, negative for a signal.

        Raises:
            subprocess.TimeoutExpired: It goes on.
        """
        status = self._take(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read all that the process says until its end, and wait for that; return what it said, and its errors."""
        assert self.stdout and self.stderr
        with self.stdout, self.stderr:
            said = self.stdout.read()
            self.wait(timeout)
            self.stderr.seek(0)
            return said, self.stderr.read()

    def send_signal(self, number: int) -> None:
        # Once it has ended, its number may be another's.
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _take(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._said.settimeout(timeout)
            try:
                self._said.recv(1, socket.MSG_PEEK)
            except (TimeoutError, BlockingIOError):
                return None
            self._said.settimeout(None)
            self.returncode = os.waitstatus_to_exitcode(int(self._lines.readline()))
            self._lines.close()
            self._said.close()
        return self.returncode


class Parent:
    """The warm parent of some processes of this one, which ends with this one.

    Args:
        programs: Names of those programs of `PROGRAMS` that the parent imports.
    """

    def __init__(self, programs: Sequence[str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # One thread a library: those that numpy's would start do not come over into a fork.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
        command = [sys.executable, "-m", "tests.warm", str(theirs.fileno()), *programs]
        with theirs:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, env=environment, pass_fds=(theirs.fileno(),)
            )
        atexit.register(self.close)

    def fork(
        self, program: str, arguments: Sequence[str], said: IO[str], errors: IO[str], environment: Mapping[str, str]
    ) -> Forked:
        """Start a program with these arguments, whose whole environment and whose outputs are given."""
        return Forked(self._asked(program, arguments, said.fileno(), errors.fileno(), environment))

    def piped(self, program: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Forked:
        """Start a program whose output is read here as it is said, and whose errors go to a file."""
        errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (the caller's)
        reading, writing = os.pipe()
        try:
            asked = self._asked(program, arguments, writing, errors.fileno(), environment)
        finally:
            os.close(writing)
        return Forked(asked, os.fdopen(reading), errors)

    def _asked(
        self, program: str, arguments: Sequence[str], said: int, errors: int, environment: Mapping[str, str]
    ) -> socket.socket:
        ours, theirs = socket.socketpair()
        # The environment goes through a file: it may be larger than a packet.
        words = os.memfd_create("asked")
        asked = {"program": program, "arguments": [*arguments], "environment": {**environment}}
        os.write(words, json.dumps(asked).encode())
        given = array.array("i", [theirs.fileno(), said, errors, words])
        self._socket.sendmsg([b"fork"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, given)])
        theirs.close()
        os.close(words)
        return ours

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


@cache
def _parent(programs: tuple[str, ...]) -> Parent:
    return Parent(programs)


def parent(program: str) -> Parent:
    """Return this process's warm parent of a program, started when the first process of it is asked for."""
    return _parent(TOGETHER[program])


def started(program: str, arguments: Sequence[object], **environment: str) -> Forked:
    """Start a program of `PROGRAMS` with these words; its output is read as it is said.

    Args:
        program: Its name.
        arguments: Its words.
        environment: More variables of its environment, or others.
    """
    return parent(program).piped(program, [*map(str, arguments)], {**os.environ, "OMP_NUM_THREADS": "1", **environment})


def _serve(asked: socket.socket) -> tuple[str, list[str]]:
    """Fork a process for each packet. The call returns in such a process only, with its program and arguments."""
    while True:
        packet, ancillary, _, _ = asked.recvmsg(16, socket.CMSG_SPACE(16))
        if not packet:
            sys.exit(0)
        ((_, _, data),) = ancillary
        answer, said, errors, words = array.array("i", data)
        # The process between waits for the one that is asked for, and says how it ended.
        if os.fork():
            for descriptor in (answer, said, errors, words):
                os.close(descriptor)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        asked.close()
        if child := os.fork():
            _attend(child, answer, (said, errors, words))
        os.close(answer)
        os.dup2(said, 1)
        os.dup2(errors, 2)
        with open(words, "rb") as file:  # noqa: PTH123 (a descriptor)
            file.seek(0)
            given = json.load(file)
        os.close(said)
        os.close(errors)
        os.environ.clear()
        os.environ.update(given["environment"])
        return given["program"], given["arguments"]


def _attend(child: int, answer: int, others: Sequence[int]) -> None:
    for descriptor in others:
        os.close(descriptor)
    # Ctrl-C at a terminal goes to the whole group: the child is the one to end of it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with suppress(BrokenPipeError):
        os.write(answer, f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    with suppress(BrokenPipeError):
        os.write(answer, f"{status}\n".encode())
    os._exit(0)


def _main() -> None:
    from promptmill.actors.local_ray.import_path import leave_out_here

    programs = {name: PROGRAMS[name]() for name in sys.argv[2:]}
    asked = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for processes
    name, arguments = _serve(asked)
    leave_out_here()  # the environment is another's
    # What a shell starts in the background ignores Ctrl-C, and so would all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.enable()
    sys.argv = [name, *arguments]
    programs[name]()


if __name__ == "__main__":
    _main()
