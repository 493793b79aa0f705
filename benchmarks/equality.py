"""Compares the slot engine's bits with those of diffusers' own pipelines: every allowed scheduler, mode and dtype, on three models.

    python -m benchmarks.equality                  # all; prints a table and writes docs/equality.md
    python -m benchmarks.equality --model sd       # one model, written nowhere

Each case renders one request, a batch full of candidates, with negative prompt and guidance, by `pipelines.rendering.engine` and by
diffusers' pipeline class for its mode at the same batch size, and compares the images value by value. Models: Stable Diffusion and
SDXL with random weights, and the embedded family.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch

from promptmill.configs.model import Model
from promptmill.configs.schedulers import SCHEDULERS
from promptmill.configs.weights import Weights
from promptmill.manifests.images import Roots
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.work.units import Placed, Unit
from tests.pipelines import tiny
from tests.pipelines.plain import JOB_SEED, MODES, paint, render_plain, request

BATCH = 2
STEPS = 4
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EMBEDDED = Path(__file__).parents[1] / "embedded" / "weights"


def prepare(folder: Path) -> dict[str, tuple[Path, dict[str, Path], str]]:
    """Return, by model, its folder, its ControlNets, and what its pipeline classes' names begin with."""
    paint(folder)
    tiny.stable_diffusion(folder / "sd")
    tiny.sdxl(folder / "sdxl")
    own = {name: tiny.controlnet(folder / name, seed=seed) for name, seed in (("canny", 3), ("seg", 4))}
    large = {name: tiny.controlnet(folder / f"xl-{name}", seed=seed, **tiny.SDXL_UNET) for name, seed in (("canny", 3), ("seg", 4))}
    shipped = {name: EMBEDDED / f"controlnet-{name}" for name in ("canny", "seg")}
    return {
        "sd": (folder / "sd", own, "StableDiffusion"),
        "sdxl": (folder / "sdxl", large, "StableDiffusionXL"),
        "embedded": (EMBEDDED / "pipeline", shipped, "StableDiffusion"),
    }


def cases(base: Path, nets: dict[str, Path], family: str, dtype: str, folder: Path) -> Iterator[tuple[str, str, int, int]]:
    """Yield mode and scheduler of each case, how many values differ, and by how many levels of 255 at most."""
    sources = {name: Weights(source=str(net)) for name, net in nets.items()}
    model = Model(base=str(base), batch=BATCH, controlnets=sources, dtype=dtype)  # type: ignore[arg-type]
    engine = Engine(model, JOB_SEED, Roots((str(folder),)))
    for mode, values in MODES.items():
        for scheduler in SCHEDULERS:
            said = {"mode": mode, **values, "steps": STEPS, "scheduler": scheduler, "candidates": BATCH, "negative_prompt": "blue"}
            wanted = request(**said)
            (outcome,) = engine.render(Unit(0, 0, (Placed(0, wanted),))).outcomes
            if outcome.failure or any(c.pixels is None for c in outcome.candidates):
                yield mode, scheduler, -1, -1
                continue
            mine = np.stack([c.pixels for c in outcome.candidates if c.pixels is not None])
            theirs = render_plain(wanted, BATCH, base, nets, folder, DTYPES[dtype], family)
            different = np.abs(mine.astype(int) - theirs)
            yield mode, scheduler, int((different > 0).sum()), int(different.max())


@click.command()
@click.option("--model", "only", type=click.Choice(["sd", "sdxl", "embedded"]))
@click.option("--write", type=click.Path(path_type=Path), default=Path("docs/equality.md"), show_default=True)
def main(only: str | None, write: Path) -> None:
    """Compare the engine with diffusers."""
    torch.set_num_threads(1)
    lines = ["| model | dtype | mode | bit-equal schedulers | different |", "|---|---|---|---:|---|"]
    wrong = total = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model, (base, nets, family) in prepare(folder).items():
            if only and model != only:
                continue
            for dtype in DTYPES:
                found = list(cases(base, nets, family, dtype, folder))
                total += len(found)
                for mode in MODES:
                    of_mode = [one for one in found if one[0] == mode]
                    bad = [f"{scheduler} ({values} values, {most} levels)" for _, scheduler, values, most in of_mode if values]
                    wrong += len(bad)
                    lines.append(f"| {model} | {dtype} | {mode} | {len(of_mode) - len(bad)} of {len(of_mode)} | {', '.join(bad)} |")
                    click.echo(lines[-1])
    verdict = f"{total - wrong} of {total} cases are bit-equal."
    click.echo(verdict)
    if not only:
        version = torch.__version__
        says = "This table says in which cases the slot engine makes the pixels of plain diffusers, bit for bit."
        how = f"made\nthe table, at batch {BATCH}, with {STEPS} steps, one thread and torch {version}."
        how = f"{says} `python -m benchmarks.equality` {how}"
        write.write_text("\n".join(["# The engine against diffusers, bit for bit", "", how, "", verdict, "", *lines]) + "\n")
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
