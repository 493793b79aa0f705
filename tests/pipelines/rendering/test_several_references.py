"""Several reference images for one adapter, read together or each within its mask; and adapters of full faces."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.image_processor import IPAdapterMaskProcessor
from PIL import Image

from promptmill.configs.parameters import Reference
from promptmill.configs.weights import PartWeights
from promptmill.manifests.images import Roots
from promptmill.pipelines.models.compatibility import check_fits
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.rendering.references import EVERYWHERE, Masks
from tests.pipelines import tiny_adapters
from tests.pipelines.engines import BATCH, model_of, pixels, render
from tests.pipelines.plain import JOB_SEED, MODES, request
from tests.pipelines.plain_calls import asked, loaded, pixels_of
from tests.pipelines.plain_steered import SD, mixed

FILES = {"style": "plain.safetensors", "content": "plus.safetensors", "face": "full.safetensors"}
A, B, C = (Reference(type="style", image=f"{name}.png", scale=0.7) for name in ("a", "b", "wide"))
LEFT, RIGHT, MIDDLE = (
    one.model_copy(update={"mask": f"{mask}.png", "scale": scale})
    for one, mask, scale in ((A, "left", 0.7), (B, "right", 1.2), (C, "mask", 0.4))
)
CONTENT = Reference(type="content", image="b.png", scale=0.9)
FACE = Reference(type="face", image="wide.png", scale=0.8)
WAYS = [
    (),
    (A,),
    (A, B),
    (A, B, C),
    (LEFT,),
    (LEFT, RIGHT),
    (LEFT, MIDDLE, RIGHT, CONTENT),
    (A, B, CONTENT.model_copy(update={"mask": "left.png"})),
    (FACE,),
    (FACE.model_copy(update={"mask": "right.png"}), LEFT, CONTENT, RIGHT),
]


@pytest.fixture(scope="module")
def place(folder):
    """The folder of three adapters and their image encoder."""
    place = folder / "adapters-several"
    tiny_adapters.image_encoder(place / "image_encoder")
    for seed, (kind, file) in enumerate(FILES.items()):
        tiny_adapters.ip_adapter(folder / "sd", place / file, seed, plus=kind == "content", full=kind == "face")
    rng = np.random.default_rng(5)
    Image.fromarray(rng.integers(0, 256, (40, 90, 3), dtype=np.uint8)).save(folder / "wide.png")
    for name, some in (("left", slice(0, 25)), ("right", slice(25, 64)), ("none", slice(0, 0))):
        mask = np.zeros((64, 64), np.uint8)
        mask[:, some] = 255
        Image.fromarray(mask).save(folder / f"{name}.png")
    return place


@pytest.fixture(scope="module")
def engine(folder, place):
    given = model_of(folder, references={kind: PartWeights(source=str(place), weight_name=file) for kind, file in FILES.items()})
    check_fits(given)
    one = Engine(given, JOB_SEED, Roots((str(folder),)))
    yield one
    one.close()


def one_by_one(encode):
    """The pipeline's `encode_image` for several pictures, each read by itself: in a batch a CPU's kernels make other last bits."""

    def run(images, device, count, hidden=None):
        made = [encode(image, device, count, hidden) for image in images]
        return tuple(torch.cat(some) for some in zip(*made, strict=True))

    return run


def plainly(one, folder, place, dtype=torch.float32):
    """The candidates of a request by diffusers' pipeline, as its documentation has several images and masks."""
    count = SD.fills(one, BATCH)
    ending = {"txt2img": "", "img2img": "Img2Img", "inpaint": "Inpaint"}[one.mode]
    pipeline, _ = loaded(f"StableDiffusion{ending}Pipeline", folder / "sd", one, BATCH, dtype=dtype, **SD.parts)
    said = {}
    if one.references:
        pipeline.load_ip_adapter(str(place), subfolder="", weight_name=[*FILES.values()])
        images, scales, masks = [], [], []
        for kind in FILES:
            given = [reference for reference in one.references if reference.type == kind]
            images.append([Image.open(folder / reference.image) for reference in given] or [Image.open(folder / "a.png")])
            within = [Image.open(folder / reference.mask) for reference in given if reference.mask]
            scales.append([reference.scale for reference in given] if within else given[0].scale if given else 0.0)
            made = IPAdapterMaskProcessor().preprocess(within, height=one.height, width=one.width) if within else None
            masks.append(None if made is None else made.reshape(1, len(within), one.height, one.width))
        pipeline.set_ip_adapter_scale(scales)
        pipeline.encode_image = one_by_one(pipeline.encode_image)
        said["ip_adapter_image"] = images
        if any(mask is not None for mask in masks):
            said["cross_attention_kwargs"] = {"ip_adapter_masks": masks}
    return pixels_of(pipeline(**asked(SD, one, count, folder), **said).images, one, folder)[: one.candidates]


def test_several_images_of_an_adapter_make_the_bits_of_plain_diffusers_in_mixed_units(engine, folder, place):
    some = mixed(WAYS)
    ours = [pixels(outcome) for outcome in render(engine, *some)]
    for one, made in zip(some, ours, strict=True):
        np.testing.assert_array_equal(made, plainly(one, folder, place), err_msg=str(one.references))
    assert len({np.stack(made).tobytes() for made in ours}) == len(ours)


def test_companions_never_matter_to_them_and_rows_share_batches(engine):
    some = [replace(one, **{**MODES["txt2img"], "mode": "txt2img", "init_image": None, "mask_image": None}) for one in mixed(WAYS)]
    some = [replace(one, strength=None, steps=3, guidance_scale=4.0) for one in some]
    before = engine.path.denoiser.calls
    together = [pixels(outcome) for outcome in render(engine, *some)]
    shared = engine.path.denoiser.calls - before
    np.testing.assert_array_equal([pixels(outcome) for outcome in render(engine, *some[::-1])][::-1], together)
    np.testing.assert_array_equal([pixels(render(engine, one)[0]) for one in some], together)
    rows = 2 * sum(one.candidates * one.steps for one in some)
    assert shared < 1.1 * rows / engine.path.denoiser.shape


def test_a_row_has_the_bits_that_it_has_before_other_rows_bring_more_images(folder, place, engine):
    given = model_of(folder, references={kind: PartWeights(source=str(place), weight_name=file) for kind, file in FILES.items()})
    fresh = Engine(given, JOB_SEED, Roots((str(folder),)))
    some = [request(f"r{number}", references=references) for number, references in enumerate(((), (A,), (LEFT,), (A, B)))]
    for one in some:
        np.testing.assert_array_equal(pixels(render(fresh, one)[0]), pixels(render(engine, one)[0]))
    # Once these are done, the UNet has no places for more images than the next rows bring.
    render(fresh, some[0])
    assert len(fresh.model.base.unet.encoder_hid_proj.image_projection_layers) == len(FILES)
    fresh.close()


def test_a_mask_that_selects_nothing_fails_its_row(engine):
    (outcome,) = render(engine, request(references=(A.model_copy(update={"mask": "none.png"}),)))
    assert outcome.failure.code == "bad_image"
    assert outcome.failure.message == "references.0.mask: none.png: selects nothing (no pixel is 128 or more; its greatest is 0)"


def test_in_bf16_too(folder, place):
    references = {kind: PartWeights(source=str(place), weight_name=file) for kind, file in FILES.items()}
    engine = Engine(model_of(folder, references=references, dtype="bfloat16"), JOB_SEED, Roots((str(folder),)))
    some = [request(f"r{number}", references=WAYS[number], candidates=1, scheduler="euler") for number in (2, 5, 9)]
    for one, outcome in zip(some, render(engine, *some), strict=True):
        np.testing.assert_array_equal(pixels(outcome), plainly(one, folder, place, torch.bfloat16), err_msg=str(one.references))
    engine.close()


def test_a_mask_in_the_place_of_one_that_is_gone_is_another():
    masks, like = Masks(), torch.zeros(1)
    first = np.zeros((8, 8), bool)
    number = masks.number(first)
    assert masks.number(first) == number != EVERYWHERE
    assert masks.at(number, 16, like).sum() == 0
    del first
    assert not masks._levels and not masks._masks and not masks._numbers
    second = np.ones((8, 8), bool)
    assert masks.number(second) != number and masks.at(masks.number(second), 16, like).sum() == 16
