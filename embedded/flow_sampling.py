"""Makes pictures with the flow family, by diffusers' own pipelines over one set of weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from diffusers import (
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
)

from promptmill.embedded import weights
from promptmill.embedded.sampling import EmbeddedFamily


@dataclass(frozen=True)
class FlowFamily(EmbeddedFamily):
    """Loads the family in Stable Diffusion 3's layout, without inpainting: diffusers' own takes latents of 16 channels."""

    @cached_property
    def text(self) -> StableDiffusion3Pipeline:
        return weights.load_flow_pipeline(self.folder)

    def img2img(self, prompts: Sequence[str], seeds: Sequence[int], source: np.ndarray, **options: Any) -> np.ndarray:
        return self._run(self._sharing(StableDiffusion3Img2ImgPipeline), prompts, seeds, {"image": source}, options)

    def control(self, kind: str, prompts: Sequence[str], seeds: Sequence[int], maps: np.ndarray, **options: Any) -> np.ndarray:
        """Render under segmentation maps, (B, 64, 64, 3) uint8; `kind` is "seg"."""
        controlnet = weights.load_flow_controlnet(kind, self.folder)
        pipeline = self._sharing(StableDiffusion3ControlNetPipeline, controlnet=controlnet)
        return self._run(pipeline, prompts, seeds, {"control_image": maps}, options)

    def _sharing(self, kind: Any, **parts: Any) -> Any:
        pipeline = kind(**self.text.components, **parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline
