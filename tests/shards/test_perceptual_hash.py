import io

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from promptmill.shards.perceptual_hash import colours, distance, phash, same_colours

RNG = np.random.default_rng(0)


def landscape(side=128):
    """Smooth noise of several sizes, as a photograph has."""
    whole = np.zeros((side, side, 3))
    for cells in (4, 8, 16, 32):
        small = Image.fromarray(RNG.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        whole += np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), float) / cells**0.5
    return Image.fromarray((255 * (whole - whole.min()) / np.ptp(whole)).astype(np.uint8))


LANDSCAPES = [landscape() for _ in range(30)]


def compressed(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=75)
    return Image.open(file)


def noisy(image):
    pixels = np.asarray(image, int)
    return Image.fromarray(np.clip(pixels + RNG.integers(-3, 4, pixels.shape), 0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    "change",
    [
        compressed,
        noisy,
        lambda i: i.resize((64, 64)),
        lambda i: Image.fromarray(np.roll(i, 1, axis=1)),
        lambda i: i.convert("RGBA"),
    ],
)
def test_what_is_slightly_changed_stays_near(change):
    for image in LANDSCAPES:
        assert distance(phash(image), phash(change(image))) <= 6
        assert same_colours(colours(image), colours(change(image)))


def test_different_images_are_far_apart():
    hashes = [phash(image) for image in LANDSCAPES]
    assert min(distance(a, b) for n, a in enumerate(hashes) for b in hashes[:n]) > 12


def test_colours_tell_apart_what_the_hash_cannot():
    image = LANDSCAPES[0]
    grey = image.convert("L").convert("RGB")
    assert distance(phash(image), phash(grey)) <= 2
    assert not same_colours(colours(image), colours(grey))


def test_a_hash_is_the_lowest_frequencies_against_their_median():
    for image in LANDSCAPES:
        small = image.convert("L").resize((32, 32), Image.Resampling.BOX)
        lowest = dctn(np.asarray(small, float))[:8, :8].ravel()[1:]
        assert f"{phash(image):064b}" == "0" + "".join("01"[int(value > np.median(lowest))] for value in lowest)


def test_an_image_without_structure_has_the_hash_0():
    assert phash(Image.new("RGB", (8, 8), "red")) == phash(LANDSCAPES[0].resize((1, 1))) == 0
