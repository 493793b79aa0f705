"""Prepares requests for the model: reads their images, checks them against the plan, resizes them; makes jobs of candidates."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from promptmill.configs.errors import shown
from promptmill.configs.mask_edits import parse_mask_edit, parse_outpaint
from promptmill.configs.preprocessors import MASKED, parse_preprocess
from promptmill.manifests.embeddings import load_embedding
from promptmill.manifests.images import ImageError, Roots, UnreachableError, elongation, load, mismatch, narrowness
from promptmill.manifests.mask_changes import part_around, softened, widened, widened_mask
from promptmill.manifests.masks import effect_of, prepare_mask
from promptmill.manifests.requests import Request
from promptmill.pipelines.rendering.annotators import MapError
from promptmill.pipelines.rendering.conditioning import Whole, further, prepare
from promptmill.pipelines.rendering.control_maps import ControlMaps, masked
from promptmill.pipelines.rendering.reading_ahead import Read
from promptmill.pipelines.work.errors import ModelError, is_fatal
from promptmill.pipelines.work.results import Code, Failure, Outcome
from promptmill.pipelines.work.units import Placed, candidate_seed, variation_of

Encoded = Callable[[Image.Image], Any]


@dataclass(frozen=True)
class Conditioning:
    """Holds the images of a request, ready for the model.

    Attributes:
        init: (H, W, 3) uint8, or None.
        mask: (H, W) bool, True = repaint, or None.
        share: (H, W) uint8, each pixel's share of the rendered image, 255 for all of it; None: as the mask has it.
        whole: The picture of which `init` and `mask` are a part; None where the model renders the picture as a whole.
        controls: (H, W, 3) uint8 each, one for each control.
        references: What the image encoder takes of each reference image, (1, 3, S, S); of a face its embedding, (width,) float32;
            of a face with its picture both, the picture first.
        within: (H, W) bool for each reference image, where it acts; None where it acts everywhere.
        pictures: (H, W, 3) uint8 of each further picture, each of a size of its own.
        sha256: SHA-256 of the files, by column.
    """

    init: np.ndarray | None = None
    mask: np.ndarray | None = None
    controls: tuple[np.ndarray, ...] = ()
    references: tuple[Any, ...] = ()
    within: tuple[np.ndarray | None, ...] = ()
    pictures: tuple[np.ndarray, ...] = ()
    sha256: dict[str, str] = field(default_factory=dict)
    share: np.ndarray | None = None
    whole: Whole | None = None


@dataclass(frozen=True)
class Job:
    """Holds one candidate to render, or a part of one.

    Attributes:
        part: The number of the part, counted from 0, where a stage renders pieces of a picture; None: the whole candidate.
    """

    placed: Placed
    conditioning: Conditioning
    index: int
    seed: int
    part: int | None = None

    @property
    def variation(self) -> tuple[int, float] | None:
        """Return the seed of the noise that varies the job's, and its share. What a stage renders anew is not varied again."""
        return None if self.part is not None else variation_of(self.request, self.index)

    @property
    def request(self) -> Request:
        return self.placed.request


def prepare_request(
    placed: Placed,
    roots: Roots,
    enlarges: int = 1,
    encoded: Encoded | None = None,
    maps: ControlMaps | None = None,
    read: Read | None = None,
) -> Conditioning | Outcome:
    """Return the images of a request, or its failure: an image that cannot be used or reached, or differs from the planned one.

    Args:
        placed: The request.
        roots: Where images may lie.
        enlarges: How many times larger than the initial image the sides of the rendered images are.
        encoded: Makes of a reference image what the image encoder takes; None where there is no encoder, so that references are
            further pictures.
        maps: The control maps that were made before; None: all are made here.
        read: Reads the file of an image; None: as `content_of` does.

    Raises:
        ModelError: An annotator cannot be loaded.
        RuntimeError: An annotator's memory ran out, or the GPU failed.
    """
    hashes: dict[str, str] = {}
    try:
        prepared = _prepared(placed, roots, hashes, enlarges, encoded, maps or ControlMaps(), read)
    except Exception as error:  # a picture that breaks a library concerns no other request
        if isinstance(error, ModelError) or is_fatal(error):  # of an annotator
            raise
        reason = shown(" ".join(str(error).split()), 300)
        prepared = Failure("render_error", f"images: {type(error).__name__}: {reason}")
    return Outcome(placed.row, (), prepared, hashes) if isinstance(prepared, Failure) else prepared


def _prepared(
    placed: Placed,
    roots: Roots,
    hashes: dict[str, str],
    enlarges: int,
    encoded: Encoded | None,
    maps: ControlMaps,
    read_file: Read | None,
) -> Conditioning | Failure:
    """Return the same as `prepare_request`; the hashes of images that were read are added to `hashes`."""
    request = placed.request
    read: dict[str, Image.Image] = {}
    faces: dict[str, np.ndarray] = {}
    for column, path in request.images():
        known = column in placed.images
        try:
            if column.endswith(".embedding"):
                face = load_embedding(path, roots, placed.file, known)
                hashes[column], faces[column] = face.sha256, face.values
            else:
                # A drawing that steers is drawn at the size at which it does, so that its edges are not scaled.
                covered = (request.width, request.height) if column.startswith("controls.") else None
                picture = load(path, roots, placed.file, known, covered, read_file)
                hashes[column], read[column] = picture.sha256, picture.image
        except ImageError as error:
            code: Code = "unreachable" if isinstance(error, UnreachableError) else "bad_image"
            return Failure(code, f"{column}: {error}", error.fault)
        if placed.images.get(column, hashes[column]) != hashes[column]:
            return Failure("image_changed", f"{column}: {shown(path)} is not what it was when the plan was made")
    init, mask = read.get("init_image"), read.get("mask_image")
    wrong = mismatch(init.size, mask.size) if init and mask else None
    if wrong:
        return Failure("bad_image", wrong)
    size = request.width, request.height
    edit = parse_mask_edit(request.mask_edit)
    if mask and (nothing := effect_of(mask, *size, init, edit).problem):
        return Failure("bad_image", f"mask_image: {shown(request.mask_image or '')}: {nothing}")
    repaint = prepare_mask(mask, *size, init, edit) if mask else None
    try:
        controls = _maps_of(request, read, hashes, maps, repaint)
    except MapError as error:
        return Failure("render_error", f"controls: {error}")
    unfit = narrowness if encoded else elongation
    for column, image in read.items():
        if column.startswith("references.") and column.endswith(".image") and (reason := unfit(image.size)):
            return Failure("bad_image", f"{column}: {reason}")
    # At the encoder's size, since a reference is a whole picture, of any size, and waits as long as its request.
    columns = [[f"references.{number}.{key}" for key in one.sources] for number, one in enumerate(request.references)]
    seen = [tuple(faces[one] if one in faces else encoded(read[one]) for one in own) for own in columns] if encoded else []
    references = [one if len(one) > 1 else one[0] for one in seen]
    further_ones = [] if encoded else [read[one] for own in columns for one in own if one in read]
    pictures = [further(picture, size[0] * size[1]) for picture in further_ones]
    masks = [read.get(f"references.{i}.mask") for i in range(len(request.references))]
    for number, selecting in enumerate(masks):
        if selecting and (nothing := effect_of(selecting, *size).selects):
            return Failure("bad_image", f"references.{number}.mask: {shown(request.references[number].mask or '')}: {nothing}")
    within = tuple(prepare_mask(selecting, *size) if selecting else None for selecting in masks)
    rest = tuple(controls), tuple(references), within, tuple(pictures), hashes
    if init and request.outpaint:
        sides = parse_outpaint(request.outpaint)
        repainted = widened_mask(sides, *size)
        return Conditioning(widened(prepare(init, *sides.within(*size)), sides), repainted, *rest, softened(repainted, edit, sides))
    first = prepare(init, size[0] // enlarges, size[1] // enlarges) if init else None
    if first is None or repaint is None:
        return Conditioning(first, repaint, *rest)
    share = softened(repaint, edit)
    if not edit.only_masked:
        return Conditioning(first, repaint, *rest, share)
    whole = Whole(first, repaint, part_around(repaint if share is None else share > 0, edit.padding))
    return Conditioning(prepare(read["init_image"], *size, whole.part), whole.part_of_mask(), *rest, share, whole)


def _maps_of(
    request: Request,
    read: Mapping[str, Image.Image],
    hashes: Mapping[str, str],
    maps: ControlMaps,
    repaint: np.ndarray | None,
) -> list[np.ndarray]:
    """Return the control maps of a request, each (H, W, 3) uint8, or int16 where a mask takes pixels away."""
    size, columns = (request.width, request.height), [f"controls.{number}.image" for number in range(len(request.controls))]
    made = [
        maps.get(hashes[column], control.preprocess, size, partial(prepare, read[column], *size))
        for column, control in zip(columns, request.controls, strict=True)
    ]
    if repaint is None:
        return made
    return [
        masked(one, repaint) if parse_preprocess(control.preprocess)[0] == MASKED else one
        for one, control in zip(made, request.controls, strict=True)
    ]


def jobs_of(placed: Placed, conditioning: Conditioning, job_seed: int, indices: Iterable[int] | None = None) -> list[Job]:
    """Return a request's candidates, or some of them, as jobs, each with its seed."""
    indices = range(placed.request.candidates) if indices is None else indices
    return [Job(placed, conditioning, index, candidate_seed(job_seed, placed.request, index)) for index in indices]
