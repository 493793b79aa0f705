import diffusers
import pytest

from configs.schema import LoraWeights, Weights
from pipelines.errors import ModelError
from pipelines.fits import check_fits
from tests.pipelines import tiny
from tests.pipelines.test_engine import folder, model_of  # noqa: F401 (a fixture)


def saved_lora(place, **options):
    from peft import LoraConfig, get_peft_model_state_dict

    unet = tiny.unet(**options)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False))
    diffusers.StableDiffusionPipeline.save_lora_weights(place, unet_lora_layers=get_peft_model_state_dict(unet))
    return LoraWeights(name="style", source=str(place))


def test_what_fits_passes(folder):  # noqa: F811
    check_fits(model_of(folder, loras=(saved_lora(folder / "own-lora"),)))


def test_a_controlnet_of_another_base_is_one_line_before_anything_is_loaded(folder):  # noqa: F811
    net = tiny.controlnet(folder / "large", **tiny.SDXL_UNET)
    with pytest.raises(
        ModelError, match=r"controlnets\.canny: .*large is for another base model: its cross_attention_dim is 32, .* 16"
    ):
        check_fits(model_of(folder, controlnets={"canny": Weights(source=str(net))}))
    with pytest.raises(ModelError, match="is it a ControlNet"):
        check_fits(model_of(folder, controlnets={"canny": Weights(source=str(folder / "sd"))}))


def test_a_lora_of_another_family_is_one_line_before_anything_is_loaded(folder):  # noqa: F811
    lora = saved_lora(folder / "large-lora", cross=32)
    with pytest.raises(ModelError, match="is for another family of models: it adapts text embeddings of 32 values"):
        check_fits(model_of(folder, loras=(lora,)))


def test_a_model_without_a_unet_is_not_looked_at(folder):  # noqa: F811
    check_fits(model_of(folder, base=str(tiny.flux(folder / "flux")), controlnets={}))
