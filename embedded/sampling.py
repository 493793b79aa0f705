"""Makes pictures with the shipped families, with the UNet in every mode, by diffusers' own pipelines over one set of weights."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

from promptmill.embedded import weights
from promptmill.embedded.autoencoder import to_tensor

STEPS = 20
GUIDANCE = 3.0
BATCH = 48


@dataclass(frozen=True)
class EmbeddedFamily(ABC):
    """Loads a family once and renders with its weights: pictures (B, 64, 64, 3) uint8, each by its seed alone.

    This class has what every family can do, whatever its denoiser is; the autoencoder and the CLIP that scores are the same.
    """

    folder: Path = field(default=weights.WEIGHTS)

    @property
    @abstractmethod
    def text(self) -> Any:
        """Return diffusers' pipeline from text to pictures."""

    @abstractmethod
    def img2img(self, prompts: Sequence[str], seeds: Sequence[int], source: np.ndarray, **options: Any) -> np.ndarray:
        """Render from pictures, (B, 64, 64, 3) uint8."""

    @abstractmethod
    def control(self, kind: str, prompts: Sequence[str], seeds: Sequence[int], maps: np.ndarray, **options: Any) -> np.ndarray:
        """Render under control maps of a kind, (B, 64, 64, 3) uint8."""

    @cached_property
    def clip(self) -> tuple[Any, Any, Any]:
        return weights.load_clip(self.folder)

    def txt2img(self, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> np.ndarray:
        return self._run(self.text, prompts, seeds, {}, options)

    def _run(self, pipeline: Any, prompts: Sequence[str], seeds: Sequence[int], images: dict, options: dict) -> np.ndarray:
        made = []
        for start in range(0, len(prompts), BATCH):
            some = slice(start, start + BATCH)
            batch = {name: [Image.fromarray(pixels) for pixels in all_[some]] for name, all_ in images.items()}
            made.append(
                pipeline(
                    prompt=list(prompts[some]),
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds[some]],
                    output_type="np",
                    **batch,
                    **{"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, **options},
                ).images
            )
        return np.rint(np.concatenate(made) * 255).astype(np.uint8)

    @torch.no_grad()
    def reconstruct(self, pixels: np.ndarray) -> np.ndarray:
        """Return the autoencoder's reconstructions of pictures, without any noise between."""
        vae = self.text.vae
        parts = []
        for start in range(0, len(pixels), BATCH):
            latents = vae.encode(to_tensor(pixels[start : start + BATCH]).to(vae.device)).latent_dist.mean
            parts.append(vae.decode(latents).sample.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu())
        return torch.cat(parts).numpy()

    @cached_property
    def annotator(self) -> tuple[Any, Any]:
        return weights.load_annotator(self.folder)

    @torch.no_grad()
    def labels(self, pixels: np.ndarray) -> np.ndarray:
        """Return the class of each pixel as the annotator sees it, (B, 64, 64) uint8, as `Pictures.labels` has it."""
        model, processor = self.annotator
        found = []
        for start in range(0, len(pixels), BATCH):
            pictures = [Image.fromarray(one) for one in pixels[start : start + BATCH]]
            made = model(**processor(images=pictures, return_tensors="pt"))
            sizes = [picture.size[::-1] for picture in pictures]
            found += processor.post_process_semantic_segmentation(made, target_sizes=sizes)
        return torch.stack(found).numpy().astype(np.uint8)

    @torch.no_grad()
    def score(self, prompts: Sequence[str], pixels: np.ndarray) -> np.ndarray:
        """Return CLIP scores of pictures under prompts, pair by pair: 100 x cosine, (B,) fp32."""
        return 100 * (self.embed_pictures(pixels) * self.embed_prompts(prompts)).sum(-1).numpy()

    @torch.no_grad()
    def embed_pictures(self, pixels: np.ndarray) -> torch.Tensor:
        """Return the CLIP embeddings of pictures as unit vectors, (B, 128) fp32."""
        model, preprocess, _ = self.clip
        batches = [pixels[i : i + 256] for i in range(0, len(pixels), 256)]
        return torch.cat(
            [model.encode_image(torch.stack([preprocess(Image.fromarray(p)) for p in b]), normalize=True) for b in batches]
        )

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return the CLIP embeddings of prompts as unit vectors, (B, 128) fp32. Each distinct prompt is encoded once."""
        model, _, tokenizer = self.clip
        distinct = list(dict.fromkeys(prompts))
        vectors = torch.cat(
            [model.encode_text(tokenizer(distinct[i : i + 256]), normalize=True) for i in range(0, len(distinct), 256)]
        )
        row = {prompt: number for number, prompt in enumerate(distinct)}
        return vectors[[row[prompt] for prompt in prompts]]


@dataclass(frozen=True)
class Family(EmbeddedFamily):
    """Loads the family in Stable Diffusion's layout, whose denoiser is a UNet."""

    @cached_property
    def text(self) -> StableDiffusionPipeline:
        return weights.load_pipeline(self.folder)

    def img2img(self, prompts: Sequence[str], seeds: Sequence[int], source: np.ndarray, **options: Any) -> np.ndarray:
        return self._run(self._sharing(StableDiffusionImg2ImgPipeline), prompts, seeds, {"image": source}, options)

    def inpaint(
        self, prompts: Sequence[str], seeds: Sequence[int], source: np.ndarray, mask: np.ndarray, **options: Any
    ) -> np.ndarray:
        """Repaint pictures where `mask`, (B, 64, 64) uint8, is 255. Nothing is composited afterwards."""
        images = {"image": source, "mask_image": mask}
        return self._run(self._sharing(StableDiffusionInpaintPipeline), prompts, seeds, images, {"strength": 1.0, **options})

    def control(self, kind: str, prompts: Sequence[str], seeds: Sequence[int], maps: np.ndarray, **options: Any) -> np.ndarray:
        """Render under control maps, (B, 64, 64, 3) uint8; `kind` is "canny" or "seg"."""
        controlnet = weights.load_controlnet(kind, self.folder)
        pipeline = self._sharing(StableDiffusionControlNetPipeline, controlnet=controlnet)
        return self._run(pipeline, prompts, seeds, {"image": maps}, options)

    def _sharing(self, kind: Any, **parts: Any) -> Any:
        pipeline = kind(**self.text.components, **parts, requires_safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline
