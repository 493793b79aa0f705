"""That captions depend on their own picture alone, and are what transformers makes of the same batch."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaProcessor

from promptmill.configs.language_models import Captions
from promptmill.configs.weights import Weights
from promptmill.pipelines.rendering.captioning import load_captioner
from promptmill.pipelines.rendering.generating_text import BROKEN, Drawn
from promptmill.pipelines.work.errors import FatalError, ModelError
from promptmill.pipelines.work.results import Failure
from tests.pipelines.tiny_languages import IDS, SEEING

CPU, BATCH, TOKENS = torch.device("cpu"), 4, 8
PROMPT = "what is this"
RNG = np.random.default_rng(0)
PICTURES = [
    RNG.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((64, 64), (64, 64), (32, 64), (64, 64), (48, 48), (64, 64))
]
SEEDS = [11, 12, 13, 14, 15, 16]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp("languages") / name) for name, make in SEEING.items()}


def captioner(folder, **values):
    return load_captioner(Captions(**{"model": Weights(source=str(folder)), "batch": BATCH, "max_tokens": TOKENS, **values}), CPU)


@pytest.mark.parametrize("drawn", [{}, {"temperature": 1.5, "top_k": 20, "top_p": 0.95}], ids=["greedy", "drawn"])
@pytest.mark.parametrize("name", SEEING)
def test_a_caption_is_the_same_alone_among_others_and_in_another_order(folders, name, drawn):
    writes = captioner(folders[name], prompt=PROMPT, **drawn)
    together = writes.captions(PICTURES, SEEDS)
    assert all(isinstance(one, str) and one for one in together) and len(set(together)) > 1
    backwards = writes.captions(PICTURES[::-1], SEEDS[::-1])
    assert backwards[::-1] == together
    assert [writes.captions([PICTURES[at]], [SEEDS[at]])[0] for at in (0, 2, 5)] == [together[at] for at in (0, 2, 5)]


@pytest.mark.parametrize("name", SEEING)
def test_a_greedy_caption_is_what_generate_of_transformers_makes_of_the_same_batch(folders, name):
    alike = [PICTURES[at] for at in (0, 1, 3, 5)]
    model = AutoModelForImageTextToText.from_pretrained(folders[name]).eval()
    processor = AutoProcessor.from_pretrained(folders[name])
    text = PROMPT
    if processor.chat_template:
        said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
        text = processor.apply_chat_template(said, add_generation_prompt=True)
    inputs = processor(images=[Image.fromarray(one) for one in alike], text=[text] * 4, return_tensors="pt")
    with torch.inference_mode():
        made = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    if not model.config.is_encoder_decoder:
        made = made[:, inputs["input_ids"].shape[1] :]
    wanted = [one.strip() for one in processor.batch_decode(made, skip_special_tokens=True)]
    assert captioner(folders[name], prompt=PROMPT).captions(alike, SEEDS[:4]) == wanted


def test_what_is_drawn_follows_the_seed_and_varies_with_it(folders):
    writes = captioner(folders["llava"], temperature=2.0)
    alike = [PICTURES[0]] * 6
    said = writes.captions(alike, SEEDS)
    assert said == writes.captions(alike, SEEDS) and len(set(said)) > 3
    assert len(set(captioner(folders["llava"]).captions(alike, SEEDS))) == 1


def test_tokens_are_drawn_with_the_probabilities_of_the_model():
    logits = torch.tensor([[0.0, 1.0, 2.0, -float("inf")]])
    generators = [torch.Generator().manual_seed(7)]
    drawn = Counter(int(Drawn(generators)(torch.zeros(1, 1), logits).argmax()) for _ in range(6000))
    wanted = torch.softmax(logits[0], 0)
    # Of 6,000 draws a share has a standard deviation of less than 0.0065.
    assert all(abs(drawn[token] / 6000 - float(wanted[token])) < 0.03 for token in range(4)) and not drawn[3]


def test_a_models_own_settings_ask_for_no_beams_and_no_drawing(folders, tmp_path):
    files = {path.name: path.read_bytes() for path in folders["llava"].iterdir()}
    own = json.loads(files["generation_config.json"])
    files["generation_config.json"] = json.dumps({**own, "num_beams": 3, "do_sample": True, "max_length": 9}).encode()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert captioner(tmp_path).captions(PICTURES, SEEDS) == captioner(folders["llava"]).captions(PICTURES, SEEDS)


def test_a_picture_that_fails_takes_no_other_along(folders, monkeypatch):
    writes = captioner(folders["llava"])
    wanted, model = writes.captions(PICTURES, SEEDS), writes.model.model
    real, bad = model.generate, writes.asked(PICTURES[1], 0).inputs["pixel_values"][0]

    def generate(**inputs):
        if any(torch.equal(one, bad) for one in inputs["pixel_values"]):
            raise ValueError("no such\npicture")
        return real(**inputs)

    monkeypatch.setattr(model, "generate", generate)
    said = writes.captions(PICTURES, SEEDS)
    assert said[1] == Failure("render_error", "ValueError: no such picture")
    assert said[:1] + said[2:] == wanted[:1] + wanted[2:]


def test_a_picture_that_the_processor_refuses_fails_alone(folders):
    writes = captioner(folders["llava"])
    real = writes.processor

    def refusing(images, **options):
        if images[0].size == (64, 32):
            raise ValueError("too flat")
        return real(images=images, **options)

    said = replace(writes, processor=refusing).captions(PICTURES, SEEDS)
    assert said[2] == Failure("render_error", "ValueError: too flat")
    assert said[:2] + said[3:] == (wanted := writes.captions(PICTURES, SEEDS))[:2] + wanted[3:]


def test_values_that_are_no_numbers_fail_the_picture_and_memory_that_runs_out_the_process(folders, monkeypatch):
    writes = captioner(folders["llava"])
    writes.model.model.lm_head.weight.data[IDS["red"]] = float("nan")
    assert writes.captions(PICTURES[:2], SEEDS[:2]) == [BROKEN, BROKEN]

    def generate(**inputs):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(writes.model.model, "generate", generate)
    with pytest.raises(FatalError, match="out of memory, while generating text; set batch lower"):
        writes.captions(PICTURES[:2], SEEDS[:2])


def test_a_model_that_writes_no_caption_at_all_is_refused_when_it_is_loaded(folders, tmp_path, monkeypatch):
    folder = shutil.copytree(folders["llava"], tmp_path / "llava")
    tensors = load_file(folder / "model.safetensors")
    next(tensor for name, tensor in tensors.items() if name.endswith("lm_head.weight"))[IDS["red"]] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"^[^\n]*writes no caption of a grey picture: the language model gives"):
        captioner(folder)
    # Without its placeholder the picture is nowhere in the text.
    shutil.copy(folders["llava"] / "model.safetensors", folder)
    (folder / "chat_template.jinja").write_text("a picture")
    with pytest.raises(ModelError, match=r"^[^\n]*writes no caption of a grey picture: "):
        captioner(folder)


def test_a_processor_that_takes_a_list_of_pictures_for_each_text_is_given_one(folders, monkeypatch):
    wanted, kind = captioner(folders["llava"]).captions(PICTURES, SEEDS), LlavaProcessor
    real = kind.__call__

    def of_several(self, images, **options):
        assert isinstance(images[0], list)
        return real(self, images=[picture for some in images for picture in some], **options)

    monkeypatch.setattr(kind, "__call__", of_several)
    assert captioner(folders["llava"]).captions(PICTURES, SEEDS) == wanted


@pytest.mark.parametrize(
    ("lost", "problem"),
    [
        ("processor_config.json", "has no processor that can be loaded|is none of images and texts"),
        ("tokenizer.json", "has no processor that can be loaded"),
        ("model.safetensors", "cannot be loaded"),
    ],
)
def test_what_a_model_lacks_is_said_in_one_line(folders, tmp_path, lost, problem):
    for path in folders["llava"].iterdir():
        if path.name != lost:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match=problem) as raised:
        captioner(tmp_path)
    assert "\n" not in str(raised.value)
