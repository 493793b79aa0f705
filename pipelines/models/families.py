"""Lists the families of models: one entry a family, by what the names of its pipeline classes begin with."""

from typing import Any

from promptmill.configs.parameters import MAX_LIST
from promptmill.manifests.rules import Repainting
from promptmill.pipelines.models.family import Family
from promptmill.pipelines.models.family_sizes import (
    a_million_pixels,
    about_a_million_pixels,
    own_side,
    pixels,
    side,
    staged_multiple,
)
from promptmill.pipelines.work.evaluations import GUIDED_ALWAYS

BY_SCALED_NOISE = ("euler", "model")  # diffusers' inpainting has the scheduler scale noise, which other solvers of flows cannot
KANDINSKY5 = ((1024, 1024), (640, 1408), (1408, 640), (768, 1280), (1280, 768), (896, 1152), (1152, 896))
OF_PRIORS = ("prior_steps", "prior_guidance_scale")
ALL_SOLVERS = ("euler", "heun", "dpmpp_2m", "unipc")
ANY_NUMBER = 1 + MAX_LIST  # of pictures: as many as a row can name
# Pipelines that take a width for the height and a height for the width.
TURNED = frozenset({"KandinskyImg2ImgPipeline", "KandinskyV22Img2ImgPipeline"})


def no_control_modes(request: Any) -> list[None] | None:
    """Return the modes of Flux's ControlNets that have none; img2img and inpainting want a list of them where there are several."""
    return [None] * len(request.controls) if len(request.controls) > 1 else None


# The UNet's noise comes with a variance, which one scheduler takes.
_KANDINSKY: dict[str, Any] = {
    "solvers": ("ddpm",),
    "further": OF_PRIORS,
    "least_prior_steps": 2,
    "output": "np",
    "signed": True,
    "whole_pictures": True,
    "masked": True,
    "negative_too": True,
    "multiple_by": lambda decoder, prior, factor: factor**2,
}
_FLUX: dict[str, Any] = {
    "steps_left": "up",
    "rows": 1,
    "embedded": True,
    "negative": False,
    "patch": 2,
    "sized": True,
    "controlnet": "FluxControlNetModel",
    "control_modes": "num_mode",
    "image_prompts": "flux",
    "redux": "FluxPriorReduxPipeline",
    "always": {"control_mode": no_control_modes},
}
_OF_NOTHING: dict[str, Any] = {
    "rows": 1,
    "guidance": None,
    "negative": False,
    "strength": False,
    "prompted": False,
    "fixed": True,
    "latent": False,
}
# The language model reads the picture that is edited, scaled to the pixels that it was trained with.
_QWEN_EDIT: dict[str, Any] = {
    "rows": 1,
    "guidance": "true_cfg_scale",
    "empty_negative": True,
    "strength": False,
    "solvers": ("euler", "unipc"),
    "sized": True,
    "single": True,
    "steps_left": "up",
}

# The picture lies beside the image, in a latent that is twice as wide.
_DREAMLITE: dict[str, Any] = {
    "strength": False,
    "solvers": ("euler", "unipc"),
    "sized": True,
    "single": True,
    "bare_text": True,
    "multiple_by": lambda index, prior, factor: 2 * factor,
}

# By what the names of the family's pipeline classes begin with; of several that fit, the longest.
FAMILIES: dict[str, Family] = {
    "AltDiffusion": Family(moved="alt_diffusion"),
    "AuraFlow": Family(solvers=ALL_SOLVERS),
    # Texts that captions ask for are drawn, and read as pictures.
    "BriaFibo2": Family(rows=1, strength=False, patch=2, sized=True, solvers=("euler", "unipc"), single=True, pictures=5),
    # Pictures that are edited are encoded at their own sizes, and their tokens tell which picture they are of by a place in time.
    "BriaFiboEdit": Family(
        strength=False,
        patch=2,
        sized=True,
        solvers=("euler", "unipc"),
        single=True,
        pictures=ANY_NUMBER,
        prompt_key="edit_instruction",
    ),
    "BriaFiboPipeline": Family(patch=2, sized=True, prompts_apart=True, solvers=("euler", "unipc")),
    "BriaPipeline": Family(patch=2, sized=True),
    "Chroma": Family(rows=1, steps_left="up", patch=2, sized=True, image_prompts="flux"),
    "CogView3": Family(),
    "ConsistencyModel": Family(
        rows=1,
        guidance=None,
        negative=False,
        strength=False,
        prompted=False,
        classes="num_class_embeds",
        fixed=True,
        latent=False,
    ),
    "DDIM": Family(solvers=("ddim",), **_OF_NOTHING),
    "DDPM": Family(solvers=("ddpm", "ddim"), **_OF_NOTHING),
    # The pipeline takes a step from what a scheduler has scaled.
    "DiT": Family(
        drawing=False,
        solvers=("ddim", "dpmpp_2m", "unipc"),
        negative=False,
        strength=False,
        prompted=False,
        classes="num_embeds_ada_norm",
        fixed=True,
    ),
    "CogView4": Family(rows=1, prompts_apart=True, sized=True),
    "CogView4Control": Family(rows=1, prompts_apart=True, sized=True, strength=False, picture="control_image", signed=True),
    # Its rewriting of prompts would draw from torch's global generator.
    "ErnieImage": Family(prompts_apart=True, patch=2, always={"use_pe": False}),
    "Flux": Family(further=("true_cfg_scale",), true_cfg=("txt2img", "img2img", "inpaint", "controlnet"), weighting="t5", **_FLUX),
    "Flux2": Family(
        sized=True,
        rows=1,
        embedded=True,
        negative=False,
        strength=False,
        patch=2,
        solvers=("euler", "unipc"),
        references=True,
        pictures=ANY_NUMBER,
    ),
    # Inpainting makes a larger picture smaller.
    "Flux2Klein": Family(
        sized=True,
        rows=1,
        negative=False,
        strength=False,
        steps_left="up",
        patch=2,
        solvers=("euler", "unipc"),
        references=True,
        pictures=ANY_NUMBER,
        repainting=Repainting(BY_SCALED_NOISE, strength=True, most_pixels=1024 * 1024),
    ),
    "FluxControlPipeline": Family(
        rows=1,
        embedded=True,
        negative=False,
        strength=False,
        patch=2,
        solvers=("euler", "unipc"),
        sized=True,
        picture="control_image",
        signed=True,
    ),
    "FluxFill": Family(**_FLUX),
    "FluxKontext": Family(
        further=("true_cfg_scale",),
        true_cfg=("txt2img", "img2img", "inpaint"),
        image_prompts="flux",
        rows=1,
        embedded=True,
        negative=False,
        strength=False,
        patch=2,
        solvers=("euler", "unipc"),
        sized=True,
        steps_left="up",
        repainting=Repainting(BY_SCALED_NOISE, strength=True),
        always={"_auto_resize": False, "max_area": pixels},
    ),
    # Each step has guidance, whatever the scales: by the text, and by the picture where there is one.
    "DreamLite": Family(
        rows=3,
        unguided=GUIDED_ALWAYS,
        further=("image_guidance_scale",),
        **_DREAMLITE,
    ),
    "DreamLiteMobile": Family(rows=1, guidance=None, negative=False, **_DREAMLITE),
    "HunyuanDiT": Family(always={"use_resolution_binning": False}, controlnet="HunyuanDiT2DControlNetModel", timed_controls=False),
    # The pipeline scales each size to a square's pixels, whose side is an attribute of the pipeline.
    "HiDreamImage": Family(
        sized=True,
        solvers=("euler", "unipc"),
        second=("encoder_hidden_states_llama3",),
        experts="MOEFeedForwardSwiGLU",
        seeds_steps=True,
        beside=dict.fromkeys(("text_encoder_4", "tokenizer_4"), "Llama 3.1 8B Instruct"),
        most_pixels="max_resolution",
        attributes={"default_sample_size": own_side},
    ),
    # Of texts in quotes one call has all or none: they are read by letters, and another guider steers what has them.
    "HunyuanImage": Family(
        rows=1,
        guidance="distilled_guidance_scale",
        prompts_apart=True,
        solvers=("euler", "unipc"),
        guiders=("guider", "ocr_guider"),
    ),
    # The second reads the picture that it edits.
    # The pipeline cuts texts to the longest of a call.
    "Kandinsky3": Family(
        prompts_apart=True, solvers=("ddpm", "dpmpp_2m"), output="np", multiple_by=lambda decoder, prior, factor: factor**2
    ),
    "Kandinsky5T2I": Family(rows=1, prompts_apart=True, patch=2, solvers=ALL_SOLVERS, sizes=KANDINSKY5),
    "Kandinsky5I2I": Family(rows=1, strength=False, patch=2, solvers=ALL_SOLVERS, sizes=KANDINSKY5, single=True),
    "Kandinsky": Family(prior="KandinskyPriorPipeline", **_KANDINSKY),
    # The embeddings of the prior are all that the UNet is told.
    "KandinskyV22": Family(prior="KandinskyV22PriorPipeline", one_mask=True, **_KANDINSKY),
    # Captions would be cleaned only where two more packages are installed. The noise comes with a variance.
    "IF": Family(solvers=("ddpm", "dpmpp_2m"), output="np", signed=True, latent=False, always={"clean_caption": False}),
    "IFSuperResolution": Family(
        solvers=("ddpm", "dpmpp_2m"),
        strength=False,
        output="np",
        signed=True,
        latent=False,
        enlarges=4,
        further=("noise_level",),
        most_noise=999,
        always={"clean_caption": False},
    ),
    "Kolors": Family(length_first=True, package="sentencepiece", image_prompts="unet"),
    "Krea2": Family(rows=1, unguided=0.0, sized=True, solvers=("euler", "unipc"), patch=2),
    "LatentConsistencyModel": Family(rows=1, steps_left="all", negative=False, solvers=("lcm",), image_prompts="unet"),
    # diffusers makes sides of pictures that Pillow has multiples of 32.
    "LDMSuperResolution": Family(
        rows=1,
        solvers=("ddim", "pndm", "euler", "lms", "dpmpp_2m"),
        drawing=False,
        guidance=None,
        negative=False,
        strength=False,
        prompted=False,
        enlarges=4,
        signed=True,
        multiple_by=lambda index, prior, factor: 4 * 32,
    ),
    # The pipeline scales nothing for a scheduler.
    "LDMTextToImage": Family(solvers=("ddim", "pndm", "dpmpp_2m", "unipc"), drawing=False, negative=False, least=1.0),
    # Its rewriting of prompts would have the language model generate texts.
    "LongCatImage": Family(rows=1, patch=2, sized=True, solvers=("euler", "unipc"), always={"enable_prompt_rewrite": False}),
    "LongCatImageEdit": Family(
        rows=1, strength=False, patch=2, sized=True, solvers=("euler", "unipc"), single=True, bends=about_a_million_pixels
    ),
    "Lumina": Family(prompts_apart=True, solvers=ALL_SOLVERS),
    "Lumina2": Family(rows=1, prompts_apart=True, longest="encoder_attention_mask", sized=True, solvers=("euler", "unipc")),
    "OvisImage": Family(rows=1, patch=2, sized=True, solvers=("euler", "unipc")),
    "PixArt": Family(always={"use_resolution_binning": False}),
    "PRX": Family(least_guidance=1.0, solvers=ALL_SOLVERS, libraries=("ftfy",), always={"use_resolution_binning": False}),
    "PRXPixel": Family(
        least_guidance=1.0,
        solvers=ALL_SOLVERS,
        output="np",
        latent=False,
        libraries=("ftfy",),
        always={"use_resolution_binning": False},
    ),
    "QwenImage": Family(
        rows=1,
        steps_left="up",
        guidance="true_cfg_scale",
        empty_negative=True,
        prompts_apart=True,
        controlnet="QwenImageControlNetModel",
        several_controls=False,
        sized=True,
    ),
    # Its cache of keys and values is an object of each call, and would keep calls from sharing batches.
    "QwenImage21": Family(
        rows=1,
        guidance="true_cfg_scale",
        empty_negative=True,
        prompts_apart=True,
        strength=False,
        patch=2,
        solvers=("euler", "unipc"),
        sized=True,
        references=True,
        pictures=ANY_NUMBER,
        always={"use_kv_cache": False, "output_resolution": side},
    ),
    "QwenImageEdit": Family(
        repainting=Repainting(BY_SCALED_NOISE, strength=True, bends=a_million_pixels),
        **_QWEN_EDIT,
    ),
    "QwenImageEditPlus": Family(pictures=ANY_NUMBER, **_QWEN_EDIT),
    "Sana": Family(
        solvers=ALL_SOLVERS,
        always={"use_resolution_binning": False},
        controlnet="SanaControlNetModel",
        several_controls=False,
        timed_controls=False,
    ),
    # The timestep between two is known for two alone (arXiv:2503.09641).
    "SanaSprint": Family(
        rows=1,
        steps_left="up",
        embedded=True,
        negative=False,
        always={"use_resolution_binning": False, "intermediate_timesteps": lambda request: 1.3 if request.steps == 2 else None},
    ),
    "StableDiffusion": Family(
        controlnet="ControlNetModel", encoded_controls=False, guess=True, image_prompts="unet", weighting="clip"
    ),
    # The UNet is given the depth of the picture, which a part of the model estimates under `torch.autocast`.
    "StableDiffusionDepth2Img": Family(by_itself=("depth_estimator",), whole_pictures=True),
    "StableDiffusionGLIGEN": Family(
        strength=False,
        boxes=True,
        further=("gligen_scheduled_sampling_beta",),
        always={
            "gligen_phrases": lambda request: [box.phrase for box in request.gligen_boxes],
            "gligen_boxes": lambda request: [[box.x0, box.y0, box.x1, box.y1] for box in request.gligen_boxes],
        },
    ),
    "StableDiffusionImageVariation": Family(
        negative=False, strength=False, prompted=False, by_itself=("image_encoder",), whole_pictures=True
    ),
    "StableDiffusionInstructPix2Pix": Family(
        rows=3, led_first=True, strength=False, further=("image_guidance_scale",), image_prompts="unet"
    ),
    # The pipeline computes with the scheduler's sigmas, and its UNet is given the text as a whole beside the time.
    "StableDiffusionLatentUpscale": Family(projected=False, strength=False, enlarges=2, solvers=("euler",)),
    "StableDiffusionUpscale": Family(strength=False, enlarges=4, further=("noise_level",)),
    "StableDiffusionXLInstructPix2Pix": Family(rows=3, strength=False, further=("image_guidance_scale",)),
    "StableDiffusion3": Family(steps_left="up", solvers=("euler", "heun"), controlnet="SD3ControlNetModel", image_prompts="sd3"),
    "StableUnCLIPPipeline": Family(
        inner=25,
        further=("noise_level",),
        most_noise=999,
        always={"prior_num_inference_steps": 25, "prior_guidance_scale": 4.0},
    ),
    "StableUnCLIPImg2Img": Family(
        strength=False, further=("noise_level",), most_noise=999, by_itself=("image_encoder",), whole_pictures=True
    ),
    "StableCascade": Family(further=OF_PRIORS, prior="StableCascadePriorPipeline", multiple_by=staged_multiple, moved="wuerstchen"),
    "Wuerstchen": Family(
        further=OF_PRIORS,
        prior="WuerstchenPriorPipeline",
        multiple_by=staged_multiple,
        prompts_apart=True,
        one_text=True,
        moved="wuerstchen",
    ),
    "ZImage": Family(
        steps_left="up",
        unguided=0.0,
        prompts_apart=True,
        multiple=32,
        sized=True,
        controlnet="ZImageControlNetModel",
        from_noise=("inpaint",),
        several_controls=False,
        timed_controls=False,
    ),
}
OTHER = Family(prompts_apart=True)


def family_of(pipeline: str) -> Family:
    """Return the family of a pipeline class by the class's name; a family that is not listed is called like Stable Diffusion's."""
    fitting = [begin for begin in FAMILIES if pipeline.startswith(begin)]
    return FAMILIES[max(fitting, key=len)] if fitting else OTHER
