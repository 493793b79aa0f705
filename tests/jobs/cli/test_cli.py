import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import click
import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from ray.exceptions import RayTaskError

from promptmill.actors.flow.actor_slots import AbortError
from promptmill.configs.own_files import ROOT
from promptmill.jobs.cli import main
from promptmill.jobs.cli.endings import one_line_errors
from promptmill.shards.commits import CommitError
from promptmill.shards.lease import await_holder, hold, holder_of
from promptmill.shards.parts import PartError
from promptmill.shards.storage import StorageError, get, join, names, put
from tests import warm
from tests.jobs.running.test_run import HERE, published

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


def says(result, status):
    """The lines of a command that ended by itself: with this status, and not by an error that nobody expected."""
    assert result.exit_code == status, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result.stderr.splitlines()


def started(arguments):
    """The command as a process of its own."""
    return warm.started("promptmill", arguments)


def test_plan_says_rows_images_units_and_price(manifest):
    result = plan(manifest)
    assert result.exit_code == 0
    assert "requests     1 (txt2img 1)" in result.output
    assert "images       4 candidates, at most 1 kept" in result.output
    assert "units        1 in 1 bucket and 1 shard" in result.output
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
    (line,) = says(plan(manifest, *settings, config=config), 2)
    assert said in line
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


def test_status_says_who_is_at_it(manifest):
    plan(manifest)
    out = str(manifest.parent / "out")
    with hold(out):
        lines = invoke("status", out).output.splitlines()
        assert lines[0].startswith(f"being written by process {os.getpid()} on ")
        assert str(os.getpid()) in json.loads(invoke("status", out, "--json").output)["being_written_by"]
    assert invoke("status", out).output.startswith("not finished")


def test_a_run_that_may_wait_goes_on_as_soon_as_the_other_has_ended(tmp_path):
    out, held = str(tmp_path / "out"), threading.Event()

    def other():
        with hold(out):
            held.set()
            time.sleep(1)

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    said = []
    await_holder(out, 0, said.append)
    assert holder_of(out) is not None and not said
    await_holder(out, 30, said.append)
    assert holder_of(out) is None
    assert said[0].startswith(f"waiting for process {os.getpid()} on ")
    thread.join()


def test_the_schema_takes_what_the_presets_say_and_refuses_an_unknown_key():
    schema = json.loads(invoke("schema").output)
    validator = jsonschema.validators.validator_for(schema)(schema)
    validator.check_schema(schema)
    for name in invoke("presets").output.split():
        content = yaml.safe_load((ROOT / "configs" / "presets" / f"{name}.yaml").read_text())
        validator.validate(content)
        with pytest.raises(jsonschema.ValidationError):
            validator.validate({**content, "modle": {}})


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
    assert "1 row without an image" in summary

    assert invoke("verify", out).exit_code == 0
    assert "finished" in invoke("status", out).output
    tar = out / "data" / "000000.tar"
    tar.write_bytes(tar.read_bytes()[:-1024])
    result = invoke("verify", out)
    assert result.exit_code == 1
    assert "data/000000.tar" in result.output


def test_interrupted_once_it_finishes_what_is_in_flight_and_goes_on_to_the_same_bytes(manifest):
    out = manifest.parent / "out"
    lines = [json.dumps({"prompt": PROMPT, "seed": 10 * i}) for i in range(48)]
    manifest.write_text("\n".join(lines))
    arguments = [
        "run",
        "embedded",
        "--out",
        out,
        "--set",
        f"manifest={manifest}",
        *FEW,
        "--set",
        "shards.size=4",  # so many units that most are not in flight at the signal
        "--set",
        "runtime.generators=2",
        "--set",
        "defaults.steps=4",
    ]
    run = started(arguments)
    for line in run.stdout:
        if json.loads(line)["event"] == "progress":
            run.send_signal(signal.SIGINT)
            break
    rest, said = run.communicate(timeout=120)
    assert run.returncode == 130, said
    assert '"stopping"' in rest
    assert "the same command goes on" in said
    done = len(list((out / "parts").iterdir())) + len(list((out / "commits").glob("*")))
    assert done
    assert "not finished" in invoke("status", out).output

    # What it had made stays: only the rest is rendered.
    here = ("--set", HERE, "--set", "runtime.generators=1")
    parts = {path: path.stat().st_mtime_ns for path in (out / "commits").glob("*")}
    again = invoke(*arguments, *here)  # the units that Ray's workers left, and no others, whoever renders them
    assert again.exit_code == 0
    assert json.loads(again.stdout.splitlines()[-1])["totals"]["kept"] == 48
    assert all(path.stat().st_mtime_ns == then for path, then in parts.items())
    assert invoke("verify", out).exit_code == 0

    calm = manifest.parent / "calm"
    assert invoke("run", "embedded", "--out", calm, *arguments[4:], *here).exit_code == 0
    assert published(calm) == published(out)


def test_a_denied_output_is_one_line(manifest):
    if os.geteuid() == 0:
        # Root may write anywhere; a file where a folder has to be refuses root too.
        (manifest.parent / "out").write_text("")
    else:
        (manifest.parent / "out").mkdir(mode=0o500)
    (line,) = says(plan(manifest), 1)
    assert line.startswith(f"{manifest.parent}/out/plan")


def test_a_preset_works_from_any_folder(tmp_path):
    command = shutil.which("promptmill") or [sys.executable, "-m", "promptmill"]
    began = time.monotonic()
    arguments = [*(command if isinstance(command, list) else [command]), "plan", "quickstart", "--no-measure", "--out", "here"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "here" / "plan" / "plan.json").exists()
    assert time.monotonic() - began < 60


def remote(error):
    """The error as Ray hands it over from a worker."""
    return RayTaskError("assemble", "Traceback\n  over there\n" * 20, error, "worker", 1, "127.0.0.1").as_instanceof_cause()


ERRORS = [
    StorageError("s3://b/parts/x: Access Denied"),
    PartError("x: truncated"),
    CommitError("x: is of another plan"),
    AbortError("x: full"),
]


WRAPPED = {
    "bare": lambda error: error,
    "remote": remote,
    "grouped": lambda error: ExceptionGroup("a", [ExceptionGroup("b", [error])]),
    "remote and grouped": lambda error: ExceptionGroup("a", [remote(error)]),
}


@pytest.mark.parametrize("how", WRAPPED)
@pytest.mark.parametrize("error", ERRORS, ids=[type(error).__name__ for error in ERRORS])
def test_an_error_is_its_own_line_however_it_was_wrapped_on_its_way(error, how):
    @click.command()
    def command():
        with one_line_errors():
            raise WRAPPED[how](error)

    assert says(CliRunner().invoke(command), 1) == [str(error)]


@pytest.mark.parametrize(
    "error", [KeyError("a bug"), remote(KeyError("a bug")), ExceptionGroup("a", [ERRORS[0], KeyError("a bug")])]
)
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)), one_line_errors():
        raise error


@pytest.mark.parametrize("uri", ["foo://x", "gs://bucket/x"])
def test_a_storage_that_nobody_here_knows_is_one_line(manifest, uri, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    results = [invoke("plan", "embedded", "--out", uri, "--no-measure", "--set", f"manifest={manifest}")]
    results += [invoke(command, uri) for command in ("status", "verify", "sheet")]
    for result in results:
        (line,) = says(result, 1)
        assert line.startswith((f"{uri}/", f"{uri}:"))


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "where",
    [
        "promptmill.jobs.planning.planned.look",
        "promptmill.jobs.planning.planned.make_plan",
        "promptmill.actors.local_ray.cluster.ray.init",
    ],
)
def test_interrupted_before_anything_renders_is_one_line_and_exit_130(manifest, where, monkeypatch):
    monkeypatch.setattr("promptmill.actors.local_ray.cluster.ray.is_initialized", lambda: False)
    monkeypatch.setattr(where, interrupt)
    (line,) = says(invoke("run", "embedded", "--out", manifest.parent / "out", "--set", f"manifest={manifest}"), 130)
    assert line == "stopped; what is done is durable, and the same command goes on"


def test_of_many_bad_rows_fifty_are_named_and_the_rest_counted(manifest):
    manifest.write_text('{"prompt": "x", "steps": 0}\n' * 60)
    lines = says(plan(manifest), 2)
    assert len(lines) == 51
    assert lines[-1] == "… and 10 more like these"


@pytest.mark.parametrize("place", ["~/out", "local://HOME/out", "file://HOME/out"])
def test_an_output_may_begin_at_home_and_name_its_scheme(manifest, place, monkeypatch):
    home = manifest.parent
    monkeypatch.setenv("HOME", str(home))
    uri = place.replace("HOME", str(home))
    assert invoke("plan", "embedded", "--out", uri, "--no-measure", "--set", f"manifest={manifest}").exit_code == 0
    assert (home / "out" / "plan" / "plan.json").exists()
    assert says(invoke("status", uri), 0) == []


def run_here(manifest, out, *options):
    """A run of few steps in this process."""
    return invoke("run", "embedded", "--out", out, "--set", f"manifest={manifest}", "--set", HERE, *FEW, *options)


def test_a_stop_that_comes_after_the_last_unit_still_finishes(manifest, monkeypatch):
    from promptmill.jobs.showing.progress import JsonLines

    counted = JsonLines.unit

    def stop_at_last(self, receipt):
        counted(self, receipt)
        if self.tally.settled == self.tally.candidates:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(JsonLines, "unit", stop_at_last)
    assert run_here(manifest, manifest.parent / "out").exit_code == 0
    assert (manifest.parent / "out" / "_SUCCESS").exists()


def test_a_truncated_part_is_one_line_and_healed_by_the_next_run(manifest):
    out = manifest.parent / "out"
    part = out / "parts" / "000000-00000.parquet"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"PAR1 and then nothing")
    lines = says(run_here(manifest, out), 1)
    said = "truncated or altered; deleted: run again, and what it held is rendered again"
    assert [line for line in lines if not line.startswith("{")] == [f"{part}: {said}"]
    assert not part.exists()
    assert run_here(manifest, out).exit_code == 0
    assert says(invoke("verify", out), 0) == []


def test_parts_that_cannot_be_written_end_the_run_with_one_line(manifest):
    out = manifest.parent / "out"
    out.mkdir()
    (out / "parts").write_text("a file where a folder has to be, which refuses root too")
    lines = [line for line in says(run_here(manifest, out), 1) if not line.startswith("{")]
    assert len(lines) == 1
    assert lines[0].startswith(f"{out}/parts/000000-00000.parquet: ")
    assert not (out / "commits").exists()


def test_shards_of_another_plan_are_not_mixed_in(manifest):
    out = manifest.parent / "out"
    plan(manifest)
    files = [{"path": path, "size": 1, "sha256": "0" * 64} for path in ("data/000000.tar", "metadata/000000.parquet")]
    record = {"shard": 0, "generation": 0, "files": files, "fingerprint": "e" * 64}
    counts = {"requests": 1, "candidates": 4, "kept": 1, "rejected": 3, "failed": 0, "failed_requests": 0}
    put(f"{out}/commits/000000.json", json.dumps(record | counts).encode())
    result = invoke("run", "embedded", "--out", out, "--set", f"manifest={manifest}", "--set", HERE)
    (line,) = says(result, 1)
    assert line.startswith(f"{out}/commits/000000.json: is of another plan, {'e' * 16}, this one is ")
    assert not (out / "_SUCCESS").exists()
    assert any("commits/000000.json: is of the plan" in line for line in invoke("verify", out).output.splitlines())


def test_a_run_on_s3_from_its_plan_to_its_sheet(manifest, s3_bucket):
    out = join(s3_bucket, "some", "out")
    arguments = ["embedded", "--out", out, "--set", f"manifest={manifest}", *FEW]
    assert invoke("plan", *arguments, "--no-measure").exit_code == 0
    assert "not finished" in invoke("status", out).output
    run = started(["run", *arguments, "--set", HERE])
    _, said = run.communicate(timeout=280)
    assert run.returncode == 0, said
    assert f"shards       {out}/data" in said
    assert list(names(join(out, "data"))) == ["000000.tar"]
    assert list(names(join(out, "parts"))) == []
    assert get(join(out, "_SUCCESS")) == b""
    assert invoke("status", out).output.startswith("finished")
    assert invoke("verify", out).exit_code == 0
    assert invoke("sheet", out, "--to", manifest.parent / "sheet.png").output.startswith("1 image in")


def test_a_tuned_plan_has_the_batch_that_pays_and_a_run_need_not_be_told(manifest):
    out = manifest.parent / "tuned"
    said = ["embedded", "--out", out, "--set", f"manifest={manifest}", "--no-measure"]
    result = invoke("plan", *said, "--tune")
    assert result.exit_code == 0, result.output
    assert "batch 1 " in result.output
    assert "<- pays" in result.output
    batch = json.loads((out / "plan" / "plan.json").read_text())["tuned_batch"]
    assert batch in (1, 2, 4, 8, 16, 32, 64)
    assert invoke("plan", *said).exit_code == 0
    again = invoke("plan", *said, "--tune")
    assert again.exit_code == 2
    assert "is planned already" in again.output
