"""A contact sheet of a dataset: kept images with their scores and prompts, as one PNG."""

import io
import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from shards.commits import read_records
from shards.storage import get, join
from shards.tables import read_table
from shards.tars import read_tar

TILE = 160  # pixels a side
TEXT = 64  # pixels below each
GAP = 8


@dataclass(frozen=True)
class Shown:
    """One kept image, RGB, and what stands below it."""

    image: Image.Image
    mode: str
    prompt: str
    score: float


def kept_images(output: str, most: int) -> Iterator[Shown]:
    """The first kept images of a dataset, in its order, shard by shard."""
    for record in read_records(output):
        files = {file.path.split("/")[0]: file.path for file in record.files}
        if "data" not in files or most <= 0:
            continue
        images = {sample.key: sample.files for sample in read_tar(get(join(output, files["data"])))}
        columns = ["key", "mode", "prompt", "clip_score", "selected"]
        for row in read_table(get(join(output, files["metadata"]))).select(columns).to_pylist():
            if row["selected"] and most > 0:
                file = next(content for ending, content in images[row["key"]].items() if ending not in ("json", "txt"))
                yield Shown(Image.open(io.BytesIO(file)).convert("RGB"), row["mode"], row["prompt"], row["clip_score"])
                most -= 1


def sheet(shown: list[Shown], columns: int) -> Image.Image:
    """The images in a grid, scaled to fit their tiles, each with its mode, score and prompt below."""
    rows = math.ceil(len(shown) / columns)
    whole = Image.new("RGB", (columns * (TILE + GAP) + GAP, rows * (TILE + TEXT + GAP) + GAP), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(size=11)
    for number, one in enumerate(shown):
        left = GAP + number % columns * (TILE + GAP)
        top = GAP + number // columns * (TILE + TEXT + GAP)
        scale = TILE / max(one.image.size)
        size = (max(1, round(one.image.width * scale)), max(1, round(one.image.height * scale)))
        # Enlarged pixels stay square, so that a small image looks as it is.
        method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        whole.paste(one.image.resize(size, method), (left, top))
        lines = textwrap.wrap(one.prompt, 30)
        text = [f"{one.mode} · {one.score:.1f}", *lines[:3], *(["…"] if len(lines) > 3 else [])]
        pen.multiline_text((left, top + TILE + 2), "\n".join(text[:4]), fill="black", font=font, spacing=2)
    return whole
