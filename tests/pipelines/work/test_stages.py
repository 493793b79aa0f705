"""That tiles cover a picture and join to it again, and what stages ask for and cost."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.configs.parameters import Control
from promptmill.configs.stages import Detail, Hires, Upscale
from promptmill.manifests.rules import Repainting, Rules
from promptmill.pipelines.work.evaluations import STABLE_DIFFUSION, evaluations
from promptmill.pipelines.work.stages import StageRules, Tiling, size_after, staged, staged_price, tiling
from tests.pipelines.plain import CANNY, request


def hires(**values):
    return Hires(kind="hires", **values)


DETAIL = Detail(kind="detail", detector={"source": "./detector"})


def upscale(**values):
    return Upscale(kind="upscale", source="./net.safetensors", **values)


@given(
    width=st.integers(1, 200), height=st.integers(1, 200), tile=st.integers(8, 120), share=st.floats(0, 0.5), seed=st.integers(0, 9)
)
def test_tiles_of_one_size_cover_a_picture_overlap_and_join_to_it_again(width, height, tile, share, seed):
    overlap = int(tile * share)
    tiles = Tiling(width, height, (min(tile, width), min(tile, height)), overlap)
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    cropped = [tiles.cropped(picture, number) for number in range(len(tiles.places))]
    assert {one.shape[1::-1] for one in cropped} == {tiles.tile}
    assert np.array_equal(tiles.joined(cropped), picture)
    for side, length in ((0, tiles.tile[0]), (1, tiles.tile[1])):
        starts = sorted({place[side] for place in tiles.places})
        assert starts[0] == 0 and starts[-1] + length == (width, height)[side]
        gaps = [later - earlier for earlier, later in pairwise(starts)]
        assert all(0 < gap <= length - overlap for gap in gaps)


def test_neighbouring_tiles_fade_into_each_other_without_a_step():
    tiles = Tiling(96, 8, (64, 8), 32)
    assert tiles.places == ((0, 0), (32, 0))
    black, white = np.zeros((8, 64, 3), np.uint8), np.full((8, 64, 3), 255, np.uint8)
    line = tiles.joined([black, white])[4, :, 0].astype(int)
    assert (line[:32] == 0).all() and (line[64:] == 255).all()
    steps = np.diff(line[32:64])
    assert steps.min() >= 0 and steps.max() <= 20  # of 255, over 32 pixels


@pytest.mark.parametrize(
    ("stages", "size"),
    [
        ([hires()], (128, 96)),
        ([hires(scale=1.5)], (96, 72)),
        ([hires(scale=1.6)], (104, 80)),  # the nearest multiples of 8
        ([hires(), hires(scale=1.5)], (192, 144)),
    ],
)
def test_sizes_after_stages_are_multiples_of_what_the_model_needs(stages, size):
    assert size_after(request(width=64, height=48), stages) == size
    assert all(side % 16 == 0 for side in size_after(request(width=64, height=48), stages, 16))


def test_a_stage_renders_the_row_from_its_picture_and_what_the_stage_says_is_the_stages():
    row = request(
        width=64, height=64, steps=10, controls=(CANNY,), mask_image="m.png", init_image="a.png", mode="controlnet_inpaint"
    )
    stage = hires(
        scale=2, strength=0.5, steps=4, guidance_scale=2, scheduler="euler", tile=64, control={"type": "tile", "scale": 0.7}
    )
    (share,) = staged(row, [stage])
    one = share.request
    assert (one.mode, one.mask_image, one.strength, one.steps) == ("controlnet_img2img", None, 0.5, 4)
    assert (one.guidance_scale, one.scheduler, one.width, one.height) == (2, "euler", 64, 64)
    assert one.controls == (CANNY, Control(type="tile", image=one.init_image, scale=0.7))
    assert (one.prompt, one.seed, one.loras, one.references) == (row.prompt, row.seed, row.loras, row.references)
    assert (share.times, share.size) == (9, (128, 128))
    (share,) = staged(request(steps=10), [hires()])
    assert (share.request.mode, share.request.steps, share.request.guidance_scale, share.times) == ("img2img", 10, 4.0, 1)


def test_a_detail_is_rendered_by_inpainting_at_the_rows_size_and_an_upscaler_renders_nothing():
    row = request(width=64, height=48, controls=(CANNY,), mode="controlnet", prompt="a man")
    detail = Detail(kind="detail", detector={"source": "./detector"}, prompt="a face", steps=9, strength=0.3)
    enlarged, found = staged(row, [upscale(scale=4), detail])
    assert (enlarged.request, enlarged.times, enlarged.size) == (None, 0, (256, 192))
    one = found.request
    assert (one.mode, one.controls, one.prompt, one.negative_prompt) == ("inpaint", (), "a face", row.negative_prompt)
    assert (one.width, one.height, one.steps, one.strength, found.times, found.size) == (64, 48, 9, 0.3, 1, (256, 192))
    assert staged_price(row, [upscale(scale=4)], STABLE_DIFFUSION) == (0, 0)
    assert staged_price(row, [upscale(scale=4), detail], STABLE_DIFFUSION) == (4, 4)


def test_a_tile_larger_than_the_picture_is_the_picture():
    assert tiling((96, 40), hires(tile=64, overlap=8)).tile == (64, 40)
    assert tiling((48, 40), hires(tile=64, overlap=8)).places == ((0, 0),)


def test_the_price_is_that_of_all_tiles_of_all_kept_images_in_all_stages():
    row, stages = request(keep=2, candidates=5, steps=10), [hires(tile=64, overlap=16), hires(scale=1, strength=1)]
    tiled, whole = (share.request for share in staged(row, stages))
    evaluated = 2 * 9 * evaluations(tiled, STABLE_DIFFUSION), 2 * evaluations(whole, STABLE_DIFFUSION)
    assert evaluated == (2 * 9 * 2 * 4, 2 * 2 * 10)
    assert staged_price(row, stages, STABLE_DIFFUSION) == (sum(evaluated), evaluated[0] + 4 * evaluated[1])
    assert staged_price(row, [], STABLE_DIFFUSION) == (0, 0)


@pytest.mark.parametrize(
    ("stage", "rules", "problem"),
    [
        ({"scale": 8}, {}, None),
        ({"scale": 8}, {"wide": 2048}, "stages.0.scale: makes 16384 x 512 pixels, and no side may have more than 8,192"),
        (
            {},
            {"modes": ("txt2img",)},
            "stages.0.kind: renders in mode img2img, which the model does not serve; it serves txt2img",
        ),
        (
            {},
            {"ignored": ("strength",)},
            "stages.0.kind: renders from a picture at a strength, and the model takes no strength",
        ),
        (
            {"scheduler": "euler"},
            {"schedulers": ("ddim",)},
            "stages.0.scheduler: euler does not fit the model, which takes ddim",
        ),
        ({"scheduler": "lcm"}, {"unfit": {"lcm": "does not go with it"}}, "stages.0.scheduler: does not go with it"),
        ({"strength": 0.3}, {}, "stages.0.strength: 0.3 of 3 steps is less than one step; raise one of them"),
        ({"steps": 4, "strength": 0.3}, {}, None),
        ({"tile": 72, "overlap": 8}, {"multiple": 16}, "stages.0.tile: 72 is not a multiple of 16, which the model needs"),
        (
            {},
            {"most_pixels": 64 * 64},
            "stages.0.scale: width × height: 16,384 pixels are more than the 4,096 that the model has places for",
        ),
        ({"tile": 64, "overlap": 8}, {"most_pixels": 64 * 64}, None),
        ({}, {"cannot_take": lambda *_: "no such schedule"}, "stages.0.steps: no such schedule"),
    ],
)
def test_what_a_stage_cannot_do_with_a_row_is_said_before_anything_renders(stage, rules, problem):
    rules = dict(rules)
    row = request(width=rules.pop("wide", 64))
    made = Rules(SimpleNamespace(), **rules)
    assert StageRules((hires(**stage),))(row, made) == ([problem] if problem else [])


@pytest.mark.parametrize(
    ("stage", "rules", "problem"),
    [
        (upscale(scale=8), {}, None),
        (upscale(scale=8), {"wide": 2048}, "stages.0.scale: makes 16384 x 512 pixels, and no side may have more than 8,192"),
        (upscale(scale=2), {"modes": ("txt2img",), "ignored": ("strength",)}, None),
        (DETAIL, {}, None),
        (
            DETAIL,
            {"modes": ("txt2img", "img2img")},
            "stages.0.kind: renders in mode inpaint, which the model does not serve; it serves txt2img, img2img",
        ),
        (DETAIL, {"ignored": ("strength",), "repainting": Repainting(strength=True)}, None),
        (
            DETAIL,
            {"repainting": Repainting(schedulers=("euler",))},
            "stages.0.scheduler: ddim does not fit the model, which takes euler",
        ),
    ],
)
def test_what_upscalers_and_details_cannot_do_is_said_too(stage, rules, problem):
    rules = dict(rules)
    row = request(width=rules.pop("wide", 64))
    assert StageRules((stage,))(row, Rules(SimpleNamespace(), **rules)) == ([problem] if problem else [])
