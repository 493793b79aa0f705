"""That a stage makes of a kept image what plain diffusers' img2img makes of it, enlarged, whatever is rendered beside it."""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
from PIL import Image

from promptmill.configs.loading import load
from promptmill.configs.stages import Hires
from promptmill.pipelines.rendering.calls import constant_of
from promptmill.pipelines.rendering.stages import Stages
from promptmill.pipelines.work.passes import Course, Staged
from promptmill.pipelines.work.stages import staged
from promptmill.pipelines.work.units import Placed, Unit, candidate_seed
from tests.pipelines.engines import BATCH
from tests.pipelines.plain import CANNY, JOB_SEED, render_plain, request

WHOLE = Hires(kind="hires", scale=1.5, strength=0.7)
TILED = Hires(kind="hires", scale=2, strength=0.7, steps=4, scheduler="euler", tile=64, overlap=16, control={"type": "seg"})
PICTURE = np.random.default_rng(5).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def stages(folder, engine):
    """The stages of a config with the tiny Stable Diffusion."""
    config = load("embedded", ["manifest=x", "stages=[{kind: hires}]"])
    return Stages(engine, config.model_copy(update={"model": config.model.model_copy(update={"base": str(folder / "sd")})}))


def rendered(stages, stage, rows, pictures):
    """The candidates of a stage by row and index; pictures by row and index."""
    kept = {row: tuple(sorted(index for at, index in pictures if at == row)) for row in rows}
    unit = Unit(0, 0, tuple(Placed(row, one) for row, one in rows.items()), course=Course((), {}, staged=Staged(0, stage, kept)))
    outcomes = stages.render(unit, pictures).outcomes
    assert all(outcome.failure is None for outcome in outcomes)
    return {(outcome.row, one.index): one for outcome in outcomes for one in outcome.candidates}


def by_plain_diffusers(row, index, stage, folder, tmp_path):
    """The image of a stage as diffusers makes it, tile by tile."""
    ((one, tiles),) = staged(row, [stage])
    large = Image.fromarray(PICTURE).resize((tiles.width, tiles.height), Image.Resampling.LANCZOS)
    made = []
    for part, (left, top) in enumerate(tiles.places):
        name = tmp_path / f"{part}.png"
        large.crop((left, top, left + tiles.tile[0], top + tiles.tile[1])).save(name)
        controls = []
        for number, control in enumerate(one.controls):
            image = large if control.image == one.init_image else Image.open(folder / control.image).convert("RGB")
            image = image.resize(large.size, Image.Resampling.LANCZOS)
            image.crop((left, top, left + tiles.tile[0], top + tiles.tile[1])).save(tmp_path / f"{part}-{number}.png")
            controls.append(control.model_copy(update={"image": str(tmp_path / f"{part}-{number}.png")}))
        seed = (candidate_seed(JOB_SEED, row, index) + part) % 2**32
        alone = replace(one, init_image=str(name), controls=tuple(controls), seed=seed)
        nets = {kind: folder / kind for kind in ("canny", "seg")}
        made.append(render_plain(alone, BATCH, folder / "sd", nets, folder)[0])
    return tiles.joined(made)


@pytest.mark.parametrize(
    ("stage", "values"),
    [(WHOLE, {}), (TILED, {}), (WHOLE, {"controls": (CANNY,), "mode": "controlnet"})],
    ids=["whole", "tiled, by a ControlNet that reads the picture", "whole, with the row's control"],
)
def test_a_stage_makes_what_plain_diffusers_makes_of_the_enlarged_picture(stages, folder, tmp_path, stage, values):
    row = request(steps=5, seed=11, negative_prompt="blue", **values)
    assert isinstance(stages._engine.model.base, diffusers.StableDiffusionPipeline)
    made = rendered(stages, stage, {0: row}, {(0, 2): PICTURE})[0, 2]
    assert made.failure is None and made.seed == candidate_seed(JOB_SEED, row, 2)
    assert np.array_equal(made.pixels, by_plain_diffusers(row, 2, stage, folder, tmp_path))


def test_companions_and_their_order_never_matter_to_a_stage(stages):
    rows = {3: request("a", steps=4), 5: request("b", steps=6, prompt="a large blue square", guidance_scale=1.0), 7: request("c")}
    pictures = {(row, index): np.roll(PICTURE, 7 * row + index, 0) for row in rows for index in (0, 4)}
    together = rendered(stages, TILED, rows, pictures)
    for row in rows:
        alone = rendered(stages, TILED, {row: rows[row]}, {at: one for at, one in pictures.items() if at[0] == row})
        for at, made in alone.items():
            assert np.array_equal(made.pixels, together[at].pixels) and made.evaluations == together[at].evaluations
    backwards = rendered(stages, TILED, dict(reversed(rows.items())), dict(reversed(pictures.items())))
    assert all(np.array_equal(made.pixels, together[at].pixels) for at, made in backwards.items())


def test_a_stages_price_is_that_of_its_tiles(stages):
    row = request(steps=5)
    ((one, tiles),) = staged(row, [TILED])
    made = rendered(stages, TILED, {0: row}, {(0, 0): PICTURE})[0, 0]
    assert made.evaluations == len(tiles.places) * 2 * int(one.steps * one.strength) == 9 * 2 * 2


def test_a_picture_of_one_colour_fails_as_any_image_and_a_tile_of_one_colour_is_none(stages, monkeypatch):
    assert constant_of(np.full((8, 8, 3), 9, np.uint8)).code == "constant_image"
    monkeypatch.setattr("promptmill.pipelines.rendering.stages.constant_of", lambda pixels: constant_of(pixels * 0))
    failed = rendered(stages, WHOLE, {0: request()}, {(0, 0): PICTURE})[0, 0]
    assert (failed.failure.code, failed.pixels) == ("constant_image", None) and failed.evaluations == 2 * 2
