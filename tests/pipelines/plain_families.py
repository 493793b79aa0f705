"""Lists how plain diffusers is called in every family, as diffusers documents its pipelines."""

import json
from typing import Any

import torch

from promptmill.configs.parameters import Box
from tests.pipelines.plain_calls import OF_PRIORS, Plain

_UNBENT = {"use_resolution_binning": False}
MANY = 17  # pictures: no pipeline that takes a list of them counts it, and a row names an init image and 16 more
_FLOW = ("euler", "heun", "dpmpp_2m", "unipc", "model")
_NOISE = ("ddim", "euler", "dpmpp_2m", "lcm", "model")


def _modes(family: str) -> dict[str, str]:
    return {"txt2img": f"{family}Pipeline", "img2img": f"{family}Img2ImgPipeline", "inpaint": f"{family}InpaintPipeline"}


def _text(family: str) -> dict[str, str]:
    return {"txt2img": f"{family}Pipeline"}


def _picture(family: str) -> dict[str, str]:
    return {"img2img": f"{family}Pipeline"}


LED = {"true_cfg_scale": (None, 3.0, 1.0, 1.5)}
_OF_NOTHING: dict[str, Any] = {
    "rows": 1,
    "negative": False,
    "guided": False,
    "strength": False,
    "prompted": False,
    "side": 32,
    "fixed": True,
}

_KANDINSKY: dict[str, Any] = {"pillow": True, "schedulers": ("ddpm", "model"), "further": OF_PRIORS, "output": "np"}
_KANDINSKY |= {"side": 32, "small": "small-32.png"}

_PIX2PIX: dict[str, Any] = {
    "rows": 3,
    "strength": False,
    "further": {"image_guidance_scale": (1.5, 1.0, 0.5, 4.0, 2.0)},
    "schedulers": _NOISE,
}

BOXES = (
    (Box(phrase="a small red circle", x0=0.1, y0=0.2, x1=0.6, y1=0.9),),
    (Box(phrase="blue", x0=0.0, y0=0.0, x1=0.5, y1=1.0), Box(phrase="a large green cross", x0=0.4, y0=0.5, x1=1.0, y1=1.0)),
    tuple(Box(phrase=f"{'a ' * n}square", x0=n / 8, y0=0.25, x1=1.0, y1=0.75) for n in range(7)),
)
_GLIGEN: dict[str, Any] = {
    "strength": False,
    "schedulers": _NOISE,
    "further": {"gligen_boxes": BOXES, "gligen_scheduled_sampling_beta": (0.3, 1.0, 0.5, 0.0)},
    "said": {
        "gligen_phrases": lambda request: [box.phrase for box in request.gligen_boxes],
        "gligen_boxes": lambda request: [[box.x0, box.y0, box.x1, box.y1] for box in request.gligen_boxes],
    },
}


def of_the_candidates_generator(pipeline: Any, said: dict[str, Any]) -> dict[str, Any]:
    """A call of GLIGEN's inpainting whose latents, and whose noise on the picture, the candidate's generator draws."""
    (generator,), scheduler = said["generator"], pipeline.scheduler
    kind = type(scheduler)
    scheduler.add_noise = lambda samples, noise, timesteps: kind.add_noise(
        scheduler, samples, torch.randn(noise.shape, generator=generator).to(noise), timesteps
    )
    shape = (1, 4, said["height"] // 8, said["width"] // 8)
    return said | {"latents": torch.randn(shape, generator=generator).to(pipeline.device, pipeline.dtype)}


_QWEN_EDIT: dict[str, Any] = {
    "rows": 1,
    "guidance": "true_cfg_scale",
    "always_negative": True,
    "strength": False,
    "single": True,
    "schedulers": ("euler", "unipc", "model"),
}

FAMILIES: dict[str, Plain] = {
    "sd3": Plain(_modes("StableDiffusion3"), schedulers=("euler", "heun", "model")),
    "sd3-without-t5": Plain(
        _modes("StableDiffusion3"), parts={"text_encoder_3": None, "tokenizer_3": None}, schedulers=("euler", "heun", "model")
    ),
    "flux-dev": Plain(_modes("Flux"), rows=1, negative=False, further=LED),
    "flux-schnell": Plain(_modes("Flux"), rows=1, negative=False, guided=False, further=LED),
    "pixart-alpha": Plain(_text("PixArtAlpha"), said=_UNBENT, schedulers=_NOISE),
    "pixart-sigma": Plain(_text("PixArtSigma"), said=_UNBENT, schedulers=_NOISE),
    "sana": Plain(_text("Sana"), said=_UNBENT, schedulers=_FLOW),
    "hunyuandit": Plain(_text("HunyuanDiT"), said=_UNBENT, schedulers=_NOISE),
    "auraflow": Plain(_text("AuraFlow"), schedulers=_FLOW),
    "lumina": Plain(_text("Lumina"), apart=True, schedulers=_FLOW),
    "lumina2": Plain(_text("Lumina2"), rows=1, apart=True, schedulers=("euler", "unipc", "model")),
    "chroma": Plain(_text("Chroma") | {"img2img": "ChromaImg2ImgPipeline"}, rows=1),
    "cogview4": Plain(_text("CogView4"), rows=1, apart=True),
    "cogview4-control": Plain(_picture("CogView4Control"), rows=1, apart=True, strength=False, takes="control_image", pillow=True),
    "qwen-image": Plain(_modes("QwenImage"), rows=1, guidance="true_cfg_scale", always_negative=True, apart=True),
    "qwen-image-2.1": Plain(
        dict.fromkeys(("txt2img", "img2img"), "QwenImage21Pipeline"),
        rows=1,
        guidance="true_cfg_scale",
        always_negative=True,
        apart=True,
        strength=False,
        references=True,
        pictures=MANY,
        said={"use_kv_cache": False, "output_resolution": lambda request: (request.width * request.height) ** 0.5},
        schedulers=("euler", "unipc", "model"),
    ),
    "z-image": Plain(_modes("ZImage"), unguided=0.0, apart=True),
    "ovis-image": Plain(_text("OvisImage"), rows=1, schedulers=("euler", "unipc", "model")),
    "krea2": Plain(_text("Krea2"), rows=1, unguided=0.0, schedulers=("euler", "unipc", "model")),
    "longcat": Plain(_text("LongCatImage"), rows=1, said={"enable_prompt_rewrite": False}, schedulers=("euler", "unipc", "model")),
    "longcat-edit": Plain(
        _picture("LongCatImageEdit"), rows=1, strength=False, single=True, schedulers=("euler", "unipc", "model")
    ),
    "dreamlite": Plain(
        dict.fromkeys(("txt2img", "img2img"), "DreamLitePipeline"),
        rows=3,
        unguided=0.0,
        with_picture=3,
        strength=False,
        single=True,
        bare=True,
        further={"image_guidance_scale": (1.5, 0.5, 2.0)},
        schedulers=("euler", "unipc", "model"),
    ),
    "dreamlite-mobile": Plain(
        dict.fromkeys(("txt2img", "img2img"), "DreamLiteMobilePipeline"),
        rows=1,
        negative=False,
        guided=False,
        strength=False,
        single=True,
        bare=True,
        schedulers=("euler", "unipc", "model"),
    ),
    "ernie": Plain(_text("ErnieImage"), apart=True, said={"use_pe": False}),
    "bria-fibo": Plain(_text("BriaFibo"), apart=True, schedulers=("euler", "unipc", "model")),
    "bria-fibo-2": Plain(
        dict.fromkeys(("txt2img", "img2img"), "BriaFibo2Pipeline"),
        rows=1,
        strength=False,
        single=True,
        pictures=5,
        schedulers=("euler", "unipc", "model"),
    ),
    "bria-fibo-edit": Plain(
        dict.fromkeys(("txt2img", "img2img", "inpaint"), "BriaFiboEditPipeline"),
        strength=False,
        single=True,
        pictures=MANY,
        prompt=lambda text: json.dumps({"edit_instruction": text}),
        mask="mask",
        schedulers=("euler", "unipc", "model"),
    ),
    "bria": Plain(_text("Bria")),
    "hunyuan-image": Plain(
        _text("HunyuanImage"), rows=1, apart=True, guiders=("guider", "ocr_guider"), schedulers=("euler", "unipc", "model")
    ),
    "hunyuan-image-distilled": Plain(
        _text("HunyuanImage"),
        guidance="distilled_guidance_scale",
        rows=1,
        negative=False,
        apart=True,
        schedulers=("euler", "unipc", "model"),
    ),
    "hidream": Plain(
        _text("HiDreamImage"),
        sets={"default_sample_size": lambda request: (request.width * request.height) ** 0.5 / 8 * (1 + 1e-9)},
        experts="MOEFeedForwardSwiGLU",
        schedulers=("euler", "unipc", "model"),
    ),
    "prx": Plain(_text("PRX"), said=_UNBENT, schedulers=_FLOW),
    "kandinsky3": Plain(
        {"txt2img": "Kandinsky3Pipeline", "img2img": "Kandinsky3Img2ImgPipeline"},
        apart=True,
        schedulers=("ddpm", "dpmpp_2m", "model"),
        multiple=64,
        output="np",
    ),
    "kandinsky5": Plain(_text("Kandinsky5T2I"), rows=1, apart=True, schedulers=_FLOW),
    "kandinsky5-edit": Plain(_picture("Kandinsky5I2I"), rows=1, strength=False, single=True, schedulers=_FLOW),
    "kolors": Plain({"txt2img": "KolorsPipeline", "img2img": "KolorsImg2ImgPipeline"}, schedulers=_NOISE),
    "flux-fill": Plain({"inpaint": "FluxFillPipeline"}, rows=1, negative=False),
    "flux-control": Plain(
        {"img2img": "FluxControlPipeline"},
        rows=1,
        negative=False,
        strength=False,
        takes="control_image",
        pillow=True,
        schedulers=("euler", "unipc", "model"),
    ),
    # Without these, the size is one of those that the model was trained at.
    "flux-kontext": Plain(
        dict.fromkeys(("txt2img", "img2img"), "FluxKontextPipeline") | {"inpaint": "FluxKontextInpaintPipeline"},
        repainting=("euler", "model"),
        rows=1,
        negative=False,
        strength=False,
        further=LED,
        said={"_auto_resize": False, "max_area": lambda request: request.width * request.height},
        schedulers=("euler", "unipc", "model"),
    ),
    "flux2-dev": Plain(
        dict.fromkeys(("txt2img", "img2img"), "Flux2Pipeline"),
        rows=1,
        negative=False,
        strength=False,
        references=True,
        pictures=MANY,
        schedulers=("euler", "unipc", "model"),
    ),
    "flux2-klein": Plain(
        dict.fromkeys(("txt2img", "img2img"), "Flux2KleinPipeline") | {"inpaint": "Flux2KleinInpaintPipeline"},
        repainting=("euler", "model"),
        rows=1,
        negative=False,
        strength=False,
        references=True,
        pictures=MANY,
        schedulers=("euler", "unipc", "model"),
    ),
    "flux2-klein-distilled": Plain(
        dict.fromkeys(("txt2img", "img2img"), "Flux2KleinPipeline") | {"inpaint": "Flux2KleinInpaintPipeline"},
        repainting=("euler", "model"),
        rows=1,
        negative=False,
        strength=False,
        guided=False,
        references=True,
        pictures=MANY,
        schedulers=("euler", "unipc", "model"),
    ),
    "qwen-image-edit": Plain(
        _picture("QwenImageEdit") | {"inpaint": "QwenImageEditInpaintPipeline"}, repainting=("euler", "model"), **_QWEN_EDIT
    ),
    "qwen-image-edit-plus": Plain(_picture("QwenImageEditPlus"), pictures=MANY, **_QWEN_EDIT),
    "sana-sprint": Plain(
        {"txt2img": "SanaSprintPipeline", "img2img": "SanaSprintImg2ImgPipeline"},
        rows=1,
        negative=False,
        said=_UNBENT | {"intermediate_timesteps": lambda request: 1.3 if request.steps == 2 else None},
        schedulers=("model",),
    ),
    "lcm": Plain(
        {"txt2img": "LatentConsistencyModelPipeline", "img2img": "LatentConsistencyModelImg2ImgPipeline"},
        rows=1,
        negative=False,
        schedulers=("lcm", "model"),
    ),
    "cogview3": Plain(_text("CogView3Plus"), schedulers=("model",)),
    "alt-diffusion": Plain({"txt2img": "AltDiffusionPipeline", "img2img": "AltDiffusionImg2ImgPipeline"}, schedulers=_NOISE),
    "taiyi": Plain(_modes("StableDiffusion"), schedulers=_NOISE),
    "stable-unclip": Plain(
        _picture("StableUnCLIPImg2Img"), strength=False, pillow=True, further={"noise_level": (20, 0, 999)}, schedulers=_NOISE
    ),
    "stable-unclip-of-texts": Plain(_text("StableUnCLIP"), further={"noise_level": (20, 0, 999)}, schedulers=_NOISE),
    "gligen": Plain(_text("StableDiffusionGLIGEN"), **_GLIGEN),
    "gligen-inpainting": Plain(
        _picture("StableDiffusionGLIGEN"), takes="gligen_inpaint_image", single=True, draws=of_the_candidates_generator, **_GLIGEN
    ),
    # Guidance has three parts, and none of them at a picture's scale below 1.
    "pix2pix": Plain(_picture("StableDiffusionInstructPix2Pix"), **_PIX2PIX),
    "pix2pix-xl": Plain(_picture("StableDiffusionXLInstructPix2Pix"), **_PIX2PIX),
    "sdxl-refiner": Plain(
        {"img2img": "StableDiffusionXLImg2ImgPipeline", "inpaint": "StableDiffusionXLInpaintPipeline"}, schedulers=_NOISE
    ),
    "depth2img": Plain(_picture("StableDiffusionDepth2Img"), pillow=True, schedulers=_NOISE),
    "x4-upscaler": Plain(
        _picture("StableDiffusionUpscale"),
        strength=False,
        small="small-16.png",
        further={"noise_level": (20, 0, 350)},
        schedulers=_NOISE,
    ),
    "kandinsky21": Plain(
        {"txt2img": "KandinskyPipeline", "img2img": "KandinskyImg2ImgPipeline"}, prior="KandinskyPriorPipeline", **_KANDINSKY
    ),
    "kandinsky21-inpainting": Plain(
        {"inpaint": "KandinskyInpaintPipeline"},
        prior="KandinskyPriorPipeline",
        strength=False,
        **_KANDINSKY | {"pillow": False, "signed": True},
    ),
    "kandinsky22": Plain(
        {"txt2img": "KandinskyV22Pipeline", "img2img": "KandinskyV22Img2ImgPipeline"},
        prior="KandinskyV22PriorPipeline",
        **_KANDINSKY,
    ),
    "kandinsky22-inpainting": Plain(
        {"inpaint": "KandinskyV22InpaintPipeline"},
        prior="KandinskyV22PriorPipeline",
        strength=False,
        apart=True,
        **_KANDINSKY | {"pillow": False, "signed": True},
    ),
    "stable-cascade": Plain(
        {"txt2img": "StableCascadeDecoderPipeline"},
        schedulers=("model",),
        further=OF_PRIORS,
        prior="StableCascadePriorPipeline",
    ),
    "wuerstchen": Plain(
        {"txt2img": "WuerstchenDecoderPipeline"},
        schedulers=("model",),
        further=OF_PRIORS,
        prior="WuerstchenPriorPipeline",
        apart=True,
        one_text=True,
    ),
    "consistency": Plain(_text("ConsistencyModel"), schedulers=("model",), classes=10, **_OF_NOTHING),
    "ddpm": Plain(_text("DDPM"), schedulers=("ddpm", "ddim", "model"), **_OF_NOTHING),
    "ddim": Plain(_text("DDIM"), schedulers=("ddim", "model"), **_OF_NOTHING),
    "dit": Plain(
        _text("DiT"),
        schedulers=("ddim", "dpmpp_2m", "unipc", "model"),
        classes=1000,
        **(_OF_NOTHING | {"guided": True, "rows": 2, "side": 64}),
    ),
    "image-variation": Plain(
        _picture("StableDiffusionImageVariation"),
        negative=False,
        strength=False,
        prompted=False,
        pillow=True,
        schedulers=_NOISE,
    ),
    "if": Plain(
        {"txt2img": "IFPipeline", "img2img": "IFImg2ImgPipeline", "inpaint": "IFInpaintingPipeline"},
        schedulers=("ddpm", "dpmpp_2m", "model"),
        side=16,
        small="small-16.png",
        signed=True,
        output="np",
        said={"clean_caption": False},
    ),
    "if-upscaler": Plain(
        _picture("IFSuperResolution"),
        schedulers=("ddpm", "dpmpp_2m", "model"),
        strength=False,
        side=32,
        small="small-8.png",
        signed=True,
        output="np",
        further={"noise_level": (20, 0, 999)},
        said={"clean_caption": False},
    ),
    "ldm": Plain(_text("LDMTextToImage"), negative=False, schedulers=("ddim", "pndm", "dpmpp_2m", "unipc", "model"), some=True),
    "prx-pixel": Plain(_text("PRXPixel"), said=_UNBENT, schedulers=_FLOW, side=32, output="np"),
    "ldm-upscaler": Plain(
        _picture("LDMSuperResolution"),
        schedulers=("ddim", "pndm", "euler", "lms", "dpmpp_2m", "model"),
        some=True,
        small="small-32.png",
        **(_OF_NOTHING | {"side": 128, "fixed": False, "signed": True}),
    ),
    "latent-upscaler": Plain(_picture("StableDiffusionLatentUpscale"), strength=False, small="small-32.png", noise=True),
}

# Families that `benchmarks.equality` and `test_equality` compare, in place of `test_families`; by the names of their tiny models.
UNETS: dict[str, Plain] = {
    "sd": Plain(_modes("StableDiffusion"), schedulers=_NOISE),
    "distilled": Plain(_modes("StableDiffusion"), negative=False, schedulers=_NOISE),
    "sdxl": Plain(_modes("StableDiffusionXL"), schedulers=_NOISE),
    "playground": Plain(_modes("StableDiffusionXL"), schedulers=("euler", "dpmpp_2m", "dpmpp_2m_sde", "model")),
}
