"""Manifests and images that are links, as hub caches, DVC, git-annex and DataLad have them; and links that lead out."""

import io
import json
import tarfile

import pytest
from PIL import Image

from promptmill.configs.parameters import Defaults
from promptmill.manifests.checking import check_rows
from promptmill.manifests.images import ImageError, load, roots_of
from promptmill.manifests.rules import Rules
from promptmill.manifests.sources import find_files

RULES = Rules(Defaults(width=64, height=64))


def png(value=0):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def hub(tmp_path):
    """A hub's cache: a snapshot's files are links into a folder of blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/abc"
    blobs.mkdir()
    (snapshot / "images").mkdir(parents=True)
    (blobs / "b1").write_bytes(png(1))
    (blobs / "b2").write_text(json.dumps({"prompt": "x", "init_image": "images/1.png"}))
    with tarfile.open(blobs / "b3", "w") as tar:
        for name, content in (("0001.png", png(3)), ("0001.txt", b"a cat")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (snapshot / "images/1.png").symlink_to("../../../blobs/b1")
    (snapshot / "prompts.jsonl").symlink_to("../../blobs/b2")
    (snapshot / "data.tar").symlink_to("../../blobs/b3")
    return snapshot


def checked(manifest, declared=()):
    files = find_files(str(manifest))
    (row,) = check_rows(files, RULES, roots_of(files, declared, 10**6))
    return row


def test_a_manifest_that_is_a_link_has_its_images_beside_the_link(hub):
    (hub / "images/1.png").unlink()
    (hub / "images/1.png").write_bytes(png(7))
    assert checked(hub / "prompts.jsonl").request


def test_a_link_out_is_refused_with_where_it_leads_and_what_is_advised_works(hub):
    bad = checked(hub / "prompts.jsonl")
    (line,) = bad.lines()
    assert "images/1.png is a link to ../../../blobs/b1" in line
    assert line.endswith(f"(--set 'runtime.image_roots=[{hub.parents[1]}/blobs]')")
    assert str(hub.parents[1]) not in bad.problems[0]  # which is recorded
    advised = line.rpartition("[")[2].removesuffix("]')")
    assert checked(hub / "prompts.jsonl", [advised]).images


def test_a_linked_folder_may_lead_into_a_declared_root_and_into_no_other(tmp_path):
    for name in ("big", "other", "v"):
        (tmp_path / name).mkdir()
    (tmp_path / "big/1.png").write_bytes(png())
    (tmp_path / "v/p.jsonl").write_text(json.dumps({"prompt": "x", "init_image": "images/1.png"}))
    (tmp_path / "v/images").symlink_to("../big")
    assert "images is a link to ../big" in checked(tmp_path / "v/p.jsonl").problems[0]
    assert "images is a link to ../big" in checked(tmp_path / "v/p.jsonl", [str(tmp_path / "other")]).problems[0]
    assert checked(tmp_path / "v/p.jsonl", [str(tmp_path / "big")]).images


def test_a_tar_that_is_a_linked_manifest_gives_its_own_images_but_no_other_link_does(hub):
    row = checked(hub / "data.tar")
    assert row.request.init_image == "data.tar::0001.png" and row.images
    roots = roots_of([str(hub / "prompts.jsonl")], (), 10**6)
    with pytest.raises(ImageError, match=r"data\.tar is a link to"):
        load("data.tar::0001.png", roots)


@pytest.mark.parametrize("path", ["out.png", "sub/../out.png", "folder/1.png", "../blobs/b1", "chain.png"])
def test_no_way_of_writing_a_path_leads_through_a_link_out_of_the_roots(hub, path):
    (hub / "sub").mkdir()
    (hub / "out.png").symlink_to(hub.parents[1] / "blobs/b1")
    (hub / "chain.png").symlink_to("out.png")
    (hub / "folder").symlink_to("../..")
    with pytest.raises(ImageError, match=r"leads out of the manifest's folder|no such file"):
        load(path, roots_of([str(hub / "prompts.jsonl")], (), 10**6))


def test_a_linked_manifest_whose_images_lie_beside_its_target_is_told_so(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.png").write_bytes(png())
    (tmp_path / "data/p.jsonl").write_text(json.dumps({"prompt": "x", "init_image": "a.png"}))
    (tmp_path / "p.jsonl").symlink_to("data/p.jsonl")
    (line,) = checked(tmp_path / "p.jsonl").lines()
    advised = line.rpartition("[")[2].removesuffix("]')")
    assert advised == str(tmp_path / "data")
    assert checked(tmp_path / "p.jsonl", [advised]).images
