"""Writes the manifest of a classifier's images: as many rows for each of twelve classes, with all else drawn at random.

    python examples/balanced-classifier/make_manifest.py FILE [--rows 30]

The same arguments write the same rows.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from promptmill.embedded.world import COLORS, PLACES, SHAPES, SIZES, Scene, Thing, describe

CLASSES = [f"{color} {shape}" for color in ("red", "green", "blue") for shape in SHAPES]


def rows(each: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a manifest, the classes by turns, so that a run that is cut off is balanced too.

    Size, place and background are drawn independently of the class, so that a classifier cannot tell a class by them.
    """
    rng = np.random.default_rng(0)
    for number in range(each):
        for label in CLASSES:
            color, shape = label.split()
            background = rng.choice([one for one in COLORS if one != color])
            thing = Thing(shape, color, str(rng.choice(SIZES)), str(rng.choice(PLACES)))
            prompt = describe(Scene((thing,), str(background)))
            # promptmill does not know the column `label`, and carries it into the dataset.
            yield {"id": f"{label.replace(' ', '-')}-{number:04d}", "prompt": prompt, "label": label}


def main() -> None:
    """Write the manifest that the command line asks for."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("file", type=Path, help="the file to write, as .jsonl")
    asked.add_argument("--rows", type=int, default=30, help="rows of each class; a quarter more than the images that are wanted")
    given = asked.parse_args()
    given.file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows(given.rows))
    given.file.write_text(text, encoding="utf-8")
    print(f"{given.file}: {text.count(chr(10))} rows, {given.rows} of each of {len(CLASSES)} classes")


if __name__ == "__main__":
    main()
