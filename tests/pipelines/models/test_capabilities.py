"""On config files alone: no weights lie anywhere here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers.pipelines import auto_pipeline

from promptmill.configs.model import Model
from promptmill.configs.schedulers import SCHEDULERS
from promptmill.configs.weights import PartWeights, Weights
from promptmill.manifests.steering import Reading
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.models.pipeline_classes import modes_of, tables
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.evaluations import evaluations
from tests.pipelines.plain import request

VAE = {"block_out_channels": [128, 256, 512, 512], "latent_channels": 4}
KL = ["diffusers", "AutoencoderKL"]


@pytest.fixture
def saved(tmp_path):
    """A model's folder with its configs and nothing else."""

    def save(name, index=None, vae=VAE, unet=None, transformer=None, scheduler=None, **options):
        parts = {"_class_name": name, "vae": KL, **({} if unet is None else {"unet": ["diffusers", "UNet2DConditionModel"]})}
        if transformer is not None:
            parts["transformer"] = ["diffusers", "Transformer2DModel"]
        files = {"model_index.json": {**parts, **(index or {})}, "vae/config.json": vae, "unet/config.json": unet}
        files |= {"transformer/config.json": transformer, "scheduler/scheduler_config.json": scheduler}
        for file, content in files.items():
            if content is not None:
                (tmp_path / file).parent.mkdir(exist_ok=True)
                (tmp_path / file).write_text(json.dumps(content))
        return Model(base=str(tmp_path), **options)

    return save


NET = {"canny": Weights(source="./canny")}


@pytest.mark.parametrize(
    ("name", "unet", "nets", "modes"),
    [
        ("StableDiffusionPipeline", {"in_channels": 4}, {}, ("txt2img", "img2img", "inpaint")),
        (
            "StableDiffusionXLPipeline",
            {"in_channels": 4},
            NET,
            ("txt2img", "img2img", "inpaint", "controlnet", "controlnet_img2img", "controlnet_inpaint"),
        ),
        ("StableDiffusionInpaintPipeline", {"in_channels": 9}, {}, ("inpaint",)),
        ("StableDiffusionInpaintPipeline", {"in_channels": 9}, NET, ("inpaint", "controlnet_inpaint")),
        ("LatentConsistencyModelPipeline", {"in_channels": 4}, {}, ("txt2img", "img2img")),
        ("FluxPipeline", None, {}, ("txt2img", "img2img", "inpaint")),
        ("Flux2KleinPipeline", None, {}, ("txt2img", "img2img", "inpaint")),
        ("PixArtSigmaPipeline", None, {}, ("txt2img",)),
        ("FluxFillPipeline", None, {}, ("inpaint",)),
        ("FluxKontextPipeline", None, {}, ("txt2img", "img2img", "inpaint")),
        ("ChromaPipeline", None, {}, ("txt2img", "img2img")),
        ("Flux2Pipeline", None, {}, ("txt2img", "img2img")),
    ],
)
def test_the_modes_are_those_that_diffusers_has_pipelines_for(saved, name, unet, nets, modes):
    assert read_facts(saved(name, unet=unet, controlnets=nets)).modes == modes


def test_the_table_is_diffusers_own():
    own = {
        "txt2img": auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
        "img2img": auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
        "inpaint": auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING,
    }
    for mode, classes in tables().items():
        read = {family: name for family, name in classes.items() if not family.startswith("kolors")}
        said = {family: kind.__name__ for family, kind in own[mode].items() if not family.startswith("kolors")}
        assert read == said
    # Entered one by one, where sentencepiece is installed.
    assert modes_of("KolorsPipeline") == ("txt2img", "img2img")


def test_reading_them_needs_no_torch(saved):
    model = saved("FluxPipeline")
    code = (
        "import sys\n"
        "from promptmill.configs.model import Model\n"
        "from promptmill.pipelines.models.capabilities import read_facts\n"
        f"read_facts(Model(base={model.base!r}))\n"
        "assert not {'torch', 'diffusers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("vae", ["left out", None, [None, None]])
def test_a_model_without_its_vae_is_refused_in_one_line(saved, vae):
    model = saved("StableDiffusionPipeline", index={"vae": vae})
    if vae == "left out":
        (Path(model.base) / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ModelError) as caught:
        read_facts(model)
    assert str(caught.value) == f"{model.base}: is of a family (StableDiffusionPipeline) that is not supported yet: it has no vae"


@pytest.mark.parametrize("name", ["WanPipeline", "StableAudioPipeline", "SomebodysPipeline"])
def test_what_makes_no_images_is_refused(saved, name):
    with pytest.raises(ModelError, match=rf"is of a family \({name}\) that is not supported: diffusers has no pipeline that makes"):
        read_facts(saved(name))


def test_controlnets_are_for_families_that_diffusers_has_them_for(saved):
    with pytest.raises(ModelError, match=r"model\.controlnets: there are no ControlNets for AuraFlowPipeline"):
        read_facts(saved("AuraFlowPipeline", controlnets=NET))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("StableDiffusionGLIGENTextImagePipeline", "draws pictures in boxes beside phrases, and the boxes of rows have phrases"),
        (
            "StableDiffusionXLAdapterPipeline",
            "set _class_name to StableDiffusionXLPipeline in model_index.json, and name the control",
        ),
        ("StableDiffusionControlNetImg2ImgPipeline", "was saved with its ControlNet; give the base model as model.base"),
        ("StableDiffusion3ControlNetPipeline", "was saved with its ControlNet; give the base model as model.base"),
    ],
)
def test_a_pipeline_that_is_steered_by_itself_is_refused_by_its_name_with_what_to_do(saved, name, says):
    with pytest.raises(ModelError) as caught:
        read_facts(saved(name, unet={"in_channels": 4}))
    assert says in str(caught.value)


def test_references_are_for_families_that_promptmill_has_adapters_for(saved):
    references = {"style": PartWeights(source="./a", weight_name="b.safetensors")}
    with pytest.raises(
        ModelError, match=r"model\.references: AuraFlowPipeline takes none; IP-Adapters are for Stable Diffusion, SDXL, Ins"
    ):
        read_facts(saved("AuraFlowPipeline", references=references))
    with pytest.raises(
        ModelError, match=r"model\.references: AltDiffusionPipeline hands every adapter the tokens of a picture, and rais"
    ):
        read_facts(saved("AltDiffusionPipeline", references=references))
    assert read_facts(saved("StableDiffusionXLPipeline", unet={"in_channels": 4}, references=references)).image_prompts


def test_references_of_transformers_are_for_what_diffusers_pipelines_take(saved):
    adapted = {"transformer": {"in_channels": 16}, "references": {"style": PartWeights(source="./a", weight_name="b.safetensors")}}
    assert read_facts(saved("StableDiffusion3Pipeline", **adapted)).reading == Reading(masks=False, several=False)
    flux = read_facts(saved("FluxPipeline", **adapted))
    assert flux.reading == Reading(masks=False, modes=("txt2img", "img2img", "inpaint"))
    with pytest.raises(ModelError, match="no pipeline of FluxFillPipeline takes IP-Adapters; Redux is for it"):
        read_facts(saved("FluxFillPipeline", **adapted))
    assert read_facts(saved("FluxKontextPipeline", **adapted)).reading.modes == ("txt2img", "img2img", "inpaint")
    assert read_facts(saved("ChromaPipeline", **adapted)).reading.modes == ("txt2img", "img2img")
    redux = {**adapted, "references": {"redux": PartWeights(source="./r")}}
    for name in ("FluxKontextPipeline", "ChromaPipeline"):
        with pytest.raises(ModelError, match=rf"{name} takes IP-Adapters, each with a weight_name; Redux is for Flux"):
            read_facts(saved(name, **redux))
    assert read_facts(saved("FluxFillPipeline", **redux)).reading == Reading(masks=False)


DC = {"encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024]}


@pytest.mark.parametrize(
    ("name", "vae", "unet", "transformer", "multiple"),
    [
        ("StableDiffusionPipeline", VAE, {"in_channels": 4}, None, 8),
        ("StableDiffusionPipeline", {"block_out_channels": [8]}, {}, None, 8),
        # The pipelines of Flux and Chroma cut latents two by two before their transformers see them.
        ("FluxPipeline", VAE, None, {"patch_size": 1}, 16),
        ("FluxFillPipeline", VAE, None, {"patch_size": 1}, 16),
        ("FluxKontextPipeline", VAE, None, {"patch_size": 1}, 16),
        ("Flux2KleinPipeline", VAE, None, {"patch_size": 1}, 16),
        ("Flux2Pipeline", VAE, None, {"patch_size": 1}, 16),
        ("OvisImagePipeline", VAE, None, {"patch_size": 1}, 16),
        ("ChromaPipeline", VAE, None, {"patch_size": 1}, 16),
        ("StableDiffusion3Pipeline", VAE, None, {"patch_size": 2}, 16),
        ("StableDiffusion3Pipeline", VAE, None, {"patch_size": 4}, 32),
        ("SanaPipeline", DC, None, {"patch_size": 1}, 32),
        ("SanaPipeline", DC, None, {"patch_size": [2, 2]}, 64),
        ("QwenImagePipeline", {"base_dim": 96, "dim_mult": [1, 2, 4, 4]}, None, {"patch_size": 2}, 16),
        ("ZImagePipeline", VAE, None, {"all_patch_size": [2]}, 16),
        ("PixArtSigmaPipeline", VAE, None, {"patch_size": "two"}, 16),
        ("FluxPipeline", {"block_out_channels": 3, "latent_channels": "four"}, None, None, 16),
    ],
)
def test_sides_are_multiples_of_what_the_vae_and_the_patches_make_of_them(saved, name, vae, unet, transformer, multiple):
    assert read_facts(saved(name, vae=vae, unet=unet, transformer=transformer)).multiple == multiple


@pytest.mark.parametrize("name", ["StableDiffusionPAGPipeline", "SanaPAGPipeline", "StableDiffusionXLPAGInpaintPipeline"])
def test_perturbed_attention_is_refused_with_the_class_that_renders_the_same_weights(saved, name):
    with pytest.raises(
        ModelError, match=rf"{name} splits its batch by position, so .*; set _class_name to {name.replace('PAG', '')} in"
    ):
        read_facts(saved(name, unet={"in_channels": 4}))


@pytest.mark.parametrize("scheduler", [None, {}, [], ["diffusers"], [None, None], "x"])
def test_odd_entries_of_an_index_do_not_crash(saved, scheduler):
    facts = read_facts(saved("FluxPipeline", index={"scheduler": scheduler, "safety_checker": scheduler}))
    assert len(facts.schedulers) > 1 and not facts.safety_checker


@pytest.mark.parametrize(
    ("name", "scheduler", "config", "fit"),
    [
        ("FluxPipeline", "FlowMatchEulerDiscreteScheduler", {}, ("euler", "model")),
        ("StableDiffusion3Pipeline", "FlowMatchEulerDiscreteScheduler", {}, ("euler", "heun", "model")),
        ("StableDiffusion3Pipeline", "FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, ("euler", "model")),
        (
            "SanaPipeline",
            "DPMSolverMultistepScheduler",
            {"prediction_type": "flow_prediction"},
            ("euler", "heun", "dpmpp_2m", "unipc", "model"),
        ),
        ("StableDiffusionXLPipeline", "EDMDPMSolverMultistepScheduler", {}, ("euler", "dpmpp_2m", "dpmpp_2m_sde", "model")),
        ("SanaSprintPipeline", "SCMScheduler", {}, ("model",)),
        ("PixArtSigmaPipeline", "DPMSolverMultistepScheduler", {"prediction_type": "epsilon"}, (*SCHEDULERS, "model")),
    ],
)
def test_schedulers_are_those_of_the_noise_that_the_model_was_trained_with(saved, name, scheduler, config, fit):
    model = saved(name, index={"scheduler": ["diffusers", scheduler]}, scheduler={"_class_name": scheduler, **config})
    assert read_facts(model).schedulers == fit


@pytest.mark.parametrize(
    ("name", "parts", "ignored"),
    [
        ("FluxPipeline", {"transformer": {"guidance_embeds": True}}, ("negative_prompt",)),
        ("FluxPipeline", {"transformer": {"guidance_embeds": False}}, ("negative_prompt", "guidance_scale")),
        ("FluxKontextPipeline", {"transformer": {"guidance_embeds": True}}, ("negative_prompt", "strength")),
        ("FluxKontextPipeline", {"transformer": {"guidance_embeds": False}}, ("negative_prompt", "guidance_scale", "strength")),
        ("SanaSprintPipeline", {"transformer": {"guidance_embeds": False}}, ("negative_prompt", "guidance_scale")),
        ("LatentConsistencyModelPipeline", {"unet": {"time_cond_proj_dim": None}}, ("negative_prompt",)),
        ("Flux2Pipeline", {"transformer": {"guidance_embeds": False}}, ("negative_prompt", "guidance_scale", "strength")),
        ("Flux2KleinPipeline", {"index": {"is_distilled": False}}, ("negative_prompt", "strength")),
        ("Flux2KleinPipeline", {"index": {"is_distilled": True}}, ("negative_prompt", "guidance_scale", "strength")),
        ("StableDiffusionPipeline", {"unet": {"time_cond_proj_dim": 256}}, ("negative_prompt",)),
        ("StableDiffusionPipeline", {"unet": {"time_cond_proj_dim": None}}, ()),
        ("QwenImagePipeline", {}, ()),
    ],
)
def test_columns_that_a_model_ignores_are_known_from_its_configs(saved, name, parts, ignored):
    assert read_facts(saved(name, **parts)).ignored == ignored


def test_the_least_guidance_scale_that_a_family_takes_is_known(saved):
    assert [read_facts(saved(name)).least_guidance for name in ("PRXPipeline", "StableDiffusionPipeline")] == [1.0, 0.0]


HEUN, EULER = ({"_class_name": f"FlowMatch{name}DiscreteScheduler"} for name in ("Heun", "Euler"))


@pytest.mark.parametrize(
    ("name", "parts", "scheduler", "scale", "counted"),
    [
        ("StableDiffusionPipeline", {"unet": {"time_cond_proj_dim": None}}, "ddim", 7.0, 2 * 10),
        ("StableDiffusionPipeline", {"unet": {"time_cond_proj_dim": None}}, "ddim", 1.0, 10),
        ("StableDiffusionPipeline", {"unet": {"time_cond_proj_dim": 256}}, "lcm", 7.0, 10),
        ("FluxPipeline", {"transformer": {"guidance_embeds": True}}, "euler", 3.5, 10),
        ("Flux2KleinPipeline", {"index": {"is_distilled": False}}, "euler", 4.0, 2 * 10),
        ("Flux2KleinPipeline", {"index": {"is_distilled": True}}, "euler", 4.0, 10),
        ("QwenImagePipeline", {}, "euler", 4.0, 2 * 10),
        ("ZImagePipeline", {}, "euler", 0.5, 2 * 10),
        ("ZImagePipeline", {}, "euler", 0.0, 10),
        ("StableDiffusion3Pipeline", {"scheduler": HEUN}, "model", 4.0, 2 * 19),
        ("StableDiffusion3Pipeline", {"scheduler": EULER}, "heun", 4.0, 2 * 19),
        ("StableDiffusion3Pipeline", {"scheduler": EULER}, "model", 4.0, 2 * 10),
    ],
)
def test_an_evaluation_is_counted_as_each_family_and_scheduler_have_it(saved, name, parts, scheduler, scale, counted):
    own = parts.get("scheduler", {"_class_name": "DDIMScheduler"})
    index = {**parts.get("index", {}), "scheduler": ["diffusers", own["_class_name"]]}
    counting = read_facts(saved(name, **{**parts, "index": index, "scheduler": own})).counting
    assert evaluations(request(steps=10, scheduler=scheduler, guidance_scale=scale), counting) == counted


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("FluxControlImg2ImgPipeline", "needs a control image beside the picture of every row"),
        ("GlmImagePipeline", "has a language model draw the picture's tokens from torch's global generator"),
        ("Kandinsky5T2VPipeline", "makes videos"),
        ("HunyuanImageRefinerPipeline", "takes the latents of another pipeline"),
        ("NucleusMoEImagePipeline", "adds up what its experts make"),
        ("QwenImageLayeredPipeline", "makes several pictures of one"),
        ("JoyImageEditPipeline", "reads its language model by a hook"),
        ("StableCascadeCombinedPipeline", "is made of two models: name the decoder's as model.base"),
        ("StableDiffusionControlNetPipeline", "was saved with its ControlNet; give the base model as model.base"),
        ("Flux3ModularPipeline", "is made of modular blocks"),
    ],
)
def test_what_cannot_be_served_yet_is_refused_with_its_reason(saved, name, reason):
    with pytest.raises(ModelError, match=f"{name} {reason}"):
        read_facts(saved(name))


@pytest.mark.parametrize(("own", "fits"), [("DDIMScheduler", True), ("DDPMScheduler", False)])
def test_where_a_pipeline_gives_no_generator_an_own_scheduler_that_draws_noise_does_not_fit(saved, own, fits):
    index = {"scheduler": ["diffusers", own]}
    schedulers = read_facts(saved("DiTPipeline", index=index, scheduler={"_class_name": own})).schedulers
    assert ("model" in schedulers) == fits and "ddim" in schedulers


@pytest.mark.parametrize(("channels", "modes"), [(16, ("txt2img", "img2img", "inpaint")), (4, ("txt2img", "img2img"))])
def test_an_sd3_without_its_t5_inpaints_where_diffusers_takes_its_channels(saved, channels, modes):
    left_out = {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    model = saved("StableDiffusion3Pipeline", left_out, transformer={"in_channels": channels})
    facts = read_facts(model)
    assert facts.left_out == ("text_encoder_3", "tokenizer_3") and facts.modes == modes


def test_sdxls_refiner_begins_with_a_picture_and_has_no_first_text_encoder(saved):
    index = {"requires_aesthetics_score": True, "text_encoder": [None, None], "tokenizer": [None, None]}
    facts = read_facts(saved("StableDiffusionXLImg2ImgPipeline", index, unet={"in_channels": 4}))
    assert facts.modes == ("img2img", "inpaint") and facts.left_out == ("text_encoder", "tokenizer")


@pytest.mark.parametrize(
    ("name", "channels", "levels", "multiple", "ignored", "further"),
    [
        ("StableDiffusionInstructPix2PixPipeline", 8, 4, 8, ("strength",), ("image_guidance_scale",)),
        ("StableDiffusionXLInstructPix2PixPipeline", 8, 4, 8, ("strength",), ("image_guidance_scale",)),
        ("StableDiffusionDepth2ImgPipeline", 5, 4, 8, (), ()),
        # Of a small picture, whose sides the VAE divides, each side becomes four times, or twice, as long.
        ("StableDiffusionUpscalePipeline", 7, 3, 16, ("strength",), ("noise_level",)),
        ("StableDiffusionLatentUpscalePipeline", 8, 4, 16, ("strength",), ()),
    ],
)
def test_models_that_edit_or_enlarge_a_picture_take_rows_with_one(saved, name, channels, levels, multiple, ignored, further):
    vae = {"block_out_channels": [8] * levels, "latent_channels": 4}
    facts = read_facts(saved(name, {"max_noise_level": 300}, vae=vae, unet={"in_channels": channels}))
    assert (facts.modes, facts.multiple, facts.ignored, facts.further) == (("img2img",), multiple, ignored, further)
    assert facts.most_noise == 300


@pytest.mark.parametrize(("name", "most"), [("StableDiffusionUpscalePipeline", 350), ("StableUnCLIPImg2ImgPipeline", 999)])
def test_where_a_model_does_not_say_how_much_noise_it_takes_the_pipeline_does(saved, name, most):
    facts = read_facts(saved(name, unet={"in_channels": 4}))
    assert (facts.further, facts.most_noise) == (("noise_level",), most)


def test_the_latent_upscalers_projection_is_of_the_text_and_not_of_the_guidance_scale(saved):
    model = saved("StableDiffusionLatentUpscalePipeline", unet={"in_channels": 8, "time_cond_proj_dim": 896})
    assert read_facts(model).ignored == ("strength",)


HIDREAM = {part: ["transformers", "Any"] for part in ("text_encoder_4", "tokenizer_4")}


@pytest.mark.parametrize("left_out", HIDREAM)
def test_a_part_that_repositories_leave_out_is_named_with_the_model_that_goes_there(saved, left_out):
    model = saved("HiDreamImagePipeline", HIDREAM | {left_out: [None, None]}, transformer={})
    with pytest.raises(ModelError, match=rf"has no {left_out}; add that of Llama 3\.1 8B Instruct"):
        read_facts(model)


def test_the_largest_image_is_that_which_the_denoiser_has_places_for(saved):
    facts = read_facts(saved("HiDreamImagePipeline", HIDREAM, transformer={"patch_size": 2, "max_resolution": [128, 128]}))
    assert (facts.most_pixels, facts.multiple) == (1024**2, 16)
    assert read_facts(saved("FluxPipeline", transformer={"max_resolution": [128, 128]})).most_pixels is None


def test_kandinsky_5_renders_its_own_sizes(saved):
    facts = read_facts(saved("Kandinsky5T2IPipeline", transformer={"patch_size": [1, 2, 2]}))
    assert len(facts.sizes) == 7 and (768, 1280) in facts.sizes and facts.multiple == 16


def test_a_model_that_goes_by_a_schedule_of_its_own_is_refused(saved):
    assert read_facts(saved("QwenImage21Pipeline", {"sample_sigmas": None}, transformer={"patch_size": 1})).multiple == 8 * 2
    with pytest.raises(ModelError, match="brings a schedule of its own"):
        read_facts(saved("QwenImage21Pipeline", {"sample_sigmas": [1.0, 0.5]}, transformer={}))
