"""Pickles that would betray being read: unpickling them makes a file."""

import os
import pickle
import sys

import diffusers
import numpy as np
import pytest

from promptmill.configs.model import LoraWeights, Model, TextualInversion
from promptmill.configs.weights import Weights
from promptmill.manifests.images import Roots
from promptmill.pipelines.models.sources import adapter_file, local_folder
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.rendering.loading import load_model
from promptmill.pipelines.work.errors import ModelError
from tests.pipelines import tiny_unets
from tests.pipelines.engines import model_of, pixels, render
from tests.pipelines.plain import JOB_SEED, MODES, request

BASE = "./embedded/weights/pipeline"


class Traitor:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.fixture
def betrayed(tmp_path):
    return tmp_path / "betrayed"


@pytest.fixture
def trap(tmp_path, betrayed):
    """A folder with pickles under the names that diffusers looks for, and no other weights."""
    folder = tmp_path / "trap"
    folder.mkdir()
    for name in ("pytorch_lora_weights.bin", "learned_embeds.bin", "x.bin", "diffusion_pytorch_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Traitor(betrayed)))
    return folder


def test_the_trap_works(trap, betrayed):
    pickle.loads((trap / "x.bin").read_bytes())
    assert betrayed.exists()


def unchecked(kind, **values):
    """As if the schema had let it pass."""
    fields = {"revision": None, "variant": None, "weight_name": None}
    return kind.model_construct(**{**fields, **values})


@pytest.mark.parametrize("name", [None, "x.bin"])
@pytest.mark.parametrize("file", ["", "x.bin", "pytorch_lora_weights.bin"])
@pytest.mark.parametrize("kind", ["lora", "inversion"])
def test_no_pickle_is_read(trap, betrayed, kind, name, file):
    source = str(trap / file) if file else str(trap)
    if kind == "lora":
        added = {"loras": (unchecked(LoraWeights, name="x", source=source, weight_name=name),)}
    else:
        added = {"textual_inversions": (unchecked(TextualInversion, token="<x>", source=source, weight_name=name),)}
    with pytest.raises(ModelError) as caught:
        load_model(Model(base=BASE).model_copy(update=added))
    assert "safetensors" in str(caught.value)
    assert not betrayed.exists()


def test_no_pickled_vae_is_read(trap, betrayed):
    (trap / "config.json").write_text("{}")
    with pytest.raises(ModelError):
        load_model(Model(base=BASE, vae=Weights(source=str(trap))))
    assert not betrayed.exists()


def test_the_file_of_an_adapter_does_not_depend_on_the_order_of_the_disk(tmp_path):
    for name in ("z.safetensors", "learned_embeds.safetensors", "a.safetensors"):
        (tmp_path / name).write_bytes(b"")
    inversion = TextualInversion(token="<x>", source=str(tmp_path))
    assert adapter_file(inversion) == tmp_path / "learned_embeds.safetensors"
    assert adapter_file(inversion.model_copy(update={"weight_name": "z.safetensors"})) == tmp_path / "z.safetensors"
    assert adapter_file(inversion.model_copy(update={"source": str(tmp_path / "a.safetensors")})) == tmp_path / "a.safetensors"
    assert adapter_file(inversion.model_copy(update={"source": "owner/name"})) is None


def test_a_source_that_is_a_file_is_safetensors(trap):
    with pytest.raises(ModelError, match="others are not read"):
        local_folder(str(trap / "x.bin"))


def test_an_sd3_that_was_saved_without_its_t5_loads():
    base = load_model(Model(base="./embedded/weights/flow")).base
    assert type(base).__name__ == "StableDiffusion3Pipeline" and base.text_encoder_3 is None and base.tokenizer_3 is None


@pytest.mark.parametrize("key", ["loras", "textual_inversions"])
def test_what_diffusers_loads_into_no_such_pipeline_is_refused_by_its_key(tmp_path, key):
    added = {
        "loras": (LoraWeights(name="x", source="./x.safetensors"),),
        "textual_inversions": (TextualInversion(token="<x>", source="./x.safetensors"),),
    }
    base = tiny_unets.gligen(tmp_path / "gligen")
    said = rf"model\.{key}: diffusers loads none into a StableDiffusionGLIGENPipeline; leave them out"
    with pytest.raises(ModelError, match=said):
        load_model(Model(base=str(base)).model_copy(update={key: added[key]}))


class Marks:
    """Stands in for the watermark of SDXL's pipelines, which turns a corner black; the package for it need not be installed."""

    def apply_watermark(self, images):
        images[..., :8, :8] = 0
        return images


def test_no_pipeline_marks_images_though_the_package_for_it_is_installed(folder, made, monkeypatch):
    wanted = [
        request(f"r{n}", mode=mode, scheduler="euler", **MODES[mode]) for n, mode in enumerate(("txt2img", "img2img", "inpaint"))
    ]
    given = model_of(folder, base=str(made("sdxl")), controlnets={})
    images = []
    for installed in (False, True):
        modules = [sys.modules[name] for name in [*sys.modules] if name.startswith("diffusers.pipelines.")]
        for module in (one for one in modules if "is_invisible_watermark_available" in vars(one)):
            monkeypatch.setattr(module, "is_invisible_watermark_available", lambda is_installed=installed: is_installed)
            monkeypatch.setattr(module, "StableDiffusionXLWatermarker", Marks, raising=False)
        engine = Engine(given, JOB_SEED, Roots((str(folder),)))
        images.append([pixels(outcome) for outcome in render(engine, *wanted)])
        plain = diffusers.StableDiffusionXLPipeline.from_pretrained(made("sdxl"))
        assert (plain.watermark is not None) == installed
        engine.close()
    np.testing.assert_array_equal(*images)
