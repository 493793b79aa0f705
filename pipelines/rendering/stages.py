"""Renders the stages that kept images go through."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from promptmill.configs.schema import Config
from promptmill.configs.stages import Hires
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.rendering.calls import constant_of
from promptmill.pipelines.rendering.conditioning import prepare
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.rendering.preparing import Conditioning, Job
from promptmill.pipelines.work.results import Candidate, Rendered
from promptmill.pipelines.work.stages import Tiling, enlarged, staged_request, tiling
from promptmill.pipelines.work.units import Placed, Unit, candidate_seed

Pictures = Mapping[tuple[int, int], np.ndarray]  # (H, W, 3) uint8, by row and candidate


class Stages:
    """Renders stages with a loaded model.

    Args:
        engine: The engine that has the model.
        config: The run's config.
    """

    def __init__(self, engine: Engine, config: Config):
        self._engine = engine
        self._multiple = read_facts(config.model).multiple if config.stages else 1

    def render(self, unit: Unit, pictures: Pictures) -> Rendered:
        """Render the stage that is next on a unit's course.

        Args:
            unit: The unit.
            pictures: The images that the stage begins with.

        Raises:
            FatalError: As `Engine.render`.
        """
        assert unit.course is not None and unit.course.staged is not None
        return self._engine.render(unit, Enlarging(unit.course.staged.stage, pictures, self._multiple))


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
