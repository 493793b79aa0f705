"""Renders the stages that kept images go through."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from promptmill.configs.schema import Config
from promptmill.configs.stages import Detail, Faces, Hires, Upscale
from promptmill.configs.weights import Weights
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.models.clip_sources import hub_file
from promptmill.pipelines.models.sources import adapter_file, find_local
from promptmill.pipelines.rendering.calls import constant_of
from promptmill.pipelines.rendering.conditioning import prepare
from promptmill.pipelines.rendering.detecting import Detector, load_detector
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.rendering.face_finding import BoxedFaces, load_yunet
from promptmill.pipelines.rendering.faces import FaceFinder, FaceRestorer, load_face_restorer
from promptmill.pipelines.rendering.stage_jobs import Detailing, Enlarging, Find, Pictures
from promptmill.pipelines.rendering.upscaling import Upscaler, load_upscaler
from promptmill.pipelines.work.errors import FatalError, ModelError, is_fatal
from promptmill.pipelines.work.results import Candidate, Failure, Outcome, Rendered
from promptmill.pipelines.work.stages import enlarged
from promptmill.pipelines.work.turns import COMPUTING
from promptmill.pipelines.work.units import Unit, candidate_seed

# Returns what becomes of a picture, and how many things were found in it where some are looked for.
Changed = Callable[[np.ndarray], tuple[np.ndarray, int | None]]

Made = TypeVar("Made")


class Stages:
    """Renders stages with a loaded model, and with the networks of the stages themselves.

    Args:
        engine: The engine that has the model.
        config: The run's config.

    Raises:
        ModelError: A network cannot be loaded.
    """

    def __init__(self, engine: Engine, config: Config):
        self._engine, self._seed, self._threads = engine, config.seed, config.model.threads
        self._multiple = read_facts(config.model).multiple if config.stages else 1
        self._upscalers: dict[int, Upscaler] = {}
        self._restorers: dict[int, tuple[FaceRestorer, FaceFinder]] = {}
        self._detectors: dict[int, Detector] = {}
        with COMPUTING:
            for number, stage in enumerate(config.stages):
                if isinstance(stage, Upscale):
                    given = getattr(torch, stage.dtype), engine.model.device, stage.tile, stage.overlap
                    self._upscalers[number] = load_upscaler(_file(stage), stage.source, *given)
                elif isinstance(stage, Detail):
                    self._detectors[number] = self._detector(stage.detector, stage)
                elif isinstance(stage, Faces):
                    dtype = getattr(torch, stage.dtype)
                    restorer = load_face_restorer(_file(stage), stage.source, dtype, engine.model.device, stage.fidelity)
                    self._restorers[number] = restorer, self._finder(stage)

    def _detector(self, weights: Weights, stage: Detail | Faces) -> Detector:
        return load_detector(weights, stage.labels, stage.threshold, stage.most, self._engine.model.device)

    def _finder(self, stage: Faces) -> FaceFinder:
        if stage.yunet is not None:
            return load_yunet(find_local(stage.yunet.source), stage.yunet.source, stage.threshold, stage.most)
        assert stage.detector is not None
        return BoxedFaces(self._detector(stage.detector, stage))

    def render(self, unit: Unit, pictures: Pictures) -> Rendered:
        """Render the stage that is next on a unit's course.

        Args:
            unit: The unit.
            pictures: The images that the stage begins with.

        Raises:
            FatalError: As `Engine.render`.
        """
        assert unit.course is not None and unit.course.staged is not None
        stage, number = unit.course.staged.stage, unit.course.staged.number
        if isinstance(stage, Hires):
            return self._engine.render(unit, Enlarging(stage, pictures, self._multiple))
        if isinstance(stage, Detail):
            return self._engine.render(unit, Detailing(stage, pictures, self._finds(self._detectors[number])))
        if isinstance(stage, Faces):
            restorer, finder = self._restorers[number]

            def restored(picture: np.ndarray) -> tuple[np.ndarray, int | None]:
                made = restorer.restore(picture, finder)
                return made.pixels, made.faces

            return Rendered(tuple(self._each(unit, pictures, restored)))
        upscaler = self._upscalers[number]

        def larger(picture: np.ndarray) -> tuple[np.ndarray, int | None]:
            size = enlarged((picture.shape[1], picture.shape[0]), stage, self._multiple)
            return prepare(Image.fromarray(upscaler.upscale(picture)), *size), None

        return Rendered(tuple(self._each(unit, pictures, larger)))

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

    def _each(self, unit: Unit, pictures: Pictures, changed: Changed) -> list[Outcome]:
        """Return the outcomes of requests each of whose pictures is changed by itself."""
        made: dict[int, list[Candidate]] = {placed.row: [] for placed, _ in unit.next_pass()}
        for placed, indices in unit.next_pass():
            for index in indices:
                seed = candidate_seed(self._seed, placed.request, index)
                tried = self._tried(partial(changed, pictures[placed.row, index]))
                pixels, found = (None, None) if isinstance(tried, Failure) else tried
                failure = tried if isinstance(tried, Failure) else constant_of(tried[0])
                made[placed.row].append(Candidate(index, seed, None if failure else pixels, 0, failure, found=found))
        return [Outcome(row, tuple(some)) for row, some in made.items()]


def _file(stage: Upscale | Faces) -> Path:
    """Return the file of a network's weights, fetched from the hub where the source is a repository."""
    return adapter_file(stage) or hub_file(stage.source, stage.file, stage.revision)
