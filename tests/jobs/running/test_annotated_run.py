"""Control maps by the embedded family's annotator through a whole run."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from promptmill.configs.loading import load
from promptmill.configs.preprocessors import ANNOTATED
from promptmill.embedded.evaluate import scenes_for
from promptmill.embedded.pictures import draw, segmentation
from promptmill.jobs.verifying.regenerate import regenerate
from promptmill.pipelines.rendering import control_maps
from promptmill.pipelines.rendering.annotators import Annotators
from promptmill.shards.finished import images
from tests.jobs.running.test_run import HERE, problems, rows, run_by_command

PICTURES, ROWS = 2, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two pictures, five rows of each with its map by the annotator, and one of each with that map as a file."""
    folder = tmp_path_factory.mktemp("annotated")
    scenes, rng = scenes_for(31, PICTURES)
    truth = draw(scenes, rng)
    lines = []
    for number in range(PICTURES):
        Image.fromarray(truth.pixels[number]).save(folder / f"{number}.png")
        asked = {"prompt": "a red circle on a green background", "seed": number}
        for row in range(ROWS):
            control = {"type": "seg", "image": f"{number}.png", "preprocess": "seg"}
            lines.append({**asked, "id": f"{number}-{row}", "seed": number + row, "controls": [control]})
        lines.append({**asked, "id": f"{number}-file", "controls": [{"type": "seg", "image": f"{number}-map.png"}]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder, truth


@pytest.fixture(scope="module")
def made_maps(folder):
    """The maps that were made while the run went, a pair of preprocessor and map each."""
    return []


@pytest.fixture(scope="module")
def out(folder, made_maps, tmp_path_factory):
    place, truth = folder
    declared = load("embedded", ["manifest=x.txt"]).model.annotators
    held = Annotators(declared, torch.device("cpu"))
    for number in range(PICTURES):
        Image.fromarray(held.map("seg", truth.pixels[number])).save(place / f"{number}-map.png")
    settings = [f"manifest={place / 'rows.jsonl'}", "model.batch=4", "defaults.steps=2", "defaults.candidates=1", HERE]
    plain = control_maps.control_map

    def counted(preprocess, *given):
        made = plain(preprocess, *given)
        made_maps.append((preprocess, made))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control_maps, "control_map", counted)
        return run_by_command(settings, tmp_path_factory.mktemp("run") / "out")


def test_each_pictures_map_is_made_once_and_says_its_layout(folder, out, made_maps):
    made = [one for preprocess, one in made_maps if preprocess in ANNOTATED]
    assert len(made) == PICTURES
    for one, labels in zip(made, folder[1].labels, strict=True):
        assert (one == segmentation(labels)).all(-1).mean() > 0.98


def test_images_are_those_of_the_map_as_a_file_and_are_made_again_alone(out):
    assert problems(out) == []
    kept = {row["id"]: (key, np.asarray(image)) for key, image, row in images(str(out))}
    assert len(kept) == PICTURES * (ROWS + 1)
    for number in range(PICTURES):
        assert np.array_equal(kept[f"{number}-0"][1], kept[f"{number}-file"][1])
        assert not np.array_equal(kept[f"{number}-0"][1], kept[f"{number}-1"][1])
    assert regenerate(str(out), kept["1-3"][0]).same


def test_metadata_and_card_say_how_maps_were_made_and_by_which_model(out):
    found = rows(out, "DISTINCT controls[1].preprocess FROM RUNS ORDER BY 1")
    assert [one for (one,) in found] == ["none", "seg"]
    card = (out / "README.md").read_text()
    assert "annotator seg" in card and "embedded/weights/annotator-seg" in card
