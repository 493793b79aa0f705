import contextlib
import dataclasses
import functools
import json
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from benchmarks.mutations import files_of
from promptmill.actors.pool_sizes import ResourcesError
from promptmill.configs.loading import load
from promptmill.configs.parameters import Reference
from promptmill.jobs.cli import main
from promptmill.jobs.planning.plan import PlanError, read_plan, write_plan
from promptmill.jobs.running.finishing import finish
from promptmill.jobs.running.rendering import Run
from promptmill.jobs.running.repair_note import remembered
from promptmill.jobs.running.run import run
from promptmill.jobs.verifying.image_places import Given
from promptmill.jobs.verifying.repair import clear
from promptmill.jobs.verifying.repair_limits import _look_known, repairable
from promptmill.manifests.checking import Looks, check_images
from promptmill.manifests.roots import Roots
from promptmill.shards.commits import CommitRecord, read_records
from promptmill.shards.storage import delete, get, join, names, put
from tests.jobs.datasets import SHARDS, commit_planned, planned_dataset, rendered_here
from tests.jobs.running.test_run import Watching
from tests.jobs.verifying.damage import flip, problems_of
from tests.pipelines.plain import request


@pytest.fixture
def output(planned):
    return planned


@pytest.fixture
def ran(monkeypatch):
    """What the command line rendered, at no cost, and where: pairs of the plan as it was run and the shards."""
    ran = []

    def rendered(plan, output, console, generations):
        ran.append((plan, set(generations) - {record.shard for record in read_records(output)}))
        commit_planned(output, plan, ran[-1][1], generations)
        shutil.rmtree(Path(output, "parts"), ignore_errors=True)
        if len(read_records(output)) == SHARDS:
            finish(read_plan(output), output, read_records(output))
        return 0

    monkeypatch.setattr("promptmill.jobs.verifying.mending.rendered", rendered)
    monkeypatch.setattr("promptmill.jobs.cli.verify.ready", lambda config, output: contextlib.nullcontext())
    return ran


def repair(output, *options):
    return CliRunner().invoke(main, ["verify", output, "--repair", *map(str, options)])


def refused(output, *options, status=2):
    """The lines of a repair that ends with this status and changes nothing."""
    before = files_of(Path(output))
    result = repair(output, *options)
    assert result.exit_code == status and isinstance(result.exception, SystemExit), (result.output, result.exception)
    assert files_of(Path(output)) == before
    return result.stderr.splitlines()


# Images


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A dataset whose every row has the init image given/cat.png beside its manifest."""
    folder = tmp_path_factory.mktemp("pictures")
    picture(folder / "given" / "cat.png")
    planned_dataset(folder, init_image="given/cat.png", strength=0.5)
    return folder


def picture(path, shade=90):
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64), (shade, 20, 20)).save(path)


@pytest.fixture
def damaged(pictures, tmp_path):
    """A copy of it, as found on another machine: the manifest's folder is gone, and a tar is damaged."""
    output = str(shutil.copytree(pictures / "out", tmp_path / "out"))
    flip(output, "data/000002.tar")
    (pictures / "given").rename(pictures / "taken")
    yield output
    (pictures / "taken").rename(pictures / "given")


def test_a_shard_whose_images_are_gone_stays_until_it_is_said_where_they_are(pictures, damaged, ran, tmp_path):
    (line,) = refused(damaged)
    assert line.startswith(f"{damaged}: shard 000002, row 0: init_image: given/cat.png: no such file in the manifest's folder ")
    assert line.endswith("; nothing is repaired without it: --image-root FOLDER adds where images lie now")
    assert ran == []
    shutil.copytree(pictures / "taken", tmp_path / "now" / "given")
    result = repair(damaged, "--image-root", tmp_path / "elsewhere", "--image-root", tmp_path / "now")
    assert result.exit_code == 0, result.output
    assert files_of(Path(damaged)) == files_of(pictures / "out")
    ((plan, shards),) = ran
    assert shards == {2} and str(tmp_path / "now") in plan.roots.declared
    assert plan.config.runtime.image_roots == (str(tmp_path / "now" / "given"),), "what the nodes of a cluster have to have"


def test_an_image_that_is_another_than_it_was_is_refused(damaged, tmp_path):
    picture(tmp_path / "given" / "cat.png", shade=91)
    (line,) = refused(damaged, "--image-root", tmp_path)
    assert "shard 000002, row 0: init_image: given/cat.png: is not what it was when the dataset was made; " in line


def test_an_undamaged_shard_needs_no_images(damaged, pictures):
    put(join(damaged, "data/000002.tar"), get(str(pictures / "out" / "data" / "000002.tar")))
    put(join(damaged, "data/000009.tar"), b"")
    assert repair(damaged).exit_code == 0
    assert files_of(Path(damaged)) == files_of(pictures / "out")


def test_where_the_plan_did_not_look_the_metadata_tells_what_images_were_and_which_were_never_there(tmp_path):
    rows = [{"prompt": "a large red circle", "init_image": f"{name}.png", "strength": 0.5} for name in ("there", "never")]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    picture(tmp_path / "there.png")
    output = str(tmp_path / "out")
    few = ("defaults.steps=2", "defaults.candidates=1", "model.batch=1", "runtime.check_images=at_run")
    rendered_here(load("embedded", [f"manifest={tmp_path}/manifest.jsonl", *few]), output)
    assert [record.failed_requests for record in read_records(output)] == [1]
    flip(output, "data/000000.tar")
    assert repairable(output, problems_of(output)).again == {0}
    picture(tmp_path / "there.png", shade=91)
    with pytest.raises(PlanError, match=r"row 0: init_image: there\.png: is not what it was when the dataset was made; "):
        repairable(output, problems_of(output))
    picture(tmp_path / "there.png")
    delete(join(output, "metadata/000000.parquet"))
    with pytest.raises(PlanError, match=r"row 0: init_image: there\.png: not looked for in .*, which only the dataset's plan "):
        repairable(output, problems_of(output))
    with pytest.raises(PlanError, match=r"row 1: init_image: never\.png: no such file "):
        repairable(output, problems_of(output), Given((str(tmp_path),)))


# Where it runs


def test_a_plan_does_not_say_where_it_ran(plan, output):
    runtime = plan.config.runtime.model_copy(update={"address": "10.1.2.3:6379"})
    there = dataclasses.replace(plan, config=plan.config.model_copy(update={"runtime": runtime}))
    write_plan(output, there)
    write_plan(output, there, earlier=True)
    for name in ("plan/plan.json", f"plan/earlier/{plan.fingerprint}.json"):
        assert b"10.1.2.3" not in get(join(output, name))
    assert read_plan(output) == plan


@pytest.fixture
def submitted(output, monkeypatch):
    """A damaged dataset of a plan that names a cluster, as plans once did, and pools of its size."""
    elsewhere = {"address": "auto", "generators": 64, "scorers": 8, "metrics_port": 9999}

    def found(output, earlier=None):
        plan = read_plan(output, earlier)
        return dataclasses.replace(
            plan, config=plan.config.model_copy(update={"runtime": plan.config.runtime.model_copy(update=elsewhere)})
        )

    monkeypatch.setattr("promptmill.jobs.verifying.repair.read_plan", found)
    flip(output, "data/000000.tar")
    return output


def test_a_repair_runs_here_wherever_the_plan_did_and_with_the_room_there_is(submitted, ran):
    result = repair(submitted)
    assert result.exit_code == 0, result.output
    ((plan, _),) = ran
    runtime = plan.config.runtime
    assert (runtime.address, runtime.generators, runtime.scorers, runtime.metrics_port) == (None, "auto", "auto", None)


def test_without_an_address_the_hardware_here_has_to_be_that_of_the_dataset(submitted, ran, monkeypatch):
    monkeypatch.setattr("promptmill.pipelines.rendering.hardware.hardware_kind", lambda threads: {"kind": "another"})
    assert "since this has changed:" in refused(submitted)[0]
    assert repair(submitted, "--address", "10.1.2.3:6379").exit_code == 0
    assert ran[0][0].config.runtime.address == "10.1.2.3:6379"


def test_a_cluster_that_does_not_answer_costs_nothing(output, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # other tests of the session may have left a cluster here
    flip(output, "data/000000.tar")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        (line,) = refused(output, "--address", address, status=1)
    assert line.startswith(f"Ray at {address}: nothing answers there")


def test_a_machine_without_room_costs_nothing(output, monkeypatch):
    @contextlib.contextmanager
    def joined(config, output):
        raise ResourcesError("no room")
        yield

    monkeypatch.setattr("promptmill.jobs.clusters.node_checks.joined", joined)
    flip(output, "data/000000.tar")
    assert refused(output) == ["no room"]


@pytest.mark.parametrize("option", ["--address", "--image-root"])
def test_what_is_for_a_repair_is_for_nothing_else(output, option):
    result = CliRunner().invoke(main, ["verify", output, option, "x"])
    assert (result.exit_code, result.stderr) == (2, f"{option} is for --repair\n")


# Which shards


def test_an_unfinished_dataset_gets_its_damaged_shard_back_and_is_not_gone_on_with(output, ran):
    for path in ("_SUCCESS", "index.json", "README.md", "commits/000001.json", "data/000002.tar", "metadata/000002.parquet"):
        delete(join(output, path))
    delete(join(output, "metadata/000001.parquet"))
    delete(join(output, "commits/000002.json"))
    was = files_of(Path(output))
    flip(output, "data/000000.tar")
    result = repair(output)
    assert result.exit_code == 0, result.output
    assert [shards for _, shards in ran] == [{0}]
    assert files_of(Path(output)) == was
    assert "unfinished, and every file is as its record says: 1 shard, " in result.stdout


def test_a_run_for_a_repair_renders_the_shards_that_it_is_given_and_finishes_nothing_that_lacks_others(plan, output):
    for path in ("_SUCCESS", "index.json", "commits/000001.json", "commits/000002.json"):
        delete(join(output, path))
    put(join(output, "stats/repair.json"), b"{}")
    records = {record.shard: record for record in read_records(output)}
    for only, left in (({2}, {2}), (None, {1, 2})):
        here = Run(plan, output, Watching(), frozenset(), records, only=only)
        assert here.left == left == {unit.shard for unit in here.units()}
    assert run(plan, output, Watching(), generations={0: 0}).shards == 1
    assert not {"_SUCCESS", "index.json"} & {*names(output)} and not [*names(join(output, "stats"))]


EARLIER = (
    "shard 000000 was committed before changes that were accepted; this plan cannot make it again to the same bytes"
    " (take commits/000000.* away, and `promptmill run` renders the shard anew by this plan)"
)


def test_a_shard_of_an_earlier_plan_stays_missing_and_its_files_stay_while_another_is_made_again(mixed, ran):
    was = files_of(Path(mixed))
    delete(join(mixed, "commits/000000.json"))
    flip(mixed, "data/000002.tar")
    result = repair(mixed)
    assert result.exit_code == 1
    assert [shards for _, shards in ran] == [{2}]
    assert "repaired: 1 shard made again, the same bytes as before" in result.stdout
    assert result.stderr.splitlines()[0] == f"{EARLIER}; left as it is"
    assert files_of(Path(mixed)) == {path: was[path] for path in was if path not in ("commits/000000.json", "_SUCCESS")}
    assert refused(mixed) == [EARLIER], "it is not forgotten whose it was"
    put(join(mixed, "commits/000000.json"), was["commits/000000.json"])
    assert repair(mixed).exit_code == 0
    assert files_of(Path(mixed)) == was


def test_a_shard_of_this_plan_in_a_mixed_dataset_is_made_again_though_its_record_is_lost(mixed, ran):
    was = files_of(Path(mixed))
    delete(join(mixed, "commits/000002.json"))
    result = repair(mixed)
    assert result.exit_code == 0, result.output
    assert [shards for _, shards in ran] == [{2}]
    assert files_of(Path(mixed)) == was


def test_a_repair_of_a_mixed_dataset_that_was_cut_off_is_gone_on_with(mixed, ran):
    was = files_of(Path(mixed))
    flip(mixed, "data/000002.tar")
    work = repairable(mixed, problems_of(mixed))
    clear(mixed, work.problems, work.left)
    assert remembered(mixed).shards == {2: 0}
    assert repair(mixed).exit_code == 0
    assert files_of(Path(mixed)) == was


def test_where_nothing_tells_whose_a_shard_was_that_is_what_is_said(mixed):
    index = json.loads(get(join(mixed, "index.json")))
    for shard in index["shards"]:
        del shard["fingerprint"]  # as it was once written
    put(join(mixed, "index.json"), json.dumps(index).encode())
    delete(join(mixed, "commits/000002.json"))
    (line,) = refused(mixed)
    assert line.startswith("shard 000002 may be of this plan or of one before changes that were accepted: its record and ")


def test_a_broken_record_that_no_run_begins_with_keeps_the_others_from_being_cleared(mixed):
    put(join(mixed, "commits/000000.json"), b"{}")
    flip(mixed, "data/000002.tar")
    lines = refused(mixed)
    assert lines[0] == EARLIER and lines[1].startswith(f"{mixed}/commits/000000.json: broken; bring commits/000000.json back ")


def test_the_index_names_the_plan_of_each_shard_only_where_there_are_several(mixed, clean_planned):
    assert b'"fingerprint"' in get(join(clean_planned[1], "index.json"))
    plain, both = (json.loads(get(join(out, "index.json"))) for out in (clean_planned[1], mixed))
    assert not any("fingerprint" in shard for shard in plain["shards"])
    records = [{"format": both["format"], **shard} for shard in both["shards"]]
    assert [CommitRecord.from_json(json.dumps(record).encode()) for record in records] == read_records(mixed)


def test_shards_of_an_earlier_plan_do_not_keep_others_from_being_repaired(mixed):
    flip(mixed, "data/000000.tar")
    with pytest.raises(PlanError, match=re.escape(EARLIER)):
        repairable(mixed, problems_of(mixed))
    flip(mixed, "data/000002.tar")
    assert {problem.shard for problem in repairable(mixed, problems_of(mixed)).problems} == {2}


def test_a_repair_looks_at_the_embeddings_of_faces_as_well(tmp_path):
    np.save(tmp_path / "face.npy", np.ones(4, np.float32))
    faced = request(references=(Reference(type="face", embedding="face.npy"),))
    looking = functools.partial(_look_known, Looks(Roots((str(tmp_path),)), 10), 0, ())
    found = check_images(faced, looking)
    assert not found.problems and [*found.sha256] == ["references.0.embedding"]
