from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from promptmill.manifests.images import Roots
from promptmill.pipelines.rendering import preparing
from promptmill.pipelines.rendering.preparing import Conditioning, prepare_request
from promptmill.pipelines.work.results import InfrastructureError
from promptmill.pipelines.work.units import Placed
from tests.pipelines.work.test_units import request


@pytest.fixture
def folder(tmp_path):
    return filled(tmp_path)


def filled(folder):
    for name, size in (("a.png", (64, 64)), ("mask.png", (64, 64)), ("narrow.png", (32, 64))):
        Image.new("RGB", size, "white" if name == "mask.png" else "red").save(folder / name)
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").write_text("")
    (folder / "any.tar").write_text("no tar")
    (folder / "circle.png").symlink_to("circle.png")
    return folder


def inpainting(**images):
    return replace(request("a", steps=2, candidates=1), mode="inpaint", strength=0.5, **images)


def failure(request, roots, file=0):
    outcome = prepare_request(Placed(0, request, file=file), roots)
    assert not isinstance(outcome, Conditioning)
    return outcome.failure


def test_a_mask_of_another_size_is_no_mask_of_its_image_though_nobody_looked_when_planning(folder):
    roots = Roots((str(folder),))
    wrong = failure(inpainting(init_image="a.png", mask_image="narrow.png"), roots)
    assert (wrong.code, wrong.message) == ("bad_image", "mask_image: 32 x 64 pixels, but the init_image has 64 x 64")
    right = prepare_request(Placed(0, inpainting(init_image="a.png", mask_image="mask.png")), roots)
    assert isinstance(right, Conditioning) and right.mask.shape == (64, 64)


def test_a_relative_path_starts_from_the_folder_of_its_rows_own_file(tmp_path):
    for i, colour in enumerate(("red", "blue")):
        (tmp_path / str(i)).mkdir()
        Image.new("RGB", (64, 64), colour).save(tmp_path / str(i) / "a.png")
    roots = Roots((str(tmp_path / "0"), str(tmp_path / "1")))
    for i, pixel in enumerate(((255, 0, 0), (0, 0, 255))):
        made = prepare_request(Placed(0, inpainting(init_image="a.png"), file=i), roots)
        np.testing.assert_array_equal(made.init[3, 3], pixel)


@pytest.mark.parametrize(
    "path",
    [
        "gone.png",
        "cut.png",
        "text.png",
        "empty.png",
        "any.tar::a.png",
        "circle.png",
        "../a.png",
        "/etc/passwd",
        "x" * 300 + ".png",
        ".",
    ],
)
def test_what_is_said_of_an_image_names_it_as_the_row_does_and_not_where_it_lies(tmp_path, path):
    said = []
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()
        folder = filled(tmp_path / name)
        said.append(failure(inpainting(init_image=path), Roots((str(folder),), declared=(str(folder / "more"),))))
    assert said[0] == said[1]
    assert said[0].code == "bad_image"
    assert str(tmp_path) not in said[0].message and said[0].message.startswith(f"init_image: {path[:20]}")


def test_a_storage_that_fails_may_be_asked_again(folder, monkeypatch):
    roots = Roots((str(folder),))
    for error in (OSError(5, "Input/output error"), TimeoutError("/secret/place"), PermissionError(13, "Permission denied")):

        def failing(*args, error=error, **kwargs):
            raise error

        for name in ("info", "_open"):
            with monkeypatch.context() as patch:
                patch.setattr(f"fsspec.implementations.local.LocalFileSystem.{name}", failing)
                met = failure(inpainting(init_image="a.png"), roots)
            assert met.code == "unreachable" and met.code in InfrastructureError.__args__
            assert met.message == f"init_image: a.png: cannot be reached: {error.strerror or 'TimeoutError'}"


def test_a_picture_that_a_library_raises_at_fails_its_request_alone(folder, monkeypatch):
    def raising(*args):
        raise AssertionError("what is\nthis")

    monkeypatch.setattr(preparing, "prepare", raising)
    met = failure(inpainting(init_image="a.png"), Roots((str(folder),)))
    assert (met.code, met.message) == ("render_error", "images: AssertionError: what is this")
