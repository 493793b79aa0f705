import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from promptmill.configs.parameters import Defaults
from promptmill.manifests.checking import check_rows, find_doubled
from promptmill.manifests.images import ImageError, Roots, load, locate, roots_of
from promptmill.manifests.repeated_ids import Ids, doubled
from promptmill.manifests.rules import Rules
from promptmill.manifests.sources import find_files

RULES = Rules(Defaults(width=64, height=64), controls=("canny", "seg"), loras=("style",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of manifests with some images in it, good and bad."""
    tmp_path = tmp_path_factory.mktemp("manifest")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "good.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "mask.png")
    Image.new("L", (32, 64), 255).save(tmp_path / "narrow.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:3000])
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "large.png").write_bytes(png_that_claims(10_000, 10_000))
    (tmp_path / "bomb.png").write_bytes(png_that_claims(100_000, 100_000))
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("/etc/hostname")
    return tmp_path


def png_that_claims(width, height):
    """A PNG of a few bytes whose header promises a huge picture: the one honest way to a decompression bomb."""
    packed = zlib.compress(bytes(1000))
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b""))
    body = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def check(folder, *rows, rules=RULES, images=True):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    files = find_files(str(path))
    return list(check_rows(files, rules, roots_of(files, (), 64_000_000) if images else None))


def request_of(folder, row, **options):
    (checked,) = check(folder, row, **options)
    assert not checked.problems, checked.lines()
    return checked.request


def test_defaults_fill_what_a_row_leaves_unsaid(folder):
    request = request_of(folder, {"prompt": "x"}, rules=Rules(Defaults(width=128, steps=9, negative_prompt="ugly")))
    assert (request.id, request.width, request.steps, request.negative_prompt, request.seed) == ("1", 128, 9, "ugly", None)


def test_a_default_that_a_mode_has_no_use_for_is_no_fault_of_its_rows_but_a_column_is(folder):
    rules = Rules(Defaults(guidance_rescale=0.5), rescaled=("txt2img",))
    drawn, from_image = check(folder, {"prompt": "x"}, {"prompt": "x", "init_image": "good.png"}, rules=rules)
    assert (drawn.request.guidance_rescale, from_image.request.guidance_rescale) == (0.5, 0.0)
    (said,) = check(folder, {"prompt": "x", "init_image": "good.png", "guidance_rescale": 0.3}, rules=rules)
    assert "guidance_rescale: not in mode img2img; the model takes it only in txt2img" in said.problems[0]


CONTROL = {"type": "canny", "image": "good.png"}


@pytest.mark.parametrize(
    ("row", "mode"),
    [
        ({}, "txt2img"),
        ({"init_image": "good.png"}, "img2img"),
        ({"init_image": "good.png", "mask_image": "mask.png"}, "inpaint"),
        ({"controls": [CONTROL]}, "controlnet"),
        ({"controls": [CONTROL], "init_image": "good.png"}, "controlnet_img2img"),
        ({"controls": [CONTROL], "init_image": "good.png", "mask_image": "mask.png"}, "controlnet_inpaint"),
    ],
)
def test_the_mode_follows_from_the_images(folder, row, mode):
    assert request_of(folder, {"prompt": "x", **row}).mode == mode
    assert request_of(folder, {"prompt": "x", "mode": mode, **row}).mode == mode


def test_the_flat_columns_of_csv_make_a_control(folder):
    row = {"prompt": "x", "control_type": "seg", "control_image": "good.png", "control_scale": "0.5", "seed": "3"}
    request = request_of(folder, row)
    (control,) = request.controls
    assert (control.type, control.scale, control.preprocess, request.seed) == ("seg", 0.5, "none", 3)


def test_unknown_columns_are_carried_and_under_strict_refused(folder):
    assert request_of(folder, {"prompt": "x", "topic": "cats"}).carried == {"topic": "cats"}
    (checked,) = check(folder, {"prompt": "x", "promt": "y"}, rules=Rules(Defaults(), strict=True))
    assert checked.problems == ("promt: unknown column; did you mean 'prompt'?",)


BROKEN_ROWS = {
    "no prompt": ({}, "prompt: missing"),
    "prompt of another type": ({"prompt": 3}, "prompt: input should be a valid string (found 3)"),
    "10 MB prompt": ({"prompt": "x" * 10_000_000}, "prompt: string should have at most 10000 characters"),
    "steps 0": ({"steps": 0}, "steps: input should be greater than or equal to 1"),
    "steps and a half": ({"steps": 7.5}, "steps: input should be a valid integer"),
    "steps as words": ({"steps": "many"}, "steps: input should be a valid integer"),
    "width 65": ({"width": 65}, "width: input should be a multiple of 8 (found 65)"),
    "width beyond": ({"width": 100_000}, "width: input should be less than or equal to 8192"),
    "negative height": ({"height": -64}, "height: input should be greater than or equal to 8"),
    "NaN strength": ({"strength": float("nan"), "init_image": "good.png"}, "strength: input should be a finite number"),
    "strength over 1": ({"strength": 1.5, "init_image": "good.png"}, "strength: input should be less than or equal to 1"),
    "strength of no step": ({"strength": 0.01, "init_image": "good.png"}, "strength: 0.01 of 20 steps is less than one step"),
    "strength of nothing": ({"strength": 0.5}, "strength: given without an init_image"),
    "infinite guidance": ({"guidance_scale": float("inf")}, "guidance_scale: input should be a finite number"),
    "unknown scheduler": ({"scheduler": "eular"}, "'eular' is not an allowed scheduler; did you mean 'euler'?"),
    "unknown mode": ({"mode": "video"}, "mode: input should be 'txt2img'"),
    "another mode": ({"mode": "img2img"}, "mode: stated as img2img, but the images given make it txt2img"),
    "negative seed": ({"seed": -1}, "seed: input should be greater than or equal to 0"),
    "seed of 33 bits": ({"seed": 2**32}, "seed: input should be less than 4294967296"),
    "keep over candidates": ({"candidates": 2, "keep": 3}, "keep: 3 of only 2 candidates"),
    "no candidates": ({"candidates": 0}, "candidates: input should be greater than or equal to 1"),
    "empty list id": ({"id": []}, "id: input should be a valid string"),
    "unknown control": ({"controls": [{**CONTROL, "type": "cany"}]}, "no ControlNet 'cany'; did you mean 'canny'?"),
    "control without image": ({"controls": [{"type": "canny"}]}, "controls.0.image: missing"),
    "control key": ({"controls": [{**CONTROL, "scal": 1}]}, "controls.0.scal: unknown key; did you mean 'scale'?"),
    "control window": ({"controls": [{**CONTROL, "start": 0.8, "end": 0.2}]}, "controls.0: start 0.8 is not before end 0.2"),
    "preprocess": ({"controls": [{**CONTROL, "preprocess": "cartoon"}]}, "controls.0.preprocess: 'cartoon' is not known; there are"),
    "controls twice": ({"controls": [CONTROL], "control_type": "canny"}, "controls: given beside control_type"),
    "controls as words": ({"controls": "canny"}, "controls: not a JSON list"),
    "unknown LoRA": ({"loras": [{"name": "styel"}]}, "loras: no LoRA 'styel'; did you mean 'style'?"),
    "mask alone": ({"mask_image": "mask.png"}, "mask_image: given without an init_image"),
    "missing image": ({"init_image": "gone.png"}, "init_image: gone.png: no such file in"),
    "image is a folder": ({"init_image": "folder.png"}, "init_image: folder.png: no such file"),
    "truncated image": ({"init_image": "cut.png"}, "init_image: cut.png: cannot be decoded"),
    "not an image": ({"init_image": "text.png"}, "init_image: text.png: not an image of a kind"),
    "empty image": ({"init_image": "empty.png"}, "empty.png: empty"),
    "huge number": ({"controls": "[" * 100_000}, "controls: not a JSON list"),
    "decompression bomb": ({"init_image": "bomb.png"}, "bomb.png: many more pixels than can be decoded safely"),
    "image too large": ({"init_image": "large.png"}, "large.png: 10000 x 10000 pixels are more than the 64,000,000 allowed"),
    "mask of another size": ({"init_image": "good.png", "mask_image": "narrow.png"}, "mask_image: 32 x 64 pixels, but the"),
    "path out of the root": ({"init_image": "../../etc/passwd"}, "init_image: ../../etc/passwd: leads out of"),
    "absolute path": ({"init_image": "/etc/passwd"}, "init_image: /etc/passwd: leads out of"),
    "link out of the root": ({"init_image": "link.png"}, "init_image: link.png: leads out of"),
    "URL": ({"init_image": "https://example.com/a.png"}, "init_image: https://example.com/a.png: URLs are not fetched"),
    "metadata address": ({"init_image": "s3://bucket/a.png"}, "leads out of"),
    "missing control image": ({"controls": [{**CONTROL, "image": "gone.png"}]}, "controls.0.image: gone.png: no such file"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "says"), BROKEN_ROWS.values(), ids=BROKEN_ROWS)
def test_a_broken_row_is_one_line_with_file_row_and_column_and_its_neighbours_stand(folder, row, says):
    prompt = {} if says.startswith("prompt: missing") else {"prompt": "x"}
    before, checked, after = check(folder, {"prompt": "a"}, {**prompt, **row}, {"prompt": "b"})
    assert before.request and after.request and checked.request is None
    assert any(says in line for line in checked.lines()), checked.lines()
    assert all(
        line.startswith(f"{folder}/rows.jsonl, row 2: ") and "\n" not in line and len(line) < 500 for line in checked.lines()
    )


def test_every_problem_of_a_row_is_listed(folder):
    (checked,) = check(folder, {"prompt": "x", "steps": 0, "width": 65, "seed": -1})
    assert len(checked.problems) == 3


def test_ids_that_occur_twice_name_the_row_that_had_them_first(folder):
    rows = [
        {"id": "a", "prompt": "x"},
        {"id": "b", "prompt": "x"},
        {"prompt": "x"},
        {"id": "a", "prompt": "y"},
        {"id": 3, "prompt": "z"},
    ]
    ids = Ids()
    for checked in check(folder, *rows):
        ids.add(checked.request.id)
    again = list(find_doubled(find_files(str(folder / "rows.jsonl")), RULES, ids))
    assert [line for c in again for line in c.lines()] == [
        f"{folder}/rows.jsonl, row 4: id: 'a' is also that of rows.jsonl, row 1; ids are unique",
        f"{folder}/rows.jsonl, row 5: id: '3' is also that of rows.jsonl, row 3; ids are unique",
    ]


def test_two_ids_that_share_a_hash_are_no_duplicates():
    same_hash = Ids()
    same_hash.add("a")
    same_hash.add("a")
    assert list(doubled([("a", "row 1"), ("b", "row 2")], same_hash.in_doubt())) == []


def test_distinct_ids_take_eight_bytes_each():
    ids = Ids()
    for number in range(100_000):
        ids.add(str(number))
    assert len(ids) == 100_000 and not ids.in_doubt()
    assert ids._hashes.itemsize == 8


def test_declared_roots_are_searched_after_the_manifests_own(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    Image.new("RGB", (8, 8)).save(other / "there.png")
    roots = Roots((str(folder),), declared=(str(other),))
    assert locate("there.png", roots) == str(other / "there.png")
    assert locate(str(other / "there.png"), roots) == str(other / "there.png")
    with pytest.raises(ImageError, match="leads out of"):
        locate("../x.png", Roots((str(folder),)))


def test_an_image_is_turned_as_its_exif_says(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (10, 20)).save(folder / "turned.jpg", exif=exif)
    roots = Roots((str(folder),))
    assert load("turned.jpg", roots).image.size == (20, 10)
