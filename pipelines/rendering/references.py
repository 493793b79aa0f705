"""Brings reference images into the denoiser through IP-Adapters (arXiv:2308.06721), each row with its own images and scales.

Diffusers' own loader puts the adapters into the UNet, and diffusers' own attention processors compute them. A processor multiplies
an adapter's share by one scale for a batch; `RowScales` stands in for that scale, and multiplies each row by its own.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from promptmill.manifests.pixels import to_rgb
from promptmill.manifests.requests import Request
from promptmill.pipelines.rendering.libraries import diffusers
from promptmill.pipelines.rendering.preparing import Job

KEPT = 256 * 2**20  # bytes of embeddings on the device: some 100 images of a plus adapter in fp32
SCALES = "scales of adapters"  # beside the embeddings, in what the UNet is told


class RowScales(list[float]):
    """Holds the scales of one adapter, a number for each row of a batch, where diffusers expects one scale for all rows."""

    def __init__(self, scales: torch.Tensor, device: torch.device):
        super().__init__(scales.tolist())  # a list of zeros makes diffusers pass the adapter over
        self._scales = scales.to(device, torch.float32).reshape(-1, 1, 1)

    def __mul__(self, share: Any) -> Any:
        # As torch multiplies by one number: in fp32, rounded once.
        return (share.float() * self._scales).to(share.dtype)


class ReferenceAdapters:
    """Holds the adapters that a pipeline has loaded, and the embeddings of images that were read.

    Args:
        base: The pipeline, with its image encoder and its adapters loaded.
        names: The types that requests name, in the order in which the adapters were loaded.
    """

    def __init__(self, base: Any, names: Sequence[str]):
        self.names = tuple(names)
        self._base = base
        self._kept: OrderedDict[tuple[str, bool], torch.Tensor] = OrderedDict()
        self._empty: dict[bool, tuple[torch.Tensor, torch.Tensor]] = {}
        self._bytes = 0
        layers = base.unet.encoder_hid_proj.image_projection_layers
        # Whether an adapter reads the encoder's last layer but one, as those with a resampler do, or its one embedding.
        self._hidden = [not isinstance(layer, diffusers.models.embeddings.ImageProjection) for layer in layers]
        self._processors = [one for one in base.unet.attn_processors.values() if hasattr(one, "to_k_ip")]

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Return a picture as the image encoder takes it, (1, 3, S, S): scaled to the encoder's size, cropped around its centre."""
        made: torch.Tensor = self._base.feature_extractor(to_rgb(image), return_tensors="pt").pixel_values
        return made

    def conditions(self, jobs: Sequence[Job], rows: int) -> dict[str, Any]:
        """Return the embeddings and the scales of the jobs' reference images, a row for each row of a call of the UNet.

        Diffusers' pipelines have one image for all samples of a call. So these are put in where a pipeline calls the UNet.

        Args:
            jobs: One for each sample.
            rows: Of the call: as many as jobs, or with guidance twice as many, of which the first half has no image.
        """
        embeddings = []
        for name, hidden in zip(self.names, self._hidden, strict=True):
            empty, unseen = self._nothing(hidden)
            seen = [self._embedded(job, name, hidden, empty) for job in jobs]
            embeddings.append(torch.cat([unseen] * (rows - len(jobs)) + seen)[:, None])
        scales = torch.tensor([[_scale(job.request, name) for name in self.names] for job in jobs], dtype=torch.float32)
        return {"image_embeds": embeddings, SCALES: scales.repeat(rows // len(jobs), 1)}

    def scaled(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return the UNet's call on a batch whose rows bring scales of their own, under `SCALES`."""

        def run(added_cond_kwargs: dict[str, Any], **given: Any) -> Any:
            scales = added_cond_kwargs[SCALES]
            columns = [RowScales(scales[:, place], given["sample"].device) for place in range(len(self.names))]
            for processor in self._processors:
                processor.scale = columns
            return forward(added_cond_kwargs={name: one for name, one in added_cond_kwargs.items() if name != SCALES}, **given)

        return run

    def _embedded(self, job: Job, name: str, hidden: bool, empty: torch.Tensor) -> torch.Tensor:
        place = next((place for place, one in enumerate(job.request.references) if one.type == name), None)
        if place is None:
            return empty
        key = (job.conditioning.sha256[f"references.{place}.image"], hidden)
        if key not in self._kept:
            self._kept[key] = self._encode(job.conditioning.references[place], hidden)[0]
            self._bytes += self._kept[key].nbytes
            while self._bytes > KEPT and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        self._kept.move_to_end(key)
        return self._kept[key]

    def _nothing(self, hidden: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the embeddings that stand for no image: at a scale of 0, and in the half that guidance leads away from."""
        if hidden not in self._empty:
            side = self._base.image_encoder.config.image_size
            self._empty[hidden] = self._encode(torch.zeros(1, 3, side, side), hidden)
        return self._empty[hidden]

    def _encode(self, pixels: torch.Tensor, hidden: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the embeddings of one picture and of none, as diffusers computes them: one picture at a time."""
        made: tuple[torch.Tensor, torch.Tensor] = self._base.encode_image(pixels, self._base.unet.device, 1, hidden)
        return made


def _scale(request: Request, name: str) -> float:
    return next((one.scale for one in request.references if one.type == name), 0.0)
