"""Lists the differences of each family's pipelines from those of Stable Diffusion: one entry a family."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

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
        controlnet: The class of the family's ControlNets; None where it has none.
        several_controls: Whether its pipelines take several ControlNets at once.
        timed_controls: Whether a ControlNet can begin later and end sooner than the steps do.
        encoded_controls: Whether its pipelines encode control images by the VAE, and so take them in -1 … 1.
        control_modes: The key of a ControlNet's config that counts its modes, where ControlNets of several modes are among the
            family's; None where there are none.
        guess: Whether its pipelines with ControlNets have a guess mode.
        from_noise: The modes in which its pipelines with ControlNets begin with noise alone, though there is a picture.
        image_prompts: Whether its pipelines take reference images through adapters (IP-Adapters).
        references: Whether a call takes pictures as references for all of its samples, so that it has one row's alone.
        sized: Whether its pipelines tell the scheduler the size of images, for a schedule that depends on it.
        further: Those columns of `rules.FURTHER` that the family takes.
        most_noise: The largest noise level, where the model's index says none.
        enlarges: How many times larger an image's sides are than those of the picture that the image is made of.
        by_itself: Parts that compute each picture by itself and at once, since they are called in a context of torch's.
        length_first: Whether the text encoder answers (length, rows, width) in place of (rows, length, width).
        package: A package beside those that promptmill installs, which the family's tokenizer needs; None where there is none.
        libraries: Further libraries whose versions decide what the family's models see of a prompt.
        picture: The argument that takes the picture of a row; `control_image` takes it in -1 … 1.
        whole_pictures: Whether pipelines are given pictures as Pillow has them, for processors that scale the values themselves.
        always: Further arguments of every call: values, or functions of the request.
    """

    rows: int = 2
    guidance: str | None = "guidance_scale"
    embedded: bool = False
    projected: bool = True
    unguided: float = 1.0
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
    controlnet: str | None = None
    several_controls: bool = True
    timed_controls: bool = True
    encoded_controls: bool = True
    control_modes: str | None = None
    guess: bool = False
    from_noise: tuple[str, ...] = ()
    image_prompts: bool = False
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
    whole_pictures: bool = False
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


def no_control_modes(request: Any) -> list[None] | None:
    """Return the modes of Flux's ControlNets that have none; img2img and inpainting want a list of them where there are several."""
    return [None] * len(request.controls) if len(request.controls) > 1 else None


ALL_SOLVERS = ("euler", "heun", "dpmpp_2m", "unipc")

# By what the names of the family's pipeline classes begin with; of several that fit, the longest.
FAMILIES: dict[str, Family] = {
    "AuraFlow": Family(solvers=ALL_SOLVERS),
    "BriaPipeline": Family(patch=2, sized=True),
    "Chroma": Family(rows=1, steps_left="up", patch=2, sized=True),
    "CogView3": Family(),
    "CogView4": Family(rows=1, prompts_apart=True, sized=True),
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
        always={"control_mode": no_control_modes},
    ),
    "Flux2": Family(
        sized=True, rows=1, embedded=True, negative=False, strength=False, patch=2, solvers=("euler", "unipc"), references=True
    ),
    "Flux2Klein": Family(sized=True, rows=1, negative=False, strength=False, patch=2, solvers=("euler", "unipc"), references=True),
    "FluxControlPipeline": Family(
        rows=1,
        embedded=True,
        negative=False,
        strength=False,
        patch=2,
        solvers=("euler", "unipc"),
        sized=True,
        picture="control_image",
    ),
    "FluxKontext": Family(
        rows=1,
        embedded=True,
        negative=False,
        strength=False,
        patch=2,
        solvers=("euler", "unipc"),
        sized=True,
        always={"_auto_resize": False, "max_area": pixels},
    ),
    "HunyuanDiT": Family(always={"use_resolution_binning": False}, controlnet="HunyuanDiT2DControlNetModel", timed_controls=False),
    "Kolors": Family(length_first=True, package="sentencepiece"),
    "Krea2": Family(rows=1, unguided=0.0, sized=True, solvers=("euler", "unipc"), patch=2),
    "LatentConsistencyModel": Family(rows=1, steps_left="all", negative=False, solvers=("lcm",)),
    # Its rewriting of prompts would have the language model generate texts.
    "LongCatImage": Family(rows=1, patch=2, sized=True, solvers=("euler", "unipc"), always={"enable_prompt_rewrite": False}),
    "Lumina": Family(prompts_apart=True, solvers=ALL_SOLVERS),
    "Lumina2": Family(rows=1, prompts_apart=True, longest="encoder_attention_mask", sized=True, solvers=("euler", "unipc")),
    "OvisImage": Family(rows=1, patch=2, sized=True, solvers=("euler", "unipc")),
    "PixArt": Family(always={"use_resolution_binning": False}),
    "PRX": Family(least_guidance=1.0, solvers=ALL_SOLVERS, libraries=("ftfy",), always={"use_resolution_binning": False}),
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
    "StableDiffusionInstructPix2Pix": Family(rows=3, strength=False, further=("image_guidance_scale",)),
    # The pipeline computes with the scheduler's sigmas, and its UNet is given the text as a whole beside the time.
    "StableDiffusionLatentUpscale": Family(projected=False, strength=False, enlarges=2, solvers=("euler",)),
    "StableDiffusionUpscale": Family(strength=False, enlarges=4, further=("noise_level",)),
    "StableDiffusionXLInstructPix2Pix": Family(rows=3, strength=False, further=("image_guidance_scale",)),
    "StableDiffusion3": Family(steps_left="up", solvers=("euler", "heun"), controlnet="SD3ControlNetModel"),
    "StableUnCLIPImg2Img": Family(
        strength=False, further=("noise_level",), most_noise=999, by_itself=("image_encoder",), whole_pictures=True
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
CONTROL_IMAGE = "needs a control image for every row, which is not supported yet"
READS_PICTURES = "has its language model read the pictures that it edits, which is not supported yet"
STAGES = "renders in stages that are pipelines of their own, and a run has one"
NO_PROMPT = "takes no prompt, and each row of a manifest has one"
NO_PICTURE = "makes no picture of a prompt"
ENDED = "is one of diffusers' deprecated pipelines"
PLACES = "splits its batch by position, so that no two requests could share one"

# Why pipeline classes cannot be served, after "NAMEPipeline …", by what their names begin with; the longest that fits counts.
REFUSED: dict[str, str] = {
    begin: reason
    for reason, begins in (
        (CONTROL_IMAGE, "CogView4Control FluxControlImg2Img FluxControlInpaint"),
        ("renders one number of pixels, whatever size a row asks for", "HiDreamImage"),
        ("renders seven sizes alone, whatever size a row asks for", "Kandinsky5T2I"),
        ("has a language model draw the picture's tokens from torch's global generator, which calls share", "GlmImage"),
        ("has a guider that keeps a state between steps, which requests side by side would mix", "HunyuanImage"),
        (READS_PICTURES, "QwenImageEdit QwenImageLayered LongCatImageEdit JoyImageEdit"),
        (
            STAGES,
            "KandinskyPipeline KandinskyImg2Img KandinskyInpaint KandinskyCombined KandinskyPrior KandinskyV22 Wuerstchen"
            " StableCascade IFPipeline IFImg2Img IFInpainting IFSuperResolution FluxPriorRedux",
        ),
        ("raises in diffusers itself, which looks for guidance_embeds in a config that has none", "ChromaInpaint"),
        ("has a second scheduler, which calls side by side would share", "StableUnCLIPPipeline"),
        ("denoises pixels, and promptmill's engine wants a VAE", "PRXPixel"),
        (
            NO_PROMPT,
            "ConsistencyModel DDIM DDPM DiT PNDM ScoreSdeVe KarrasVe RePaint LDMPipeline LDMSuperResolution"
            " StableDiffusionImageVariation PaintByExample",
        ),
        (NO_PICTURE, "Marigold ShapE"),
        ("runs on ONNX Runtime, whose calls cannot be joined", "Onnx StableDiffusionOnnx"),
        ("makes videos", "Helios"),
        ("inverts a picture by a call of its own before it edits the picture", "LEditsPP"),
        (
            ENDED,
            "AltDiffusion Amused BlipDiffusion CycleDiffusion SemanticStableDiffusion StableDiffusionAttendAndExcite"
            " StableDiffusionDiffEdit StableDiffusionInpaintPipelineLegacy StableDiffusionLDM3D"
            " StableDiffusionModelEditing StableDiffusionPanorama StableDiffusionParadigms StableDiffusionPipelineSafe"
            " StableDiffusionPix2PixZero StableDiffusionSAG UnCLIP UniDiffuser VersatileDiffusion VQDiffusion",
        ),
        ("is deprecated by diffusers, and places objects by boxes, which no column gives", "StableDiffusionGLIGEN"),
        (_CONTROLLED.format("StableDiffusionPipeline"), "StableDiffusionAdapter"),
        (_CONTROLLED.format("StableDiffusionXLPipeline"), "StableDiffusionXLAdapter"),
        (
            UNTRIED,
            "BriaFibo ChronoEdit Cosmos2TextToImage DreamLite Flux2KleinInpaint Flux2KleinKV"
            " FluxKontextInpaint Ideogram4 Kandinsky3 Kandinsky5 Kandinsky6 LDMTextToImage NucleusMoE"
            " OmniGen QwenImage21"
            " VisualCloze ZImageOmni",
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
    return REFUSED[max(fitting, key=len)] if fitting else None
