import contextlib
import dataclasses
import json
import random
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.mutations import files_of, mutate
from promptmill.configs.loading import load
from promptmill.jobs.cli import main
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError, put_hardware, read_plan
from promptmill.jobs.planning.sources import look
from promptmill.jobs.running.finishing import finish
from promptmill.jobs.running.repair_note import REPAIR_NOTE, Cleared, remembered
from promptmill.jobs.running.run import run
from promptmill.jobs.verifying import repair
from promptmill.jobs.verifying.repair import clear, differing
from promptmill.shards.commits import CommitRecord, read_records
from promptmill.shards.lease import hold
from promptmill.shards.storage import delete, get, join, put
from tests.jobs.datasets import SHARDS, commit_planned
from tests.jobs.running.test_run import FEW, HERE, Watching
from tests.jobs.verifying.damage import flip, problems_of


@pytest.fixture
def output(planned):
    return planned


@pytest.fixture
def was(clean_planned):
    return files_of(Path(clean_planned[1]))


def ran(plan, output, generations=None):
    """What a run does with what is missing."""
    missing = set(range(SHARDS)) - {record.shard for record in read_records(output)}
    commit_planned(output, plan, missing, generations)
    finish(plan, output, read_records(output))
    return missing


def test_what_only_has_to_go_goes_and_nothing_else(output, was):
    for path in ("data/000001.tar", "metadata/000000.1.parquet", "commits/notes.txt", "plan/shards/000007.json.gz", "parts/x"):
        put(join(output, path), b"more")
    put(join(output, "commits/000002.1.json"), get(join(output, "commits/000002.json")))
    assert clear(output, problems_of(output)) == Cleared()
    assert files_of(Path(output)) == was


@pytest.mark.parametrize("path", ["data/000000.tar", "metadata/000000.parquet", "commits/000000.json"])
@pytest.mark.parametrize("damage", ["flip", "delete"])
def test_a_damaged_shard_goes_with_its_record_its_files_and_its_parts_and_no_other_does(plan, output, was, path, damage):
    if damage == "flip":
        flip(output, path, -30)
    else:
        delete(join(output, path))
    put(join(output, "parts/000000-00003.parquet"), b"of an earlier run")
    cleared = clear(output, problems_of(output))
    assert cleared.shards == {0: 0}
    assert cleared.hashes.keys() == {"data/000000.tar", "metadata/000000.parquet"}
    gone = {"_SUCCESS", "index.json", "commits/000000.json", "data/000000.tar", "metadata/000000.parquet"}
    assert files_of(Path(output)) == {name: content for name, content in was.items() if name not in gone}
    assert ran(plan, output, cleared.shards) == {0}
    assert files_of(Path(output)) == was
    assert differing(output, cleared) == []


def test_what_is_made_of_the_records_needs_no_shard_made_again(plan, output, was):
    for path in ("index.json", "README.md"):
        flip(output, path)
    put(join(output, "_SUCCESS"), b"yes")
    assert clear(output, problems_of(output)) == Cleared()
    ran(plan, output)
    assert files_of(Path(output)) == was


def test_other_bytes_than_the_record_said_are_told_though_the_dataset_is_whole(plan, output):
    flip(output, "data/000000.tar")
    cleared = clear(output, problems_of(output))
    said = {**cleared.hashes, "data/000000.tar": ["0" * 64]}
    ran(plan, output)
    (line,) = differing(output, Cleared(cleared.shards, said))
    assert line.startswith("data/000000.tar: has other bytes than before; its SHA-256 is ") and line.endswith("0" * 64)
    (line,) = differing(output, Cleared(cleared.shards, {**cleared.hashes, "data/000000.1.tar": ["0" * 64]}))
    assert line == "data/000000.1.tar: was there before, and is not made again"
    (line,) = differing(output, Cleared(cleared.shards, {"metadata/000000.parquet": cleared.hashes["metadata/000000.parquet"]}))
    assert line == "data/000000.tar: was not there before"


def test_a_shard_of_a_later_generation_is_made_again_as_that_generation(plan, output):
    commit_planned(output, plan, [0], {0: 2})
    finish(plan, output, read_records(output))
    was = files_of(Path(output))
    assert problems_of(output) == [] and "data/000000.2.tar" in was and "data/000000.tar" not in was
    for path in ("commits/000000.2.json", "data/000000.2.tar"):
        assert files_of(Path(output)) == was
        delete(join(output, path))
        cleared = clear(output, problems_of(output))
        assert cleared.shards == {0: 2}
        ran(plan, output, cleared.shards)
        assert differing(output, cleared) == []


def test_a_stray_name_does_not_decide_which_generation_a_shard_was(plan, output, was):
    delete(join(output, "index.json"))
    put(join(output, "commits/000000.json"), b"")
    put(join(output, "metadata/000000.1.parquet"), was["metadata/000002.parquet"])
    cleared = clear(output, problems_of(output))
    assert cleared.shards == {0: 0} and cleared.unknown == [0]
    ran(plan, output, cleared.shards)
    assert files_of(Path(output)) == was


def test_an_earlier_generation_is_not_trusted_in_the_place_of_a_damaged_one(plan, output):
    commit_planned(output, plan, [0], {0: 1})  # killed before the earlier one went
    delete(join(output, "data/000000.1.tar"))
    assert clear(output, problems_of(output)).shards == {0: 1}
    assert [record.shard for record in read_records(output)] == [1, 2]


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("plan/plan.json", b"{}"),
        ("plan/plan.json", None),
        ("plan/shards/000001.json.gz", b""),
        ("plan/hardware.json", b"{}"),
    ],
)
def test_without_a_whole_plan_nothing_is_deleted(output, path, content):
    flip(output, "data/000000.tar")
    if content is None:
        delete(join(output, path))
    else:
        put(join(output, path), content)
    before = files_of(Path(output))
    with pytest.raises(PlanError) as caught:
        clear(output, problems_of(output))
    assert len(caught.value.problems) == 1 and str(caught.value).startswith(f"{output}/{path}: ")
    assert files_of(Path(output)) == before
    shutil.rmtree(f"{output}/plan")
    with pytest.raises(PlanError, match="has no plan/ to repair it by"):
        clear(output, problems_of(output))
    assert files_of(Path(output)) == {name: content for name, content in before.items() if not name.startswith("plan/")}


def test_a_plan_that_no_record_is_of_deletes_nothing(output, tmp_path):
    shutil.rmtree(f"{output}/plan")
    (tmp_path / "prompts.txt").write_text("x\ny\nz\n")
    make_plan(look(load("embedded", [f"manifest={tmp_path / 'prompts.txt'}", "shards.size=1"])), output)
    put_hardware(output, {"cpu": "x86_64"})
    before = files_of(Path(output))
    assert sum("is of the plan" in str(problem) for problem in problems_of(output)) == SHARDS
    with pytest.raises(PlanError, match="no commit record is of this plan"):
        clear(output, problems_of(output))
    assert files_of(Path(output)) == before


class KilledError(Exception):
    pass


def damage(output):
    """One of each kind, in two shards of three."""
    flip(output, "data/000000.tar")
    delete(join(output, "commits/000001.json"))
    put(join(output, "data/000009.tar"), b"nobody's")
    put(join(output, "parts/000000-00001.parquet"), b"old")
    flip(output, "README.md")


@pytest.mark.parametrize("how", ["again", "plain run"])
def test_killed_at_any_step_it_leaves_what_the_next_try_ends(plan, output, was, monkeypatch, how, tmp_path):
    damage(output)
    steps = 0

    def counting(act):
        def step(*arguments):
            nonlocal left
            if left == 0:
                raise KilledError
            left -= 1
            act(*arguments)

        return step

    monkeypatch.setattr(repair, "delete", counting(repair.delete))
    monkeypatch.setattr(repair, "put", counting(repair.put))
    while True:
        there = str(shutil.copytree(output, tmp_path / f"{how} {steps}"))
        found = problems_of(there)
        damaged = {problem.shard for problem in found} - {None}
        left = steps
        try:
            clear(there, found)
        except KilledError:
            steps += 1
        else:
            break
        # What a reader trusts is no worse than it was: no record is without a file that it had.
        assert all(Path(there, file.path).exists() for record in read_records(there) for file in record.files)
        assert {problem.shard for problem in problems_of(there)} - {None} <= damaged
        left = 1000
        if how == "again":
            cleared = clear(there, problems_of(there))
            assert cleared == remembered(there)
            ran(plan, there, cleared.shards)
            assert cleared.shards == {0: 0, 1: 0}
            assert differing(there, cleared) == []
        else:
            ran(plan, there)
            ran(plan, there, clear(there, problems_of(there)).shards)
        assert files_of(Path(there)) == was
        assert problems_of(there) == []
    assert steps == 11  # the note, two marks, four files of shard 0, one of shard 1, three that verify says have to go


def test_what_a_cut_off_repair_wrote_down_is_not_forgotten_and_what_was_made_since_stays(plan, output, monkeypatch):
    record = read_records(output)[0]
    tar, parquet = record.files
    wrong = dataclasses.replace(record, files=(dataclasses.replace(tar, sha256="0" * 64), parquet))
    put(join(output, "commits/000000.json"), wrong.to_json())
    with monkeypatch.context() as patched:
        patched.setattr(repair, "_clear_shard", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            clear(output, problems_of(output))
    assert sorted(remembered(output).hashes["data/000000.tar"]) == sorted(["0" * 64, tar.sha256])
    before = remembered(output)
    assert clear(output, problems_of(output)) == before
    ran(plan, output)
    made = files_of(Path(output))
    assert clear(output, problems_of(output)) == Cleared(), "once all is made again it is over"
    assert files_of(Path(output)) == made


@pytest.mark.parametrize("seed", range(10))
def test_any_damage_outside_the_plan_is_undone(plan, output, was, seed):
    rng = random.Random(seed)
    shutil.move(f"{output}/plan", f"{output}.plan")
    for _ in range(4):
        mutate(Path(output), rng)
    shutil.rmtree(f"{output}/plan", ignore_errors=True)  # a copy under the name of a shard's plan
    shutil.move(f"{output}.plan", f"{output}/plan")
    ran(plan, output, clear(output, problems_of(output)).shards)
    assert problems_of(output) == []
    assert files_of(Path(output)) == was


def invoke(*arguments):
    return CliRunner().invoke(main, ["verify", *map(str, arguments)])


def test_without_damage_repair_says_what_verify_says(output, monkeypatch):
    monkeypatch.chdir(Path(output).parent)
    before = files_of(Path(output))
    plain, repaired = invoke("out"), invoke("out", "--repair")
    assert plain.exit_code == repaired.exit_code == 0
    said = plain.output.split(" (")[0]
    assert said == repaired.output.split(" (")[0]
    assert said.startswith("finished, and every file is as its record says: 3 shards, 14 images, ")
    assert files_of(Path(output)) == before


def test_what_needs_no_rendering_is_repaired_without_ray(output, was, monkeypatch):
    monkeypatch.setattr("promptmill.jobs.running.on_ray.on_ray", lambda *given: pytest.fail("starts Ray"))
    put(join(output, "data/000009.tar"), b"")
    assert "repaired: no shard had to be made again" in invoke(output, "--repair").output
    flip(output, "README.md")
    delete(join(output, "_SUCCESS"))
    monkeypatch.chdir(Path(output).parent)
    result = invoke("out", "--repair")
    assert result.exit_code == 0
    assert result.output.splitlines()[-1] == "repaired: no shard had to be made again"
    assert files_of(Path(output)) == was


def test_an_unfinished_dataset_is_not_finished_by_a_repair_that_has_nothing_to_make(output, monkeypatch):
    monkeypatch.setattr("promptmill.jobs.verifying.mending.rendered", lambda *a, **k: pytest.fail("renders"))
    for path in ("_SUCCESS", "index.json", "commits/000002.json"):
        delete(join(output, path))
    result = invoke(output, "--repair")
    assert result.exit_code == 0
    assert "unfinished, and every file is as its record says: 2 shards" in result.output


def test_a_repair_beside_a_run_is_refused_and_deletes_nothing(output):
    flip(output, "data/000000.tar")
    before = files_of(Path(output))
    with hold(output):
        result = invoke(output, "--repair")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert files_of(Path(output)) == before


def test_a_broken_plan_is_one_line_and_exit_2(output):
    put(join(output, "plan/plan.json"), b"{}")
    result = invoke(output, "--repair")
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{output}/plan/plan.json: not a plan: 'format'; without a whole plan nothing is repaired: ")


@pytest.fixture
def rendering(plan, monkeypatch):
    """The command line renders at no cost, and asks Ray for no room."""

    def rendered(there, output, console, generations):
        assert there.fingerprint == plan.fingerprint
        commit_planned(output, plan, set(generations) - {record.shard for record in read_records(output)}, generations)
        if len(read_records(output)) == SHARDS:
            finish(read_plan(output), output, read_records(output))
        return 3  # as some rows of it failed

    monkeypatch.setattr("promptmill.jobs.verifying.mending.rendered", rendered)
    monkeypatch.setattr("promptmill.jobs.cli.verify.ready", lambda config, output: contextlib.nullcontext())


@pytest.mark.usefixtures("rendering")
def test_the_command_says_how_many_shards_it_made_again_and_whether_their_bytes_are_the_same(output, was):
    damage(output)
    result = invoke(output, "--repair")
    assert result.exit_code == 0
    assert result.output.splitlines()[-1] == "repaired: 2 shards made again, the same bytes as before"
    assert files_of(Path(output)) == was and remembered(output) == Cleared()
    for path in ("index.json", "commits/000001.json"):
        delete(join(output, path))
    result = invoke(output, "--repair")
    assert result.exit_code == 0
    assert result.output.splitlines()[-1] == "repaired: 1 shard made again; of some nothing told what they were"
    assert files_of(Path(output)) == was


@pytest.mark.usefixtures("rendering")
def test_the_command_names_the_file_whose_bytes_are_others_and_exits_with_1(output, was):
    delete(join(output, "index.json"))
    record = CommitRecord.from_json(was["commits/000002.json"])
    tar, parquet = record.files
    record = dataclasses.replace(record, files=(dataclasses.replace(tar, sha256="0" * 64), parquet))
    put(join(output, "commits/000002.json"), record.to_json())
    result = invoke(output, "--repair")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("data/000002.tar: has other bytes than before; its SHA-256 is ")
    assert files_of(Path(output)) == was


@pytest.mark.usefixtures("rendering")
def test_a_repair_that_was_cut_off_is_gone_on_with(output, was):
    damage(output)
    clear(output, problems_of(output))
    result = invoke(output, "--repair")
    assert result.exit_code == 0
    assert result.output.splitlines()[-1] == "repaired: 2 shards made again, the same bytes as before"
    assert files_of(Path(output)) == was


def test_damaged_shards_are_rendered_again_to_the_same_bytes_and_no_others(tmp_path):
    out = tmp_path / "out"
    (tmp_path / "prompts.txt").write_text("a small red circle at the left on a black background\n" * 4)
    config = load("embedded", [*FEW, f"manifest={tmp_path / 'prompts.txt'}", "shards.size=1", HERE])
    run(make_plan(look(config), str(out)), str(out), Watching())
    was = files_of(out)
    times = {path: path.stat().st_mtime_ns for path in (out / "data").iterdir()}
    flip(str(out), "data/000000.tar")
    (out / "metadata" / "000001.parquet").write_bytes(was["metadata/000001.parquet"][:-100])
    (out / "commits" / "000003.json").unlink()
    result = invoke(out, "--repair")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "repaired: 3 shards made again, the same bytes as before"
    assert files_of(out) == was
    other = out / "data" / "000002.tar"
    assert other.stat().st_mtime_ns == times[other]
    assert not (out / "stats" / "repair.json").exists()


@pytest.mark.parametrize(
    "changed",
    [
        "promptmill.jobs.verifying.repair_limits.library_versions",
        "promptmill.jobs.verifying.repair_limits.config_identity",
        "promptmill.pipelines.rendering.hardware.hardware_kind",
    ],
)
def test_where_model_libraries_or_hardware_are_others_nothing_is_deleted(output, monkeypatch, changed):
    flip(output, "data/000000.tar")
    before = files_of(Path(output))
    monkeypatch.setattr(changed, lambda *_: {"torch": "0.1"})
    done = CliRunner().invoke(main, ["verify", output, "--repair"])
    assert done.exit_code == 2
    assert "cannot be made again here to the same bytes, since this has changed:" in done.output
    assert files_of(Path(output)) == before


@pytest.mark.parametrize("generation", [-1, 10_000, 10**18, True, 1.0, "1", None])
def test_a_note_of_a_generation_that_no_shard_can_have_is_none(output, generation):
    # A run looks for what is left of all generations before: of so many it would for ever.
    put(join(output, REPAIR_NOTE), json.dumps({"shards": {"0": generation}, "hashes": {}}).encode())
    assert remembered(output) == Cleared()


def test_a_repair_that_a_plain_run_has_finished_is_forgotten(plan, output):
    flip(output, "data/000000.tar")
    clear(output, problems_of(output))
    assert remembered(output).shards == {0: 0}
    ran(plan, output)
    assert remembered(output).shards == {}
