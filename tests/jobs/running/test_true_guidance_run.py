"""True guidance beside a model's own through whole runs: in price, metadata, images that are made again, and in a second pass."""

import json

import pytest
import yaml
from click.testing import CliRunner

from promptmill.configs.loading import load
from promptmill.jobs.cli import main
from promptmill.jobs.planning.plan import read_plan
from promptmill.jobs.planning.shard_plans import read_shard
from promptmill.jobs.sharing.next_manifest import Pass, export_manifest
from promptmill.jobs.verifying.regenerate import regenerate
from promptmill.manifests.requests import to_json
from tests.jobs.running.test_every_family import config_of
from tests.jobs.running.test_run import problems, rows
from tests.pipelines.tiny_families import MAKERS

ASKED = {"prompt": "a small red circle", "negative_prompt": "blue", "seed": 1}
LINES = [{"id": "plain", **ASKED}, {"id": "led", **ASKED, "true_cfg_scale": 3}, {"id": "more", **ASKED, "true_cfg_scale": 6.5}]


def run(folder, lines, name):
    given = config_of(folder / "model", folder / f"{name}.jsonl")
    given["defaults"] |= {"steps": 2, "scheduler": "euler", "candidates": 1}
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(given))
    done = CliRunner().invoke(main, ["run", str(folder / f"{name}.yaml"), "--out", str(folder / name)])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of two runs, one without the column, and what the run with the column has said."""
    folder = tmp_path_factory.mktemp("led")
    MAKERS["flux-schnell"](folder / "model")
    run(folder, LINES[:1], "without")
    return folder, run(folder, LINES, "with")


def test_a_led_row_costs_two_evaluations_a_step_and_its_negative_prompt_has_an_effect(done):
    folder, said = done
    out = folder / "with"
    assert problems(out) == []
    assert rows(out, "id, true_cfg_scale, negative_prompt, unet_evaluations FROM RUNS ORDER BY key") == [
        ("plain", None, "", 2),
        ("led", 3.0, "blue", 4),
        ("more", 6.5, "blue", 4),
    ]
    assert read_plan(str(out)).counts.evaluations == 10
    assert "negative_prompt: has no effect without a true_cfg_scale above 1" in said
    assert len({digest for (digest,) in rows(out, "pixel_sha256 FROM RUNS")}) == len(LINES)
    for (key,) in rows(out, "key FROM RUNS"):
        assert regenerate(str(out), key).same, key


def test_a_dataset_that_does_not_use_it_has_neither_the_column_nor_the_word(done):
    folder, _ = done
    (placed,) = read_shard(str(folder / "without"), 0).requests
    assert "true_cfg_scale" not in to_json(placed.request)
    plan = read_plan(str(folder / "without"))
    assert "true_cfg_scale" not in plan.form.names and "true_cfg_scale" not in json.dumps(plan.inputs)
    assert "true_cfg" not in json.loads((folder / "without" / "plan" / "plan.json").read_text())["counts"]
    same = "pixel_sha256 FROM RUNS WHERE id = 'plain'"
    assert rows(folder / "without", same) == rows(folder / "with", same)


def test_a_second_pass_takes_the_scale_over(done, tmp_path):
    folder, _ = done
    export_manifest(str(folder / "with"), tmp_path / "next.jsonl", Pass())
    written = [json.loads(line) for line in (tmp_path / "next.jsonl").read_text().splitlines()]
    assert [row.get("true_cfg_scale") for row in written] == [line.get("true_cfg_scale") for line in LINES]


def test_the_configs_scale_is_part_of_its_fingerprint(done):
    folder, _ = done
    first = load(str(folder / "with.yaml")).render_config()
    second = load(str(folder / "with.yaml"), ["defaults.true_cfg_scale=2"]).render_config()
    assert "true_cfg_scale" not in first["defaults"] and second["defaults"]["true_cfg_scale"] == 2.0
