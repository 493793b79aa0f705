"""LoRAs merged into the weights: the bits of diffusers' fused LoRAs, whatever was merged before, and of the weights without any."""

import itertools
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict

from promptmill.configs.model import Kernels, LoraWeights
from promptmill.configs.parameters import Lora
from promptmill.manifests.images import Roots
from promptmill.pipelines.rendering.engine import Engine
from tests.pipelines import tiny
from tests.pipelines.engines import BATCH, model_of, pixels, render
from tests.pipelines.plain import JOB_SEED, render_plain, request

KINDS = {
    "none": (),
    "one": (Lora(name="style", scale=0.7),),
    "less": (Lora(name="style", scale=0.2),),
    "both": (Lora(name="style", scale=0.7), Lora(name="lines", scale=-0.5)),
    "turned": (Lora(name="lines", scale=-0.5), Lora(name="style", scale=0.7)),
}


@pytest.fixture(scope="module")
def styles(folder):
    """Two LoRAs: of attention, and of convolutions beside it."""
    for seed, (name, targets) in enumerate({"style": ["to_q", "to_v"], "lines": ["to_q", "conv1"]}.items()):
        torch.manual_seed(seed)
        unet = tiny.unet()
        unet.add_adapter(LoraConfig(r=2, lora_alpha=3, target_modules=targets, init_lora_weights=False))
        diffusers.StableDiffusionPipeline.save_lora_weights(folder / name, unet_lora_layers=get_peft_model_state_dict(unet))
    return tuple(LoraWeights(name=name, source=str(folder / name)) for name in ("style", "lines"))


@pytest.fixture(scope="module")
def merging(folder, styles):
    model = model_of(folder, loras=styles, controlnets={}, kernels=Kernels(merge_loras=True))
    return Engine(model, JOB_SEED, Roots((str(folder),)))


def fused(base, loras, styles):
    """A folder's pipeline with LoRAs that diffusers has fused into its weights."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(base, safety_checker=None, requires_safety_checker=False)
    for style in styles:
        pipeline.load_lora_weights(style.source, adapter_name=style.name)
    pipeline.set_adapters([lora.name for lora in loras], [lora.scale for lora in loras])
    pipeline.fuse_lora(adapter_names=[lora.name for lora in loras])
    pipeline.unload_lora_weights()
    return pipeline


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_that_of_plain_diffusers_with_the_loras_fused(merging, folder, styles, tmp_path, kind):
    wanted = request(loras=KINDS[kind], candidates=BATCH)
    base = folder / "sd"
    if KINDS[kind]:
        base = tmp_path / "fused"
        fused(folder / "sd", KINDS[kind], styles).save_pretrained(base)
    np.testing.assert_array_equal(pixels(render(merging, wanted)[0]), render_plain(wanted, BATCH, base, {}, folder))


def test_whatever_was_merged_before_the_bits_are_the_same(merging):
    one = request(candidates=1, seed=5)
    alone = {kind: pixels(render(merging, replace(one, loras=loras))[0]) for kind, loras in KINDS.items()}
    assert len({made[0].tobytes() for made in alone.values()}) >= 4  # in which order two are added may not show
    for before, then in itertools.permutations(KINDS, 2):
        some = [replace(one, id=kind, loras=KINDS[kind]) for kind in (before, then)]
        for kind, outcome in zip((before, then), render(merging, *some), strict=True):
            np.testing.assert_array_equal(pixels(outcome), alone[kind], err_msg=f"{kind} of {before}, {then}")


def test_no_layer_of_a_lora_is_left_in_the_model_and_its_blocks_can_be_compiled(folder, styles):
    kernels = Kernels(merge_loras=True, compile=True)
    compiled = Engine(model_of(folder, loras=styles, controlnets={}, kernels=kernels), JOB_SEED, Roots((str(folder),)))
    assert not [name for name, _ in compiled.model.denoiser.named_modules() if "lora" in name or "base_layer" in name]
    counted = torch._dynamo.utils.counters["stats"]
    first = pixels(render(compiled, request(loras=KINDS["one"]))[0])
    graphs = counted["unique_graphs"]
    others = [pixels(render(compiled, request(loras=KINDS[kind]))[0]) for kind in ("both", "none", "one")]
    assert counted["unique_graphs"] == graphs
    np.testing.assert_array_equal(others[-1], first)
    assert not np.array_equal(others[0], first) and not np.array_equal(others[1], first)
    compiled.close()
