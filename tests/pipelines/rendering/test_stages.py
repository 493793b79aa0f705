"""That a stage makes of a kept image what plain diffusers' img2img makes of it, enlarged, whatever is rendered beside it."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import diffusers
import numpy as np
import pytest
from PIL import Image

from promptmill.configs.loading import load
from promptmill.configs.mask_edits import MaskEdit
from promptmill.configs.own_files import ROOT
from promptmill.configs.stages import Detail, Hires, Upscale
from promptmill.manifests.mask_changes import changed, part_around
from promptmill.pipelines.rendering.calls import constant_of
from promptmill.pipelines.rendering.detecting import Detector, FoundBox, load_detector
from promptmill.pipelines.rendering.face_finding import load_yunet
from promptmill.pipelines.rendering.faces import FaceRestorer
from promptmill.pipelines.rendering.stages import Stages
from promptmill.pipelines.rendering.upscaling import Upscaler, load_upscaler
from promptmill.pipelines.work.errors import FatalError, ModelError
from promptmill.pipelines.work.passes import Course, Staged
from promptmill.pipelines.work.stages import staged, tiling
from promptmill.pipelines.work.units import Placed, Unit, candidate_seed
from tests.pipelines.engines import BATCH
from tests.pipelines.plain import CANNY, JOB_SEED, render_plain, request
from tests.pipelines.tiny_detectors import make
from tests.pipelines.tiny_faces import yunet

BOX = FoundBox("face", 0.9, 10, 10, 40, 50)
WHOLE = Hires(kind="hires", scale=1.5, strength=0.7)
TILED = Hires(kind="hires", scale=2, strength=0.7, steps=4, scheduler="euler", tile=64, overlap=16, control={"type": "seg"})
PICTURE = np.random.default_rng(5).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return make("yolos", tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def stages(folder, engine):
    """Returns the stages of a config with the tiny Stable Diffusion that has one stage."""
    config = load("embedded", ["manifest=x"])
    model = config.model.model_copy(update={"base": str(folder / "sd")})
    return lambda stage: Stages(engine, config.model_copy(update={"model": model, "stages": (stage,)}))


@pytest.fixture(scope="module")
def detail(detector):
    """Returns stages that render what a tiny detector finds."""
    return partial(Detail, kind="detail", detector={"source": str(detector)})


def rendered(stages, stage, rows, pictures):
    """The candidates of a stage by row and index; pictures by row and index."""
    kept = {row: tuple(sorted(index for at, index in pictures if at == row)) for row in rows}
    unit = Unit(0, 0, tuple(Placed(row, one) for row, one in rows.items()), course=Course((), {}, staged=Staged(0, stage, kept)))
    outcomes = stages(stage).render(unit, pictures).outcomes
    assert all(outcome.failure is None for outcome in outcomes)
    return {(outcome.row, one.index): one for outcome in outcomes for one in outcome.candidates}


def by_plain_diffusers(row, index, stage, folder, tmp_path):
    """The image of a stage as diffusers makes it, tile by tile."""
    (share,) = staged(row, [stage])
    one, tiles = share.request, tiling(share.size, stage)
    large = Image.fromarray(PICTURE).resize((tiles.width, tiles.height), Image.Resampling.LANCZOS)
    made = []
    for part, (left, top) in enumerate(tiles.places):
        name = tmp_path / f"{part}.png"
        large.crop((left, top, left + tiles.tile[0], top + tiles.tile[1])).save(name)
        controls = []
        for number, control in enumerate(one.controls):
            image = large if control.image == one.init_image else Image.open(folder / control.image).convert("RGB")
            image = image.resize(large.size, Image.Resampling.LANCZOS)
            image.crop((left, top, left + tiles.tile[0], top + tiles.tile[1])).save(tmp_path / f"{part}-{number}.png")
            controls.append(control.model_copy(update={"image": str(tmp_path / f"{part}-{number}.png")}))
        seed = (candidate_seed(JOB_SEED, row, index) + part) % 2**32
        alone = replace(one, init_image=str(name), controls=tuple(controls), seed=seed)
        nets = {kind: folder / kind for kind in ("canny", "seg")}
        made.append(render_plain(alone, BATCH, folder / "sd", nets, folder)[0])
    return tiles.joined(made)


@pytest.mark.parametrize(
    ("stage", "values"),
    [(WHOLE, {}), (TILED, {}), (WHOLE, {"controls": (CANNY,), "mode": "controlnet"})],
    ids=["whole", "tiled, by a ControlNet that reads the picture", "whole, with the row's control"],
)
def test_a_stage_makes_what_plain_diffusers_makes_of_the_enlarged_picture(stages, engine, folder, tmp_path, stage, values):
    row = request(steps=5, seed=11, negative_prompt="blue", **values)
    assert isinstance(engine.model.base, diffusers.StableDiffusionPipeline)
    made = rendered(stages, stage, {0: row}, {(0, 2): PICTURE})[0, 2]
    assert made.failure is None and made.seed == candidate_seed(JOB_SEED, row, 2)
    assert np.array_equal(made.pixels, by_plain_diffusers(row, 2, stage, folder, tmp_path))


def test_companions_and_their_order_never_matter_to_a_stage(stages):
    rows = {3: request("a", steps=4), 5: request("b", steps=6, prompt="a large blue square", guidance_scale=1.0), 7: request("c")}
    pictures = {(row, index): np.roll(PICTURE, 7 * row + index, 0) for row in rows for index in (0, 4)}
    together = rendered(stages, TILED, rows, pictures)
    for row in rows:
        alone = rendered(stages, TILED, {row: rows[row]}, {at: one for at, one in pictures.items() if at[0] == row})
        for at, made in alone.items():
            assert np.array_equal(made.pixels, together[at].pixels) and made.evaluations == together[at].evaluations
    backwards = rendered(stages, TILED, dict(reversed(rows.items())), dict(reversed(pictures.items())))
    assert all(np.array_equal(made.pixels, together[at].pixels) for at, made in backwards.items())


def test_a_stages_price_is_that_of_its_tiles(stages):
    row = request(steps=5)
    (share,) = staged(row, [TILED])
    made = rendered(stages, TILED, {0: row}, {(0, 0): PICTURE})[0, 0]
    assert made.evaluations == share.times * 2 * int(share.request.steps * share.request.strength) == 9 * 2 * 2


def test_a_picture_of_one_colour_fails_as_any_image_and_a_tile_of_one_colour_is_none(stages, monkeypatch):
    assert constant_of(np.full((8, 8, 3), 9, np.uint8)).code == "constant_image"
    monkeypatch.setattr("promptmill.pipelines.rendering.stage_jobs.constant_of", lambda pixels: constant_of(pixels * 0))
    failed = rendered(stages, WHOLE, {0: request()}, {(0, 0): PICTURE})[0, 0]
    assert (failed.failure.code, failed.pixels) == ("constant_image", None) and failed.evaluations == 2 * 2


def test_an_upscaler_makes_what_its_network_makes_of_a_picture_by_itself_at_no_evaluation(stages, folder):
    stage = Upscale(kind="upscale", source="./embedded/weights/upscaler", scale=2)
    pictures = {(0, 1): PICTURE, (3, 0): np.roll(PICTURE, 9, 1)}
    made = rendered(stages, stage, {0: request("a"), 3: request("b")}, pictures)
    network = load_upscaler(ROOT / "embedded" / "weights" / "upscaler" / "model.safetensors", "upscaler")
    for at, picture in pictures.items():
        assert np.array_equal(made[at].pixels, network.upscale(picture))
        assert (made[at].evaluations, made[at].found, made[at].pixels.shape) == (0, None, (128, 128, 3))
    half = rendered(stages, stage.model_copy(update={"scale": 1.5}), {0: request("a")}, {(0, 1): PICTURE})[0, 1]
    by_lanczos = Image.fromarray(made[0, 1].pixels).resize((96, 96), Image.Resampling.LANCZOS)
    assert np.array_equal(half.pixels, by_lanczos)


def test_what_a_network_cannot_enlarge_fails_and_what_breaks_the_process_ends_it(stages, monkeypatch):
    stage = Upscale(kind="upscale", source="./embedded/weights/upscaler", scale=2)
    for error, code in (
        (ModelError("gives values that are not finite"), "non_finite"),
        (ValueError("no such thing"), "render_error"),
    ):
        monkeypatch.setattr(Upscaler, "upscale", lambda self, picture, error=error: (_ for _ in ()).throw(error))
        failed = rendered(stages, stage, {0: request()}, {(0, 0): PICTURE})[0, 0]
        assert (failed.failure.code, failed.pixels) == (code, None) and str(error) in failed.failure.message
    monkeypatch.setattr(Upscaler, "upscale", lambda self, picture: (_ for _ in ()).throw(MemoryError("out of memory")))
    with pytest.raises(FatalError, match=r"^out of memory$"):
        rendered(stages, stage, {0: request()}, {(0, 0): PICTURE})


def test_a_picture_that_a_detector_cannot_read_fails_alone_and_what_breaks_the_process_ends_it(stages, detail, monkeypatch):
    stage = detail()

    def find(self, picture):
        if np.array_equal(picture, PICTURE):
            raise error
        return (BOX,)

    monkeypatch.setattr(Detector, "find", find)
    for error, code in ((ModelError("gives values that are not finite"), "non_finite"), (ValueError("no such"), "render_error")):
        made = rendered(stages, stage, {0: request()}, {(0, 0): PICTURE, (0, 1): np.roll(PICTURE, 3, 0)})
        assert (made[0, 0].failure.code, made[0, 0].pixels) == (code, None) and str(error) in made[0, 0].failure.message
        assert made[0, 1].failure is None and made[0, 1].found == 1
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(FatalError, match=r"^CUDA error"):
        rendered(stages, stage, {0: request()}, {(0, 0): PICTURE})


def test_a_detail_is_what_plain_diffusers_inpaints_of_its_part_put_back(stages, detail, folder, tmp_path, monkeypatch):
    stage = detail(strength=0.7, padding=4, blur=0, grow=2, prompt="a large blue square")
    large = np.asarray(Image.fromarray(PICTURE).resize((128, 128), Image.Resampling.BILINEAR))
    monkeypatch.setattr(
        Detector, "find", lambda self, picture: (FoundBox("face", 0.9, 40, 60, 70, 80), FoundBox("face", 0.8, 5, 5, 9, 9))
    )
    row = request(steps=5, seed=3)
    made = rendered(stages, stage, {0: row}, {(0, 2): large})[0, 2]
    assert made.found == 2 and made.evaluations == 2 * 2 * 3
    (share,) = staged(row, [stage])
    wanted = large
    for number, (left, top, right, bottom) in enumerate(((40, 60, 70, 80), (5, 5, 9, 9))):
        mask = np.zeros((128, 128), bool)
        mask[top:bottom, left:right] = True
        mask = changed(mask, MaskEdit(grow=2))
        part = part_around(mask, 4)
        Image.fromarray(large).resize((64, 64), Image.Resampling.LANCZOS, part).save(tmp_path / "part.png")
        small = Image.fromarray(mask).convert("L").resize((64, 64), Image.Resampling.NEAREST, part)
        small.save(tmp_path / "mask.png")
        names = {"init_image": str(tmp_path / "part.png"), "mask_image": str(tmp_path / "mask.png")}
        alone = replace(share.request, **names, seed=candidate_seed(JOB_SEED, row, 2) + number)
        inpainted = render_plain(alone, BATCH, folder / "sd", {}, folder, put_back=False)[0]
        back = large.copy()
        back[part[1] : part[3], part[0] : part[2]] = np.asarray(
            Image.fromarray(inpainted).resize((part[2] - part[0], part[3] - part[1]), Image.Resampling.LANCZOS)
        )
        wanted = np.where(mask[..., None], back, wanted)
    assert np.array_equal(made.pixels, wanted)
    assert (made.pixels != large).any(-1).sum() > 100


def test_a_picture_in_which_nothing_is_found_stays_as_it_is_and_the_row_says_so(stages, detail, monkeypatch):
    monkeypatch.setattr(Detector, "find", lambda self, picture: () if picture[0, 0, 0] == PICTURE[0, 0, 0] else (BOX,))
    stage = detail()
    other = np.roll(PICTURE, 3, 0)
    made = rendered(stages, stage, {0: request("a"), 1: request("b")}, {(0, 0): PICTURE, (0, 1): other, (1, 0): PICTURE})
    assert {at: (one.found, one.evaluations > 0) for at, one in made.items()} == {
        (0, 0): (0, False),
        (0, 1): (1, True),
        (1, 0): (0, False),
    }
    assert np.array_equal(made[0, 0].pixels, PICTURE) and not np.array_equal(made[0, 1].pixels, other)


def test_a_detector_finds_in_the_stage_what_it_finds_by_itself(stages, detail):
    stage = detail(strength=0.5, threshold=0.1, most=2, padding=4, blur=2)
    made = rendered(stages, stage, {0: request()}, {(0, 0): PICTURE})[0, 0]
    assert made.found == len(load_detector(stage.detector, (), 0.1, 2, "cpu").find(PICTURE)) > 0


@pytest.fixture(scope="module")
def faces(folder, engine, tmp_path_factory):
    """A stage that restores faces by tiny networks, the stages of its config, and the network that restores."""
    place = tmp_path_factory.mktemp("faces")
    given = f"{{kind: faces, source: ./embedded/weights/upscaler, yunet: {{source: {yunet(place / 'yunet.onnx')}}}}}"
    config = load("embedded", ["manifest=x", f"stages=[{given}]"])
    model = config.model.model_copy(update={"base": str(folder / "sd")})
    with pytest.MonkeyPatch.context() as patch:
        # spandrel knows GFPGAN in its full size alone, which takes seconds a face.
        network = FaceRestorer("negative", lambda crop: 1 - crop, 64)
        patch.setattr("promptmill.pipelines.rendering.stages.load_face_restorer", lambda *_: network)
        made = Stages(engine, config.model_copy(update={"model": model}))
    return config.stages[0], lambda _: made, network


def test_faces_are_restored_as_by_the_network_itself_and_a_picture_without_one_stays_as_it_is(faces):
    stage, stages, restorer = faces
    with_face = np.full((640, 640, 3), 90, np.uint8)
    with_face[320:352, 320:352] = (255, 0, 0)
    without = np.random.default_rng(0).integers(0, 99, (64, 64, 3), dtype=np.uint8)
    made = rendered(stages, stage, {0: request("a"), 1: request("b")}, {(0, 0): with_face, (1, 0): without})
    finder = load_yunet(Path(stage.yunet.source), stage.yunet.source, stage.threshold, stage.most)
    alone = restorer.restore(with_face, finder)
    assert (made[0, 0].found, made[1, 0].found) == (1, 0) and alone.faces == 1
    assert np.array_equal(made[0, 0].pixels, alone.pixels) and not np.array_equal(alone.pixels, with_face)
    assert np.array_equal(made[1, 0].pixels, without)
    assert made[0, 0].evaluations == made[1, 0].evaluations == 0
