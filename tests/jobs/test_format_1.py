"""A dataset of an earlier promptmill, from before datasets said their format, is opened, checked, reported and gone on with."""

import contextlib
import hashlib
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from promptmill.configs.columns import Stated
from promptmill.configs.loading import load
from promptmill.jobs.cli import main
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import read_plan
from promptmill.jobs.planning.shard_plans import read_shard
from promptmill.jobs.planning.sources import look
from promptmill.jobs.report.making import make
from promptmill.jobs.report.page import page
from promptmill.jobs.running.finishing import finish
from promptmill.jobs.sharing.dedup import Signs, copy_without, find
from promptmill.jobs.sharing.next_manifest import Pass, export_manifest
from promptmill.jobs.sharing.preference_pairs import export_pairs
from promptmill.jobs.showing.contact_sheet import kept_images
from promptmill.jobs.showing.summary import status
from promptmill.manifests.sources import read_rows
from promptmill.pipelines.models.identity import library_versions
from promptmill.pipelines.rendering.hardware import hardware_kind
from promptmill.shards.commits import read_records
from tests.jobs.finished import problems_of

FIXTURE = Path(__file__).parents[1] / "fixtures" / "format_1"
KEPT = {"plain-1", "edges", "plain-2", "redrawn", "edges-2"}


@pytest.fixture
def finished(tmp_path):
    return str(shutil.copytree(FIXTURE / "finished", tmp_path / "out"))


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in ("stats", "plan", "lease")
    }


def test_it_verifies_and_finishing_it_again_writes_the_same_bytes(finished):
    assert problems_of(finished) == []
    before = hashes(finished)
    (Path(finished) / "README.md").unlink()
    plan = read_plan(finished)
    assert plan.dataset_format == 1 and plan.form.metadata is None
    assert finish(plan, finished, read_records(finished)).kept == 5
    assert hashes(finished) == before


def test_its_status_its_report_and_its_sheet_say_what_is_in_it(finished):
    assert status(finished).totals.by_outcome == {"kept": 5, "rejected": 5, "failed": 0, "drafted": 0, "spared": 0}
    report = make(finished)
    assert report.problems == [] and report.facts.errors == {"bad_row": (1, 0)} and len(report.shown) >= 5
    assert b"none.png" in page(report)
    assert [shown.image.size for shown in kept_images(finished, 9)] == [(64, 64)] * 5


def test_its_winners_are_the_manifest_of_a_second_pass(finished, tmp_path):
    assert export_manifest(finished, tmp_path / "next.jsonl", Pass()) == 5
    rows = [json.loads(line) for line in (tmp_path / "next.jsonl").read_text().splitlines()]
    assert {row["source_id"] for row in rows} == KEPT and {row["topic"] for row in rows} == {
        "circles",
        "squares",
        "crosses",
        "triangles",
    }
    assert not {"clip_score", "sha256", "batch_shape", "mode", "keep"} & set().union(*rows)
    # The Parquet is a manifest too, as it lies there.
    taken = [row.values for row in read_rows([f"{finished}/metadata/000001.parquet"])]
    assert [row["id"] for row in taken] == ["000001-00000-0001", "000001-00001-0001", "000001-00002-0000"] or len(taken) == 3
    assert all("clip_score" not in row and row["topic"] for row in taken)


def test_its_pairs_are_exported_and_its_near_duplicates_are_found(finished, tmp_path):
    assert export_pairs(finished, tmp_path / "pairs.parquet", "none").pairs == 5
    found = find(finished, Signs(embedding=-1.0, hash=None))
    assert len(found.twins) == 4  # of cosines above -1 all are alike
    totals = copy_without(finished, found, str(tmp_path / "copy"))
    assert totals.kept == 1 and problems_of(str(tmp_path / "copy")) == []
    form = pq.read_schema(tmp_path / "copy" / "metadata" / "000000.parquet")
    assert Stated.of(form).format == 1 and "duplicate_of" in form.names


def command(*words, folder):
    with contextlib.chdir(folder):
        done = CliRunner().invoke(main, words)
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done


def prepared(tmp_path):
    for name in ("manifest.jsonl", "config.yaml"):
        shutil.copy(FIXTURE / name, tmp_path)
    shutil.copytree(FIXTURE / "inputs", tmp_path / "inputs")
    return shutil.copytree(FIXTURE / "unfinished", tmp_path / "unfinished")


def test_one_that_was_cut_off_is_gone_on_with_to_the_same_bytes_or_refused_in_so_many_lines(tmp_path):
    out = prepared(tmp_path)
    plan, finished = read_plan(str(out)), hashes(FIXTURE / "finished")
    hardware = json.loads((out / "plan" / "hardware.json").read_text())
    ran = command("run", "config.yaml", "--out", "unfinished", "--set", "runtime.workers=here", folder=tmp_path)
    if library_versions(plan.config.model) != plan.inputs["versions"]:
        assert ran.exit_code == 2 and "was planned from something else" in ran.stderr and "versions." in ran.stderr
    elif {name: hardware[name] for name in hardware if name != "sha256"} != hardware_kind(plan.config.model.threads):
        assert ran.exit_code == 1 and "this hardware makes other bits than what began the run" in ran.stderr
    else:
        assert ran.exit_code == 3, ran.stderr
        assert hashes(out) == finished


def test_changes_that_are_accepted_leave_its_format_as_it_is(finished, tmp_path, monkeypatch):
    prepared(tmp_path)
    with (tmp_path / "manifest.jsonl").open("a") as manifest:
        manifest.write('{"id": "more", "prompt": "a large red cross at the top on a blue background", "topic": "crosses"}\n')
    monkeypatch.chdir(tmp_path)
    make_plan(look(load("config.yaml", [])), finished, accept_changes=True)
    plan = read_plan(finished)
    assert (plan.shards, plan.dataset_format) == (3, 1) and plan.form.metadata is None
    assert read_shard(finished, 2, plan).candidates == 2


@pytest.mark.parametrize("what", ["plan", "record", "parquet"])
def test_a_later_format_is_refused_in_one_line_that_says_which(finished, tmp_path, what):
    later = "dataset format 99, this promptmill reads up to 4; use the promptmill that wrote it, or a later one"
    out = Path(finished)
    if what == "plan":
        values = json.loads((out / "plan/plan.json").read_text())
        (out / "plan/plan.json").write_text(json.dumps({**values, "dataset_format": 99}))
        words = ("status", finished)
    elif what == "record":
        values = json.loads((out / "commits/000000.json").read_text())
        (out / "commits/000000.json").write_text(json.dumps({**values, "format": 99}))
        words = ("status", finished)
    else:
        table = pq.read_table(out / "metadata/000000.parquet").replace_schema_metadata({b"promptmill.format": b"99"})
        pq.write_table(table, tmp_path / "later.parquet")
        (tmp_path / "config.yaml").write_text((FIXTURE / "config.yaml").read_text().replace("manifest.jsonl", "later.parquet"))
        words = ("plan", "config.yaml", "--out", "new")
    said = command(*words, folder=tmp_path)
    assert said.exit_code in (1, 2) and later in said.stderr and "Traceback" not in said.stderr
    assert len([line for line in said.stderr.splitlines() if "dataset format" in line]) == 1
