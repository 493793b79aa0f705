import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor
from pydantic import ValidationError

from promptmill.configs.model import Kernels, LoraWeights, Model
from promptmill.configs.parameters import Defaults
from promptmill.manifests.images import Roots
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.rendering.kernels import SHAPES, _blocks, put_on
from promptmill.pipelines.rendering.loading import load_model
from promptmill.pipelines.rendering.slots import Slots
from promptmill.pipelines.work.errors import ModelError
from tests.pipelines import tiny
from tests.pipelines.engines import model_of, pixels, render
from tests.pipelines.plain import JOB_SEED, MODES, request
from tests.pipelines.tiny_families import MAKERS
from tests.pipelines.tiny_stages import kandinsky22

IS_ON = {
    "attention": lambda module: {type(one) for one in module.attn_processors.values()} == {AttnProcessor},
    "channels_last": lambda module: module.conv_in.weight.is_contiguous(memory_format=torch.channels_last),
    "compile": lambda module: {type(one) for one in module.modules() if one._compiled_call_impl} == {BasicTransformerBlock},
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


def test_a_compiled_block_is_compiled_once_for_a_shape_and_for_the_default_one_before_the_first_unit_comes(folder):
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    # Of a size that no other test has, so that there is something to compile.
    size = Defaults(width=72, height=88, scheduler="ddim")
    compiled = Engine(model_of(folder, kernels=Kernels(compile=True)), JOB_SEED, Roots((str(folder),)), warmed=size)
    graphs = counted["unique_graphs"]
    assert graphs > before
    render(compiled, request(width=72, height=88))
    assert counted["unique_graphs"] == graphs
    render(compiled, request("other", steps=5, scheduler="euler", candidates=1, width=72, height=88))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


COMPILE_ONE = """
import torch
from diffusers.models.attention import BasicTransformerBlock
from promptmill.configs.model import Kernels
from promptmill.pipelines.rendering.kernels import put_on

block = torch.nn.Sequential(BasicTransformerBlock(8, 1, 8, cross_attention_dim=8))
put_on(Kernels(compile=True), [block], torch.device("cpu"))
with torch.no_grad():
    block[0](torch.zeros(1, 4, 8), encoder_hidden_states=torch.zeros(1, 4, 8))
counted = torch._dynamo.utils.counters["inductor"]
print(counted["fxgraph_cache_hit"], counted["fxgraph_cache_miss"])
"""


def test_what_one_process_has_compiled_the_next_one_on_a_node_reads_from_its_disk(tmp_path):
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    said = [
        subprocess.run([sys.executable, "-c", COMPILE_ONE], env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert [one.split() for one in said] == [["0", "1"], ["1", "0"]]


def test_the_thread_that_computes_compiles_many_shapes_and_chooses_no_kernel_by_timing(folder, monkeypatch):
    seen, step = [], Slots.step

    def stepping(path):
        seen.append((torch._dynamo.config.recompile_limit, torch._inductor.config.deterministic))
        step(path)

    monkeypatch.setattr(Slots, "step", stepping)
    compiled = Engine(model_of(folder, kernels=Kernels(compile=True), controlnets={}), JOB_SEED, Roots((str(folder),)))
    render(compiled, request(candidates=1, steps=1))
    compiled.close()
    assert set(seen) == {(SHAPES, True)}


@pytest.mark.parametrize("part", ["unet", "controlnet", "decoder"])
def test_on_a_gpu_convolutions_are_compiled_with_all_else_that_repeats(part):
    convolving = {"ResnetBlock2D", "Downsample2D" if part != "decoder" else "Upsample2D"}
    module = {
        "unet": tiny.unet,
        "controlnet": lambda: ControlNetModel.from_unet(tiny.unet()),
        "decoder": lambda: tiny.vae().decoder,
    }[part]()
    on_gpu, on_cpu = ({type(one).__name__ for one in _blocks(module, torch.device(name))} for name in ("cuda", "cpu"))
    assert on_gpu >= convolving and not on_cpu & convolving
    assert ("BasicTransformerBlock" in on_cpu) == ("BasicTransformerBlock" in on_gpu) == (part != "decoder")
    given = torch.zeros(1, 4, 8, 8)
    for one in _blocks(module, torch.device("cuda")):
        one.compile(fullgraph=True, dynamic=False, backend="eager")  # a graph of each, without what makes kernels of it
    with torch.no_grad():
        if part == "decoder":
            module(given)
        else:
            more = {"controlnet_cond": torch.zeros(1, 3, 64, 64)} if part == "controlnet" else {}
            module(given, 1, torch.zeros(1, 77, module.config.cross_attention_dim), **more)


def test_fp8_takes_torchs_own_kernels_and_leaves_inductors_settings_alone(monkeypatch):
    from torchao import quantization
    from torchao.quantization.quantize_.common import KernelPreference

    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(quantization, "quantize_", lambda module, config, fits: asked.append(config))
    put_on(Kernels(fp8=True), [torch.nn.Linear(1, 1)], torch.device("cuda"))
    (config,) = asked
    assert config.kernel_preference == KernelPreference.TORCH and not config.set_inductor_config


@pytest.mark.parametrize("name", ["hunyuandit", "sana", "flux-dev"])
def test_attention_that_is_more_than_a_softmax_is_not_taken_for_the_plain_one(folder, name):
    base = MAKERS[name](folder / f"{name}-for-plain-attention")
    with pytest.raises(ModelError, match=r"attention plain does not go with a \w+2DModel; set it to sdpa"):
        load_model(model_of(folder, base=str(base), controlnets={}, kernels=Kernels(attention="plain")))


def test_plain_attention_goes_with_keys_of_the_prompt_that_are_added_to_those_of_the_picture(folder):
    base, drawn = kandinsky22(folder / "kandinsky-for-plain-attention"), []
    for kind in ("sdpa", "plain"):
        engine = Engine(
            model_of(folder, base=str(base), controlnets={}, kernels=Kernels(attention=kind)), JOB_SEED, Roots((str(folder),))
        )
        (outcome,) = render(engine, request(scheduler="ddpm", prior_steps=2, prior_guidance_scale=4.0))
        drawn.append(np.array(pixels(outcome), int))
        engine.close()
    assert np.abs(drawn[0] - drawn[1]).max() <= 2


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


STYLE = (LoraWeights(name="style", source="./b"),)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kernels": Kernels(compile=True)}, "kernels.compile goes with loras that are merged; set kernels.merge_loras"),
        ({"kernels": Kernels(fp8=True), "dtype": "bfloat16"}, "kernels.fp8 does not go with loras"),
        ({"kernels": Kernels(merge_loras=True), "quantize": {"unet": "int8"}}, "merge_loras does not go with quantize"),
        ({"kernels": Kernels(merge_loras=True), "offload": True}, "merge_loras does not go with offload"),
    ],
)
def test_loras_are_refused_where_switching_them_would_compile_again_or_weights_cannot_take_them(options, says):
    with pytest.raises(ValidationError, match=says):
        Model(base="./a", loras=STYLE, **options)


def test_fp8_is_for_bf16():
    with pytest.raises(ValidationError, match=r"kernels\.fp8 computes in bfloat16; set dtype to bfloat16"):
        Model(base="./a", dtype="float16", kernels=Kernels(fp8=True))
    assert Model(base="./a", dtype="bfloat16", kernels=Kernels(fp8=True)).kernels.fp8
