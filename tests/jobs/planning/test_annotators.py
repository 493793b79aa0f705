"""What plans say of control maps that need a model: what is missing, how many maps there are, and who has to load what."""

import json

import numpy as np
import pytest
from PIL import Image

from promptmill.configs.errors import ConfigError
from promptmill.configs.loading import load
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError, read_plan
from promptmill.jobs.planning.sources import look
from promptmill.jobs.running.finishing import models
from promptmill.jobs.showing.summary import plan_lines
from tests.pipelines import tiny_annotators


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    tiny_annotators.dpt(folder / "dpt")
    (folder / "dpt" / "LICENSE").write_text("MIT\n")
    return folder


def planned(folder, out, rows, *settings):
    lines = [{"id": str(number), "prompt": "a small red circle", **row} for number, row in enumerate(rows)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return make_plan(look(load("embedded", [f"manifest={folder / 'rows.jsonl'}", *settings])), str(out))


def controlled(image, preprocess, kind="seg"):
    return {"controls": [{"type": kind, "image": image, "preprocess": preprocess}]}


def test_an_annotator_that_is_not_declared_is_refused_with_what_to_declare(folder, tmp_path):
    with pytest.raises(PlanError) as refused:
        planned(folder, tmp_path / "out", [controlled("0.png", "normal(deep=1)")])
    (line,) = refused.value.problems[:1]
    wanted = "controls: preprocess normal(deep=1) needs a model; declare a depth model of transformers, such as"
    assert wanted in line and line.endswith("as model.annotators.depth") and "\n" not in line


def test_a_plan_counts_the_maps_once_for_each_picture_and_names_only_the_annotators_that_rows_use(folder, tmp_path):
    depth = f"model.annotators.depth.source={folder / 'dpt'}"
    whole = (depth, "shards.size=100")
    rows = [controlled(f"{number % 10}.png", ("depth", "normal")[number % 3 == 0]) for number in range(60)]
    plan = planned(folder, tmp_path / "out", [*rows, controlled("1.png", "canny", "canny"), {}], *whole)
    assert plan.counts.maps == {"depth": 10, "normal": 10} and plan.counts.annotators == ("depth",)
    assert "maps         at most depth 10, normal 10, by annotators" in [*plan_lines(plan, None)]
    again = read_plan(str(tmp_path / "out"))
    assert again.counts == plan.counts and again.recipe("").annotators == ("depth",)
    without = planned(folder, tmp_path / "without", [controlled("1.png", "canny", "canny")], depth)
    assert not without.counts.maps and without.recipe("").annotators == ()
    assert not any(line.startswith("maps") for line in plan_lines(without, None))


def test_an_annotator_is_a_model_like_others_in_fingerprint_licence_and_card(folder, tmp_path):
    depth = f"model.annotators.depth.source={folder / 'dpt'}"
    plan = planned(folder, tmp_path / "with", [{}], depth)
    other = planned(folder, tmp_path / "without", [{}])
    assert plan.fingerprint != other.fingerprint
    assert plan.inputs["models"]["model.annotators.depth"].startswith("sha256:")
    assert plan.licences["model.annotators.depth"] == "MIT"
    assert ("annotator depth", str(folder / "dpt")) in [(one.role, one.name) for one in models(plan)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["dept.source=./x"], "'dept' is no annotator; did you mean 'depth'?"),
        (["depth.source=owner/name"], "owner/name is a hub repository and needs a revision"),
        (["pose.source=./x"], "pose needs a detector"),
        (["seg.source=./x", "seg.detector.source=./x"], "seg: only pose has a detector"),
        (["softedge.source=./x"], "softedge is a safetensors file of ControlNet's HED"),
        (["softedge.source=./hed.pth"], "only .safetensors files are read; pickles can run code"),
        (["depth.source=./x/model.safetensors"], "depth is a depth model of transformers"),
    ],
)
def test_what_is_wrong_in_a_declaration_is_one_line(settings, said):
    with pytest.raises(ConfigError) as refused:
        load("embedded", ["manifest=x.txt", *(f"model.annotators.{setting}" for setting in settings)])
    assert said in str(refused.value) and len(refused.value.problems) == 1
