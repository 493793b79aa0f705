import io

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from promptmill.manifests.masks import prepare_mask
from promptmill.pipelines.rendering.conditioning import composite, prepare

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "I;16B", "F")

sides = st.integers(1, 90)
wanted = st.integers(1, 12).map(lambda eighth: 8 * eighth)
seeds = st.integers(0, 2**32 - 1)


def noise(seed, width, height, mode="RGB"):
    """A picture of random values in any mode, over that mode's whole range."""
    rng = np.random.default_rng(seed)
    kinds = {"I": (np.int32, -(2**31), 2**31), "I;16": (np.uint16, 0, 2**16), "I;16B": (">u2", 0, 2**16)}
    if mode == "F":
        return Image.fromarray(rng.normal(size=(height, width)).astype(np.float32))
    if mode in kinds:
        dtype, low, high = kinds[mode]
        return Image.frombytes(mode, (width, height), rng.integers(low, high, (height, width)).astype(dtype).tobytes())
    bands = len(Image.new(mode, (1, 1)).getbands())
    if mode == "1":
        return Image.fromarray(rng.integers(0, 256, (height, width), np.uint8)).convert("1")
    image = Image.frombytes(mode, (width, height), rng.integers(0, 256, (height, width, bands), np.uint8).tobytes())
    if mode in ("P", "PA"):
        image.putpalette(rng.integers(0, 256, 768, np.uint8).tobytes())
    return image


def array(seed, width, height):
    return np.asarray(noise(seed, width, height))


@given(st.sampled_from(MODES), sides, sides, wanted, wanted, seeds)
def test_any_picture_becomes_rgb_of_the_wanted_size(mode, across, down, width, height, seed):
    image = noise(seed, across, down, mode)
    pixels, mask = prepare(image, width, height), prepare_mask(image, width, height)
    assert (pixels.shape, pixels.dtype) == ((height, width, 3), np.uint8)
    assert (mask.shape, mask.dtype) == ((height, width), np.bool_)


@given(wanted, wanted, seeds)
def test_a_picture_that_fits_keeps_its_pixels(width, height, seed):
    image = noise(seed, width, height)
    assert np.array_equal(prepare(image, width, height), np.asarray(image))
    mask = noise(seed, width, height, "L")
    assert np.array_equal(prepare_mask(mask, width, height), np.asarray(mask) >= 128)


@given(wanted, wanted, st.integers(0, 30), st.booleans(), seeds)
def test_a_picture_that_fits_in_one_direction_is_only_cropped(width, height, more, sideways, seed):
    image = noise(seed, width + more * sideways, height + more * (not sideways))
    left, top = more // 2 * sideways, more // 2 * (not sideways)
    assert np.array_equal(prepare(image, width, height), np.asarray(image)[top : top + height, left : left + width])


@given(sides, sides, wanted, wanted, seeds)
def test_what_is_kept_is_the_centre_in_its_own_aspect(across, down, width, height, seed):
    assume(across != width and down != height)
    image = noise(seed, across, down)
    fitted = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    assert np.abs(prepare(image, width, height).astype(int) - np.asarray(fitted)).max() <= 1


@given(st.integers(20, 200), st.integers(20, 200), wanted, wanted)
def test_a_disc_stays_a_disc_in_the_middle(across, down, width, height):
    assume(min(width, height) >= 32 and 0.5 < (across / down) / (width / height) < 2)
    y, x = np.mgrid[:down, :across] + 0.5
    radius = 0.2 * min(across, down)
    disc = np.hypot(x - across / 2, y - down / 2) < radius
    pixels = prepare(Image.fromarray(disc), width, height)[..., 0] >= 128
    scale = max(width / across, height / down)
    assume(max(radius * scale, 4) < 0.45 * min(width, height))
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    tolerance = 1.5 * max(1, scale)  # the disc itself is drawn to a pixel of its own
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 2 * tolerance
    assert abs(rows.mean() - (height - 1) / 2) <= tolerance and abs(columns.mean() - (width - 1) / 2) <= tolerance


def test_scaling_down_averages_rather_than_picks():
    fine = Image.fromarray((np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8))
    assert np.abs(prepare(fine, 64, 64).astype(int) - 127).max() <= 2


@given(sides, sides, wanted, wanted, seeds)
def test_a_mask_stays_aligned_with_its_picture(across, down, width, height, seed):
    # One edge, so that all but a few pixels beside it must agree.
    edge = np.random.default_rng(seed).integers(0, across + 1)
    image = Image.fromarray(np.broadcast_to(np.arange(across) < edge, (down, across)).astype(np.uint8) * 255)
    same = prepare_mask(image, width, height) == (prepare(image, width, height)[..., 0] >= 128)
    assert (~same).sum(1).max() <= 1


@given(wanted, wanted, st.integers(2, 6), seeds)
def test_a_mask_is_scaled_by_repeating_whole_pixels(width, height, factor, seed):
    mask = noise(seed, width, height, "L")
    larger = prepare_mask(mask, factor * width, factor * height)
    assert np.array_equal(larger, np.kron(np.asarray(mask) >= 128, np.ones((factor, factor), bool)))


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBA", "P", "L", "RGB"])
def test_what_is_transparent_is_white_in_a_picture_and_black_in_a_mask(mode):
    """By an alpha channel, or by a colour that the file says is transparent; saved and read, as a manifest's images are."""
    image = Image.new(mode, (8, 8), {"LA": (90, 0), "RGBA": (90, 90, 90, 0), "RGB": (90, 90, 90)}.get(mode, 90))
    image.putpixel((3, 4), {"LA": (240, 255), "RGBA": (240, 240, 240, 255), "RGB": (240, 240, 240)}.get(mode, 240))
    if mode == "PA":
        image = Image.new("RGBA", (8, 8))
        image.putpixel((3, 4), (240, 240, 240, 255))
        image = image.quantize(4)
    if mode == "P":
        image.putpalette([level for level in range(256) for _ in range(3)])
    options = {"transparency": {"P": 90, "L": 90, "RGB": (90, 90, 90)}[mode]} if mode in ("P", "L", "RGB") else {}
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    read = Image.open(file)
    pixels, mask = prepare(read, 8, 8), prepare_mask(read, 8, 8)
    opaque = np.zeros((8, 8), bool)
    opaque[4, 3] = True
    assert (pixels[~opaque] == 255).all() and (pixels[opaque] == 240).all()
    assert np.array_equal(mask, opaque)


def test_half_transparent_pixels_are_mixed_with_white():
    assert np.abs(prepare(Image.new("RGBA", (8, 8), (255, 0, 0, 128)), 8, 8).astype(int)[0, 0] - (255, 127, 127)).max() <= 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("values", "levels"),
    [
        (np.array([0, 257, 65535], np.uint16), [0, 1, 255]),
        (np.array([0, 32896, 65535], np.int32), [0, 128, 255]),
        (np.array([-100, 0, 100], np.int32), [0, 128, 255]),
        (np.array([70_000, 70_000, 70_000], np.int32), [0, 0, 0]),
        (np.array([0, 0.5, 1], np.float32), [0, 128, 255]),
        (np.array([0, 3, 200], np.float32), [0, 3, 200]),
        (np.array([-1, 0, 1], np.float32), [0, 128, 255]),
        (np.array([np.nan, 0.2, np.inf], np.float32), [0, 51, 0]),
        (np.array([np.nan] * 3, np.float32), [0, 0, 0]),
        (np.array([-3, -3, -3], np.float32), [0, 0, 0]),
    ],
)
def test_grey_beyond_8_bits_is_scaled_as_stated(values, levels):
    image = Image.fromarray(np.repeat(np.repeat(values, 8)[None], 8, axis=0))
    assert prepare(image, 24, 8)[0, ::8].tolist() == [[level] * 3 for level in levels]


@pytest.mark.parametrize(("mode", "white"), [("CMYK", (0, 0, 0, 0)), ("LAB", (255, 128, 128)), ("YCbCr", (255, 128, 128))])
def test_white_is_white_in_every_colour_space(mode, white):
    assert (prepare(Image.new(mode, (8, 8), white), 8, 8) >= 254).all()


@given(wanted, wanted, seeds)
def test_outside_the_mask_every_pixel_is_the_originals(width, height, seed):
    original, rendered = array(seed, width, height), array(seed + 1, width, height)
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    mixed = composite(original, rendered, mask)
    assert np.array_equal(mixed[~mask], original[~mask]) and np.array_equal(mixed[mask], rendered[mask])
    assert mixed.dtype == np.uint8
