"""Several pictures in a row, for the editors that take several: equal to plain diffusers, and free of companions."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from promptmill.configs.parameters import Reference
from promptmill.manifests.images import Roots, elongation
from promptmill.pipelines.rendering.conditioning import LEAST_SIDE, further, prepare
from promptmill.pipelines.rendering.engine import Engine
from tests.pipelines.companions import latents, the_same_latents_whatever_the_companions
from tests.pipelines.engines import BATCH, model_of, pixels, render
from tests.pipelines.every_tiny import TINY
from tests.pipelines.plain import JOB_SEED, request
from tests.pipelines.plain_calls import render_family
from tests.pipelines.plain_families import FAMILIES
from tests.pipelines.tiny_readers import small_inputs

NAMES = [name for name, plain in FAMILIES.items() if plain.pictures > 1 and not name.endswith("distilled")]
SIZES = {"wide": (128, 64), "tall": (64, 128), "large": (300, 200)}  # the first two stay as they are beside 64 x 64 images


@pytest.fixture(scope="module", autouse=True)
def inputs_are_small():
    with small_inputs():
        yield


@pytest.fixture(scope="module", autouse=True)
def painted(folder):
    rng = np.random.default_rng(5)
    for name, (width, height) in SIZES.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{name}.png")


@pytest.fixture(scope="module")
def engines(folder):
    """Returns the engine of a family by its name, and the folder of its model."""

    @cache
    def engine(name):
        base = TINY[name](folder / f"several-{name}")
        return Engine(model_of(folder, base=str(base), controlnets={}), JOB_SEED, Roots((str(folder),))), base

    return engine


def pictured(id, init, *others, **values):
    """A request with an init image, or without one, and with further pictures."""
    asked = {"mode": "img2img" if init else "txt2img", "init_image": init, "scheduler": "euler", "candidates": 1, **values}
    return request(id, references=tuple(Reference(type="image", image=f"{one}.png") for one in others), **asked)


def worded(name, some):
    """Requests with their prompts as the family's pipelines take prompts."""
    return [replace(one, prompt=FAMILIES[name].prompt(one.prompt)) for one in some]


def mixed(name):
    """Requests with one, two and three pictures, whose sizes differ where the numbers of their pixels do not."""
    some = [
        pictured("one", "a.png", steps=3),
        pictured("two", "a.png", "b", steps=2, candidates=2, prompt="a large blue square"),
        pictured("two-turned", "b.png", "a", steps=2, prompt="a large blue square"),
        pictured("wide", "a.png", "wide", steps=3),
        pictured("tall", "a.png", "tall", steps=3),
        pictured("three", "a.png", "wide", "tall", steps=2, guidance_scale=1.0),
        pictured("three-turned", "a.png", "tall", "wide", steps=3),
    ]
    if "txt2img" in FAMILIES[name].pipelines:
        some += [
            pictured("none", None, steps=2),
            pictured("alone", None, "wide", steps=2),
            pictured("both", None, "tall", "a", steps=3, candidates=2),
        ]
    return worded(name, some)


@pytest.mark.parametrize("name", NAMES)
def test_images_of_several_pictures_are_those_of_plain_diffusers(engines, folder, name):
    engine, base = engines(name)
    plain, some = FAMILIES[name], mixed(name)
    made = [pixels(outcome) for outcome in render(engine, *some)]
    for one, mine in zip(some, made, strict=True):
        theirs, _ = render_family(plain, one, plain.fills(one, BATCH), base, folder, BATCH)
        np.testing.assert_array_equal(mine, theirs[: one.candidates], err_msg=one.id)


@pytest.mark.parametrize("name", NAMES)
def test_in_bf16_and_at_sizes_that_are_no_squares_they_are_too(engines, folder, name):
    _, base = engines(name)
    # As large as the images: the init image is not cropped, and no picture is scaled.
    some = [pictured(f"r{n}", "wide.png", *others, steps=2, width=128) for n, others in enumerate((["tall"], ["wide", "tall"]))]
    some = worded(name, some)
    engine = Engine(model_of(folder, base=str(base), controlnets={}, dtype="bfloat16"), JOB_SEED, Roots((str(folder),)))
    plain = FAMILIES[name]
    for one, outcome in zip(some, render(engine, *some), strict=True):
        theirs, _ = render_family(plain, one, plain.fills(one, BATCH), base, folder, BATCH, torch.bfloat16)
        np.testing.assert_array_equal(pixels(outcome), theirs[:1], err_msg=one.id)
    engine.close()


@pytest.mark.parametrize("name", NAMES)
def test_companions_with_other_numbers_of_pictures_never_matter(engines, name):
    engine, _ = engines(name)
    some = mixed(name)
    with latents(engine) as together:
        outcomes = render(engine, *some)
    the_same_latents_whatever_the_companions(engine, some, outcomes, together)


@pytest.mark.parametrize("name", NAMES)
def test_every_picture_counts_and_so_does_their_order(engines, name):
    engine, _ = engines(name)
    ways = [(), ("b",), ("wide",), ("b", "wide"), ("wide", "b")]
    some = [pictured(f"r{number}", "a.png", *others, seed=1, steps=2) for number, others in enumerate(ways)]
    with latents(engine) as made:
        assert all(outcome.failure is None for outcome in render(engine, *worded(name, some)))
    assert len(set(made)) == len(ways)


@pytest.mark.parametrize("name", ["flux2-klein", "qwen-image-edit-plus"])
def test_rows_with_as_many_pictures_stand_together_and_fill_batches(engines, name):
    engine, _ = engines(name)
    some = [pictured(f"r{n}", "a.png", *["b", "a", "b"][: n % 4], steps=2 + n % 3) for n in range(24)]
    engine.path.denoiser.calls = engine.path.denoiser.rows = 0
    assert all(outcome.failure is None for outcome in render(engine, *some))
    assert engine.path.share > 0.97


def test_a_further_picture_keeps_its_aspect_and_has_about_the_pixels_of_the_images(engines, folder):
    engine, base = engines("flux2-klein")
    one = pictured("large", "a.png", "large", width=128, height=128, init_image=None, mode="txt2img")
    (mine,) = pixels(render(engine, one)[0])
    scaled = folder / "scaled.png"
    Image.fromarray(prepare(Image.open(folder / "large.png"), 156, 105)).save(scaled)
    theirs, _ = render_family(
        FAMILIES["flux2-klein"], replace(one, references=(Reference(type="image", image=scaled.name),)), BATCH, base, folder, BATCH
    )
    np.testing.assert_array_equal(mine, theirs[0])


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (3000, 2000), (2000, 3001), (800, 100), (101, 800), (40, 40), (1023, 1024)])
@pytest.mark.parametrize("pixels", [64 * 64, 128 * 64, 1024 * 1024, 1344 * 768])
def test_sizes_of_further_pictures_are_what_every_pipeline_takes(size, pixels):
    height, width, _ = further(Image.new("RGB", size), pixels).shape
    assert min(width, height) >= LEAST_SIDE and max(width, height) <= 8 * min(width, height)
    if min(width, height) > LEAST_SIDE:
        assert abs(width * height / pixels - 1) < 0.02
        assert abs(width / height / (size[0] / size[1]) - 1) < 0.02
    assert (width > height) == (size[0] > size[1]) or width == height


def test_a_picture_that_is_too_elongated_is_named():
    assert not elongation((800, 100)) and not elongation((100, 800))
    assert elongation((801, 100)) == "801×100 pixels: one side is more than 8 times the other; crop the picture"


def test_a_further_picture_that_cannot_be_used_fails_its_own_row(engines, folder):
    Image.new("RGB", (900, 100), "red").save(folder / "long.png")
    engine, _ = engines("qwen-image-edit-plus")
    some = [pictured(name, "a.png", name, steps=2) for name in ("b", "long", "cut", "gone")]
    fine, *wrong = render(engine, *some)
    assert pixels(fine) and [outcome.failure.code for outcome in wrong] == ["bad_image"] * 3
    assert wrong[0].failure.message == f"references.0.image: {elongation((900, 100))}"
    assert all(outcome.failure.message.startswith("references.0.image: ") for outcome in wrong)
