"""The commands that the README of an example shows, at a size for tests."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def commands(folder, sizes):
    """The commands of the first block of an example's README, with other sizes in place of those that are written there.

    Args:
        folder: The example's name.
        sizes: Words that stand in the commands, and what takes their place.
    """
    text = (ROOT / "examples" / folder / "README.md").read_text(encoding="utf-8")
    block = text.split("```sh\n")[1].split("```")[0].replace("\\\n", " ")
    for written, small in sizes.items():
        assert written in block, f"the commands of {folder} have no {written!r}"
        block = block.replace(written, small)
    return [line.replace(".venv/bin/", f"{Path(sys.executable).parent}/") for line in block.splitlines() if line]


def done(command, folder):
    """What a command prints that succeeds in a folder."""
    ended = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
    return ended.stdout
