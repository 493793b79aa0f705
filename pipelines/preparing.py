"""Makes a request ready for the model: its images read, checked against the plan, brought to size; its candidates as jobs."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from manifests.images import ImageError, Roots, load
from manifests.requests import Request
from pipelines.conditioning import control_map, prepare, prepare_mask
from pipelines.results import Failure, Outcome
from pipelines.units import Placed, candidate_seed


@dataclass(frozen=True)
class Conditioning:
    """The images of a request, ready for the model.

    Attributes:
        init: (H, W, 3) uint8, or None.
        mask: (H, W) bool, True = repaint, or None.
        controls: (H, W, 3) uint8 each, one a control.
        sha256: Of the files, by column.
    """

    init: np.ndarray | None = None
    mask: np.ndarray | None = None
    controls: tuple[np.ndarray, ...] = ()
    sha256: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One candidate to render."""

    placed: Placed
    conditioning: Conditioning
    index: int
    seed: int

    @property
    def request(self) -> Request:
        return self.placed.request


def prepare_request(placed: Placed, roots: Roots) -> Conditioning | Outcome:
    """The images of a request, or what it failed of: an image that cannot be used, or is not the one that was planned."""
    request = placed.request
    hashes: dict[str, str] = {}
    read: dict[str, Image.Image] = {}
    for column, path in named_images(request):
        try:
            picture = load(path, roots)
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


def named_images(request: Request) -> Iterator[tuple[str, str]]:
    """The images of a request: column and path."""
    if request.init_image is not None:
        yield "init_image", request.init_image
    if request.mask_image is not None:
        yield "mask_image", request.mask_image
    for i, control in enumerate(request.controls):
        yield f"controls.{i}.image", control.image


def jobs_of(placed: Placed, conditioning: Conditioning, job_seed: int) -> list[Job]:
    """A request's candidates, each with its seed."""
    request = placed.request
    return [Job(placed, conditioning, index, candidate_seed(job_seed, request, index)) for index in range(request.candidates)]
