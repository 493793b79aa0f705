"""Plans that several processes share: the same as one process makes, whatever the rows, and whatever becomes of the others."""

import datetime
import json
import os
import random
import signal
import subprocess
import sys
import tracemalloc
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from promptmill.configs.loading import load
from promptmill.jobs.planning import making, processes
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.planning.sources import look

SIZE = 7
RECORD = "runtime.on_bad_row=record"
DRAFTS = "ranking.drafts=[{steps: 5, keep: 1}]"


@pytest.fixture
def shared(monkeypatch):
    """Share every shard that can be, from the first row on; how many a worker has made, and the workers."""
    monkeypatch.setattr(making, "SHARED_FROM", 0)
    monkeypatch.setattr(making, "cores", lambda: 2)
    monkeypatch.setattr(processes, "BATCH_ROWS", 3 * SIZE)
    ready, take = processes.Pool.ready, making._Making.take
    seen = {"shards": 0, "workers": []}

    def ready_at_once(pool):
        seen["workers"] = pool._workers
        for worker in pool._workers:
            worker.started.result()
        return ready(pool)

    def counted(making, shards, made):
        seen["shards"] += len(made[0]) if made else 0
        take(making, shards, made)

    monkeypatch.setattr(processes.Pool, "ready", ready_at_once)
    monkeypatch.setattr(making._Making, "take", counted)
    return seen


def planned(manifest, output, *settings):
    """All that is written, by its path, and what is shown of progress; or the lines of what is refused."""
    config = load("embedded", [f"manifest={manifest}", f"shards.size={SIZE}", *settings])
    progress = []
    try:
        plan = make_plan(look(config), str(output), progress.append)
    except PlanError as error:
        return [path for path in output.rglob("*") if path.is_file()], error.problems
    return {str(p.relative_to(output)): p.read_bytes() for p in output.rglob("*") if p.is_file()}, progress, plan


def alone(manifest, tmp_path, *settings):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "cores", lambda: 1)
        return planned(manifest, tmp_path / "alone", *settings)


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def row(draw, number):
    """A row with a few columns of any kind, some of them wrong."""
    columns = {
        "id": [f"id {number}", number, "", "x" * 600, True, None],
        "prompt": ["a cat", "ein Käfer 🐞", "", "x" * 11_000, 7, None],
        "negative_prompt": ["blurry", ""],
        "mode": ["txt2img", "img2img", "unknown"],
        "strength": [0.5, 2],
        "width": [64, "64", 64.0, 65],
        "height": [64, 8],
        "steps": [9, 1, 0, "9"],
        "guidance_scale": [0.0, -0.0, 7, "nan", 1e-7],
        "guidance_rescale": [-0.0, 0.0],
        "scheduler": ["euler", "ddim", "dreamt"],
        "seed": [0, 2**32 - 1, 2**32, -1],
        "candidates": [1, 4, {"start": 1, "max": 3, "until_score": 0.5}, {}],
        "keep": [1, 3],
        "loras": [[], [{"name": "none"}], "[]", "["],
        "control_type": ["canny"],
        "topic": [1, 2.5, "three", None, [1, {"a": None}], 2**70],
        "sha256": ["reserved"],
    }
    rare = {"id": 0.3, "prompt": 0.95, "topic": 0.4, "seed": 0.3, "sha256": 0.02, "control_type": 0.03}
    some = {name: draw.choice(values) for name, values in columns.items() if draw.random() < rare.get(name, 0.06)}
    # Most rows are right in most columns.
    return {name: columns[name][0] if draw.random() < 0.7 else value for name, value in some.items()}


def rows(draw, count):
    made = [row(draw, number) for number in range(count)]
    for number in draw.sample(range(count), count // 20):
        made[number] = draw.choice(["{", "[]", "7", "", '{"id": "\\ud800"}', '{"topic": ' + "[" * 900 + "]" * 900 + "}", made[0]])
    return made


@pytest.mark.parametrize("settings", [[RECORD], [RECORD, DRAFTS, "runtime.strict=true"], []], ids=["recorded", "strict", "refused"])
@pytest.mark.parametrize("draw", range(2))
def test_a_shared_plan_is_to_the_byte_the_plan_of_one_process(tmp_path, shared, draw, settings):
    manifest = write(tmp_path / "m.jsonl", rows(random.Random(draw), 400))
    assert planned(manifest, tmp_path / "shared", *settings) == alone(manifest, tmp_path, *settings)
    assert shared["shards"] > 30


def test_rows_with_images_are_looked_at_in_order_and_those_between_are_shared(tmp_path, shared, monkeypatch):
    for name in "abc":
        Image.new("RGB", (8, 8), (ord(name), 0, 0)).save(tmp_path / f"{name}.png")
    draw = random.Random(0)
    made = [{"prompt": f"prompt {number}"} for number in range(300)]
    for number in draw.sample(range(300), 15):
        made[number] |= {"init_image": draw.choice(["a.png", "b.png", "c.png", "gone.png", "../away.png"])}
    manifest = write(tmp_path / "m.jsonl", made)
    for most in (0, 2, 100):
        monkeypatch.setattr(making, "MAX_IMAGES_CHECKED", most)
        folder = tmp_path / str(most)
        shared["shards"] = 0
        assert planned(manifest, folder / "shared", RECORD) == alone(manifest, folder, RECORD)
        assert shared["shards"] > 10 and (shared["shards"] == 300 // SIZE + 1) == (most == 0)


def test_values_that_only_parquet_has_are_shared_too(tmp_path, shared):
    when = datetime.datetime(2024, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)
    made = [{"prompt": f"p{number}", "when": when, "raw": b"\0\xff", "day": when.date()} for number in range(100)]
    pq.write_table(pa.Table.from_pylist(made), tmp_path / "m.parquet")
    assert planned(tmp_path / "m.parquet", tmp_path / "shared") == alone(tmp_path / "m.parquet", tmp_path)
    assert shared["shards"] == 15


def test_too_many_columns_and_files_that_break_off_are_told_as_one_process_tells_them(tmp_path, shared):
    bad = {"prompt": "x", "steps": 0}
    many = [{"prompt": "x", **{f"c{number * 10 + i}": 1 for i in range(10)}} for number in range(120)]
    broken = write(tmp_path / "broken.jsonl", [bad, *[{"prompt": "x"}] * 80])
    broken.write_bytes(broken.read_bytes() + b'{"prompt": "\xff"}\n')
    for manifest in (write(tmp_path / "many.jsonl", [bad, *many]), broken):
        folder = tmp_path / manifest.stem
        shared["shards"] = 0
        left, problems = planned(manifest, folder / "shared", RECORD)
        assert (left, problems) == alone(manifest, folder, RECORD) and left == []
        assert len(problems) == 2 and shared["shards"] > 5


@pytest.mark.parametrize("survivors", [0, 1])
def test_a_worker_that_is_killed_costs_time_only(tmp_path, shared, survivors, monkeypatch):
    manifest = write(tmp_path / "m.jsonl", [{"prompt": f"prompt {number}"} for number in range(700)])
    give = processes.Pool.give

    def killing(pool, shard, some):
        if shard == 50:
            for worker in shared["workers"][survivors:]:
                os.kill(worker._process.pid, signal.SIGKILL)
        return give(pool, shard, some)

    monkeypatch.setattr(processes.Pool, "give", killing)
    assert planned(manifest, tmp_path / "shared") == alone(manifest, tmp_path)
    assert 30 < shared["shards"] < 100 or survivors


def test_where_no_process_may_be_started_one_makes_the_plan(tmp_path, shared, monkeypatch):
    def refused(*command, **settings):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    manifest = write(tmp_path / "m.jsonl", [{"prompt": "x"}] * 100)
    monkeypatch.setattr(processes.subprocess, "Popen", refused)
    assert planned(manifest, tmp_path / "shared") == alone(manifest, tmp_path)
    assert shared["shards"] == 0


def test_changes_are_accepted_beside_committed_shards_as_one_process_accepts_them(tmp_path, shared, monkeypatch):
    manifest = write(tmp_path / "m.jsonl", [{"id": str(number), "prompt": "x"} for number in range(200)])
    for name in ("shared", "alone"):
        planned(manifest, tmp_path / name)
    write(manifest, [{"id": str(number), "prompt": "x" if number < 20 else "y"} for number in range(230)])
    real, record = making.look_aside, SimpleNamespace(requests=SIZE, generation=0, fingerprint="")

    def committed(*given):
        return making.replace(real(*given), committed={0: record, 2: record})

    monkeypatch.setattr(making, "look_aside", committed)
    monkeypatch.setattr(making.Aside, "check", lambda aside, plan: None)
    accepted = []
    for name, cores in (("shared", 2), ("alone", 1)):
        monkeypatch.setattr(making, "cores", lambda cores=cores: cores)
        config = load("embedded", [f"manifest={manifest}", f"shards.size={SIZE}"])
        make_plan(look(config), str(tmp_path / name), accept_changes="keep")
        folder = tmp_path / name
        accepted.append({str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    assert accepted[0] == accepted[1] and len(accepted[0]) == 33 + 2
    assert shared["shards"] > 20


def test_manifests_of_everyday_size_start_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr(making, "cores", lambda: 2)
    monkeypatch.setattr(making, "Pool", None)
    manifest = write(tmp_path / "m.jsonl", [{"prompt": "x"}] * 2000)
    assert planned(manifest, tmp_path / "out", "shards.size=1000")[2].counts.rows == 2000


def test_workers_end_with_the_plan_and_import_neither_torch_nor_ray(tmp_path, shared):
    manifest = write(tmp_path / "m.jsonl", [{"prompt": "x"}] * 100)
    planned(manifest, tmp_path / "out")
    assert len(shared["workers"]) == 2 and all(worker._process.returncode is not None for worker in shared["workers"])
    asked = "import sys, promptmill.jobs.planning.process; print(*({'torch', 'ray', 'diffusers'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert said.stdout == "\n"


def test_workers_run_no_file_of_the_folder_where_one_stands(tmp_path, shared, monkeypatch):
    manifest = write(tmp_path / "m.jsonl", [{"prompt": "x"}] * 100)
    for name in ("pickle", "promptmill", "jobs", "numpy", "process", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nraise SystemExit\n")
    monkeypatch.chdir(tmp_path)
    planned(manifest, tmp_path / "out")
    assert shared["shards"] == 15 and not (tmp_path / "ran").exists()


def test_sharing_takes_the_memory_of_some_shards_and_not_of_a_manifest(tmp_path, shared, monkeypatch):
    monkeypatch.setattr(processes, "BATCH_ROWS", 100)

    def peak(count):
        manifest = write(tmp_path / f"{count}.jsonl", ({"prompt": f"prompt {i} " + "x" * 500} for i in range(count)))
        tracemalloc.start()
        try:
            planned(manifest, tmp_path / f"out{count}", "shards.size=100")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1000)  # what is imported and cached on the way
    assert peak(12_000) < peak(2_000) + 500_000
    assert shared["shards"] == 150
