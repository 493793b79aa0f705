"""A contact sheet of a dataset: kept images with their scores and prompts, as one PNG."""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw

from promptmill.jobs.showing.lettering import Lettering
from promptmill.shards.commits import CommitError
from promptmill.shards.finished import shards

TILE = 160  # pixels a side
TEXT = 78  # pixels below each
LINES = 4  # of the prompt, there
LETTERS, LINE = 11, 15  # pixels: of letters, and from line to line
GAP = 8
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")  # of a sheet's own file


class SheetError(ValueError):
    """A shard that cannot be shown: a file of it is missing or broken; the message names it."""


@dataclass(frozen=True)
class Shown:
    """One kept image, RGB, and what stands below it; a forged row may have no score."""

    image: Image.Image
    mode: str
    prompt: str
    score: float | None

    @property
    def line(self) -> str:
        return self.mode if self.score is None else f"{self.mode} · {self.score:.1f}"


def kept_images(output: str, most: int) -> Iterator[Shown]:
    """Yield the first kept images of a dataset, in its order, shard by shard.

    Raises:
        SheetError: A shard's files are missing, broken, or not of each other.
    """
    try:
        for shard in shards(output):
            if most <= 0:
                return
            for one in shard.kept(most):
                yield Shown(one.picture(), one.row["mode"] or "", one.row["prompt"] or "", one.row["clip_score"])
                most -= 1
    except CommitError as error:
        raise SheetError(str(error)) from None


def encoded(image: Image.Image, ending: str) -> bytes:
    """Return a sheet as an image file; its format follows from the ending, one of `ENDINGS` in any case."""
    file = io.BytesIO()
    image.save(file, Image.registered_extensions()[ending.lower()])
    return file.getvalue()


def sheet(shown: list[Shown], columns: int, letters: Lettering | None = None) -> Image.Image:
    """Return the images in a grid, scaled to fit their tiles, each with its mode, score and prompt below.

    Args:
        letters: Draws the words, and then knows which letters no font has.
    """
    letters = letters or Lettering(LETTERS)
    columns = min(columns, len(shown))
    rows = math.ceil(len(shown) / columns)
    whole = Image.new("RGB", (columns * (TILE + GAP) + GAP, rows * (TILE + TEXT + GAP) + GAP), "white")
    pen = ImageDraw.Draw(whole)
    for number, one in enumerate(shown):
        left = GAP + number % columns * (TILE + GAP)
        top = GAP + number // columns * (TILE + TEXT + GAP)
        scale = TILE / max(one.image.size)
        size = (max(1, round(one.image.width * scale)), max(1, round(one.image.height * scale)))
        # Enlarged pixels stay square, so that a small image looks as it is.
        method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        whole.paste(one.image.resize(size, method), (left, top))
        lines = [one.line, *letters.wrapped(one.prompt, TILE, LINES)]
        for line, text in enumerate(lines):
            letters.draw(pen, left, top + TILE + (line + 1) * LINE, TILE, text)
    return whole
