"""A transformer through the whole job, by the embedded flow family: mixed rows, drafts, kills, and images made again."""

import json
import os
import shutil
import signal

import pytest
from click.testing import CliRunner

from promptmill.configs.loading import load
from promptmill.configs.own_files import ROOT
from promptmill.jobs.cli import main
from promptmill.jobs.verifying.regenerate import regenerate
from tests import warm
from tests.jobs.running.test_run import HERE, problems, published, rendered, rows

PROMPTS = (
    "a red circle",
    "a small red circle at the left and a large blue square at the right on a yellow background",
    "a large green cross at the top on a white background",
)
GROWS = {"start": 2, "max": 4, "until_score": 99}


IMAGES = ROOT / "configs" / "presets" / "quickstart" / "images"


def manifest(folder):
    """Rows that differ in steps, guidance, mode, control, prompt and number of candidates, with their images beside them."""
    segments, init = "seg-01-segments.png", "img2img-01-init.png"
    for name in (segments, init):
        shutil.copy(IMAGES / name, folder / name)
    ways = [
        {},
        {"steps": 6, "guidance_scale": 1.0},
        {"steps": 10, "guidance_scale": 5.0, "negative_prompt": "a white background"},
        {"init_image": init, "strength": 0.5, "steps": 8},
        {"controls": [{"type": "seg", "image": segments, "scale": 0.8}]},
        {"controls": [{"type": "seg", "image": segments, "end": 0.5}], "steps": 6, "guidance_scale": 1.0},
        {"candidates": GROWS, "steps": 4},
    ]
    lines = [{"id": str(number), "prompt": PROMPTS[number % 3], **way} for number, way in enumerate(ways)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"manifest={folder / 'rows.jsonl'}"


SETTINGS = (
    "model.batch=4",
    "shards.size=2",
    "defaults.steps=5",
    "defaults.candidates=4",
    "ranking.drafts=[{steps: 2, keep: 2}]",
    HERE,
)


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flow")
    totals, _ = rendered(load("embedded-flow", [manifest(folder), *SETTINGS]), folder / "out")
    return folder / "out", totals


def test_every_row_is_accounted_for_and_nothing_fails(calm):
    out, totals = calm
    assert (totals.requests, totals.failed) == (7, 0)
    assert totals.kept == 7
    assert problems(out) == []
    modes = {mode for (mode,) in rows(out, "DISTINCT mode FROM RUNS")}
    assert modes == {"txt2img", "img2img", "controlnet"}


def test_every_image_is_made_again_alone_to_its_bits(calm):
    out, _ = calm
    for (key,) in rows(out, "key FROM RUNS WHERE selected ORDER BY key"):
        assert regenerate(str(out), key).same, key


def test_a_run_that_is_killed_goes_on_to_the_same_bytes(calm, tmp_path):
    words = ["run", "embedded-flow", "--out", str(tmp_path / "out"), "--set", manifest(tmp_path)]
    words += [word for setting in SETTINGS for word in ("--set", setting)]
    process = warm.started("promptmill", words)
    for line in process.stdout:
        if '"settled"' in line or '"shard"' in line:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert CliRunner().invoke(main, words).exit_code == 0
    assert published(tmp_path / "out") == published(calm[0])
