"""Makes segmentation maps by models of transformers: UperNet, SegFormer, Mask2Former and others."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from promptmill.configs.weights import PartWeights
from promptmill.pipelines.models.annotators import architecture_of, config_file, palette_of
from promptmill.pipelines.models.compatibility import config_of
from promptmill.pipelines.rendering.libraries import transformers
from promptmill.pipelines.rendering.transformers_loading import load_with_processor
from promptmill.pipelines.work.errors import ModelError


class SegmentModel:
    """Finds the class of each pixel, and knows the colours of the classes.

    Args:
        model: The model of transformers, and `processor` its image processor.
        palette: (K, 3) uint8, the colours of the K classes.
    """

    def __init__(self, model: Any, processor: Any, palette: np.ndarray):
        self._model, self._processor, self._palette = model, processor, palette

    @classmethod
    def load(cls, weights: PartWeights, device: torch.device) -> "SegmentModel":
        """Load a segmentation model in fp32. Raises ModelError as `load_with_processor`, or where colours are not known."""
        semantic = architecture_of(config_of(weights, config_file(weights)) or {}).endswith("ForSemanticSegmentation")
        auto = transformers.AutoModelForSemanticSegmentation if semantic else transformers.AutoModelForUniversalSegmentation
        model, processor = load_with_processor(auto, weights, device, "semantic segmentation")
        palette = palette_of(model.config.to_dict())
        if palette is None:
            raise ModelError(f"{weights.source}: its classes have no colours")
        return cls(model, processor, np.array(palette, np.uint8))

    def classes(self, image: np.ndarray) -> np.ndarray:
        """Return the number of the class of each pixel, (H, W) int64, of a picture, (H, W, 3) uint8.

        The classes are those of transformers' pipeline for image segmentation, with its subtask semantic.
        """
        inputs = self._processor(images=[Image.fromarray(image)], return_tensors="pt").to(self._model.device)
        made = self._processor.post_process_semantic_segmentation(self._model(**inputs), target_sizes=[image.shape[:2]])[0]
        return made.cpu().numpy()

    def colored(self, classes: np.ndarray) -> np.ndarray:
        """Return a map in the classes' colours, (H, W, 3) uint8."""
        return self._palette[classes]


def seg(model: SegmentModel, image: np.ndarray) -> np.ndarray:
    """Return a segmentation map, (H, W, 3) uint8, in the colours of the model's config, or else in ADE20K's."""
    return model.colored(model.classes(image))
