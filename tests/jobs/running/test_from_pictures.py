"""That a prompt list of A1111's renders, and that its pictures render again to the same pixels, by what they say of themselves."""

import io
import tarfile

import pytest
from PIL import Image

import promptmill
from promptmill.jobs.verifying.regenerate import regenerate
from tests.manifests.test_prompt_lists import LISTS

HERE_PLANNED = {"runtime__workers": "here", "defaults__steps": 2, "defaults__width": 64, "defaults__height": 64}
HERE = {**HERE_PLANNED, "progress": False}


def rendered(manifest, out, **more):
    return promptmill.render(manifest, "embedded", out, **{**HERE, **more})


def pixels_of(dataset):
    return {row["id"]: row["pixel_sha256"] for row in dataset.table().to_pylist() if row["selected"]}


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """The dataset of a prompt list of A1111's, and the folder of its pictures by their keys."""
    place = tmp_path_factory.mktemp("listed")
    dataset = rendered({"lists": str(LISTS / "a1111-shapes.txt")}, place / "out", defaults__candidates=2, seed=3)
    folder = place / "pictures"
    folder.mkdir()
    for key, _, _ in dataset.images():
        (folder / f"{key}.png").write_bytes(dict(files_of(place / "out"))[f"{key}.png"])
    return dataset, folder


def files_of(out):
    for file in sorted(out.glob("data/*.tar")):
        with tarfile.open(file) as tar:
            for member in tar:
                yield member.name, tar.extractfile(member).read()


def test_a_list_renders_as_it_says(listed):
    dataset, _ = listed
    rows = dataset.table().to_pylist()
    kept = [row for row in rows if row["selected"]]
    assert [(row["steps"], row["scheduler"], row["guidance_scale"]) for row in kept[:3]] == [
        (4, "dpmpp_2m", 4.5),
        *[(3, "euler", kept[1]["guidance_scale"])] * 2,
    ]
    assert [row["seed"] for row in kept[1:3]] == [9, 10] and kept[0]["seed"] in (5, 6) and len(kept) == 4
    assert (
        kept[1]["negative_prompt"] == "a red circle"
        and kept[3]["prompt"] == "a large yellow triangle at the right on a blue background"
    )


def test_pictures_render_again_to_the_same_pixels(listed, tmp_path):
    dataset, folder = listed
    again = rendered({"pictures": str(folder)}, tmp_path / "again", defaults__candidates=4, defaults__steps=9, seed=99)
    before = {f"{row['key']}.png": row["pixel_sha256"] for row in dataset.table().to_pylist() if row["selected"]}
    assert pixels_of(again) == before and len(before) == 4


def test_varied_pictures_are_others_and_an_init_image_is_begun_with(listed, tmp_path):
    dataset, folder = listed
    varied = rendered({"pictures": f"{folder}/*.png", "use": "vary"}, tmp_path / "varied", defaults__candidates=1)
    before = {f"{row['key']}.png": row for row in dataset.table().to_pylist() if row["selected"]}
    rows = {row["id"]: row for row in varied.table().to_pylist()}
    assert set(rows) == set(before)
    assert all(
        rows[id]["prompt"] == row["prompt"] and rows[id]["pixel_sha256"] != row["pixel_sha256"] for id, row in before.items()
    )
    begun = rendered(
        {"pictures": str(folder), "use": "init_image"}, tmp_path / "begun", defaults__candidates=1, defaults__strength=0.5
    )
    assert {(row["mode"], row["init_image"], row["strength"]) for row in begun.table().to_pylist()} == {
        ("img2img", id, 0.5) for id in before
    }


def test_a_picture_of_a_stage_and_of_an_init_image_says_so_and_is_regenerated_byte_by_byte(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "i.png")
    rows = [{"id": "a", "prompt": "a large red circle", "init_image": str(tmp_path / "i.png"), "strength": 0.9, "candidates": 2}]
    stage = {"kind": "hires", "scale": 2, "strength": 0.5}
    given = {**HERE, "stages": [stage], "runtime__image_roots": [str(tmp_path)]}
    dataset = promptmill.render(rows, "embedded", tmp_path / "out", **given)
    ((key, _, row),) = dataset.images()
    content = dict(files_of(tmp_path / "out"))[f"{key}.png"]
    said = Image.open(io.BytesIO(content)).info
    assert row["init_image_sha256"] in said["XML:com.adobe.xmp"] and "hires" in said["XML:com.adobe.xmp"]
    assert "Denoising strength: 0.9" in said["parameters"]
    assert regenerate(str(tmp_path / "out"), key).image == content
    (tmp_path / "again.png").write_bytes(content)
    plan = promptmill.plan({"pictures": str(tmp_path / "again.png")}, "embedded", tmp_path / "a", **HERE_PLANNED)
    assert "another file" not in str(plan)
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "i.png")
    plan = promptmill.plan({"pictures": str(tmp_path / "again.png")}, "embedded", tmp_path / "b", **HERE_PLANNED)
    assert "init_image: is another file than the picture was made with" in str(plan)
