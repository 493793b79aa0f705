"""Maps of poses and of lines: drawn as OpenPose draws, and by networks that are what others wrote down of them."""

import logging

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import AutoImageProcessor, VitPoseForPoseEstimation, YolosForObjectDetection

from promptmill.configs.model import Model
from promptmill.configs.weights import AnnotatorWeights
from promptmill.pipelines.models.compatibility import check_fits
from promptmill.pipelines.rendering.annotators import Annotators
from promptmill.pipelines.rendering.control_maps import ControlMaps
from promptmill.pipelines.rendering.line_maps import Drawing, Hed
from promptmill.pipelines.rendering.pose_maps import COLORS, FROM_COCO, LIMBS, draw_person
from promptmill.pipelines.work.errors import ModelError
from tests.pipelines import tiny_annotators
from tests.pipelines.rendering.test_annotators import CPU, photograph

# A person who stands with both arms stretched out, in a picture of 512 x 512: COCO's joints, as x and y.
STANDING = np.array(
    [
        *((256, 100), (266, 90), (246, 90), (276, 95), (236, 95), (296, 150), (216, 150), (356, 150), (156, 150), (416, 150)),
        *((96, 150), (280, 300), (232, 300), (280, 380), (232, 380), (280, 460), (232, 460)),
    ],
    np.float32,
)


@pytest.fixture(scope="module")
def posing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("poses")
    tiny_annotators.detector(folder / "detector")
    tiny_annotators.vitpose(folder / "pose")
    tiny_annotators.vitpose(folder / "experts", experts=3)
    return folder


def poses(folder, name="pose"):
    weights = AnnotatorWeights(source=str(folder / name), detector={"source": str(folder / "detector")})
    return Annotators({"pose": weights}, CPU)


def drawn(scores, side=512):
    made = np.zeros((side, side, 3), np.uint8)
    draw_person(made, STANDING * side / 512, scores, 0.3)
    return made


def test_a_persons_limbs_and_joints_have_openposes_colours_at_their_places():
    made = drawn(np.ones(17))
    assert len(FROM_COCO) == len(COLORS) == 18 and len(LIMBS) == 17
    nose, neck, right_wrist, left_ankle = (100, 256), (150, 256), (150, 96), (460, 280)
    for place, joint in ((nose, 0), (neck, 1), (right_wrist, 4), (left_ankle, 13)):
        assert tuple(made[place]) == COLORS[joint]
    lower_right_arm, upper_left_leg = made[150, 126], made[340, 280]
    assert tuple(lower_right_arm) == tuple(int(0.6 * level) for level in COLORS[3])
    assert tuple(upper_left_leg) == tuple(int(0.6 * level) for level in COLORS[10])
    assert not made[200:290, :180].any() and not made[470:].any()


def test_what_is_not_seen_is_not_drawn_nor_is_a_limb_with_one_end():
    scores = np.ones(17)
    scores[9] = 0.1  # the left wrist
    made = drawn(scores)
    assert not made[140:160, 370:430].any() and made[150, 326].any()
    scores[5] = 0.1  # the left shoulder, and so the neck
    headless = drawn(scores)
    assert not headless[150, 256].any() and headless[100, 256].any()
    assert not drawn(np.zeros(17)).any()


def test_a_person_is_drawn_as_thick_in_small_pictures_as_in_large_ones():
    large, small = drawn(np.ones(17)), drawn(np.ones(17), 128)
    assert (small > 0).any(-1).mean() == pytest.approx((large > 0).any(-1).mean(), rel=0.5)


@pytest.mark.parametrize("name", ["pose", "experts"])
def test_joints_are_those_of_transformers_own_classes(posing, name):
    image = photograph(1, 96, 80)
    detecting, detector = (
        AutoImageProcessor.from_pretrained(posing / "detector"),
        YolosForObjectDetection.from_pretrained(posing / "detector"),
    )
    processor, model = AutoImageProcessor.from_pretrained(posing / name), VitPoseForPoseEstimation.from_pretrained(posing / name)
    picture, wanted = Image.fromarray(image), np.zeros_like(image)
    with torch.no_grad():
        found = detector.eval()(**detecting(images=picture, return_tensors="pt"))
        found = detecting.post_process_object_detection(found, threshold=0.0, target_sizes=[(80, 96)])[0]
        boxes = found["boxes"][found["labels"] == 1].numpy()
        boxes[:, 2:] -= boxes[:, :2]
        boxes = boxes[(boxes[:, 2:] >= 1).all(1)]
        assert len(boxes) > 0
        for box in boxes:
            given = {"dataset_index": torch.tensor([0])} if name == "experts" else {}
            inputs = processor(picture, boxes=[[box]], return_tensors="pt")
            person = processor.post_process_pose_estimation(model.eval()(**inputs, **given), boxes=[[box]])[0][0]
            draw_person(wanted, person["keypoints"].numpy(), person["scores"].numpy().reshape(-1), -9.0)
    made = poses(posing, name)
    made.load(["pose"])
    assert np.array_equal(made.map("pose(person=0, joint=0)", image), _with_all_joints(made, image, 0.0))
    assert np.array_equal(_with_all_joints(made, image, -9.0), wanted) and wanted.any()


def _with_all_joints(held, image, least):
    from promptmill.pipelines.rendering.pose_maps import pose

    with torch.no_grad():
        return pose(held._loaded["pose"], image, 0.0, least)


def test_where_nobody_is_found_the_map_is_empty_and_a_warning_says_so(posing, caplog):
    maps = ControlMaps(poses(posing))
    with caplog.at_level(logging.WARNING):
        made = maps.get("ab" * 32, "pose(person=1)", (72, 56), photograph)
    assert made.shape == (56, 72, 3) and not made.any()
    assert "pose: nobody is found in the picture of SHA-256 abab" in caplog.text


def test_a_detector_that_knows_no_persons_is_refused(folder, posing, tmp_path):
    other = tmp_path / "detector"
    other.mkdir()
    for file in (posing / "detector").iterdir():
        (other / file.name).write_bytes(file.read_bytes().replace(b'"person"', b'"hydrant"'))
    model = Model(
        base=str(folder / "sd"), annotators={"pose": {"source": str(posing / "pose"), "detector": {"source": str(other)}}}
    )
    with pytest.raises(ModelError, match=r"pose\.detector: .*detector finds no class named person"):
        check_fits(model)


def of_file(folder, name, net):
    torch.manual_seed(3)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_file(net.state_dict(), folder / f"{name}.safetensors")
    return Annotators({name: AnnotatorWeights(source=str(folder), weight_name=f"{name}.safetensors")}, CPU), net.state_dict()


def test_soft_edges_are_those_of_controlnets_network(tmp_path):
    held, tensors = of_file(tmp_path, "softedge", Hed((4, 6, 8, 8, 8)))
    image = photograph(2, 72, 56)
    x = torch.from_numpy(image).permute(2, 0, 1).float()[None] - tensors["norm"]
    sides = []
    for number, layers in enumerate((2, 2, 3, 3, 3), 1):
        if number > 1:
            x = F.max_pool2d(x, 2, 2)
        for layer in range(layers):
            of = f"block{number}.convs.{layer}"
            x = F.conv2d(x, tensors[f"{of}.weight"], tensors[f"{of}.bias"], padding=1).relu()
        side = F.conv2d(x, tensors[f"block{number}.projection.weight"], tensors[f"block{number}.projection.bias"])
        sides.append(cv2.resize(side[0, 0].numpy(), (72, 56), interpolation=cv2.INTER_LINEAR))
    wanted = (255 / (1 + np.exp(-np.mean(sides, axis=0).astype(np.float64)))).clip(0, 255).astype(np.uint8)
    made = held.map("softedge", image)
    assert np.ptp(made) > 50 and (made == made[..., :1]).all()
    assert np.abs(made[..., 0].astype(int) - wanted).max() <= 1


@pytest.mark.parametrize(("width", "height"), [(72, 56), (70, 53)])
def test_line_art_is_that_of_informative_drawings(tmp_path, width, height):
    held, tensors = of_file(tmp_path, "lineart", Drawing(4, 2))
    image = photograph(2, width, height)

    def conv(x, name, pad=0, **options):
        x = F.pad(x, (pad,) * 4, mode="reflect") if pad else x
        return F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], **options)

    def up(x, name):
        made = F.conv_transpose2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], stride=2, padding=1, output_padding=1)
        return F.instance_norm(made).relu()

    filled = np.pad(image, ((0, -height % 4), (0, -width % 4), (0, 0)), mode="edge")
    x = torch.from_numpy(filled).permute(2, 0, 1).float()[None] / 255
    x = F.instance_norm(conv(x, "model0.1", 3)).relu()
    for name in ("model1.0", "model1.3"):
        x = F.instance_norm(conv(x, name, stride=2, padding=1)).relu()
    for block in (0, 1):
        inside = F.instance_norm(conv(x, f"model2.{block}.conv_block.1", 1)).relu()
        x = x + F.instance_norm(conv(inside, f"model2.{block}.conv_block.5", 1))
    for name in ("model3.0", "model3.3"):
        x = up(x, name)
    wanted = 255 * torch.sigmoid(conv(x, "model4.1", 3))[0, 0, :height, :width].numpy()
    made = held.map("lineart", image)
    assert np.ptp(made) > 50 and made.shape == image.shape
    assert np.abs(made[..., 0].astype(float) - (255 - wanted)).max() <= 1.01


@pytest.mark.parametrize(
    ("name", "net", "said"),
    [
        ("softedge", lambda: Drawing(4, 2), r"annotators\.softedge: softedge\.safetensors has no tensor norm"),
        ("lineart", lambda: Hed((4, 4, 4, 4, 4)), r"annotators\.lineart: lineart\.safetensors has no tensor model0\.1\.weight"),
    ],
)
def test_a_file_of_another_network_is_refused_before_anything_runs(folder, tmp_path, name, net, said):
    of_file(tmp_path, name, net())
    model = Model(base=str(folder / "sd"), annotators={name: {"source": str(tmp_path), "weight_name": f"{name}.safetensors"}})
    with pytest.raises(ModelError, match=said):
        check_fits(model)
