"""Maps of segments without classes: the masks of transformers' own pipeline, drawn the same way each time."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from promptmill.configs.model import Model
from promptmill.configs.weights import AnnotatorWeights
from promptmill.pipelines.models.compatibility import check_fits
from promptmill.pipelines.rendering import sam_maps
from promptmill.pipelines.rendering.annotators import Annotators
from promptmill.pipelines.rendering.control_maps import ControlMaps
from promptmill.pipelines.rendering.sam_maps import SamModel, colors, sam
from promptmill.pipelines.work.errors import ModelError
from tests.pipelines import tiny_annotators
from tests.pipelines.rendering.test_annotators import photograph

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tiny_annotators.sam(tmp_path_factory.mktemp("sam") / "sam")


@pytest.fixture(scope="module")
def held(place):
    return Annotators({"sam": AnnotatorWeights(source=str(place))}, CPU)


@pytest.fixture(scope="module")
def model(held):
    held.load(["sam"])
    return held._loaded["sam"]


def masks(model, image, *asked):
    with torch.no_grad():
        return model.masks(image, *asked)


@pytest.mark.parametrize(
    "asked",
    [(32, 0.88, 0.95), (8, 0.88, 0.95), (8, 0.5, 0.5), (8, 0.0, 0.0), (5, 0.9, 0.6), (8, 1.0, 1.0)],
)
def test_masks_are_those_of_transformers_own_pipeline(place, model, asked):
    theirs = pipeline("mask-generation", model=str(place), device=CPU)
    names = ("points_per_crop", "pred_iou_thresh", "stability_score_thresh")
    for seed, width in ((0, 72), (1, 92), (2, 41)):
        image = photograph(seed, width)
        wanted = theirs(Image.fromarray(image), **dict(zip(names, asked, strict=True)))["masks"]
        made = masks(model, image, *asked)
        assert made.shape == (len(wanted), *image.shape[:2]) and made.dtype == bool
        assert all(np.array_equal(one, other) for one, other in zip(made, wanted, strict=True))


def test_parameters_decide_how_many_segments_there_are(model):
    image = photograph()
    numbers = [len(masks(model, image, 8, least, steady)) for least, steady in ((0.0, 0.0), (0.5, 0.5), (0.88, 0.95))]
    assert numbers == sorted(numbers, reverse=True) and len({*numbers}) == 3 and numbers[-1] > 0
    assert len(masks(model, image, 32, 0.88, 0.95)) > numbers[-1]


def test_masks_do_not_depend_on_how_many_are_enlarged_together(model, monkeypatch):
    wanted = masks(model, photograph(), 8, 0.0, 0.0)
    monkeypatch.setattr(sam_maps, "MASKS_AT_ONCE", 5)
    assert np.array_equal(masks(model, photograph(), 8, 0.0, 0.0), wanted)


def test_the_largest_segment_is_drawn_first_and_smaller_ones_over_it():
    found = np.zeros((4, 6, 8), bool)
    found[0, 1:3, 1:3] = True  # the smallest of three that lie in each other, the surest
    found[1] = True
    found[2, :4, :4] = True
    found[3, 4:, 6:] = True  # of the area of the first, and less sure
    drawn = sam(type("Found", (), {"masks": lambda *given: found})(), np.zeros((6, 8, 3), np.uint8), 32, 0.88, 0.95)
    largest, middle, small, last = colors(4)
    assert (drawn[found[0]] == small).all() and (drawn[found[3]] == last).all()
    assert (drawn[found[2] & ~found[0]] == middle).all() and (drawn[found[1] & ~found[2] & ~found[3]] == largest).all()


def test_a_map_has_the_first_colours_of_the_table_and_is_the_same_again(held, place, model):
    image, text = photograph(), "sam(points=8, iou=0.5, stability=0.5)"
    made = held.map(text, image)
    assert np.array_equal(made, Annotators(held.declared, CPU).map(text, image))
    found = masks(model, image, 8, 0.5, 0.5)
    assert (made.any(-1) == found.any(0)).all()
    there, table = {tuple(color) for color in made[found.any(0)]}, [tuple(color) for color in colors(len(found))]
    assert len(there) > 3 and there <= {*table}
    assert not np.array_equal(made, held.map("sam(points=8)", image))


def test_the_table_begins_with_the_same_colours_however_long_it_is_and_has_neither_black_nor_one_colour_twice():
    table = colors(3 * 64 * 64)  # all masks that the finest grid can give
    assert len(np.unique(table, axis=0)) == len(table) and table.any(1).all()
    assert np.array_equal(colors(5), table[:5]) and colors(0).shape == (0, 3)
    assert table[:3].tolist() == [[81, 43, 12], [35, 215, 153], [245, 131, 38]]
    far = np.linalg.norm(table[:64, None].astype(int) - table[None, :64], axis=-1)
    assert far[~np.eye(64, dtype=bool)].min() > 40  # levels


def test_where_nothing_is_found_the_map_is_empty_and_a_warning_says_so(held, caplog):
    maps = ControlMaps(held)
    with caplog.at_level(logging.WARNING):
        made = maps.get("ab" * 32, "sam(points=2, iou=1, stability=1)", (72, 56), photograph)
    assert made.shape == (56, 72, 3) and not made.any()
    assert "sam: no segment is found in the picture of SHA-256 abab" in caplog.text


def test_a_model_of_another_kind_is_refused_by_its_config(folder, place, tmp_path):
    for file in place.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = Model(base=str(folder / "sd"), annotators={"sam": {"source": str(tmp_path)}})
    check_fits(model)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["SamHQModel"]}))
    with pytest.raises(ModelError, match=r"annotators\.sam: .* is a SamHQModel; needed is a Segment Anything of transformers"):
        check_fits(model)


def test_a_model_is_loaded_in_full_precision(place):
    assert {one.dtype for one in SamModel.load(AnnotatorWeights(source=str(place)), CPU)._model.parameters()} == {torch.float32}
