"""IP-Adapters of Flux and Stable Diffusion 3: each row's own images, in batches that rows share; equal to plain diffusers, and free
of companions.
"""

from dataclasses import replace
from functools import cache

import diffusers
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from promptmill.configs.parameters import Control, Reference
from promptmill.configs.weights import PartWeights, ReferenceWeights, Weights
from promptmill.manifests.images import Roots
from promptmill.pipelines.models.compatibility import check_fits
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.rendering.loading import load_model
from promptmill.pipelines.work.errors import ModelError
from tests.pipelines import tiny_adapters, tiny_controlnets
from tests.pipelines import tiny_transformer_adapters as tiny
from tests.pipelines.companions import made_the_same_whatever_the_companions
from tests.pipelines.engines import BATCH, model_of, pixels, render
from tests.pipelines.every_tiny import TINY
from tests.pipelines.plain import JOB_SEED, MODES, picture, request
from tests.pipelines.plain_calls import asked, loaded, pixels_of
from tests.pipelines.plain_controlnets import CONTROLLED
from tests.pipelines.plain_families import FAMILIES

A, B = (Reference(type="style", image=f"{name}.png", scale=0.7) for name in "ab")
OTHER = Reference(type="content", image="b.png", scale=1.3)
GIVEN = {
    "flux-dev": [(), (A,), (OTHER,), (A, OTHER), (A, B), (B.model_copy(update={"scale": 0.0}),)],
    "flux-kontext": [(), (A,), (A, OTHER), (B, A), (B.model_copy(update={"scale": 0.0}),)],
    "chroma": [(), (A,), (OTHER,), (B, A, OTHER), (B.model_copy(update={"scale": 0.0}),)],
    "sd3": [(), (A,), *((B.model_copy(update={"scale": scale}),) for scale in (1.3, 0.2, 0.0))],
}
_OF_FLUX = {"style": "style.safetensors", "content": "content.safetensors"}
FILES = {**dict.fromkeys(("flux-dev", "flux-kontext", "chroma"), _OF_FLUX), "sd3": {"style": "style.safetensors"}}
STEERED = [name for name in FILES if name in CONTROLLED]
DOUBLE = "processor.ip_adapter_double_stream_k_proj"
MIXED = ("txt2img", "img2img", "inpaint")


@pytest.fixture(scope="module")
def models(folder):
    """Returns the engine of a tiny model with adapters, its config, and the folder of base and adapters."""

    @cache
    def model(name):
        place = folder / f"adapted-{name}"
        base = TINY[name](place / "base")
        nets = {"canny": Weights(source=str(tiny_controlnets.controlnet(name, base, place / "net")))} if name in STEERED else {}
        if name == "sd3":
            tiny.siglip(place / "image_encoder")
            tiny.sd3(base, place / "style.safetensors")
        else:
            tiny_adapters.image_encoder(place / "image_encoder")
            for seed, (kind, file) in enumerate(FILES[name].items()):
                tiny.flux(base, place / file, seed, authors=kind == "style")
        references = {kind: PartWeights(source=str(place), weight_name=file) for kind, file in FILES[name].items()}
        given = model_of(folder, base=str(base), references=references, controlnets=nets)
        check_fits(given)
        engines.append(Engine(given, JOB_SEED, Roots((str(folder),))))
        return engines[-1], given, place

    engines = []
    yield model
    for one in engines:
        one.close()


def mixed(name, modes=MIXED):
    """Requests of all modes that differ in steps, prompts and guidance, and in their references."""
    return [
        request(
            f"{mode}-{n}",
            mode=mode,
            references=given,
            steps=2 + n % 2,
            guidance_scale=[4.0, 7.0, 1.0][n % 3],
            scheduler="euler",
            **MODES[mode],
        )
        for mode in modes
        if mode == "controlnet" or mode in FAMILIES[name].pipelines
        for n, given in enumerate(GIVEN[name])
    ]


def one_by_one(encode):
    """A pipeline's `encode_image` for several pictures, each read by itself: in a batch a CPU's kernels make other last bits."""

    def run(images, *args):
        return torch.cat([encode(image, *args) for image in (images if isinstance(images, list) else [images])])

    return run


def plainly(name, one, place, folder, dtype=torch.float32, **said):
    """The candidates of a request by diffusers' pipeline, with the adapters loaded where the request has references that act."""
    acts = any(reference.scale for reference in one.references)
    said |= {key: value(one) if callable(value) else value for key, value in FAMILIES[name].said.items()}
    plain, count = FAMILIES[name], FAMILIES[name].fills(one, BATCH)
    kinds, parts = {**plain.pipelines, **(CONTROLLED[name].pipelines if name in STEERED else {})}, {}
    if one.controls:
        parts["controlnet"] = getattr(diffusers, CONTROLLED[name].net).from_pretrained(place / "net")
        image = 2.0 * picture(folder / one.controls[0].image, count) - 1.0
        said |= {"control_image": image, "controlnet_conditioning_scale": one.controls[0].scale}
    if acts and name == "sd3":
        encoder = place / "image_encoder"
        parts |= {
            "image_encoder": transformers.SiglipVisionModel.from_pretrained(encoder, dtype=dtype),
            "feature_extractor": transformers.SiglipImageProcessor.from_pretrained(encoder),
        }
    pipeline, _ = loaded(kinds[one.mode], place / "base", one, BATCH, dtype=dtype, **parts)
    if acts and name == "sd3":
        pipeline.load_ip_adapter(str(place), weight_name=FILES[name]["style"], subfolder="")
        pipeline.set_ip_adapter_scale(one.references[0].scale)
        said["ip_adapter_image"] = Image.open(folder / one.references[0].image)
    elif acts:
        encoder = {
            "image_encoder_pretrained_model_name_or_path": str(place / "image_encoder"),
            "image_encoder_dtype": dtype,
        }
        pipeline.load_ip_adapter([str(place)] * 2, weight_name=[*FILES[name].values()], subfolder="", **encoder)
        given = {kind: [reference for reference in one.references if reference.type == kind] for kind in FILES[name]}
        pipeline.set_ip_adapter_scale([some[0].scale if some else 0.0 for some in given.values()])
        pipeline.encode_image = one_by_one(pipeline.encode_image)
        images = [[Image.open(folder / reference.image) for reference in some] for some in given.values()]
        black = np.zeros((one.width, one.height, 3), np.uint8)
        # Three of Flux's four pipelines give a black picture to one adapter, and raise where there are two.
        said |= {"ip_adapter_image": [some or [black] for some in images], "negative_ip_adapter_image": [black] * len(images)}
    return pixels_of(pipeline(**asked(plain, one, count, folder), **said).images, one, folder)[: one.candidates]


@pytest.mark.parametrize("name", FILES)
def test_images_with_references_are_those_of_plain_diffusers_in_a_mixed_unit(models, folder, name):
    engine, _, place = models(name)
    some = mixed(name)
    for one, outcome in zip(some, render(engine, *some), strict=True):
        np.testing.assert_array_equal(pixels(outcome), plainly(name, one, place, folder), err_msg=str(one))


@pytest.mark.parametrize("name", STEERED)
def test_images_with_references_and_controlnets_are_those_of_plain_diffusers(models, folder, name):
    engine, _, place = models(name)
    some = [replace(one, controls=(Control(type="canny", image="b.png", scale=0.8),)) for one in mixed(name, ("controlnet",))]
    for one, outcome in zip(some, render(engine, *some), strict=True):
        np.testing.assert_array_equal(pixels(outcome), plainly(name, one, place, folder), err_msg=str(one))


@pytest.mark.parametrize("name", FILES)
def test_companions_never_matter_to_images_with_references_and_rows_share_batches(models, name):
    engine, *_ = models(name)
    some = mixed(name)
    made_the_same_whatever_the_companions(engine, some)


@pytest.mark.parametrize("name", FILES)
def test_references_matter_by_image_scale_and_adapter_and_a_scale_of_zero_is_an_engine_without_adapters(models, folder, name):
    engine, given, _ = models(name)
    some = [request(f"r{n}", seed=1, steps=2, scheduler="euler", references=references) for n, references in enumerate(GIVEN[name])]
    made = [np.stack(pixels(outcome)) for outcome in render(engine, *some)]
    assert len({one.tobytes() for one in made}) == len(some) - 1
    np.testing.assert_array_equal(made[0], made[-1])
    without = Engine(given.model_copy(update={"references": {}}), JOB_SEED, Roots((str(folder),)))
    np.testing.assert_array_equal(pixels(render(without, some[0])[0]), made[0])
    without.close()


@pytest.mark.parametrize("name", FILES)
def test_in_bf16_too_where_kernels_tell_memory_formats_apart(models, folder, name):
    _, given, place = models(name)
    engine = Engine(given.model_copy(update={"dtype": "bfloat16"}), JOB_SEED, Roots((str(folder),)))
    some = [request(f"r{n}", references=references, scheduler="euler") for n, references in enumerate(GIVEN[name])]
    for one, outcome in zip(some, render(engine, *some), strict=True):
        np.testing.assert_array_equal(pixels(outcome), plainly(name, one, place, folder, torch.bfloat16), err_msg=str(one))
    engine.close()


@pytest.mark.parametrize(
    ("references", "mode"),
    [((A,), "txt2img"), ((A, B), "txt2img"), ((A, OTHER), "txt2img"), ((A,), "img2img"), ((A,), "inpaint")],
)
def test_what_a_true_negative_prompt_leads_away_from_sees_black_pictures_as_diffusers_has_it(models, folder, references, mode):
    engine, _, place = models("flux-dev")
    led = {"true_cfg_scale": 3.0, "negative_prompt": "small", "candidates": BATCH}
    one = request(references=references, scheduler="euler", mode=mode, **led, **MODES[mode])
    (outcome,) = render(engine, one)
    theirs = plainly("flux-dev", one, place, folder)
    np.testing.assert_array_equal(pixels(outcome), theirs)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (
            "flux-dev",
            {"double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight": (32, 9)},
            "of 32 x 9 values, the base's of",
        ),
        (
            "flux-dev",
            {"double_blocks.1.processor.ip_adapter_double_stream_k_proj.weight": (32, 16)},
            "it has 2 layers of attention",
        ),
        ("flux-dev", {"ip_adapter_proj_model.proj.weight": (64, 7)}, "reads 7 values of an image, and the image encoder gives 12"),
        ("flux-dev", {"ip_adapter_proj_model.proj.weight": (60, 12)}, "it makes 60 values of an image, the base takes 64"),
        (
            "flux-dev",
            {"ip_adapter_proj_model.proj.weight": None},
            "is no IP-Adapter of Flux: it has no tensors named ip_adapter_proj",
        ),
        ("sd3", {"image_proj.proj_in.weight": (32, 7)}, "reads 7 values of an image, and the image encoder gives 16"),
        ("sd3", {"ip_adapter.0.to_k_ip.weight": (16, 9)}, "its keys are of 16 x 9 values, the base's of 16 x 16"),
        ("sd3", {"ip_adapter.3.to_k_ip.weight": (16, 16)}, "it has 4 layers of attention, the base has 3"),
        ("sd3", {"image_proj.time_embedding.linear_1.weight": None}, "is no IP-Adapter of Stable Diffusion 3: it has no tensors"),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_line_before_anything_is_loaded(models, tmp_path, name, change, says):
    _, given, place = models(name)
    tensors = load_file(place / "style.safetensors")
    tensors |= {key: None if shape is None else torch.zeros(shape) for key, shape in change.items()}
    save_file({key: one for key, one in tensors.items() if one is not None}, tmp_path / "bad.safetensors")
    bad = {"style": ReferenceWeights(source=str(tmp_path / "bad.safetensors"))}
    encoder = PartWeights(source=str(place / "image_encoder"))
    with pytest.raises(ModelError, match=r"^model\.references\.style: .*bad\.safetensors ") as caught:
        check_fits(given.model_copy(update={"references": bad, "image_encoder": encoder}))
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "other"), [("flux-dev", "sd"), ("flux-dev", "sd3"), ("sd3", "sd"), ("sd3", "flux-dev")])
def test_an_adapter_of_another_family_is_one_line_before_anything_is_loaded(models, folder, tmp_path, name, other):
    _, given, place = models(name)
    if other == "sd":
        file = tiny_adapters.ip_adapter(folder / "sd", tmp_path / "sd.safetensors")
    else:
        file = models(other)[2] / "style.safetensors"
    update = {
        "references": {"style": ReferenceWeights(source=str(file))},
        "image_encoder": PartWeights(source=str(place / "image_encoder")),
    }
    with pytest.raises(ModelError, match=r"^model\.references\.style: .*(is no IP-Adapter of|is for another base model)"):
        check_fits(given.model_copy(update=update))


def test_what_does_not_go_together_is_one_line(models, folder):
    flux, sd3 = models("flux-dev")[1], models("sd3")[1]
    redux = ReferenceWeights(source=str(tiny_adapters.redux(folder / "redux-beside")))
    face = flux.references["style"].model_copy(update={"kind": "face"})
    for given, references, says in (
        (flux, {**flux.references, "redux": redux}, "needs a weight_name, as the IP-Adapters beside it; a folder is a Redux"),
        (flux, {"style": face, "content": flux.references["content"]}, "transformers read pictures, no embeddings of faces"),
        (sd3, dict.fromkeys(("style", "more"), sd3.references["style"]), "style, more: Stable Diffusion 3 takes one IP-Adapter"),
        (sd3, {"style": redux}, "needs a weight_name, the adapter's .safetensors file in "),
    ):
        with pytest.raises(ModelError) as caught:
            check_fits(given.model_copy(update={"references": references}))
        assert says in str(caught.value)
    siglip = PartWeights(source=str(models("sd3")[2] / "image_encoder"))
    with pytest.raises(
        ModelError, match="is a SiglipVisionModel, and adapters read images through a CLIPVisionModelWithProjection"
    ):
        check_fits(flux.model_copy(update={"image_encoder": siglip}))


def test_an_encoder_whose_processor_makes_pictures_of_another_size_is_one_line(models, folder):
    _, given, _ = models("sd3")
    place = tiny.siglip(folder / "siglip-of-another-size")
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(place)
    with pytest.raises(ModelError, match=r"reads pictures of 16×16 pixels, and the feature_extractor of .* makes 32×32"):
        check_fits(given.model_copy(update={"image_encoder": PartWeights(source=str(place))}))


@pytest.mark.parametrize("name", FILES)
def test_an_adapter_that_is_not_whole_is_one_line(models, tmp_path, name):
    _, given, place = models(name)
    tensors = load_file(place / "style.safetensors")
    lost = next(key for key in sorted(tensors) if key.endswith(("norm.weight", "norm2.weight")))
    save_file({key: one for key, one in tensors.items() if key != lost}, tmp_path / "part.safetensors")
    update = {
        "references": {"style": ReferenceWeights(source=str(tmp_path / "part.safetensors"))},
        "image_encoder": PartWeights(source=str(place / "image_encoder")),
    }
    with pytest.raises(ModelError, match=r"^model\.references: style: cannot be loaded: ") as caught:
        load_model(given.model_copy(update=update))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_model_that_reads_texts_as_well_may_be_the_image_encoder(models, tmp_path, name):
    engine, given, _ = models(name)
    seen = engine.model.base.image_encoder.config.to_dict()
    texts = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 99}
    if name != "sd3":
        config = transformers.CLIPConfig(text_config=texts, vision_config=seen, projection_dim=seen["projection_dim"])
        whole = transformers.CLIPModel(config)
    else:
        whole = transformers.SiglipModel(transformers.SiglipConfig(text_config=texts, vision_config=seen))
    whole.save_pretrained(tmp_path / "whole")
    given = given.model_copy(update={"image_encoder": PartWeights(source=str(tmp_path / "whole"))})
    check_fits(given)
    begin = "vision_model."
    wanted = {key.removeprefix(begin): one for key, one in whole.state_dict().items() if key.startswith((begin, "visual_"))}
    found = {key.removeprefix(begin): one for key, one in load_model(given).base.image_encoder.state_dict().items()}
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], one) for key, one in wanted.items())
