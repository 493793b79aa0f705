"""Going on after rows of the manifest were added or edited, on stand-in work in the driver, once on Ray."""

import json
import os
import shutil
import signal
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner

from promptmill.jobs.cli import main
from promptmill.jobs.planning.accepted_changes import look_aside, put_aside
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError, read_plan
from promptmill.jobs.planning.sources import look
from promptmill.jobs.showing.summary import status, status_lines
from tests.chaos.site import HERE, Site, problems, published
from tests.chaos.test_accepting import config, everything

ROWS = 20  # in shards of twelve: the second is part-filled


def rows_of(count=ROWS, **edited):
    rows = [{"id": f"r{i}", "prompt": f"prompt {i}"} for i in range(count)]
    return [{**row, **edited.get(row["id"], {})} for row in rows]


def write(manifest, rows):
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    write(folder / "manifest.jsonl", rows_of())
    make_plan(look(config(folder / "manifest.jsonl")), str(folder / "template"))
    site = Site.of(folder / "template", folder / "site", HERE)
    site.finish()
    return folder


@pytest.fixture
def finished(once, tmp_path):
    """A finished run of twenty rows in two shards."""
    shutil.copy(once / "manifest.jsonl", tmp_path)
    return tmp_path / "manifest.jsonl", Site.of(once / "site" / "out", tmp_path / "site", HERE)


@pytest.fixture
def fresh(tmp_path):
    """What a manifest makes at an output of its own: the pixels of each candidate, by request id and candidate."""

    def rendered(manifest, *settings):
        make_plan(look(config(manifest, *settings)), str(tmp_path / "fresh-plan"))
        site = Site.of(tmp_path / "fresh-plan", tmp_path / "fresh", HERE)
        site.finish()
        return pixels(site.out)

    return rendered


def pixels(out):
    query = f"SELECT id, candidate_index, prompt, steps, status, pixel_sha256 FROM '{out}/metadata/*.parquet' ORDER BY ALL"
    return duckdb.sql(query).fetchall()


def in_folders(files):
    return {path: content for path, content in files.items() if "/" in path}


def test_rows_added_behind_a_part_filled_committed_shard_are_a_shard_of_their_own_and_no_committed_byte_moves(finished, fresh):
    manifest, site = finished
    before = published(Path(site.out))
    write(manifest, rows_of(ROWS + 5))
    with pytest.raises(PlanError) as refused:
        make_plan(look(config(manifest)), site.out)
    assert (
        refused.value.problems[0]
        == f"{site.out}: the manifest has 5 more rows than were planned; --accept-changes goes on with them"
    )
    assert "rows: 0 edited, 5 added, 0 removed" in refused.value.problems
    for rows in (ROWS + 5, ROWS + 7):  # again, behind a part-filled shard of added rows
        write(manifest, rows_of(rows))
        make_plan(look(config(manifest)), site.out, accept_changes=True)
        site.finish()
        assert problems(site.out) == []
    after = published(Path(site.out))
    assert {path: after[path] for path in in_folders(before)} == in_folders(before)
    counts = duckdb.sql(f"SELECT shard, count(DISTINCT id) FROM '{site.out}/metadata/*.parquet' GROUP BY 1 ORDER BY 1").fetchall()
    assert counts == [(0, 12), (1, 8), (2, 5), (3, 2)]
    assert pixels(site.out) == fresh(manifest)
    # Nothing is left to do, and the same manifest is nothing new.
    assert make_plan(look(config(manifest)), site.out).fingerprint == read_plan(site.out).fingerprint


@pytest.mark.parametrize(
    "twin", [lambda text: text.replace("\n", "\r\n"), lambda text: "\ufeff" + text, lambda text: text + "\n\n"]
)
def test_other_line_ends_or_a_byte_order_mark_are_no_change(finished, twin):
    manifest, site = finished
    before, plan = everything(site.out), read_plan(site.out)
    manifest.write_bytes(twin(manifest.read_text()).encode())
    assert make_plan(look(config(manifest)), site.out).fingerprint == plan.fingerprint
    assert everything(site.out) == before


def test_other_line_ends_are_no_change_where_a_row_repeats_an_id(tmp_path):
    manifest, out = tmp_path / "manifest.jsonl", str(tmp_path / "out")
    write(manifest, [*rows_of(5), {"id": "r1", "prompt": "again"}])
    settings = ["runtime.on_bad_row=record"]
    plan = make_plan(look(config(manifest, *settings)), out)
    assert plan.counts.bad == 1
    before = everything(out)
    manifest.write_bytes(manifest.read_bytes().replace(b"\n", b"\r\n"))
    assert make_plan(look(config(manifest, *settings)), out).fingerprint == plan.fingerprint
    assert everything(out) == before


def test_what_changed_is_said_row_by_row(finished):
    manifest, site = finished
    write(manifest, rows_of(ROWS + 1, r3={"prompt": "another"}, r14={"steps": 4, "candidates": 3}))
    before = everything(site.out)
    with pytest.raises(PlanError) as refused:
        make_plan(look(config(manifest, "defaults.negative_prompt=blurry")), site.out)
    said = refused.value.problems
    assert "rows: 2 edited, 1 added, 0 removed" in said  # what the config's defaults changed is no edit of a row
    assert "  r3 (shard 000000, row 3, committed): prompt was 'prompt 3', is 'another'" in said
    assert "  r14 (shard 000001, row 2, committed): candidates was 2, is 3; steps was 1, is 4" in said
    write(manifest, [{"id": "new", "prompt": "x"}, *rows_of()])
    with pytest.raises(PlanError) as moved:
        make_plan(look(config(manifest)), site.out)
    said = "shard 000000, row 0: is committed as 'r0', the manifest now has 'new'; rows may be added behind the last only"
    assert any(line.startswith(said) for line in moved.value.problems)
    assert everything(site.out) == before


def test_an_edited_committed_row_asks_what_becomes_of_its_images_and_nothing_has_changed(finished):
    manifest, site = finished
    write(manifest, rows_of(r3={"prompt": "another"}))
    before = everything(site.out)
    with pytest.raises(PlanError) as refused:
        make_plan(look(config(manifest)), site.out, accept_changes=True)
    assert "--accept-changes=keep" in refused.value.problems[0] and "--accept-changes=rerender" in refused.value.problems[0]
    assert "1 committed row was edited" in refused.value.problems[0] and "r3" in refused.value.problems[1]
    assert everything(site.out) == before


def test_an_edited_row_that_is_kept_keeps_its_images(finished):
    manifest, site = finished
    before = published(Path(site.out))
    write(manifest, rows_of(ROWS + 1, r3={"prompt": "another"}))
    make_plan(look(config(manifest)), site.out, accept_changes="keep")
    site.finish()
    after = published(Path(site.out))
    assert {path: after[path] for path in in_folders(before)} == in_folders(before)
    assert problems(site.out) == []


def test_edited_rows_are_rendered_again_alone_and_the_dataset_is_that_of_the_manifest_as_it_is(calm, finished, fresh):
    manifest, site = finished
    site.address = calm.cluster.address
    rendered = site.rendered()
    write(manifest, rows_of(ROWS + 1, r3={"prompt": "another"}, r14={"steps": 4, "candidates": 3}))
    plan = make_plan(look(config(manifest)), site.out, accept_changes="rerender")
    assert [(some.shard, some.rows) for some in plan.rerender] == [(0, ((3, 3),)), (1, ((2, 2),))]
    assert "edited       2 committed rows to be rendered again" in status_lines(status(site.out))
    # Until then the dataset that is there is whole, and no command takes the row that waits for the one that is there.
    assert problems(site.out) == []
    told = CliRunner().invoke(main, ["regenerate", site.out, "000000-00003-0000"])
    assert told.exit_code == 2 and "was edited and is to be rendered again" in told.output
    site.finish()
    assert site.rendered() == rendered + 3  # the two that were edited, and the one that is new
    assert problems(site.out) == []
    assert {path.name for path in Path(site.out, "commits").iterdir()} == {"000000.1.json", "000001.1.json", "000002.json"}
    assert pixels(site.out) == fresh(manifest)
    assert status(site.out).rerender == 0
    published_then = published(Path(site.out))
    assert make_plan(look(config(manifest)), site.out).fingerprint == plan.fingerprint
    site.finish()
    assert published(Path(site.out)) == published_then


def test_rendering_edited_rows_again_survives_a_kill_and_changes_on_top_of_it(finished, fresh):
    manifest, site = finished
    write(manifest, rows_of(r3={"prompt": "another"}, r14={"steps": 4}))
    make_plan(look(config(manifest)), site.out, accept_changes="rerender")
    site.run("--seconds", "0.3", attack=lambda pid: os.kill(pid, signal.SIGKILL))
    write(manifest, rows_of(r3={"prompt": "another"}, r14={"steps": 4}, r5={"prompt": "a third"}))
    with pytest.raises(PlanError, match="1 committed row was edited"):
        make_plan(look(config(manifest)), site.out, accept_changes=True)
    plan = make_plan(look(config(manifest)), site.out, accept_changes="rerender")
    assert {(some.shard, some.rows) for some in plan.rerender} >= {(0, ((3, 3), (5, 5)))}
    site.finish()
    assert problems(site.out) == []
    assert pixels(site.out) == fresh(manifest)


def test_accepting_that_is_cut_off_between_two_plans_renders_edited_rows_again_all_the_same(finished, fresh):
    manifest, site = finished
    old = manifest.read_text()
    write(manifest, rows_of(r3={"prompt": "another"}))
    sources = look(config(manifest))
    there = read_plan(site.out)
    make_plan(sources, site.out, accept_changes="rerender")
    # As it is once the shard's plan is written over and the new plan is not there yet.
    (Path(site.out) / "plan" / "plan.json").unlink()
    assert there.fingerprint in look_aside(site.out, None, sources.inputs).plans
    make_plan(sources, site.out, accept_changes=True)
    site.finish()
    assert problems(site.out) == []
    assert pixels(site.out) == fresh(manifest)
    # The same where the first that was cut off had put the plan aside for something else.
    put_aside(site.out, read_plan(site.out))
    manifest.write_text(old)
    make_plan(look(config(manifest)), site.out, accept_changes="rerender")
    (Path(site.out) / "plan" / "plan.json").unlink()
    make_plan(look(config(manifest)), site.out, accept_changes=True)
    site.finish()
    assert problems(site.out) == []
    assert {row[2] for row in pixels(site.out)} == {f"prompt {i}" for i in range(ROWS)}


def test_where_the_config_changed_too_a_shard_with_an_edited_row_is_rendered_again_whole(finished, fresh):
    manifest, site = finished
    write(manifest, rows_of(r3={"prompt": "another"}))
    rendered = site.rendered()
    make_plan(look(config(manifest, "defaults.steps=2")), site.out, accept_changes="rerender")
    site.finish()
    assert site.rendered() == rendered + 12
    assert problems(site.out) == []
    steps = duckdb.sql(f"SELECT DISTINCT shard, steps FROM '{site.out}/metadata/*.parquet' ORDER BY ALL").fetchall()
    assert steps == [(0, 2), (1, 1)]


@pytest.mark.parametrize("accepting", [True, "keep", "rerender"])
def test_a_config_that_changes_while_rows_wait_to_be_rendered_again_leaves_no_shard_of_two_configs(finished, accepting):
    manifest, site = finished
    write(manifest, rows_of(r3={"prompt": "another"}))
    make_plan(look(config(manifest)), site.out, accept_changes="rerender")
    # Nothing was rendered yet; in the second change no row is edited.
    settings = ["shards.image_format=jpg", "defaults.steps=2"]
    plan = make_plan(look(config(manifest, *settings)), site.out, accept_changes=accepting)
    assert [sorted(some.numbers) for some in plan.rerender] == [[*range(12)]]
    site.finish()
    assert problems(site.out) == []
    steps = duckdb.sql(f"SELECT DISTINCT shard, steps FROM '{site.out}/metadata/*.parquet' ORDER BY ALL").fetchall()
    assert steps == [(0, 2), (1, 1)]


def test_a_bad_row_that_was_mended_is_rendered_and_a_good_one_that_went_bad_fails(tmp_path):
    manifest, settings = tmp_path / "manifest.jsonl", ["runtime.on_bad_row=record"]
    write(manifest, rows_of(5, r1={"steps": -1}))
    make_plan(look(config(manifest, *settings)), str(tmp_path / "template"))
    site = Site.of(tmp_path / "template", tmp_path / "site", HERE)
    site.finish()
    write(manifest, rows_of(5, r2={"steps": -1}))
    make_plan(look(config(manifest, *settings)), site.out, accept_changes="rerender")
    site.finish()
    assert problems(site.out) == []
    failed = duckdb.sql(f"SELECT id, error FROM '{site.out}/metadata/*.parquet' WHERE status = 'failed'").fetchall()
    assert failed == [("r2", "bad_row")]


def test_accept_changes_takes_its_word_behind_an_equals_sign_and_none_anywhere(finished):
    manifest, site = finished
    write(manifest, rows_of(r3={"prompt": "another"}))
    arguments = ["embedded", "--set", f"manifest={manifest}", "--out", site.out]
    before = everything(site.out)
    unknown = CliRunner().invoke(main, ["run", "--accept-changes=perhaps", *arguments])
    assert unknown.exit_code == 2 and "'perhaps' is neither keep nor rerender" in unknown.output
    # Without a word the config behind it is not taken for one.
    asked = CliRunner().invoke(main, ["run", "--accept-changes", *arguments])
    assert asked.exit_code == 2 and "perhaps" not in asked.output and "give another --out" in asked.output
    assert everything(site.out) == before
