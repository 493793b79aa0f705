"""Writes a manifest of layouts: each row holds a drawing as SVG, which says where things lie, and a prompt, which does not.

    python examples/layouts-as-code/make_manifest.py FILE [--rows 50]

The same arguments write the same rows.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from promptmill.embedded.pictures import CENTERS, CROSS_ARM, HALF_EXTENT, SEGMENT_RGB
from promptmill.embedded.world import SHAPES, Thing, describe, sample_scene, without


def drawing(things: tuple[Thing, ...]) -> str:
    """Return a layout as SVG, 1 by 1, in the colours in which the ControlNet knows shapes, on black."""
    drawn = "".join(shape_of(thing) for thing in things)
    ground = '<rect width="1" height="1" fill="#000000"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1" shape-rendering="crispEdges">{ground}{drawn}</svg>'


def shape_of(thing: Thing) -> str:
    """Return the element of SVG for a thing, whose size and place are said."""
    left, top, width, height = box_of(thing)
    x, y, half = left + width / 2, top + height / 2, width / 2
    red, green, blue = SEGMENT_RGB[1 + SHAPES.index(thing.shape)].tolist()
    fill = f'fill="#{red:02x}{green:02x}{blue:02x}"'
    match thing.shape:
        case "circle":
            return f'<circle cx="{x}" cy="{y}" r="{half}" {fill}/>'
        case "square":
            return f'<rect x="{left}" y="{top}" width="{width}" height="{height}" {fill}/>'
        case "triangle":
            return f'<path d="M{x} {top} L{left + width} {top + height} L{left} {top + height} Z" {fill}/>'
        case _:
            arm = half * CROSS_ARM
            return (
                f'<rect x="{x - half}" y="{y - arm}" width="{width}" height="{2 * arm}" {fill}/>'
                f'<rect x="{x - arm}" y="{y - half}" width="{2 * arm}" height="{height}" {fill}/>'
            )


def box_of(thing: Thing) -> tuple[float, float, float, float]:
    """Return the left, top, width and height of a thing's box, as shares of the picture."""
    assert thing.place is not None and thing.size is not None, "a layout says every place and size"
    (x, y), half = CENTERS[thing.place], HALF_EXTENT[thing.size]
    return round(x - half, 4), round(y - half, 4), round(2 * half, 4), round(2 * half, 4)


def rows(number: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a manifest. Labels, boxes and the whole description are no columns of promptmill, and are carried along."""
    rng = np.random.default_rng(0)
    for row in range(number):
        scene = sample_scene(rng, held_out=True)
        yield {
            "id": f"layout-{row:04d}",
            "prompt": describe(without(scene, "size", "place")),
            "controls": [{"type": "seg", "image": drawing(scene.things)}],
            "labels": [thing.shape for thing in scene.things],
            "boxes": [list(box_of(thing)) for thing in scene.things],
            "wanted": describe(scene),
        }


def main() -> None:
    """Write the manifest that the command line asks for."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("file", type=Path, help="the file to write, as .jsonl")
    asked.add_argument("--rows", type=int, default=50, help="how many layouts")
    given = asked.parse_args()
    given.file.parent.mkdir(parents=True, exist_ok=True)
    given.file.write_text("".join(json.dumps(row) + "\n" for row in rows(given.rows)), encoding="utf-8")
    print(f"{given.file}: {given.rows} layouts")


if __name__ == "__main__":
    main()
