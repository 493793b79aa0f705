"""Changed masks and widened pictures: pixels by their distances, and rows that repaint nothing are bad."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from promptmill.configs.mask_edits import MaskEdit, Outpaint, parse_outpaint
from promptmill.configs.parameters import Defaults
from promptmill.manifests.checking import check_rows
from promptmill.manifests.images import Roots, roots_of
from promptmill.manifests.mask_changes import changed, part_around, softened, widened, widened_mask
from promptmill.manifests.requests import from_json, to_json
from promptmill.manifests.rules import Rules
from promptmill.manifests.steering import Steering
from promptmill.pipelines.rendering.conditioning import Whole, composite, prepare
from promptmill.pipelines.rendering.preparing import Conditioning, prepare_request
from promptmill.pipelines.work.units import Placed
from tests.manifests.test_masks import HALF, HOLE, PHOTO, levels

RULES = Rules(Defaults(width=64, height=64), controls=("canny",))


@st.composite
def masks(draw):
    height, width = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    places = draw(st.lists(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)), max_size=8))
    mask = np.zeros((height, width), bool)
    for place in places:
        mask[place] = True
    return mask


def near(mask, pixels):
    """Where a pixel of the mask is at most so far away, pair by pair."""
    down, across = np.indices(mask.shape)
    found = np.zeros(mask.shape, bool)
    for y, x in np.argwhere(mask):
        found |= (down - y) ** 2 + (across - x) ** 2 <= pixels**2
    return found


@given(masks(), st.integers(0, 20))
def test_a_mask_grows_by_so_many_pixels_in_every_direction_and_shrinks_where_the_rest_grows(mask, pixels):
    assert np.array_equal(changed(mask, MaskEdit(grow=pixels)), near(mask, pixels))
    assert np.array_equal(changed(mask, MaskEdit(grow=-pixels)), ~near(~mask, pixels))


@given(masks(), st.integers(-20, 20))
def test_an_inverted_mask_is_inverted_before_it_grows(mask, pixels):
    assert np.array_equal(changed(mask, MaskEdit(invert=True, grow=pixels)), changed(~mask, MaskEdit(grow=pixels)))


@given(st.integers(1, 1024), st.integers(0, 2**32 - 1))
def test_a_far_pixel_is_reached_exactly_where_it_is_near_enough(pixels, seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((int(rng.integers(1, 900)), int(rng.integers(1, 900))), bool)
    y, x = int(rng.integers(mask.shape[0])), int(rng.integers(mask.shape[1]))
    mask[y, x] = True
    assert np.array_equal(changed(mask, MaskEdit(grow=pixels)), near(mask, pixels))


@given(st.integers(0, 2**32 - 1), st.integers(1, 24))
def test_a_blurred_edge_leaves_every_pixel_exact_that_is_further_from_it_than_the_blur_reaches(seed, blur):
    rng = np.random.default_rng(seed)
    mask = np.zeros((160, 200), bool)
    top, left = rng.integers(0, 150, 2)
    mask[top : top + rng.integers(1, 120), left : left + rng.integers(1, 120)] = True
    share = softened(mask, MaskEdit(blur=blur))
    original, rendered = rng.integers(0, 256, (2, 160, 200, 3), np.uint8)
    mixed, reach = composite(original, rendered, mask, share), 3 * blur + 3
    outside, inside = ~changed(mask, MaskEdit(grow=reach)), changed(mask, MaskEdit(grow=-reach))
    assert np.array_equal(mixed[outside], original[outside]) and np.array_equal(mixed[inside], rendered[inside])
    low, high = np.minimum(original, rendered), np.maximum(original, rendered)
    assert (low <= mixed).all() and (mixed <= high).all()
    assert softened(mask, MaskEdit(grow=3)) is None


SIDES = st.builds(Outpaint, *[st.integers(0, 40)] * 4, st.integers(0, 12))


@given(SIDES, st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_widened_picture_has_its_own_pixels_at_their_place_and_its_outermost_ones_beside_them(sides, width, height, seed):
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    made = widened(picture, sides)
    assert sides.within(made.shape[1], made.shape[0]) == (width, height)
    down = np.clip(np.arange(made.shape[0]) - sides.top, 0, height - 1)
    across = np.clip(np.arange(made.shape[1]) - sides.left, 0, width - 1)
    assert np.array_equal(made, picture[down][:, across])


@given(SIDES, st.integers(30, 60), st.integers(30, 60), st.integers(0, 9))
def test_all_new_pixels_are_repainted_and_those_of_the_init_image_along_a_widened_side_alone(sides, width, height, blur):
    whole = width + sides.left + sides.right, height + sides.top + sides.bottom
    repaint = widened_mask(sides, *whole)
    down, across = np.indices(repaint.shape)
    new = (across < sides.left) | (down < sides.top) | (across >= whole[0] - sides.right) | (down >= whole[1] - sides.bottom)
    assert repaint[new].all()
    along = ((across < sides.left + sides.overlap) & (sides.left > 0)) | ((down < sides.top + sides.overlap) & (sides.top > 0))
    along |= (across >= whole[0] - sides.right - sides.overlap) & (sides.right > 0)
    along |= (down >= whole[1] - sides.bottom - sides.overlap) & (sides.bottom > 0)
    assert np.array_equal(repaint, new | along)
    share = softened(repaint, MaskEdit(blur=blur), sides)
    assert share is None if not blur else (share[new] == 255).all()


@given(masks().filter(np.any), st.integers(0, 6))
def test_a_part_holds_the_mask_and_its_padding_and_has_the_pictures_aspect(mask, padding):
    height, width = mask.shape
    left, top, right, bottom = part_around(mask, padding)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    inside = np.zeros(mask.shape, bool)
    inside[top:bottom, left:right] = True
    ys, xs = np.nonzero(mask)
    assert inside[max(0, ys.min() - padding) : ys.max() + padding + 1, max(0, xs.min() - padding) : xs.max() + padding + 1].all()
    across, down = right - left, bottom - top
    assert abs(across - down * width / height) < 1 or abs(down - across * height / width) < 1


@given(masks().filter(np.any), st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_the_mask_that_the_model_gets_has_each_pixel_of_the_part_and_what_lies_outside_of_it_stays(mask, padding, seed):
    picture, rendered = np.random.default_rng(seed).integers(0, 256, (2, *mask.shape, 3), np.uint8)
    whole = Whole(picture, mask, part_around(mask, padding))
    left, top, right, bottom = whole.part
    scaled, made = whole.part_of_mask(), whole.with_part(rendered)
    assert scaled.shape == mask.shape and scaled.any()
    if mask[top:bottom, left:right].all():
        assert scaled.all()
    outside = np.ones(mask.shape, bool)
    outside[top:bottom, left:right] = False
    assert np.array_equal(made[outside], picture[outside])
    if whole.part == (0, 0, *mask.shape[::-1]):
        assert np.array_equal(scaled, mask) and np.array_equal(made, rendered)


def test_a_part_has_the_pixels_of_the_init_image_at_its_full_resolution(tmp_path):
    large = np.random.default_rng(5).integers(0, 256, (256, 256, 3), np.uint8)
    Image.fromarray(large).save(tmp_path / "large.png")
    mask = np.zeros((256, 256), bool)
    mask[72:120, 136:184] = True
    row = check(tmp_path, mask=levels(mask, 255), init_image="large.png", **MASKED, mask_edit="only_masked, padding=2")
    made = prepare_request(Placed(0, row.request), Roots((str(tmp_path),)))
    # 12 x 12 pixels of the mask and twice 2 around them are 16 x 16 of 64 x 64, and 64 x 64 of 256 x 256.
    assert made.whole.part == (32, 16, 48, 32) and np.array_equal(made.init, large[64:128, 128:192])
    assert np.array_equal(made.mask, mask[64:128, 128:192])
    assert np.array_equal(made.whole.picture, prepare(Image.fromarray(large), 64, 64)) and made.whole.mask.sum() == 144


def check(folder, rules=RULES, mask=None, **row):
    Image.fromarray(PHOTO).save(folder / "i.png")
    (mask or levels(HOLE, 255)).save(folder / "m.png")
    place = folder / "rows.jsonl"
    place.write_text(json.dumps({"prompt": "x", "init_image": "i.png", **row}))
    (checked,) = check_rows([str(place)], rules, roots_of([str(place)], (), 10**6))
    return checked


MASKED = {"mask_image": "m.png"}
NOTHING = {
    "shrunk away": (HOLE, "grow=-16", "nothing is left of it at 64 x 64 with grow=-16"),
    "inverted and shrunk away": (~HOLE, "invert, grow=-16", "nothing is left of it at 64 x 64 with grow=-16"),
    "white inverted": (HALF | ~HALF, "invert", "it is white everywhere, and inverted"),
    "black, grown": (HALF & ~HALF, "grow=40", "no pixel is 128 or more; its greatest is 0"),
}


@pytest.mark.parametrize(("mask", "edit", "says"), NOTHING.values(), ids=NOTHING)
def test_a_mask_that_repaints_nothing_once_it_is_changed_is_a_bad_row(tmp_path, mask, edit, says):
    bad = check(tmp_path, mask=levels(mask, 255), **MASKED, mask_edit=edit)
    assert bad.request is None
    (line,) = bad.lines()
    assert line == f"{tmp_path}/rows.jsonl, row 1: mask_image: m.png: repaints nothing ({says})"
    # Nobody looks when planning where check_images says so; then the request fails, and says the same.
    unlooked = check_rows([str(tmp_path / "rows.jsonl")], RULES)
    failure = prepare_request(Placed(0, next(unlooked).request), Roots((str(tmp_path),))).failure
    assert failure.code == "bad_image" and line.endswith(failure.message)


def test_a_black_mask_inverted_and_one_that_grows_over_all_are_notes(tmp_path):
    for mask, edit in ((HALF & ~HALF, "invert"), (HOLE, "grow=64")):
        row = check(tmp_path, mask=levels(mask, 255), **MASKED, mask_edit=edit)
        assert row.request and row.notes == ("mask_image: repaints everything, as img2img does without a mask",)


def test_a_request_with_a_changed_mask_repaints_the_changed_part(tmp_path):
    for edit in ("invert", {"grow": 5}, "invert, grow=-3, blur=2"):
        row = check(tmp_path, **MASKED, mask_edit=edit)
        made = prepare_request(Placed(0, row.request), Roots((str(tmp_path),)))
        assert isinstance(made, Conditioning)
        wanted = {"invert": ~HOLE, "grow=5": near(HOLE, 5), "invert, grow=-3, blur=2": ~near(HOLE, 3)}[row.request.mask_edit]
        assert np.array_equal(made.mask, wanted) and (made.share is not None) == ("blur" in row.request.mask_edit)


def test_a_mask_of_a_reference_is_not_changed_with_the_rows_own(tmp_path):
    rules = replace(RULES, references=("style",))
    reference = {"type": "style", "image": "i.png", "mask": "m.png"}
    row = check(tmp_path, rules, **MASKED, mask_edit="invert", mask=levels(HALF | ~HALF, 255), references=[reference])
    assert len(row.problems) == 1 and row.problems[0].startswith("mask_image: m.png")


@pytest.mark.parametrize("size", [(64, 64), (100, 80)])
def test_a_widened_init_image_keeps_its_pixels_and_its_new_sides_are_repainted(tmp_path, size):
    row = check(tmp_path, outpaint={"left": 16, "bottom": 8}, width=size[0] // 8 * 8, height=size[1] // 8 * 8)
    request = row.request
    assert request.mode == "inpaint" and request.outpaint == "left=16, bottom=8"
    assert from_json(json.loads(json.dumps(to_json(request)))) == request
    made = prepare_request(Placed(0, request), Roots((str(tmp_path),)))
    sides = parse_outpaint(request.outpaint)
    inner = sides.within(request.width, request.height)
    kept = made.init[: inner[1], 16:]
    assert np.array_equal(kept, prepare(Image.fromarray(PHOTO), *inner)) and made.init.shape[:2] == made.mask.shape
    assert np.array_equal(made.mask, widened_mask(sides, request.width, request.height))
    said = f"outpaint: the init_image of 64 x 64 pixels is scaled and cropped to the {inner[0]} x {inner[1]} that width and height"
    assert row.notes == (f"{said} leave for it",)
    fitting = check(tmp_path, outpaint="left=16, bottom=8", width=80, height=72)
    assert not fitting.notes
    made = prepare_request(Placed(0, fitting.request), Roots((str(tmp_path),)))
    assert np.array_equal(made.init[:64, 16:], PHOTO)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_each_format_says_the_same_changes_and_sides(tmp_path, ending):
    Image.fromarray(PHOTO).save(tmp_path / "i.png")
    levels(HOLE, 255).save(tmp_path / "m.png")
    place = tmp_path / f"rows.{ending}"
    wide, edit = {"left": 16, "overlap": 0}, {"invert": True, "grow": 3}
    if ending == "csv":
        lines = 'x,i.png,m.png,"invert, grow=3",', 'y,i.png,,,"left=16, overlap=0"', "z,,,,"
        place.write_text("\n".join(("prompt,init_image,mask_image,mask_edit,outpaint", *lines)))
    else:
        rows = [
            {"prompt": "x", "init_image": "i.png", "mask_image": "m.png", "mask_edit": edit},
            {"prompt": "y", "init_image": "i.png", "outpaint": wide},
            {"prompt": "z"},
        ]
        if ending == "parquet":
            pq.write_table(
                pa.Table.from_pylist([{"mask_image": None, "mask_edit": None, "outpaint": None} | row for row in rows]), place
            )
        else:
            place.write_text("\n".join(map(json.dumps, rows)))
    found = [checked.request for checked in check_rows([str(place)], RULES, roots_of([str(place)], (), 10**6))]
    assert [(one.mode, one.mask_edit, one.outpaint) for one in found] == [
        ("inpaint", "invert, grow=3", None),
        ("inpaint", None, "left=16, overlap=0"),
        ("txt2img", None, None),
    ]


BAD = {
    "mask_edit: given without a mask_image to change": {"mask_edit": "grow=3"},
    "outpaint: given without an init_image to widen": {"init_image": None, "outpaint": "left=8"},
    "outpaint: repaints the new sides; leave out the mask_image": {**MASKED, "outpaint": "left=8"},
    "mask_edit: only blur goes with outpaint": {"outpaint": "left=8", "mask_edit": "grow=2"},
    "mask_edit: only_masked renders a part of the picture": {
        **MASKED,
        "mask_edit": "only_masked",
        "controls": [{"type": "canny", "image": "i.png"}],
    },
    "outpaint: 40 + 24 pixels leave nothing of the init_image in a width of 64": {"outpaint": "left=40, right=24"},
    "outpaint: 0 + 56 pixels and an overlap of 8 leave nothing of the init_image in a height of 64": {"outpaint": "bottom=56"},
    "outpaint: 'lef' is not known": {"outpaint": {"lef": 8}},
    "outpaint: widens no side": {"outpaint": {"left": 0}},
    "outpaint: input should be a text": {"outpaint": 8},
    "outpaint: input should not be true or false": {"outpaint": True},
    "mask_edit: grow is a whole number of pixels": {**MASKED, "mask_edit": {"grow": "far"}},
}


@pytest.mark.parametrize(("says", "row"), BAD.items(), ids=BAD)
def test_a_row_that_asks_for_what_cannot_be_is_a_line(tmp_path, says, row):
    bad = check(tmp_path, **row)
    assert bad.request is None and len(bad.problems) == 1
    assert says in bad.problems[0] and "\n" not in bad.problems[0]


def test_a_control_that_sees_the_init_image_as_it_is_does_not_go_with_a_widened_one(tmp_path):
    can = Steering("ControlNet", ("controlnet_inpaint",), repaints=True)
    rules = replace(RULES, steering={"canny": can})
    bad = check(tmp_path, rules, outpaint="left=8", controls=[{"type": "canny", "image": "i.png"}])
    assert bad.problems == ("controls: 'canny' sees the init_image as it is, so that outpaint does not go with it",)


def test_rows_without_these_columns_have_the_same_plan_as_before(tmp_path):
    plain = to_json(check(tmp_path, **MASKED).request)
    assert not {"mask_edit", "outpaint"} & plain.keys()
    assert to_json(check(tmp_path, **MASKED, mask_edit="grow=0", outpaint={}).request) == plain
