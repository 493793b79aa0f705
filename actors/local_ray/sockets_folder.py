"""Chooses where a Ray cluster of this machine keeps its sockets, where the environment's folder is unfit."""

import os
from pathlib import Path

from promptmill.actors.pool_sizes import ClusterError

FALLBACK = "/tmp"
# The longest path of a socket is FOLDER/ray/session_2026-11-29_11-07-21_123456_4194304/sockets/plasma_store, of 107 bytes at most.
LONGEST = 107 - len("/ray/session_2026-11-29_11-07-21_123456_4194304/sockets/plasma_store")


def ray_folder() -> tuple[str | None, str]:
    """Return the folder to start Ray with, None for Ray's own choice, and the line that gives the reason for another folder.

    Raises:
        ClusterError: Neither the environment's folder nor /tmp is fit.
    """
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    if name is None:
        return None, ""
    wrong = unfit(os.environ[name])
    if not wrong:
        return None, ""
    if (also := unfit(FALLBACK)) is not None:
        remedy = f"export RAY_TMPDIR=FOLDER, of at most {LONGEST} ASCII characters"
        raise ClusterError(f"{name} {wrong} for Ray's sockets, and {FALLBACK} {also}; {remedy}")
    return f"{FALLBACK}/ray", f"{name} {wrong} for Ray's sockets: Ray keeps them in {FALLBACK}/ray"


def unfit(folder: str) -> str | None:
    """Return the fault of a folder, as the rest of a sentence; None where the folder is fit."""
    if not folder.isascii():
        return "is not ASCII"
    if len(os.fsencode(Path(folder).absolute())) > LONGEST:
        return f"is too long, {len(folder)} characters of at most {LONGEST},"
    there = next((parent for parent in (Path(folder), *Path(folder).absolute().parents) if parent.exists()), None)
    if there is None or not os.access(there, os.W_OK | os.X_OK):
        return "cannot be written"
    return None
