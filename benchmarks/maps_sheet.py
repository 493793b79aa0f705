"""Draws docs/maps.webp: one picture, drawn too, and the control map that each preprocessor without a model makes of it.

Beside them are a picture of the embedded world and its map by the embedded annotator.

python -m benchmarks.maps_sheet
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from promptmill.configs.loading import load
from promptmill.configs.preprocessors import MASKED
from promptmill.embedded.pictures import draw
from promptmill.embedded.world import parse
from promptmill.pipelines.rendering.annotators import Annotators
from promptmill.pipelines.rendering.control_maps import MAPS, control_map, masked

SHEET = Path(__file__).parents[1] / "docs" / "maps.webp"
SIDE, COLUMNS, TITLE = 256, 3, 18  # pixels, pictures, pixels


def landscape(side: int = SIDE) -> np.ndarray:
    """Return a picture of a house under a tree, (side, side, 3) uint8, with shades, straight and round edges, and thin strokes."""
    rng = np.random.default_rng(7)
    large = 4 * side  # drawn larger, so that edges are smooth
    sky = np.linspace((120, 170, 230), (230, 225, 200), large).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(sky[:, None], (large, large, 3)).copy())
    pen = ImageDraw.Draw(image)

    def at(*shares: float) -> list[tuple[float, float]]:
        return [(large * x, large * y) for x, y in zip(shares[::2], shares[1::2], strict=True)]

    pen.ellipse(at(0.08, 0.08, 0.24, 0.24), fill=(250, 215, 110))
    pen.polygon(at(0, 0.55, 0.3, 0.34, 0.55, 0.5, 0.8, 0.38, 1, 0.52, 1, 1, 0, 1), fill=(110, 135, 125))
    pen.rectangle(at(0, 0.68, 1, 1), fill=(105, 150, 80))
    pen.rectangle(at(0.18, 0.5, 0.52, 0.78), fill=(205, 180, 150))
    pen.polygon(at(0.14, 0.5, 0.35, 0.34, 0.56, 0.5), fill=(150, 65, 50))
    pen.rectangle(at(0.31, 0.62, 0.39, 0.78), fill=(85, 60, 45))
    for left in (0.21, 0.43):
        pen.rectangle(at(left, 0.56, left + 0.07, 0.64), fill=(70, 95, 130), outline=(240, 240, 235), width=large // 128)
    pen.rectangle(at(0.72, 0.56, 0.75, 0.8), fill=(90, 65, 45))
    for _ in range(160):
        x, y = rng.normal((0.735, 0.45), (0.07, 0.06))
        shade = int(rng.integers(0, 50))
        pen.ellipse(at(x - 0.025, y - 0.025, x + 0.025, y + 0.025), fill=(40 + shade, 90 + shade, 45))
    for x in np.linspace(0.02, 0.98, 24):
        pen.line(at(x, 0.86, x + 0.01, 0.96), fill=(60, 45, 35), width=large // 170)
    pen.line(at(0, 0.89, 1, 0.89), fill=(60, 45, 35), width=large // 170)
    small = image.filter(ImageFilter.GaussianBlur(2)).resize((side, side), Image.Resampling.LANCZOS)
    grain = rng.normal(0, 3, (side, side, 1))
    return np.clip(np.asarray(small) + grain, 0, 255).astype(np.uint8)


def world() -> np.ndarray:
    """Return a picture of the embedded world, (64, 64, 3) uint8."""
    scene = parse("a large red circle at the left and a small yellow cross at the right on a blue background")
    pixels: np.ndarray = draw([scene], np.random.default_rng(3)).pixels[0]
    return pixels


def sheet() -> Image.Image:
    """Return the picture and its maps, by the names of the preprocessors, then a picture of the embedded world and its segments."""
    picture, flat = landscape(), world()
    annotators = Annotators(load("embedded", ["manifest=rows.jsonl"]).model.annotators, torch.device("cpu"))
    tiles = {name: control_map(name, picture) for name in MAPS}
    repaint = np.zeros(picture.shape[:2], bool)
    repaint[SIDE // 4 : 3 * SIDE // 4, SIDE // 8 : SIDE // 2] = True  # as a row's mask would say
    tiles[MASKED] = masked(picture, repaint).clip(0, 255).astype(np.uint8)
    tiles |= {"none, of the embedded world": flat, "seg": control_map("seg", flat, annotators)}
    rows = -(-len(tiles) // COLUMNS)
    made = Image.new("RGB", (COLUMNS * SIDE, rows * (SIDE + TITLE)), "white")
    pen = ImageDraw.Draw(made)
    for number, (name, pixels) in enumerate(tiles.items()):
        x, y = number % COLUMNS * SIDE, number // COLUMNS * (SIDE + TITLE)
        pen.text((x + 4, y + 3), name, fill="black")
        made.paste(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.NEAREST), (x, y + TITLE))
    return made


if __name__ == "__main__":
    sheet().save(SHEET, quality=80)
