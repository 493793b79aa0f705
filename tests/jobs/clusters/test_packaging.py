"""What a submitted job takes along, and what it must never."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from promptmill.configs.loading import load
from promptmill.configs.own_files import ROOT
from promptmill.jobs.cli import main
from promptmill.jobs.clusters import packaging
from promptmill.jobs.clusters.packaging import pack
from promptmill.jobs.planning.plan import PlanError
from promptmill.manifests.images import ImageError, roots_of
from promptmill.manifests.images import load as load_image
from promptmill.manifests.sources import read_rows

SQUARE = ROOT / "configs/presets/quickstart/images/img2img-01-init.png"
SECRET = b"-----BEGIN OPENSSH PRIVATE KEY-----"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder that a person submits from, with what is nobody else's beside it."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home/id_rsa").write_bytes(SECRET)
    folder = tmp_path / "here"
    (folder / "images").mkdir(parents=True)
    shutil.copy(SQUARE, folder / "images/a.png")
    monkeypatch.chdir(folder)
    return folder


def packed(folder: Path, names: list[str]) -> Path:
    """What is shipped for a manifest whose rows name these images: the folder that they are looked for in."""
    rows = [{"prompt": "a red circle", "init_image": name} for name in names]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder.mkdir()
    pack(load("embedded", ["manifest=rows.jsonl"]), "s3://bucket/out", folder)
    return folder / "given/000"


def test_what_a_link_leads_to_outside_the_manifests_folder_is_not_shipped(here, tmp_path):
    (here / "x.png").symlink_to(tmp_path / "home/id_rsa")
    (here / "home").symlink_to(tmp_path / "home")
    (here / "inside.png").symlink_to("images/a.png")
    (here / "circle.png").symlink_to("circle.png")
    place = packed(tmp_path / "package", ["x.png", "home/id_rsa", "inside.png", "images/a.png", "circle.png", "none.png"])
    shipped = {path.relative_to(place).as_posix() for path in place.rglob("*") if not path.is_dir()}
    assert shipped == {"rows.jsonl", "inside.png", "images/a.png"}
    assert not any(SECRET in path.read_bytes() for path in (tmp_path / "package").rglob("*") if path.is_file())
    assert not any(path.is_symlink() for path in (tmp_path / "package").rglob("*"))
    roots = roots_of([str(place / "rows.jsonl")], (), 10**6)
    assert load_image("inside.png", roots).image.size == load_image("images/a.png", roots).image.size
    with pytest.raises(ImageError, match=r"x\.png: no such file in the manifest's folder"):  # as the plan on the cluster has it
        load_image("x.png", roots)


def test_images_of_rows_without_prompts_are_shipped_too_where_the_model_takes_none(here, tmp_path):
    Path("rows.jsonl").write_text(json.dumps({"init_image": "images/a.png"}) + "\n")
    (tmp_path / "package").mkdir()
    pack(load("embedded", ["manifest=rows.jsonl"]), "s3://bucket/out", tmp_path / "package")
    assert (tmp_path / "package/given/000/images/a.png").is_file()


def test_further_pictures_of_rows_are_shipped_too(here, tmp_path):
    shutil.copy(SQUARE, here / "images/b.png")
    row = {"prompt": "x", "init_image": "images/a.png", "references": [{"type": "image", "image": "images/b.png"}]}
    Path("rows.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "sent").mkdir()
    pack(load("embedded", ["manifest=rows.jsonl"]), "s3://bucket/out", tmp_path / "sent")
    assert sorted(file.name for file in (tmp_path / "sent").rglob("[ab].png")) == ["a.png", "b.png"]


def test_images_are_looked_for_where_the_plan_does_when_the_manifest_is_a_link(here, tmp_path):
    (tmp_path / "data").mkdir()
    shutil.copy(SQUARE, tmp_path / "data/b.png")
    place = packed(tmp_path / "package", ["images/a.png"])
    assert (place / "images/a.png").is_file()
    (here / "rows.jsonl").unlink()
    (tmp_path / "data/rows.jsonl").write_text(json.dumps({"prompt": "a red circle", "init_image": "b.png"}))
    (here / "rows.jsonl").symlink_to(tmp_path / "data/rows.jsonl")
    shutil.copy(SQUARE, here / "b.png")
    (tmp_path / "data/b.png").write_text("another")
    (tmp_path / "second").mkdir()
    pack(load("embedded", ["manifest=rows.jsonl"]), "s3://bucket/out", tmp_path / "second")
    assert (tmp_path / "second/given/000/b.png").read_bytes() == SQUARE.read_bytes()


def test_the_columns_that_folders_of_partitions_give_are_shipped_with_their_files(here, tmp_path):
    (here / "lake/topic=pets/year=2024").mkdir(parents=True)
    (here / "lake/topic=pets/year=2024/0.jsonl").write_text('{"prompt": "a red circle"}\n')
    (tmp_path / "package").mkdir()
    pack(load("embedded", ["manifest='lake/*/*/*.jsonl'"]), "s3://bucket/out", tmp_path / "package")
    (shipped,) = (tmp_path / "package/given").rglob("*.jsonl")
    (row,) = read_rows([str(shipped)])
    assert row.values == {"topic": "pets", "year": "2024", "prompt": "a red circle"}


def test_links_out_of_promptmills_own_folders_are_not_followed(here, tmp_path, monkeypatch):
    own, package = tmp_path / "own", tmp_path / "package"
    for name in packaging.FOLDERS:
        (own / name).mkdir(parents=True)
        (own / name / "module.py").write_text(name)
    files = [own / file.name for file in packaging.FILES]
    for file in files:
        file.write_text(file.name)
    monkeypatch.setattr(packaging, "FILES", files)
    (own / ".env").write_bytes(SECRET)
    (own / "configs/key.yaml").symlink_to(tmp_path / "home/id_rsa")
    (own / "configs/home").symlink_to(tmp_path / "home")
    (own / "configs/env.yaml").symlink_to("../.env")
    (own / "configs/gone.yaml").symlink_to("gone")
    (own / "configs/round").symlink_to(".")
    (own / "configs/alias.py").symlink_to("../jobs/module.py")
    monkeypatch.setattr(packaging, "ROOT", own)
    package.mkdir()
    packaging._own(package)
    shipped = {path.relative_to(package / "promptmill").as_posix() for path in package.rglob("*") if not path.is_dir()}
    own_modules = ("__init__.py", "__main__.py", "configs/alias.py")
    assert shipped == {*(f"{name}/module.py" for name in packaging.FOLDERS), *(file.name for file in files), *own_modules}
    assert (package / "promptmill/configs/alias.py").read_text() == "jobs"


def test_what_a_row_names_is_shipped_only_if_it_is_an_image_by_its_content_and_not_hidden(here, tmp_path):
    for name in (".env", ".hidden.png", "key.png", "images/notes.jpg", ".cache/a.png"):
        (here / name).parent.mkdir(exist_ok=True)
    (here / ".env").write_bytes(SECRET)
    (here / "key.png").write_bytes(SECRET)
    (here / "bitmap.bmp").write_bytes(b"BM" + SECRET)
    (here / "drawing.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name in (".hidden.png", ".cache/a.png"):
        shutil.copy(SQUARE, here / name)
    (here / "link.png").symlink_to(".hidden.png")
    (here / "open").symlink_to(".cache")
    shutil.copy(SQUARE, here / "image without an ending")
    hidden = [".env", ".hidden.png", ".cache/a.png", "link.png", "open/a.png", "images/../.env", "./.env"]
    no_image = ["key.png", "bitmap.bmp", "drawing.png", "rows.jsonl"]
    place = packed(tmp_path / "package", [*hidden, *no_image, "image without an ending", "images/a.png"])
    shipped = {path.relative_to(place).as_posix() for path in place.rglob("*") if not path.is_dir()}
    assert shipped == {"rows.jsonl", "image without an ending", "images/a.png"}
    assert not any(SECRET in path.read_bytes() for path in (tmp_path / "package").rglob("*") if path.is_file())


def test_a_manifest_that_is_hidden_or_a_link_to_what_is_is_refused(here, tmp_path):
    (here / ".rows.jsonl").write_text('{"prompt": "a red circle"}\n')
    (here / "rows.jsonl").symlink_to(".rows.jsonl")
    (tmp_path / "home/.secret").mkdir()
    (tmp_path / "home/.secret/notes.txt").write_bytes(SECRET)
    (here / "notes.txt").symlink_to(tmp_path / "home/.secret/notes.txt")
    for number, name in enumerate((".rows.jsonl", "rows.jsonl", "notes.txt", "../home/.secret/notes.txt")):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(PlanError, match="hidden, or a link to a hidden file, which is not shipped"):
            pack(load("embedded", [f"manifest={name}"]), "s3://bucket/out", tmp_path / str(number))
        assert not [path for path in (tmp_path / str(number)).rglob("*") if path.is_file()]


def test_prompt_lists_are_shipped_with_their_form_and_pictures_stay_here(here, tmp_path):
    Path("a.txt").write_text('--prompt "a red circle" --steps 3\n')
    Path("b.prompts").write_text("a cat --s 4\n")
    (tmp_path / "package").mkdir()
    assert pack(load("embedded", ["manifest={lists: [a.txt, '*.prompts']}"]), "s3://bucket/out", tmp_path / "package") == []
    config = load(str(tmp_path / "package/given/config.yaml"))
    assert config.patterns == ("given/000/a.txt", "given/001/b.prompts")
    assert (tmp_path / "package/given/001/b.prompts").read_text() == "a cat --s 4\n"
    with pytest.raises(PlanError, match=r"manifest\.pictures: images: a relative folder of this machine; put it where all nodes"):
        pack(load("embedded", ["manifest={pictures: images}"]), "s3://bucket/out", tmp_path)
    (tmp_path / "other").mkdir()
    pack(load("embedded", [f"manifest={{pictures: {here}/images, use: vary}}"]), "s3://bucket/out", tmp_path / "other")
    assert load(str(tmp_path / "other/given/config.yaml")).manifest.use == "vary"


def test_a_dry_run_lists_what_would_go_with_sizes_and_asks_no_cluster(here, monkeypatch):
    monkeypatch.setattr("promptmill.jobs.clusters.jobs_api.Remote", lambda address: pytest.fail("a cluster was asked"))
    (here / ".env").write_bytes(SECRET)
    rows = [{"prompt": "a red circle", "init_image": name} for name in ("images/a.png", ".env")]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["submit", "embedded", "--set", "manifest=rows.jsonl", "--out", "s3://bucket/out"]
    result = CliRunner().invoke(main, [*arguments, "--dry-run"])
    assert result.exit_code == 0, result.output
    listed = {line[14:]: int(line[:12].replace(",", "")) for line in result.stdout.splitlines()}
    given = {name: size for name, size in listed.items() if name.startswith("given/0")}
    assert given == {
        "given/000/rows.jsonl": (here / "rows.jsonl").stat().st_size,
        "given/000/images/a.png": SQUARE.stat().st_size,
    }
    assert "given/config.yaml" in listed and any(name.startswith("promptmill/ (") for name in listed)
    assert listed.pop("bytes would be shipped") == sum(listed.values())
    assert result.stderr.splitlines() == ["rows.jsonl, row 2: .env is hidden, and stays here"]
    refused = CliRunner().invoke(main, arguments, env={"PROMPTMILL_ADDRESS": ""})
    assert refused.exit_code == 2 and "--address" in refused.stderr


def test_a_config_whose_workers_are_in_one_process_is_refused_in_one_line(here, tmp_path):
    Path("rows.jsonl").write_text('{"prompt": "a red circle"}\n')
    with pytest.raises(PlanError) as caught:
        pack(load("embedded", ["manifest=rows.jsonl", "runtime.workers=here"]), "s3://bucket/out", tmp_path)
    assert [*caught.value.problems] == ["runtime.workers: here: a job that is submitted has its workers on the cluster; set ray"]


def test_wildcards_in_a_folder_of_this_machine_are_refused_in_one_line(here, tmp_path):
    Path("rows.jsonl").write_text('{"prompt": "a red circle"}\n')
    with pytest.raises(PlanError) as caught:
        pack(load("embedded", ["manifest=rows.jsonl", "prompts.wildcards=mine"]), "s3://bucket/out", tmp_path)
    (line,) = caught.value.problems
    assert line.startswith("prompts.wildcards: mine: a relative folder of this machine; put it where all nodes reach it")
