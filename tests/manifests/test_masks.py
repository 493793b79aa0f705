"""Masks as tools write them: each is read as its tool meant it, and one that repaints nothing is a bad row."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from promptmill.configs.parameters import Defaults
from promptmill.manifests.checking import check_rows
from promptmill.manifests.images import Roots, roots_of
from promptmill.manifests.masks import prepare_mask, read_mask
from promptmill.manifests.rules import Rules
from promptmill.pipelines.rendering.preparing import Conditioning, prepare_request
from promptmill.pipelines.work.units import Placed
from tests.pipelines.work.test_units import request

RULES = Rules(Defaults(width=64, height=64), controls=("canny",))
HALF = np.zeros((64, 64), bool)
HALF[:, 32:] = True
HOLE = np.zeros((64, 64), bool)
HOLE[16:48, 16:48] = True
RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (64, 64, 3), np.uint8)
FLAT = np.where(HALF[..., None], np.array([220, 40, 40], np.uint8), np.array([30, 60, 220], np.uint8))


def levels(mask, high, kind=np.uint8):
    return Image.fromarray(np.where(mask, high, 0).astype(kind))


def with_alpha(rgb, opaque):
    pixels = np.broadcast_to(np.array(rgb, np.uint8), (64, 64, 3))
    return Image.fromarray(np.dstack([pixels, np.where(opaque, 255, 0).astype(np.uint8)]))


def palette(places, colours):
    image = Image.fromarray(places.astype(np.uint8), "P")
    image.putpalette([level for colour in colours for level in colour])
    return image


VOC = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
FORMS = {
    "0 and 255": (levels(HALF, 255), HALF),
    "0 and 1": (levels(HALF, 1), HALF),
    "0 and 1 of RGB": (Image.merge("RGB", [levels(HALF, 1)] * 3), HALF),
    "0 and 1 of 16 bits": (levels(HALF, 1, np.uint16), HALF),
    "0 and 255 of 16 bits": (levels(HALF, 255, np.uint16), HALF),
    "0 and 65535 of 16 bits": (levels(HALF, 65535, np.uint16), HALF),
    "0 and 1 of 32 bits": (levels(HALF, 1, np.int32), HALF),
    "0 and 1 of floats": (levels(HALF, 1, np.float32), HALF),
    "one bit": (Image.fromarray(HALF), HALF),
    "palette of black and white": (palette(HALF, [(0, 0, 0), (255, 255, 255)]), HALF),
    "palette of white and black": (palette(HALF, [(255, 255, 255), (0, 0, 0)]), ~HALF),
    "palette whose colours are its places": (palette(HALF, [(i, i, i) for i in range(256)]), HALF),
    "palette that is all black": (palette(HALF, [(0, 0, 0)] * 256), HALF),
    "VOC's palette, one class": (palette(HALF, VOC), HALF),
    "VOC's palette, classes of all kinds": (palette(np.where(HALF, 1 + RNG.integers(0, 3, (64, 64)), 0), VOC), HALF),
    "white on transparency": (with_alpha((255, 255, 255), HALF), HALF),
    "red on transparency": (with_alpha((255, 0, 0), HALF), HALF),
    "dark blue on transparency": (with_alpha((0, 0, 90), HALF), HALF),
    "black with a hole": (with_alpha((0, 0, 0), ~HOLE), HOLE),
    "photo with a hole": (with_alpha(PHOTO, ~HOLE), HOLE),
    "black and white, transparent around": (
        with_alpha(np.where(HALF, 255, 0)[..., None].repeat(3, -1), ~HOLE),
        HALF & ~HOLE,
    ),
    "white, grey with alpha": (levels(HALF, 255).convert("LA"), HALF),
}


def saved(image):
    """An image as it comes out of a file, as a manifest's do."""
    file = io.BytesIO()
    image.save(file, "TIFF" if image.mode in ("F", "I") else "PNG")
    return Image.open(file)


@pytest.mark.parametrize(("image", "meant"), FORMS.values(), ids=FORMS)
def test_a_mask_repaints_what_its_tool_meant(image, meant):
    assert np.array_equal(read_mask(saved(image)).repaint, meant)
    assert np.array_equal(prepare_mask(saved(image), 64, 64), meant)


@pytest.mark.parametrize(("init", "meant"), [(FLAT, HOLE), (PHOTO, ~HOLE)])
def test_flat_colours_beside_a_hole_are_the_picture_where_the_init_image_has_them_and_else_paint(init, meant):
    mask = saved(with_alpha(FLAT, ~HOLE))
    assert read_mask(mask).unsure
    assert np.array_equal(read_mask(mask, Image.fromarray(init)).repaint, meant)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_mask_of_any_levels_is_cut_at_the_middle(mode):
    pixels = RNG.integers(0, 256, (64, 64) if mode == "L" else (64, 64, 3), np.uint8)
    luminance = np.asarray(Image.fromarray(pixels).convert("L"))
    assert np.array_equal(prepare_mask(Image.fromarray(pixels), 64, 64), luminance >= 128)


NOTHING = {
    "black": (levels(HALF, 0), "no pixel is 128 or more; its greatest is 0"),
    "127": (levels(HALF, 127), "no pixel is 128 or more; its greatest is 127"),
    "classes of 8 bits": (levels(HALF, 20), "its greatest is 20"),
    "classes of 16 bits": (levels(HALF, 20, np.uint16), "its greatest is 20"),
    "red on black": (Image.fromarray(np.where(HALF[..., None], [255, 0, 0], 0).astype(np.uint8)), "its greatest is 76"),
    "transparent everywhere": (with_alpha((255, 255, 255), HALF & ~HALF), "every pixel is transparent"),
}


def checked(folder, mask, **row):
    Image.fromarray(PHOTO).save(folder / "i.png")
    (folder / "m.tif").write_bytes(saved(mask).fp.getvalue())
    place = folder / "rows.jsonl"
    rows = ({"prompt": "x", "init_image": "i.png", "mask_image": "m.tif", **row}, {"prompt": "y"})
    place.write_text("\n".join(json.dumps(r) for r in rows))
    first, second = check_rows([str(place)], RULES, roots_of([str(place)], (), 10**6))
    assert second.request
    return first


@pytest.mark.parametrize(("mask", "says"), NOTHING.values(), ids=NOTHING)
def test_a_mask_that_repaints_nothing_is_a_bad_row_with_its_greatest_value(tmp_path, mask, says):
    bad = checked(tmp_path, mask)
    assert bad.request is None
    (line,) = bad.lines()
    assert line.startswith(f"{tmp_path}/rows.jsonl, row 1: mask_image: m.tif: repaints nothing (") and says in line
    # Nobody looks when planning where check_images says so; then the request fails, and says the same.
    inpaint = replace(request("a"), mode="inpaint", strength=0.5, init_image="i.png", mask_image="m.tif")
    failure = prepare_request(Placed(0, inpaint), Roots((str(tmp_path),))).failure
    assert failure.code == "bad_image" and line.endswith(failure.message)


def test_a_mask_whose_white_is_cropped_away_repaints_nothing(tmp_path):
    edge = np.zeros((64, 64), bool)
    edge[:, :8] = True
    assert checked(tmp_path, levels(edge, 255)).request
    bad = checked(tmp_path, levels(edge, 255), width=32, height=64)
    assert "all that it would repaint is cropped away at 32 x 64" in bad.problems[0]


def test_a_mask_that_repaints_everything_is_a_note(tmp_path):
    everything = checked(tmp_path, levels(HALF | ~HALF, 255))
    assert everything.request and everything.notes == ("mask_image: repaints everything, as img2img does without a mask",)
    assert not checked(tmp_path, levels(HALF, 255)).notes


def test_an_init_image_with_a_hole_is_its_own_mask_and_without_one_a_note(tmp_path):
    with_alpha(PHOTO, ~HOLE).save(tmp_path / "h.png")
    roots = Roots((str(tmp_path),))
    own = replace(request("a"), mode="inpaint", strength=0.5, init_image="h.png", mask_image="h.png")
    made = prepare_request(Placed(0, own), roots)
    assert isinstance(made, Conditioning) and np.array_equal(made.mask, HOLE)
    alone = checked(tmp_path, levels(HALF, 255), init_image="h.png", mask_image=None)
    assert alone.request and alone.notes[0].startswith("init_image: has a hole, which is laid on white")
    assert not checked(tmp_path, levels(HALF, 255), mask_image=None).notes
