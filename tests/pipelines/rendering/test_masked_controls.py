"""The control map for inpainting: the picture without the pixels that a row's mask repaints, as ControlNet 1.1 knows them."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from promptmill.configs.loading import load
from promptmill.configs.parameters import Control
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.planning.sources import look
from promptmill.pipelines.rendering.control_maps import masked
from promptmill.shards.bundles import encode_map
from tests.pipelines import plain
from tests.pipelines.engines import BATCH, pixels, render
from tests.pipelines.plain import MODES, render_plain, request

INPAINT = Control(type="canny", image="b.png", preprocess="inpaint", scale=0.8)
ROW = {**MODES["inpaint"], "mode": "controlnet_inpaint", "controls": (INPAINT,)}


def test_an_image_is_what_plain_diffusers_makes_with_minus_one_where_the_mask_repaints(engine, folder, monkeypatch):
    repaint = np.array(Image.open(folder / "mask.png")) >= 128
    read = plain.picture

    def picture(file, count, channels=3):
        made = read(file, count, channels)
        if file.name == "b.png":
            made[:, :, repaint] = -1.0
        return made

    monkeypatch.setattr(plain, "picture", picture)
    row = request(steps=5, candidates=BATCH, **ROW)
    nets = {kind: folder / kind for kind in ("canny", "seg")}
    assert np.array_equal(pixels(render(engine, row)[0]), render_plain(row, BATCH, folder / "sd", nets, folder))
    shown = pixels(render(engine, replace(row, controls=(INPAINT.model_copy(update={"preprocess": "none"}),)))[0])
    assert not np.array_equal(shown, pixels(render(engine, row)[0]))


def test_of_two_rows_of_one_picture_each_has_its_own_mask(engine, folder):
    mask = Image.open(folder / "mask.png")
    mask.rotate(90).save(folder / "turned.png")
    rows = [request(name, steps=4, **{**ROW, "mask_image": file}) for name, file in (("a", "mask.png"), ("b", "turned.png"))]
    together = [pixels(outcome) for outcome in render(engine, *rows)]
    for row, made in zip(rows, together, strict=True):
        assert np.array_equal(pixels(render(engine, row)[0]), made)


def test_the_file_of_such_a_map_is_black_where_pixels_are_taken_away():
    image = np.full((8, 8, 3), 200, np.uint8)
    repaint = np.zeros((8, 8), bool)
    repaint[:4] = True
    made = masked(image, repaint)
    assert made.dtype == np.int16 and (made[:4] == -255).all() and (made[4:] == 200).all()
    file = np.array(Image.open(io.BytesIO(encode_map(made))))
    assert (file[:4] == 0).all() and (file[4:] == 200).all()


@pytest.mark.parametrize("more", [{}, {"init_image": "a.png"}], ids=["txt2img", "img2img"])
def test_a_row_without_a_mask_is_refused(folder, tmp_path, more):
    row = {"prompt": "a", "controls": [{"type": "canny", "image": "b.png", "preprocess": "inpaint"}], **more}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(PlanError) as raised:
        make_plan(look(load("embedded", [f"manifest={folder / 'rows.jsonl'}"])), str(tmp_path / "out"))
    assert "controls.0.preprocess: inpaint takes away the pixels that a mask_image repaints, and the row has none" in str(
        raised.value
    )
