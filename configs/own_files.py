"""Finds the files that promptmill brings along: its folders, the presets, the pins of its libraries."""

from pathlib import Path

# Resolved, since `src/promptmill/` of a checkout holds links: the repository there, the package `promptmill` where it is installed.
ROOT = Path(__file__).resolve().parents[1]
# The folder `promptmill` that Python imports; in a checkout its folders are the links.
PACKAGE = Path(__file__).absolute().parents[1]
PRESETS = ROOT / "configs" / "presets"
PROJECT = ROOT / "pyproject.toml"
LOCK = ROOT / "requirements.lock"


def pins(lock: str) -> list[str]:
    """Return the requirements, name==version, that the text of a lock file pins."""
    lines = (line.split("#")[0].split(";")[0].strip() for line in lock.splitlines())
    return [line for line in lines if line]
