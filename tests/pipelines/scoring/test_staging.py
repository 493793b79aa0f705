"""That a unit goes through its stages once its images are chosen, from what is durable, and what becomes of its rows."""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from promptmill.configs.loading import load
from promptmill.pipelines.scoring.finishing import Onward
from promptmill.pipelines.scoring.staging import finish_in_stages, resumed_at_stage
from promptmill.pipelines.work.metadata_rows import declared_columns
from promptmill.pipelines.work.passes import begin
from promptmill.pipelines.work.recipe import Recipe
from promptmill.pipelines.work.results import Candidate, Failure, Outcome, Rendered
from promptmill.pipelines.work.stage_parts import pictures_before
from promptmill.pipelines.work.units import Placed, Unit
from promptmill.shards.bundles import entry, unpack
from promptmill.shards.image_reader import read_picture
from promptmill.shards.parts import PartError, read_part, write_part
from promptmill.shards.storage import names
from promptmill.shards.tables import IMAGE, make_table, schema
from tests.pipelines.plain import request
from tests.pipelines.work.courses import HashClip

STAGES = "stages=[{kind: hires, strength: 1}, {kind: hires, strength: 1}]"


def recipe_of(folder, *settings):
    config = load("embedded", ["manifest=x", STAGES, *settings])
    form = schema({}, 4, bool(config.ranking.drafts), declared=declared_columns(config))
    return Recipe(config, form, str(folder), "f" * 64)


def unit_of(recipe, **rows):
    placed = tuple(Placed(row, one) for row, one in enumerate(request(name, **values) for name, values in rows.items()))
    requests = {one.row: one.request for one in placed}
    return Unit(0, 3, placed, course=begin(requests, recipe.config.ranking.drafts, stages=True))


def painted(row, index, stage=0):
    return np.random.default_rng((row, index, stage)).integers(0, 256, (64 << stage, 64 << stage, 3), dtype=np.uint8)


def render(recipe, unit, failing=()):
    """What a generator would: pictures that depend on row, candidate and stage, twice as large with each stage."""
    staged = unit.course.staged
    number = staged.number + 1 if staged else 0
    if staged:
        before = pictures_before(recipe, unit)
        assert set(before) == {(placed.row, index) for placed, indices in unit.next_pass() for index in indices}
        assert all(np.array_equal(one, painted(*at, number - 1)) for at, one in before.items())
    outcomes = []
    for placed, indices in unit.next_pass():
        made = [Candidate(index, index, painted(placed.row, index, number), 10) for index in indices]
        if (number, placed.row) in failing:
            made = [replace(one, pixels=None, failure=Failure("render_error", "no such thing")) for one in made]
        outcomes.append(Outcome(placed.row, tuple(made)))
    return Rendered(tuple(outcomes), {"denoise": 1.0})


def table(rows, recipe):
    """Rows as their part has them: values of several types may stand for the same bytes."""
    return make_table(rows, recipe.form.append(pa.field(IMAGE, pa.large_binary())))


def taken(recipe, unit, failing=(), again=False, clip=None):
    """The unit's finished result; with `again`, each stage is begun by a process that knows nothing of the one before."""
    while True:
        said = finish_in_stages(unit, render(recipe, unit, failing), clip or HashClip(), recipe, list)
        if not isinstance(said, Onward):
            return said
        begun = replace(unit, course=said.course)
        unit = resumed_at_stage(unit, set(names(f"{recipe.output}/parts")), recipe) if again else begun
        assert unit.course.staged == begun.course.staged


@pytest.mark.parametrize("form", ["png", "jpg"])
def test_kept_images_go_through_all_stages_and_other_rows_stay_as_they_are(tmp_path, form):
    recipe = recipe_of(tmp_path, f"shards.image_format={form}")
    unit = unit_of(recipe, a={"candidates": 3}, b={"candidates": 2, "keep": 2})
    finished = taken(recipe, unit)
    rows = {row["key"]: row for row in finished.rows}
    assert [row["status"] for row in rows.values()].count("kept") == 3
    for key, row in rows.items():
        at = int(key[7:12]), int(key[13:])
        if row["status"] == "kept":
            assert [(one["stage"], one["width"], one["height"], one["evaluations"]) for one in row["stages"]] == [
                ("rendered", 64, 64, 10),
                ("hires 2x", 128, 128, 10),
                ("hires 2x", 256, 256, 10),
            ]
            scores = [HashClip()._score(row["prompt"], painted(*at, stage)).score for stage in range(3)]
            assert [one["score"] for one in row["stages"]] == [pytest.approx(one, rel=1e-6) for one in scores]
            assert (row["clip_score"], row["width"], row["unet_evaluations"]) == (pytest.approx(scores[0], rel=1e-6), 256, 30)
            there = np.array(read_picture(row["image"], form, 256, 256))
            assert np.array_equal(there, painted(*at, 2)) == (form == "png")
        else:
            assert (row["status"], row["stages"], row["width"], row["unet_evaluations"]) == ("rejected", None, 64, 10)
            assert row["image"] is row["sha256"] is None
    assert finished.rendering_s == 3.0 and finished.seconds["denoise"] == 3.0
    assert len(finished.scores) == 5


def test_a_process_that_begins_at_a_durable_stage_ends_with_the_same_rows(tmp_path):
    rows = []
    for again in (False, True):
        (folder := tmp_path / str(again)).mkdir()
        recipe = recipe_of(folder)
        rows.append(table(taken(recipe, unit_of(recipe, a={"candidates": 3}), again=again).rows, recipe))
    assert rows[0] == rows[1]


def test_a_broken_part_of_a_stage_is_dropped_for_the_one_before_or_the_beginning(tmp_path):
    recipe = recipe_of(tmp_path)
    unit = unit_of(recipe, a={"candidates": 3})
    taken(recipe, unit)
    parts = tmp_path / "parts"
    assert sorted(names(str(parts))) == ["000000-00003-stage-0000.parquet", "000000-00003-stage-0001.parquet"]
    for number in (1, 0):
        assert resumed_at_stage(unit, set(names(str(parts))), recipe).course.staged.number == number
        last = parts / f"000000-00003-stage-{number:04d}.parquet"
        last.write_bytes(last.read_bytes()[:-50])
    assert resumed_at_stage(unit, set(names(str(parts))), recipe) == unit
    assert [*names(str(parts))] == []


def test_a_part_of_other_rows_is_not_begun_with(tmp_path):
    recipe = recipe_of(tmp_path)
    taken(recipe, unit_of(recipe, a={}, b={}))
    other = unit_of(recipe, a={})
    assert resumed_at_stage(other, set(names(f"{tmp_path}/parts")), recipe) == other


def test_an_image_that_fails_in_a_stage_fails_with_the_stages_name_and_others_go_on(tmp_path):
    recipe = recipe_of(tmp_path)
    unit = unit_of(recipe, a={"candidates": 2}, b={"candidates": 2}, c={"candidates": 2})
    rows = taken(recipe, unit, failing=[(1, 0), (2, 2)]).rows
    failed = [row for row in rows if row["status"] == "failed"]
    assert [row["key"][:12] for row in failed] == ["000000-00000", "000000-00002"]
    assert {(row["error"], row["error_message"]) for row in failed} == {("render_error", "stage hires 2x: no such thing")}
    assert [row["unet_evaluations"] for row in failed] == [20, 30]
    for name in ("image", "sha256", "bytes", "pixel_sha256", "clip_score", "rank", "stages", "clip_embedding"):
        assert {row[name] for row in failed} == {None}
    assert [row["key"][:12] for row in rows if row["status"] == "kept"] == ["000000-00001"]


def test_a_request_that_fails_as_a_whole_in_a_stage_fails_each_of_its_kept_images(tmp_path):
    recipe = recipe_of(tmp_path)
    unit = unit_of(recipe, a={"candidates": 2, "keep": 2}, b={})
    said = finish_in_stages(unit, render(recipe, unit), HashClip(), recipe, list)
    staged = replace(unit, course=said.course)
    rendered = render(recipe, staged)
    gone = Outcome(0, (), Failure("image_changed", "controls.0.image: another"))
    said = finish_in_stages(staged, replace(rendered, outcomes=(gone, rendered.outcomes[1])), HashClip(), recipe, list)
    (first, *_) = said.course.staged.kept
    assert first == 1 and 0 not in said.course.staged.kept
    rows = taken(recipe, replace(staged, course=said.course)).rows
    assert [row["error"] for row in rows if row["status"] == "failed"] == ["image_changed"] * 2


def test_a_score_that_is_no_number_fails_the_image_of_the_stage(tmp_path):
    class Broken(HashClip):
        def _score(self, prompt, image):
            scored = super()._score(prompt, image)
            return replace(scored, score=math.nan) if image.shape[0] > 64 else scored

    recipe = recipe_of(tmp_path)
    rows = taken(recipe, unit_of(recipe, a={}), clip=Broken()).rows
    assert [row["error"] for row in rows if row["error"]] == ["non_finite_score"]


def test_a_unit_of_which_nothing_is_kept_has_no_stage(tmp_path):
    recipe = recipe_of(tmp_path, "ranking.min_score=99")
    finished = taken(recipe, unit_of(recipe, a={}))
    assert {row["status"] for row in finished.rows} == {"rejected"}
    assert not (tmp_path / "parts").exists()


def test_a_piece_of_a_unit_goes_on_from_the_units_part(tmp_path):
    recipe = recipe_of(tmp_path)
    unit = unit_of(recipe, a={"candidates": 2}, b={"candidates": 2})
    said = finish_in_stages(unit, render(recipe, unit), HashClip(), recipe, list)
    whole = replace(unit, course=said.course)
    pieces = [taken(recipe, piece).rows for piece in whole.pieces()]
    assert [{row["key"][:12] for row in rows} for rows in pieces] == [{"000000-00000"}, {"000000-00001"}]
    assert table([row for rows in pieces for row in rows], recipe) == table(taken(recipe, whole).rows, recipe)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("key", "../../a", "not a key"),
        ("key", "000000-00000", "is kept, and is no candidate"),
        ("seed", None, "is kept and has no seed"),
        ("unet_evaluations", None, "is kept and has no unet_evaluations"),
        ("image", b"a", r"its image [^\n]*; deleted: run again, and what it held is rendered again"),
        ("image", None, "is kept and has no image"),
    ],
)
def test_a_forged_part_of_a_stage_is_refused_in_one_line(tmp_path, column, value, said):
    recipe = recipe_of(tmp_path)
    unit = unit_of(recipe, a={})
    staged = replace(unit, course=finish_in_stages(unit, render(recipe, unit), HashClip(), recipe, list).course)
    name = staged.course.staged.part
    rows = read_part(recipe.output, name, recipe.form, recipe.fingerprint).to_pylist()
    forged = [row | ({column: value} if row["selected"] else {}) for row in rows]
    write_part(recipe.output, name, forged, recipe.form, recipe.fingerprint)
    with pytest.raises(PartError, match=rf"^[^\n]*{said}$"):
        render(recipe, staged)
    assert resumed_at_stage(unit, set(names(f"{tmp_path}/parts")), recipe) == unit


def test_a_part_that_is_gone_is_said_in_one_line(tmp_path):
    recipe = recipe_of(tmp_path)
    unit = unit_of(recipe, a={})
    said = finish_in_stages(unit, render(recipe, unit), HashClip(), recipe, list)
    (tmp_path / "parts" / said.course.staged.part).unlink()
    with pytest.raises(PartError, match=r"^[^\n]*is not there any more; run again, and what it held is rendered again$"):
        render(recipe, replace(unit, course=said.course))


def test_drafts_come_before_stages_and_durable_passes_too(tmp_path):
    rows = []
    for durable in (None, 0):
        (folder := tmp_path / str(durable)).mkdir()
        recipe = recipe_of(folder, "ranking.drafts=[{steps: 2, keep: 2}]", "defaults.candidates=4")
        unit = unit_of(recipe, a={"candidates": 4, "steps": 5})
        rows.append(table(taken(recipe, replace(unit, course=replace(unit.course, durable=durable))).rows, recipe))
    assert rows[0] == rows[1] and sorted(rows[0]["status"].to_pylist()) == ["drafted", "drafted", "kept", "rejected"]


def test_the_image_before_the_stages_goes_with_the_kept_one_and_is_told_of(tmp_path):
    recipe = recipe_of(tmp_path, "shards.stage0=true", "shards.image_format=jpg")
    for row in taken(recipe, unit_of(recipe, a={"candidates": 2})).rows:
        if row["status"] != "kept":
            assert row.get("stage0") is None
            continue
        image, (first,) = unpack(row["image"])
        at = int(row["key"][7:12]), int(row["key"][13:])
        assert np.array_equal(np.array(read_picture(first, "png", 64, 64)), painted(*at, 0))
        assert row["stage0"] == entry(first) and row["sha256"] == entry(image)["sha256"]
        assert read_picture(image, "jpg", 256, 256).size == (256, 256)
