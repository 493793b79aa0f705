"""A Python program renders and reads datasets as the command line does, and gets its words as exceptions."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

import promptmill
from promptmill.jobs.cli import main
from promptmill.shards.storage import get
from tests.jobs.running.test_run import published

PROMPTS = ["a small red circle at the left on a black background", "a large blue square on a white background"]
FEW = {"defaults": {"steps": 2, "candidates": 2}, "shards__size": 1}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two rows with a column of their own, rendered; one shard each."""
    out = tmp_path_factory.mktemp("api") / "out"
    rows = [{"prompt": prompt, "topic": topic} for prompt, topic in zip(PROMPTS, "ab", strict=True)]
    return promptmill.render(rows, out=out, progress=False, **FEW)


def test_rows_become_a_dataset_whose_images_and_rows_come_back(dataset):
    table = dataset.table(["key", "prompt", "topic", "selected"])
    assert table["prompt"].to_pylist() == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2 and table["topic"].to_pylist() == list("aabb")
    kept = list(dataset.images())
    assert [row["prompt"] for _, _, row in kept] == PROMPTS and all(image.size == (64, 64) for _, image, _ in kept)
    everything = list(dataset.images(selected=False))
    assert len(everything) == 4 and sum(image is None for _, image, _ in everything) == 2
    assert [key for key, image, _ in everything if image] == [key for key, _, _ in kept]
    assert dataset.verify() == [] and str(dataset).startswith("finished")
    again = promptmill.open(dataset.output)
    assert again.table().equals(dataset.table())


def test_a_report_is_one_file(dataset, tmp_path):
    assert dataset.report(tmp_path / "r.html").read_text().startswith("<!doctype html>")


def test_the_same_rows_again_render_nothing_and_other_rows_are_refused(dataset):
    rows = pd.DataFrame({"prompt": PROMPTS, "topic": ["a", "b"]}).to_dict("records")
    before = published(Path(dataset.output))
    assert promptmill.render(rows, out=dataset.output, progress=False, **FEW).verify() == []
    with pytest.raises(promptmill.Error, match=r"was planned from something else|committed row"):
        promptmill.render(rows[:1], out=dataset.output, progress=False, **FEW)
    assert published(Path(dataset.output)) == before


def test_the_command_line_and_python_make_the_same_bytes(tmp_path):
    manifest = tmp_path / "rows.jsonl"
    manifest.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    promptmill.render(manifest, out=tmp_path / "python", progress=False, **FEW)
    settings = ["manifest=" + str(manifest), "defaults.steps=2", "defaults.candidates=2", "shards.size=1", "runtime.workers=here"]
    command = ["run", "embedded", "--out", str(tmp_path / "command"), *(part for one in settings for part in ("--set", one))]
    assert CliRunner().invoke(main, command).exit_code == 0
    assert published(tmp_path / "python") == published(tmp_path / "command")
    # Rows in memory that make the same file are the same manifest.
    promptmill.render([{"prompt": prompt} for prompt in PROMPTS], out=tmp_path / "rows", progress=False, **FEW)
    assert published(tmp_path / "rows") == published(tmp_path / "python")


def test_it_works_where_an_event_loop_runs_as_in_jupyter(tmp_path):
    async def cell():
        return promptmill.render([{"prompt": PROMPTS[0]}], out=tmp_path / "out", progress=False, **FEW)

    assert asyncio.run(cell()).verify() == []


def test_images_in_rows_are_rendered_from_and_found_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = Image.fromarray(np.full((64, 64, 3), 200, np.uint8))
    image.save("there.png")
    rows = [
        {"prompt": PROMPTS[0], "init_image": image, "strength": 0.5},
        {"prompt": PROMPTS[0], "init_image": "there.png", "strength": 0.5},
    ]
    made = promptmill.render(rows, out="out", progress=False, **FEW)
    table = made.table(["status", "init_image_sha256", "mode"])
    assert set(table["status"].to_pylist()) <= {"ok", "kept", "rejected"} and set(table["mode"].to_pylist()) == {"img2img"}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda out: promptmill.render([{"promt": "x"}], out=out), "rows, row 1: prompt: missing"),
        (lambda out: promptmill.render([{"prompt": "x"}, {"prompt": "y", "steps": -1}], out=out), "rows, row 2: steps: "),
        (
            lambda out: promptmill.render([{"prompt": "x"}], out=out, defaults__stepz=1),
            "defaults.stepz=1: defaults.stepz: unknown key",
        ),
        (lambda out: promptmill.render([{"prompt": "x"}], config="embeded", out=out), "embeded: neither a .yaml file nor a preset"),
        (lambda out: promptmill.render([], out=out), "rows: has no rows"),
        (lambda out: promptmill.render(out / "none.jsonl", out=out), r"no such file|nothing matches|there is no"),
        (lambda out: promptmill.render([{"prompt": "x"}, 5], out=out), "row 2: is of the type int"),
        (lambda out: promptmill.open(out / "none"), "nothing was planned there"),
    ],
)
def test_what_is_wrong_is_one_error_in_the_command_lines_words(call, said, tmp_path):
    with pytest.raises(promptmill.Error, match=said) as error:
        call(tmp_path / "out")
    assert all(line and "\n" not in line for line in error.value.problems)


def test_a_plan_is_shown_and_nothing_is_rendered(tmp_path):
    planned = promptmill.plan([{"prompt": prompt} for prompt in PROMPTS], out=tmp_path / "out", **FEW)
    assert "candidates" in str(planned) and planned.facts["requests"] == 2
    assert not (tmp_path / "out" / "commits").exists()
    assert get(f"{planned.output}/plan/plan.json")


def test_importing_promptmill_brings_neither_ray_nor_torch():
    asked = "import sys, promptmill; promptmill.render, promptmill.open; print({'ray', 'torch', 'diffusers'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "set()"


def test_rows_that_are_made_are_planned_as_the_configs_are_and_a_dict_of_columns_alone_is_no_manifest(tmp_path):
    made = {"rows": 7, "seed": 3, "columns": {"color": {"product": ["red", "blue"]}, "prompt": "a small {{ color }} circle"}}
    model, scorer = "./embedded/weights/pipeline", "local-dir:./embedded/weights/clip"
    planned = promptmill.plan(made, out=tmp_path / "a")
    assert planned.facts["requests"] == 7 and "color" in str(planned)
    (tmp_path / "c.yaml").write_text(json.dumps({"manifest": made, "model": {"base": model}, "ranking": {"model": scorer}}))
    by_config = promptmill.plan(None, tmp_path / "c.yaml", tmp_path / "b")
    assert str(by_config).splitlines()[:3] == str(planned).splitlines()[:3]
    with pytest.raises(promptmill.Error, match=r"rows are of the type dict"):
        promptmill.plan({"prompt": ["a", "b"]}, out=tmp_path / "d")
    with pytest.raises(promptmill.Error, match=r"manifest.*columns"):
        promptmill.plan({"rows": 3}, out=tmp_path / "e")
