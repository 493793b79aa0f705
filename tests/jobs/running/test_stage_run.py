"""Runs whose kept images go through stages, from the command line: what is planned, rendered, verified and made again."""

import hashlib
import io
import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.numpy import save_file

import promptmill
from promptmill.actors.flow.actor_slots import StartError
from promptmill.configs.errors import ConfigError
from promptmill.configs.loading import load
from promptmill.jobs.cli import main
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.planning.sources import look
from promptmill.jobs.verifying.regenerate import regenerate
from promptmill.pipelines.rendering.upscaling import Upscaler
from promptmill.shards.tars import read_tar
from tests.jobs.running.test_run import HERE, problems, published, rendered

STAGES = (
    "stages=[{kind: hires, scale: 1.5, strength: 0.5, control: {type: canny, scale: 0.3}}, {kind: hires, tile: 64, strength: 0.2}]"
)
PROMPT = "a small red circle at the left on a black background"


UPSCALE = "stages=[{kind: upscale, source: ./embedded/weights/upscaler, scale: 2}]"


def config_of(folder, *settings):
    rows = [{"id": "a", "prompt": PROMPT, "seed": 5}, {"id": "b", "prompt": PROMPT, "candidates": 3, "keep": 2, "steps": 10}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return config_of_rows(folder, *settings)


def config_of_rows(folder, *settings):
    some = ("model.batch=4", "defaults.steps=5", "defaults.candidates=2", "defaults.scheduler=euler", STAGES, HERE)
    return load("embedded", [f"manifest={folder / 'rows.jsonl'}", *some, *settings])


BESIDE = "shards={stage0: true, controls: true, image_format: webp, quality: 80}"


def test_the_image_before_the_stages_lies_beside_each_kept_one_and_is_the_one_of_a_run_without_stages(tmp_path):
    rows = [
        {"id": "a", "prompt": PROMPT, "seed": 5},
        {"id": "b", "prompt": PROMPT, "controls": [{"type": "canny", "image": "x.png"}]},
    ]
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    config = config_of(tmp_path, BESIDE)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rendered(config, tmp_path / "out")
    assert problems(tmp_path / "out") == []
    rendered(config_of_rows(tmp_path, "stages=[]", "shards={controls: true}"), tmp_path / "plain")
    (tar,), (plain,) = ((tmp_path / name / "data").glob("*.tar") for name in ("out", "plain"))
    made, before = ({sample.key: sample.files for sample in read_tar(one.read_bytes())} for one in (tar, plain))
    assert [sorted(files) for files in made.values()] == [
        ["json", "stage0.png", "txt", "webp"],
        ["control.0.png", "json", "stage0.png", "txt", "webp"],
    ]
    for key, files in made.items():
        first = np.array(Image.open(io.BytesIO(files["stage0.png"])).convert("RGB"))
        assert np.array_equal(first, np.array(Image.open(io.BytesIO(before[key]["png"])).convert("RGB")))
        said = json.loads(files["json"])
        assert said["stage0"] == {"sha256": hashlib.sha256(files["stage0.png"]).hexdigest(), "bytes": len(files["stage0.png"])}
        assert files.get("control.0.png") == before[key].get("control.0.png")
    # An image by itself is found in the tar whatever lies beside it.
    assert {key: image.size for key, image, _ in promptmill.open(tmp_path / "out").images()} == dict.fromkeys(made, (192, 192))
    tar.write_bytes(tar.read_bytes().replace(b"stage0.png", b"stage1.png"))
    assert any("has the members" in problem for problem in problems(tmp_path / "out"))


def test_an_image_before_the_stages_needs_stages(tmp_path):
    with pytest.raises(ConfigError, match=r"shards\.stage0 is for stages, and the config has none"):
        config_of(tmp_path, "stages=[]", "shards.stage0=true")


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    record, _ = rendered(config_of(folder), folder / "out")
    assert (record.kept, record.rejected, record.failed) == (3, 2, 0)
    return folder / "out"


def test_a_finished_run_is_whole_and_its_images_have_the_size_of_the_last_stage(staged):
    assert problems(staged) == []
    images = {key: (image.size, row) for key, image, row in promptmill.open(staged).images()}
    assert len(images) == 3
    for size, row in images.values():
        assert size == (192, 192) == (row["width"], row["height"])
        assert [one["stage"] for one in row["stages"]] == ["rendered", "hires 1.5x", "hires 2x"]
        assert [one["width"] for one in row["stages"]] == [64, 96, 192]
        assert row["stages"][0]["score"] == row["clip_score"]


def test_the_price_of_the_plan_is_what_the_run_paid(staged):
    rows = promptmill.open(staged).table().to_pylist()
    plan = json.loads((staged / "plan" / "plan.json").read_text())
    assert sum(row["unet_evaluations"] for row in rows) == plan["counts"]["evaluations"] > plan["counts"]["staged"] > 0
    # Of both rows 96 x 96 pixels are 2.25 as many as 64 x 64, and each of the 25 tiles has as many.
    assert plan["counts"]["staged_alike"] > plan["counts"]["staged"]


def test_images_are_made_again_bit_for_bit_those_that_went_through_the_stages_and_those_that_did_not(staged):
    rows = promptmill.open(staged).table().to_pylist()
    for status in ("kept", "rejected"):
        made = regenerate(str(staged), next(row["key"] for row in rows if row["status"] == status))
        assert made.same


def test_an_image_that_failed_in_a_stage_is_made_again_through_the_stages_as_one_that_was_kept(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Upscaler, "upscale", lambda self, picture: (_ for _ in ()).throw(ValueError("no such thing")))
        rendered(config_of(tmp_path, UPSCALE), tmp_path / "out")
    assert problems(tmp_path / "out") == []
    rows = promptmill.open(tmp_path / "out").table().to_pylist()
    failed = [row for row in rows if row["status"] == "failed"]
    assert len(failed) == 3 and {row["error_message"] for row in failed} == {"stage upscale 2x: ValueError: no such thing"}
    made = regenerate(str(tmp_path / "out"), failed[0]["key"])
    assert Image.open(io.BytesIO(made.image)).size == (128, 128)


def test_a_damaged_shard_is_made_again_to_the_same_bytes(staged, tmp_path):
    before = published(staged)
    (tar,) = (staged / "data").glob("*.tar")
    tar.write_bytes(b"")
    done = CliRunner().invoke(main, ["verify", "--repair", str(staged)])
    assert done.exit_code == 0, done.output
    assert published(staged) == before


def test_the_plan_says_the_stages_and_their_price(tmp_path):
    config_of(tmp_path)
    words = ["--set", f"manifest={tmp_path / 'rows.jsonl'}", "--set", STAGES, "--no-measure", "--out", str(tmp_path / "out")]
    said = CliRunner().invoke(main, ["plan", "embedded", *words]).output
    assert "stages       hires 1.5x, then hires 2x, of the kept images\n" in said
    assert "of these for stages, as much as" in said


@pytest.mark.parametrize(
    ("stages", "problem"),
    [
        (
            "[{kind: hires, control: {type: cany}}]",
            "stages.0.control.type: no ControlNet 'cany'; did you mean 'canny'?",
        ),
        ("[{kind: hires, strength: 0.1}]", "stages.0.strength: 0.1 of 5 steps is less than one step; raise one of them"),
        (
            "[{kind: hires, scale: 8}, {kind: hires, scale: 8}, {kind: hires, scale: 8}]",
            "stages.2.scale: makes 32768 x 32768 pixels, and no side may have more than 8,192",
        ),
    ],
)
def test_a_stage_that_cannot_be_rendered_is_refused_by_the_plan_in_one_line(tmp_path, stages, problem):
    with pytest.raises(PlanError) as raised:
        make_plan(look(config_of(tmp_path, f"stages={stages}")), str(tmp_path / "out"))
    assert problem in raised.value.problems[0] and not (tmp_path / "out" / "plan" / "plan.json").exists()


@pytest.mark.parametrize(
    ("stages", "problem"),
    [
        ("[{kind: hires, tile: 64, overlap: 40}]", "stages.0: overlap 40 is more than half of the tile's 64 pixels"),
        ("[{kind: hires, overlap: 40}]", "stages.0: overlap is of tiles, and tile is not given"),
        ("[{kind: hires, scale: 0.5}]", "stages.0.scale: input should be greater than or equal to 1 (found 0.5)"),
        ("[{kind: hires, strenght: 0.5}]", "stages.0.strenght: unknown key; did you mean 'strength'?"),
        ("[{kind: larger}]", "stages.0.kind: 'larger' is none; there are hires, upscale, faces, detail"),
        ("[{kind: hires, steps: true}]", "stages.0.steps: input should not be true or false (found true)"),
        ("[{kind: faces, source: ./a.safetensors}]", "stages.0: faces are found by yunet or by a detector; give one of them"),
        ("[{kind: faces, source: ./a.safetensors, yunet: {source: ./a.bin}}]", "stages.0.yunet.source: a file that ends in .onnx"),
        ("[{kind: upscale, source: ./a.safetensors}]", "stages.0.scale: "),
        ("[{kind: upscale, source: ./a.pth, scale: 2}]", "stages.0.source: only .safetensors files are read"),
    ],
)
def test_a_stage_that_is_none_is_refused_with_its_key(tmp_path, stages, problem):
    with pytest.raises(ConfigError) as raised:
        config_of(tmp_path, f"stages={stages}")
    assert problem in str(raised.value)


def test_an_upscaler_of_unknown_architecture_ends_the_run_with_one_line_before_anything_is_rendered(tmp_path):
    save_file({"weight": np.ones((3, 3), np.float32)}, tmp_path / "odd.safetensors")
    config = config_of(tmp_path, f"stages=[{{kind: upscale, source: {tmp_path / 'odd.safetensors'}, scale: 2}}]")
    with pytest.raises(
        StartError, match=r"^[^\n]*odd.safetensors: is of no architecture that spandrel [0-9.]+ knows; it holds weight$"
    ):
        rendered(config, tmp_path / "out")
    assert not (tmp_path / "out" / "parts").exists()


def test_an_upscaler_is_in_the_fingerprint_by_its_content_and_a_missing_one_is_said_by_the_plan(tmp_path):
    plan = make_plan(look(config_of(tmp_path, UPSCALE)), str(tmp_path / "out"))
    assert plan.inputs["models"]["stages.0"].startswith("sha256:") and "spandrel" in plan.inputs["versions"]
    assert "spandrel" not in look(config_of(tmp_path)).inputs["versions"]
    with pytest.raises(PlanError, match="upscalor: no such folder"):
        look(config_of(tmp_path, UPSCALE.replace("upscaler", "upscalor")))
