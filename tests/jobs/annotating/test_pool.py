"""Datasets of maps by several processes: the bytes of one process, whoever is killed."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from click.testing import CliRunner
from PIL import Image

from promptmill.configs.loading import load
from promptmill.configs.own_files import ROOT
from promptmill.jobs.annotating import annotating, pool
from promptmill.jobs.annotating.inputs import Wanted, look, parse_maps
from promptmill.jobs.annotating.pool import workers_for
from promptmill.jobs.cli import main
from promptmill.jobs.planning import worker_processes
from promptmill.jobs.planning.worker_processes import TRIES, WorkerPool, packed_error
from promptmill.manifests.images import UnreachableError
from promptmill.pipelines.work.errors import ModelError
from tests.jobs.annotating.test_annotating import files

PICTURES = 9
ABOVE = ("annotate", "--as", "canny,blur", "--shard-size", "3")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """A manifest of random pictures, whose last row but one names no picture that is there."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(PICTURES):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    images = [f"{number}.png" for number in range(PICTURES)]
    images.insert(PICTURES - 1, "gone.png")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"init_image": image}) + "\n" for image in images))
    return folder / "rows.jsonl"


def made(manifest, out, workers, maps="seg,canny"):
    """Makes a dataset in small shards and parts."""
    config = load("embedded", ["manifest=x.txt"])
    inputs = look(str(manifest), Wanted(parse_maps(maps), shard=5, part=2), config)
    annotating.annotate(inputs, str(out), workers=workers)
    return files(out)


@pytest.fixture(scope="module")
def alone(manifest, tmp_path_factory):
    return made(manifest, tmp_path_factory.mktemp("alone") / "out", 1)


@pytest.fixture
def started(monkeypatch):
    """The processes that pools have started, in their order."""
    found, real = [], subprocess.Popen

    def popen(*command, **settings):
        found.append(real(*command, **settings))
        return found[-1]

    monkeypatch.setattr(worker_processes.subprocess, "Popen", popen)
    return found


def killing(monkeypatch, times):
    """Kills a process each time that it is asked for rows, so many times, and counts the parts that are asked for."""
    asked, real = [], worker_processes._Worker.ask

    def ask(worker, message):
        asked.append(pickle.loads(message))
        if len(asked) <= times:
            os.kill(worker.process.pid, signal.SIGKILL)
        return real(worker, message)

    monkeypatch.setattr(worker_processes._Worker, "ask", ask)
    return asked


def test_several_processes_make_the_bytes_of_one_though_one_is_killed(manifest, alone, tmp_path, started, monkeypatch):
    asked = killing(monkeypatch, 1)
    assert made(manifest, tmp_path / "out", 2) == alone
    assert len(started) == 3 and len(asked) == 6 + 1  # of three parts a shard, one was asked for twice
    assert started[0].returncode == -signal.SIGKILL and all(one.returncode is not None for one in started)


def test_pictures_of_which_each_process_dies_end_the_command_which_goes_on_later(manifest, alone, tmp_path, started, monkeypatch):
    with monkeypatch.context() as patched:
        killing(patched, 1000)
        with pytest.raises(
            worker_processes.AbortError, match=f"^{TRIES} processes that made maps of pictures . to . of shard . have died"
        ):
            made(manifest, tmp_path / "out", 2)
    assert all(one.returncode is not None for one in started)
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert made(manifest, tmp_path / "out", 1) == alone


def test_a_command_that_is_killed_leaves_no_process_and_goes_on_to_the_same_bytes(manifest, tmp_path):
    def words(out, workers):
        return [*ABOVE, "--to", str(out), "--workers", str(workers), str(manifest)]

    def done(out, workers):
        assert CliRunner().invoke(main, words(out, workers)).exit_code == 3  # one picture is gone
        return files(out)

    running = subprocess.Popen([sys.executable, "-m", "promptmill", *words(tmp_path / "out", 2)], cwd=ROOT)
    folders, children = [tmp_path / "out" / name for name in ("parts", "commits")], set()
    while running.poll() is None and not any(folder.exists() and any(folder.iterdir()) for folder in folders):
        children |= {*psutil.Process(running.pid).children()}
        time.sleep(0.01)
    running.kill()
    assert running.wait() in (-signal.SIGKILL, 3)
    assert len(children) >= 2
    gone, left = psutil.wait_procs(children, timeout=120)
    assert len(gone) == len(children) and not left
    assert done(tmp_path / "out", 2) == done(tmp_path / "alone", 1)


@pytest.mark.parametrize("error", [UnreachableError("cdn.example: no answer"), ModelError("a model: has no weights")])
def test_errors_of_a_process_are_those_of_the_command(error):
    rows, raised = pickle.loads(packed_error(error))
    assert rows is None and type(raised) is type(error) and str(raised) == str(error)


def test_an_error_that_cannot_be_sent_is_sent_in_words():
    class UnsentError(Exception):
        pass

    rows, raised = pickle.loads(packed_error(UnsentError("a lock")))
    assert rows is None and type(raised) is RuntimeError and str(raised) == "UnsentError: a lock"


@pytest.mark.parametrize(
    ("cards", "processors", "threads", "wanted"),
    [([], 8, 1, 8), ([], 8, 3, 2), ([], 2, 4, 1), (["0"], 8, 1, 1), (["2", "5"], 8, 4, 2)],
)
def test_auto_is_one_a_gpu_or_one_for_the_threads_of_each(monkeypatch, cards, processors, threads, wanted):
    monkeypatch.setattr(pool, "_cards", lambda inputs: cards)
    monkeypatch.setattr(worker_processes, "cores", lambda: processors)
    assert workers_for(SimpleNamespace(threads=threads)) == wanted


def test_each_process_sees_a_gpu_of_its_own_in_turn():
    seen = [worker._environment["CUDA_VISIBLE_DEVICES"] for worker in WorkerPool(print, 3, cards=["2", "5"])._all]
    assert seen == ["2", "5", "2"]
    assert [worker._environment for worker in WorkerPool(print, 2)._all] == [None, None]


@pytest.mark.parametrize("workers", ["0", "257", "two", "-1", ""])
def test_a_number_of_processes_that_is_none_is_refused_in_one_line(manifest, tmp_path, workers):
    result = CliRunner().invoke(main, [*ABOVE, "--to", str(tmp_path / "out"), f"--workers={workers}", str(manifest)])
    assert result.exit_code == 2
    assert result.output == f"--workers {workers!r}: is a number of processes from 1 to 256, or auto\n"
