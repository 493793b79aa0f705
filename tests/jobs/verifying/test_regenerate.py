from click.testing import CliRunner
from PIL import Image

from promptmill.jobs.cli import main
from tests.jobs.datasets import planned_dataset


def test_a_request_that_failed_is_tried_again_candidate_by_candidate(tmp_path):
    # The plan is real, its rows are not: nobody rendered them.
    _, output = planned_dataset(tmp_path, "defaults.steps=2", "model.batch=1")
    made = tmp_path / "made.png"
    there, beyond = (
        CliRunner().invoke(main, ["regenerate", output, key, "--to", str(made)])
        for key in ("000001-00007-0001", "000001-00007-0002")
    )
    assert (there.exit_code, there.output) == (0, f"{made}: became an image this time; it had failed\n")
    assert Image.open(made).size == (64, 64)
    assert (beyond.exit_code, beyond.output) == (2, f"000001-00007-0002: no such candidate in {output}\n")


def test_a_picture_is_written_only_where_it_is_asked_for(tmp_path, monkeypatch):
    _, output = planned_dataset(tmp_path, "defaults.steps=2", "model.batch=1")
    (tmp_path / "stand").mkdir()
    monkeypatch.chdir(tmp_path / "stand")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    done = CliRunner().invoke(main, ["regenerate", output, "000001-00007-0001"])
    kept = "; --to FILE.png keeps the image"
    assert (done.exit_code, done.output) == (0, f"000001-00007-0001: became an image this time; it had failed{kept}\n")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_folder_that_is_not_there_is_said_before_anything_is_loaded(tmp_path):
    done = CliRunner().invoke(main, ["regenerate", str(tmp_path), "000001-00007-0001", "--to", str(tmp_path / "no" / "a.png")])
    assert (done.exit_code, done.output) == (2, f"--to {tmp_path}/no/a.png: there is no folder {tmp_path}/no\n")
