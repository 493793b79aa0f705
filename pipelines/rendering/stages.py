"""Renders the stages that kept images go through."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from promptmill.configs.language_models import Captions
from promptmill.configs.schema import Config
from promptmill.configs.stages import Detail, Faces, Hires, Upscale
from promptmill.configs.weights import Weights
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.models.clip_sources import fetched_file
from promptmill.pipelines.models.sources import find_local
from promptmill.pipelines.rendering.calls import constant_of
from promptmill.pipelines.rendering.captioning import load_captioner
from promptmill.pipelines.rendering.conditioning import prepare
from promptmill.pipelines.rendering.detecting import Detector, load_detector
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.rendering.face_finding import BoxedFaces, load_yunet
from promptmill.pipelines.rendering.faces import FaceFinder, load_face_restorer
from promptmill.pipelines.rendering.stage_jobs import Detailing, Enlarging, Find, Pictures
from promptmill.pipelines.rendering.upscaling import load_upscaler
from promptmill.pipelines.work.errors import FatalError, ModelError, is_fatal
from promptmill.pipelines.work.results import Candidate, Failure, Outcome, Rendered
from promptmill.pipelines.work.stages import enlarged
from promptmill.pipelines.work.turns import COMPUTING
from promptmill.pipelines.work.units import Unit, candidate_seed

# Returns what becomes of a picture, and how many things were found in it where some are looked for.
Changed = Callable[[np.ndarray], tuple[np.ndarray, int | None]]

Made = TypeVar("Made")


# Renders the stage of a unit, from the images that the stage begins with.
Runner = Callable[[Unit, Pictures], Rendered]


class Stages:
    """Renders stages with a loaded model, and with the networks of the stages themselves.

    Args:
        engine: The engine that has the model.
        config: The run's config.
        captions: Whether the images get captions as well, as the last stage.

    Raises:
        ModelError: A network cannot be loaded.
    """

    def __init__(self, engine: Engine, config: Config, captions: bool = True):
        self._engine, self._seed, self._threads = engine, config.seed, config.model.threads
        self._multiple = read_facts(config.model).multiple if config.stages else 1
        with COMPUTING:
            self._runners = [LOADERS[type(stage)](self, stage) for stage in (config.all_stages if captions else config.stages)]

    def render(self, unit: Unit, pictures: Pictures) -> Rendered:
        """Render the stage that is next on a unit's course.

        Args:
            unit: The unit.
            pictures: The images that the stage begins with.

        Raises:
            FatalError: As `Engine.render`.
        """
        assert unit.course is not None and unit.course.staged is not None
        return self._runners[unit.course.staged.number](unit, pictures)

    def _hires(self, stage: Hires) -> Runner:
        return lambda unit, pictures: self._engine.render(unit, Enlarging(stage, pictures, self._multiple))

    def _detail(self, stage: Detail) -> Runner:
        finds = self._finds(self._detector(stage.detector, stage))
        return lambda unit, pictures: self._engine.render(unit, Detailing(stage, pictures, finds))

    def _upscale(self, stage: Upscale) -> Runner:
        given = getattr(torch, stage.dtype), self._engine.model.device, stage.tile, stage.overlap
        upscaler = load_upscaler(fetched_file(stage), stage.source, *given)

        def larger(picture: np.ndarray) -> tuple[np.ndarray, int | None]:
            size = enlarged((picture.shape[1], picture.shape[0]), stage, self._multiple)
            return prepare(Image.fromarray(upscaler.upscale(picture)), *size), None

        return partial(self._each, larger)

    def _faces(self, stage: Faces) -> Runner:
        given = getattr(torch, stage.dtype), self._engine.model.device, stage.fidelity
        restorer, finder = load_face_restorer(fetched_file(stage), stage.source, *given), self._finder(stage)

        def restored(picture: np.ndarray) -> tuple[np.ndarray, int | None]:
            made = restorer.restore(picture, finder)
            return made.pixels, made.faces

        return partial(self._each, restored)

    def _captions(self, stage: Captions) -> Runner:
        captioner = load_captioner(stage, self._engine.model.device)

        def captioned(unit: Unit, pictures: Pictures) -> Rendered:
            places = [(placed, index) for placed, indices in unit.next_pass() for index in indices]
            seeds = [candidate_seed(self._seed, placed.request, index) for placed, index in places]
            with COMPUTING:
                torch.set_num_threads(self._threads)
                written = captioner.captions([pictures[placed.row, index] for placed, index in places], seeds)
            made: dict[int, list[Candidate]] = {placed.row: [] for placed, _ in unit.next_pass()}
            for (placed, index), seed, said in zip(places, seeds, written, strict=True):
                failure, caption = (said, None) if isinstance(said, Failure) else (None, said)
                made[placed.row].append(Candidate(index, seed, None, 0, failure, caption=caption))
            return Rendered(tuple(Outcome(row, tuple(some)) for row, some in made.items()))

        return captioned

    def _detector(self, weights: Weights, stage: Detail | Faces) -> Detector:
        return load_detector(weights, stage.labels, stage.threshold, stage.most, self._engine.model.device)

    def _finder(self, stage: Faces) -> FaceFinder:
        if stage.yunet is not None:
            return load_yunet(find_local(stage.yunet.source), stage.yunet.source, stage.threshold, stage.most)
        assert stage.detector is not None
        return BoxedFaces(self._detector(stage.detector, stage))

    def _finds(self, detector: Detector) -> Find:
        return lambda picture: self._tried(lambda: detector.find(picture))

    def _tried(self, call: Callable[[], Made]) -> Made | Failure:
        """Return the result of a call of a network, or the failure of its picture; raise FatalError as `render` does."""
        try:
            with COMPUTING:
                torch.set_num_threads(self._threads)
                return call()
        except ModelError as error:
            return Failure("non_finite", str(error))
        except Exception as error:
            if is_fatal(error):
                raise FatalError(str(error).splitlines()[0]) from error
            return Failure("render_error", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")

    def _each(self, changed: Changed, unit: Unit, pictures: Pictures) -> Rendered:
        """Return the outcomes of requests each of whose pictures is changed by itself."""
        made: dict[int, list[Candidate]] = {placed.row: [] for placed, _ in unit.next_pass()}
        for placed, indices in unit.next_pass():
            for index in indices:
                seed = candidate_seed(self._seed, placed.request, index)
                tried = self._tried(partial(changed, pictures[placed.row, index]))
                pixels, found = (None, None) if isinstance(tried, Failure) else tried
                failure = tried if isinstance(tried, Failure) else constant_of(tried[0])
                made[placed.row].append(Candidate(index, seed, None if failure else pixels, 0, failure, found=found))
        return Rendered(tuple(Outcome(row, tuple(some)) for row, some in made.items()))


# By kind of stage, loads its networks and returns its runner.
LOADERS: Mapping[type, Callable[[Stages, Any], Runner]] = {
    Hires: Stages._hires,
    Upscale: Stages._upscale,
    Faces: Stages._faces,
    Detail: Stages._detail,
    Captions: Stages._captions,
}
