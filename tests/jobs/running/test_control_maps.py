"""That a run puts the control maps beside its images, and that all who read such a dataset know of them, or read on as before."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import webdataset
from click.testing import CliRunner
from PIL import Image

import promptmill
from promptmill.configs.loading import load
from promptmill.configs.own_files import ROOT
from promptmill.jobs.cli import main
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import read_plan
from promptmill.jobs.planning.sources import look
from promptmill.jobs.verifying.image_places import Given
from promptmill.jobs.verifying.regenerate import regenerate
from promptmill.jobs.verifying.verify import verify
from promptmill.pipelines.rendering.conditioning import prepare
from promptmill.pipelines.rendering.control_maps import control_map
from promptmill.shards import single_images
from promptmill.shards.bundles import unpack
from promptmill.shards.commits import read_records
from promptmill.shards.generations import taken_over
from promptmill.shards.single_images import pick
from promptmill.shards.tars import read_tar
from tests.chaos.site import published

IMAGES = ROOT / "configs/presets/quickstart/images"
PHOTO, SEGMENTS = IMAGES / "canny-05-picture.png", IMAGES / "seg-01-segments.png"
CANNY = {"type": "canny", "image": str(PHOTO), "preprocess": "canny"}
ROWS = (
    {"id": "one", "prompt": "a red circle", "controls": [CANNY]},
    {"id": "two", "prompt": "a red circle", "controls": [CANNY, {"type": "seg", "image": str(SEGMENTS)}], "seed": 1},
    {"id": "none", "prompt": "a blue square", "seed": 2},
)
SETTINGS = {"defaults__steps": 2, "defaults__candidates": 2, "runtime__image_roots": [str(IMAGES)]}


def rendered(folder, **settings):
    promptmill.render(ROWS, config="embedded", out=str(folder), **SETTINGS, **settings)
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A dataset with maps of two, one and no control."""
    return rendered(tmp_path_factory.mktemp("maps") / "out", shards__controls=True)


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """The same dataset without maps."""
    return rendered(tmp_path_factory.mktemp("maps") / "out")


@pytest.fixture
def copy(dataset, tmp_path):
    """A copy that a test may harm."""
    return Path(shutil.copytree(dataset, tmp_path / "out"))


def samples(out):
    return [*read_tar((out / "data/000000.tar").read_bytes())]


def problems(out):
    return [str(found) for found in verify(str(out)) if not hasattr(found, "totals")]


def test_beside_an_image_lie_the_maps_that_its_controlnets_got_at_the_rendered_size(dataset):
    (one, two, none) = samples(dataset)
    assert sorted(none.files) == ["json", "png", "txt"]
    picture = prepare(Image.open(PHOTO), 64, 64)
    edges = control_map("canny", picture)
    for sample in (one, two):
        assert (np.asarray(Image.open(io.BytesIO(sample.files["control.0.png"]))) == edges).all()
    segments = Image.open(io.BytesIO(two.files["control.1.png"]))
    assert (np.asarray(segments) == prepare(Image.open(SEGMENTS), 64, 64)).all()


def test_rows_and_the_json_beside_an_image_say_hash_and_size_of_each_map(dataset):
    rows = promptmill.open(dataset).table(["id", "control_maps", "selected"]).to_pylist()
    assert {row["id"]: len(row["control_maps"]) for row in rows} == {"one": 1, "two": 2, "none": 0}
    for sample in samples(dataset):
        told = json.loads(sample.files["json"])["control_maps"]
        assert [entry["bytes"] for entry in told] == [len(sample.files[f"control.{n}.png"]) for n in range(len(told))]
    assert problems(dataset) == []


def test_without_the_key_no_byte_of_a_dataset_and_no_fingerprint_is_another(dataset, without, tmp_path):
    names = {name for sample in samples(without) for name in sample.files}
    assert names == {"json", "png", "txt"}
    assert "control_maps" not in promptmill.open(without).table().column_names
    hashes = [promptmill.open(out).table(["pixel_sha256"]).to_pylist() for out in (dataset, without)]
    assert hashes[0] == hashes[1]
    manifest = tmp_path / "rows.txt"
    manifest.write_text("a red circle\n")
    plans = [
        make_plan(look(load("embedded", [f"manifest={manifest}", *more])), str(tmp_path / str(number)))
        for number, more in enumerate(([], ["shards.controls=false"], ["shards.controls=true"]))
    ]
    assert plans[0].fingerprint == plans[1].fingerprint != plans[2].fingerprint
    assert plans[0].form == plans[1].form


def test_webdataset_and_datasets_read_images_and_maps(dataset, tmp_path):
    tars = [str(dataset / "data/000000.tar")]
    read = [*webdataset.WebDataset(tars, shardshuffle=False).decode("pil")]
    assert [sorted(name for name in sample if name.startswith("control.")) for sample in read] == [
        ["control.0.png"],
        ["control.0.png", "control.1.png"],
        [],
    ]
    assert read[0]["control.0.png"].size == read[0]["png"].size == (64, 64)
    rows = datasets.load_dataset(str(dataset), split="train", cache_dir=str(tmp_path))
    assert [(row["control.0.png"] is None, row["control.1.png"] is None) for row in rows] == [
        (False, True),
        (False, False),
        (True, True),
    ]


def altered(out, change):
    """Rewrite the tar of a dataset, its files as `change` returns them by name and content; a commit record that fits it."""
    place, made = out / "data/000000.tar", io.BytesIO()
    with tarfile.open(place) as there, tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as written:
        for member in there:
            content = change(member.name, there.extractfile(member).read())
            if content is not None:
                member.size = len(content)
                written.addfile(member, io.BytesIO(content))
    place.write_bytes(made.getvalue())


@pytest.mark.parametrize("change", ["another", "missing", "surplus"])
def test_verify_names_a_map_that_is_not_its_rows(copy, change):
    other = samples(copy)[1].files["control.1.png"]

    def changed(name, content):
        if name.startswith("000000-00000") and name.endswith("control.0.png"):
            return {"another": other, "missing": None, "surplus": content}[change]
        return content

    altered(copy, changed)
    if change == "surplus":
        with tarfile.open(copy / "data/000000.tar", "a") as tar:
            member = tarfile.TarInfo(f"{samples(copy)[2].key}.control.0.png")
            member.size = len(other)
            tar.addfile(member, io.BytesIO(other))
    found = problems(copy)
    assert any("its control maps are not those of its row" in line for line in found), found


def command(*arguments):
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_lost_tar_is_made_again_with_its_maps(copy, dataset):
    (copy / "data/000000.tar").unlink()
    command("verify", copy, "--repair", "--image-root", IMAGES)
    assert published(copy) == published(dataset)


def test_an_image_is_made_again_alone(dataset):
    sample = samples(dataset)[1]
    again = regenerate(str(dataset), sample.key, Given((str(IMAGES),)))
    assert again.same and again.image == sample.files["png"]


def test_each_image_is_found_in_its_tar_by_the_lengths_of_what_stands_before_it(dataset, monkeypatch):
    (record,) = read_records(str(dataset))
    table = promptmill.open(dataset).table()
    monkeypatch.setattr(single_images, "_in_the_whole", None)
    images = pick(str(dataset), record.file("data"), table, "png", {sample.key for sample in samples(dataset)})
    assert images == {sample.key: sample.files["png"] for sample in samples(dataset)}


def test_sheet_report_copy_and_a_second_pass_read_on(dataset, tmp_path):
    command("sheet", dataset, "--to", tmp_path / "sheet.png")
    command("report", dataset, "--to", tmp_path / "report.html")
    command("dedup", dataset, "--hash", 0, "--to", tmp_path / "copy")
    left = samples(tmp_path / "copy")
    assert left and all(
        sample.files == samples(dataset)[place].files | {"json": sample.files["json"]} for place, sample in enumerate(left)
    )
    assert problems(tmp_path / "copy") == []
    again = [f"manifest={dataset / 'data/000000.tar'}", f"runtime.image_roots=[{IMAGES}]"]
    plan = make_plan(look(load("embedded", again)), str(tmp_path / "second"))
    assert plan.counts.modes == {"img2img": 1, "controlnet_img2img": 2}
    assert read_plan(str(dataset)).counts.steered == {"1": 1, "2": 1}


def test_a_row_that_is_tried_again_takes_the_maps_of_the_others_over(dataset):
    (record,) = read_records(str(dataset))
    form = read_plan(str(dataset)).form
    _, cells = taken_over(str(dataset), record, {0}, form)
    (_, two, none) = samples(dataset)
    assert {key: unpack(cell) for key, cell in cells.items()} == {
        two.key: (two.files["png"], (two.files["control.0.png"], two.files["control.1.png"])),
        none.key: (none.files["png"], ()),
    }
