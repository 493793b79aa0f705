"""Reference images: each row's own, in batches that rows share; equal to plain diffusers, and free of companions."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from promptmill.configs.parameters import Reference
from promptmill.configs.weights import ControlNetWeights, PartWeights, ReferenceWeights
from promptmill.manifests.images import Roots
from promptmill.pipelines.models.compatibility import check_fits
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.rendering.references import RowScales
from promptmill.pipelines.rendering.tuning import tune
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.units import Placed
from tests.pipelines import tiny_adapters
from tests.pipelines.companions import made_the_same_whatever_the_companions
from tests.pipelines.engines import BATCH, model_of, pixels, render
from tests.pipelines.every_tiny import TINY
from tests.pipelines.plain import CANNY, JOB_SEED, MODES, request
from tests.pipelines.plain_calls import asked, loaded, pixels_of
from tests.pipelines.plain_families import FAMILIES
from tests.pipelines.plain_steered import SD, SDXL, maps_of, steering

STYLE, FACE = Reference(type="style", image="b.png", scale=0.7), Reference(type="content", image="wide.png", scale=1.3)
PLAIN = {"sd": SD, "sdxl": SDXL, "lcm": FAMILIES["lcm"], "kolors": FAMILIES["kolors"], "pix2pix": FAMILIES["pix2pix"]}


def adapters_of(base, place):
    """A plain and a plus adapter for a base, beside an image encoder as the Hub's repositories have theirs."""
    tiny_adapters.image_encoder(place / "models" / "image_encoder")
    tiny_adapters.ip_adapter(base, place / "models" / "plain.safetensors")
    tiny_adapters.ip_adapter(base, place / "models" / "plus.safetensors", seed=4, plus=True)
    files = {"style": "plain.safetensors", "content": "plus.safetensors"}
    return {name: PartWeights(source=str(place), subfolder="models", weight_name=file) for name, file in files.items()}


@pytest.fixture(scope="module")
def models(folder, made):
    """Returns the engine of a tiny model with two adapters, its config, and the adapters' folder."""

    @cache
    def model(name):
        place = folder / f"adapters-{name}"
        nets = {"controlnets": {}} if name != "sd" else {}
        base = made(name) if name in ("sd", "sdxl") else TINY[name](place / "base")
        given = model_of(folder, base=str(base), references=adapters_of(base, place), **nets)
        check_fits(given)
        engines.append(Engine(given, JOB_SEED, Roots((str(folder),))))
        return engines[-1], given, place

    rng = np.random.default_rng(5)
    Image.fromarray(rng.integers(0, 256, (40, 90, 3), dtype=np.uint8)).save(folder / "wide.png")
    engines = []
    yield model
    for one in engines:
        one.close()


def mixed(*modes):
    """Requests that differ in steps, guidance, prompts, and in how many references they have, of which images and scales."""
    references = [(), (STYLE,), (FACE,), (FACE, STYLE), (STYLE.model_copy(update={"image": "a.png", "scale": 0.2}),)]
    some = []
    for mode in modes:
        for place, given in enumerate(references):
            said = {"steps": 2 + place % 2, "guidance_scale": [4.0, 7.0, 1.0][place % 3], "scheduler": "euler"}
            some.append(request(f"r{len(some)}", **{"mode": mode, **MODES[mode]}, references=given, **said))
    return some


def edited(some):
    """Requests of img2img as InstructPix2Pix takes them: guided by the picture, too, and one with references by neither."""
    scales = [1.5, 1.0, 2.0, 4.0, 1.2]
    guided = [
        replace(
            one, strength=None, image_guidance_scale=scales[place % len(scales)], negative_prompt="a cross" if place % 2 else ""
        )
        for place, one in enumerate(some)
    ]
    return [*guided, replace(guided[-1], id="unguided", image_guidance_scale=0.5)]


def plainly(name, one, base, place, folder, prefix):
    """The candidates of a request by diffusers' pipeline: with both adapters, or with none where the request has no reference."""
    plain, count = PLAIN[name], PLAIN[name].fills(one, BATCH)
    endings = {"txt2img": "", "img2img": "Img2Img", "inpaint": "Inpaint", "controlnet": "ControlNet"}
    parts, said = dict(plain.parts), {}
    kind = f"{prefix}{'' if name == 'pix2pix' else endings[one.mode]}Pipeline"
    if one.controls:
        from diffusers import ControlNetModel

        parts["controlnet"] = ControlNetModel.from_pretrained(folder / "canny")
        said = {"image": maps_of(one, count, folder)[0], **steering(one)}
    pipeline, _ = loaded(kind, base, one, BATCH, **parts)
    if one.references:
        pipeline.load_ip_adapter(str(place), subfolder="models", weight_name=["plain.safetensors", "plus.safetensors"])
        given = {reference.type: reference for reference in one.references}
        pipeline.set_ip_adapter_scale([given[kind].scale if kind in given else 0.0 for kind in ("style", "content")])
        images = [Image.open(folder / (given[kind].image if kind in given else "a.png")) for kind in ("style", "content")]
        said["ip_adapter_image"] = images
    return pixels_of(pipeline(**asked(plain, one, count, folder), **said).images, one, folder)[: one.candidates]


@pytest.mark.parametrize(
    ("name", "prefix", "modes"),
    [
        ("sd", "StableDiffusion", ("txt2img", "img2img")),
        ("sd", "StableDiffusion", ("inpaint",)),
        ("sd", "StableDiffusion", ("controlnet",)),
        ("sdxl", "StableDiffusionXL", ("txt2img", "inpaint")),
        ("lcm", "LatentConsistencyModel", ("txt2img", "img2img")),
        ("kolors", "Kolors", ("txt2img", "img2img")),
        ("pix2pix", "StableDiffusionInstructPix2Pix", ("img2img",)),
    ],
)
def test_images_with_references_are_those_of_plain_diffusers_in_mixed_units(models, folder, name, prefix, modes):
    engine, config, place = models(name)
    some = [replace(one, scheduler="lcm") if name == "lcm" else one for one in mixed(*modes)]
    some = edited(some) if name == "pix2pix" else some
    for one, outcome in zip(some, render(engine, *some), strict=True):
        theirs = plainly(name, one, config.base, place, folder, prefix)
        np.testing.assert_array_equal(pixels(outcome), theirs, err_msg=str(one))


def test_an_adapter_for_a_unet_is_named_by_its_file(models):
    _, given, place = models("sd")
    with pytest.raises(ModelError, match=r"model\.references\.style: needs a weight_name"):
        check_fits(given.model_copy(update={"references": {"style": ReferenceWeights(source=str(place))}}))


def test_companions_never_matter_to_images_with_references_and_rows_share_batches(models):
    engine, *_ = models("sd")
    some = mixed("txt2img", "img2img")
    made_the_same_whatever_the_companions(engine, some)


def test_companions_never_matter_to_pictures_edited_with_references(models):
    """Of three rows with guidance the first has the references: [text and picture, picture, neither]."""
    engine, *_ = models("pix2pix")
    some = edited(mixed("img2img"))
    together = made_the_same_whatever_the_companions(engine, some)
    assert len({np.stack(made).tobytes() for made in together}) == len(some)


def test_rows_with_t2i_adapters_have_references_too(made, folder):
    base, place = tiny_adapters.adaptable(made("sd"), folder / "adaptable-with-references"), folder / "beside-t2i"
    net = ControlNetWeights(source=str(tiny_adapters.t2i_adapter(folder / "t2i-beside-references")))
    given = model_of(folder, base=str(base), controlnets={"canny": net}, references=adapters_of(base, place))
    check_fits(given)
    engine = Engine(given, JOB_SEED, Roots((str(folder),)))
    whole = (CANNY.model_copy(update={"start": 0.0, "end": 1.0}),)
    ways = [{"controls": whole, "references": (STYLE,)}, {"controls": whole}, {"references": (STYLE,)}, {}]
    some = [request(f"r{n}", seed=1, mode="controlnet" if "controls" in way else "txt2img", **way) for n, way in enumerate(ways)]
    together = [pixels(outcome) for outcome in render(engine, *some)]
    np.testing.assert_array_equal(together, [pixels(render(engine, one)[0]) for one in some])
    assert len({np.stack(made).tobytes() for made in together}) == len(some)
    engine.close()


def test_references_matter_by_image_by_scale_and_by_adapter(models):
    engine, *_ = models("sd")
    some = [(), (STYLE,), (STYLE.model_copy(update={"image": "a.png"}),), (STYLE.model_copy(update={"scale": 0.1}),), (FACE,)]
    made = [
        np.stack(pixels(outcome))
        for outcome in render(engine, *(request(f"r{i}", seed=1, references=one) for i, one in enumerate(some)))
    ]
    assert len({one.tobytes() for one in made}) == len(some)


def test_a_scale_of_zero_is_no_reference_and_one_of_an_engine_without_adapters(models, engine):
    wanted = request(steps=2)
    (none,) = render(engine, wanted)
    for references in ((), (STYLE.model_copy(update={"scale": 0.0}),)):
        (outcome,) = render(models("sd")[0], replace(wanted, references=references))
        np.testing.assert_array_equal(pixels(outcome), pixels(none))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scales_by_row_have_the_bits_of_one_scale(dtype):
    torch.manual_seed(0)
    share, scales = torch.randn(5, 7, 16).to(dtype), [0.3, 0.7, 1.0, 0.0, 1 / 3]
    ours = RowScales(torch.tensor(scales), share.device) * share
    assert ours.dtype == dtype
    for row, scale in enumerate(scales):
        assert torch.equal(ours[row], scale * share[row])


def test_a_picture_is_read_by_the_image_encoder_once(models):
    engine, *_ = models("sd")
    encoder = engine.model.base.image_encoder
    calls = []
    hook = encoder.register_forward_pre_hook(lambda *given: calls.append(1))
    one = STYLE.model_copy(update={"image": "mask.png"})
    render(engine, *(request(f"r{i}", references=(one,)) for i in range(3)))
    render(engine, request("again", references=(one,)))
    hook.remove()
    assert len(calls) == 1


def test_a_picture_so_long_that_it_would_fill_the_memory_fails_its_row_before_it_is_scaled(models, folder):
    # The image processor scales the shorter side up to what the encoder takes, and crops the longer one afterwards.
    Image.new("1", (1, 20_000)).save(folder / "long.png")
    engine, *_ = models("sd")
    (outcome,) = render(engine, request(references=(STYLE.model_copy(update={"image": "long.png"}),)))
    assert outcome.failure.code == "bad_image"
    assert outcome.failure.message.startswith("references.0.image: 1×20000 pixels: one side is more than 100 times the other")


def test_a_batch_is_tuned_with_a_row_that_has_references(models, folder):
    _, given, _ = models("sd")
    placed = Placed(0, request(references=(STYLE,)))
    found = tune(given, placed, JOB_SEED, Roots((str(folder),)), (1,))
    assert found.batch == 1 and found.trials[0].images_s > 0


def broken(place, name, **tensors):
    from safetensors.torch import load_file, save_file

    kept = load_file(place / "models" / "plain.safetensors")
    save_file({key: one for key, one in {**kept, **tensors}.items() if one is not None}, place / "models" / name)
    return {"style": ReferenceWeights(source=str(place), subfolder="models", weight_name=name)}


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"image_proj.proj.weight": torch.zeros(64, 7)}, "reads 7 values of an image, and the image encoder gives 12"),
        ({"ip_adapter.1.to_k_ip.weight": torch.zeros(16, 9)}, "cross_attention_dim is 9, the base's is 16"),
        (
            {"image_proj.perceiver_resampler.proj_in.weight": torch.zeros(8, 8)},
            r"reads embeddings of faces and pictures of them; set model\.references\.style\.kind to face_plus",
        ),
        ({"image_proj.proj_in.weight": torch.zeros(8, 512)}, "reads embeddings of faces; set "),
        ({"image_proj.proj.0.weight": torch.zeros(8, 8)}, r"reads embeddings of faces; set model\.references\.style\.kind to face"),
        ({"ip_adapter.1.to_k_ip.weight": torch.zeros(16)}, "cross_attention_dim is 1, the base's is 16"),
        ({"image_proj.proj.weight": torch.zeros(64)}, "reads 1 values of an image"),
        ({f"ip_adapter.{place}.to_k_ip.weight": None for place in range(1, 20)}, "is no IP-Adapter: it has no tensors named"),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_line_before_anything_is_loaded(models, tensors, says):
    _, given, place = models("sd")
    with pytest.raises(ModelError, match=rf"model\.references\.style: bad\.safetensors .*{says}"):
        check_fits(given.model_copy(update={"references": broken(place, "bad.safetensors", **tensors)}))


def test_what_is_no_image_encoder_is_one_line(models, folder):
    _, given, _ = models("sd")
    with pytest.raises(ModelError, match=r"model\.image_encoder: .*unet: is a model of no class, and adapters read images through"):
        check_fits(given.model_copy(update={"image_encoder": PartWeights(source=str(folder / "sd"), subfolder="unet")}))
    with pytest.raises(ModelError, match=r"model\.image_encoder: .*sd: has no config\.json; set model\.image_encoder"):
        check_fits(given.model_copy(update={"image_encoder": PartWeights(source=str(folder / "sd"))}))


def processor(folder, place, **config):
    """The tiny Stable Diffusion with an image processor of its own, whose files are links."""
    place.mkdir(exist_ok=True)
    for one in (folder / "sd").iterdir():
        if one.name not in ("model_index.json", "feature_extractor") and not (place / one.name).exists():
            (place / one.name).symlink_to(one)
    index = json.loads((folder / "sd" / "model_index.json").read_text())
    own = ["transformers", "CLIPImageProcessor"] if config else [None, None]
    (place / "model_index.json").write_text(json.dumps({**index, "feature_extractor": own}))
    (place / "feature_extractor").mkdir(exist_ok=True)
    (place / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(config))
    return str(place)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"crop_size": 24}, "24×24"),
        ({"crop_size": {"height": 32, "width": 48}}, "48×32"),
        ({"do_center_crop": False, "size": {"height": 16, "width": 16}, "crop_size": 32}, "16×16"),
        ({"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 32}}, None),
        ({}, None),
    ],
)
def test_a_base_whose_pictures_have_another_size_than_the_image_encoder_reads_is_one_line(models, folder, tmp_path, config, says):
    _, given, _ = models("sd")
    given = given.model_copy(update={"base": processor(folder, tmp_path / "base", **config)})
    if says is None:
        check_fits(given)
        return
    with pytest.raises(ModelError) as caught:
        check_fits(given)
    wanted = "image_encoder: reads pictures of 32×32 pixels, and the feature_extractor of "
    assert wanted in str(caught.value) and f" makes {says}; take an encoder of that size" in str(caught.value)
