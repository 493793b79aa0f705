"""Makes the jobs of stages that render pictures anew, tile by tile or thing by thing, and joins their results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from promptmill.configs.mask_edits import MaskEdit
from promptmill.configs.stages import Detail, Hires
from promptmill.manifests.mask_changes import changed, part_around, softened
from promptmill.pipelines.rendering.calls import constant_of
from promptmill.pipelines.rendering.conditioning import Whole, prepare
from promptmill.pipelines.rendering.detecting import FoundBox, masks_of
from promptmill.pipelines.rendering.preparing import Conditioning, Job
from promptmill.pipelines.work.results import Candidate, Failure
from promptmill.pipelines.work.stages import Tiling, enlarged, staged_request, tiling
from promptmill.pipelines.work.units import Placed, candidate_seed

Pictures = Mapping[tuple[int, int], np.ndarray]  # (H, W, 3) uint8, by row and candidate
# Returns the things in a picture, the largest first, or why they are not found.
Find = Callable[[np.ndarray], Sequence[FoundBox] | Failure]


@dataclass
class Enlarging:
    """Makes the jobs of a stage that renders enlarged pictures anew, tile by tile, and joins their results.

    Attributes:
        stage: The stage.
        pictures: The images that the stage begins with.
        multiple: Width and height are multiples of this many pixels.
        tilings: The tiles of each request's pictures, by row.
    """

    stage: Hires
    pictures: Pictures
    multiple: int
    tilings: dict[int, Tiling] = field(default_factory=dict)

    def asked(self, placed: Placed) -> Placed:
        """Return the request with the controls and references that are prepared, at the size of the enlarged picture."""
        picture = next(picture for (row, _), picture in self.pictures.items() if row == placed.row)
        width, height = enlarged((picture.shape[1], picture.shape[0]), self.stage, self.multiple)
        self.tilings[placed.row] = tiling((width, height), self.stage)
        bare = replace(placed.request, init_image=None, mask_image=None, mask_edit=None, outpaint=None)
        return replace(placed, request=replace(bare, width=width, height=height))

    def jobs(self, placed: Placed, prepared: Conditioning, job_seed: int, indices: Sequence[int]) -> list[Job]:
        """Return a job for each tile of some candidates of a request."""
        tiles = self.tilings[placed.row]
        rendered = replace(placed, request=staged_request(placed.request, self.stage, tiles.tile))
        made = []
        for index in indices:
            picture = prepare(Image.fromarray(self.pictures[placed.row, index]), tiles.width, tiles.height)
            maps = (*prepared.controls, *([picture] if self.stage.control else []))
            seed = candidate_seed(job_seed, placed.request, index)
            for part in range(len(tiles.places)):
                conditioning = replace(
                    prepared,
                    init=tiles.cropped(picture, part),
                    controls=tuple(tiles.cropped(one, part) for one in maps),
                    within=tuple(None if one is None else tiles.cropped(one, part) for one in prepared.within),
                )
                # Of equal noise, tiles would have equal patterns.
                made.append(Job(rendered, conditioning, index, (seed + part) % 2**32, part))
        return made

    def candidates(self, row: int, made: Mapping[tuple[int, int], Candidate]) -> tuple[Candidate, ...]:
        """Return the candidates of a request whose tiles were rendered."""
        tiles = self.tilings[row]
        indices = sorted({index for index, _ in made})
        return tuple(_joined(tiles, [made[index, part] for part in range(len(tiles.places))]) for index in indices)


def _joined(tiles: Tiling, parts: Sequence[Candidate]) -> Candidate:
    """Return the candidate that tiles make; its price is that of all of them, and its failure is the first of theirs."""
    evaluations, cached = sum(one.evaluations for one in parts), sum(one.cached for one in parts)
    whole = replace(parts[0], pixels=None, evaluations=evaluations, cached=cached)
    if failure := next((one.failure for one in parts if one.failure), None):
        return replace(whole, failure=failure)
    pixels = tiles.joined([one.pixels for one in parts if one.pixels is not None])
    if (constant := constant_of(pixels)) is not None:
        return replace(whole, failure=constant)
    return replace(whole, pixels=pixels)


@dataclass
class Detailing:
    """Makes the jobs of a stage that renders the things in pictures anew, and puts the results into the pictures.

    Attributes:
        stage: The stage.
        pictures: The images that the stage begins with.
        find: Returns the things in a picture.
        found: How many things each picture has, by row and candidate.
        failures: Why the things in a picture are not found, by row and candidate.
    """

    stage: Detail
    pictures: Pictures
    find: Find
    found: dict[tuple[int, int], tuple[Placed, int, int]] = field(default_factory=dict)
    failures: dict[tuple[int, int], Failure] = field(default_factory=dict)

    def asked(self, placed: Placed) -> Placed:
        """Return the request with the references that are prepared."""
        bare = replace(placed.request, init_image=None, mask_image=None, mask_edit=None, outpaint=None, controls=())
        return replace(placed, request=bare)

    def jobs(self, placed: Placed, prepared: Conditioning, job_seed: int, indices: Sequence[int]) -> list[Job]:
        """Return a job for each thing in some candidates of a request."""
        stage, size = self.stage, (placed.request.width, placed.request.height)
        rendered = replace(placed, request=staged_request(placed.request, stage, size))
        edit = MaskEdit(grow=stage.grow, blur=stage.blur, only_masked=True, padding=stage.padding)
        made = []
        for index in indices:
            picture = self.pictures[placed.row, index]
            seed, number = candidate_seed(job_seed, placed.request, index), 0
            boxes = self.find(picture)
            if isinstance(boxes, Failure):
                self.failures[placed.row, index], boxes = boxes, ()
            for mask in masks_of(boxes, *picture.shape[:2]):
                if not (repaint := changed(mask, edit)).any():
                    continue  # shrunk away
                share = softened(repaint, edit)
                whole = Whole(picture, repaint, part_around(repaint if share is None else share > 0, edit.padding))
                init = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS, whole.part))
                conditioning = replace(prepared, init=init, mask=whole.part_of_mask(size), share=share, whole=whole)
                made.append(Job(rendered, conditioning, index, (seed + number) % 2**32, number))
                number += 1
            self.found[placed.row, index] = placed, seed, number
        return made

    def candidates(self, row: int, made: Mapping[tuple[int, int], Candidate]) -> tuple[Candidate, ...]:
        """Return the candidates of a request with what was rendered of them; one without any thing is as it was."""
        return tuple(
            self._with(index, row, [made[index, part] for part in range(number)], seed)
            for (at, index), (_, seed, number) in sorted(self.found.items(), key=lambda one: one[0])
            if at == row
        )

    def _with(self, index: int, row: int, parts: Sequence[Candidate], seed: int) -> Candidate:
        if lost := self.failures.get((row, index)):
            return Candidate(index, seed, None, 0, lost)
        price = sum(one.evaluations for one in parts), sum(one.cached for one in parts)
        whole = Candidate(index, seed, None, price[0], cached=price[1], found=len(parts))
        if failure := next((one.failure for one in parts if one.failure), None):
            return replace(whole, failure=failure)
        picture = before = self.pictures[row, index]
        # Largest first, so that a thing within another one is seen.
        for one in parts:
            assert one.pixels is not None
            picture = np.where((one.pixels != before).any(-1, keepdims=True), one.pixels, picture)
        if (constant := constant_of(picture)) is not None:
            return replace(whole, failure=constant)
        return replace(whole, pixels=picture)
