import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from promptmill.pipelines.scoring.clip_preprocessing import TOLERANCE, preprocess

CONFIGS = {
    "CLIP": PreprocessCfg(size=56),
    "SigLIP": PreprocessCfg(size=48, mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode="squash"),
    "bilinear": PreprocessCfg(size=40, interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3),
    "longest": PreprocessCfg(size=49, resize_mode="longest", fill_color=127),
    "longest, oblong": PreprocessCfg(size=(31, 64), resize_mode="longest", interpolation="bilinear"),
    "squash, oblong": PreprocessCfg(size=(64, 32), resize_mode="squash", interpolation="bilinear"),
    # open_clip resamples this one bicubically, whatever it is told.
    "shortest, oblong": PreprocessCfg(size=(32, 57), interpolation="bilinear"),
    "random": PreprocessCfg(size=33, interpolation="random"),
}
SIDES = st.integers(8, 200)


def image(height, width, kind, seed=0):
    """Noise is the hardest for a resampler, stripes of one pixel drive it beyond 0 and 255, blocks are like pictures."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    match kind:
        case "noise":
            return noise
        case "black and white":
            return (noise > 127).astype(np.uint8) * 255
        case "stripes":
            return np.where(np.add.outer(np.arange(height), np.arange(width))[..., None] % 3 == 0, np.uint8(255), np.uint8(0)) | (
                noise & 3
            )
        case _:
            return np.repeat(np.repeat(noise[::9, ::9], 9, 0), 9, 1)[:height, :width]


def open_clips(images, config):
    transform = image_transform_v2(config, is_train=False)
    return torch.stack([transform(Image.fromarray(pixels)) for pixels in images])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@given(SIDES, SIDES, st.sampled_from(["noise", "black and white", "stripes", "blocks"]))
@example(200, 60, "black and white")  # Pillow takes the height first
@example(60, 200, "black and white")
@example(200, 200, "black and white")
@example(8, 8, "black and white")
def test_tensors_are_open_clips_own_to_two_levels_and_to_one_where_bilinear(config, height, width, kind):
    images = [image(height, width, kind)]
    ours, theirs = preprocess(images, config), open_clips(images, config)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == torch.float32
    levels = ((ours - theirs).abs() * torch.tensor(config.std).view(1, 3, 1, 1) * 255).max().item()
    bilinear = config.interpolation == "bilinear" and config is not CONFIGS["shortest, oblong"]
    assert levels <= TOLERANCE["bilinear" if bilinear else "bicubic"] + 1e-3


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_an_image_that_fits_gives_open_clips_bits(config):
    height, width = config.size if isinstance(config.size, tuple) else (config.size, config.size)
    images = [image(height, width, "noise", seed) for seed in range(3)]
    assert torch.equal(preprocess(images, config), open_clips(images, config))


@given(st.lists(st.tuples(st.sampled_from([(64, 64), (64, 96), (30, 31)]), st.integers(0, 5)), min_size=1, max_size=6))
def test_an_image_alone_gives_the_bits_that_it_gives_in_company(wanted):
    images = [image(*size, "noise", seed) for size, seed in wanted]
    together = preprocess(images, CONFIGS["CLIP"])
    for alone, one in zip(images, together, strict=True):
        assert torch.equal(preprocess([alone], CONFIGS["CLIP"])[0], one)


def test_views_and_read_only_images_are_images_too():
    pixels = image(70, 60, "noise")
    turned = np.ascontiguousarray(pixels[::-1, ::-1])
    view = pixels[::-1, ::-1]
    view.flags.writeable = False
    assert torch.equal(preprocess([view], CONFIGS["CLIP"]), preprocess([turned], CONFIGS["CLIP"]))


def test_no_images_are_an_empty_batch():
    assert preprocess([], CONFIGS["CLIP"]).shape == (0, 3, 56, 56)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((0, 8, 3), np.uint8)],
)
def test_what_is_no_image_is_refused_by_its_place(wrong):
    with pytest.raises(ValueError, match="image 1 is"):
        preprocess([image(8, 8, "noise"), wrong], CONFIGS["CLIP"])
