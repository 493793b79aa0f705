import shutil

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from diffusers.models.attention_processor import AttnProcessor
from pydantic import ValidationError

from promptmill.configs.model import Kernels, LoraWeights, Model
from promptmill.manifests.images import Roots
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.rendering.kernels import put_on
from promptmill.pipelines.work.errors import ModelError
from tests.pipelines.engines import model_of, pixels, render
from tests.pipelines.plain import JOB_SEED, MODES, request

IS_ON = {
    "attention": lambda module: {type(one) for one in module.attn_processors.values()} == {AttnProcessor},
    "channels_last": lambda module: module.conv_in.weight.is_contiguous(memory_format=torch.channels_last),
    "compile": lambda module: any(one._compiled_call_impl for one in module.modules()) or isinstance(module, ControlNetModel),
}
SWITCHES = [{"attention": "plain"}, {"channels_last": True}, {"compile": True}]


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_with_any_kernels_an_image_is_the_one_rendered_alone_and_nearly_the_usual_one(engine, folder, switch):
    other = Engine(model_of(folder, kernels=Kernels(**switch)), JOB_SEED, Roots((str(folder),)))
    for module in (other.model.denoiser, *other.model.controlnets.values()):
        assert IS_ON[next(iter(switch))](module)
        assert not IS_ON[next(iter(switch))](engine.model.denoiser)
    some = [request(mode, **{"mode": mode, **MODES[mode]}) for mode in ("txt2img", "controlnet", "controlnet_inpaint")]
    together = [pixels(outcome) for outcome in render(other, *some)]
    for one, made in zip(some, together, strict=True):
        np.testing.assert_array_equal(made, pixels(render(other, one)[0]))
        # Levels: of rounding in another order, some steps on.
        assert np.abs(np.array(made, int) - pixels(render(engine, one)[0])).max() <= 2


def test_a_compiled_block_is_compiled_once_for_a_shape(folder):
    compiled = Engine(model_of(folder, kernels=Kernels(compile=True)), JOB_SEED, Roots((str(folder),)))
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    # Of a size that no other test has, so that there is something to compile.
    render(compiled, request(width=72, height=88))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs > before
    render(compiled, request("other", steps=5, scheduler="euler", candidates=1, width=72, height=88))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_what_this_machine_cannot_do_is_one_line(folder, monkeypatch):
    cpu = torch.device("cpu")
    with pytest.raises(ModelError, match=r"^model\.kernels\.fp8 needs "):
        put_on(Kernels(fp8=True), [torch.nn.Linear(1, 1)], cpu)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ModelError, match="needs a C\\+\\+ compiler") as raised:
        Engine(model_of(folder, kernels=Kernels(compile=True)), JOB_SEED, Roots((str(folder),)))
    assert "\n" not in str(raised.value)
    with pytest.raises(ModelError, match="attention plain does not go with a Linear"):
        put_on(Kernels(attention="plain"), [torch.nn.Linear(1, 1)], cpu)


def test_loras_are_refused_where_switching_them_would_compile_again():
    with pytest.raises(ValidationError, match="do not go with loras"):
        Model(base="./a", loras=(LoraWeights(name="style", source="./b"),), kernels=Kernels(compile=True))
