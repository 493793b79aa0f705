"""The plans of shards are written without waiting for the disk each time, and are on it before the plan is one."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from promptmill.configs.loading import load
from promptmill.jobs.planning import shard_writing
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError, read_plan
from promptmill.jobs.planning.shard_plans import read_shard
from promptmill.jobs.planning.shard_writing import PUTS, ShardWriter
from promptmill.jobs.planning.sources import look
from promptmill.shards.storage import FLUSHES, StorageError, get, names, put


def config_of(manifest, *settings):
    return load("embedded", [f"manifest={manifest}", "shards.size=16", *settings])


def write(path, rows):
    path.write_text("".join(json.dumps({"prompt": f"prompt {number}"}) + "\n" for number in range(rows)))
    return path


def test_the_thread_that_plans_waits_for_the_disk_as_often_for_many_shards_as_for_few(tmp_path, monkeypatch):
    real, lock, waits = os.fsync, threading.Lock(), []
    for rows in (160, 20_000):
        flushed, out = [], tmp_path / str(rows)

        def noted(handle, flushed=flushed, out=out):
            real(handle)
            with lock:
                planning = threading.current_thread() is threading.main_thread()
                flushed.append((os.fstat(handle).st_ino, planning, (out / "plan" / "plan.json").exists()))

        monkeypatch.setattr(os, "fsync", noted)
        plan = make_plan(look(config_of(write(tmp_path / "m.jsonl", rows))), str(out))
        waits.append(sum(planning for _, planning, _ in flushed))
        folder = out / "plan" / "shards"
        shards = [(folder / f"{number:06d}.json.gz").stat().st_ino for number in range(plan.shards)]
        files = [file for file, _, _ in flushed]
        # Each file once, the names in their folder once behind them all, and only then there is a plan.
        assert sorted(file for file in files if file in set(shards)) == sorted(shards)
        assert files.count(folder.stat().st_ino) == 1
        assert max(map(files.index, shards)) < files.index(folder.stat().st_ino)
        assert not any(there for file, _, there in flushed if file in {*shards, folder.stat().st_ino})
    assert waits[0] == waits[1] < 6


def test_the_plan_of_a_committed_shard_is_on_the_disk_before_it_takes_the_place_of_the_one_before(tmp_path, monkeypatch):
    writer, place, lost = ShardWriter(str(tmp_path)), tmp_path / "plan" / "shards" / "000000.json.gz", []
    put(str(place), b"before")
    real = os.fsync

    def noted(handle):
        lost.append(place.read_bytes() != b"before")
        real(handle)

    monkeypatch.setattr(os, "fsync", noted)
    writer.write(0, b"now", committed=True)
    assert lost[0] is False and place.read_bytes() == b"now"
    # All other plans wait for nobody.
    flushed = len(lost)
    writer.write(1, b"now")
    assert len(lost) == flushed
    writer.close()


def test_many_files_are_flushed_at_once(tmp_path, monkeypatch):
    together = threading.Barrier(FLUSHES, timeout=60)
    writer = ShardWriter(str(tmp_path))
    for number in range(2 * FLUSHES):
        writer.write(number, b"plan")
    folder = (tmp_path / "plan" / "shards").stat().st_ino
    monkeypatch.setattr(os, "fsync", lambda handle: os.fstat(handle).st_ino == folder or together.wait())
    writer.finish(range(2 * FLUSHES))
    writer.close()


def test_a_disk_that_fails_while_plans_are_flushed_leaves_no_plan(tmp_path, monkeypatch):
    config, real = config_of(write(tmp_path / "m.jsonl", 100)), os.fsync

    def failing(handle):
        if os.fstat(handle).st_ino == (tmp_path / "out" / "plan" / "shards" / "000003.json.gz").stat().st_ino:
            raise OSError(5, "Input/output error")
        real(handle)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StorageError, match=r"000003\.json\.gz: Input/output error"):
        make_plan(look(config), str(tmp_path / "out"))
    assert read_plan(str(tmp_path / "out")) is None and not list(names(str(tmp_path / "out" / "plan" / "shards")))


def test_remote_puts_go_side_by_side_and_never_too_many(tmp_path, monkeypatch):
    output = f"memory://{tmp_path.name}"
    together, now, most, lock = threading.Barrier(PUTS, timeout=60), [0], [0], threading.Lock()

    def slow(uri, content):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        together.wait()
        put(uri, content)
        with lock:
            now[0] -= 1

    monkeypatch.setattr(shard_writing, "put", slow)
    writer = ShardWriter(output)
    for number in range(3 * PUTS):
        writer.write(number, b"%d" % number)
    writer.finish(range(3 * PUTS))
    writer.close()
    assert most == [PUTS]
    assert [get(f"{output}/plan/shards/{name}") for name in names(f"{output}/plan/shards")] == [b"%d" % n for n in range(3 * PUTS)]


def test_a_remote_put_that_fails_refuses_the_plan_and_leaves_nothing(tmp_path, monkeypatch):
    output = f"memory://{tmp_path.name}"

    def failing(uri, content):
        if uri.endswith("000004.json.gz"):
            raise StorageError(f"{uri}: full")
        put(uri, content)

    monkeypatch.setattr(shard_writing, "put", failing)
    with pytest.raises(StorageError, match=r"000004\.json\.gz: full"):
        make_plan(look(config_of(write(tmp_path / "m.jsonl", 1000))), output)
    assert read_plan(output) is None and not list(names(f"{output}/plan/shards"))
    monkeypatch.undo()
    plan = make_plan(look(config_of(tmp_path / "m.jsonl")), output)
    assert [len(read_shard(output, number).requests) for number in range(plan.shards)] == [16] * 62 + [8]


PLANNING = """
import sys
from promptmill.configs.loading import load
from promptmill.jobs.planning import making
from promptmill.jobs.planning.sources import look
making.SHARED_FROM, making.cores = int(sys.argv[3]), lambda: 2
config = load("embedded", [f"manifest={sys.argv[1]}", "shards.size=16"])
making.make_plan(look(config), sys.argv[2])
"""


@pytest.mark.parametrize("shared_from", [0, 10**9], ids=["shared", "alone"])
def test_planning_that_is_killed_leaves_no_plan_and_no_worker_and_can_be_done_again(tmp_path, shared_from):
    manifest, out = write(tmp_path / "m.jsonl", 200_000), tmp_path / "out"
    planner = subprocess.Popen([sys.executable, "-c", PLANNING, str(manifest), str(out), str(shared_from)])
    try:
        while not (out / "plan" / "shards" / "000600.json.gz").exists():
            assert planner.poll() is None
            time.sleep(0.005)
        workers = psutil.Process(planner.pid).children()
    finally:
        planner.send_signal(signal.SIGKILL)
        planner.wait()
    assert len(workers) == (2 if shared_from == 0 else 0)
    assert (out / "plan" / "shards").is_dir() and read_plan(str(out)) is None
    # A dead one may still be listed where nobody asks how it ended.
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert all(worker.status() == psutil.STATUS_ZOMBIE for worker in alive)

    write(manifest, 100)
    plan = make_plan(look(config_of(manifest)), str(out))
    assert read_plan(str(out)) == plan
    shards = [f"{number:06d}.json.gz" for number in range(7)]
    assert list(names(str(out / "plan" / "shards"))) == shards
    prompts = [p.request.prompt for number in range(7) for p in read_shard(str(out), number).requests]
    assert prompts == [f"prompt {number}" for number in range(100)]


def test_a_name_that_is_no_shards_does_not_hide_why_a_plan_is_refused(tmp_path):
    (tmp_path / "out" / "plan" / "shards").mkdir(parents=True)
    (tmp_path / "out" / "plan" / "shards" / "notes.txt").write_text("mine")
    (tmp_path / "m.jsonl").write_text('{"prompt": "x", "steps": 0}\n')
    with pytest.raises(PlanError, match="steps"):
        make_plan(look(config_of(tmp_path / "m.jsonl")), str(tmp_path / "out"))
    assert (tmp_path / "out" / "plan" / "shards" / "notes.txt").read_text() == "mine"
