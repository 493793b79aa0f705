"""Renders one sheet of sample pictures in every mode: `python -m promptmill.embedded.gallery`."""

from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from promptmill.embedded.controlnet import control_maps
from promptmill.embedded.evaluate import mask_around, recolored, replaced, scenes_for
from promptmill.embedded.oracle import is_right
from promptmill.embedded.pictures import SIDE, draw
from promptmill.embedded.sampling import Family
from promptmill.embedded.world import describe, without

COLUMNS = 10
ZOOM = 2
LABEL = 18  # pixels above a row


@click.command()
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("gallery.png"), show_default=True)
def main(out: Path) -> None:
    """Render txt2img, both ControlNets, img2img and inpainting, ten pictures each, and say how many the oracle finds right."""
    family = Family()
    scenes, rng = scenes_for(42, COLUMNS)
    truth = draw(scenes, rng)
    prompts, seeds = [describe(s) for s in scenes], range(COLUMNS)

    pictures = family.txt2img(prompts, seeds)
    click.echo(f"txt2img: {sum(map(is_right, scenes, pictures))} of {COLUMNS} right in every attribute")
    rows = [("txt2img: scenes that training never saw", pictures)]
    unplaced = [describe(without(s, "size", "place")) for s in scenes]
    for kind in ("canny", "seg"):
        maps = control_maps(kind, truth)
        rows += [
            (f"control maps: {kind}", maps),
            ("prompts that name neither place nor size", family.control(kind, unplaced, seeds, maps)),
        ]
    recolored_prompts = [describe(recolored(s, rng)) for s in scenes]
    rows.append(
        (
            "img2img, strength 0.8: one object in another colour",
            family.img2img(recolored_prompts, seeds, truth.pixels, strength=0.8),
        )
    )
    wanted = [replaced(s, rng) for s in scenes]
    masks = np.stack([mask_around(s.things[0].place or "center") for s in scenes])
    rows.append(("inpaint: the first object replaced", family.inpaint([describe(w) for w in wanted], seeds, truth.pixels, masks)))

    sheet(rows).save(out)
    click.echo(f"{len(rows)} rows in {out}")


def sheet(rows: list[tuple[str, np.ndarray]]) -> Image.Image:
    """Return one picture with the given rows of (label, (B, 64, 64, 3) uint8), enlarged twice."""
    height = SIDE * ZOOM + LABEL
    whole = Image.new("RGB", (COLUMNS * SIDE * ZOOM, len(rows) * height), "white")
    pen = ImageDraw.Draw(whole)
    for number, (label, pictures) in enumerate(rows):
        pen.text((4, number * height + 2), label, fill="black", font=ImageFont.load_default(size=12))
        row = Image.fromarray(np.concatenate(list(pictures), axis=1))
        whole.paste(row.resize((row.width * ZOOM, row.height * ZOOM), Image.Resampling.NEAREST), (0, number * height + LABEL))
    return whole


if __name__ == "__main__":
    main()
