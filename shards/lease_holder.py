"""Describes the holder of a lease: a process, whether it is this machine's, and whether it is gone."""

import getpass
import json
import os
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field

from promptmill.configs.json_values import LARGEST, Printable, Whole, read_json

LONGEST_S = 86_400.0  # that any lease may last


@dataclass(frozen=True)
class Holder:
    """Holds what a lease file says: a process, where it runs and when it last renewed.

    Attributes:
        host, user: Names for people.
        pid: Of the process, in its own pid namespace.
        start_time: When it began, in clock ticks after boot: with the pid it names one process. None where there is no /proc.
        boot_id, pid_namespace: Where pids can be compared with ours; None where that cannot be known.
        token: Of this lease and no other.
        since: When it was taken, UTC, ISO 8601.
        renewed: When it was renewed, in seconds since 1970 by its own clock.
        expires_s: How long after that it is over, in seconds.
    """

    host: Printable
    pid: Annotated[int, Field(gt=0, lt=LARGEST)]
    start_time: Whole | None
    boot_id: str | None
    pid_namespace: Whole | None
    user: Printable
    token: Printable
    since: Printable
    renewed: Annotated[float, Field(allow_inf_nan=False)]
    expires_s: Annotated[float, Field(gt=0, le=LONGEST_S)]

    @classmethod
    def here(cls, expires_s: float) -> "Holder":
        """Return this process as a holder, with a new token."""
        boot_id = pid_namespace = None
        with suppress(OSError):
            boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            pid_namespace = Path("/proc/self/ns/pid").stat().st_ino
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            start_time=(_process(os.getpid()) or ("", None))[1],
            boot_id=boot_id,
            pid_namespace=pid_namespace,
            user=_user(),
            token=secrets.token_hex(16),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            renewed=time.time(),
            expires_s=expires_s,
        )

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Holder | None":
        """Read a lease file; None where it is broken."""
        try:
            return read_json(cls, content)
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (user {self.user}) since {self.since[:16].replace('T', ' ')} UTC"

    def is_gone(self) -> bool:
        """Whether it ran on this machine and does no more; False where that cannot be known from here."""
        here = Holder.here(self.expires_s)
        # A container shares its boot id with the machine, but neither its pids nor, mostly, its host name.
        comparable = (self.host, self.boot_id, self.pid_namespace) == (here.host, here.boot_id, here.pid_namespace)
        if not comparable or None in (self.boot_id, self.pid_namespace, self.start_time):
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:
            pass  # another user's, whose entry in /proc may be hidden
        state, start_time = _process(self.pid) or ("", self.start_time)
        return state in ("Z", "X") or start_time != self.start_time


def _process(pid: int) -> tuple[str, int] | None:
    """A process's state and start time, fields 3 and 22 of its line in /proc; None where it cannot be read."""
    try:
        # Its name, field 2, may hold blanks and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())
