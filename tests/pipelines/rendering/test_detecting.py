"""Things found in pictures: as transformers' own pipeline finds them, and a picture's boxes depend on the picture alone."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from promptmill.configs.weights import Weights
from promptmill.manifests.mask_changes import changed, part_around
from promptmill.pipelines.rendering.detecting import DETAIL, FoundBox, load_detector, masks_of
from promptmill.pipelines.work.errors import ModelError
from tests.pipelines.tiny_detectors import LABELS, MAKERS, make

SIZES = [(90, 120), (120, 70), (33, 200), (8, 8)]


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: make(kind, tmp_path_factory.mktemp(kind)) for kind in MAKERS}


def loaded(folder, **options):
    return load_detector(Weights(source=str(folder)), **{"threshold": 0.3, **options})


def cut(box: dict[str, int], width: int, height: int) -> tuple[int, ...]:
    return tuple(min(max(0, box[side]), width if side[0] == "x" else height) for side in ("xmin", "ymin", "xmax", "ymax"))


@pytest.mark.parametrize("kind", MAKERS)
def test_boxes_are_those_of_transformers_own_pipeline(folders, kind):
    theirs = transformers.pipeline("object-detection", model=str(folders[kind]), device="cpu")
    mine, found = loaded(folders[kind]), 0
    for height, width in SIZES:
        pixels = picture(height, width)
        wanted = sorted(
            (one["label"], one["score"], cut(one["box"], width, height)) for one in theirs(Image.fromarray(pixels), threshold=0.3)
        )
        wanted = [one for one in wanted if one[2][2] - one[2][0] > 1 and one[2][3] - one[2][1] > 1]
        boxes = [box for box in mine.find(pixels) if int(box.right) - int(box.left) > 1 and int(box.bottom) - int(box.top) > 1]
        said = sorted(
            (box.label, box.score, tuple(int(side) for side in (box.left, box.top, box.right, box.bottom))) for box in boxes
        )
        assert said == wanted
        found += len(said)
    assert found > 10


@pytest.mark.parametrize("kind", MAKERS)
def test_boxes_lie_in_the_picture_the_largest_first_and_are_the_same_at_any_time(folders, kind):
    detector = loaded(folders[kind])
    before = {size: detector.find(picture(*size)) for size in SIZES}
    assert before == {size: detector.find(picture(*size)) for size in reversed(SIZES)}
    for (height, width), boxes in before.items():
        assert all(0 <= b.left < b.right <= width and 0 <= b.top < b.bottom <= height and b.area >= 1 for b in boxes)
        assert [b.area for b in boxes] == sorted((b.area for b in boxes), reverse=True)


def test_labels_threshold_and_number_choose_among_what_is_found(folders):
    pixels = picture(90, 120)
    every = loaded(folders["yolos"]).find(pixels)
    labels = {box.label for box in every}
    assert len(labels) > 1 and labels <= set(LABELS.values())
    for label in labels:
        assert loaded(folders["yolos"], labels=(label,)).find(pixels) == tuple(box for box in every if box.label == label)
    middle = sorted(box.score for box in every)[len(every) // 2]
    assert loaded(folders["yolos"], threshold=middle).find(pixels) == tuple(box for box in every if box.score > middle)
    assert loaded(folders["yolos"], most=2).find(pixels) == every[:2]
    assert loaded(folders["yolos"], threshold=1.0).find(pixels) == ()


def test_a_label_that_the_detector_does_not_have_is_named_with_one_that_it_has(folders):
    with pytest.raises(ModelError, match=r"knows no 'persn'; did you mean 'person'\?; it has 4 labels, as cat, face, person"):
        loaded(folders["yolos"], labels=("persn",))


def without_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(next(name for name in tensors if name.startswith("bbox_predictor")))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def not_finite(folder):
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.startswith("bbox_predictor"))
    save_file(tensors | {name: tensors[name] * float("inf")}, folder / "model.safetensors", metadata={"format": "pt"})


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def of_another_kind(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert", "architectures": ["BertModel"]}))


def own_code(folder):
    config = json.loads((folder / "config.json").read_text())
    code = {"auto_map": {"AutoConfig": "code.Config", "AutoModelForObjectDetection": "code.Model"}, "model_type": "its-own"}
    (folder / "config.json").write_text(json.dumps(config | code))
    (folder / "code.py").write_text("raise SystemExit('the code of a model was run')\n")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without_a_tensor, r"lacks bbox_predictor\..*; is it whole, and a model for object detection\?"),
        (pickled, "cannot be loaded: "),
        (of_another_kind, "cannot be loaded: "),
        (own_code, "cannot be loaded: "),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "has no image processor that can be loaded: "),
        (lambda folder: shutil.rmtree(folder), "no such folder"),
    ],
)
def test_a_folder_that_is_no_whole_detector_is_one_line(folders, tmp_path, change, says):
    folder = tmp_path / "detector"
    shutil.copytree(folders["yolos"], folder)
    change(folder)
    with pytest.raises(ModelError, match=f"detector: .*{says}") as raised:
        loaded(folder)
    assert "\n" not in str(raised.value)


def test_a_detector_whose_numbers_are_damaged_says_so(folders, tmp_path):
    folder = tmp_path / "detector"
    shutil.copytree(folders["yolos"], folder)
    not_finite(folder)
    with pytest.raises(ModelError, match="gives values that are not finite; its weights may be damaged"):
        loaded(folder).find(picture(40, 40))


def test_masks_cover_what_boxes_touch_and_go_on_to_the_masks_of_rows():
    boxes = (FoundBox("face", 0.9, 10.2, 5.0, 20.0, 15.7), FoundBox("face", 0.8, 0.0, 30.0, 4.5, 40.0))
    first, second = masks_of(boxes, 40, 50)
    assert first.shape == (40, 50) and first.dtype == bool
    rows, columns = np.flatnonzero(first.any(1)), np.flatnonzero(first.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (5, 15, 10, 19) and first.sum() == 11 * 10
    assert second[30:, :5].all() and second.sum() == 50
    (merged,) = masks_of(boxes, 40, 50, merged=True)
    np.testing.assert_array_equal(merged, first | second)
    assert masks_of((), 40, 50) == masks_of((), 40, 50, merged=True) == ()
    assert DETAIL.only_masked
    grown = changed(second, DETAIL)
    assert grown.sum() > second.sum() and part_around(grown, 2) == (0, 24, 20, 40)
