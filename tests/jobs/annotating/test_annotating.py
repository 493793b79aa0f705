"""Datasets of maps alone: what is in them, that a killed one goes on to the same bytes, and what is refused."""

import hashlib
import io
import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from promptmill.configs.loading import load
from promptmill.configs.own_files import ROOT
from promptmill.embedded.pictures import draw, segmentation
from promptmill.embedded.world import sample_scene
from promptmill.jobs.annotating.inputs import parse_maps
from promptmill.jobs.annotating.rows import RowMaker
from promptmill.jobs.cli import main
from promptmill.jobs.planning.plan import PlanError
from promptmill.pipelines.rendering.annotators import Annotators
from promptmill.pipelines.rendering.control_maps import control_map
from promptmill.shards.commits import read_records
from promptmill.shards.tars import read_tar
from tests.jobs.annotating.killed import CLASSICAL, WRITES, made

PICTURES = 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of the embedded world, and a manifest whose last row but one names no picture that is there."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(5)
    made = draw([sample_scene(rng) for _ in range(PICTURES)], rng)
    np.save(folder / "labels.npy", made.labels)
    for number, pixels in enumerate(made.pixels):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    rows = [{"id": f"row {n}", "prompt": f"prompt {n}", "init_image": f"{n}.png", "topic": 1} for n in range(PICTURES)]
    rows.insert(PICTURES - 1, {"id": "gone", "image": "gone.png"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def files(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def samples(out):
    return {one.key: one.files for path in sorted((out / "data").iterdir()) for one in read_tar(path.read_bytes())}


def rows_of(out):
    return [row for path in sorted((out / "metadata").iterdir()) for row in pq.read_table(path).to_pylist()]


def pixels_of(content):
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.fixture(scope="module")
def calm(folder, tmp_path_factory):
    return made(folder / "rows.jsonl", tmp_path_factory.mktemp("calm") / "out", CLASSICAL)


def test_each_picture_has_its_maps_beside_it_and_each_row_of_the_manifest_a_row(folder, calm):
    found, rows = samples(calm), rows_of(calm)
    assert [row["id"] for row in rows] == [*(f"row {n}" for n in range(PICTURES - 1)), "gone", f"row {PICTURES - 1}"]
    assert len(found) == PICTURES and {row["key"] for row in rows if row["status"] == "kept"} == set(found)
    for row in rows:
        if row["status"] != "kept":
            continue
        there, picture = found[row["key"]], np.asarray(Image.open(folder / row["init_image"]))
        assert np.array_equal(pixels_of(there["png"]), picture)
        for ending, preprocess in {"canny": "canny", "blur": "blur", "canny-1": "canny(low=50)"}.items():
            assert np.array_equal(pixels_of(there[f"{ending}.png"]), control_map(preprocess, picture))
        assert there["txt"].decode() == row["prompt"] and json.loads(there["json"])["id"] == row["id"]
        said = {one["name"]: one for one in row["maps"]}
        assert said["canny-1"]["preprocess"] == "canny(low=50)" and said["blur"]["model"] is None
        assert said["canny"]["sha256"] == hashlib.sha256(there["canny.png"]).hexdigest()
        assert row["init_image_sha256"] == hashlib.sha256((folder / row["init_image"]).read_bytes()).hexdigest()


def test_a_picture_that_cannot_be_read_is_a_row_with_the_reason_and_records_count_it(calm):
    (gone,) = [row for row in rows_of(calm) if row["status"] == "failed"]
    assert gone["error"] == "bad_image" and "gone.png" in gone["error_message"] and gone["maps"] == []
    records = read_records(str(calm))
    assert [(one.requests, one.kept, one.failed) for one in records] == [(5, 5, 0), (5, 5, 0), (2, 1, 1)]
    for record in records:
        for file in record.files:
            content = (calm / file.path).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256)
    assert not [*(calm / "parts").iterdir()] and (calm / "_SUCCESS").exists()
    assert "10 pictures" not in (calm / "README.md").read_text() and "11 pictures" in (calm / "README.md").read_text()


@pytest.fixture(scope="module")
def killed(folder, tmp_path_factory):
    """A folder of datasets whose processes were killed, by the number of writes before."""
    place = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.jobs.annotating.killed", str(folder / "rows.jsonl"), str(place)]
    subprocess.run(command, check=True, cwd=ROOT, timeout=300)
    return place


@pytest.mark.parametrize("writes", WRITES)
def test_one_that_was_killed_goes_on_to_the_same_bytes(folder, calm, killed, writes):
    out = killed / str(writes)
    assert not (out / "_SUCCESS").exists()
    if writes == 3:
        (part, *_) = sorted((out / "parts").iterdir())
        part.write_bytes(part.read_bytes()[:-40])  # a damaged part is made again
    assert files(made(folder / "rows.jsonl", out, CLASSICAL)) == files(calm)


def test_killed_again_and_again_it_makes_nothing_twice(folder, calm, killed, monkeypatch):
    counted = []
    monkeypatch.setattr(RowMaker, "_row", lambda *given: counted.append(given))
    assert files(made(folder / "rows.jsonl", killed / "again", CLASSICAL)) == files(calm) and counted == []


def test_maps_by_a_model_are_the_annotators_own_and_say_which_model(folder, tmp_path):
    config = load("embedded", ["manifest=x.txt"])
    out = made(folder / "rows.jsonl", tmp_path / "out", "seg", config=config)
    held = Annotators(config.model.annotators, torch.device("cpu"))
    labels, found = np.load(folder / "labels.npy"), samples(out)
    for row in rows_of(out):
        if row["status"] == "kept":
            number = int(row["init_image"].removesuffix(".png"))
            one = pixels_of(found[row["key"]]["seg.png"])
            assert np.array_equal(one, held.map("seg", pixels_of(found[row["key"]]["png"])))
            assert (one == segmentation(labels[number])).all(-1).mean() > 0.98
            assert row["maps"][0]["model"].startswith("sha256:") and not row["maps"][0]["empty"]
    said = json.loads((out / "annotation.json").read_text())["inputs"]
    assert [*said["models"]] == ["model.annotators.seg"] and said["hardware"]
    assert "annotator seg" in (out / "README.md").read_text() and "Apache-2.0" in (out / "README.md").read_text().title()


def test_a_size_brings_pictures_and_maps_to_it(folder, tmp_path):
    out = made(folder / "rows.jsonl", tmp_path / "out", "grey", size=(96, 32))
    assert {pixels_of(one[name]).shape for one in samples(out).values() for name in ("png", "grey.png")} == {(32, 96, 3)}
    assert {(row["width"], row["height"]) for row in rows_of(out) if row["status"] == "kept"} == {(96, 32)}


def test_an_output_of_other_inputs_is_refused_and_left_as_it_is(folder, calm):
    before = files(calm)
    with pytest.raises(PlanError, match=r"was annotated from something else \(maps\); give another --to"):
        made(folder / "rows.jsonl", calm, "grey")
    with pytest.raises(PlanError, match="something else \\(size\\)"):
        made(folder / "rows.jsonl", calm, CLASSICAL, size=(64, 64))
    assert files(calm) == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hough", "--as: 'hough' is not known; there are none, canny"),
        ("canny,canny", "--as: canny is given twice"),
        ("none", "--as: none makes no map"),
        ("canny(low=50", "is neither a name nor"),
        ("", "--as: '' is neither"),
    ],
)
def test_maps_that_there_are_not_are_refused_in_one_line(text, said):
    with pytest.raises(PlanError) as refused:
        parse_maps(text)
    assert said in str(refused.value) and len(refused.value.problems) == 1


def test_the_command_says_what_it_did_and_each_mistake_in_one_line(folder, tmp_path):
    def said(*words):
        result = CliRunner().invoke(main, ["annotate", *map(str, words)])
        return result.exit_code, result.output.strip().splitlines()

    rows, out = folder / "rows.jsonl", tmp_path / "out"
    status, lines = said(rows, "--as", "grey", "--to", out)
    assert status == 3 and lines == [
        f"11 pictures with grey in {out}",
        f"1 row without a picture; see status and error in {out}/metadata",
    ]
    status, (line,) = said(rows, "--as", "depth", "--to", out)
    assert status == 2 and line.startswith("--as: depth needs a model; declare a depth model of transformers, such as")
    assert said(rows, "--as", "grey", "--to", out, "--size", "64")[1] == [
        "--size '64': write it as 512x512, width and height in pixels"
    ]
    assert said(rows, "--as", "grey", "--to", out, "--set", "a=b")[1] == [
        "--set: overrides a key of a config; give one as --config"
    ]
    bad = folder / "bad.jsonl"
    bad.write_text('{"id": "a", "init_image": "0.png"}\n{"id": "a", "init_image": "1.png"}\n{"prompt": "x"}\n')
    status, lines = said(bad, "--as", "grey", "--to", tmp_path / "bad")
    assert status == 2 and [line.partition("bad.jsonl, ")[2] for line in lines] == [
        "row 3: init_image: missing; each row names the picture that maps are made of",
        f"row 2: id: 'a' is also that of {bad}, row 1; ids are unique",
    ]
