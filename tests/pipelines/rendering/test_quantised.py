"""Models larger than a card: quantised as they are loaded, denoisers in GGUF files, blocks in main memory, images in tiles."""

from dataclasses import replace

import diffusers
import gguf
import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError
from safetensors.torch import load_file
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

from promptmill.configs.loading import load
from promptmill.configs.weights import PartWeights
from promptmill.manifests.images import Roots
from promptmill.pipelines.models import identity
from promptmill.pipelines.models.compatibility import check_fits
from promptmill.pipelines.models.identity import library_versions, model_identity
from promptmill.pipelines.rendering import quantised
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.rendering.loading import load_model
from promptmill.pipelines.rendering.slots import Slots
from promptmill.pipelines.work.errors import ModelError
from tests.pipelines import original_layout, tiny_families
from tests.pipelines.engines import BATCH, model_of, pixels, render
from tests.pipelines.plain import JOB_SEED, request
from tests.pipelines.plain_calls import Plain, render_family
from tests.pipelines.plain_families import FAMILIES

TORCHAO = {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}
PARTS = {"sd3": ("transformer", "text_encoder_2", "text_encoder_3"), "sd": ("unet",)}
PLAIN = {
    "sd3": FAMILIES["sd3"],
    "sd": Plain({"txt2img": "StableDiffusionPipeline", "img2img": "StableDiffusionImg2ImgPipeline"}, schedulers=("ddim",)),
}
SOME = [
    request("r1", mode="txt2img", prompt="a small red circle", steps=3, scheduler="euler"),
    request("r2", mode="txt2img", prompt="a large blue square at the left", steps=2, guidance_scale=1.0, scheduler="euler"),
    request("r3", mode="img2img", init_image="a.png", strength=0.7, prompt="a green circle", steps=4, scheduler="euler"),
]


@pytest.fixture(scope="module")
def bases(folder):
    return {"sd3": tiny_families.sd3(folder / "sd3"), "sd": folder / "sd"}


def engine_of(folder, base, **options):
    return Engine(model_of(folder, base=str(base), controlnets={}, **options), JOB_SEED, Roots((str(folder),)))


def quantised_by_the_libraries(parts, kind):
    """The options that diffusers documents for the same."""
    libraries = {part: transformers if part.startswith("text_encoder") else diffusers for part in parts}
    mapping = {part: library.TorchAoConfig(TORCHAO[kind]()) for part, library in libraries.items()}
    return {"quantization_config": diffusers.PipelineQuantizationConfig(quant_mapping=mapping)}


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("family", PARTS)
def test_images_of_quantised_models_are_those_of_plain_diffusers_alone_and_among_others(folder, bases, family, kind):
    engine = engine_of(folder, bases[family], quantize=dict.fromkeys(PARTS[family], kind))
    plain = replace(PLAIN[family], parts=quantised_by_the_libraries(PARTS[family], kind))
    together = render(engine, *SOME)
    full = render(engine_of(folder, bases[family]), *SOME)
    for one, outcome, unlike in zip(SOME, together, full, strict=True):
        theirs, _ = render_family(plain, one, plain.fills(one, BATCH), bases[family], folder, BATCH)
        np.testing.assert_array_equal(pixels(outcome), theirs[: one.candidates])
        (alone,) = render(engine, one)
        np.testing.assert_array_equal(pixels(alone), pixels(outcome))
        assert not np.array_equal(pixels(unlike), pixels(outcome))
    for part in PARTS[family]:
        stored = {type(one).__name__ for one in getattr(engine.model.base, part).parameters()}
        assert stored & {"Int8Tensor", "Float8Tensor"}, part


@pytest.fixture(scope="module")
def in_gguf(bases, tmp_path_factory):
    """The transformer of the tiny Stable Diffusion 3 as a GGUF file: what is large in half the bits, or in 8, the rest whole."""
    (file,) = (bases["sd3"] / "transformer").glob("*.safetensors")
    place = tmp_path_factory.mktemp("gguf") / "sd3-Q8_0.gguf"
    writer = gguf.GGUFWriter(str(place), "sd3")
    for name, tensor in original_layout.sd3_transformer(load_file(file)).items():
        kind = gguf.GGMLQuantizationType.F32
        if name.endswith("weight") and tensor.ndim == 2:
            kind = gguf.GGMLQuantizationType.F16 if tensor.shape[1] % 32 else gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return place


def test_a_denoiser_in_a_gguf_file_makes_the_images_of_plain_diffusers_alone_and_among_others(folder, bases, in_gguf):
    engine = engine_of(folder, bases["sd3"], denoiser=PartWeights(source=str(in_gguf)))
    stored = {str(getattr(one, "quant_type", None)) for one in engine.model.denoiser.parameters()}
    assert len(stored) > 1, "some tensors have fewer bits"
    together = render(engine, *SOME)
    for one, outcome in zip(SOME, together, strict=True):
        transformer = diffusers.SD3Transformer2DModel.from_single_file(
            str(in_gguf),
            quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=torch.float32),
            config=str(bases["sd3"]),
            subfolder="transformer",
            dtype=torch.float32,
        )
        plain = replace(FAMILIES["sd3"], parts={"transformer": transformer})
        theirs, _ = render_family(plain, one, plain.fills(one, BATCH), bases["sd3"], folder, BATCH)
        np.testing.assert_array_equal(pixels(outcome), theirs[: one.candidates])
        (alone,) = render(engine, one)
        np.testing.assert_array_equal(pixels(alone), pixels(outcome))


def test_a_denoiser_that_is_given_apart_is_quantised_too(folder, bases):
    model = model_of(
        folder,
        base=str(bases["sd3"]),
        controlnets={},
        denoiser=PartWeights(source=str(bases["sd3"]), subfolder="transformer"),
        quantize={"transformer": "int8"},
    )
    check_fits(model)
    assert "Int8Tensor" in {type(one).__name__ for one in load_model(model).denoiser.parameters()}


@pytest.mark.parametrize("quantize", [{}, {"transformer": "int8"}])
@pytest.mark.parametrize("family", PARTS)
def test_with_blocks_that_are_offloaded_images_are_the_same(folder, bases, family, quantize):
    kinds = {name: kind for name, kind in quantize.items() if name in PARTS[family]}
    engine = engine_of(folder, bases[family], offload=True, quantize=kinds)
    # By diffusers' own hooks: on a CPU blocks move from it to it.
    for part in (name for name in PARTS[family] if not name.startswith("text_encoder")):
        assert engine.model.base.components[part]._diffusers_hook.get_hook("group_offloading") is not None
    whole = engine_of(folder, bases[family], quantize=kinds)
    for one, other in zip(render(engine, *SOME), render(whole, *SOME), strict=True):
        np.testing.assert_array_equal(pixels(one), pixels(other))


def test_who_holds_a_models_calls_gives_them_back_with_the_hooks_by_which_blocks_come_to_the_card(folder, bases):
    loaded = load_model(model_of(folder, base=str(bases["sd"]), controlnets={}, offload=True))
    before = {part: vars(part).get("forward") for part in (loaded.denoiser, loaded.base.text_encoder, loaded.base.vae)}
    assert before[loaded.denoiser] is not None, "a hook of diffusers'"
    Slots(loaded, 1).close()
    assert {part: vars(part).get("forward") for part in before} == before


def test_a_large_image_is_decoded_in_tiles_as_diffusers_does(folder):
    one = request(width=128, height=128, steps=2)
    tiled, whole = (pixels(render(engine_of(folder, folder / "sd", vae_tiling=tiling), one)[0]) for tiling in (True, False))
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "sd" / "vae")
    vae.enable_tiling()
    plain = replace(PLAIN["sd"], parts={"vae": vae})
    theirs, _ = render_family(plain, one, plain.fills(one, BATCH), folder / "sd", folder, BATCH)
    np.testing.assert_array_equal(tiled, theirs[: one.candidates])
    assert not np.array_equal(tiled, whole)


def test_what_is_quantised_is_in_the_fingerprint_and_the_libraries_are_named_only_where_they_are_used(folder, in_gguf):
    ranking = load("embedded").ranking
    plain = model_of(folder)
    assert not {"quantize", "offload", "vae_tiling"} & plain.model_dump().keys()
    assert not {"torchao", "gguf", "bitsandbytes"} & library_versions(plain).keys()
    assert "torchao" in library_versions(model_of(folder, quantize={"unet": "int8"}))
    denoiser = PartWeights(source=str(in_gguf))
    assert "gguf" in library_versions(model_of(folder, denoiser=denoiser))
    assert model_identity(model_of(folder, denoiser=denoiser), ranking)["model.denoiser"].startswith("sha256:")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"quantize": {"vae": "int8"}}, "quantize: vae is neither a UNet nor a transformer nor a text encoder"),
        ({"quantize": {"unet": "int3"}}, "int8"),
        ({"quantize": {"unet": "int8"}, "kernels": {"compile": True}}, "do not go with quantize"),
        ({"quantize": {"unet": "int8"}, "denoiser": {"source": "./a.gguf"}}, "the denoiser is a .gguf file"),
        ({"offload": True, "kernels": {"channels_last": True}}, "kernels.channels_last does not go with offload"),
        ({"denoiser": {"source": "./a.gguf"}, "kernels": {"compile": True}}, "do not go with a denoiser that is a .gguf file"),
        (
            {"quantize": {"unet": "int8"}, "references": {"style": {"source": "./a", "weight_name": "b.safetensors"}}},
            "references do not go with a UNet of fewer bits",
        ),
        (
            {
                "references": {"style": {"source": "./a", "weight_name": "b.safetensors"}},
                "image_encoder": {"source": "./e", "weight_name": "model.safetensors"},
            },
            "image_encoder: name the folder of the encoder, by source and subfolder, and no file",
        ),
        ({"offload": True, "quantize": {"unet": "nf4"}}, "quantize to nf4 does not go with offload"),
        ({"vae": {"source": "./a.gguf"}}, "only model.denoiser may be a .gguf file"),
        ({"base": "./a.gguf"}, "only model.denoiser may be a .gguf file"),
    ],
)
def test_what_cannot_be_quantised_is_said_by_the_config(folder, options, says):
    with pytest.raises(ValidationError, match=says):
        model_of(folder, **options)


def test_a_part_that_a_model_lacks_a_gpu_and_a_library_that_are_missing_are_one_line(folder, monkeypatch):
    with pytest.raises(ModelError, match=r"\.quantize: .*sd has no transformer; what can be quantised there: text_encoder, unet$"):
        check_fits(model_of(folder, quantize={"transformer": "int8"}))
    with pytest.raises(ModelError, match=r"^model\.quantize\.unet: nf4 needs a GPU, and this is a CPU; int8 and fp8 need none$"):
        load_model(model_of(folder, quantize={"unet": "nf4"}), torch.device("cpu"))

    def missing(name):
        if name in ("torchao", "bitsandbytes", "gguf"):
            raise identity.PackageNotFoundError
        return "1"

    monkeypatch.setattr(identity, "version", missing)
    for options, line in (
        ({"quantize": {"unet": "int8"}}, r"model\.quantize\.unet needs torchao: pip install 'promptmill\[quantize\]'"),
        ({"quantize": {"unet": "nf4"}}, r"model\.quantize\.unet needs bitsandbytes: pip install"),
        ({"denoiser": {"source": "./a.gguf"}}, r"model\.denoiser needs gguf: pip install"),
    ):
        with pytest.raises(ModelError, match=line):
            library_versions(model_of(folder, **options))


def test_loading_without_the_library_is_one_line_too(monkeypatch):
    def fails():
        raise ImportError

    with pytest.raises(ModelError, match=r"^model\.denoiser needs gguf: pip install 'promptmill\[quantize\]'$"):
        quantised._made(fails, "model.denoiser", "gguf")
