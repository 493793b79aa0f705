"""A contact sheet of a dataset: kept images with their scores and prompts, as one PNG."""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw

from jobs.lettering import Lettering
from shards.commits import read_records
from shards.storage import StorageError, get, join
from shards.tables import read_table
from shards.tars import TarError, read_tar

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
    """One kept image, RGB, and what stands below it."""

    image: Image.Image
    mode: str
    prompt: str
    score: float


def kept_images(output: str, most: int) -> Iterator[Shown]:
    """The first kept images of a dataset, in its order, shard by shard.

    Raises:
        SheetError: A shard's files are missing, broken, or not of each other.
    """
    for record in read_records(output):
        files = {file.path.split("/")[0]: file.path for file in record.files}
        if most <= 0:
            return
        if "data" not in files:
            continue
        shown = _kept(output, files["data"], files["metadata"], most)
        yield from shown
        most -= len(shown)


def _kept(output: str, tar: str, parquet: str, most: int) -> list[Shown]:
    """The first kept images of one shard."""
    file, shown = tar, list[Shown]()
    try:
        images = {sample.key: sample.files for sample in read_tar(get(join(output, tar)))}
        file = parquet
        table = read_table(get(join(output, parquet)))
        for row in table.filter(table["selected"]).slice(0, most).to_pylist():
            file = f"{tar}: {row['key']}"
            sample = images.get(row["key"], {})
            content = next((content for ending, content in sample.items() if ending not in ("json", "txt")), None)
            if content is None:
                raise FileNotFoundError
            shown.append(Shown(Image.open(io.BytesIO(content)).convert("RGB"), row["mode"], row["prompt"], row["clip_score"]))
    except FileNotFoundError:
        raise SheetError(f"{file}: missing") from None
    except (TarError, ValueError, OSError) as error:
        if isinstance(error, StorageError):
            raise
        raise SheetError(f"{file}: {error}") from None
    return shown


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
        lines = [f"{one.mode} · {one.score:.1f}", *letters.wrapped(one.prompt, TILE, LINES)]
        for line, text in enumerate(lines):
            letters.draw(pen, left, top + TILE + (line + 1) * LINE, TILE, text)
    return whole
