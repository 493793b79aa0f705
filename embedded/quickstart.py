"""Writes the quickstart's manifest, requests and images, the same every time: `python -m promptmill.embedded.quickstart`.

The manifest has every mode, and every scene asked for is of the tenth that training never saw. The prompts say every size and
place, also where a control map or an initial image gives them too, so that the oracle can judge each result by its prompt alone.
Equal parameters within a mode make full batches: requests that differ in their parameters share no batch.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from promptmill.embedded.evaluate import mask_around, recolored, replaced
from promptmill.embedded.pictures import canny, draw, segmentation
from promptmill.embedded.world import Scene, describe, is_held_out, sample_scene, without

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "presets" / "quickstart"
REQUESTS = "requests.jsonl"
SEED = 30_000_000

IMG2IMG = 0.8  # strength: enough to lose a colour, too little to lose a place
GUIDED = 0.9  # strength where a control map holds the places
INPAINT = 1.0
SHARED = 0.5  # scale of each control where there are two
NEGATIVE = (1, 4, 6)  # numbers of the txt2img requests with a negative prompt


@dataclass(frozen=True)
class Example:
    """Holds one request of the quickstart.

    Attributes:
        row: The manifest's row.
        images: The row's images by their path in the row, (64, 64, 3) uint8, or (64, 64) for masks.
    """

    row: dict[str, Any]
    images: dict[str, np.ndarray] = field(default_factory=dict)


def examples() -> Iterator[Example]:
    """Yield the requests in manifest order: shards of 16 take each mode whole, but for the last mode of the first shard."""
    kinds: list[tuple[str, int, Callable[[str, int, np.random.Generator], Example]]] = [
        ("txt2img", 6, _txt2img),
        ("canny", 6, _canny),
        ("seg", 4, _seg),
        ("canny-seg", 2, _canny_and_seg),
        ("img2img", 3, _img2img),
        ("inpaint", 3, _inpaint),
        ("canny-img2img", 2, _canny_img2img),
        ("seg-inpaint", 2, _seg_inpaint),
    ]
    for kind, (name, count, make) in enumerate(kinds):
        for number in range(1, count + 1):
            yield make(f"{name}-{number:02d}", number, np.random.default_rng([SEED, kind, number]))


def _scene(number: int, rng: np.random.Generator) -> Scene:
    """Return a held-out scene, with one object for odd numbers and two for even numbers."""
    return sample_scene(rng, things=2 - number % 2, held_out=True)


def _row(id: str, topic: str, scene: Scene, **columns: Any) -> dict[str, Any]:
    """Return a manifest row without the columns that are None; `topic` and `objects` are carried into the dataset."""
    said = {name: value for name, value in columns.items() if value is not None}
    return {"id": id, "prompt": describe(scene), **said, "topic": topic, "objects": len(scene.things)}


def _txt2img(id: str, number: int, rng: np.random.Generator) -> Example:
    """Return a txt2img request, for some numbers with a negative prompt that names all but sizes and places, and so stresses these.

    Guidance makes a caricature of an attribute that the negative prompt names otherwise than the prompt: with another shape, half
    the pictures are wrong. So the negative prompt repeats the prompt's own words.
    """
    scene = _scene(number, rng)
    negative = describe(without(scene, "size", "place")) if number in NEGATIVE else None
    seed = 1234 if number == 2 else None
    scheduler = "euler_a" if number > 4 else None
    return Example(_row(id, "new scene", scene, negative_prompt=negative, seed=seed, scheduler=scheduler))


def _canny(id: str, number: int, rng: np.random.Generator) -> Example:
    """Return a canny request: the first four come with the edges, the others with a picture whose edges promptmill has to find."""
    scene = _scene(number, rng)
    picture = draw([scene], rng).pixels[0]
    if number > 4:
        path = f"images/{id}-picture.png"
        control = {"type": "canny", "image": path, "preprocess": "canny"}
        return Example(_row(id, "edges found in a picture", scene, controls=[control]), {path: picture})
    path = f"images/{id}-edges.png"
    return Example(_row(id, "edges given", scene, controls=[{"type": "canny", "image": path}]), {path: canny(picture)})


def _seg(id: str, number: int, rng: np.random.Generator) -> Example:
    scene = _scene(number, rng)
    path = f"images/{id}-segments.png"
    segments = segmentation(draw([scene], rng).labels[0])
    return Example(_row(id, "segmentation given", scene, controls=[{"type": "seg", "image": path}]), {path: segments})


def _canny_and_seg(id: str, number: int, rng: np.random.Generator) -> Example:
    scene = _scene(number, rng)
    drawn = draw([scene], rng)
    maps = {f"images/{id}-edges.png": canny(drawn.pixels[0]), f"images/{id}-segments.png": segmentation(drawn.labels[0])}
    controls = [{"type": kind, "image": path, "scale": SHARED} for kind, path in zip(("canny", "seg"), maps, strict=True)]
    return Example(_row(id, "edges and segmentation given", scene, controls=controls), maps)


def _img2img(id: str, number: int, rng: np.random.Generator) -> Example:
    """Return an img2img request for another colour of the first object."""
    source, wanted = _pair(number, rng, recolored)
    path = f"images/{id}-init.png"
    return Example(_row(id, "recolour", wanted, init_image=path, strength=IMG2IMG), {path: draw([source], rng).pixels[0]})


def _inpaint(id: str, number: int, rng: np.random.Generator) -> Example:
    """Return an inpainting request for another object in place of the first."""
    source, wanted = _pair(number, rng, replaced)
    images = {f"images/{id}-init.png": draw([source], rng).pixels[0], f"images/{id}-mask.png": _mask(source)}
    init, mask = images
    return Example(_row(id, "replace", wanted, init_image=init, mask_image=mask, strength=INPAINT), images)


def _canny_img2img(id: str, number: int, rng: np.random.Generator) -> Example:
    """Return an img2img request for another colour of the first object, inside that object's own edges."""
    source, wanted = _pair(number, rng, recolored)
    path = f"images/{id}-init.png"
    control = {"type": "canny", "image": path, "preprocess": "canny"}
    row = _row(id, "recolour within edges", wanted, init_image=path, strength=GUIDED, controls=[control])
    return Example(row, {path: draw([source], rng).pixels[0]})


def _seg_inpaint(id: str, number: int, rng: np.random.Generator) -> Example:
    """Return an inpainting request for another object in place of the first, with its place and size by a segmentation map."""
    source, wanted = _pair(number, rng, replaced)
    # Drawn alike, so that all but the first object agree to the pixel.
    jitter = int(rng.integers(2**32))
    before, after = (draw([scene], np.random.default_rng(jitter)) for scene in (source, wanted))
    init, mask, segments = (f"images/{id}-{what}.png" for what in ("init", "mask", "segments"))
    images = {init: before.pixels[0], mask: _mask(source), segments: segmentation(after.labels[0])}
    control = {"type": "seg", "image": segments}
    row = _row(id, "replace by segmentation", wanted, init_image=init, mask_image=mask, strength=INPAINT, controls=[control])
    return Example(row, images)


def _pair(number: int, rng: np.random.Generator, change: Callable[[Scene, np.random.Generator], Scene]) -> tuple[Scene, Scene]:
    """Return a source scene and the wanted scene; both are held out."""
    while True:
        source = _scene(number, rng)
        wanted = change(source, rng)
        if is_held_out(wanted):
            return source, wanted


def _mask(scene: Scene) -> np.ndarray:
    """Return a mask, (64, 64) uint8, white around the first object."""
    return mask_around(scene.things[0].place or "center")


def write(folder: Path = FOLDER) -> list[Example]:
    """Write requests.jsonl and its images/*.png; other files in the folder are left alone."""
    written = list(examples())
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for example in written:
        for path, pixels in example.images.items():
            Image.fromarray(pixels).save(folder / path, optimize=True)
    (folder / REQUESTS).write_text("".join(json.dumps(example.row) + "\n" for example in written))
    return written


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=FOLDER, show_default="configs/presets/quickstart")
def main(out: Path) -> None:
    """Write the quickstart's requests and images."""
    written = write(out)
    click.echo(f"{len(written)} requests, {sum(len(e.images) for e in written)} images in {out}")


if __name__ == "__main__":
    main()
