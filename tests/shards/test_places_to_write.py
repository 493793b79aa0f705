import os
import subprocess
import sys
from pathlib import Path

import pytest

from promptmill.shards.lease import hold
from promptmill.shards.places_to_write import FOLDERS, OutsideError, check_folders, own_file, place_in, write_file
from promptmill.shards.storage import OddFileError


@pytest.fixture
def outside(tmp_path):
    """A folder beside the one that is asked for, with a file that is nobody's business."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    return tmp_path / "outside"


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", ".", "..", "a//b", "a/", "./a", "a\0b"])
@pytest.mark.parametrize("folder", ["out", "s3://bucket/out"])
def test_a_name_that_is_no_plain_relative_path_is_no_place(tmp_path, folder, name):
    with pytest.raises(OutsideError, match="is no name of a file in it"):
        place_in(str(tmp_path / folder) if ":" not in folder else folder, name)


def test_a_link_that_leads_out_is_no_way_and_one_that_stays_inside_is(out, outside):
    (out / "away").symlink_to(outside)
    (out / "deep").mkdir()
    (out / "deep" / "away").symlink_to("../../outside")
    (out / "near").symlink_to("deep")
    (out / "circle").symlink_to("circle")
    for name in ("away/x", "away/deeper/x", "deep/away/x", "near/away/x", "circle/x"):
        with pytest.raises(OutsideError, match=r"leads out of|leads nowhere"):
            place_in(str(out), name)
    assert place_in(str(out), "near/x") == f"{out}/near/x"
    assert place_in(str(out), "new/x") == f"{out}/new/x"
    # Whoever asks for a link asks for what it leads to.
    assert place_in(str(out / "near"), "x") == f"{out}/near/x"


@pytest.mark.parametrize("folder", FOLDERS)
def test_nobody_holds_an_output_whose_folders_lead_out_of_it(out, outside, folder):
    (out / folder).parent.mkdir(exist_ok=True)
    (out / folder).symlink_to(outside)
    with pytest.raises(OutsideError, match=rf"{folder}: leads out of {out}; nothing is written through a link"), hold(str(out)):
        pass
    assert [path.name for path in outside.iterdir()] == ["secret"]
    check_folders("s3://bucket/out")  # which has no links, and is not asked


def test_only_regular_files_without_a_link_on_the_way_are_an_outputs_own(out, outside):
    (out / "plan").mkdir()
    (out / "plan" / "plan.json").write_text("{}")
    (out / "card").symlink_to(outside / "secret")
    (out / "inner").symlink_to("plan")
    os.mkfifo(out / "fifo")
    assert own_file(str(out), "plan/plan.json") == f"{out}/plan/plan.json"
    for path, said in (
        ("card", "is a link"),
        ("inner/plan.json", "is a link"),
        ("fifo", "is a FIFO, not"),
        ("plan", "is a folder"),
    ):
        with pytest.raises(OddFileError, match=said):
            own_file(str(out), path)
    with pytest.raises(FileNotFoundError):
        own_file(str(out), "plan/nothing")
    with pytest.raises(OutsideError):
        own_file(str(out), "../outside/secret")
    # An output that is reached by a link is its owner's choice.
    (out.parent / "link").symlink_to(out)
    assert own_file(str(out.parent / "link"), "plan/plan.json")


def test_a_file_takes_the_place_of_a_link_and_what_that_led_to_stays(out, outside):
    (out / "report.html").symlink_to(outside / "secret")
    write_file(out / "report.html", b"page")
    assert (out / "report.html").read_bytes() == b"page" and not (out / "report.html").is_symlink()
    assert (outside / "secret").read_text() == "secret"
    write_file(out / "report.html", b"again")
    assert [path.name for path in out.iterdir()] == ["report.html"] and (out / "report.html").read_bytes() == b"again"
    with pytest.raises(OSError, match="No such file or directory") as raised:
        write_file(out / "nowhere" / "page.html", b"")
    assert raised.value.filename == f"{out}/nowhere/page.html"


def test_a_pipe_that_somebody_reads_takes_the_content_and_one_that_nobody_reads_is_an_error(out):
    os.mkfifo(out / "pipe")
    with pytest.raises(OSError, match="No such device or address"):
        write_file(out / "pipe", b"content")
    reader = os.open(out / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_file(out / "pipe", b"content")
    assert os.read(reader, 100) == b"content"
    os.close(reader)


def test_what_a_descriptor_leads_to_is_written_into_and_its_name_stays(out):
    with (out / "redirected").open("wb") as stream:
        write_file(Path(f"/dev/fd/{stream.fileno()}"), b"content")
        stream.write(b", and more")
    assert (out / "redirected").read_bytes() == b"content, and more"
    code = "from pathlib import Path; from promptmill.shards.places_to_write import write_file; "
    code += "write_file(Path('/dev/stdout'), b'content')"
    kind = os.lstat("/dev/stdout").st_mode
    with (out / "stdout").open("wb") as stream:
        # Where the name would be replaced, for the whole machine, this fails instead.
        subprocess.run([sys.executable, "-c", f"import os; os.rename = os.replace = None; {code}"], stdout=stream, check=True)
    assert (out / "stdout").read_bytes() == b"content" and os.lstat("/dev/stdout").st_mode == kind
