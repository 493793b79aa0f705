"""Writes the manifest of a large dataset as Parquet files: every prompt with five settings, a row each.

    python examples/two-million-images/make_manifest.py FOLDER [--count 100000] [--prompts FILE] [--guidance 2 3 5]

Rows are written as they are made, so that memory does not grow with the manifest. The same arguments write the same rows.
"""

import argparse
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from promptmill.embedded.world import COLORS, OPPOSITE, SHAPES, SIZES, Scene, Thing, describe

FILE_ROWS = 10_000
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("guidance_scale", pa.float64()),
        ("scheduler", pa.string()),
        ("source", pa.int64()),  # the number of the prompt; promptmill does not know this column and the next, and carries them
        ("setting", pa.int64()),
    ]
)


def embedded_prompts() -> Iterator[str]:
    """Yield the 100,352 prompts of two objects that the embedded family knows, in an order that mixes them."""
    objects = [
        (background, *looks)
        for background in COLORS
        for looks in itertools.product(OPPOSITE, SIZES, COLORS, SHAPES, SIZES, COLORS, SHAPES)
        if background not in (looks[2], looks[5])
    ]
    for index in np.random.default_rng(0).permutation(len(objects)):
        background, place, size, color, shape, other_size, other_color, other_shape = objects[index]
        things = Thing(shape, color, size, place), Thing(other_shape, other_color, other_size, OPPOSITE[place])
        yield describe(Scene(things, background))


def lines(path: Path) -> Iterator[str]:
    """Read the prompts of a text file, one a line; empty lines are passed over."""
    with path.open(encoding="utf-8") as file:
        yield from filter(None, map(str.strip, file))


def rows(prompts: Iterable[str], guidance: Sequence[float]) -> Iterator[dict[str, Any]]:
    """Yield the rows of prompts: five for each prompt, which differ in guidance and sampler, as the images of public sets do.

    Args:
        prompts: The prompts, read one at a time.
        guidance: A low, a middle and a high guidance scale, which suit the model.
    """
    settings = [(scale, "dpmpp_2m") for scale in guidance] + [(guidance[1], "ddim"), (guidance[1], "euler")]
    for number, prompt in enumerate(prompts):
        for setting, (scale, scheduler) in enumerate(settings):
            row = {"id": f"{number:06d}-{setting}", "prompt": prompt, "guidance_scale": scale, "scheduler": scheduler}
            yield {**row, "source": number, "setting": setting}


def write(folder: Path, made: Iterator[dict[str, Any]]) -> tuple[int, int]:
    """Write rows as the files of a manifest into a new folder, and return the number of files and of rows."""
    folder.mkdir(parents=True)
    files, written = 0, 0
    while part := list(itertools.islice(made, FILE_ROWS)):
        pq.write_table(pa.Table.from_pylist(part, SCHEMA), folder / f"{files:05d}.parquet", compression="zstd")
        files, written = files + 1, written + len(part)
    return files, written


def main() -> None:
    """Write the manifest that the command line asks for."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("folder", type=Path, help="the folder to write; it may not be there yet")
    asked.add_argument("--count", type=int, default=100_000, help="how many prompts (default: 100,000, which make 500,000 rows)")
    asked.add_argument("--prompts", type=Path, help="a text file with a prompt a line, instead of the embedded family's prompts")
    asked.add_argument("--guidance", type=float, nargs=3, default=(2.0, 3.0, 5.0), metavar=("LOW", "MIDDLE", "HIGH"))
    given = asked.parse_args()
    if given.folder.exists():
        asked.error(f"{given.folder} is there already; delete it, or name another folder")
    prompts = lines(given.prompts) if given.prompts else embedded_prompts()
    files, written = write(given.folder, rows(itertools.islice(prompts, given.count), given.guidance))
    print(f"{given.folder}: {written:,} rows in {files:,} files")


if __name__ == "__main__":
    main()
