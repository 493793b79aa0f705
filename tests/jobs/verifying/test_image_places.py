import dataclasses
import shutil
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner
from PIL import Image

from promptmill.jobs.cli import main
from promptmill.jobs.planning.plan import write_plan
from promptmill.jobs.verifying.image_places import Given, places
from promptmill.manifests.images import Roots
from promptmill.manifests.roots import MAX_BYTES
from tests.jobs.datasets import planned_dataset
from tests.jobs.finished import FIRST
from tests.jobs.verifying.damage import flip

URI = "memory://somebody/elses"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset whose rows have the init image cat.png beside its manifest, of which nobody noted the SHA-256; its plan and URI."""
    folder = tmp_path_factory.mktemp("made")
    picture(folder / "cat.png")
    few = ("runtime.check_images=at_run", "defaults.steps=2", "model.batch=1")
    return planned_dataset(folder, *few, init_image="cat.png", strength=0.9)


@pytest.fixture
def forged(made, tmp_path):
    """A copy of the dataset, and a function that has its plan name other roots."""
    plan, output = made[0], str(shutil.copytree(made[1], tmp_path / "out"))

    def forge(**roots):
        write_plan(output, dataclasses.replace(plan, roots=Roots(**roots)))
        return output

    return forge


def picture(path):
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64), (90, 20, 20)).save(path)


@pytest.fixture
def storage():
    """The image on a storage that only the plan names."""
    system = fsspec.filesystem("memory")
    with fsspec.open(f"{URI}/cat.png", "wb") as file:
        Image.new("RGB", (64, 64), (90, 20, 20)).save(file, "PNG")
    yield
    system.rm("/somebody", recursive=True)


def lines(*arguments, status=2):
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == status and (result.exception is None or isinstance(result.exception, SystemExit)), result.output
    return result.stderr.splitlines()


def regenerated(output, folder, *options, status=2):
    return lines("regenerate", output, FIRST, "--to", folder / "again.png", *options, status=status)


def test_a_storage_that_only_the_plan_names_is_read_by_no_command_until_it_is_given_again(forged, storage, tmp_path):
    output = forge = forged(folders=(URI,))
    refusal = f"init_image: cat.png: not looked for in {URI}, which only the dataset's plan names"
    way = "--image-root FOLDER adds where images lie now"
    assert regenerated(output, tmp_path) == [f"{FIRST}: {refusal}; {way}"]
    (line,) = lines("export", output, "--pairs", tmp_path / "pairs.parquet", "--images", "all", status=1)[-1:]
    assert refusal in line
    flip(output, "data/000002.tar")
    (line,) = lines("verify", output, "--repair")
    assert refusal in line and way in line
    # Its pixels are others than those that nobody rendered.
    assert "not the pixels of" in regenerated(forge, tmp_path, "--image-root", URI, status=1)[0]


def test_a_folder_that_only_the_plan_names_gives_no_image_but_one_that_the_dataset_knows(forged, made, tmp_path):
    private = tmp_path / "private"
    picture(private / "cat.png")
    output = forged(folders=(str(private),))
    (line,) = regenerated(output, tmp_path)
    assert f"cat.png: not looked for in {private}, which only the dataset's plan names" in line
    flip(output, "data/000002.tar")
    (line,) = lines("verify", output, "--repair")
    assert f"row 0: init_image: cat.png: not looked for in {private}" in line
    assert "not the pixels of" in regenerated(output, tmp_path, "--image-root", private, status=1)[0]
    output = forged(folders=("/nowhere",), declared=(str(private),))
    assert "not looked for in /nowhere, which only the" in regenerated(output, tmp_path)[0]


def test_a_dataset_that_knows_its_images_needs_no_option_where_they_lie_as_they_did(tmp_path):
    picture(tmp_path / "cat.png")
    few = ("defaults.steps=2", "model.batch=1")
    _, output = planned_dataset(tmp_path, *few, init_image="cat.png", strength=0.9)
    assert "not the pixels of" in regenerated(output, tmp_path, status=1)[0]
    Image.new("RGB", (64, 64), (1, 1, 1)).save(tmp_path / "cat.png")
    (line,) = regenerated(output, tmp_path)
    assert "init_image: cat.png is not what it was when the plan was made" in line


@pytest.fixture(scope="module")
def linked(tmp_path_factory):
    """A dataset whose rows' init image lies at a host; nobody looked at it."""
    few = ("runtime.check_images=at_run", "runtime.url_hosts=[somebody.example]", "defaults.steps=2", "model.batch=1")
    url = "https://somebody.example/cat.png"
    return planned_dataset(tmp_path_factory.mktemp("linked"), *few, init_image=url, strength=0.9)[1]


def test_a_host_that_only_the_plan_names_is_asked_for_nothing_until_it_is_given_again(linked, tmp_path, monkeypatch):
    asked = []

    def fetched(url, hosts, most):
        asked.append((url, hosts))
        picture(tmp_path / "fetched.png")
        return (tmp_path / "fetched.png").read_bytes()

    monkeypatch.setattr("promptmill.manifests.images.fetch", fetched)
    output = str(shutil.copytree(linked, tmp_path / "out"))
    (line,) = regenerated(output, tmp_path)
    assert "URLs are not fetched" in line and line.endswith("; --url-host HOST allows its host")
    flip(output, "data/000002.tar")
    assert "URLs are not fetched" in lines("verify", output, "--repair")[0]
    assert asked == []
    assert "not the pixels of" in regenerated(output, tmp_path, "--url-host", "Somebody.example", status=1)[0]
    assert asked == [("https://somebody.example/cat.png", ("somebody.example",))]
    assert "write a host as" in regenerated(output, tmp_path, "--url-host", "https://x/")[-1]


def test_a_plans_limits_hold_only_where_they_are_narrower_and_what_is_given_holds():
    roots = Roots(("/a", "s3://b/c"), 10**12, ("x.example",), 10**12, ("/d/e",))
    there = places(roots, Given())
    assert (there.max_pixels, there.max_bytes, there.hosts) == (Roots(()).max_pixels, MAX_BYTES, ())
    assert there.untrusted == ("/a", "s3://b/c", "/d/e") and there.folders == roots.folders
    assert places(Roots((), 99), Given()).max_pixels == 99
    given = places(roots, Given(("s3://b", "/d"), ("y.example",), 10**9))
    assert (given.max_pixels, given.hosts, given.untrusted) == (10**9, ("y.example",), ("/a",))
    assert given.declared == ("s3://b", "/d", "/d/e")
    assert places(Roots(("s3://bc",)), Given(("s3://b",))).untrusted == ("s3://bc",)


def test_options_of_images_without_what_they_are_for_are_one_line(made, tmp_path):
    for option, value in (("--image-root", "x"), ("--url-host", "x.example"), ("--max-image-pixels", "9")):
        assert lines("verify", made[1], option, value) == [f"{option} is for --repair"]
        pairs = ("export", made[1], "--pairs", tmp_path / "p.parquet", option, value)
        assert lines(*pairs) == [f"{option} is for --images all"]
        assert lines("export", made[1], "--manifest", tmp_path / "m.jsonl", option, value) == [f"{option} is not for --manifest"]
    assert not Path(tmp_path / "m.jsonl").exists()
