"""Brings reference images into Flux beside the prompt (Flux Redux), each row with its own images and scales.

Diffusers' prior makes embeddings of a picture and a prompt, which Flux takes in place of the prompt. Here they are made for each
row of a call.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from promptmill.manifests.pixels import to_rgb
from promptmill.pipelines.rendering.preparing import Job
from promptmill.pipelines.work.errors import ModelError

KEPT = 256 * 2**20  # bytes of embeddings on the device: about 45 pictures in bf16


class ReduxReferences:
    """Holds the priors of a model, and the embeddings of pictures that were read.

    Args:
        priors: Diffusers' pipelines without text encoders, by the types that requests name.
        device: The device of their weights.
    """

    def __init__(self, priors: Mapping[str, Any], device: torch.device):
        self._priors, self._device = priors, device
        self._kept: OrderedDict[tuple[str, str], torch.Tensor] = OrderedDict()
        self._bytes = 0
        # All pictures are prepared alike, before it is known which type reads them.
        kinds = {str(prior.feature_extractor.to_dict()) for prior in priors.values()}
        if len(kinds) > 1:
            raise ModelError(f"model.references: {', '.join(priors)}: read pictures of different kinds; take one of them")

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Return a picture as the image encoder takes it, (1, 3, S, S): the whole picture at the encoder's size."""
        extractor = next(iter(self._priors.values())).feature_extractor
        made: torch.Tensor = extractor.preprocess(images=to_rgb(image), do_resize=True, return_tensors="pt").pixel_values
        return made

    def embeddings(self, pipeline: Any, jobs: Sequence[Job]) -> dict[str, torch.Tensor]:
        """Return the embeddings of the jobs' prompts and reference images, as arguments of Flux's pipelines.

        Args:
            pipeline: The pipeline that is called, whose text encoders read the prompts.
            jobs: One for each sample, each with references.

        Returns:
            (B, length, width) and (B, width of the pooled text).
        """
        prompts = [job.request.words for job in jobs]
        texts, pooled, _ = pipeline.encode_prompt(prompts, None, device=self._device, max_sequence_length=512)
        rows = [self._row(job, texts[row], pooled[row]) for row, job in enumerate(jobs)]
        whole, short = (torch.stack(some) for some in zip(*rows, strict=True))
        return {"prompt_embeds": whole, "pooled_prompt_embeds": short}

    def _row(self, job: Job, text: torch.Tensor, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sums of what the prior makes of the prompt with each picture, times the picture's scale."""
        pictures = torch.cat([self._embedded(job, place) for place in range(len(job.request.references))])
        scales = torch.tensor([one.scale for one in job.request.references], device=self._device, dtype=pictures.dtype)
        whole = torch.cat([text.expand(len(pictures), *text.shape), pictures], dim=1) * scales[:, None, None]
        return whole.sum(0), (pooled * scales[:, None]).sum(0)

    def _embedded(self, job: Job, place: int) -> torch.Tensor:
        kind = job.request.references[place].type
        key = (kind, job.conditioning.sha256[f"references.{place}.image"])
        if key not in self._kept:
            prior = self._priors[kind]
            pixels = job.conditioning.references[place].to(self._device, next(prior.image_encoder.parameters()).dtype)
            seen = prior.image_encoder(pixel_values=pixels).last_hidden_state
            self._kept[key] = prior.image_embedder(seen).image_embeds
            self._bytes += self._kept[key].nbytes
            while self._bytes > KEPT and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        self._kept.move_to_end(key)
        return self._kept[key]
