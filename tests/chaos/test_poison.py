"""Requests that kill, hang or fill the memory of their process, on stand-in work with real processes."""

import re
from pathlib import Path

import duckdb
import pytest

from promptmill.actors.local_ray.memory_limits import REMEDY
from tests.chaos.site import HERE, Site, plan, problems, published

POISON = {4: "segfault", 10: "exit", 16: "killed"}


@pytest.fixture(scope="module")
def poisoned(calm, tmp_path_factory):
    """Six units, three of which hold a request that kills."""
    folder = tmp_path_factory.mktemp("poison")
    return folder, plan(folder, 6, prompts=lambda i: f"{POISON.get(i, 'prompt')} {i}")


def failed(site):
    return dict(duckdb.sql(f"SELECT id, error FROM '{site.out}/metadata/*.parquet' WHERE status = 'failed'").fetchall())


def by_shard(out):
    """The published tars and Parquets, whatever the generation in their names."""
    files = published(Path(out)).items()
    return {re.sub(r"\.[0-9]\.", ".", path): content for path, content in files if path.startswith(("data/", "metadata/"))}


def test_poison_is_convicted_alone_its_neighbours_render_and_once_cured_another_try_makes_the_calm_bytes(calm, poisoned):
    folder, template = poisoned
    site = Site.of(template, folder / "killed", calm.cluster.address, "--generators", "2")
    assert site.run().status == 3
    assert failed(site) == {f"r{i}": "died" for i in POISON}
    assert problems(site.out) == []

    cured = Site.of(template, folder / "cured", HERE)
    (cured.notes / "cured").touch()
    assert cured.run().status == 0

    before = by_shard(site.out)
    assert site.run("--retry-failed").status == 3, "nothing has changed, so they die again"
    assert failed(site) == {f"r{i}": "died" for i in POISON}
    assert by_shard(site.out) == before

    (site.notes / "cured").touch()
    rendered = site.rendered()
    assert site.run("--retry-failed").status == 0
    assert site.rendered() - rendered == len(POISON), "only what failed is rendered again"
    assert by_shard(site.out) == by_shard(cured.out)
    assert sorted(path.name for path in (Path(site.out) / "commits").iterdir()) == ["000000.2.json", "000001.2.json"]
    assert problems(site.out) == []


def test_a_hung_request_is_cut_off_by_the_deadline_and_its_neighbours_render(calm, tmp_path):
    template = plan(tmp_path, 2, prompts=lambda i: f"{'hang' if i == 1 else 'prompt'} {i}")
    site = Site.of(template, tmp_path / "hung", calm.cluster.address, "--deadline", "2", "--generators", "1")
    assert site.run().status == 3
    assert failed(site) == {"r1": "deadline"}
    assert problems(site.out) == []


def test_a_unit_that_does_not_fit_into_memory_fails_as_a_whole_with_the_batch_to_set(calm, tmp_path):
    template = plan(tmp_path, 3, prompts=lambda i: f"{'memory' if i == 4 else 'prompt'} {i}")
    site = Site.of(template, tmp_path / "full", calm.cluster.address, "--generators", "1")
    assert site.run().status == 3
    assert failed(site) == {f"r{i}": "out_of_memory" for i in (3, 4, 5)}
    rows = f"SELECT DISTINCT error_message FROM '{site.out}/metadata/*.parquet' WHERE status = 'failed'"
    assert duckdb.sql(rows).fetchall() == [("out of memory at batch 1; set model.batch lower",)]


def test_where_no_unit_fits_into_memory_the_run_ends_with_one_line(calm, tmp_path):
    site = Site.of(plan(tmp_path, 4, prompts="memory {}".format), tmp_path / "full", calm.cluster.address, "--generators", "1")
    ended = site.run()
    assert ended.status == 1
    (line,) = ended.errors.strip().splitlines()
    assert line.startswith("out of memory at batch 8; set model.batch lower; no unit has got through")


def test_where_no_unit_gets_the_machines_memory_the_run_ends_with_one_line(calm, tmp_path):
    site = Site.of(plan(tmp_path, 4, prompts="host-memory {}".format), tmp_path / "full", calm.cluster.address, "--generators", "1")
    ended = site.run()
    assert ended.status == 1
    (line,) = ended.errors.strip().splitlines()
    said = "Ray has ended a process of this run, since its node had too little left"
    assert line == f"out of memory: {said}; {REMEDY}; no unit has got through"
