"""A decoder with its prior through the whole job: the prior is part of the fingerprint, and the metadata say how it was asked."""

import json

import pytest

from promptmill.configs.loading import load
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import read_plan
from promptmill.jobs.planning.sources import look
from promptmill.jobs.verifying.regenerate import regenerate
from tests.jobs.running.test_run import HERE, problems, rows, run_by_command
from tests.pipelines.tiny_stages import cascade

WAYS = [{}, {"prior_steps": 2, "steps": 4}, {"prior_guidance_scale": 1, "guidance_scale": 1}, {"negative_prompt": "blue"}]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    cascade(folder / "base")
    (folder / "base" / "prior" / "README.md").write_text("---\nlicense: mit\n---\n")
    lines = [{"id": str(number), "prompt": "a small red circle", **way} for number, way in enumerate(WAYS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [
        f"manifest={folder / 'rows.jsonl'}",
        f"model.base={folder / 'base'}",
        f"model.prior={{source: {folder / 'base' / 'prior'}}}",
        "model.controlnets={}",
        "model.batch=2",
        "defaults={width: 64, height: 32, steps: 3, prior_steps: 4, guidance_scale: 2, scheduler: model, candidates: 2}",
        HERE,
    ]


@pytest.fixture(scope="module")
def out(given, tmp_path_factory):
    return run_by_command(given, tmp_path_factory.mktemp("run") / "out")


def test_the_metadata_say_how_the_prior_was_asked_and_count_the_rows_of_both_models(out):
    assert problems(out) == []
    found = rows(out, "id, prior_steps, prior_guidance_scale, unet_evaluations FROM RUNS WHERE selected ORDER BY id")
    assert found == [("0", 4, 4.0, 14), ("1", 2, 4.0, 12), ("2", 4, 1.0, 7), ("3", 4, 4.0, 14)]
    ((spent,),) = rows(out, "sum(unet_evaluations) FROM RUNS")
    assert read_plan(str(out)).counts.evaluations == spent


def test_an_image_is_made_again_alone_to_its_bits(out):
    for (key,) in rows(out, "key FROM RUNS WHERE NOT selected ORDER BY key"):
        assert regenerate(str(out), key).same, key


def test_a_prior_is_part_of_the_fingerprint_and_its_licence_of_the_card(given, out, tmp_path):
    plan = read_plan(str(out))
    assert plan.inputs["models"]["model.prior"].startswith("sha256:")
    others = load("embedded", ["manifest=x"]).render_config()
    assert "prior" not in others["model"] and not {"prior_steps", "prior_guidance_scale"} & others["defaults"].keys()
    later = [one.replace("prior_steps: 4", "prior_steps: 5") for one in given]
    assert make_plan(look(load("embedded", later)), str(tmp_path / "later")).fingerprint != plan.fingerprint
    card = (out / "README.md").read_text()
    assert "prior" in card and "mit" in card
