"""Control maps made by models: those of transformers' own pipelines, loaded once, each picture by itself."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from promptmill.configs.model import Model
from promptmill.configs.parameters import Control
from promptmill.configs.preprocessors import ANNOTATED, ANNOTATORS
from promptmill.configs.weights import AnnotatorWeights
from promptmill.manifests.images import Roots
from promptmill.pipelines.models.ade20k import PALETTE
from promptmill.pipelines.models.compatibility import check_fits
from promptmill.pipelines.rendering.annotators import LOADERS, MAKERS, Annotators, MapError
from promptmill.pipelines.rendering.control_maps import ControlMaps, control_map
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.rendering.preparing import Conditioning, prepare_request
from promptmill.pipelines.work.errors import FatalError, MisfitError, ModelError
from promptmill.pipelines.work.units import Placed, Unit
from tests.pipelines import tiny_annotators
from tests.pipelines.engines import model_of
from tests.pipelines.plain import JOB_SEED, request

CPU = torch.device("cpu")
DEPTHS, SEGMENTS = ("depth_anything", "dpt"), ("segformer", "upernet", "mask2former")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Returns the folder of a tiny annotator by its name, which is made when it is first asked for."""
    folder = tmp_path_factory.mktemp("annotators")
    return cache(lambda name: getattr(tiny_annotators, name)(folder / name))


def annotators(**declared):
    return Annotators({name: AnnotatorWeights(source=str(place)) for name, place in declared.items()}, CPU)


def photograph(seed=0, width=72, height=56):
    patches = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return np.asarray(Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC))


def test_each_preprocessor_that_needs_a_model_has_a_maker_and_each_annotator_a_loader():
    assert MAKERS.keys() == ANNOTATED.keys() and LOADERS.keys() == ANNOTATORS.keys() == {*ANNOTATED.values()}


@pytest.mark.parametrize("name", DEPTHS)
def test_depth_is_that_of_transformers_own_pipeline(tiny, name):
    theirs = pipeline("depth-estimation", model=str(tiny(name)), device=CPU)
    for seed in range(3):
        image = photograph(seed)
        made = annotators(depth=tiny(name)).map("depth", image)
        assert made.shape == image.shape and np.ptp(made) == 255
        assert np.array_equal(made[..., 0], np.asarray(theirs(Image.fromarray(image))["depth"]))


def test_of_metric_depth_the_near_is_white_too(tiny, tmp_path):
    image = photograph()
    metric = tiny_annotators.depth_anything(tmp_path / "metric", depth_estimation_type="metric", max_depth=20)
    theirs = np.asarray(pipeline("depth-estimation", model=str(metric), device=CPU)(Image.fromarray(image))["depth"])
    made = annotators(depth=metric).map("depth", image)[..., 0]
    assert np.abs(made.astype(int) - (255 - theirs.astype(int))).max() <= 1


@pytest.mark.parametrize("name", SEGMENTS)
def test_segments_are_those_of_transformers_own_pipeline_in_the_colours_of_ade20k(tiny, name):
    theirs = pipeline("image-segmentation", model=str(tiny(name)), device=CPU)
    made, wanted = set(), set()
    for seed in range(3):
        image = photograph(seed)
        found = annotators(seg=tiny(name)).map("seg", image)
        drawn = np.zeros_like(image)
        for one in theirs(Image.fromarray(image), subtask="semantic"):
            drawn[np.asarray(one["mask"]) > 0] = PALETTE[int(one["label"].removeprefix("class "))]
        assert np.array_equal(found, drawn)
        made |= {tuple(color) for color in found.reshape(-1, 3)}
        wanted |= {tuple(color) for color in drawn.reshape(-1, 3)}
    assert made == wanted and len(made) > 1


def test_a_models_own_palette_comes_before_ade20ks(tmp_path):
    own = [[0, 0, 0], [10, 20, 30], [200, 100, 50]]
    labels = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    place = tiny_annotators.segformer(tmp_path / "own", labels, palette=own)
    colors = {tuple(color) for color in annotators(seg=place).map("seg", photograph()).reshape(-1, 3)}
    assert colors <= {tuple(color) for color in own}
    assert len(PALETTE) == 150 and PALETTE[2] == (6, 230, 230)  # the sky


def bump(side=64):
    """A depth model that sees a hill in the middle of every picture, on flat ground."""
    down, across = np.mgrid[:side, :side] / side - 0.5
    near = np.clip(1 - 4 * np.hypot(down, across), 0, 1).astype(np.float32)
    return type("Bump", (), {"nearness": lambda self, image: near})()


def test_normals_point_at_the_viewer_on_flat_ground_and_up_the_hill_elsewhere():
    image = photograph(0, 64, 64)
    made = MAKERS["normal"](bump(), image, deep=1.0, background=0.1).astype(float) / 127.5 - 1
    assert np.abs(np.linalg.norm(made, axis=-1) - 1).max() < 0.02
    assert np.allclose(made[:8, :8], [0, 0, 1], atol=0.01)
    left, top = made[32, 24], made[24, 32]  # half way up, where the hill rises 4 in 1
    assert left[0] > 0.9 and abs(left[1]) < 0.1 and top[1] > 0.9 and abs(top[0]) < 0.1
    flatter = MAKERS["normal"](bump(), image, deep=0.1, background=0.1).astype(float) / 127.5 - 1
    assert 0.3 < flatter[32, 24][0] < 0.45  # 0.4 in 1
    flat = MAKERS["normal"](bump(), image, deep=1.0, background=1.0)
    assert (flat[20:28, 20:28] == [127, 127, 255]).all()


def test_a_map_depends_neither_on_other_pictures_nor_on_what_was_made_before(tiny):
    first, held = annotators(depth=tiny("dpt"), seg=tiny("segformer")), annotators(depth=tiny("dpt"), seg=tiny("segformer"))
    for name in ("depth", "seg", "normal"):
        alone = first.map(name, photograph(1))
        for seed in (5, 6):
            held.map(name, photograph(seed, 40 + 8 * seed, 64))
        assert np.array_equal(held.map(name, photograph(1)), alone)


def test_only_what_is_asked_for_is_loaded_and_normals_share_the_model_of_depth(tiny):
    held = annotators(depth=tiny("dpt"), seg=tiny("segformer"))
    assert held.loaded == ()
    control_map("canny", photograph(), held)
    assert held.loaded == ()
    control_map("normal(deep=1)", photograph(), held)
    assert held.loaded == ("depth",)
    with pytest.raises(ModelError, match=r"no model\.annotators\.pose is declared"):
        held.map("pose", photograph())


def test_200_rows_of_ten_photographs_cost_ten_maps_of_a_kind(tiny, tmp_path):
    for number in range(10):
        Image.fromarray(photograph(number, 64, 64)).save(tmp_path / f"{number}.png")
    held = annotators(depth=tiny("dpt"), seg=tiny("segformer"))
    maps, kinds = ControlMaps(held), ("depth", "seg", "normal")
    for row in range(200):
        controls = tuple(Control(type="canny", image=f"{row % 10}.png", preprocess=kind) for kind in kinds)
        made = prepare_request(Placed(row, request(mode="controlnet", controls=controls)), Roots((str(tmp_path),)), maps=maps)
        assert isinstance(made, Conditioning)
        if row % 50 == 0:
            for kind, one in zip(kinds, made.controls, strict=True):
                assert np.array_equal(one, held.map(kind, np.asarray(Image.open(tmp_path / f"{row % 10}.png"))))
    assert maps.made == 10 * len(kinds)


def test_a_picture_of_which_there_is_no_map_fails_its_row_and_no_other(tiny, tmp_path, monkeypatch):
    Image.fromarray(photograph(0, 64, 64)).save(tmp_path / "a.png")
    held = annotators(depth=tiny("dpt"))
    held.load(["depth"])
    real = held._loaded["depth"].nearness

    def nearness(image):
        raise ValueError("the depth model gives values that are not finite")

    monkeypatch.setattr(held._loaded["depth"], "nearness", nearness)
    asked = Placed(0, request(mode="controlnet", controls=(Control(type="canny", image="a.png", preprocess="depth"),)))
    maps = ControlMaps(held)
    failure = prepare_request(asked, Roots((str(tmp_path),)), maps=maps).failure
    assert failure.code == "render_error" and "depth: no map of 64 x 64 pixels: the depth model gives" in failure.message
    monkeypatch.setattr(held._loaded["depth"], "nearness", real)
    assert isinstance(prepare_request(asked, Roots((str(tmp_path),)), maps=maps), Conditioning)


def test_a_model_without_all_of_its_weights_is_refused(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    place = tmp_path / "cut"
    place.mkdir()
    for file in tiny("segformer").iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    tensors = load_file(place / "model.safetensors")
    del tensors["decode_head.classifier.weight"]
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ModelError, match=r"cut: lacks decode_head\.classifier\.weight; is it whole, and a model for semantic segmentation\?"
    ):
        annotators(seg=place).load(["seg"])


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("depth", {"architectures": ["BertModel"]}, r"annotators\.depth: .*dpt is a BertModel; needed is a depth model"),
        (
            "seg",
            {"id2label": {"0": "a", "1": "b", "2": "c"}},
            r"knows 3 classes, not the 150 of ADE20K, and its config has no palette",
        ),
        ("depth", {"backbone_config": {"auto_map": {"AutoBackbone": "x--y.Z"}}}, "its backbone brings code, which is not run"),
        ("seg", {"palette": [[1, 2, 300]] * 150}, None),
        ("seg", {"id2label": {"0": "a"}, "palette": [[1, 2, 300]]}, "its config has no palette"),
    ],
)
def test_a_model_that_makes_no_such_maps_is_refused_by_its_config(folder, tiny, tmp_path, name, change, said):
    place = tmp_path / {"depth": "dpt", "seg": "segformer"}[name]
    place.mkdir()
    for file in tiny(place.name).iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | change))
    model = Model(base=str(folder / "sd"), annotators={name: {"source": str(place)}})
    if said is None:
        check_fits(model)
        return
    with pytest.raises(ModelError, match=said):
        check_fits(model)


def test_map_errors_are_one_line(tiny):
    held = annotators(depth=tiny("dpt"))
    held.load(["depth"])
    held._loaded["depth"]._processor = None
    with pytest.raises(MapError) as caught:
        held.map("depth", photograph())
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def annotating_engine(folder, tiny):
    declared = {name: {"source": str(tiny(place))} for name, place in {"depth": "dpt", "seg": "segformer"}.items()}
    made = Engine(model_of(folder, annotators=declared), JOB_SEED, Roots((str(folder),)), annotators=("depth",))
    yield made
    made.close()


def steered(preprocess):
    control = Control(type="seg", image="a.png", preprocess=preprocess)
    return Unit(0, 0, (Placed(0, request(mode="controlnet", controls=(control,), candidates=1)),))


def test_an_engine_loads_what_rows_use_at_once_and_the_rest_when_a_row_needs_it(annotating_engine):
    held = annotating_engine.model.annotators
    assert held.loaded == ("depth",)
    for preprocess, loaded in (("depth", ("depth",)), ("seg", ("depth", "seg")), ("depth", ("depth", "seg"))):
        (outcome,) = annotating_engine.render(steered(preprocess)).outcomes
        assert outcome.failure is None and outcome.candidates[0].pixels is not None
        assert held.loaded == loaded
    assert annotating_engine._maps.made == 2


def test_an_annotator_that_cannot_be_loaded_is_no_failure_of_a_row(annotating_engine):
    with pytest.raises(ModelError, match=r"no model\.annotators\.lineart is declared"):
        annotating_engine.render(steered("lineart"))


@pytest.mark.parametrize(("said", "kind"), [("CUDA out of memory", MisfitError), ("CUDA error: an illegal access", FatalError)])
def test_an_annotator_for_which_the_process_cannot_go_on_ends_it_as_a_denoiser_would(annotating_engine, monkeypatch, said, kind):
    def fails(*given):
        raise RuntimeError(said)

    monkeypatch.setattr(annotating_engine._maps, "get", fails)
    with pytest.raises(kind) as raised:
        annotating_engine.render(steered("depth"))
    assert type(raised.value) is kind and "\n" not in str(raised.value)
