"""Boxes through whole runs: in plan, metadata, images that are made again, and what a second pass takes over."""

import json

import pytest
import yaml
from click.testing import CliRunner

from promptmill.configs.loading import load
from promptmill.jobs.cli import main
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.planning.sources import look
from promptmill.jobs.sharing.next_manifest import Pass, export_manifest
from promptmill.jobs.verifying.regenerate import regenerate
from tests.jobs.running.test_every_family import config_of
from tests.jobs.running.test_run import problems, rows
from tests.pipelines import tiny, tiny_unets

CAT = {"phrase": "a red circle", "x0": 0.1, "y0": 0.2, "x1": 0.5, "y1": 0.9}
LINES = [
    {"id": "one", "prompt": "a", "gligen_boxes": [CAT], "seed": 1, "gligen_scheduled_sampling_beta": 1},
    {"id": "two", "prompt": "a", "gligen_boxes": [CAT, {**CAT, "phrase": "blue", "x1": 1.0}], "seed": 1},
    {"id": "other", "prompt": "a", "gligen_boxes": [{**CAT, "phrase": "a square"}], "seed": 1, "steps": 4},
]


def config_file(folder, base, manifest):
    given = config_of(base, manifest)
    given["defaults"] |= {"steps": 6, "scheduler": "ddim", "candidates": 1}
    place = folder / f"{base.name}.yaml"
    place.write_text(yaml.safe_dump(given))
    return str(place)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a run, with its config, its manifest and its output."""
    folder = tmp_path_factory.mktemp("boxes")
    (folder / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    config = config_file(folder, tiny_unets.gligen(folder / "model"), folder / "m.jsonl")
    said = CliRunner().invoke(main, ["run", config, "--out", str(folder / "out")])
    assert said.exit_code == 0, said.output
    return folder


def test_the_metadata_have_what_was_drawn_where_and_every_image_is_made_again(done):
    out = done / "out"
    assert problems(out) == []
    found = rows(out, "id, gligen_boxes, gligen_scheduled_sampling_beta FROM RUNS ORDER BY key")
    assert found == [
        (line["id"], line["gligen_boxes"], pytest.approx(line.get("gligen_scheduled_sampling_beta", 0.3))) for line in LINES
    ]
    assert len({digest for (digest,) in rows(out, "pixel_sha256 FROM RUNS")}) == len(LINES)
    for (key,) in rows(out, "key FROM RUNS"):
        assert regenerate(str(out), key).same, key


def test_the_output_is_the_manifest_of_a_second_pass(done, tmp_path):
    config = yaml.safe_load((done / "model.yaml").read_text()) | {"manifest": f"{done}/out/metadata/*.parquet"}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(config))
    said = CliRunner().invoke(main, ["run", str(tmp_path / "again.yaml"), "--out", str(tmp_path / "again")])
    assert said.exit_code == 0, said.output
    same = "list_sort(list(pixel_sha256)) FROM RUNS"
    assert rows(tmp_path / "again", same) == rows(done / "out", same)


def test_an_exported_manifest_has_the_boxes_where_the_conditioning_stays(done, tmp_path):
    for stays in (True, False):
        export_manifest(str(done / "out"), tmp_path / "next.jsonl", Pass(conditioning=stays))
        written = [json.loads(line) for line in (tmp_path / "next.jsonl").read_text().splitlines()]
        assert [row.get("gligen_boxes") or None for row in written] == [line["gligen_boxes"] if stays else None for line in LINES]


def test_another_model_refuses_boxes_in_one_line_before_anything_renders(done, tmp_path):
    config = config_file(tmp_path, tiny.stable_diffusion(tmp_path / "sd"), done / "m.jsonl")
    with pytest.raises(PlanError) as caught:
        make_plan(look(load(config)), str(tmp_path / "out"))
    assert "gligen_boxes: the model draws nothing in boxes; leave them out; models of GLIGEN do" in str(caught.value)
