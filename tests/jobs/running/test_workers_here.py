"""Runs with the workers in one process: the same bytes as under Ray, no Ray, and every way to be ended."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from click.testing import CliRunner

from promptmill.configs.errors import ConfigError
from promptmill.configs.loading import load
from promptmill.jobs.cli import main
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.sources import look
from promptmill.jobs.running.rendering import StoppedError
from promptmill.jobs.running.run import run
from promptmill.jobs.running.stopping import Stop
from tests import warm
from tests.jobs.running.test_run import HERE, Watching, problems, published, rendered

PROMPT = "a small red circle at the left on a black background"
GROWS = {"start": 3, "max": 6, "until_score": 99}
# A request that is drafted, one of too few candidates for it, one that grows to its most, one that need not.
WAYS = [{}, {"candidates": 2, "keep": 2}, {"candidates": GROWS}, {"candidates": {**GROWS, "until_score": -99}}]
DRAFTS = ("model.batch=4", "shards.size=2", "defaults.steps=5", "defaults.candidates=4", "ranking.drafts=[{steps: 2, keep: 2}]")


def test_drafts_and_growing_make_the_bytes_of_rays_workers(ray_here, tmp_path):
    """What renders in one pass does so in every mode: `test_run` holds three generators on Ray against a run in this process."""
    rows = [{"id": str(number), "prompt": PROMPT, **way} for number, way in enumerate(WAYS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = (f"manifest={tmp_path / 'rows.jsonl'}", *DRAFTS)
    there, _ = rendered(load("embedded", [*settings, "runtime.generators=1"]), tmp_path / "ray")
    here, watching = rendered(load("embedded", [*settings, HERE]), tmp_path / "here")
    assert here == there and here.failed == 0
    assert published(tmp_path / "here") == published(tmp_path / "ray")
    assert watching.sizes.generators == watching.sizes.scorers == 1


def small(folder, *settings):
    """A config of few cheap requests in four shards."""
    rows = "".join(json.dumps({"id": str(number), "prompt": PROMPT}) + "\n" for number in range(8))
    (folder / "rows.jsonl").write_text(rows)
    some = ("model.batch=2", "shards.size=2", "defaults.steps=6", "defaults.candidates=2", "defaults.scheduler=ddim", HERE)
    return load("embedded", [f"manifest={folder / 'rows.jsonl'}", *some, *settings])


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("here")
    rendered(small(folder), folder / "out")
    return folder / "out"


def cut_units(monkeypatch):
    """Let each request be a unit."""
    monkeypatch.setattr("promptmill.pipelines.work.units.UNIT_EVALUATIONS", 1)


@pytest.mark.parametrize("calls", [1, 2])
def test_a_run_in_a_thread_is_asked_to_stop_once_or_at_once_and_goes_on_to_the_same_bytes(calls, calm, tmp_path, monkeypatch):
    cut_units(monkeypatch)
    stop, ended, config = Stop(), [], small(tmp_path)
    watching = Watching(lambda: [stop() for _ in range(calls)])

    def work():
        try:
            ended.append(run(make_plan(look(config), str(tmp_path / "out")), str(tmp_path / "out"), watching, stop=stop))
        except StoppedError as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(240)
    assert len(ended) == 1 and isinstance(ended[0], StoppedError)
    assert 1 <= len(watching.receipts) < 8
    rendered(config, tmp_path / "out")
    assert published(tmp_path / "out") == published(calm)
    assert problems(tmp_path / "out") == []


def command(folder, *words):
    small(folder)
    settings = [word for setting in ("defaults.steps=200", *SETTINGS) for word in ("--set", setting)]
    manifest = ["--set", f"manifest={folder / 'rows.jsonl'}"]
    return ["run", "embedded", "--out", str(folder / "out"), *manifest, *settings, *words]


SETTINGS = ("model.batch=2", "shards.size=2", "defaults.candidates=2", HERE)


def test_a_run_here_imports_no_ray_and_verifies_and_repairs_without(tmp_path):
    few = ["--set", "defaults.steps=2"]
    ran = command(tmp_path, *few)
    out = tmp_path / "out"
    program = f"""
import sys
from promptmill.jobs.cli import main
for words in ({ran!r}, ["verify", {str(out)!r}], "damage", ["verify", "--repair", {str(out)!r}], {[*ran, "--retry-failed"]!r}):
    if words == "damage":
        from pathlib import Path
        Path({str(out)!r}, "data", "000001.tar").write_bytes(b"")
        continue
    try:
        main(words)
    except SystemExit as ended:
        assert not ended.code, (words, ended.code)
found = sorted(name for name in sys.modules if name == "ray" or name.startswith("ray."))
assert not found, found
print("without Ray")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0 and done.stdout.endswith("without Ray\n"), done.stdout + done.stderr
    assert "repaired: 1 shard made again, the same bytes as before" in done.stdout


def started(folder, *words):
    """A run in a process of its own that has settled a unit."""
    process = warm.started("promptmill", command(folder, *words))
    for line in process.stdout:
        if '"settled"' in line or '"shard"' in line:
            return process
    raise AssertionError(process.communicate()[1])


def test_ctrl_c_finishes_what_is_in_flight_and_a_second_one_stops_at_once_with_one_line(tmp_path):
    process = started(tmp_path, "--set", "defaults.steps=80")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.splitlines()[-1].startswith("stopped; what is done is durable, and the same command goes on")
    assert not any(word in said for word in ("Traceback", "terminate called", "Aborted", "Fatal Python"))
    status = CliRunner().invoke(main, ["status", str(tmp_path / "out"), "--json"])
    assert not json.loads(status.stdout)["finished"]


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path):
    process = started(tmp_path, "--set", "defaults.steps=20")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    for folder in (tmp_path, tmp_path / "calm"):
        folder.mkdir(exist_ok=True)
        assert CliRunner().invoke(main, command(folder, "--set", "defaults.steps=20")).exit_code == 0
    assert published(tmp_path / "out") == published(tmp_path / "calm" / "out")


def test_a_unit_past_its_deadline_ends_the_run_with_one_line_that_names_it(tmp_path):
    words = ("--set", "runtime.unit_deadline_s=0.05")
    run = warm.started("promptmill", command(tmp_path, *words))
    _, errors = run.communicate(timeout=250)
    assert run.returncode == 1
    last = errors.splitlines()[-1]
    assert last.startswith(
        "unit 000000-00000 is not done within runtime.unit_deadline_s, 0.05 s, and a thread cannot be ended by itself"
    )
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("runtime.address=auto", "address"),
        ("runtime.metrics_port=9090", "metrics_port"),
        ("runtime.generators=2", "generators"),
        ("runtime.generators={min: 1, max: 2}", "generators"),
        ("runtime.scorers=3", "scorers"),
    ],
)
def test_what_only_ray_can_do_is_refused_in_one_line(setting, named, tmp_path):
    with pytest.raises(ConfigError) as caught:
        small(tmp_path, setting)
    (line,) = caught.value.problems
    assert f"take {named} away, or set workers: ray" in line
