"""Makes maps of depth and of surface normals by depth models of transformers: Depth Anything, DPT, ZoeDepth and others."""

from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from promptmill.configs.weights import PartWeights
from promptmill.pipelines.rendering.libraries import transformers
from promptmill.pipelines.rendering.transformers_loading import load_with_processor

METRIC = ("zoedepth", "glpn", "depth_pro", "prompt_depth_anything")  # types of models that estimate metres


class DepthModel:
    """Estimates the depth of pictures.

    Args:
        model: The model of transformers, and `processor` its image processor.
    """

    def __init__(self, model: Any, processor: Any):
        self._model, self._processor = model, processor
        # Of relative depth, larger values are nearer; of metric depth, farther away.
        kind = getattr(model.config, "depth_estimation_type", None)
        self._metric = kind == "metric" or model.config.model_type in METRIC

    @classmethod
    def load(cls, weights: PartWeights, device: torch.device) -> "DepthModel":
        """Load a depth model in fp32. Raises ModelError as `load_with_processor`."""
        return cls(*load_with_processor(transformers.AutoModelForDepthEstimation, weights, device, "depth estimation"))

    def nearness(self, image: np.ndarray) -> np.ndarray:
        """Estimate how near each pixel is, (H, W) float32 from 0, the farthest of the picture, to 1, the nearest.

        The values are those of transformers' pipeline for depth estimation. A picture without any depth is all 0.

        Args:
            image: (H, W, 3) uint8.

        Raises:
            ValueError: The model gives values that are not finite.
        """
        inputs = self._processor(images=Image.fromarray(image), return_tensors="pt").to(self._model.device)
        found = self._processor.post_process_depth_estimation(self._model(**inputs), [image.shape[:2]])[0]["predicted_depth"]
        depth = found.float().cpu().numpy()
        if not np.isfinite(depth).all():
            raise ValueError("the depth model gives values that are not finite")
        if depth.max() == depth.min():
            return np.zeros_like(depth)
        depth = (depth - depth.min()) / (depth.max() - depth.min())
        return 1 - depth if self._metric else depth


def depth(model: DepthModel, image: np.ndarray) -> np.ndarray:
    """Return a map of depth, the nearest white and the farthest black, (H, W, 3) uint8."""
    return np.repeat((model.nearness(image) * 255).astype(np.uint8)[..., None], 3, axis=-1)


def normal(model: DepthModel, image: np.ndarray, deep: float, background: float) -> np.ndarray:
    """Return a map of surface normals as (H, W, 3) uint8: x, y and z from -1 to 1 as levels from 0 to 255.

    By the slopes of the depth (Sobel), as ControlNet's normal_midas computes them (Zhang et al., arXiv:2302.05543, section 3.3); z
    points at the viewer, x and y up the slope. There slopes have the units of MiDaS; here the depth is scaled first, so that any
    depth model does.

    Args:
        model: The depth model.
        image: (H, W, 3) uint8.
        deep: How deep the scene is, from its nearest to its farthest point, in short sides of the picture.
        background: Up to which share of the depth the map is flat.
    """
    near = model.nearness(image)
    slope = deep * min(near.shape) / 8  # Sobel's kernels add up to 8 times the slope of a pixel
    across, down = (cv2.Sobel(near, cv2.CV_32F, *axis, ksize=3) * slope for axis in ((1, 0), (0, 1)))
    across[near < background] = down[near < background] = 0
    vectors = np.stack([across, down, np.ones_like(near)], axis=-1)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.clip(vectors * 127.5 + 127.5, 0, 255).astype(np.uint8)
