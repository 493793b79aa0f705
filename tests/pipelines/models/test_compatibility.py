import json

import diffusers
import numpy as np
import pytest
import torch

from promptmill.configs.loading import load
from promptmill.configs.model import LoraWeights
from promptmill.configs.weights import PartWeights, Weights
from promptmill.manifests.images import Roots
from promptmill.pipelines.models.compatibility import check_fits
from promptmill.pipelines.models.identity import model_identity
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.rendering.loading import load_model
from promptmill.pipelines.work.errors import ModelError
from tests.pipelines import tiny
from tests.pipelines.engines import BATCH, model_of, pixels, render
from tests.pipelines.plain import JOB_SEED, MODES, request
from tests.pipelines.plain_calls import asked, loaded, pixels_of
from tests.pipelines.plain_steered import SD


def saved_lora(place, **options):
    from peft import LoraConfig, get_peft_model_state_dict

    unet = tiny.unet(**options)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False))
    diffusers.StableDiffusionPipeline.save_lora_weights(place, unet_lora_layers=get_peft_model_state_dict(unet))
    return LoraWeights(name="style", source=str(place))


def test_what_fits_passes(folder):
    check_fits(model_of(folder, loras=(saved_lora(folder / "own-lora"),)))


def test_a_controlnet_of_another_base_is_one_line_before_anything_is_loaded(folder):
    net = tiny.controlnet(folder / "large", **tiny.SDXL_UNET)
    with pytest.raises(
        ModelError, match=r"controlnets\.canny: .*large is for another base model: its cross_attention_dim is 32, .* 16"
    ):
        check_fits(model_of(folder, controlnets={"canny": Weights(source=str(net))}))
    with pytest.raises(ModelError, match="is it a ControlNet"):
        check_fits(model_of(folder, controlnets={"canny": Weights(source=str(folder / "sd"))}))


def test_a_lora_of_another_family_is_one_line_before_anything_is_loaded(folder):
    lora = saved_lora(folder / "large-lora", cross=32)
    with pytest.raises(ModelError, match="is for another family of models: it adapts text embeddings of 32 values"):
        check_fits(model_of(folder, loras=(lora,)))


def test_a_model_without_a_unet_is_not_looked_at(folder, made):
    check_fits(model_of(folder, base=str(made("flux")), controlnets={}))


def saved_config(place, kind, **more):
    place.mkdir()
    (place / "config.json").write_text(
        json.dumps({"_class_name": kind, "cross_attention_dim": 16, "block_out_channels": [8, 16], **more})
    )
    return Weights(source=str(place))


def test_a_part_of_a_class_that_is_not_served_is_one_line_before_anything_is_loaded(folder, tmp_path):
    union = saved_config(tmp_path / "union", "ControlNetUnionModel")
    with pytest.raises(ModelError, match=r"controlnets\.canny: .*union is a ControlNetUnionModel, which is not served"):
        check_fits(model_of(folder, controlnets={"canny": union}))
    masked = saved_config(tmp_path / "masked", "ControlNetModel", extra_conditioning_channels=1)
    with pytest.raises(
        ModelError, match=r"canny: .*masked repaints by a mask of its own, for which StableDiffusionPipeline has no pipeline"
    ):
        check_fits(model_of(folder, controlnets={"canny": masked}))
    with pytest.raises(ModelError, match=r"model\.vae: .*unet is a UNet2DConditionModel, which is no VAE"):
        check_fits(model_of(folder, vae=saved_config(tmp_path / "unet", "UNet2DConditionModel")))


KINDS = {mode: f"StableDiffusion{part}Pipeline" for mode, part in (("txt2img", ""), ("img2img", "Img2Img"), ("inpaint", "Inpaint"))}


def tiny_vae():
    widths = {f"{side}_block_out_channels": (4, 4, 4, 4) for side in ("encoder", "decoder")}
    return diffusers.AutoencoderTiny(**widths, num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1))


def asymmetric_vae():
    """A VAE whose decoder is wider than its encoder, and is told what a mask leaves."""
    widths = {"down_block_out_channels": (8, 8, 8, 8), "up_block_out_channels": (16, 16, 16, 16)}
    types = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return diffusers.AsymmetricAutoencoderKL(**widths, **types, norm_num_groups=8, sample_size=64)


@pytest.mark.parametrize("make", [tiny_vae, asymmetric_vae])
def test_a_vae_is_loaded_as_the_class_that_its_config_names_and_makes_the_images_of_plain_diffusers(folder, tmp_path, make):
    torch.manual_seed(7)
    small = make().eval()
    small.save_pretrained(tmp_path / "small")
    model = model_of(folder, vae=Weights(source=str(tmp_path / "small")))
    check_fits(model)
    engine = Engine(model, JOB_SEED, Roots((str(folder),)))
    vae = engine.model.base.vae
    assert type(vae) is type(small)
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in vae.state_dict().items())
    some = [
        request(mode, **{"mode": mode, **MODES[mode]}, steps=2 + number, scheduler="euler") for number, mode in enumerate(KINDS)
    ]
    for one, outcome in zip(some, render(engine, *some), strict=True):
        count = SD.fills(one, BATCH)
        own = type(small).from_pretrained(tmp_path / "small")
        pipeline, _ = loaded(KINDS[one.mode], folder / "sd", one, BATCH, **{**SD.parts, "vae": own})
        theirs = pixels_of(pipeline(**asked(SD, one, count, folder)).images, one, folder)[: one.candidates]
        np.testing.assert_array_equal(pixels(outcome), theirs, err_msg=one.mode)
    engine.close()


def test_a_vae_of_a_class_that_diffusers_lacks_is_one_line(folder, tmp_path):
    weights = saved_config(tmp_path / "odd", "AutoencoderOfTomorrow")
    with pytest.raises(ModelError, match=r"odd: is a AutoencoderOfTomorrow, which diffusers [0-9.]+ does not have"):
        Engine(model_of(folder, vae=weights), JOB_SEED, Roots((str(folder),)))


def other_unet(**options):
    """A UNet as the base's, with other weights."""
    unet = tiny.unet(**options)
    torch.manual_seed(11)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return unet


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """The same denoiser in a folder, in a folder of a whole model, and in one file."""
    place = tmp_path_factory.mktemp("denoisers")
    other_unet().save_pretrained(place / "alone")
    other_unet().save_pretrained(place / "whole" / "unet")
    return {
        "a folder": PartWeights(source=str(place / "alone")),
        "a folder of a model": PartWeights(source=str(place / "whole"), subfolder="unet"),
        "a file": PartWeights(source=str(place / "alone" / "diffusion_pytorch_model.safetensors")),
        "a file in a folder": PartWeights(source=str(place / "alone"), weight_name="diffusion_pytorch_model.safetensors"),
    }


@pytest.mark.parametrize("form", ["a folder", "a folder of a model", "a file", "a file in a folder"])
def test_a_denoiser_takes_the_place_of_the_bases_and_all_else_stays(folder, others, form):
    model = model_of(folder, denoiser=others[form], controlnets={})
    check_fits(model)
    loaded, wanted = load_model(model), other_unet().state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in loaded.denoiser.state_dict().items())
    assert loaded.denoiser.config.cross_attention_dim == 16
    plain = load_model(model_of(folder, controlnets={})).base
    for name in ("vae", "text_encoder"):
        own = getattr(plain, name).state_dict()
        assert all(torch.equal(value, own[key]) for key, value in getattr(loaded.base, name).state_dict().items())


def test_a_denoiser_is_told_by_its_content_and_changes_no_plan_that_has_none(folder, others):
    config = load("embedded", [])
    identities = {
        form: model_identity(model_of(folder, denoiser=one), config.ranking)["model.denoiser"] for form, one in others.items()
    }
    assert identities["a folder"] == identities["a folder of a model"] != identities["a file"] == identities["a file in a folder"]
    assert "denoiser" not in model_of(folder).model_dump()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"source": "whole"}, "has no config.json; is it a unet in a subfolder"),
        ({"source": "whole", "subfolder": "transformer"}, "has no transformer"),
        (
            {"source": "flux", "subfolder": "transformer"},
            "is a FluxTransformer2DModel, and the unet of .* is a UNet",
        ),
        ({"source": "alone", "weight_name": "x.safetensors"}, "has no x.safetensors"),
    ],
)
def test_a_denoiser_that_does_not_fit_is_one_line_before_anything_is_loaded(folder, made, others, given, says):
    places = {"whole": others["a folder of a model"].source, "alone": others["a folder"].source, "flux": str(made("flux"))}
    given = {**given, "source": places[given["source"]]}
    with pytest.raises(ModelError, match=says) as caught:
        check_fits(model_of(folder, denoiser=PartWeights(**given)))
    assert "\n" not in str(caught.value)


def test_a_file_of_another_denoiser_is_one_line(folder, tmp_path):
    other_unet(cross=32).save_pretrained(tmp_path / "wide")
    weights = PartWeights(source=str(tmp_path / "wide" / "diffusion_pytorch_model.safetensors"))
    with pytest.raises(ModelError, match=r"model\.denoiser: .* cannot be loaded: ") as caught:
        load_model(model_of(folder, denoiser=weights, controlnets={}))
    assert "\n" not in str(caught.value)
