"""Every kind of broken manifest and row, through the command line and the whole job."""

import json

import duckdb
import pytest
from click.testing import CliRunner

from promptmill.configs.loading import load
from promptmill.jobs.cli import main
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.sources import look
from promptmill.jobs.running.run import run
from promptmill.jobs.verifying.problems import Problem
from promptmill.jobs.verifying.verify import verify
from tests.jobs.running.test_run import HERE, Watching
from tests.manifests.test_bad_input import FILES
from tests.manifests.test_checking import BROKEN_ROWS, folder  # noqa: F401 (a fixture)

GOOD = {"prompt": "a small red circle at the left on a black background"}


@pytest.mark.parametrize(("name", "content", "says"), FILES.values(), ids=FILES)
def test_a_broken_file_is_exit_2_and_one_line_before_anything_renders(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    for command in ("plan", "run"):
        result = CliRunner().invoke(main, [command, "embedded", "--out", f"{tmp_path}/out", "--set", f"manifest={tmp_path / name}"])
        assert result.exit_code == 2
        assert f"{tmp_path}/{says}" in result.output
        assert isinstance(result.exception, SystemExit)
        assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.fixture
def broken(folder):  # noqa: F811
    """A manifest of every broken row, with one good row in the middle; and how many rows it has."""
    rows = [{**GOOD, **row} if "prompt" not in name else row for name, (row, _) in BROKEN_ROWS.items()]
    rows.insert(len(rows) // 2, {"id": "good", **GOOD})
    path = folder / "broken.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, len(rows)


SETTINGS = ("defaults.steps=2", "defaults.candidates=2", "model.batch=2")


def test_every_broken_row_is_named_and_refuses_the_plan(broken):
    path, number = broken
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    out = path.parent / "refused"
    result = CliRunner().invoke(main, ["run", "embedded", "--out", str(out), "--set", f"manifest={path}", *options])
    assert result.exit_code == 2
    rows = {line.split(": ")[0] for line in result.output.splitlines() if line.startswith(str(path))}
    good = f"{path}, row {(number - 1) // 2 + 1}"
    said = {f"{path}, row {i}" for i in range(1, number + 1)} - {good}
    # Beyond fifty lines only their number is said.
    assert rows <= said
    assert len(rows) >= 40
    assert isinstance(result.exception, SystemExit)
    assert not list(out.rglob("*.tar"))


def test_every_broken_row_can_be_recorded_while_the_rest_renders(broken):
    path, number = broken
    out = str(path.parent / "recorded")
    config = load("embedded", [*SETTINGS, f"manifest={path}", "runtime.on_bad_row=record", HERE])
    totals = run(make_plan(look(config), out), out, Watching())
    assert (totals.requests, totals.failed_requests, totals.kept, totals.rejected) == (number, number - 1, 1, 1)
    found = duckdb.sql(f"SELECT status, error, count(*) FROM '{out}/metadata/*.parquet' GROUP BY ALL ORDER BY ALL").fetchall()
    assert found == [("failed", "bad_row", number - 1), ("kept", None, 1), ("rejected", None, 1)]
    assert [problem for problem in verify(out) if isinstance(problem, Problem)] == []
