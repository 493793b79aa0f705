"""Keeps the folder where a person stands out of the places that Python takes modules from, here and in Ray's workers.

That folder may hold what somebody else has made: a `torch.py` beside a downloaded manifest must not run. `python -m promptmill`
names the folder, and so does an entry of PYTHONPATH that is empty or relative. Ray names the driver's folder to its workers, as the
first.
"""

import os
import sys
import sysconfig
from pathlib import Path

from promptmill.configs.own_files import PACKAGE

# The folder that the package `promptmill` lies in: code of it runs already.
OWN = PACKAGE.parent.resolve()


def leave_out_here() -> None:
    """Take the current folder off this process's module path, and have child processes never put it on theirs.

    A folder stays where PYTHONPATH names it in full, or where promptmill itself lies in it.
    """
    given = os.environ["PYTHONPATH"].split(os.pathsep) if "PYTHONPATH" in os.environ else []
    named = [entry for entry in given if Path(entry).is_absolute()]
    here = _current()
    unwanted = {os.path.normpath(Path(here, entry)) for entry in given if not Path(entry).is_absolute()} if here else set[str]()
    if sys.path and sys.path[0] in ("", here):
        unwanted.add(here)
    unwanted -= {os.path.normpath(entry) for entry in named}
    # Python writes the current folder as "" where it begins with -c.
    entries = [here if entry == "" and here and _is_own(here) else entry for entry in sys.path]
    sys.path[:] = [entry for entry in entries if _is_own(entry) or (entry != "" and os.path.normpath(entry) not in unwanted)]
    if given:
        os.environ["PYTHONPATH"] = os.pathsep.join(named)
    # As `python -P`: a child that begins with -c or -m would look for its modules here first.
    os.environ["PYTHONSAFEPATH"] = "1"


def for_workers() -> list[str]:
    """Return the folders that a worker has to look for modules in, besides its own: promptmill's, where nobody has installed it."""
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    return [str(OWN)] if OWN not in installed and any(_is_own(entry) for entry in sys.path) else []


def _current() -> str:
    """Return the folder where the person stands, or nothing where that folder has been deleted."""
    try:
        return str(Path.cwd())
    except OSError:
        return ""


def _is_own(entry: str) -> bool:
    return Path(entry).is_absolute() and Path(entry).resolve() == OWN
