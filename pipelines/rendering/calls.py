"""Calls a diffusers pipeline once: makes its arguments from the jobs of a bucket, and candidates from its result."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from promptmill.configs.parameters import FURTHER
from promptmill.manifests.pixels import to_rgb
from promptmill.manifests.requests import Request
from promptmill.pipelines.models.families import TURNED
from promptmill.pipelines.models.pipeline_classes import plain_mode
from promptmill.pipelines.rendering.conditioning import composite
from promptmill.pipelines.rendering.copies import Copy, to_device, to_host
from promptmill.pipelines.rendering.grounding import repainting, share_of_preview
from promptmill.pipelines.rendering.loaded_model import LoadedModel
from promptmill.pipelines.rendering.preparing import Job
from promptmill.pipelines.rendering.previews import ending_after
from promptmill.pipelines.rendering.refining import Refiner
from promptmill.pipelines.rendering.variations import check_varied, generator_of, vary_noise_of
from promptmill.pipelines.rendering.weighted_texts import CALLBACK
from promptmill.pipelines.work.evaluations import StepsLeft
from promptmill.pipelines.work.results import Candidate, Failure


def call(
    pipeline: Any, model: LoadedModel, jobs: Sequence[Job], wait: Callable[[Copy], None] = Copy.wait
) -> list[tuple[np.ndarray, bool, bool]]:
    """Render jobs of one bucket in one call.

    Args:
        pipeline: The pipeline for the jobs' mode and kinds of control, with their scheduler.
        model: The model whose weights the pipeline has.
        jobs: One for each sample.
        wait: Called with the images on their way to the host; returns once they are there.

    Returns:
        For each job its pixels, (H, W, 3) uint8, whether all values were finite, and whether a safety checker refused the image.
    """
    request = jobs[0].request  # jobs of one bucket share the arguments that a call takes once
    taken = inspect.signature(pipeline.__call__).parameters
    control = "control_image" if "control_image" in taken else "image"
    said = model.family.arguments(request) | _texts(pipeline, jobs, model) | _arguments(request, jobs, model, control)
    if model.family.boxes and (picture := jobs[0].conditioning.init) is not None:
        said |= repainting(pipeline, Image.fromarray(picture), said["generator"], model.device)
    if (eta := model.scheduler_options.eta) is not None:
        if "eta" not in taken:
            raise ValueError(f"{type(pipeline).__name__} takes no eta; leave it out of model.scheduler_options")
        said["eta"] = eta
    if model.prior is not None:
        said |= _embeddings(jobs, model, said)
    if type(pipeline).__name__ in TURNED:
        said |= {"width": said["height"], "height": said["width"]}
    # Not every family takes a negative prompt, a strength, a size, …
    given = {name: value for name, value in said.items() if name in taken}
    if model.family.seeds_steps and "generator" in inspect.signature(step := pipeline.scheduler.step).parameters:
        pipeline.scheduler.step = partial(step, generator=given["generator"])
    if any(job.variation for job in jobs):
        vary_noise_of(pipeline)
    preview = jobs[0].placed.preview
    if preview is not None and (share := request.gligen_scheduled_sampling_beta) is not None:
        given["gligen_scheduled_sampling_beta"] = share_of_preview(pipeline.scheduler, request.steps, share, preview)
    if model.refiner is None:
        result = _previewed(pipeline, given, preview, request.strength, model.family.steps_left)
    else:
        result = _refined(pipeline, model.refiner, given, preview, request.strength)
    check_varied(said["generator"])
    if not hasattr(result, "images"):  # two of diffusers' pipelines say it so
        result.images = result.image
    # Of two names, by the family.
    flagged = getattr(result, "nsfw_content_detected", None) or getattr(result, "nsfw_detected", None) or [False] * len(jobs)
    if isinstance(result.images, np.ndarray):  # some of diffusers' pipelines make nothing else in 0 … 1
        result.images = torch.from_numpy(result.images).permute(0, 3, 1, 2)
    if result.images.shape[1] == 1:
        result.images = result.images.expand(-1, 3, -1, -1)  # of a model that was trained on grey pictures
    if (made := tuple(result.images.shape[-2:])) != (request.height, request.width):
        raise ValueError(f"the pipeline made {made[1]} x {made[0]} pixels of {request.width} x {request.height}")
    # (B, 3, H, W) in 0 … 1, in the model's dtype: diffusers denormalises in it, so we do not before.
    images = result.images.permute(0, 2, 3, 1).float()
    copy = to_host((images.nan_to_num(0.0) * 255).round().to(torch.uint8), images.isfinite().flatten(1).all(1))
    wait(copy)
    pixels, finite = copy.tensors
    return list(zip(map(_opaque, pixels.numpy()), finite.tolist(), map(bool, flagged), strict=True))


def _opaque(pixels: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) pixels; transparent ones, of models that make some, lie on white, as transparent files do."""
    return pixels if pixels.shape[-1] == 3 else np.array(to_rgb(Image.fromarray(pixels)))


def _previewed(
    pipeline: Any, given: Mapping[str, Any], preview: int | None, strength: float | None, left: StepsLeft = "down"
) -> Any:
    """Return the images of a pipeline call, or the images that the pipeline expects after so many steps of it."""
    if preview is None:
        return pipeline(**given)
    with ending_after(preview, pipeline, strength, left) as ended:
        return pipeline(**{**given, **_after_each_step(given, ended)})


def _after_each_step(given: Mapping[str, Any], ended: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that end a call early; texts that change between steps change before."""
    if CALLBACK not in given or CALLBACK not in ended:
        return dict(ended)
    change, end = given[CALLBACK], ended[CALLBACK]

    def both(running: Any, turn: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return end(running, turn, timestep, change(running, turn, timestep, tensors))

    return {**ended, CALLBACK: both}


def _refined(pipeline: Any, refiner: Refiner, given: Mapping[str, Any], preview: int | None, strength: float | None) -> Any:
    """Return the images of a pipeline call whose last steps a refiner takes, or the images expected after so many steps.

    Raises:
        ValueError: One of the two has no step.
    """
    before = refiner.steps_before(pipeline.scheduler, given["num_inference_steps"], strength)
    turns = None if preview is None else max(1, int(preview * (strength or 1.0)))
    if turns is not None and turns <= before:
        return _previewed(pipeline, given, preview, strength)
    following = refiner.following(pipeline.scheduler)
    latents = pipeline(**{**given, "output_type": "latent", "denoising_end": refiner.switch}).images
    # The generators go on where the base has left them.
    taken = inspect.signature(following.__call__).parameters
    rest = {name: value for name, value in given.items() if name in taken} | {"image": latents, "denoising_start": refiner.switch}
    return _previewed(following, rest, None if turns is None else turns - before, None)


def _texts(pipeline: Any, jobs: Sequence[Job], model: LoadedModel) -> dict[str, Any]:
    """Return the text arguments of a pipeline call."""
    request, family = jobs[0].request, model.family
    texts = jobs[:1] if family.one_text else jobs
    away = {"negative_prompt": [job.request.negative_words for job in texts]}
    if model.redux and request.references:
        return model.redux.embeddings(pipeline, jobs) | (away if request.is_led else {})
    if not family.prompted:
        labels = [job.request.class_label for job in jobs]
        return {"batch_size": len(jobs)} | ({"class_labels": labels} if request.class_label is not None else {})
    if model.weighted is not None and model.weighted.needed(request):
        guided = model.guided(request) if family.negative else request.is_led
        return model.weighted.arguments(pipeline, request, guided, len(jobs), family.steps_left)
    said: dict[str, Any] = {"prompt": [job.request.words for job in texts]}
    # None is not the same as nothing: SDXL then takes zeros for the embeddings.
    if request.is_led or (model.guided(request) and (request.negative_words or family.empty_negative)):
        said |= away
    if family.bare_text:
        said = {name: text for name, (text,) in said.items()}
    return said | ({"clip_skip": model.clip_skip} if model.clip_skip else {})


def _embeddings(jobs: Sequence[Job], model: LoadedModel, said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the embeddings that the prior makes for a call of the decoder with these arguments."""
    request = jobs[0].request
    assert model.prior is not None and request.prior_guidance_scale is not None
    given = {name: said[name] for name in ("width", "height", "generator")}
    given |= {"num_inference_steps": request.prior_steps, "guidance_scale": request.prior_guidance_scale}
    led = model.guided(request) or request.prior_guidance_scale > 1.0
    negative = [job.request.negative_words for job in jobs] if led and request.negative_words else None
    return model.prior.embeddings(given, [job.request.words for job in jobs], negative)


def _arguments(request: Request, jobs: Sequence[Job], model: LoadedModel, control: str) -> dict[str, Any]:
    """Return all arguments of a pipeline call but the text; `control` is the name of the one for control images."""
    device = model.device
    said: dict[str, Any] = {
        "width": request.width,
        "height": request.height,
        "num_inference_steps": request.steps,
        "guidance_rescale": request.guidance_rescale,
        "generator": [generator_of(job.seed, job.variation) for job in jobs],
        "output_type": model.family.output,
        "clean_caption": False,  # which diffusers would do to prompts wherever two further packages are installed
    }
    if model.family.guidance:
        said[model.family.guidance] = max(request.guidance_scale, model.family.least)
    # What the family takes of these, the request has.
    said |= {name: value for name in ("strength", *FURTHER) if (value := getattr(request, name)) is not None}
    inits = [job.conditioning.init for job in jobs if job.conditioning.init is not None]
    masks = [job.conditioning.mask for job in jobs if job.conditioning.mask is not None]
    # A call with further pictures is of one row.
    own = [Image.fromarray(one) for one in (*inits[:1], *jobs[0].conditioning.pictures)]
    if own and model.family.single:
        mask = Image.fromarray(np.where(masks[0], 255, 0).astype(np.uint8)) if masks else None
        repainted = {"mask_image": mask, "mask": mask} if masks else {}  # of two names, by the family
        return said | {"image": _one_or_all(own), **repainted}
    # As tensors: of PIL images diffusers makes channels-last ones, which would bring that format into the denoiser.
    if own and model.family.references and not masks:
        said["image"] = own  # a list of references, which all samples share
    elif inits and model.family.whole_pictures and not masks:
        said["image"] = [Image.fromarray(init) for init in inits]
    elif inits:
        picture = _as_tensor(inits, device)
        steers = model.control_class(request.controls[0].type) if request.controls else None
        # Pipelines with ControlNets that begin with noise encode the picture as they encode a control image.
        encoded = model.family.signed or (steers and plain_mode(request.mode) in steers.from_noise)
        said[model.family.picture] = 2.0 * picture - 1.0 if encoded else picture
    if masks:
        said["mask_image"] = to_device(torch.from_numpy(np.stack(masks)).unsqueeze(1).float(), device)
        said["control_mask"] = said["mask_image"]
    if request.controls:
        # One tensor for each ControlNet: the only form in which samples differ in their maps.
        channels = [getattr(model.controlnets[one.type].config, "in_channels", 3) for one in request.controls]
        adapted = model.control_class(request.controls[0].type).part == "adapter"
        images = [[job.conditioning.controls[i] for job in jobs] for i in range(len(request.controls))]
        maps = [
            _as_tensor([_grey(one) for one in some] if adapted and channel == 1 else some, device)
            for some, channel in zip(images, channels, strict=True)
        ]
        if model.family.encoded_controls and not adapted:
            # What is encoded by the VAE is wanted as the VAE wants it; diffusers does so with PIL images alone.
            maps = [2.0 * one - 1.0 for one in maps]
        said |= {control: _one_or_all(maps), **_steering(request, model)}
    return said


def _grey(picture: np.ndarray) -> np.ndarray:
    """Return the luminance of a (H, W, 3) uint8 picture as (H, W, 1)."""
    return np.array(Image.fromarray(picture).convert("L"))[..., None]


def _as_tensor(maps: list[np.ndarray], device: torch.device) -> torch.Tensor:
    """Return (H, W, C) uint8 pictures as one tensor (B, C, H, W) in 0 … 1."""
    return to_device(torch.from_numpy(np.stack(maps)).permute(0, 3, 1, 2).contiguous().float() / 255, device)


def _one_or_all(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _steering(request: Request, model: LoadedModel) -> dict[str, Any]:
    controls = request.controls
    declared = [model.controls[control.type] for control in controls]
    said: dict[str, Any] = {}
    if any(one.mode is not None for one in declared):
        said["control_mode"] = _one_or_all([one.mode for one in declared])
    if declared[0].guess:
        said["guess_mode"] = True
    return said | {
        model.control_class(controls[0].type).scale: _one_or_all([c.scale for c in controls]),
        "control_guidance_start": _one_or_all([c.start for c in controls]),
        "control_guidance_end": _one_or_all([c.end for c in controls]),
    }


def candidate(job: Job, pixels: np.ndarray, finite: bool, refused: bool, evaluations: int, cached: int) -> Candidate:
    """Return the candidate that a job's pixels make, or its failure."""
    made = Candidate(job.index, job.seed, None, evaluations, cached=cached)
    if not finite:
        return replace(made, failure=Failure("non_finite", "the model made values that are no numbers; try another dtype or VAE"))
    if refused:
        return replace(made, failure=Failure("refused_content", "the model's safety checker refused the image"))
    images = job.conditioning
    if images.init is not None and images.mask is not None:
        # An inpainting VAE moves pixels far outside the mask; the original's are put back.
        init, mask = images.init, images.mask
        if images.whole is not None:
            init, mask, pixels = images.whole.picture, images.whole.mask, images.whole.with_part(pixels)
        pixels = composite(init, pixels, mask, images.share)
    # A part of a picture may be plain.
    if job.part is None and (constant := constant_of(pixels)) is not None:
        return replace(made, failure=constant)
    return replace(made, pixels=np.ascontiguousarray(pixels))


def constant_of(pixels: np.ndarray) -> Failure | None:
    """Return the failure of an image, (H, W, 3) uint8, whose pixels are all the same; None of any other."""
    if (pixels == pixels[0, 0]).all():
        return Failure("constant_image", f"every pixel is {tuple(pixels[0, 0].tolist())}")
    return None
