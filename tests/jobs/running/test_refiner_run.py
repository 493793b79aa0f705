"""A base of SDXL with its refiner through the whole job, by tiny models of random weights."""

import json
import shutil

import pytest

from promptmill.configs.errors import ConfigError
from promptmill.configs.loading import load
from promptmill.configs.own_files import ROOT
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError, read_plan
from promptmill.jobs.planning.sources import look
from promptmill.jobs.verifying.regenerate import regenerate
from tests.jobs.running.test_run import HERE, problems, rendered, rows, run_by_command
from tests.pipelines import tiny, tiny_unets

PROMPT = "a small red circle at the left on a black background"
PICTURE = ROOT / "configs" / "presets" / "quickstart" / "images" / "img2img-01-init.png"
WAYS = [
    {},
    {"steps": 6, "guidance_scale": 1.0},
    {"steps": 5, "scheduler": "euler_a", "negative_prompt": "blue"},
    {"steps": 8, "scheduler": "model", "seed": 3},
    {"steps": 10, "init_image": "init.png", "strength": 0.8},
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny.sdxl(folder / "base")
    tiny_unets.refiner(folder / "refiner")
    (folder / "refiner" / "README.md").write_text("---\nlicense: openrail++\n---\n")
    shutil.copy(PICTURE, folder / "init.png")
    lines = [{"id": str(number), "prompt": PROMPT, **way} for number, way in enumerate(WAYS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder, [
        f"manifest={folder / 'rows.jsonl'}",
        f"model.base={folder / 'base'}",
        f"model.refiner={{source: {folder / 'refiner'}, switch: 0.6}}",
        "model.controlnets={}",
        "model.batch=3",
        "shards.size=2",
        "defaults.steps=4",
        "defaults.guidance_scale=5",
        "defaults.scheduler=dpmpp_2m",
        "defaults.candidates=2",
        HERE,
    ]


@pytest.fixture(scope="module")
def out(settings, tmp_path_factory):
    return run_by_command(settings[1], tmp_path_factory.mktemp("run") / "out")


def test_every_row_is_kept_and_the_evaluations_of_both_denoisers_are_counted_as_planned(out):
    assert problems(out) == []
    found = rows(out, "id, unet_evaluations FROM RUNS WHERE selected ORDER BY id")
    assert found == [("0", 8), ("1", 6), ("2", 10), ("3", 16), ("4", 16)]
    ((spent,),) = rows(out, "sum(unet_evaluations) FROM RUNS")
    assert read_plan(str(out)).counts.evaluations == spent


def test_every_image_is_made_again_alone_to_its_bits(out):
    for (key,) in rows(out, "key FROM RUNS ORDER BY key"):
        assert regenerate(str(out), key).same, key


def test_a_refiner_and_its_switch_are_part_of_the_fingerprint_and_its_licence_of_the_card(settings, out, tmp_path):
    _, given = settings
    plan = read_plan(str(out))
    assert plan.inputs["models"]["model.refiner"].startswith("sha256:")
    assert "refiner" not in load("embedded", ["manifest=x"]).render_config()["model"]
    later = [setting.replace("switch: 0.6", "switch: 0.7") for setting in given]
    assert make_plan(look(load("embedded", later)), str(tmp_path / "later")).fingerprint != plan.fingerprint
    card = (out / "README.md").read_text()
    assert "refiner" in card and "openrail++" in card


def test_drafts_are_refined_too(settings, tmp_path):
    more = [*settings[1], "defaults.candidates=4", "ranking.drafts=[{steps: 3, keep: 2}]", "ranking.drafts_stochastic=true"]
    totals, _ = rendered(load("embedded", more), tmp_path / "out")
    assert (totals.requests, totals.failed) == (len(WAYS), 0)
    assert problems(tmp_path / "out") == []
    for (key,) in rows(tmp_path / "out", "key FROM RUNS WHERE selected ORDER BY key"):
        assert regenerate(str(tmp_path / "out"), key).same, key


def test_a_mask_or_a_scheduler_whose_steps_cannot_be_divided_is_a_bad_row(settings, tmp_path):
    folder, given = settings
    shutil.copytree(folder, tmp_path / "bad")
    images = [{"init_image": "a.png", "mask_image": "a.png"}, {"scheduler": "heun"}]
    lines = [{"id": str(number), "prompt": PROMPT, **way} for number, way in enumerate(images)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(PlanError) as caught:
        make_plan(look(load("embedded", [f"manifest={tmp_path / 'rows.jsonl'}", *given[1:]])), str(tmp_path / "out"))
    said = "\n".join(caught.value.problems)
    assert "mode: inpaint is not served by the model; it serves txt2img, img2img" in said
    assert "scheduler: heun does not fit the model" in said


def test_controls_beside_a_refiner_and_a_refiner_that_misfits_are_one_line(settings, tmp_path):
    folder, given = settings
    with pytest.raises(ConfigError, match="a refiner does not go with controlnets yet; leave one of the two out"):
        load("embedded", [*given, "model.controlnets={canny: {source: ./x}}"])
    with pytest.raises(PlanError, match=r"^model\.refiner: .*base takes no aesthetics score, .*; is it a base\?$"):
        look(load("embedded", [*given, f"model.refiner={{source: {folder / 'base'}}}"]))
    with pytest.raises(ConfigError, match="switch"):
        load("embedded", [*given, f"model.refiner={{source: {folder / 'refiner'}, switch: 1.0}}"])


def test_a_row_that_leaves_the_base_or_the_refiner_no_step_is_a_bad_row_and_so_is_its_draft(settings, tmp_path):
    folder, given = settings
    weak = {"steps": 10, "init_image": "init.png", "strength": 0.3}
    ways = [{}, {"steps": 1}, {"steps": 2, "scheduler": "lcm"}, weak, {"steps": 3}]
    shutil.copy(folder / "init.png", tmp_path / "init.png")
    lines = [{"id": str(number), "prompt": PROMPT, **way} for number, way in enumerate(ways)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    mine = [f"manifest={tmp_path / 'rows.jsonl'}", *given[1:]]
    with pytest.raises(PlanError) as caught:
        make_plan(look(load("embedded", mine)), str(tmp_path / "out"))
    said = [line.partition(", ")[2] for line in caught.value.problems if "steps: of" in line]
    before, after = "none is before model.refiner.switch 0.6", "none is after model.refiner.switch 0.6"
    assert said == [
        f"row 2: steps: of 1 steps {after}; take more steps, or another switch",
        f"row 3: steps: of 2 steps {after}; take more steps, or another switch",
        f"row 4: steps: of 3 steps {before}; take more steps, a higher strength, or another switch",
    ]
    drafts = "ranking.drafts=[{steps: 1, keep: 2}]"
    with pytest.raises(PlanError) as caught:
        make_plan(look(load("embedded", [*given, drafts, "defaults.candidates=4"])), str(tmp_path / "drafts"))
    assert "steps: in a draft of ranking.drafts: of 1 steps none is after" in "\n".join(caught.value.problems)
