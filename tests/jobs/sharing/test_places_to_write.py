"""Where commands write what they make, in a folder that holds links: a stranger's, which one stands in or names."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from promptmill.jobs.cli import main
from promptmill.jobs.running.repair_note import Cleared, remembered
from tests.jobs.datasets import planned_dataset

KEY = "000000-00000-0000"


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return planned_dataset(tmp_path_factory.mktemp("clean"), "defaults.steps=2", "model.batch=1")[1]


@pytest.fixture
def home(tmp_path):
    """A folder that nobody asked anything to be written into, as it is to stay."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "profile").write_text("mine")
    yield tmp_path / "home"
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["profile"]
    assert (tmp_path / "home" / "profile").read_text() == "mine"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Where one stands."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def invoke(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result


@pytest.mark.parametrize(
    ("command", "file"),
    [(("sheet",), "sheet.png"), (("report",), "report.html"), (("regenerate", KEY, "--to", f"{KEY}.png"), f"{KEY}.png")],
)
def test_a_link_under_the_usual_name_is_replaced_and_what_it_led_to_stays(clean, here, home, command, file):
    (here / file).symlink_to(home / "profile")
    invoke(command[0], clean, *command[1:])
    assert not (here / file).is_symlink() and len((here / file).read_bytes()) > 100
    assert [path.name for path in here.iterdir()] == [file]


@pytest.mark.parametrize("folder", ["data", "metadata", "commits"])
def test_a_copy_is_not_written_through_a_link_in_the_folder_that_was_named(clean, here, home, folder):
    (here / "copy").mkdir()
    (here / "copy" / folder).symlink_to(home)
    if folder != "commits":  # for which the other folder is as good as any
        (here / "copy" / "commits").mkdir()
    result = invoke("dedup", shutil.copytree(clean, here / "out"), "--to", here / "copy")
    assert result.exit_code == 1
    assert result.stderr == f"{here}/copy/{folder}: leads out of {here}/copy; nothing is written through a link\n"


@pytest.mark.parametrize("link", ["again-images", "again-images/000000-"])
def test_images_of_a_second_pass_are_not_written_through_a_link(clean, here, home, link):
    whole = invoke("export", clean, "--manifest", here / "again.jsonl")
    assert whole.exit_code == 0
    (shard, *_) = sorted((here / "again-images").iterdir())
    gone = shard if "/" in link else here / "again-images"
    shutil.rmtree(gone)
    gone.symlink_to(home)
    before = (here / "again.jsonl").read_text()
    result = invoke("export", clean, "--manifest", here / "again.jsonl")
    assert result.exit_code == 1
    assert result.stderr.endswith(f"leads out of {here}; nothing is written through a link\n")
    assert (here / "again.jsonl").read_text() == before


def test_an_image_of_a_second_pass_that_is_a_link_is_replaced(clean, here, home):
    invoke("export", clean, "--manifest", here / "again.jsonl")
    first = next((here / "again-images").rglob(f"{KEY}.png"))
    content = first.read_bytes()
    first.unlink()
    first.symlink_to(home / "profile")
    invoke("export", clean, "--manifest", here / "again.jsonl")
    assert first.read_bytes() == content and not first.is_symlink()


@pytest.mark.parametrize(
    "note",
    [
        {"shards": {"0": "../../home/x"}, "hashes": {}},
        {"shards": {"0": True}, "hashes": {}},
        {"shards": {"-1": 0}, "hashes": {}},
        {"shards": {"0": -1}, "hashes": {}},
        {"shards": {"../x": 0}, "hashes": {}},
        {"shards": {"0": 0}, "hashes": []},
        [],
    ],
)
def test_a_repairs_note_that_no_repair_wrote_is_none(tmp_path, note):
    (tmp_path / "stats").mkdir()
    (tmp_path / "stats" / "repair.json").write_text(json.dumps(note))
    assert remembered(str(tmp_path)) == Cleared()


def test_a_push_of_a_link_says_which_before_anybody_is_asked(clean, here, home, monkeypatch):
    out = Path(shutil.copytree(clean, here / "out"))
    (out / "commits" / "000000.json").rename(here / "record")
    (out / "commits" / "000000.json").symlink_to(here / "record")
    result = invoke("push", out, "pictures")
    assert result.exit_code == 1
    assert result.stderr == f"{out}/commits/000000.json: is a link, which may lead anywhere; put the file itself there\n"
