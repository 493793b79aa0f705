import gc
import io
import json
import tarfile
import tracemalloc

import pytest

from promptmill.configs.parameters import Defaults
from promptmill.manifests.checking import check_rows
from promptmill.manifests.rules import Rules
from promptmill.manifests.sources import ManifestError, find_files, read_rows

RULES = Rules(Defaults(width=64, height=64), controls=("canny", "seg"))


def tar_of(tmp_path, members):
    place = tmp_path / "m.tar"
    with tarfile.open(place, "w") as tar:
        for name, content in members.items():
            content = json.dumps(content).encode() if isinstance(content, dict) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(place)


def request_of(tmp_path, members):
    (checked,) = check_rows(find_files(tar_of(tmp_path, members)), RULES)
    assert not checked.problems, checked.lines()
    return checked.request


def test_an_image_with_a_text_is_img2img(tmp_path):
    request = request_of(tmp_path, {"a.png": b"x", "a.txt": "ein Kreis, größer\n".encode()})
    assert (request.id, request.mode, request.prompt) == ("a", "img2img", "ein Kreis, größer")
    assert request.init_image == "m.tar::a.png" and not request.controls


@pytest.mark.parametrize(
    ("described", "types"),
    [
        ({"control_type": "canny"}, ["canny"]),
        ({"control_type": "canny", "control_scale": 0.5, "control_preprocess": "canny"}, ["canny"]),
        ({"controls": [{"type": "canny"}]}, ["canny"]),
        ({"controls": [{"type": "canny", "image": None}]}, ["canny"]),
        ({"controls": [{"type": "canny", "preprocess": "canny"}, {"type": "seg"}]}, ["canny", "seg"]),
    ],
)
def test_a_control_without_an_image_takes_the_samples(tmp_path, described, types):
    request = request_of(tmp_path, {"a.jpg": b"x", "a.json": {"prompt": "p", **described}})
    assert request.mode == "controlnet" and request.init_image is None
    assert [control.type for control in request.controls] == types
    assert {control.image for control in request.controls} == {"m.tar::a.jpg"}


def test_a_control_with_an_image_of_its_own_leaves_the_samples_as_the_source(tmp_path):
    request = request_of(tmp_path, {"a.png": b"x", "a.json": {"prompt": "p", "controls": [{"type": "seg", "image": "s.png"}]}})
    assert (request.mode, request.controls[0].image) == ("controlnet_img2img", "s.png")
    assert request.init_image == "m.tar::a.png"


@pytest.mark.parametrize("order", [("a.json", "a.png", "a.txt"), ("a.txt", "a.png", "a.json"), ("a.png", "a.json", "a.txt")])
def test_json_goes_before_text_in_whatever_order_they_lie(tmp_path, order):
    contents = {"a.png": b"x", "a.txt": b"from the text", "a.json": {"prompt": "from the JSON", "id": "7", "strength": None}}
    request = request_of(tmp_path, {name: contents[name] for name in order})
    assert (request.prompt, request.id, request.mode, request.strength) == ("from the JSON", "7", "img2img", 0.8)


def test_our_own_samples_are_rendered_on_from_their_images(tmp_path):
    ours = {
        "key": "000000-00001-0002", "id": "seven", "candidate_index": 2, "rank": 0, "selected": True, "status": "kept",
        "pixel_sha256": "0", "prompt": "p", "seed": 5, "mode": "img2img", "init_image": "old.png", "mask_image": None,
        "width": 64, "strength": 0.5, "clip_score": 20.5, "shard": 0, "topic": "cats", "controls": [], "loras": [],
    }  # fmt: skip
    request = request_of(tmp_path, {"k.json": ours, "k.png": b"x", "k.txt": b"p"})
    assert (request.id, request.mode, request.seed) == ("000000-00001-0002", "img2img", 5)
    assert request.init_image == "m.tar::k.png" and request.carried == {"topic": "cats"}


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"b.png": b"x", "b.json": b"{oops"}, "b.json: not JSON: Expecting property name"),
        ({"b.png": b"x", "b.json": b"[1]"}, "b.json: holds list, not columns and values"),
        ({"b.png": b"x", "b.json": b"\xff{}"}, "b.json: not UTF-8 (byte 0xff)"),
        ({"b.png": b"x", "b.txt": "café".encode("latin-1")}, "b.txt: not UTF-8 (byte 0xe9)"),
        ({"b.png": b"x", "b.jpg": b"x"}, "b.png and b.jpg are two images of one sample"),
        ({"b.png": b"x", "b.json": {"controls": [{}]}}, "controls.0.type: missing"),
    ],
)
def test_a_broken_sample_leaves_its_neighbours_alone(tmp_path, members, says):
    around = {"a.png": b"x", "a.txt": b"a"}, {"c.png": b"x", "c.txt": b"c"}
    before, broken, after = check_rows(find_files(tar_of(tmp_path, {**around[0], **members, **around[1]})), RULES)
    assert any(says in line for line in broken.lines()), broken.lines()
    assert all(line.startswith(f"{tmp_path}/m.tar, row 2: ") for line in broken.lines())
    assert (before.request.id, after.request.id) == ("a", "c")


def test_a_tar_without_images_says_what_it_lacks(tmp_path):
    with pytest.raises(ManifestError, match=r"m\.tar: has no images \(\.png"):
        list(read_rows(find_files(tar_of(tmp_path, {"a.txt": b"x", "a.gif": b"y"}))))


def test_a_long_tar_takes_no_memory_by_the_member(tmp_path):
    files = [tar_of(tmp_path, {f"{i:05d}{'-' * 200}.{ending}": b"x" for i in range(1000) for ending in ("png", "txt")})]
    assert sum(1 for _ in read_rows(files)) == 1000  # what is imported and cached on the way
    gc.collect()
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_rows(files)) == 1000
        assert tracemalloc.get_traced_memory()[1] < 1.5 * 2**20
    finally:
        tracemalloc.stop()
