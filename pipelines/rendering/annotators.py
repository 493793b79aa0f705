"""Makes the control maps that need a model, by the models that a config declares as its annotators."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from promptmill.configs.preprocessors import ANNOTATED, annotator_of, parse_preprocess
from promptmill.configs.weights import AnnotatorWeights
from promptmill.pipelines.rendering import depth_maps, line_maps, pose_maps, sam_maps, segment_maps
from promptmill.pipelines.work.errors import ModelError, is_fatal
from promptmill.pipelines.work.turns import COMPUTING

# By annotator, what loads its model onto a device.
LOADERS: Mapping[str, Callable[[AnnotatorWeights, torch.device], Any]] = {
    "depth": depth_maps.DepthModel.load,
    "seg": segment_maps.SegmentModel.load,
    "sam": sam_maps.SamModel.load,
    "pose": pose_maps.PoseModel.load,
    "softedge": line_maps.load_hed,
    "lineart": line_maps.load_drawing,
}
# By the names of `configs.preprocessors`: what makes the map, (H, W, 3) uint8. It takes the annotator's model, a picture of the
# same shape, and the preprocessor's parameters.
MAKERS: Mapping[str, Callable[..., np.ndarray]] = {
    "depth": depth_maps.depth,
    "normal": depth_maps.normal,
    "seg": segment_maps.seg,
    "sam": sam_maps.sam,
    "pose": pose_maps.pose,
    "softedge": line_maps.softedge,
    "lineart": line_maps.lineart,
}


class MapError(ValueError):
    """Reports a picture of which an annotator makes no map; the message is one line."""


@dataclass
class Annotators:
    """Holds the annotators of a config, of which each is loaded when it is first asked for, and makes maps with them.

    Each picture goes through a model by itself, so that a map depends on no other picture.

    Attributes:
        declared: Where the models come from, by name.
        device: The device of all models.
        threads: CPU threads that compute.
    """

    declared: Mapping[str, AnnotatorWeights]
    device: torch.device
    threads: int = 1
    _loaded: dict[str, Any] = field(default_factory=dict)

    @property
    def loaded(self) -> tuple[str, ...]:
        """Return the names of the annotators whose models are in memory."""
        return tuple(self._loaded)

    def load(self, names: Iterable[str]) -> None:
        """Load the models of annotators, those that are not loaded yet.

        Raises:
            ModelError: One line on what is not declared, or cannot be loaded.
        """
        for name in names:
            if name in self._loaded:
                continue
            if name not in self.declared:
                raise ModelError(f"no model.annotators.{name} is declared")
            with COMPUTING:
                self._loaded[name] = LOADERS[name](self.declared[name], self.device)

    def map(self, preprocess: str, image: np.ndarray) -> np.ndarray:
        """Make a control map of a prepared picture; the same pixels always give the same map.

        Args:
            preprocess: A name of `configs.preprocessors.ANNOTATED`, perhaps with parameters.
            image: (H, W, 3) uint8.

        Returns:
            (H, W, 3) uint8.

        Raises:
            ModelError: As `load`.
            MapError: The annotator cannot make a map of this picture.
        """
        name, values = parse_preprocess(preprocess)
        self.load([ANNOTATED[name]])
        model = self._loaded[ANNOTATED[name]]
        with COMPUTING, torch.no_grad():
            torch.set_num_threads(self.threads)  # MKL has one setting for the whole process
            try:
                return MAKERS[name](model, np.ascontiguousarray(image), **values)
            except Exception as error:
                if is_fatal(error):
                    raise
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise MapError(f"{name}: no map of {image.shape[1]} x {image.shape[0]} pixels: {reason}") from error


def is_annotated(preprocess: str) -> bool:
    """Return whether a preprocessor needs a model. Raises ValueError as `configs.preprocessors.parse_preprocess`."""
    return annotator_of(preprocess) is not None
