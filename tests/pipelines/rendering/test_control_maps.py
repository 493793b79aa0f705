"""Control maps made without a model: their shapes, what each sees, and that each is made once."""

import time

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from benchmarks.maps_sheet import SHEET, sheet
from promptmill.configs.parameters import Control
from promptmill.configs.preprocessors import ANNOTATED, PREPROCESSORS
from promptmill.embedded.pictures import canny, draw
from promptmill.embedded.world import sample_scene
from promptmill.manifests.images import Roots
from promptmill.pipelines.rendering import control_maps
from promptmill.pipelines.rendering.control_maps import MAPS, ControlMaps, control_map
from promptmill.pipelines.rendering.preparing import Conditioning, prepare_request
from promptmill.pipelines.work.units import Placed
from tests.pipelines.plain import request
from tests.pipelines.rendering.test_conditioning import array, seeds, wanted

KINDS = tuple(MAPS)  # those without a model


def test_each_preprocessor_that_a_manifest_can_name_has_a_map():
    assert MAPS.keys() | ANNOTATED.keys() == PREPROCESSORS.keys() and not MAPS.keys() & ANNOTATED.keys()


@given(st.sampled_from(KINDS), wanted, wanted, seeds)
def test_a_control_map_has_its_pictures_shape_and_memory_of_its_own(kind, width, height, seed):
    image = array(seed, width, height)
    made = control_map(kind, image)
    assert (made.shape, made.dtype) == ((height, width, 3), np.uint8)
    assert not np.shares_memory(made, image)
    assert np.array_equal(made, control_map(kind, np.asfortranarray(image)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_control_map_does_not_depend_on_threads(kind):
    image = array(0, 512, 384)
    threads = cv2.getNumThreads()
    made = []
    try:
        for count in (1, 4):
            cv2.setNumThreads(count)
            made.append(control_map(kind, image))
    finally:
        cv2.setNumThreads(threads)
    assert np.array_equal(*made)


@given(st.tuples(*[st.integers(0, 255)] * 3), wanted, wanted)
def test_a_plain_picture_stays_plain_in_every_map(color, width, height):
    image = np.broadcast_to(np.array(color, np.uint8), (height, width, 3))
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    black = {name: [0, 0, 0] for name in ("canny", "lines", "scribble")}
    plain = {**black, "grey": [luminance] * 3, "invert": [255 - c for c in color]}
    for kind in KINDS:
        assert np.abs(control_map(kind, image).astype(float) - plain.get(kind, color)).max() <= 1, kind


@given(seeds)
def test_canny_on_the_fly_finds_the_edges_that_the_embedded_controlnet_was_trained_on(seed):
    """The family's maps are made with lower thresholds, channel by channel: these are a subset, and nearly all of them."""
    rng = np.random.default_rng(seed)
    pictures = draw([sample_scene(rng) for _ in range(8)], rng).pixels
    found, trained = (np.stack([make(p)[..., 0] for p in pictures]) > 0 for make in (lambda p: control_map("canny", p), canny))
    assert not (found & ~trained).any()
    shares = found.sum((1, 2)) / trained.sum((1, 2))
    assert shares.min() >= 0.75 and shares.mean() >= 0.95


@pytest.mark.parametrize(("step", "seen"), [(20, False), (45, False), (55, True), (255, True)])
def test_canny_sees_steps_of_more_than_50_levels(step, seen):
    """A step of n levels has a Sobel gradient of 4 n; where it is under 200 nothing there is strong enough to begin an edge."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 16:] = step
    assert (control_map("canny", image) == 255).any() == seen


def test_canny_follows_an_edge_down_to_25_levels():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = np.linspace(10, 100, 64, dtype=np.uint8)[:, None, None]
    faintest = np.flatnonzero(control_map("canny", image).any((1, 2))).min()
    assert image[faintest, 63, 0] == pytest.approx(25, abs=3)


def test_canny_sees_an_edge_between_colours_that_are_equally_bright():
    red, green = (200, 0, 0), (0, 102, 0)  # the same luminance
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, :16], image[:, 16:] = red, green
    assert (control_map("canny", image) == 255).any(1).all(1).sum() == 32


@given(wanted, wanted, seeds)
def test_inverting_twice_gives_the_picture_back(width, height, seed):
    image = array(seed, width, height)
    assert np.array_equal(control_map("invert", control_map("invert", image)), image)
    assert np.array_equal(control_map("none", image), image)


def test_grey_has_three_equal_channels():
    grey = control_map("grey", array(0, 64, 64))
    assert (grey == grey[..., :1]).all()


def test_blur_is_relative_to_the_size_of_the_picture():
    small, large = np.zeros((64, 64, 3), np.uint8), np.zeros((512, 512, 3), np.uint8)
    small[:, 32:], large[:, 256:] = 255, 255
    widths = [np.count_nonzero((blurred[0, :, 0] > 40) & (blurred[0, :, 0] < 215)) for blurred in map(blur, (small, large))]
    assert widths[0] == 2 and widths[1] == 16  # 2 sigma either way between the 16% and the 84% point


def blur(image):
    return control_map("blur", image)


def test_tile_keeps_the_average_of_each_block_and_no_more():
    image = array(0, 512, 512)
    tiled = control_map("tile", image)
    blocks = [pixels.reshape(64, 8, 64, 8, 3).mean((1, 3)) for pixels in (image, tiled)]
    assert np.abs(blocks[0] - blocks[1]).max() < 12
    assert tiled.astype(float).std() < 0.2 * image.astype(float).std()


def photograph(width=256, height=192):
    """A picture with straight and round edges, shades, and thin dark strokes on bright ground."""
    image = Image.fromarray(np.linspace(150, 250, width, dtype=np.uint8)[None].repeat(height, 0)).convert("RGB")
    pen = ImageDraw.Draw(image)
    pen.rectangle((20, 30, 110, 120), fill=(200, 60, 40))
    pen.ellipse((140, 40, 220, 120), fill=(60, 80, 190))
    pen.line((10, 150, 240, 170), fill=(20, 20, 20), width=3)
    return np.asarray(image)


def test_lines_are_the_straight_edges_and_none_of_a_disc():
    drawn = control_map("lines(length=0.3)", photograph())[..., 0]
    assert set(np.unique(drawn)) == {0, 255}
    assert drawn[60:100, 18:23].any(1).all() and drawn[60:100, 108:113].any(1).all()  # the sides of the rectangle
    assert drawn[145:176, 60:200].any(0).all()  # the stroke
    assert not drawn[36:124, 136:224].any()


@pytest.mark.parametrize(("length", "there"), [(0.1, True), (0.9, False)])
def test_shorter_lines_than_asked_for_are_left_out(length, there):
    assert control_map(f"lines(length={length})", photograph())[60:100, 18:23].any() == there


def test_scribbles_are_dark_strokes_and_not_what_is_evenly_dark():
    drawn = control_map("scribble", photograph())[..., 0]
    assert drawn[145:176, 60:200].any(0).all()
    assert not drawn[60:100, 45:90].any()  # inside of the rectangle
    fewer = control_map("scribble(threshold=60)", photograph())
    assert 0 < np.count_nonzero(fewer) < np.count_nonzero(drawn) * 3 and not (fewer[..., 0] & ~drawn).any()


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_a_shuffled_picture_keeps_its_colours_at_other_places_by_the_seed(seed, other):
    image = photograph()
    one, another = (control_map(f"shuffle(seed={number})", image) for number in (seed, other))
    assert one.min() >= image.min() and one.max() <= image.max()
    assert np.abs(one.astype(int) - image).mean() > 3
    assert (seed == other) == np.array_equal(one, another)


@given(st.integers(0, 500), st.integers(0, 500))
def test_canny_with_thresholds_is_opencvs_with_these(low, more):
    image = photograph()
    made = control_map(f"canny(low={low}, high={low + more})", image)
    assert np.array_equal(made[..., 0], cv2.Canny(image, low, low + more))


def test_a_larger_rate_leaves_less_of_a_tile_and_a_larger_sigma_less_of_a_blur():
    image = array(0, 128, 128)
    for weak, strong in (("tile(rate=2)", "tile(rate=32)"), ("blur(sigma=0.005)", "blur(sigma=0.1)")):
        assert control_map(weak, image).astype(float).std() > 2 * control_map(strong, image).astype(float).std()
    assert np.array_equal(control_map("tile(rate=1)", image), image)


def test_the_sheet_of_the_docs_has_the_maps_as_they_are_made_now():
    shown, now = (np.asarray(image.convert("RGB"), float) for image in (Image.open(SHEET), sheet()))
    assert shown.shape == now.shape and np.abs(shown - now).mean() < 4  # levels, of the format's loss


def test_200_rows_of_ten_photographs_cost_ten_maps_of_a_kind(tmp_path):
    for number in range(10):
        Image.fromarray(np.roll(photograph(64, 64), number, 1)).save(tmp_path / f"{number}.png")
    maps, kinds = ControlMaps(), ("canny", "lines", "canny(low=50)")
    for row in range(200):
        controls = [Control(type="canny", image=f"{row % 10}.png", preprocess=kind) for kind in kinds]
        made = prepare_request(
            Placed(row, request(mode="controlnet", controls=tuple(controls))), Roots((str(tmp_path),)), maps=maps
        )
        assert isinstance(made, Conditioning)
        for kind, one in zip(kinds, made.controls, strict=True):
            assert np.array_equal(one, control_map(kind, np.asarray(Image.open(tmp_path / f"{row % 10}.png"))))
    assert maps.made == 10 * len(kinds)


def test_maps_of_another_size_or_picture_are_other_maps_and_the_oldest_go(monkeypatch):
    monkeypatch.setattr(control_maps, "MOST_BYTES", 2 * array(0, 64, 64).nbytes)
    maps = ControlMaps()
    for name, made in [("a", 1), ("a", 1), ("b", 2), ("a", 2), ("c", 3), ("a", 3), ("b", 4), ("b, smaller", 5)]:
        sha256, size = name[0], 32 if name.endswith("smaller") else 64
        maps.get(sha256, "canny", (size, size), lambda size=size: array(0, size, size))
        assert maps.made == made


def test_a_wide_blur_is_the_gaussians_within_few_levels_and_takes_no_longer_than_a_narrow_one():
    patches = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    picture = cv2.resize(patches, (260, 250), interpolation=cv2.INTER_NEAREST)
    exact = cv2.GaussianBlur(picture, (0, 0), 50)
    assert np.ptp(exact) > 40
    assert np.abs(control_map("blur(sigma=0.2)", picture).astype(int) - exact).max() <= 4
    large = cv2.resize(patches, (1024, 1024))
    began = time.process_time()
    control_map("blur(sigma=0.25)", large)
    assert time.process_time() - began < 2
