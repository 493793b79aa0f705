"""Draws pictures, and writes a manifest whose rows take their edges as control maps.

    python examples/controlnet-training/make_manifest.py FOLDER [--rows 40]

The same arguments write the same files.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from promptmill.embedded.pictures import draw
from promptmill.embedded.world import describe, sample_scene


def main() -> None:
    """Write the pictures and the manifest that the command line asks for."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("folder", type=Path, help="the folder to write rows.jsonl and pictures/ into")
    asked.add_argument("--rows", type=int, default=40, help="how many pictures")
    given = asked.parse_args()
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(given.rows)]
    pictures = given.folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (scene, pixels) in enumerate(zip(scenes, draw(scenes, rng).pixels, strict=True)):
        name = f"pictures/{number:04d}.png"
        Image.fromarray(pixels).save(given.folder / name)
        control = {"type": "canny", "image": name, "preprocess": "canny"}
        rows.append({"id": f"row-{number:04d}", "prompt": describe(scene), "controls": [control]})
    (given.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{given.folder}/rows.jsonl: {given.rows} rows")


if __name__ == "__main__":
    main()
