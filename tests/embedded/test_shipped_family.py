"""The shipped weights against the truth, on few cases: enough to notice a broken family, in CI's time."""

import numpy as np
import open_clip
import pytest
import torch
from click.testing import CliRunner
from diffusers import ControlNetModel, StableDiffusionPipeline
from PIL import Image

from promptmill.embedded import evaluate, gallery
from promptmill.embedded.pictures import SEGMENT_RGB
from promptmill.embedded.sampling import Family
from promptmill.embedded.tokenizer import WORDS, build_tokenizer
from promptmill.embedded.weights import WEIGHTS
from promptmill.embedded.world import SHAPES


@pytest.fixture(scope="module")
def family():
    return Family()


def figures(measured):
    return {figure.what: figure.value for figure in measured}


def test_the_libraries_load_the_weights_unmodified_and_offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pipeline = StableDiffusionPipeline.from_pretrained(WEIGHTS / "pipeline")
    assert {p.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder) for p in part.parameters()} == {torch.float32}
    for kind in ("canny", "seg"):
        ControlNetModel.from_pretrained(WEIGHTS / f"controlnet-{kind}")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{WEIGHTS / 'clip'}")
    tokens = open_clip.get_tokenizer(f"local-dir:{WEIGHTS / 'clip'}")(["a small red circle at the left on a green background"])
    assert model.encode_text(tokens).shape == (1, 128) and preprocess is not None


def test_every_word_of_the_world_is_one_token_in_both_tokenizers():
    for tokenizer in (build_tokenizer(), StableDiffusionPipeline.from_pretrained(WEIGHTS / "pipeline").tokenizer):
        assert all(len(tokenizer(word).input_ids) == 3 for word in WORDS)
    assert build_tokenizer().get_vocab() == StableDiffusionPipeline.from_pretrained(WEIGHTS / "pipeline").tokenizer.get_vocab()


def test_the_autoencoder_gives_pictures_back(family):
    assert figures(evaluate.measure_autoencoder(family, 120))["autoencoder's reconstructions"] >= 0.97


def test_clip_tells_the_true_prompt_from_its_edits(family):
    (value,) = figures(evaluate.measure_clip(family, 40)).values()
    assert value >= 0.8


def test_pictures_follow_their_prompts(family):
    measured = figures(evaluate.measure_txt2img(family, 12, candidates=1))
    assert measured["txt2img, one object, 20 steps"] >= 0.85
    assert measured["txt2img, two objects, 20 steps"] >= 0.75


def test_ranking_by_clip_finds_right_pictures_where_many_are_wrong(family):
    measured = figures(evaluate.measure_txt2img(family, 20, evaluate.FEW_STEPS, candidates=4))
    kinds = ("one object, 4 steps", "two objects, 4 steps")
    gain = [measured[f"txt2img, {kind}, best of 4 by CLIP"] - measured[f"txt2img, {kind}"] for kind in kinds]
    assert sum(gain) / 2 >= 0.05


@pytest.mark.parametrize("kind", ["canny", "seg"])
def test_controlnets_control(family, kind):
    with_map, without = figures(evaluate.measure_control(family, kind, 8)).values()
    assert with_map >= 0.6 and without <= 0.35


def test_the_annotators_map_of_a_picture_steers_to_pictures_of_the_same_layout(family):
    covered, followed = figures(evaluate.measure_annotator(family, 8)).values()
    assert covered >= 0.85 and followed >= 0.6


def test_the_annotator_knows_the_colours_of_the_maps_that_controlnets_were_trained_on(family):
    model, _ = family.annotator
    assert model.config.palette == SEGMENT_RGB.tolist()
    assert [*model.config.id2label.values()] == ["background", *SHAPES]


def test_img2img_keeps_the_layout_at_low_strength_and_moves_away_with_more(family):
    kept, lost, *steps = figures(evaluate.measure_img2img(family, 8)).values()
    assert kept >= 0.85 and lost <= 0.5
    assert all(step > 0 for step in steps)


def test_inpainting_repaints_inside_and_leaves_outside(family):
    inside, outside = figures(evaluate.measure_inpaint(family, 8)).values()
    assert inside >= 0.6 and outside <= 5


def test_a_picture_depends_on_its_seed_alone(family):
    prompts = ["a small red circle at the left on a green background", "a large blue cross at the top on a white background"]
    together = family.txt2img(prompts, [5, 6])
    swapped = family.txt2img(prompts[::-1], [6, 5])
    assert (together == swapped[::-1]).all()


def test_the_gallery_of_the_readme_shows_every_mode(tmp_path):
    result = CliRunner().invoke(gallery.main, ["--out", str(tmp_path / "gallery.png")], catch_exceptions=False)
    assert result.exit_code == 0
    right = int(result.output.split("txt2img: ")[1].split(" of ")[0])
    assert right >= 8
    with Image.open(tmp_path / "gallery.png") as sheet:
        assert sheet.width == gallery.COLUMNS * 128 and len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 100
