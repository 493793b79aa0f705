"""Renders a class-balanced set that the config makes (`manifest: {rows, seed, columns}`), and judges it by the oracle.

    python -m benchmarks.balanced                # 300 rows of twelve classes on the embedded family, best of 4

Printed are the planned and the kept images of each class, and how many of the kept ones show what their prompt says.
"""

import collections
import tempfile

import click
import numpy as np

import promptmill
from promptmill.embedded.oracle import is_right
from promptmill.embedded.world import PLACES, SHAPES, SIZES, parse

COLORS, BACKGROUNDS = ("red", "green", "blue"), ("black", "white")


@click.command()
@click.option("--rows", default=300, show_default=True)
@click.option("--candidates", default=4, show_default=True)
@click.option("--steps", default=8, show_default=True)
def main(rows: int, candidates: int, steps: int) -> None:
    """Make, render, count and judge."""
    made = {
        "rows": rows,
        "seed": 3,
        "columns": {
            "color": {"product": COLORS},
            "shape": {"product": SHAPES},
            "label": "{{ color }} {{ shape }}",
            "size": {"choices": SIZES},
            "place": {"choices": PLACES},
            "background": {"choices": BACKGROUNDS},
            "prompt": "a {{ size }} {{ color }} {{ shape }} at the {{ place }} on a {{ background }} background",
        },
    }
    with tempfile.TemporaryDirectory(prefix="promptmill-balanced-") as folder:
        wanted = {"candidates": candidates, "steps": steps}
        dataset = promptmill.render(made, out=f"{folder}/out", progress=False, defaults=wanted)
        labels = dataset.table(["label", "candidate_index"])
        planned = collections.Counter(
            label for label, index in zip(*(labels[name].to_pylist() for name in labels.column_names), strict=True) if index == 0
        )
        kept: collections.Counter[str] = collections.Counter()
        right: collections.Counter[str] = collections.Counter()
        for _, image, row in dataset.images():
            kept[row["label"]] += 1
            right[row["label"]] += is_right(parse(row["prompt"]), np.asarray(image))
    click.echo("| class | rows | kept | as the prompt says |")
    click.echo("|---|---:|---:|---:|")
    for label in sorted(planned):
        click.echo(f"| {label} | {planned[label]} | {kept[label]} | {right[label]} |")
    spread = f"{min(kept.values())} to {max(kept.values())} images a class"
    click.echo(f"\n{kept.total()} images, {spread}; {right.total()} as the prompt says ({right.total() / kept.total():.1%})")


if __name__ == "__main__":
    main()
