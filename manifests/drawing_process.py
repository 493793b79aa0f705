"""Draws SVG in a process of its own, which a drawing can end and which no other work has a part in.

The renderer ends its whole process where memory runs out or a stack overflows, and some drawings of a few hundred bytes ask for
terabytes or for hours: patterns that are scaled up, dashes without number, layers in layers. There is no list of all of these, so
the process that draws is limited in memory and in time of a core.
"""

import atexit
import contextlib
import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

MOST_MEMORY = 4 * 1024**3  # bytes of addresses: a picture of 64,000,000 pixels has 256,000,000 bytes, and each layer as many
MOST_SECONDS, OF_MEGAPIXEL = (
    10,
    2,
)  # of a core, for one drawing, which other work on the machine changes little
# To the process: width, height, seconds, bytes of the drawing. From it: whether it is drawn, 0, 0, bytes of the answer.
HEADER = struct.Struct("<QQQQ")
STOPPED = (-signal.SIGKILL, -signal.SIGTERM)  # by somebody else, who says nothing of the drawing

# Read by a bare interpreter, which has the paths of this one as arguments.
_CODE = f"""
import resource, struct, sys
sys.path[:] = sys.argv[1:]
from resvg_py import svg_to_bytes
header = struct.Struct({HEADER.format!r})
for limit, most in ((resource.RLIMIT_AS, {MOST_MEMORY}), (resource.RLIMIT_CORE, 0)):
    try:
        resource.setrlimit(limit, (most, most))
    except (ValueError, OSError):
        pass  # a stricter limit, or a system without this one
while len(begin := sys.stdin.buffer.read(header.size)) == header.size:
    width, height, seconds, size = header.unpack(begin)
    drawing = sys.stdin.buffer.read(size).decode()
    used = resource.getrusage(resource.RUSAGE_SELF)
    most, hard = int(used.ru_utime + used.ru_stime) + 1 + seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    try:
        drawn, answer = 1, bytes(svg_to_bytes(svg_string=drawing, width=width, height=height, skip_system_fonts=True))
    except BaseException as error:  # a panic of the renderer is no Exception
        drawn, answer = 0, (str(error) or type(error).__name__).encode()
    sys.stdout.buffer.write(header.pack(drawn, 0, 0, len(answer)) + answer)
    sys.stdout.buffer.flush()
"""


class UndrawnError(ValueError):
    """Reports a drawing that the renderer refused, or that ended its process; the message is the reason."""


_door = threading.Lock()
_running: tuple[int, "subprocess.Popen[bytes]"] | None = None  # with the process that started it, which may have been forked since


def render(drawing: str, width: int, height: int) -> bytes:
    """Return a drawing as a PNG of a width and height in pixels.

    Raises:
        UndrawnError: The renderer refuses the drawing, or the drawing takes more memory or time than it may.
    """
    content, seconds = drawing.encode(), MOST_SECONDS + OF_MEGAPIXEL * width * height // 1_000_000
    question = HEADER.pack(width, height, seconds, len(content)) + content
    with _door:
        answered = _answer(question)
        if answered in STOPPED:
            answered = _answer(question)
    if isinstance(answered, int):
        raise UndrawnError(_why_ended(answered, seconds))
    drawn, answer = answered
    if not drawn:
        raise UndrawnError(answer.decode(errors="replace"))
    return answer


def _answer(question: bytes) -> tuple[int, bytes] | int:
    """Return whether the process has drawn, and the picture or the reason; or the exit code of a process that ended."""
    process = _process()
    assert process.stdin is not None and process.stdout is not None
    begin = answer = b""
    size = 0
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(question)
            process.stdin.flush()
        begin = process.stdout.read(HEADER.size)
        if len(begin) == HEADER.size:
            drawn, _, _, size = HEADER.unpack(begin)
            answer = process.stdout.read(size)
            if len(answer) == size:
                return drawn, answer
        return process.wait()
    finally:
        # What ended, and what was interrupted, whose answer would be the next one's.
        if len(begin) < HEADER.size or len(answer) < size:
            _end()


def _process() -> "subprocess.Popen[bytes]":
    global _running
    if _running is None or _running[0] != os.getpid() or _running[1].poll() is not None:
        command = [sys.executable, "-I", "-S", "-c", _CODE, *(path or str(Path.cwd()) for path in sys.path)]
        pipe, none = subprocess.PIPE, subprocess.DEVNULL
        _running = os.getpid(), subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=none, start_new_session=True)
    return _running[1]


def _why_ended(code: int, seconds: int) -> str:
    if code == -signal.SIGXCPU:
        return f"takes more than {seconds} s to draw at this size"
    if code in (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS):
        return f"cannot be drawn in {MOST_MEMORY // 1024**3} GiB of memory"
    return f"cannot be drawn: the renderer ended with {code}"


def _end() -> None:
    """End the process, of which only the process that started it is in charge."""
    global _running
    if _running is not None and _running[0] == os.getpid():
        process = _running[1]
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # of a drawing that was never read
                pipe.close()
    _running = None


atexit.register(_end)
