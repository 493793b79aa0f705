"""Lists the differences of each family's pipelines from those of Stable Diffusion: one entry a family."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from promptmill.manifests.rules import Repainting
from promptmill.pipelines.work.evaluations import StepsLeft


@dataclass(frozen=True)
class Family:
    """Says how the pipelines of a family are called.

    Attributes:
        rows: Rows of the denoiser's batch that a candidate with guidance takes at a time: 1 where positive and negative prompt go
            through the denoiser one after the other, or where guidance is an input of the model.
        guidance: The argument that takes a row's guidance scale; None where the family has no guidance.
        embedded: Whether guidance is an input of the model, and of no effect where the model has no such input.
        projected: Whether a UNet with a projection beside that of time (time_cond_proj_dim) takes the guidance scale by it.
        unguided: The largest guidance scale that means no guidance.
        least: The smallest guidance scale that a call is given, where a smaller one would guide again.
        least_guidance: The least guidance scale that its pipelines take.
        negative: Whether negative prompts have an effect, at a guidance scale above 1.
        empty_negative: Whether guidance needs a negative prompt, be it an empty one.
        prompts_apart: Whether a call pads its texts to the longest of them, so that texts in one call depend on each other.
        strength: Whether img2img and inpainting take a strength.
        steps_left: How many steps a strength leaves: its share rounded down or up, or all of them, in a schedule that is shorter.
        patch: Latents of a side of what a token stands for, where the pipelines cut latents and the transformer's config says less.
        multiple: Where the denoiser takes a list with a tensor a row: the length to a multiple of which it pads each of them.
        longest: The argument of the denoiser, a mask of texts, by whose longest row the denoiser cuts a batch.
        solvers: The schedulers that the pipelines of every mode can call; None: all, or `euler` alone where the model follows a
            flow. Diffusers' img2img and inpainting have the scheduler scale noise, which two solvers of flows cannot; other
            pipelines hand on sigmas, which not every scheduler takes.
        drawing: Whether the pipelines give schedulers the candidates' generators; otherwise a model's own scheduler has to be one
            of `solvers`, too, which draw nothing.
        controlnet: The class of the family's ControlNets; None where it has none.
        several_controls: Whether its pipelines take several ControlNets at once.
        timed_controls: Whether a ControlNet can begin later and end sooner than the steps do.
        encoded_controls: Whether its pipelines encode control images by the VAE, and so take them in -1 … 1.
        control_modes: The key of a ControlNet's config that counts its modes, where ControlNets of several modes are among the
            family's; None where there are none.
        guess: Whether its pipelines with ControlNets have a guess mode.
        from_noise: The modes in which its pipelines with ControlNets begin with noise alone, though there is a picture.
        image_prompts: Whether its pipelines take reference images through adapters (IP-Adapters).
        redux: The pipeline that makes embeddings of reference images and prompts, which the family's pipelines take; None: none.
        references: Whether a call takes pictures as references for all of its samples, so that it has one row's alone.
        sized: Whether its pipelines tell the scheduler the size of images, for a schedule that depends on it.
        further: Those columns of `rules.FURTHER` that the family takes.
        most_noise: The largest noise level, where the model's index says none.
        enlarges: How many times larger an image's sides are than those of the picture that the image is made of.
        by_itself: Parts that compute each picture by itself and at once, since they are called in a context of torch's.
        length_first: Whether the text encoder answers (length, rows, width) in place of (rows, length, width).
        package: A package beside those that promptmill installs, which the family's tokenizer needs; None where there is none.
        libraries: Further libraries whose versions decide what the family's models see of a prompt.
        picture: The argument that takes the picture of a row.
        signed: Whether tensors of pictures are given in -1 … 1.
        whole_pictures: Whether pipelines are given pictures as Pillow has them, for processors that scale the values themselves.
        single: Whether a call makes one image, of one picture as Pillow has it.
        guiders: Parts that guide, where they are there, and keep a state between steps: each call has copies of them with the row's
            scale. Without them guidance is an input of the model.
        second: Arguments of the denoiser whose second dimension is the rows.
        experts: The class of the denoiser's layers that sort the tokens of all rows by experts; each row goes through by itself.
        seeds_steps: Whether the scheduler is given the candidates' generators for its noise: the pipelines give it none, so that it
            would draw from torch's global one.
        beside: Parts that repositories leave out, and the model that goes there.
        repainting: The limits of rows with a mask, where they are other ones.
        sizes: The sizes (width, height) that its pipelines render, to one of which they would bend any other; empty where any.
        bends: The size (width, height) that its pipelines render in place of another one, as a function of that; None where they
            render every size.
        most_pixels: The key of the denoiser's config with the largest size, in latents; None where sizes are unbounded.
        attributes: What a call sets on its pipeline first: functions of the request and of how many pixels a latent has on a side.
        output: The form of images that is asked for; of `pt` one family makes values in -1 … 1, as its VAE has them.
        prior: The class of the pipeline that makes the embeddings that the model decodes; None where the model reads texts itself.
        least_prior_steps: The fewest steps that the scheduler of the prior takes: unCLIP's divides by one less.
        inner: Steps of a prior that is a part of the model itself, with guidance, as diffusers has them where nothing is said.
        negative_too: Whether the prior makes an embedding of the negative prompt as well.
        multiple_by: Returns the pixels that sides are multiples of, of the indexes of the model and of its prior, and of how many
            times smaller latents are than images; None where VAE and patches say it.
        masked: Whether its inpainting takes a denoiser that is given the masked picture, and no strength.
        one_mask: Whether a call lays its first picture and mask over all of its samples, so that it has one row's alone.
        one_text: Whether a call has one text, for all of its samples.
        prompted: Whether the model reads prompts.
        classes: The key of the denoiser's config that counts the classes of which each row names one; None where it draws none.
        fixed: Whether images have the one size that the denoiser's config says.
        latent: Whether the denoiser makes latents, which a VAE decodes; otherwise it makes the pixels.
        moved: The module of diffusers' pipelines that the family's indexes name, which has moved among the deprecated ones.
        always: Further arguments of every call: values, or functions of the request.
    """

    rows: int = 2
    guidance: str | None = "guidance_scale"
    embedded: bool = False
    projected: bool = True
    unguided: float = 1.0
    least: float = 0.0
    least_guidance: float = 0.0
    negative: bool = True
    empty_negative: bool = False
    prompts_apart: bool = False
    strength: bool = True
    steps_left: StepsLeft = "down"
    patch: int | None = None
    multiple: int = 1
    longest: str | None = None
    solvers: tuple[str, ...] | None = None
    drawing: bool = True
    controlnet: str | None = None
    several_controls: bool = True
    timed_controls: bool = True
    encoded_controls: bool = True
    control_modes: str | None = None
    guess: bool = False
    from_noise: tuple[str, ...] = ()
    image_prompts: bool = False
    redux: str | None = None
    references: bool = False
    sized: bool = False
    further: tuple[str, ...] = ()
    most_noise: int = 350
    enlarges: int = 1
    by_itself: tuple[str, ...] = ()
    length_first: bool = False
    package: str | None = None
    libraries: tuple[str, ...] = ()
    picture: str = "image"
    signed: bool = False
    whole_pictures: bool = False
    single: bool = False
    guiders: tuple[str, ...] = ()
    second: tuple[str, ...] = ()
    experts: str | None = None
    seeds_steps: bool = False
    beside: Mapping[str, str] = field(default_factory=dict)
    repainting: Repainting = field(default_factory=Repainting)
    sizes: tuple[tuple[int, int], ...] = ()
    bends: Callable[[int, int], tuple[int, int]] | None = None
    most_pixels: str | None = None
    attributes: Mapping[str, Callable[[Any, int], Any]] = field(default_factory=dict)
    output: str = "pt"
    prior: str | None = None
    least_prior_steps: int = 1
    inner: int = 0
    negative_too: bool = False
    multiple_by: Callable[[Mapping[str, Any], Mapping[str, Any], int], int] | None = None
    masked: bool = False
    one_mask: bool = False
    one_text: bool = False
    prompted: bool = True
    classes: str | None = None
    fixed: bool = False
    latent: bool = True
    moved: str | None = None
    always: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self, request: Any) -> dict[str, Any]:
        """Return the further arguments of a call for a request."""
        return {name: value(request) if callable(value) else value for name, value in self.always.items()}


def lacking(family: Family) -> str | None:
    """Return the package that a family needs and that is not installed here, None where all are."""
    return family.package if family.package and find_spec(family.package) is None else None


def pixels(request: Any) -> int:
    """Return the pixels of a request's images."""
    return request.width * request.height


def side(request: Any) -> float:
    """Return the side of a square with as many pixels as a request's images."""
    return math.sqrt(pixels(request))


def a_million_pixels(width: int, height: int) -> tuple[int, int]:
    """Return the size with sides of multiples of 32 that has the aspect of another and 1024 x 1024 pixels, or nearly so many."""
    ratio = width / height
    wide = math.sqrt(1024 * 1024 * ratio)
    return round(wide / 32) * 32, round(wide / ratio / 32) * 32


def about_a_million_pixels(width: int, height: int) -> tuple[int, int]:
    """Return the size with sides of multiples of 16 that has the aspect of another and 1024 x 1024 pixels, or a little more."""
    ratio = width / height
    wide = math.sqrt(1024 * 1024 * ratio)
    return math.ceil(wide / 16) * 16, math.ceil(wide / ratio / 16) * 16


def own_side(request: Any, scale: int) -> float:
    """Return the side of a square, in latents, with as many pixels as a request's images, and a little more: nothing is cut."""
    return side(request) / scale * (1 + 1e-9)


def no_control_modes(request: Any) -> list[None] | None:
    """Return the modes of Flux's ControlNets that have none; img2img and inpainting want a list of them where there are several."""
    return [None] * len(request.controls) if len(request.controls) > 1 else None


BY_SCALED_NOISE = ("euler", "model")  # diffusers' inpainting has the scheduler scale noise, which other solvers of flows cannot
KANDINSKY5 = ((1024, 1024), (640, 1408), (1408, 640), (768, 1280), (1280, 768), (896, 1152), (1152, 896))


def staged_multiple(decoder: Mapping[str, Any], prior: Mapping[str, Any], factor: int) -> int:
    """Return the pixels that sides are multiples of where a prior's embeddings have a size that the decoder's latents follow.

    Both sizes are rounded, by numbers of the two indexes (arXiv:2306.00637); the images are four times as large as the latents.
    """
    smaller, larger = float(prior.get("resolution_multiple") or 42.67), float(decoder.get("latent_dim_scale") or 10.67)

    def is_kept(side: int) -> bool:
        return int(math.ceil(side / smaller) * larger) * 4 == side

    return next(side for side in range(8, 2**16, 8) if all(is_kept(times * side) for times in range(1, 9)))


OF_PRIORS = ("prior_steps", "prior_guidance_scale")
ALL_SOLVERS = ("euler", "heun", "dpmpp_2m", "unipc")

# What the parts of pipelines are called that remove noise, and that make images of latents.
DENOISERS = ("unet", "transformer", "decoder")
VAES = ("vae", "movq", "vqgan", "vqvae")
# Pipelines that take a width for the height and a height for the width.
TURNED = frozenset({"KandinskyImg2ImgPipeline", "KandinskyV22Img2ImgPipeline"})

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
_OF_NOTHING: dict[str, Any] = {
    "rows": 1,
    "guidance": None,
    "negative": False,
    "strength": False,
    "prompted": False,
    "fixed": True,
    "latent": False,
}

# By what the names of the family's pipeline classes begin with; of several that fit, the longest.
FAMILIES: dict[str, Family] = {
    "AltDiffusion": Family(moved="alt_diffusion"),
    "AuraFlow": Family(solvers=ALL_SOLVERS),
    "BriaFiboPipeline": Family(patch=2, sized=True, prompts_apart=True, solvers=("euler", "unipc")),
    "BriaPipeline": Family(patch=2, sized=True),
    "Chroma": Family(rows=1, steps_left="up", patch=2, sized=True),
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
    "Flux": Family(
        steps_left="up",
        rows=1,
        embedded=True,
        negative=False,
        patch=2,
        sized=True,
        controlnet="FluxControlNetModel",
        control_modes="num_mode",
        redux="FluxPriorReduxPipeline",
        always={"control_mode": no_control_modes},
    ),
    "Flux2": Family(
        sized=True, rows=1, embedded=True, negative=False, strength=False, patch=2, solvers=("euler", "unipc"), references=True
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
    "FluxKontext": Family(
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
    "Kolors": Family(length_first=True, package="sentencepiece"),
    "Krea2": Family(rows=1, unguided=0.0, sized=True, solvers=("euler", "unipc"), patch=2),
    "LatentConsistencyModel": Family(rows=1, steps_left="all", negative=False, solvers=("lcm",)),
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
        always={"use_kv_cache": False, "output_resolution": side},
    ),
    # The language model reads the picture that is edited, scaled to the pixels that it was trained with.
    "QwenImageEdit": Family(
        rows=1,
        guidance="true_cfg_scale",
        empty_negative=True,
        strength=False,
        solvers=("euler", "unipc"),
        sized=True,
        single=True,
        steps_left="up",
        repainting=Repainting(BY_SCALED_NOISE, strength=True, bends=a_million_pixels),
    ),
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
    "StableDiffusion": Family(controlnet="ControlNetModel", encoded_controls=False, guess=True, image_prompts=True),
    # The UNet is given the depth of the picture, which a part of the model estimates under `torch.autocast`.
    "StableDiffusionDepth2Img": Family(by_itself=("depth_estimator",), whole_pictures=True),
    "StableDiffusionImageVariation": Family(
        negative=False, strength=False, prompted=False, by_itself=("image_encoder",), whole_pictures=True
    ),
    "StableDiffusionInstructPix2Pix": Family(rows=3, strength=False, further=("image_guidance_scale",)),
    # The pipeline computes with the scheduler's sigmas, and its UNet is given the text as a whole beside the time.
    "StableDiffusionLatentUpscale": Family(projected=False, strength=False, enlarges=2, solvers=("euler",)),
    "StableDiffusionUpscale": Family(strength=False, enlarges=4, further=("noise_level",)),
    "StableDiffusionXLInstructPix2Pix": Family(rows=3, strength=False, further=("image_guidance_scale",)),
    "StableDiffusion3": Family(steps_left="up", solvers=("euler", "heun"), controlnet="SD3ControlNetModel"),
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


_CONTROLLED = "was saved with what steers it; set _class_name to {} in model_index.json, and name the control in model.controlnets"
UNTRIED = "is not served yet: its images have not been compared with those of plain diffusers"
CONTROL_IMAGE = "needs a control image beside the picture of every row, which is not supported yet"
STAGES = "renders in stages that are pipelines of their own, and a run has one"
COMBINED = "is made of two models: name the decoder's as model.base, and the prior's as model.prior"
A_PRIOR = "makes embeddings and no pictures: name it as model.prior, beside the decoder of its family as model.base"
NO_PICTURE = "makes no picture of a prompt"
ENDED = "is one of diffusers' deprecated pipelines"
PLACES = "splits its batch by position, so that no two requests could share one"

# Why pipeline classes cannot be served, after "NAMEPipeline …", by what their names begin with; the longest that fits counts.
REFUSED: dict[str, str] = {
    begin: reason
    for reason, begins in (
        (CONTROL_IMAGE, "FluxControlImg2Img FluxControlInpaint"),
        ("has a language model draw the picture's tokens from torch's global generator, which calls share", "GlmImage"),
        ("takes the latents of another pipeline in place of a picture", "HunyuanImageRefiner"),
        ("makes several pictures of one, its layers", "QwenImageLayered"),
        ("takes the positions of a batch's first row for all of its rows, so that no two requests could share one", "OmniGen"),
        ("calls the layers of its language model one by one, past the calls that are joined", "Ideogram4"),
        ("wants a guardrail of its own, the package cosmos_guardrail, to see each prompt and image", "Cosmos2TextToImage"),
        ("reads its language model by a hook on a layer, which would see the rows of all requests", "JoyImageEdit"),
        (
            COMBINED,
            "KandinskyCombined KandinskyImg2ImgCombined KandinskyInpaintCombined KandinskyV22Combined KandinskyV22Img2ImgCombined"
            " KandinskyV22InpaintCombined StableCascadeCombined WuerstchenCombined",
        ),
        (A_PRIOR, "KandinskyPrior KandinskyV22Prior StableCascadePrior WuerstchenPrior"),
        (CONTROL_IMAGE, "KandinskyV22Controlnet"),
        (
            "makes embeddings of a picture beside a prompt; set _class_name to KandinskyV22PriorPipeline in model_index.json",
            "KandinskyV22PriorEmb2Emb",
        ),
        ("enlarges an image toward a second picture, and a row has one", "IFImg2ImgSuperResolution IFInpaintingSuperResolution"),
        ("raises in diffusers itself, which looks for guidance_embeds in a config that has none", "ChromaInpaint"),
        (NO_PICTURE, "Marigold ShapE"),
        ("runs on ONNX Runtime, whose calls cannot be joined", "Onnx StableDiffusionOnnx"),
        ("makes embeddings of pictures for Flux; give it as model.references beside a Flux", "FluxPriorRedux"),
        ("keeps keys and values of the first step in an object of each call, so that calls could not be joined", "Flux2KleinKV"),
        ("adds up what its experts make in an order that differs from run to run on a GPU", "NucleusMoE"),
        ("takes a grid of example pictures, and no column gives one", "VisualCloze"),
        ("makes videos", "ChronoEdit Helios Kandinsky5 Kandinsky6"),
        ("inverts a picture by a call of its own before it edits the picture", "LEditsPP"),
        (
            ENDED,
            "Amused BlipDiffusion CycleDiffusion KarrasVe LDMPipeline PaintByExample PNDM RePaint ScoreSdeVe"
            " SemanticStableDiffusion StableDiffusionAttendAndExcite"
            " StableDiffusionDiffEdit StableDiffusionInpaintPipelineLegacy StableDiffusionLDM3D"
            " StableDiffusionModelEditing StableDiffusionPanorama StableDiffusionParadigms StableDiffusionPipelineSafe"
            " StableDiffusionPix2PixZero StableDiffusionSAG UnCLIP UniDiffuser VersatileDiffusion VQDiffusion",
        ),
        ("is deprecated by diffusers, and places objects by boxes, which no column gives", "StableDiffusionGLIGEN"),
        (_CONTROLLED.format("StableDiffusionPipeline"), "StableDiffusionAdapter"),
        (_CONTROLLED.format("StableDiffusionXLPipeline"), "StableDiffusionXLAdapter"),
        (
            UNTRIED,
            "BriaFibo DreamLite ZImageOmni",
        ),
    )
    for begin in begins.split()
}


def refusal(pipeline: str) -> str | None:
    """Return the reason why a pipeline class cannot be served, None where it can be."""
    if "PAG" in pipeline:
        # Its attention takes the rows of a batch for parts of one guidance, by their places.
        return f"{PLACES}; set _class_name to {pipeline.replace('PAG', '')} in model_index.json"
    if "Modular" in pipeline:
        return "is made of modular blocks, which are called in another way than pipelines; that is not supported yet"
    if "ControlNet" in pipeline:
        return "was saved with its ControlNet; give the base model as model.base, and the ControlNet in model.controlnets"
    fitting = [begin for begin in REFUSED if pipeline.startswith(begin)]
    if any(pipeline.startswith(begin) and len(begin) > len(max(fitting, key=len, default="")) for begin in FAMILIES):
        return None  # of a family that makes videos, too
    return REFUSED[max(fitting, key=len)] if fitting else None
