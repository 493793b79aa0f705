"""Sets up the streams of a command: their reader may go away, and their encoding has every character."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

PROGRAMS = ("promptmill", "__main__.py", "landing.py")


class _Outlet(io.FileIO):
    """Writes to a descriptor; bytes that its reader does not take any more, or has no room for, are dropped, with one warning."""

    def __init__(self, descriptor: int, said_at: int | None):
        super().__init__(descriptor, "wb", closefd=False)
        self._said_at = said_at

    def write(self, data: Any, /) -> Any:
        try:
            return super().write(data)
        except OSError as error:
            if self._said_at is not None:
                line = f"what is said on stdout reaches nobody any more ({error.strerror or error}); the run goes on\n"
                with contextlib.suppress(OSError):
                    os.write(self._said_at, line.encode())
                self._said_at = None
            return memoryview(data).nbytes


@contextlib.contextmanager
def outliving_readers() -> Iterator[None]:
    """Make stdout and stderr drop bytes that nobody reads, so that `promptmill run | head` renders to the end."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _outlet(sys.stdout, 2), _outlet(sys.stderr, None)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _outlet(stream: TextIO, said_at: int | None) -> TextIO:
    try:
        descriptor = stream.fileno()
        stream.flush()
    except (OSError, ValueError):
        return stream  # the stream is not the system's own: its owner handles its errors
    raw = io.BufferedWriter(_Outlet(descriptor, said_at))
    # A character that the locale lacks is printed as its number: an error of output must not end a run.
    return io.TextIOWrapper(raw, stream.encoding, "backslashreplace", line_buffering=bool(stream.line_buffering))


def begin_in_utf8() -> None:
    """Start the program again in Python's UTF-8 mode where file names are ASCII to Python: it could name no other file."""
    ascii_only = sys.getfilesystemencoding() in ("ascii", "us-ascii", "ANSI_X3.4-1968")
    if ascii_only and os.environ.get("PYTHONUTF8") != "1" and Path(sys.argv[0]).name in PROGRAMS:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})
