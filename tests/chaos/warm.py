"""Forks drivers from one warm parent: `python -m tests.chaos.warm FD` has imported all that a driver needs, and serves a socket.

A driver that is forked is a process like any other: it has its own number, it is killed by SIGKILL, and no thread of its parent
comes with it. Only the second that Python takes to import Ray and promptmill is spent once a session, not once a driver.
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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]


class Forked:
    """Holds a driver that the warm parent has forked, with the part of `subprocess.Popen` that tests of drivers use."""

    def __init__(self, said: socket.socket):
        self._said, self.returncode = said, None
        self._lines = said.makefile("r")
        self.pid = int(self._lines.readline())

    def poll(self) -> int | None:
        return self._take(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the driver's end; return its exit status, negative for a signal.

        Raises:
            subprocess.TimeoutExpired: It goes on.
        """
        status = self._take(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(f"driver {self.pid}", timeout or 0)
        return status

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
    """The warm parent of this process's drivers, which ends with this process."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # One thread a library: those that numpy's would start do not come over into a fork.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
        command = [sys.executable, "-m", "tests.chaos.warm", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, env=environment, pass_fds=(theirs.fileno(),)
            )
        atexit.register(self.close)

    def fork(self, arguments: Sequence[str], said: IO[str], errors: IO[str], environment: Mapping[str, str]) -> Forked:
        """Start a driver with these arguments, whose whole environment and whose outputs are given."""
        ours, theirs = socket.socketpair()
        # The environment goes through a file: it may be larger than a packet.
        asked = os.memfd_create("asked")
        os.write(asked, json.dumps({"arguments": [*arguments], "environment": {**environment}}).encode())
        given = array.array("i", [theirs.fileno(), said.fileno(), errors.fileno(), asked])
        self._socket.sendmsg([b"fork"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, given)])
        theirs.close()
        os.close(asked)
        return Forked(ours)

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


@cache
def parent() -> Parent:
    """Return the warm parent of this process's drivers, started when the first driver is asked for."""
    return Parent()


def _serve(asked: socket.socket) -> list[str]:
    """Fork a driver for each packet. The call returns in a driver only, with the driver's arguments."""
    while True:
        packet, ancillary, _, _ = asked.recvmsg(16, socket.CMSG_SPACE(16))
        if not packet:
            sys.exit(0)
        ((_, _, data),) = ancillary
        answer, said, errors, words = array.array("i", data)
        # The process between waits for the driver, and says how it ended.
        if os.fork():
            for descriptor in (answer, said, errors, words):
                os.close(descriptor)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        asked.close()
        if driver := os.fork():
            _attend(driver, answer, (said, errors, words))
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
        return given["arguments"]


def _attend(driver: int, answer: int, others: Sequence[int]) -> None:
    for descriptor in others:
        os.close(descriptor)
    # Ctrl-C at a terminal goes to the whole group: the driver is the one to end of it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with suppress(BrokenPipeError):
        os.write(answer, f"{driver}\n".encode())
    _, status = os.waitpid(driver, 0)
    with suppress(BrokenPipeError):
        os.write(answer, f"{status}\n".encode())
    os._exit(0)


def _main() -> None:
    # All that a driver imports on its way, too.
    import promptmill.actors.flow.ray_pools
    import promptmill.jobs.running.on_ray
    import promptmill.jobs.running.run  # noqa: F401
    from promptmill.actors.local_ray.import_path import leave_out_here
    from tests.chaos import driver

    asked = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for drivers
    arguments = _serve(asked)
    leave_out_here()  # the environment is another's
    faulthandler.enable()
    sys.argv = [driver.__file__, *arguments]
    driver.main()


if __name__ == "__main__":
    _main()
