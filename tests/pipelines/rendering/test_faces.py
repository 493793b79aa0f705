"""Faces: found where they are, cropped as FFHQ has them, restored as GFPGAN does, and pasted back without a seam."""

import cv2
import numpy as np
import pytest
import spandrel
import torch

from promptmill.configs.weights import Weights
from promptmill.pipelines.rendering.detecting import FoundBox, load_detector
from promptmill.pipelines.rendering.face_finding import BoxedFaces, Face, load_yunet
from promptmill.pipelines.rendering.faces import GREY, POINTS, SIDE, FaceRestorer, load_face_restorer, placement, restoring
from promptmill.pipelines.work.errors import ModelError
from tests.pipelines.tiny_detectors import make
from tests.pipelines.tiny_faces import CELL, CELL_POINTS, gfpgan, yunet
from tests.pipelines.tiny_upscalers import network_of, save

CROP = 128


class Found:
    """Finds the faces that it was made with."""

    def __init__(self, *faces: Face):
        self.faces = faces

    def find(self, pixels):
        return self.faces


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([127 + 100 * np.sin(x / (30 + 9 * c) + y / (40 - 7 * c) + c) for c in range(3)], -1).round().astype(np.uint8)


def turned(center: tuple[float, float], side: float, degrees: float) -> Face:
    """A face whose crop is a square of this side, turned around its middle."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * side / SIDE
    points = (POINTS - SIDE / 2) @ turn.T + center
    low, high = points.min(0), points.max(0)
    return Face(FoundBox("face", 1.0, *low, *high), points)


def unchanged(crop: torch.Tensor) -> torch.Tensor:
    return crop


FACES = {
    "upright": turned((120, 100), 90, 0),
    "turned": turned((120, 100), 110, 33),
    "upside down": turned((120, 100), 100, 180),
    "half outside": turned((20, 30), 90, -20),
    "box": Face(FoundBox("face", 1.0, 90, 60, 150, 130)),
}


@pytest.mark.parametrize("face", FACES.values(), ids=FACES)
def test_a_face_that_is_pasted_back_as_it_was_gives_the_picture(face):
    pixels = smooth(200, 260)
    restored = FaceRestorer("it", unchanged, CROP).restore(pixels, Found(face))
    assert restored.faces == 1 and restored.pixels.dtype == np.uint8
    assert np.abs(restored.pixels.astype(int) - pixels).max() <= 2


@pytest.mark.parametrize("face", FACES.values(), ids=FACES)
def test_what_is_restored_is_the_face_and_nothing_around_its_crop(face):
    pixels = smooth(200, 260)
    made = FaceRestorer("it", lambda crop: torch.zeros_like(crop), CROP).restore(pixels, Found(face)).pixels
    places = (
        np.stack(np.meshgrid(np.arange(260), np.arange(200)), -1) @ placement(face, CROP)[:, :2].T + placement(face, CROP)[:, 2]
    )
    depth = np.minimum(places, CROP - 1 - places).min(-1)  # within the crop, in its pixels
    np.testing.assert_array_equal(made[depth < 0], pixels[depth < 0])
    assert (made[depth > CROP * 0.2] == 0).all()
    soft = (made.sum(-1) > 0) & (made != pixels).any(-1)
    assert soft.any() and depth[soft].max() < CROP * 0.2


def test_the_points_of_a_face_lie_where_ffhq_has_them():
    for face in (FACES["upright"], FACES["turned"], FACES["upside down"]):
        matrix = placement(face, SIDE)
        np.testing.assert_allclose(face.points @ matrix[:, :2].T + matrix[:, 2], POINTS, atol=1e-6)
        theirs, _ = cv2.estimateAffinePartial2D(face.points, POINTS)
        np.testing.assert_allclose(matrix, theirs, atol=1e-3)
    noisy = Face(FACES["turned"].box, FACES["turned"].points + np.random.default_rng(0).normal(0, 2, (5, 2)))
    matrix, error = placement(noisy, SIDE), []
    for step in np.random.default_rng(1).normal(0, 0.02, (50, 4)):  # the least squares: any other similarity is worse
        turn = np.array([[step[0], -step[1]], [step[1], step[0]]])
        other = matrix + np.hstack([turn, step[2:, None] * 50])
        error.append(((noisy.points @ other[:, :2].T + other[:, 2] - POINTS) ** 2).sum())
    assert ((noisy.points @ matrix[:, :2].T + matrix[:, 2] - POINTS) ** 2).sum() < min(error)


def test_a_box_without_points_is_cropped_unturned_around_its_middle():
    matrix = placement(FACES["box"], SIDE)
    np.testing.assert_allclose(matrix @ [120, 95, 1], [256, 285])
    assert matrix[0, 0] == matrix[1, 1] == pytest.approx(340 / 70) and matrix[0, 1] == matrix[1, 0] == 0
    same = Face(FACES["box"].box, np.full((5, 2), 99.0))  # points that say nothing
    np.testing.assert_array_equal(placement(same, SIDE), matrix)


def test_without_a_face_the_picture_is_as_it_was_and_the_result_says_so():
    pixels = smooth(60, 70)
    restored = FaceRestorer("it", lambda crop: 1 / 0, CROP).restore(pixels, Found())
    assert restored.faces == 0
    np.testing.assert_array_equal(restored.pixels, pixels)


def test_two_faces_are_restored_each_by_itself():
    pixels = smooth(200, 400)
    one, two = turned((100, 100), 90, 10), turned((300, 100), 90, -10)
    restorer = FaceRestorer("it", lambda crop: 1 - crop, CROP)
    both = restorer.restore(pixels, Found(one, two))
    assert both.faces == 2
    np.testing.assert_array_equal(both.pixels[:, :200], restorer.restore(pixels, Found(one)).pixels[:, :200])
    np.testing.assert_array_equal(both.pixels[:, 200:], restorer.restore(pixels, Found(two)).pixels[:, 200:])


def test_beyond_the_picture_a_crop_is_grey():
    seen = []
    FaceRestorer("it", lambda crop: seen.append(crop) or crop, CROP).restore(smooth(50, 50), Found(turned((0, 0), 90, 0)))
    assert (seen[0][0, :, 0, 0] * 255).round().tolist() == list(GREY)


class Descriptor:
    """A network as spandrel would load it; spandrel itself loads GFPGAN at its full size alone."""

    def __init__(self, model, kind):
        self.model, self.architecture = model, type("Kind", (), {"id": kind})


def test_gfpgan_is_called_as_gfpgan_does_and_gives_the_same_bits_each_time():
    network = gfpgan(CROP)
    crop = torch.rand(1, 3, CROP, CROP, generator=torch.Generator().manual_seed(1))
    called = restoring(Descriptor(network, "GFPGAN"))
    mine = called(crop)
    assert torch.equal(mine, called(crop))
    # GFPGAN's own `GFPGANer.enhance` normalises by mean and deviation 0.5, and takes (-1, 1) as the range of the result.
    theirs = network((crop - 0.5) / 0.5, return_rgb=False, randomize_noise=False)[0]
    assert torch.allclose(mine, (theirs + 1) / 2, atol=1e-6)
    assert not torch.equal(network(crop * 2 - 1)[0], network(crop * 2 - 1)[0])  # without that setting, noise is drawn


def test_a_picture_with_a_face_is_restored_by_gfpgan_and_is_finite_or_refused():
    network = gfpgan(CROP)
    pixels = smooth(200, 260)
    restorer = FaceRestorer("it", restoring(Descriptor(network, "GFPGAN")), CROP)
    first, second = (restorer.restore(pixels, Found(FACES["turned"])) for _ in range(2))
    assert (first.pixels != pixels).any()
    np.testing.assert_array_equal(first.pixels, second.pixels)
    with pytest.raises(ModelError, match="it: gives values that are not finite"):
        FaceRestorer("it", lambda crop: crop * float("nan"), CROP).restore(pixels, Found(FACES["box"]))


def test_a_restorer_is_loaded_from_safetensors_and_an_upscaler_is_none(tmp_path):
    from spandrel.architectures.RestoreFormer import RestoreFormer

    network = RestoreFormer(
        n_embed=4, embed_dim=8, ch=32, ch_mult=(1, 1, 1, 1, 1), num_res_blocks=1, attn_resolutions=(), z_channels=8
    )
    file = save(network, tmp_path / "former.safetensors")
    restorer = load_face_restorer(file, "it")
    crop = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    theirs = spandrel.ModelLoader().load_from_file(file).eval()
    assert restorer.side == SIDE and torch.equal(restorer.network(crop), theirs(crop))
    with pytest.raises(ModelError, match="it: a ESRGAN enlarges pictures, and a network is meant that restores faces"):
        load_face_restorer(save(network_of("ESRGAN"), tmp_path / "upscaler.safetensors"), "it")


@pytest.fixture(scope="module")
def tiny_yunet(tmp_path_factory):
    return yunet(tmp_path_factory.mktemp("yunet") / "tiny.onnx")


@pytest.mark.parametrize("size", [(640, 640), (320, 320), (640, 480), (300, 640), (1280, 1280), (1920, 960)])
def test_yunet_finds_faces_where_they_are_at_any_size(tiny_yunet, size):
    height, width = size
    scale = 640 / max(size)
    cells = [(2, 3), (5, 7)]
    pixels = np.zeros((height, width, 3), np.uint8)
    for row, column in cells:
        top, left, bottom, right = (round(side * CELL / scale) for side in (row, column, row + 1, column + 1))
        pixels[top:bottom, left:right, 0] = 255
    found = load_yunet(tiny_yunet, "it").find(pixels)
    assert len(found) == 2
    for (row, column), face in zip(cells, sorted(found, key=lambda face: face.box.top), strict=True):
        corner = np.array([column, row]) * CELL / scale
        np.testing.assert_allclose([face.box.left, face.box.top], corner, atol=0.5)
        np.testing.assert_allclose(face.points, corner + CELL_POINTS * CELL / scale, atol=0.5)
        assert face.box.label == "face" and face.box.score > 0.99
    assert [face.box.area for face in found] == sorted((face.box.area for face in found), reverse=True)
    assert [face.box for face in load_yunet(tiny_yunet, "it", most=1).find(pixels)] == [found[0].box]
    assert load_yunet(tiny_yunet, "it").find(np.zeros_like(pixels)) == ()


def test_a_file_that_is_no_yunet_is_one_line(tmp_path, tiny_yunet):
    content = tiny_yunet.read_bytes()
    for name, changed, says in [
        ("a.onnx", b"no model", "is no YuNet in ONNX that OpenCV"),
        ("b.onnx", content[: len(content) // 2], "is no YuNet in ONNX that OpenCV"),
        ("c.onnx", content.replace(b"kps_8", b"kpx_8"), "is no YuNet in ONNX that OpenCV"),
        ("d.onnx", b"", "is no YuNet in ONNX that OpenCV"),
    ]:
        (tmp_path / name).write_bytes(changed)
        with pytest.raises(ModelError, match=f"it: {says}") as raised:
            load_yunet(tmp_path / name, "it")
        assert "\n" not in str(raised.value)
    with pytest.raises(ModelError, match=r"gone\.onnx"):
        load_yunet(tmp_path / "gone.onnx", "it")


def test_the_boxes_of_any_detector_are_faces(tmp_path):
    detector = load_detector(Weights(source=str(make("yolos", tmp_path))), threshold=0.3, most=3)
    pixels = smooth(90, 120)
    found = BoxedFaces(detector).find(pixels)
    assert [face.box for face in found] == list(detector.find(pixels)) and all(face.points is None for face in found)
    assert FaceRestorer("it", unchanged, CROP).restore(pixels, BoxedFaces(detector)).faces == len(found) > 0
