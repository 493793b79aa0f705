import hashlib
import json
import os
import random
import shutil
import threading
import time
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner

from promptmill.actors.flow.actor_slots import StartError
from promptmill.configs.loading import load
from promptmill.jobs.cli import main
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.planning.sources import look
from promptmill.jobs.running.run import run
from promptmill.jobs.showing.progress import Tally
from promptmill.jobs.verifying.problems import Problem
from promptmill.jobs.verifying.regenerate import regenerate
from promptmill.jobs.verifying.verify import verify
from promptmill.pipelines.work.units import parse_key
from tests.chaos.site import kill_one
from tests.pipelines import tiny

HERE = "runtime.workers=here"
on_ray = pytest.mark.usefixtures("ray_here")

PUBLISHED = ("data", "metadata", "commits")


class Watching:
    """A listener that remembers, and can be told to do something at the first unit."""

    def __init__(self, at_first_unit=lambda: None):
        self.tally, self.sizes, self.receipts, self.records = Tally(0), None, [], []
        self.at_first_unit = at_first_unit

    def ready(self, sizes):
        self.sizes = sizes

    def loaded(self): ...

    def skipped(self, candidates):
        self.tally.before += candidates

    def unit(self, receipt):
        self.receipts.append(receipt)
        if len(self.receipts) == 1:
            self.at_first_unit()

    def shard(self, record):
        self.records.append(record)

    def stopping(self, units): ...


def rendered(config, out, watching=None):
    plan = make_plan(look(config), str(out))
    watching = watching or Watching()
    totals = run(plan, str(out), watching)
    return totals, watching


def published(out):
    """Every published byte."""
    files = (path for folder in PUBLISHED for path in (Path(out) / folder).rglob("*"))
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def run_by_command(settings, out, preset="embedded"):
    """Renders a preset with these settings by `promptmill run`; returns the output."""
    words = [word for setting in settings for word in ("--set", setting)]
    done = CliRunner().invoke(main, ["run", preset, "--out", str(out), *words])
    assert done.exit_code == 0, done.output
    return out


def problems(out):
    return [str(problem) for problem in verify(str(out)) if isinstance(problem, Problem)]


def rows(out, sql):
    return duckdb.sql(f"SELECT {sql.replace('RUNS', repr(f'{out}/metadata/*.parquet'))}").fetchall()


FEW = ("defaults.steps=2", "defaults.candidates=2", "model.batch=8")


def quickstart_config(*settings):
    return load("quickstart", [*FEW, "shards.embeddings=all", *settings])


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The quickstart's manifest in every mode, at few steps, in this process: what all runs on Ray are held against."""
    out = tmp_path_factory.mktemp("runs") / "calm"
    totals, watching = rendered(quickstart_config(HERE), out)
    return out, totals, watching


def test_every_request_and_candidate_is_accounted_for(calm):
    out, totals, watching = calm
    assert (totals.requests, totals.candidates, totals.kept, totals.rejected, totals.failed) == (28, 56, 28, 28, 0)
    assert problems(out) == []
    assert sum(r.kept + r.rejected + r.failed for r in watching.receipts) == 56
    assert {path.name for path in out.iterdir()} == {
        "README.md", "_SUCCESS", "index.json", "plan", "stats", "parts", *PUBLISHED
    }  # fmt: skip
    assert not list((out / "parts").iterdir())


def test_the_best_by_clip_is_kept_and_ties_go_to_the_first(calm):
    out, _, _ = calm
    wrong = "count(*) FROM RUNS a JOIN RUNS b USING (id) WHERE a.selected AND (b.clip_score, -b.candidate_index) > "
    assert rows(out, wrong + "(a.clip_score, -a.candidate_index)") == [(0,)]
    assert rows(out, "count(*) FROM RUNS WHERE selected") == [(28,)]


def test_rows_carry_what_the_image_was_made_with(calm):
    out, _, _ = calm
    known = "seed - candidate_index, unet_evaluations, steps, batch_shape, mode, topic, init_image_sha256, len(sha256)"
    (row,) = rows(out, f"{known} FROM RUNS WHERE id = 'txt2img-02' AND selected")
    assert row == (1234, 4, 2, "8x64x64", "txt2img", "new scene", None, 64)
    assert rows(out, "count(*) FROM RUNS WHERE len(pixel_sha256) = 64") == [(56,)]
    assert rows(out, "count(*) FROM RUNS WHERE mode LIKE '%img2img' AND len(init_image_sha256) = 64") == [(10,)]
    assert rows(out, "count(*) FROM RUNS WHERE len(controls) = 2") != [(0,)]


def test_units_of_another_length_make_the_same_bytes(calm, tmp_path, monkeypatch):
    out, _, _ = calm
    monkeypatch.setattr("promptmill.pipelines.work.units.UNIT_EVALUATIONS", 2)
    _, watching = rendered(quickstart_config(HERE), tmp_path / "short")
    assert len(watching.receipts) > len(calm[2].receipts)
    assert published(tmp_path / "short") == published(out)


def test_candidates_in_slices_of_one_make_the_same_bytes_in_every_mode(calm, tmp_path, monkeypatch):
    out, _, _ = calm
    monkeypatch.setattr("promptmill.pipelines.work.units.UNIT_EVALUATIONS", 0.1)  # a request a unit, whatever its work
    monkeypatch.setattr("promptmill.pipelines.work.units.at_once", lambda request, batch: 1)
    _, watching = rendered(quickstart_config(HERE), tmp_path / "slices")
    assert sum(receipt.name.count("-") == 4 for receipt in watching.receipts) == 56
    assert sum(receipt.candidates for receipt in watching.receipts) == 56
    assert (sum(receipt.kept for receipt in watching.receipts), sum(receipt.requests for receipt in watching.receipts)) == (28, 28)
    assert published(tmp_path / "slices") == published(out)


def test_a_finished_run_is_not_run_again(calm):
    out, totals, _ = calm
    before = published(out)
    again, watching = rendered(quickstart_config(HERE), out)
    assert again == totals
    assert not watching.receipts
    assert published(out) == before


def test_a_run_goes_on_from_the_units_and_shards_that_are_durable(calm, tmp_path):
    out, _, _ = calm
    there = tmp_path / "half"
    shutil.copytree(out, there)
    for lost in ("commits/000001.json", "data/000001.tar", "metadata/000001.parquet", "index.json", "_SUCCESS"):
        (there / lost).unlink()
    _, watching = rendered(quickstart_config(HERE), there)
    assert {receipt.shard for receipt in watching.receipts} == {1}
    assert watching.tally.before == 32
    assert published(there) == published(out)
    assert (there / "_SUCCESS").exists()


@on_ray
def test_two_generators_on_ray_of_which_one_is_killed_make_the_bytes_of_one_in_this_process(calm, tmp_path):
    out, _, _ = calm
    killed = []

    def kill():
        killed.append(kill_one("ray::Generator", os.getpid(), random.Random(0)))

    watching = Watching(at_first_unit=lambda: threading.Thread(target=kill).start())
    there = tmp_path / "é" / "猫"  # names that Ray's actors cannot have
    rendered(quickstart_config("runtime.generators=2"), there, watching)
    assert killed == [True] and watching.sizes.generators == 2
    assert published(there) == published(out)


class Refusing:
    """A listener that raises at every call, and remembers what it was told."""

    def __init__(self):
        self.told = set()

    def __getattr__(self, name):
        def refuse(*_):
            self.told.add(name)
            raise RuntimeError(f"{name} is more than I can bear")

        return refuse


@on_ray
def test_an_output_is_written_though_every_listener_raises_at_every_call(calm, tmp_path, monkeypatch, capsys):
    out, totals, _ = calm
    there = str(tmp_path / "out")

    def refuse(*_):
        raise OSError("no metrics today")

    monkeypatch.setattr("promptmill.jobs.running.metrics._instrument", refuse)
    listener = Refusing()
    plan = make_plan(look(quickstart_config("runtime.generators=1")), there)
    assert run(plan, there, listener, listener.say) == totals
    assert published(there) == published(out)
    assert listener.told == {"ready", "loaded", "skipped", "unit", "shard", "say"}
    # Each says its first failure, and no other.
    said = [line.partition(" failed (")[0] for line in capsys.readouterr().err.splitlines() if " failed (" in line]
    assert sorted(said) == ["recording metrics", "saying what the run is at", "showing how the run goes"]


@pytest.fixture
def mixed(tmp_path, quickstart):
    """A manifest with rows that are bad before the run, and one whose image breaks behind the plan's back."""
    good = quickstart / "images"
    image = sorted(good.glob("img2img-*.png"))[0]
    shutil.copy(image, tmp_path / "fine.png")
    shutil.copy(image, tmp_path / "late.png")
    lines = [
        {"id": "fine", "prompt": "a small red circle at the left on a black background", "note": 7},
        {"id": "steps", "prompt": "x", "steps": 0, "note": 7.5},
        {"id": "late", "prompt": "x", "init_image": "late.png"},
        {"id": "gone", "prompt": "x", "init_image": "gone.png"},
        {"id": "beside", "prompt": "x", "init_image": "fine.png"},
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_bad_rows_are_recorded_and_the_rest_renders(mixed):
    settings = (f"manifest={mixed / 'manifest.jsonl'}", "runtime.on_bad_row=record", "runtime.check_images=at_run")
    config = load("embedded", [*FEW, *settings, "shards.size=3", HERE])
    plan = make_plan(look(config), str(mixed / "out"))
    (mixed / "late.png").write_bytes(b"\x89PNG no more")
    totals = run(plan, str(mixed / "out"), Watching())
    assert (totals.requests, totals.kept, totals.failed_requests) == (5, 2, 3)
    assert totals.candidates == totals.kept + totals.rejected + totals.failed == 8
    found = dict(rows(mixed / "out", "id, error FROM RUNS WHERE status = 'failed'"))
    assert found == {"steps": "bad_row", "late": "bad_image", "gone": "bad_image"}
    ((message,),) = rows(mixed / "out", "error_message FROM RUNS WHERE id = 'steps'")
    assert message.startswith("manifest.jsonl, row 2: steps: input should be greater than or equal to 1")
    assert problems(mixed / "out") == []


def test_an_image_that_changed_since_the_plan_fails_its_row(mixed):
    settings = (f"manifest={mixed / 'manifest.jsonl'}", "runtime.on_bad_row=record")
    plan = make_plan(look(load("embedded", [*FEW, *settings, HERE])), str(mixed / "out"))
    shutil.copy(sorted((mixed / "..").resolve().glob("**/fine.png"))[0], mixed / "other.png")
    pixels = bytearray((mixed / "late.png").read_bytes())
    (mixed / "late.png").write_bytes(bytes(pixels) + b"\0")
    run(plan, str(mixed / "out"), Watching())
    assert dict(rows(mixed / "out", "id, error FROM RUNS WHERE status = 'failed'"))["late"] == "image_changed"


def test_a_minimum_score_that_nothing_reaches_keeps_nothing_and_fails_nothing(tmp_path):
    (tmp_path / "prompts.txt").write_text("a small red circle at the left on a black background\n")
    settings = [f"manifest={tmp_path / 'prompts.txt'}", "ranking.min_score=100", "shards.embeddings=all"]
    totals, _ = rendered(load("embedded", [*FEW, *settings, HERE]), tmp_path / "out")
    assert (totals.kept, totals.rejected, totals.failed) == (0, 2, 0)
    assert not list((tmp_path / "out" / "data").glob("*"))
    assert rows(tmp_path / "out", "len(clip_embedding), rank FROM RUNS ORDER BY rank") == [(128, 1), (128, 2)]
    assert problems(tmp_path / "out") == []


@pytest.mark.parametrize("image_format", ["webp", "jpg"])
def test_other_formats_keep_more_than_one_without_embeddings(tmp_path, image_format):
    (tmp_path / "prompts.txt").write_text("a small red circle at the left on a black background\n")
    settings = [f"manifest={tmp_path / 'prompts.txt'}", f"shards.image_format={image_format}", "defaults.keep=2"]
    totals, _ = rendered(load("embedded", [*FEW, *settings, "shards.embeddings=none", HERE]), tmp_path / "out")
    assert totals.kept == 2
    assert problems(tmp_path / "out") == []


@pytest.mark.parametrize("kind", ["sdxl", "inpainting"])
def test_other_families_go_through_the_whole_job(tmp_path, quickstart, kind):
    model = getattr(tiny, kind)(tmp_path / kind)
    row = {"prompt": "a small red circle at the left on a black background", "guidance_scale": 4}
    if kind == "inpainting":
        images = quickstart / "images"
        shutil.copy(sorted(images.glob("inpaint-*"))[0], tmp_path / "init.png")
        shutil.copy(sorted(images.glob("inpaint-*mask*"))[0], tmp_path / "mask.png")
        row |= {"init_image": "init.png", "mask_image": "mask.png"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({**row, "id": str(i)}) + "\n" for i in range(3)))
    settings = [f"manifest={tmp_path / 'rows.jsonl'}", f"model.base={model}", "model.controlnets={}", "model.batch=2"]
    totals, _ = rendered(load("embedded", [*FEW, *settings, HERE]), tmp_path / "out")
    assert (totals.kept, totals.rejected, totals.failed) == (3, 3, 0)
    assert problems(tmp_path / "out") == []


@on_ray
def test_a_model_that_does_not_load_ends_the_run_with_one_line_and_without_waiting(tmp_path):
    (tmp_path / "prompts.txt").write_text("x\n")
    broken = tmp_path / "model"
    tiny.stable_diffusion(broken)
    weights = next((broken / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    settings = [f"manifest={tmp_path / 'prompts.txt'}", f"model.base={broken}", "model.controlnets={}"]
    started = time.monotonic()
    with pytest.raises(StartError) as caught:
        rendered(load("embedded", [*FEW, *settings]), tmp_path / "out")
    assert time.monotonic() - started < 120
    assert str(caught.value).startswith(str(broken))
    assert "\n" not in str(caught.value)


def test_keys_say_where_an_image_stands(calm):
    out, _, _ = calm
    for key, shard, candidate in rows(out, "key, shard, candidate_index FROM RUNS"):
        assert parse_key(key)[0] == shard
        assert parse_key(key)[2] == candidate


def test_any_candidate_kept_or_not_can_be_made_again_alone(calm):
    out, _, _ = calm
    some = "key FROM RUNS WHERE id IN ('txt2img-01', 'txt2img-02', 'img2img-01', 'inpaint-01', 'canny-seg-01') ORDER BY key"
    for (key,) in rows(out, some):
        made = regenerate(str(out), key)
        assert made.same, key
        if rows(out, f"selected FROM RUNS WHERE key = '{key}'") == [(True,)]:
            ((sha,),) = rows(out, f"sha256 FROM RUNS WHERE key = '{key}'")
            assert hashlib.sha256(made.image).hexdigest() == sha
    for wrong in ("000000-00000-0099", "000099-00000-0000", "x"):
        with pytest.raises(PlanError, match=wrong):
            regenerate(str(out), wrong)
