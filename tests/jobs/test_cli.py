import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from jobs.cli import main
from pipelines.sources import ROOT

PROMPT = "a small red circle at the left on a black background"


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "manifest.jsonl"
    path.write_text(json.dumps({"prompt": PROMPT}) + "\n")
    return path


def invoke(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def plan(manifest, *settings, config="embedded", out="out"):
    options = [part for setting in settings for part in ("--set", setting)]
    return invoke("plan", config, "--out", manifest.parent / out, "--no-measure", "--set", f"manifest={manifest}", *options)


def started(arguments, **options):
    """The command as a process of its own, in the group of this one's children."""
    command = [sys.executable, "-m", "jobs", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_plan_says_rows_images_units_and_price(manifest):
    result = plan(manifest)
    assert result.exit_code == 0
    assert "requests     1 (txt2img 1)" in result.output
    assert "images       4 candidates, at most 1 kept" in result.output
    assert "units        1 in 1 buckets and 1 shards" in result.output
    assert "price        160 evaluations" in result.output


def test_plan_measures_time_and_disk_when_asked(manifest):
    result = invoke("plan", "embedded", "--out", manifest.parent / "out", "--json", "--set", f"manifest={manifest}")
    assert result.exit_code == 0
    estimate = json.loads(result.stdout.splitlines()[-1])["estimate"]
    assert 0.1 < estimate["seconds"] < 300
    assert 1000 < estimate["disk"] < 1_000_000


BAD_CONFIGS = {
    "no such preset": ("embeded", (), "neither a .yaml file nor a preset; did you mean 'embedded'?"),
    "unknown key": ("embedded", ("model.bsae=x",), "model.bsae: unknown key; did you mean 'base'?"),
    "unpinned hub model": ("embedded", ("model.base=some/model",), "needs a revision"),
    "wrong type": ("embedded", ("defaults.steps=many",), "defaults.steps: input should be a valid integer"),
    "out of range": ("embedded", ("defaults.strength=2",), "defaults.strength: input should be less than or equal to 1"),
    "no such folder": ("embedded", ("model.base=./nowhere",), "no such folder"),
    "no such scorer": ("embedded", ("ranking.model=ViT-B-33", "ranking.pretrained=x"), "ViT-B-33: open_clip knows no model"),
    "keep over candidates": ("embedded", ("defaults.keep=9",), "keep 9 is more than candidates 4"),
    "broken setting": ("embedded", ("defaults",), "not of the form key.path=value"),
    "no such manifest": ("embedded", ("manifest=nowhere.jsonl",), "nowhere.jsonl: no such file"),
    "no checker": ("embedded", ("model.safety_checker=true",), "brings no safety checker"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_bad_config_is_one_line_and_exit_2(manifest, name):
    config, settings, said = BAD_CONFIGS[name]
    result = plan(manifest, *settings, config=config)
    assert result.exit_code == 2
    assert said in result.output
    assert "Traceback" not in result.output
    assert not (manifest.parent / "out").exists()


def test_a_bad_manifest_is_a_line_a_row_and_exit_2_and_nothing_is_rendered(manifest):
    manifest.write_text('{"prompt": "x", "width": 65}\n{"promt": "x"}\nnot json\n{"prompt": "x", "init_image": "no.png"}\n')
    for command in ("plan", "run"):
        result = invoke(command, "embedded", "--out", manifest.parent / "out", "--set", f"manifest={manifest}")
        assert result.exit_code == 2
        lines = result.output.splitlines()
        assert [line.split(": ")[0] for line in lines if line.startswith(str(manifest))] == [
            f"{manifest}, row {i}" for i in (1, 2, 3, 4)
        ]
        assert "width: input should be a multiple of 8 (found 65)" in lines[0]
        assert not (manifest.parent / "out" / "data").exists()


def test_another_plan_in_the_output_is_refused_with_what_changed(manifest):
    assert plan(manifest).exit_code == 0
    result = plan(manifest, "defaults.steps=9")
    assert result.exit_code == 2
    assert "config.defaults.steps: was 20, is 9" in result.output


def test_status_of_nothing_is_exit_2_and_of_a_plan_says_what_is_left(manifest):
    assert invoke("status", manifest.parent / "nowhere").exit_code == 2
    plan(manifest)
    result = invoke("status", manifest.parent / "out")
    assert result.exit_code == 0
    assert "not finished" in result.output
    assert "candidates   0 of 4" in result.output
    assert json.loads(invoke("status", manifest.parent / "out", "--json").output)["done"]["candidates"] == 0


def test_the_schema_takes_what_the_presets_say_and_refuses_an_unknown_key():
    schema = json.loads(invoke("schema").output)
    for name in invoke("presets").output.split():
        content = yaml.safe_load((ROOT / "configs" / "presets" / f"{name}.yaml").read_text())
        jsonschema.validate(content, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**content, "modle": {}}, schema)


FEW = ("--set", "defaults.steps=2", "--set", "defaults.candidates=1", "--set", "model.batch=4")


def test_run_renders_from_nothing_says_where_to_look_and_verify_agrees(manifest):
    out = manifest.parent / "out"
    manifest.write_text(manifest.read_text() + '{"prompt": "x", "steps": 0}\n')
    run = started(["run", "embedded", "--out", out, "--set", f"manifest={manifest}", *FEW, "--set", "runtime.on_bad_row=record"])
    said, summary = run.communicate(timeout=280)
    assert run.returncode == 3, summary
    events = [json.loads(line) for line in said.splitlines()]
    assert [events[0]["event"], events[-1]["event"]] == ["note", "done"]
    assert {"ready", "loaded", "progress", "shard"} <= {event["event"] for event in events}
    done = events[-1]
    assert (done["exit"], done["totals"]["kept"], done["totals"]["failed_requests"]) == (3, 1, 1)
    assert set(done["seconds"]) == {"starting Ray", "loading models", "rendering", "publishing"}
    assert f"shards       {out}/data" in summary
    assert "1 requests have no image" in summary

    assert invoke("verify", out).exit_code == 0
    assert "finished" in invoke("status", out).output
    tar = out / "data" / "000000.tar"
    tar.write_bytes(tar.read_bytes()[:-1024])
    result = invoke("verify", out)
    assert result.exit_code == 1
    assert "data/000000.tar" in result.output


def test_interrupted_once_it_finishes_what_is_in_flight_and_goes_on_when_asked_again(manifest):
    out = manifest.parent / "out"
    lines = [json.dumps({"prompt": PROMPT, "seed": 10 * i}) for i in range(120)]
    manifest.write_text("\n".join(lines))
    arguments = ["run", "embedded", "--out", out, "--set", f"manifest={manifest}", *FEW, "--set", "shards.size=20"]
    run = started(arguments)
    for line in run.stdout:
        if json.loads(line)["event"] == "progress":
            run.send_signal(signal.SIGINT)
            break
    rest = run.stdout.read()
    said = run.stderr.read()
    assert run.wait(timeout=120) == 130, said
    assert '"stopping"' in rest
    assert "the same command goes on" in said
    done = len(list((out / "parts").iterdir())) + len(list((out / "commits").glob("*")))
    assert done
    assert "not finished" in invoke("status", out).output

    # What it had made stays: only the rest is rendered.
    parts = {path: path.stat().st_mtime_ns for path in (out / "commits").glob("*")}
    again = started(arguments)
    said, _ = again.communicate(timeout=280)
    assert again.returncode == 0
    assert json.loads(said.splitlines()[-1])["totals"]["kept"] == 120
    assert all(path.stat().st_mtime_ns == then for path, then in parts.items())
    assert invoke("verify", out).exit_code == 0


def test_a_denied_output_is_one_line(manifest):
    if os.geteuid() == 0:
        # Root may write anywhere; a file where a folder has to be refuses root too.
        (manifest.parent / "out").write_text("")
    else:
        (manifest.parent / "out").mkdir(mode=0o500)
    result = plan(manifest)
    assert result.exit_code == 1
    assert str(manifest.parent / "out") in result.output
    assert "Traceback" not in result.output


def test_a_preset_works_from_any_folder(tmp_path):
    command = shutil.which("promptmill") or [sys.executable, "-m", "jobs"]
    began = time.monotonic()
    arguments = [*(command if isinstance(command, list) else [command]), "plan", "quickstart", "--no-measure", "--out", "here"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "here" / "plan" / "plan.json").exists()
    assert time.monotonic() - began < 60
