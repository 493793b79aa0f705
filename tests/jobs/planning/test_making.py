import dataclasses
import json
import shutil
import tarfile
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from promptmill.configs.loading import load
from promptmill.configs.own_files import ROOT
from promptmill.jobs.planning import sources
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError, read_plan
from promptmill.jobs.planning.shard_plans import read_shard
from promptmill.jobs.planning.shard_writing import ShardWriter
from promptmill.jobs.planning.sources import look
from promptmill.jobs.running.finishing import models
from promptmill.jobs.showing.summary import plan_lines
from promptmill.pipelines.work.evaluations import Counting
from tests.manifests.test_bad_input import FILES


def all_shards(output, plan):
    return [read_shard(output, number) for number in range(plan.shards)]


def config_of(manifest, *settings):
    return load("embedded", [f"manifest={manifest}", "shards.size=4", *settings])


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "manifest.jsonl"
    write(path, [{"prompt": f"prompt {i}", "topic": i if i % 2 else f"t{i}"} for i in range(10)])
    return path


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def planned(config, output):
    return make_plan(look(config), str(output))


def test_the_price_is_that_of_the_scheduler_and_the_model(manifest, tmp_path):
    found = look(config_of(manifest, "defaults.scheduler=heun"))
    assert make_plan(found, str(tmp_path / "heun")).counts.evaluations == 40 * (2 * 20 - 1) * 2
    once = dataclasses.replace(found, counting=Counting(guided=1))
    assert make_plan(once, str(tmp_path / "once")).counts.evaluations == 40 * (2 * 20 - 1)


def test_a_plan_holds_every_row_in_order_in_shards_of_the_size(manifest, tmp_path):
    plan = planned(config_of(manifest), tmp_path / "out")
    shards = list(all_shards(str(tmp_path / "out"), plan))
    assert [[p.row for p in shard.requests] for shard in shards] == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1]]
    assert [p.request.prompt for shard in shards for p in shard.requests] == [f"prompt {i}" for i in range(10)]
    assert (plan.counts.rows, plan.counts.requests, plan.counts.candidates, plan.counts.keep) == (10, 10, 40, 10)
    assert plan.counts.evaluations == 40 * 20 * 2
    assert plan.counts.units == sum(len(shard.units) for shard in shards) == 3
    assert plan.carried == {"topic": "string"}
    assert plan.embedding == 128


def test_a_plan_is_read_back_as_it_was_written(manifest, tmp_path):
    plan = planned(config_of(manifest), tmp_path / "out")
    assert read_plan(str(tmp_path / "out")) == plan
    assert read_plan(str(tmp_path / "nowhere")) is None


def test_what_a_person_should_know_though_nothing_is_wrong_is_in_the_plan_and_shown(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "i.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "m.png")
    rows = [{"prompt": "x", "init_image": "i.png", "mask_image": "m.png"}] * 2 + [{"prompt": "# y"}]
    write(tmp_path / "b.jsonl", rows)
    (tmp_path / "a.jsonl").write_text("")
    plan = planned(config_of(f"[{tmp_path}/a.jsonl, {tmp_path}/b.jsonl]"), tmp_path / "out")
    assert plan.notes == (
        "mask_image: repaints everything, as img2img does without a mask (2 rows, the first: b.jsonl, row 1)",
        "prompt: begins with --, # or //, which is rendered as words; options have columns of their own (1 row: b.jsonl, row 3)",
        "a.jsonl: has no rows, and is left out",
    )
    assert read_plan(str(tmp_path / "out")) == plan
    shown = list(plan_lines(plan, None))
    assert all(f"note         {note}" in shown for note in plan.notes)


def test_notes_are_no_part_of_the_fingerprint_and_files_without_rows_not_of_the_requests(manifest, tmp_path):
    plan = planned(config_of(manifest), tmp_path / "out")
    assert dataclasses.replace(plan, notes=("another",)).fingerprint == plan.fingerprint


def test_the_fingerprint_is_of_what_decides_the_bytes_and_of_nothing_else(manifest, tmp_path):
    first = planned(config_of(manifest), tmp_path / "a").fingerprint
    moved = tmp_path / "elsewhere" / "other.jsonl"
    moved.parent.mkdir()
    shutil.copy(manifest, moved)
    assert planned(config_of(moved), tmp_path / "b").fingerprint == first
    assert planned(config_of(manifest, "runtime.generators=3", "output=x"), tmp_path / "c").fingerprint == first
    different = ["seed=1", "defaults.steps=9", "model.batch=4", "model.threads=2", "shards.size=5", "ranking.min_score=1"]
    others = [planned(config_of(manifest, setting), tmp_path / f"d{i}").fingerprint for i, setting in enumerate(different)]
    assert len({first, *others}) == 7


def test_the_fingerprint_changes_with_weights_versions_and_images(manifest, tmp_path, monkeypatch):
    first = planned(config_of(manifest), tmp_path / "a").fingerprint
    weights = tmp_path / "weights"
    shutil.copytree(ROOT / "embedded" / "weights" / "pipeline", weights)
    named = planned(config_of(manifest, f"model.base={weights}"), tmp_path / "b").inputs["models"]["model.base"]
    assert named == read_plan(str(tmp_path / "a")).inputs["models"]["model.base"]
    with (weights / "unet" / "diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    assert planned(config_of(manifest, f"model.base={weights}"), tmp_path / "c").inputs["models"]["model.base"] != named

    monkeypatch.setattr("promptmill.jobs.planning.sources.library_versions", lambda *_: {"torch": "9"})
    assert planned(config_of(manifest), tmp_path / "d").fingerprint != first
    monkeypatch.undo()

    images = ROOT / "configs" / "presets" / "quickstart" / "images"
    some = sorted(images.glob("*.png"))[:2]
    write(manifest, [{"prompt": "x", "init_image": "image.png"}])
    found = set()
    for i, image in enumerate(some):
        shutil.copy(image, tmp_path / "image.png")
        found.add(planned(config_of(manifest), tmp_path / f"e{i}").fingerprint)
    assert len(found) == 2


def test_planning_again_is_the_same_plan_and_planning_something_else_is_refused_with_what_changed(manifest, tmp_path):
    plan = planned(config_of(manifest), tmp_path / "out")
    assert planned(config_of(manifest), tmp_path / "out") == plan
    with pytest.raises(PlanError) as caught:
        planned(config_of(manifest, "defaults.steps=9"), tmp_path / "out")
    assert "config.defaults.steps: was 20, is 9" in caught.value.problems
    assert read_plan(str(tmp_path / "out")) == plan
    write(manifest, [{"prompt": "another"}])
    with pytest.raises(PlanError, match=r"manifest\.0: was"):
        planned(config_of(manifest), tmp_path / "out")


BAD = [
    {"id": "a", "prompt": "fine"},
    {"id": "b", "prompt": "steps", "steps": 0},
    {"id": "c"},
    {"id": "d", "prompt": "image", "init_image": "nowhere.png"},
    {"id": "a", "prompt": "doubled"},
    {"id": "e", "prompt": "fine too"},
    {"id": "f", "prompt": "the last", "sha256": "is a column of ours"},
]


def test_bad_rows_refuse_the_plan_with_a_line_each_and_leave_nothing_behind(manifest, tmp_path):
    write(manifest, BAD)
    with pytest.raises(PlanError) as caught:
        planned(config_of(manifest), tmp_path / "out")
    said = caught.value.problems
    assert [line.split(": ")[0].rsplit(", ")[-1] for line in said] == ["row 2", "row 3", "row 4", "row 7", "row 5"]
    assert all(line.startswith(str(manifest)) for line in said)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_bad_rows_can_be_recorded_each_in_its_place(manifest, tmp_path):
    write(manifest, BAD)
    plan = planned(config_of(manifest, "runtime.on_bad_row=record"), tmp_path / "out")
    assert (plan.counts.rows, plan.counts.bad, plan.counts.requests, plan.counts.candidates) == (7, 5, 2, 8)
    first, second = all_shards(str(tmp_path / "out"), plan)
    assert [bad.row for bad in first.bad] == [1, 2, 3]
    assert [bad.row for bad in second.bad] == [0, 2]
    assert [placed.request.id for placed in (*first.requests, *second.requests)] == ["a", "e"]
    assert second.bad[0].id == "a"
    assert second.bad[0].message.startswith("manifest.jsonl, row 5: id: 'a' is also that of ")
    assert str(tmp_path) not in first.bad[0].message


EMPTY = {name for name in FILES if name.startswith("empty ")}


@pytest.mark.parametrize("name", sorted(EMPTY))
def test_a_file_without_rows_among_others_is_left_out_with_a_note(tmp_path, name):
    (tmp_path / "good.txt").write_text("a shard\n" * 3)
    file, content, _ = FILES[name]
    (tmp_path / file).write_bytes(content)
    plan = planned(load("embedded", [f"manifest=[{tmp_path / file}, {tmp_path}/good.txt]"]), tmp_path / "out")
    assert (plan.counts.rows, plan.notes) == (3, (f"{file}: has no rows, and is left out",))


@pytest.mark.parametrize(
    ("name", "content", "says"), [FILES[n] for n in FILES if n not in EMPTY], ids=[n for n in FILES if n not in EMPTY]
)
def test_a_file_that_cannot_be_read_to_its_end_refuses_the_plan_though_bad_rows_are_recorded(tmp_path, name, content, says):
    (tmp_path / "good.txt").write_text("a shard\n" * 200)
    (tmp_path / name).write_bytes(content)
    config = load(
        "embedded", [f"manifest=[{tmp_path}/good.txt, {tmp_path / name}]", "shards.size=200", "runtime.on_bad_row=record"]
    )
    with pytest.raises(PlanError) as caught:
        planned(config, tmp_path / "out")
    assert caught.value.problems[-1].startswith(f"{tmp_path}/{says}")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["good", "good", "image", "column", "steps"])), max_size=12))
def test_of_rows_with_one_id_the_first_good_one_is_a_request_and_each_row_has_one_place(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("doubled")
    wrong = {"good": {}, "image": {"init_image": "gone.png"}, "column": {"sha256": "x"}, "steps": {"steps": 0}}
    # One more row, so that there is a request.
    write(folder / "m.jsonl", [{"id": id, "prompt": "x", **wrong[kind]} for id, kind in rows] + [{"id": "z", "prompt": "x"}])
    config = config_of(folder / "m.jsonl", "runtime.on_bad_row=record", "shards.size=3")
    plan = planned(config, folder / "out")
    shards = list(all_shards(str(folder / "out"), plan))
    kept = [3 * shard.shard + placed.row for shard in shards for placed in shard.requests]
    bad = [3 * shard.shard + row.row for shard in shards for row in shard.bad]
    good = [i for i, (_, kind) in enumerate(rows) if kind == "good"]
    assert kept == [i for i in good if rows[i][0] not in [rows[j][0] for j in good if j < i]] + [len(rows)]
    assert sorted([*kept, *bad]) == list(range(len(rows) + 1)) and bad == sorted(bad)
    assert (plan.counts.rows, plan.counts.bad) == (len(rows) + 1, len(bad))
    assert plan.inputs["requests"] == planned(config, folder / "again").inputs["requests"]


def test_a_shard_is_mended_once_however_many_of_its_rows_have_doubled_ids(manifest, tmp_path, monkeypatch):
    write(manifest, [{"id": str(i % 8), "prompt": "x"} for i in range(40)])
    written, really = [], ShardWriter.write

    def noted(writer, shard, content, **how):
        written.append(shard)
        really(writer, shard, content, **how)

    monkeypatch.setattr(ShardWriter, "write", noted)
    plan = planned(config_of(manifest, "runtime.on_bad_row=record"), tmp_path / "out")
    assert written == [*range(10), *range(2, 10)]
    assert plan.shards == 10


def broken_folder(folder):
    """A folder with two manifests in which nearly everything is wrong; the manifests."""
    (folder / "more").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "text.png").write_text("no picture")
    (folder / "text.tar").write_text("no tar")
    images = ["gone.png", "text.png", "../x.png", "/etc/passwd", "text.tar::a.png", "a.png"]
    rows = [{"id": "doubled", "prompt": "x", "init_image": image} for image in images]
    write(folder / "m.jsonl", rows)
    write(folder / "more" / "m.jsonl", [*rows, {"id": "doubled", "prompt": "x"}, {"id": "doubled", "prompt": "x"}])
    (folder / "sample.txt").write_text("a prompt")
    with tarfile.open(folder / "more" / "samples.tar", "w") as tar:
        for place, name in (("a.png", "one.png"), ("sample.txt", "one.txt")):
            info = tarfile.TarInfo(name)
            info.size = (folder / place).stat().st_size
            with (folder / place).open("rb") as file:
                tar.addfile(info, file)
    return [folder / "m.jsonl", folder / "more" / "m.jsonl", folder / "more" / "samples.tar"]


def test_where_a_manifest_lies_is_in_no_byte_of_its_shards_and_not_in_the_fingerprint(tmp_path):
    plans, contents = [], []
    for name in ("here", "some/where/else"):
        manifests = ", ".join(map(str, broken_folder(tmp_path / name)))
        out = tmp_path / name / "out"
        plans.append(planned(load("embedded", [f"manifest=[{manifests}]", "runtime.on_bad_row=record"]), out))
        contents.append((out / "plan" / "shards" / "000000.json.gz").read_bytes())
    assert plans[0].fingerprint == plans[1].fingerprint
    assert contents[0] == contents[1]
    (shard,) = all_shards(str(tmp_path / "here" / "out"), plans[0])
    assert [(p.request.id, p.request.init_image, p.file) for p in shard.requests] == [
        ("doubled", "a.png", 0),
        ("one", "samples.tar::one.png", 2),
    ]
    assert "id: 'doubled' is also that of m.jsonl, row 6" in shard.bad[-1].message
    assert not [bad for bad in shard.bad if str(tmp_path) in bad.message]


def test_a_relative_path_leads_from_its_own_file_or_a_declared_root_and_never_from_another_file(tmp_path):
    for name in ("one", "two", "declared"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "m.jsonl", [{"prompt": "x", "init_image": image} for image in ("both.png", "two.png")])
    for place, colour in (("one/both", "red"), ("two/both", "blue"), ("two/two", "green")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{place}.png")
    both = [f"manifest=[{tmp_path}/one/m.jsonl, {tmp_path}/two/m.jsonl]"]
    with pytest.raises(PlanError) as caught:
        planned(load("embedded", both), tmp_path / "out")
    (line,) = caught.value.problems
    assert line.startswith(f"{tmp_path}/one/m.jsonl, row 2: init_image: two.png: no such file")

    Image.new("RGB", (8, 8), "yellow").save(tmp_path / "declared" / "two.png")
    plan = planned(load("embedded", [*both, f"runtime.image_roots=[{tmp_path}/declared]"]), tmp_path / "out")
    (shard,) = all_shards(str(tmp_path / "out"), plan)
    found = [p.images["init_image"] for p in shard.requests]
    places = ("one/both", "declared/two", "two/both", "two/two")
    assert found == [sources.hash_of(str(tmp_path / f"{place}.png")) for place in places]
    assert [p.file for p in shard.requests] == [0, 0, 1, 1]


def test_an_image_whose_storage_fails_refuses_the_plan_or_is_left_to_the_run(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    write(tmp_path / "m.jsonl", [{"prompt": "x", "init_image": "a.png"}, {"prompt": "x"}])
    info = LocalFileSystem.info

    def failing(self, path, **options):
        if path.endswith(".png"):
            raise OSError(5, "Input/output error")
        return info(self, path, **options)

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.info", failing)
    with pytest.raises(PlanError, match=r"row 1: init_image: a\.png: cannot be reached: Input/output error"):
        planned(config_of(tmp_path / "m.jsonl"), tmp_path / "out")
    plan = planned(config_of(tmp_path / "m.jsonl", "runtime.on_bad_row=record"), tmp_path / "out")
    (shard,) = all_shards(str(tmp_path / "out"), plan)
    assert (plan.counts.bad, [dict(p.images) for p in shard.requests]) == (0, [{}, {}])


def test_our_own_output_without_its_images_says_which_root_to_declare(tmp_path):
    ours = {"key": "000000-00000-0000", "candidate_index": 0, "selected": True, "pixel_sha256": "0", "prompt": "x"}
    pq.write_table(pa.Table.from_pylist([{**ours, "init_image": "a.png"}]), tmp_path / "000000.parquet")
    with pytest.raises(PlanError) as caught:
        planned(config_of(tmp_path / "000000.parquet"), tmp_path / "out")
    assert len(caught.value.problems) == 2
    assert "name that folder in runtime.image_roots" in caught.value.problems[1]
    write(tmp_path / "m.jsonl", [{"prompt": "x", "init_image": "a.png"}])
    with pytest.raises(PlanError) as caught:
        planned(config_of(tmp_path / "m.jsonl"), tmp_path / "out")
    assert len(caught.value.problems) == 1


def test_images_are_frozen_into_the_plan_unless_they_are_left_to_the_run(tmp_path, quickstart):
    for check, frozen in (("all", True), ("at_run", False)):
        out = tmp_path / check
        plan = planned(load("quickstart", [f"runtime.check_images={check}"]), out)
        shards = list(all_shards(str(out), plan))
        assert any(p.images for shard in shards for p in shard.requests) == frozen


def test_planning_takes_the_memory_of_a_shard_and_not_of_a_manifest(tmp_path):
    def peak(rows):
        path = tmp_path / f"{rows}.jsonl"
        # Of few words, since the tokens of words are remembered, of 65,536 at most.
        write(path, ({"prompt": f"prompt {i // 64} {i % 64} " + "x" * 500} for i in range(rows)))
        tracemalloc.start()
        try:
            planned(config_of(path, "shards.size=100"), tmp_path / f"out{rows}")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(100)  # what is imported and cached on the way
    assert peak(4000) < peak(400) + 500_000


def test_a_plan_that_was_altered_is_not_used(manifest, tmp_path):
    planned(config_of(manifest), tmp_path / "out")
    file = tmp_path / "out" / "plan" / "plan.json"
    file.write_text(file.read_text().replace('"steps": 20', '"steps": 21', 1))
    with pytest.raises(PlanError, match="altered"):
        read_plan(str(tmp_path / "out"))
    file.write_text("{")
    with pytest.raises(PlanError, match="not a plan"):
        read_plan(str(tmp_path / "out"))


def test_the_same_rows_make_the_same_plan_files(manifest, tmp_path):
    for name in ("a", "b"):
        planned(config_of(manifest), tmp_path / name)
    first, second = ((tmp_path / name / "plan" / "shards" / "000001.json.gz").read_bytes() for name in ("a", "b"))
    assert first == second
    assert dataclasses.asdict(read_shard(str(tmp_path / "a"), 1)) == dataclasses.asdict(read_shard(str(tmp_path / "b"), 1))


def test_a_model_that_brings_no_safety_checker_cannot_be_asked_for_one(manifest):
    with pytest.raises(PlanError, match="brings no safety checker"):
        look(config_of(manifest, "model.safety_checker=true"))


def test_a_model_or_a_manifest_that_is_not_there_is_one_line(manifest, tmp_path):
    with pytest.raises(PlanError, match="no such file"):
        look(config_of(tmp_path / "nowhere.jsonl"))
    with pytest.raises(PlanError, match="no such folder"):
        look(config_of(manifest, "model.base=./nowhere"))


def test_a_draft_whose_sampler_does_not_fit_the_model_is_one_line(tmp_path, manifest, monkeypatch):
    facts = dataclasses.replace(sources.read_facts(config_of(manifest).model), schedulers=("euler",))
    monkeypatch.setattr(sources, "read_facts", lambda model: facts)
    with pytest.raises(PlanError, match=r"ranking.drafts.0.scheduler: ddim does not fit the model, which takes euler"):
        look(config_of(manifest, "ranking.drafts=[{steps: 4, keep: 2, scheduler: ddim}]"))


def test_units_of_several_passes_are_as_much_longer_and_their_price_is_that_of_all_passes(tmp_path, manifest):
    drafts = "ranking.drafts=[{steps: 5, keep: 1}]"
    plain = planned(config_of(manifest, "model.batch=1"), tmp_path / "plain")
    drafted = planned(config_of(manifest, "model.batch=1", drafts), tmp_path / "drafted")
    assert plain.counts.undrafted == plain.counts.evaluations == drafted.counts.undrafted == 10 * 2 * 4 * 20
    assert drafted.counts.evaluations == 10 * 2 * (4 * 5 + 20)
    # 80 evaluations a pass for each place of the batch: a request is 160 in its only pass, 40 in each of two.
    assert (plain.counts.units, drafted.counts.units) == (10, 5)


def test_the_plan_holds_the_licences_of_its_models_and_the_card_says_them(tmp_path):
    (tmp_path / "manifest.txt").write_text("a cat\n")
    plan = make_plan(look(load("embedded", [f"manifest={tmp_path}/manifest.txt"])), str(tmp_path / "out"))
    assert plan.licences == dict.fromkeys(
        ("model.base", "model.controlnets.canny", "model.controlnets.seg", "model.annotators.seg", "ranking.model"), "apache-2.0"
    )
    assert read_plan(str(tmp_path / "out")) == plan
    assert [(made.role, made.licence) for made in models(plan)] == [
        (role, "apache-2.0") for role in ("base", "ControlNet canny", "ControlNet seg", "annotator seg", "scorer")
    ]
