"""Renders a unit: requests of one bucket in, an outcome for each out, through diffusers' own pipelines in batches of one shape."""

import inspect
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from configs.schema import Model
from manifests.images import ImageError, Roots, load
from manifests.requests import Request
from pipelines.conditioning import composite, control_map, prepare, prepare_mask
from pipelines.loading import LoadedModel, load_model
from pipelines.results import Candidate, Failure, Outcome, Rendered
from pipelines.text import TextEncoder
from pipelines.units import Placed, Unit, candidate_seed


class FatalError(RuntimeError):
    """This process cannot go on (memory ran out, the GPU is in an undefined state): it has to be replaced."""


@dataclass(frozen=True)
class Conditioning:
    """The images of a request, ready for the model.

    Attributes:
        init: (H, W, 3) uint8, or None.
        mask: (H, W) bool, True = repaint, or None.
        controls: (H, W, 3) uint8 each, one a control.
        sha256: Of the files, by column.
    """

    init: np.ndarray | None
    mask: np.ndarray | None
    controls: tuple[np.ndarray, ...]
    sha256: dict[str, str]


@dataclass(frozen=True)
class Job:
    """One place in a batch: a candidate of a request."""

    placed: Placed
    conditioning: Conditioning
    index: int
    seed: int


class Engine:
    """A loaded model that renders units.

    Args:
        model: What to load.
        job_seed: Of the config; candidates of rows without a seed of their own hash it.
        roots: Where images may lie.
        device: The first GPU or the CPU where it is not given.

    Raises:
        ModelError: The model cannot be loaded.
    """

    def __init__(self, model: Model, job_seed: int, roots: Roots, device: torch.device | None = None):
        torch.set_num_threads(model.threads)
        self._batch, self._job_seed, self._roots = model.batch, job_seed, roots
        self._model: LoadedModel = load_model(model, device)
        self._text = TextEncoder(self._model, model.batch)
        self._evaluated = 0
        self._model.denoiser.register_forward_pre_hook(self._count, with_kwargs=True)
        self._seconds: dict[str, float] = {}

    def render(self, unit: Unit) -> Rendered:
        """Render a unit.

        A request whose images cannot be used fails, a candidate whose pixels cannot be used fails, and their neighbours do not
        notice. A batch that raises is rendered again request by request, so that only the one at fault fails.

        Raises:
            FatalError: Memory ran out, or the GPU failed.
        """
        self._seconds = {}
        outcomes: dict[int, Outcome] = {}
        ready: list[tuple[Placed, Conditioning]] = []
        with self._timed("images"):
            for placed in unit.requests:
                prepared = self._prepare(placed)
                if isinstance(prepared, Outcome):
                    outcomes[placed.row] = prepared
                else:
                    ready.append((placed, prepared))
        if ready:
            made = self._render_ready(ready)
            for (placed, conditioning), result in zip(ready, made, strict=True):
                outcomes[placed.row] = self._outcome(placed, conditioning, result)
        return Rendered(tuple(outcomes[placed.row] for placed in unit.requests), self._seconds)

    def _outcome(self, placed: Placed, conditioning: Conditioning, result: list[Candidate] | Failure) -> Outcome:
        candidates, failure = ((), result) if isinstance(result, Failure) else (tuple(result), None)
        truncated = self._text.truncated(placed.request.prompt)
        return Outcome(placed.row, candidates, failure, conditioning.sha256, truncated)

    def _prepare(self, placed: Placed) -> Conditioning | Outcome:
        request = placed.request
        hashes: dict[str, str] = {}
        read: dict[str, Image.Image] = {}
        for column, path in named_images(request):
            try:
                picture = load(path, self._roots)
            except ImageError as error:
                return Outcome(placed.row, (), Failure("bad_image", f"{column}: {error}"), hashes)
            hashes[column], read[column] = picture.sha256, picture.image
            if placed.images.get(column, picture.sha256) != picture.sha256:
                said = f"{column}: {path} is not what it was when the plan was made"
                return Outcome(placed.row, (), Failure("image_changed", said), hashes)
        size = request.width, request.height
        init, mask = read.get("init_image"), read.get("mask_image")
        controls = (control_map(c.preprocess, prepare(read[f"controls.{i}.image"], *size)) for i, c in enumerate(request.controls))
        return Conditioning(
            prepare(init, *size) if init else None, prepare_mask(mask, *size) if mask else None, tuple(controls), hashes
        )

    def _render_ready(self, ready: list[tuple[Placed, Conditioning]]) -> list[list[Candidate] | Failure]:
        try:
            return list(self._render_together(ready))
        except torch.OutOfMemoryError as error:
            raise FatalError(f"out of memory at batch {self._batch}; set model.batch lower") from error
        except RuntimeError as error:
            if "CUDA error" in str(error) or "out of memory" in str(error):
                raise FatalError(str(error).splitlines()[0]) from error
            failed: Exception = error
        except Exception as error:  # whatever diffusers raises is a fact about these requests, not about the run
            failed = error
        if len(ready) == 1:
            reason = " ".join(str(failed).split())[:500]
            return [Failure("render_error", f"{type(failed).__name__}: {reason}")]
        return [result for one in ready for result in self._render_ready([one])]

    def _render_together(self, ready: list[tuple[Placed, Conditioning]]) -> Iterator[list[Candidate] | Failure]:
        jobs = [
            Job(placed, conditioning, index, candidate_seed(self._job_seed, placed.request, index))
            for placed, conditioning in ready
            for index in range(placed.request.candidates)
        ]
        made: list[Candidate] = []
        for start in range(0, len(jobs), self._batch):
            some = jobs[start : start + self._batch]
            # One shape always: at another batch size the same sample has other bits.
            padded = some + [some[-1]] * (self._batch - len(some))
            made += self._render_batch(padded)[: len(some)]
        start = 0
        for placed, _ in ready:
            yield made[start : start + placed.request.candidates]
            start += placed.request.candidates

    @torch.no_grad()
    def _render_batch(self, jobs: list[Job]) -> list[Candidate]:
        request = jobs[0].placed.request  # of one bucket, so what the call takes once is the same for all
        kinds = [control.type for control in request.controls]
        pipeline = self._model.pipeline(request.mode, kinds, request.scheduler)
        loras = tuple((lora.name, lora.scale) for lora in request.loras)
        before = self._evaluated
        with self._model.adapted(loras):
            with self._timed("text"):
                text = self._text.arguments(
                    [job.placed.request.prompt for job in jobs],
                    [job.placed.request.negative_prompt for job in jobs],
                    loras,
                    guided=request.guidance_scale > 1,
                )
            with self._timed("render"):
                said = self._arguments(pipeline, request, jobs)
                result = pipeline(**text, **said)
                flagged = getattr(result, "nsfw_content_detected", None) or [False] * len(jobs)
                # (B, 3, H, W) in 0 … 1, in the model's dtype: diffusers denormalises in it, so we do not before.
                images = result.images.permute(0, 2, 3, 1).float()
                finite = images.isfinite().flatten(1).all(1).tolist()
                pixels = (images.nan_to_num(0.0) * 255).round().to(torch.uint8).cpu().numpy()
        evaluations = (self._evaluated - before) // len(jobs)
        return [
            _candidate(job, pixels[i], finite[i], bool(flagged[i]), evaluations)  # one a place in the batch
            for i, job in enumerate(jobs)
        ]

    def _arguments(self, pipeline: Any, request: Request, jobs: Sequence[Job]) -> dict[str, Any]:
        """All but the text of a pipeline call, limited to what this pipeline takes."""
        said: dict[str, Any] = {
            "width": request.width,
            "height": request.height,
            "num_inference_steps": request.steps,
            "guidance_scale": request.guidance_scale,
            "generator": [torch.Generator("cpu").manual_seed(job.seed) for job in jobs],
            "output_type": "pt",
        }
        if request.strength is not None:
            said["strength"] = request.strength
        inits = [Image.fromarray(job.conditioning.init) for job in jobs if job.conditioning.init is not None]
        masks = [Image.fromarray(job.conditioning.mask.astype(np.uint8) * 255) for job in jobs if job.conditioning.mask is not None]
        said |= {name: images for name, images in (("image", inits), ("mask_image", masks)) if images}
        if request.controls:
            # One (B, 3, H, W) tensor in 0 … 1 for each ControlNet: the only form in which samples differ in their maps.
            maps = [_as_tensor([job.conditioning.controls[i] for job in jobs]) for i in range(len(request.controls))]
            name = "control_image" if inits else "image"
            said |= {name: _one_or_all(maps), **_steering(request)}
        taken = inspect.signature(pipeline.__call__).parameters
        return {name: value for name, value in said.items() if name in taken}

    def _count(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sample = args[0] if args else kwargs["sample" if "sample" in kwargs else "hidden_states"]
        self._evaluated += len(sample)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + time.monotonic() - started


def named_images(request: Request) -> Iterator[tuple[str, str]]:
    """The images of a request: column and path."""
    if request.init_image is not None:
        yield "init_image", request.init_image
    if request.mask_image is not None:
        yield "mask_image", request.mask_image
    for i, control in enumerate(request.controls):
        yield f"controls.{i}.image", control.image


def _candidate(job: Job, pixels: np.ndarray, finite: bool, flagged: bool, evaluations: int) -> Candidate:
    made = Candidate(job.index, job.seed, None, evaluations)
    if not finite:
        return replace(made, failure=Failure("non_finite", "the model made values that are no numbers; try another dtype or VAE"))
    if flagged:
        return replace(made, failure=Failure("refused_content", "the model's safety checker refused the image"))
    if job.conditioning.init is not None and job.conditioning.mask is not None:
        # An inpainting VAE moves pixels far outside the mask; the original's are put back.
        pixels = composite(job.conditioning.init, pixels, job.conditioning.mask)
    if (pixels == pixels[0, 0]).all():
        return replace(made, failure=Failure("constant_image", f"every pixel is {tuple(pixels[0, 0].tolist())}"))
    return replace(made, pixels=np.ascontiguousarray(pixels))


def _as_tensor(maps: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(maps)).permute(0, 3, 1, 2).float() / 255


def _one_or_all(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _steering(request: Request) -> dict[str, Any]:
    controls = request.controls
    return {
        "controlnet_conditioning_scale": _one_or_all([c.scale for c in controls]),
        "control_guidance_start": _one_or_all([c.start for c in controls]),
        "control_guidance_end": _one_or_all([c.end for c in controls]),
    }
