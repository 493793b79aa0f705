"""What plain diffusers makes of requests in the families without a UNet: each called as diffusers documents its pipelines."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from itertools import chain
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from promptmill.configs.schedulers import SCHEDULERS
from promptmill.pipelines.work.units import candidate_seed
from tests.pipelines.in_pieces import in_pieces, with_a_timestep_each
from tests.pipelines.plain import DEVICE, JOB_SEED, MODES, picture

OF_PRIORS: dict[str, Any] = {"prior_steps": (2, 3, 5), "prior_guidance_scale": (4.0, 1.0, 3.0, 2.0)}


@dataclass(frozen=True)
class Plain:
    """How the pipelines of a family are called, by diffusers' documentation and not by promptmill's table.

    Attributes:
        pipelines: The class of each mode.
        guidance: The argument for the guidance scale.
        rows: Rows of a denoiser's call that a candidate takes at a guidance scale of 4.
        unguided: The largest guidance scale without guidance.
        negative: Whether there is an argument for negative prompts.
        always_negative: Whether guidance comes with a negative prompt alone, be it an empty one.
        apart: Whether a call pads its texts to the longest of them, so that a row's image would depend on the others' texts.
        strength: Whether there is a strength.
        repainting: The schedulers of rows with a mask, which alone have a strength; None where rows with a mask are like others.
        guided: Whether a guidance scale has an effect.
        references: Whether pictures are a list of references for all images of a call.
        pictures: How many pictures of one row a call takes.
        further: Values to mix of a column that other families do not have.
        small: The initial image, where it has to be smaller than the image that is made of it.
        takes: The argument that takes a picture.
        pillow: Whether pictures are given as Pillow has them.
        single: Whether a call makes one image, of one row's pictures.
        multiple: Sides are multiples of so many pixels, or of fewer.
        guiders: Parts that are given the guidance scale.
        sets: Attributes of the pipeline, functions of the request.
        experts: The class of layers that sort the tokens of all rows by experts.
        said: Further arguments of every call: values, or functions of the request.
        parts: Parts that are given when a model is loaded.
        schedulers: Short names of schedulers to mix; `model` is the one that the model was saved with.
        some: Whether no other schedulers fit.
        noise: Whether the model predicts noise though few of the schedulers for noise fit.
        prior: The class of the pipeline that makes what the family's pipelines decode.
        output: The form of images that makes them 0 … 1.
        one_text: Whether a call has one text, however many images it makes.
        prompted: Whether there is an argument for prompts.
        classes: The number of classes of which each image is of one.
        side: The width and height to ask for; 64 where None.
        fixed: Whether images have that one size.
        signed: Whether a picture is given in -1 … 1.
        prompt: Makes of a text a prompt as the pipelines take prompts.
        mask: The argument for a mask.
        bare: Whether a call of one image takes its texts by themselves.
        with_picture: Rows of a candidate with a picture, where that is another number, and where every step is guided.
        draws: Makes arguments of a call whose noise the candidate's generator draws, where the pipeline takes torch's global one.
    """

    pipelines: Mapping[str, str]
    guidance: str = "guidance_scale"
    rows: int = 2
    unguided: float = 1.0
    negative: bool = True
    always_negative: bool = False
    apart: bool = False
    strength: bool = True
    repainting: tuple[str, ...] | None = None
    guided: bool = True
    references: bool = False
    pictures: int = 1
    further: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    small: str | None = None
    takes: str = "image"
    pillow: bool = False
    single: bool = False
    multiple: int = 1
    guiders: tuple[str, ...] = ()
    sets: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    experts: str | None = None
    said: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, Any] = field(default_factory=dict)
    schedulers: tuple[str, ...] = ("euler", "model")
    some: bool = False
    noise: bool = False
    prior: str | None = None
    output: str = "pt"
    one_text: bool = False
    prompted: bool = True
    classes: int | None = None
    side: int | None = None
    fixed: bool = False
    signed: bool = False
    prompt: Callable[[str], str] = str
    mask: str = "mask_image"
    bare: bool = False
    with_picture: int | None = None
    draws: Callable[[Any, dict[str, Any]], dict[str, Any]] | None = None

    @property
    def ignored(self) -> tuple[str, ...]:
        """The columns without an effect."""
        has = {"prompt": self.prompted, "negative_prompt": self.negative, "guidance_scale": self.guided, "strength": self.strength}
        return tuple(name for name, there in has.items() if not there)

    @property
    def fitting(self) -> tuple[str, ...]:
        """All schedulers that the pipelines can call; of those for noise, the mixed units have some."""
        some = self.fixed or self.some or "ddim" not in self.schedulers
        return self.schedulers if some else (*SCHEDULERS, "model")

    @property
    def follows_flow(self) -> bool:
        return "euler" in self.schedulers and "ddim" not in self.schedulers and not self.noise

    def has_strength(self, mode: str) -> bool:
        """Whether rows of a mode have a strength."""
        return mode == "inpaint" if self.repainting and not self.strength else self.strength

    def solvers(self, mode: str) -> tuple[str, ...]:
        """The schedulers to mix in a mode."""
        return self.repainting if self.repainting and mode == "inpaint" else self.schedulers

    def values(self, number: int, mode: str) -> dict[str, Any]:
        """What a mode's request with a number has of the values to mix, and of images."""
        more = {name: some[number % len(some)] for name, some in self.further.items()}
        if self.classes is not None:
            more["class_label"] = (3, 0, self.classes - 1, 5)[number % 4]
        if self.side is not None:
            more |= {"width": self.side, "height": self.side}
        images = {"init_image": self.small, "mask_image": self.small.replace("small", "mask")} if self.small else {}
        return MODES[mode] | more | {name: image for name, image in images.items() if name in MODES[mode]}

    def fills(self, request: Any, batch: int) -> int:
        """Candidates of a request that fill the engine's batch of the denoiser."""
        if self.with_picture:
            return self.rows * batch // (self.with_picture if request.init_image else self.with_picture - 1)
        holds = request.image_guidance_scale is None or request.image_guidance_scale >= 1.0
        rows = self.rows if request.guidance_scale > self.unguided and holds else 1
        return self.rows * batch // rows


def render_family(
    plain: Plain,
    request: Any,
    count: int,
    base: Any,
    folder: Any,
    batch: int,
    dtype: torch.dtype = torch.float32,
    options: Mapping[str, Any] | None = None,
) -> tuple[np.ndarray, int]:
    """The first `count` candidates of a request by diffusers' own pipeline, loaded for them and called once, or once for each.

    Args:
        plain: How the family's pipelines are called.
        request: What is wanted, without controls and LoRAs.
        count: Candidates, in one call where the pipeline can.
        base: The model's folder.
        folder: That of the images.
        batch: How many texts are encoded, and images decoded, at a time; pictures are encoded one by one.
        options: Options of the scheduler's config.

    Returns:
        Pixels (count, H, W, 3) uint8, and the rows of a candidate that went through the denoiser.
    """
    pipeline, seen = loaded(plain.pipelines[request.mode], base, request, batch, scheduled=options, dtype=dtype, **plain.parts)
    for name, value in plain.sets.items():
        setattr(pipeline, name, value(request))
    for layer in pipeline.transformer.modules() if plain.experts else ():
        if type(layer).__name__ == plain.experts:
            layer.forward = in_pieces(layer.forward, 1)
    for name in plain.guiders:
        setattr(pipeline, name, getattr(pipeline, name).new(guidance_scale=request.guidance_scale))
    said = asked(plain, request, count, folder) | {
        name: value(request) if callable(value) else value for name, value in plain.said.items()
    }
    if plain.experts and "generator" in inspect.signature(step := pipeline.scheduler.step).parameters:
        # Otherwise the scheduler would draw from torch's global generator.
        pipeline.scheduler.step = partial(step, generator=said["generator"])
    if plain.prior:
        embeddings, more = embedded(plain, said, request, base, batch, dtype)
        said, seen = said | embeddings, Both(seen, more)
    if plain.one_text:
        said |= {name: said[name][:1] for name in ("prompt", "negative_prompt") if name in said}
    taken = inspect.signature(pipeline.__call__).parameters
    # Where a pipeline takes no size, the picture has it.
    left_out = ("width", "height", plain.guidance, *(("guidance_scale",) if plain.guiders else ()))
    said = {name: value for name, value in said.items() if name in taken or name not in left_out}
    if "batch_size" in taken:
        said["batch_size"] = count
    if not plain.single:
        return pixels_of(images_of(pipeline(**said)), request, folder), sum(seen) // count
    # Each at the batch shape of the engine, as the candidates of one call would be.
    denoiser = first_of(pipeline, "unet", "transformer")
    denoiser.forward = in_pieces(denoiser.forward, plain.rows * batch)
    cut = ("prompt", "negative_prompt", "generator")
    apart = [said | {name: said[name][k : k + 1] for name in cut if name in said} for k in range(count)]
    if plain.bare:
        apart = [one | {name: one[name][0] for name in cut[:2] if name in one} for one in apart]
    made = torch.cat([images_of(pipeline(**plain.draws(pipeline, one) if plain.draws else one)) for one in apart])
    return pixels_of(made, request, folder), sum(seen) // count


def images_of(result: Any) -> torch.Tensor:
    """The images of a call's result, which two pipelines call otherwise."""
    return result.images if hasattr(result, "images") else result.image


class Both:
    """Two lists of rows, which are added up once both are whole."""

    def __init__(self, *lists: list[int]):
        self._lists = lists

    def __iter__(self) -> Iterator[int]:
        return chain(*self._lists)


def embedded(
    plain: Plain, said: Mapping[str, Any], request: Any, base: Any, batch: int, dtype: torch.dtype
) -> tuple[dict[str, Any], list[int]]:
    """What the prior of a family makes for a call of its decoder, and the rows of its denoiser's calls."""
    prior, seen = loaded(plain.prior or "", Path(base) / "prior", replace(request, scheduler="model"), batch, dtype=dtype)
    prior.prior.forward = in_pieces(prior.prior.forward, plain.rows * batch)
    own = {"num_inference_steps": request.prior_steps, "guidance_scale": request.prior_guidance_scale}
    given = {name: said[name] for name in ("prompt", "generator")} | own
    given |= {name: said[name] for name in ("width", "height") if name in inspect.signature(prior.__call__).parameters}
    if request.negative_prompt and max(request.guidance_scale, request.prior_guidance_scale) > 1.0:
        given["negative_prompt"] = [request.negative_prompt] * len(said["prompt"])
        # Kandinsky's prior makes an embedding of the negative prompt as well, and asks for a generator for each.
        given["generator"] = said["generator"] * (2 if plain.prior.startswith("Kandinsky") else 1)
    made = prior(**given)
    return {name: made[name] for name in made if name.endswith(("image_embeds", "image_embeddings"))}, seen


def meant(encode: Callable[..., Any]) -> Callable[..., Any]:
    """A VAE's `encode` whose distribution gives its mean to those who sample it without a generator.

    Pipelines with control images do so, from torch's global generator: they never make an image again.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        made = encode(*args, **kwargs)
        if spread := getattr(made, "latent_dist", None):
            sample = spread.sample
            spread.sample = lambda generator=None: spread.mode() if generator is None else sample(generator)
        return made

    return wraps(encode)(run)


def loaded(
    kind: str, base: Any, request: Any, batch: int, scheduled: Mapping[str, Any] | None = None, **options: Any
) -> tuple[Any, list[int]]:
    """A pipeline whose parts take as many rows at once as the engine's do, and the rows of its denoiser's calls so far."""
    pipeline = getattr(diffusers, kind).from_pretrained(base, **options).to(DEVICE)
    pipeline.set_progress_bar_config(disable=True)
    if request.scheduler != "model":
        pipeline.scheduler = _scheduler(request.scheduler, pipeline.scheduler.config, **(scheduled or {}))
    elif scheduled:
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **scheduled)
    vae = first_of(pipeline, "vae", "movq", "vqgan", "vqvae")
    if vae is not None:
        decode = in_pieces(vae.decode, batch)
        # As with pictures below: Kandinsky 5's latents have their channels last.
        vae.decode = wraps(decode)(lambda z, *args, **kwargs: decode(z.contiguous(), *args, **kwargs))
        encode = in_pieces(vae.encode, 1)
        # Of Pillow's pictures diffusers makes channels-last tensors, and in that format a CPU's kernels make other bits.
        vae.encode = meant(wraps(encode)(lambda x, *args, **kwargs: encode(x.contiguous(), *args, **kwargs)))
    for name, part in pipeline.components.items():
        if part is not None and name.startswith((*TEXT_ENCODERS, "depth_estimator", "image_encoder")):
            side = 1 if kind.startswith("Kolors") else 0
            part.forward = in_pieces(part.forward, batch if name.startswith(TEXT_ENCODERS) else 1, side)
    seen: list[int] = []
    inner = pipeline.components.get("prior") if pipeline.components.get("unet") else None
    if inner is not None:
        inner.forward = in_pieces(inner.forward, 2 * batch)
    denoiser = first_of(pipeline, "unet", "transformer", "decoder", "prior")
    if kind.startswith("PRX"):
        denoiser.forward = with_a_timestep_each(denoiser.forward)
    for part in filter(None, (denoiser, inner)):
        part.register_forward_pre_hook(lambda module, args, named: seen.append(len([*args, *named.values()][0])), with_kwargs=True)
    return pipeline, seen


TEXT_ENCODERS = ("text_encoder", "prior_text_encoder", "bert")


def first_of(pipeline: Any, *names: str) -> Any:
    """The first part of a pipeline by one of its possible names, or None."""
    return next((part for name in names if (part := pipeline.components.get(name)) is not None), None)


def asked(plain: Plain, request: Any, count: int, folder: Any) -> dict[str, Any]:
    """The arguments of a call that every pipeline of a family takes, and those that the request's images make it take."""
    said = {
        "prompt": [request.prompt] * count,
        "num_inference_steps": request.steps,
        plain.guidance: request.guidance_scale,
        "generator": [torch.Generator().manual_seed(candidate_seed(JOB_SEED, request, k)) for k in range(count)],
        "output_type": plain.output,
        "width": request.width,
        "height": request.height,
    }
    if request.is_led or (plain.negative and (request.negative_prompt or plain.always_negative)):
        said["negative_prompt"] = [request.negative_prompt] * count
    if request.strength and plain.has_strength(request.mode):
        said["strength"] = request.strength
    if request.init_image:
        file = folder / request.init_image
        said[plain.takes] = picture(file, count)
        if plain.pillow:
            said[plain.takes] = [Image.open(file)] * count
        if plain.signed:
            said[plain.takes] = 2.0 * picture(file, count) - 1.0
    further = [one.image for one in request.references] if plain.pictures > 1 else []
    files = [*([request.init_image] if request.init_image else []), *further]
    own = [Image.open(folder / name) for name in files]
    if own and plain.references and not request.mask_image:
        said[plain.takes] = own
    if own and plain.single:
        said[plain.takes] = own if own[1:] else own[0]
    if not plain.prompted:
        del said["prompt"]
    if plain.classes is not None:
        said["class_labels"] = [request.class_label] * count
    said |= {
        name: value
        for name in plain.further
        if name not in (*OF_PRIORS, "gligen_boxes") and (value := getattr(request, name)) is not None
    }
    if request.mask_image:
        file = folder / request.mask_image
        said[plain.mask] = Image.open(file) if plain.single else picture(file, count, 1)
    return said


def pixels_of(images: torch.Tensor, request: Any, folder: Any) -> np.ndarray:
    """Images (B, 3, H, W) in 0 … 1 as (B, H, W, 3) uint8; what a mask leaves is the picture's own."""
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
    made = (images.permute(0, 2, 3, 1).float() * 255).round().to(torch.uint8).cpu().numpy()
    if made.shape[-1] == 4:  # transparent pixels lie on white
        white = [Image.new("RGBA", one.shape[1::-1], "white") for one in made]
        made = np.stack([Image.alpha_composite(under, Image.fromarray(one)) for under, one in zip(white, made, strict=True)])
        made = np.ascontiguousarray(made[..., :3])
    if request.mask_image:
        keep = np.array(Image.open(folder / request.mask_image)) < 128
        made[:, keep] = np.array(Image.open(folder / request.init_image))[keep]
    return made


def _scheduler(name: str, config: Any, **more: Any) -> Any:
    """A scheduler by its short name, as diffusers documents it for a model that was saved with another."""
    flow = config.get("prediction_type") == "flow_prediction" or "shift" in config
    if not flow:
        known = SCHEDULERS[name]
        return getattr(diffusers, known.class_name).from_config(config, **{**known.options, **more})
    shift = config.get("shift", config.get("flow_shift"))
    follows = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    kind, options = {
        "euler": (diffusers.FlowMatchEulerDiscreteScheduler, {"shift": shift}),
        "heun": (diffusers.FlowMatchHeunDiscreteScheduler, {"shift": shift}),
        "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", **follows}),
        "unipc": (diffusers.UniPCMultistepScheduler, follows),
    }[name]
    return kind.from_config(config, **{**options, **more})
