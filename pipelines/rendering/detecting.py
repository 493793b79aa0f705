"""Finds things in pictures by transformers' object detectors (DETR, RT-DETR, YOLOS and others), and makes masks of them.

A call of a detector has one picture, scaled as the detector's own image processor scales it, so that the boxes of a picture depend
on the picture alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from promptmill.configs.errors import nearest, quoted
from promptmill.configs.mask_edits import MaskEdit
from promptmill.configs.weights import Weights
from promptmill.pipelines.rendering.libraries import transformers
from promptmill.pipelines.rendering.transformers_loading import load_with_processor
from promptmill.pipelines.work.errors import ModelError

# How ADetailer (github.com/Bing-su/adetailer) repaints what it finds, where nothing else is said: its defaults for the mask.
DETAIL = MaskEdit(grow=4, blur=4, only_masked=True, padding=32)


@dataclass(frozen=True)
class FoundBox:
    """Holds one thing that was found: its label, the detector's score in [0, 1], and its sides in pixels of the picture."""

    label: str
    score: float
    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.bottom - self.top)


@dataclass(frozen=True)
class Detector:
    """Holds a loaded detector, and finds things of some labels with it.

    Attributes:
        name: What errors call it.
        model: transformers' model for object detection, in fp32.
        processor: transformers' image processor for it.
        labels: Which labels count; none for all.
        threshold: The score that a thing has to be above, in [0, 1].
        most: How many things count at most, the largest; None for all.
    """

    name: str
    model: Any
    processor: Any
    labels: frozenset[str]
    threshold: float
    most: int | None

    def find(self, pixels: np.ndarray) -> tuple[FoundBox, ...]:
        """Find things in a picture, (H, W, 3) uint8; return them by their size, the largest first.

        Boxes are cut to the picture; a box of less than a pixel is left out. The caller has the turn of the process (`COMPUTING`).

        Raises:
            ModelError: The detector gives values that are not finite.
        """
        height, width = pixels.shape[:2]
        device = self.model.device
        with torch.inference_mode():
            inputs = self.processor(images=[Image.fromarray(pixels)], return_tensors="pt").to(device)
            outputs = self.model(**inputs)
            sizes = torch.tensor([[height, width]], device=device)
            found = self.processor.post_process_object_detection(outputs, threshold=self.threshold, target_sizes=sizes)[0]
        if not all(bool(torch.isfinite(values).all()) for values in (outputs.logits, outputs.pred_boxes)):
            raise ModelError(f"{self.name}: gives values that are not finite; its weights may be damaged")
        boxes = []
        for score, label, box in zip(found["scores"].tolist(), found["labels"].tolist(), found["boxes"].tolist(), strict=True):
            left, right = (min(max(0.0, side), float(width)) for side in (box[0], box[2]))
            top, bottom = (min(max(0.0, side), float(height)) for side in (box[1], box[3]))
            name = str(self.model.config.id2label[label])
            if (not self.labels or name in self.labels) and right - left >= 1 and bottom - top >= 1:
                boxes.append(FoundBox(name, score, left, top, right, bottom))
        boxes.sort(key=lambda one: (-one.area, -one.score, one.top, one.left, one.label))
        return tuple(boxes[: self.most])


def load_detector(
    weights: Weights,
    labels: Sequence[str] = (),
    threshold: float = 0.5,
    most: int | None = None,
    device: torch.device | None = None,
) -> Detector:
    """Load a detector from a folder or a hub repository in transformers' format, from safetensors alone.

    Args:
        weights: Where the model and its image processor lie.
        labels: Which of the model's labels count, as its config spells them; none for all.
        threshold: The score that a thing has to be above, in [0, 1].
        most: How many things count at most, the largest.
        device: Of the weights and of what is computed, in fp32.

    Raises:
        ModelError: There is no such model, it is none of transformers' object detectors, it lacks weights or an image processor, or
            it has no such label.
    """
    target = device or torch.device("cpu")
    model, processor = load_with_processor(transformers.AutoModelForObjectDetection, weights, target, "object detection")
    if not hasattr(processor, "post_process_object_detection"):
        raise ModelError(f"{weights.source}: its image processor, a {type(processor).__name__}, is none for object detection")
    known = {str(label) for label in model.config.id2label.values()}
    for label in labels:
        if label not in known:
            some = ", ".join(sorted(known)[:8])
            raise ModelError(
                f"{weights.source}: knows no {quoted(label)}{nearest(label, known)}; it has {len(known):,} labels, as {some}"
            )
    return Detector(weights.source, model, processor, frozenset(labels), threshold, most)


def masks_of(boxes: Sequence[FoundBox], height: int, width: int, merged: bool = False) -> tuple[np.ndarray, ...]:
    """Return the masks of what was found, for inpainting: one a box, or one of all.

    `manifests.mask_changes` grows and softens them, and finds the part of the picture around each, as a row's `mask_edit` says;
    `DETAIL` has the usual values.

    Args:
        boxes: What was found; nothing makes no mask.
        height, width: Of the picture, in pixels.
        merged: Whether all boxes make one mask.

    Returns:
        (height, width) bool each, true where the picture is repainted: every pixel that a box touches.
    """
    masks = []
    for box in boxes:
        mask = np.zeros((height, width), bool)
        mask[math.floor(box.top) : math.ceil(box.bottom), math.floor(box.left) : math.ceil(box.right)] = True
        masks.append(mask)
    return (np.logical_or.reduce(masks),) if merged and masks else tuple(masks)
