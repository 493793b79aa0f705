"""The example of a large run makes a manifest of any size, and a run of it that is killed goes on to the same bytes."""

import os
import runpy
import signal
import subprocess
import sys
import time
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from promptmill.configs.loading import load
from promptmill.embedded.world import parse
from tests.examples.readme import ROOT, commands, done
from tests.jobs.running.test_run import problems, published

FOLDER = ROOT / "examples" / "two-million-images"
MAKE = runpy.run_path(str(FOLDER / "make_manifest.py"))


def test_a_run_that_is_killed_goes_on_to_the_bytes_of_one_that_was_not(checkout):
    # A batch is a row, so that the rows are done one after the other.
    fast = "--set model.batch=4 --set defaults.steps=4 --set shards.size=1"
    sizes = {"--count 100": "--count 1", "--set shards.size=50": fast, "timeout --signal KILL 100 ": ""}
    make, run, again, verify, whole, *compare = commands("two-million-images", sizes)
    done(make, checkout)
    process = subprocess.Popen(
        ["bash", "-c", f"exec {run}"], cwd=checkout, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    commits = checkout / "runs" / "thousandth" / "dataset" / "commits"
    while process.poll() is None and not list(commits.glob("*.json")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    assert len(list(commits.glob("*.json"))) < 5
    done(again, checkout)
    assert "finished, and every file is as its record says: 5 shards, 20 images" in done(verify, checkout)
    done(whole, checkout)
    for command in compare:
        done(command, checkout)
    assert published(checkout / "runs/thousandth/dataset") == published(checkout / "runs/thousandth/whole")
    assert problems(checkout / "runs/thousandth/whole") == []


def test_a_hundred_thousand_prompts_are_distinct_and_the_family_knows_them():
    prompts = list(islice(MAKE["embedded_prompts"](), 100_000))
    assert len(set(prompts)) == 100_000
    assert all(len(parse(prompt).things) == 2 for prompt in prompts[::500])


def test_rows_are_written_as_files_without_holding_them(tmp_path):
    files, written = MAKE["write"](tmp_path / "manifest", MAKE["rows"]((f"number {n}" for n in range(4_001)), (1.0, 2.0, 3.0)))
    assert (files, written) == (3, 20_005)
    parts = [pq.read_table(path) for path in sorted((tmp_path / "manifest").iterdir())]
    assert [len(part) for part in parts] == [10_000, 10_000, 5]
    table = pa.concat_tables(parts)
    assert len(set(table["id"].to_pylist())) == 20_005
    of_one = table.slice(15, 5).to_pylist()
    assert {row["prompt"] for row in of_one} == {"number 3"}
    assert len({(row["guidance_scale"], row["scheduler"]) for row in of_one}) == 5


def test_prompts_of_ones_own_are_read_and_a_folder_that_is_there_is_refused(tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\n\n  a dog on a sofa, größer\n", encoding="utf-8")
    command = f".venv/bin/python {FOLDER / 'make_manifest.py'} manifest --prompts prompts.txt --guidance 5 7.5 10"
    command = command.replace(".venv/bin/python", sys.executable)
    assert done(command, tmp_path) == "manifest: 10 rows in 1 files\n"
    table = pq.read_table(tmp_path / "manifest" / "00000.parquet")
    assert set(table["prompt"].to_pylist()) == {"a cat", "a dog on a sofa, größer"}
    assert set(table["guidance_scale"].to_pylist()) == {5.0, 7.5, 10.0}
    assert "manifest is there already" in done(f"{command} 2>&1 || true", tmp_path)


@pytest.mark.parametrize("name", ["config", "stable-diffusion"])
def test_each_config_keeps_every_image_of_a_row(name):
    config = load(str(FOLDER / f"{name}.yaml"))
    assert config.defaults.keep == config.defaults.candidates == 4
