"""That a config can make its manifest: planned, rendered, written and shown by the command line, and gone on with when it grows."""

import json

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

import promptmill
from promptmill.configs.errors import ConfigError
from promptmill.configs.loading import load
from promptmill.jobs.cli import main
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.planning.shard_plans import read_shard
from promptmill.jobs.planning.sources import look

PROMPT = "a {{ size }} {{ color }} circle at the left on a black background"
COLUMNS = {"size": {"product": ["small", "large"]}, "color": {"product": ["red", "green", "blue"]}, "prompt": PROMPT}


def prompt(size, color):
    return f"a {size} {color} circle at the left on a black background"


def settings(rows, columns=COLUMNS, **more):
    made = {"rows": rows, "columns": columns}
    given = {"defaults.steps": 2, "defaults.candidates": 1, "runtime.workers": "here", "shards.size": 4, **more}
    return [f"manifest={json.dumps(made)}", *(f"{key}={value}" for key, value in given.items())]


def words(rows, *more, columns=COLUMNS):
    return [word for one in settings(rows, columns) for word in ("--set", one)] + [*more]


def test_a_made_manifest_renders_with_its_labels_beside_the_images_and_goes_on_when_it_grows(tmp_path):
    out = str(tmp_path / "out")
    done = CliRunner().invoke(main, ["run", "embedded", "--out", out, *words(6)])
    assert done.exit_code == 0, done.output
    rows = promptmill.open(out).table().to_pylist()
    assert {(row["size"], row["color"]) for row in rows} == {
        (size, color) for size in ("small", "large") for color in ("red", "green", "blue")
    }
    assert all(row["prompt"] == prompt(row["size"], row["color"]) for row in rows)
    before = {row["key"]: row["pixel_sha256"] for row in rows}
    done = CliRunner().invoke(main, ["run", "embedded", "--out", out, *words(9)])
    assert (
        done.exit_code != 0 and "the manifest has 3 more rows than were planned; --accept-changes goes on with them" in done.output
    )
    done = CliRunner().invoke(main, ["run", "embedded", "--out", out, "--accept-changes", *words(9)])
    assert done.exit_code == 0, done.output
    after = {row["id"]: row["pixel_sha256"] for row in promptmill.open(out).table().to_pylist()}
    assert len(after) == 9 and set(before.values()) <= set(after.values())


def test_the_plan_is_that_of_the_same_rows_in_a_file_and_keeps_the_lines_that_it_read(tmp_path):
    lines = tmp_path / "colors.txt"
    lines.write_text("red\ngreen\n")
    columns = {**COLUMNS, "color": {"lines": str(lines)}}
    plan = make_plan(look(load("embedded", settings(10, columns))), str(tmp_path / "made"))
    assert plan.config.manifest.columns["color"] == {"choices": ["red", "green"]}
    done = CliRunner().invoke(main, ["manifest", "embedded", *words(10, "--to", str(tmp_path / "rows.jsonl"), columns=columns)])
    assert (done.exit_code, done.output) == (0, f"10 rows in {tmp_path / 'rows.jsonl'}\n")
    read = make_plan(look(load("embedded", [*settings(10)[1:], f"manifest={tmp_path / 'rows.jsonl'}"])), str(tmp_path / "read"))
    for number in range(plan.shards):
        made, there = (read_shard(str(tmp_path / name), number, each).requests for name, each in (("made", plan), ("read", read)))
        assert [placed.request for placed in made] == [placed.request for placed in there]


def test_rows_are_written_as_parquet_and_shown_with_an_image_each(tmp_path):
    file, sheet = tmp_path / "rows.parquet", tmp_path / "sheet.png"
    assert CliRunner().invoke(main, ["manifest", "embedded", *words(6, "--to", str(file))]).exit_code == 0
    assert pq.read_table(file).column_names == list(COLUMNS) and pq.read_table(file).num_rows == 6
    done = CliRunner().invoke(main, ["manifest", "embedded", *words(6, "--preview", "2", "--sheet", str(sheet))])
    assert done.exit_code == 0, done.output
    first, second, said = done.output.splitlines()
    assert json.loads(first) == {
        "size": "small",
        "color": "red",
        "prompt": PROMPT.replace("{{ size }}", "small").replace("{{ color }}", "red"),
    }
    assert json.loads(second)["size"] == "large" and said == f"2 images in {sheet}"
    assert Image.open(sheet).width > 300


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["--preview", "2", "--to", "x.jsonl"], "give one of --to FILE and --preview ROWS"),
        ([], "give one of --to FILE and --preview ROWS"),
        (["--to", "x.jsonl", "--sheet", "x.png"], "--sheet is for --preview"),
        (["--to", "x.csv"], "no ending of rows"),
        (["--preview", "1", "--sheet", "x.gif"], "x.gif: no ending of an image"),
    ],
)
def test_options_that_do_not_go_together_are_refused(given, problem):
    done = CliRunner().invoke(main, ["manifest", "embedded", *words(3, *given)])
    assert done.exit_code != 0 and problem in done.output and "Traceback" not in done.output


def test_a_manifest_of_files_has_nothing_to_make(tmp_path):
    done = CliRunner().invoke(main, ["manifest", "embedded", "--preview", "1"])
    assert done.exit_code != 0 and "manifest: is of files; this command is for one that is made" in done.output


def test_columns_of_several_types_are_refused_for_parquet(tmp_path):
    given = words(3, "--to", str(tmp_path / "x.parquet"), columns={"x": {"product": ["a", 1]}, "prompt": "a"})
    done = CliRunner().invoke(main, ["manifest", "embedded", *given])
    assert done.exit_code != 0 and "a column has values of several types" in done.output and "write .jsonl" in done.output


def test_a_number_that_parquet_has_no_type_for_is_refused_in_one_line(tmp_path):
    given = words(3, "--to", str(tmp_path / "x.parquet"), columns={"x": {"choices": [2**70]}, "prompt": "a"})
    done = CliRunner().invoke(main, ["manifest", "embedded", *given])
    assert done.exit_code != 0 and done.output.startswith("a number has more than 64 bits") and done.output.count("\n") == 1


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        ({"rows": 0, "columns": {"prompt": "a"}}, "manifest.rows: input should be greater than or equal to 1 (found 0)"),
        ({"rows": 3}, "manifest.columns: missing; it has to be given"),
        ({"rows": 3, "columns": {"prompt": {"choise": [1]}}}, "manifest.columns: prompt: is of no kind"),
    ],
)
def test_a_made_manifest_that_is_none_is_refused_with_its_key(made, problem):
    with pytest.raises(ConfigError, match="--set manifest") as raised:
        load("embedded", [f"manifest={json.dumps(made)}"])
    assert problem in str(raised.value)


def test_a_template_of_an_unknown_column_and_a_bad_value_are_said_by_the_plan(tmp_path):
    for columns, problem in (
        ({"prompt": "a {{ nothing }}"}, "manifest.columns.prompt: line 1, column 6: no column 'nothing'"),
        ({"prompt": "a", "steps": "{{ 0 }}"}, "manifest, row 1: steps: input should be greater than or equal to 1"),
    ):
        with pytest.raises(PlanError) as raised:
            make_plan(look(load("embedded", settings(3, columns))), str(tmp_path / "out"))
        assert problem in raised.value.problems[0]
