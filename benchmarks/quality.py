"""Measures the gain of ranking by CLIP, by the oracle: how many of all candidates are right, and how many of those kept.

    python -m benchmarks.quality --requests 200 --candidates 4 --steps 4

Runs the real job over scenes that training never saw, at so few steps that the family is often wrong, keeping every candidate so
that all can be judged; the one of rank 0 is what a run that keeps one would have kept. Right means right in every attribute. The
intervals are 95%, bootstrapped over requests, since the candidates of one request are not independent.
"""

import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from promptmill.embedded.evaluate import scenes_for
from promptmill.embedded.oracle import is_right
from promptmill.embedded.world import describe, parse
from promptmill.shards.tars import read_tar

SEED = 31


def judged(out: Path) -> list[list[bool]]:
    """Return, for each request, whether its candidates are right, the best ranked first."""
    rows = pq.read_table(out / "metadata").select(["key", "id", "rank", "prompt", "status"]).to_pylist()
    images = {
        sample.key: sample.files["png"] for tar in sorted((out / "data").glob("*.tar")) for sample in read_tar(tar.read_bytes())
    }
    found: dict[str, dict[int, bool]] = {}
    for row in rows:
        if row["status"] == "kept":
            pixels = np.array(Image.open(io.BytesIO(images[row["key"]])))
            found.setdefault(row["id"], {})[row["rank"]] = bool(is_right(parse(row["prompt"]), pixels))
    return [[verdicts[rank] for rank in sorted(verdicts)] for verdicts in found.values()]


def interval(values: np.ndarray) -> str:
    """Return the mean and its bootstrapped 95% interval, in percent."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (2000, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{100 * values.mean():5.1f}%  ({100 * low:.1f}% – {100 * high:.1f}%)"


@click.command()
@click.option("--requests", default=200, show_default=True)
@click.option("--candidates", default=4, show_default=True)
@click.option("--steps", default=4, show_default=True)
def main(requests: int, candidates: int, steps: int) -> None:
    """Measure the gain of ranking."""
    scenes, _ = scenes_for(SEED, requests)
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "manifest.jsonl"
        manifest.write_text("".join(json.dumps({"id": str(i), "prompt": describe(s)}) + "\n" for i, s in enumerate(scenes)))
        settings = {
            "manifest": manifest,
            "shards.size": 100,
            "defaults.steps": steps,
            "defaults.candidates": candidates,
            "defaults.keep": candidates,
        }
        options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        out = Path(folder) / "out"
        subprocess.run(
            [sys.executable, "-m", "promptmill", "run", "embedded", "--out", str(out), *options],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        verdicts = judged(out)
    table = np.array([v for v in verdicts if len(v) == candidates], float)
    click.echo(f"{len(table)} requests of {candidates} candidates, {steps} steps; right by the oracle, with 95% intervals:")
    click.echo(f"  all candidates   {interval(table.mean(1))}")
    click.echo(f"  kept by CLIP     {interval(table[:, 0])}")
    click.echo(f"  any of them      {interval(table.max(1))}  (what a perfect judge could keep)")
    click.echo(f"  kept less all    {interval(table[:, 0] - table.mean(1))}")
    if table[:, 0].mean() <= table.mean():
        sys.exit("ranking did not help")


if __name__ == "__main__":
    main()
