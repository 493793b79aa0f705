"""Brings reference images into transformers through IP-Adapters: into Flux, and into Stable Diffusion 3.

Neither knows masks. Rows without references go through batches of their own, as a model without adapters computes them: beside
others the attention would give its last layer tensors in another memory format, for which kernels make other last bits.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image

from promptmill.pipelines.rendering.libraries import diffusers
from promptmill.pipelines.rendering.preparing import Job
from promptmill.pipelines.rendering.references import Place, ReferenceAdapters, RowScales


class TransformerReferences(ReferenceAdapters):
    """Holds adapters in a transformer, which is told of references under `joint_attention_kwargs`."""

    part: ClassVar[str] = "transformer"
    argument: ClassVar[str] = "joint_attention_kwargs"
    key: ClassVar[str] = "ip_adapter_image_embeds"

    def conditions(self, jobs: Sequence[Job], rows: int, away: bool = False) -> dict[str, Any]:
        """Return the same as `ReferenceAdapters.conditions`, but an empty dict for jobs without references.

        Such jobs are never among others.
        """
        return super().conditions(jobs, rows, away) if any(map(_has_references, jobs)) else {}

    def scaled(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        adapted = super().scaled(forward)

        def run(**given: Any) -> Any:
            if given[self.argument]:
                return adapted(**given)
            self._switch(False)
            return forward(**given)

        return run

    def _switch(self, adapted: bool) -> None:
        """Let the attention be that of the adapters, or that of a model without adapters."""

    def _set_up(self, places: tuple[Place, ...], columns: Sequence[RowScales], told: dict[str, Any]) -> dict[str, Any]:
        self._switch(True)
        return told


class FluxReferences(TransformerReferences):
    """Holds the adapters of a Flux (XLabs' layout), of which a row may use several, each with several images."""

    apart: ClassVar[bool] = True

    def __init__(self, base: Any, names: Sequence[str], faces: Collection[str] = (), led_first: bool = False):
        super().__init__(base, names, faces, led_first)
        layers = [one for one in self._denoiser.modules() if getattr(one, "processor", None) in self._processors]
        self._layers_adapted = [(one, one.processor) for one in layers]
        self._plain = diffusers.models.transformers.transformer_flux.FluxAttnProcessor()
        self._adapted = True

    def conditions(self, jobs: Sequence[Job], rows: int, away: bool = False) -> dict[str, Any]:
        """Return the same as `TransformerReferences.conditions`, but for a call by the negative prompt.

        In such a call each adapter of a row sees a black picture, at the row's scale.
        """
        if not away or not any(map(_has_references, jobs)):
            return super().conditions(jobs, rows)
        held = [{Place(place.adapter): numbers for place, numbers in self._held(job).items()} for job in jobs]
        side = self._base.image_encoder.config.image_size
        black, _ = self._encode(self.pixels(Image.new("RGB", (side, side))), False)
        return self._told(jobs, held, rows, [black.expand(rows, place.images, black.shape[-1]) for place in self._places])

    def _switch(self, adapted: bool) -> None:
        if adapted != self._adapted:
            for layer, own in self._layers_adapted:
                layer.set_processor(own if adapted else self._plain)
            self._adapted = adapted

    def _set_up(self, places: tuple[Place, ...], columns: Sequence[RowScales], told: dict[str, Any]) -> dict[str, Any]:
        told = super()._set_up(places, columns, told)
        # Flux's attention passes none over that no row needs.
        needed = [number for number, column in enumerate(columns) if any(column)]
        self._stand_at(tuple(places[number] for number in needed))
        for processor in self._processors:
            processor.scale = [columns[number] for number in needed]
        return {**told, self.key: [told[self.key][number] for number in needed]}

    def _encode(self, pixels: torch.Tensor, hidden: bool) -> tuple[torch.Tensor, torch.Tensor]:
        made = self._base.encode_image(pixels, self._denoiser.device, 1)
        return made, torch.zeros_like(made)


class SD3References(TransformerReferences):
    """Holds the adapter of a Stable Diffusion 3 (InstantX's layout), of which a row has one image.

    The adapter's resampler is given the timestep beside the image, row by row, so that it is part of the transformer's call. Its
    attention without an image is that of a model without adapters.
    """

    def _projections(self) -> list[Any]:
        return [self._denoiser.image_proj]

    def _weights_of_all(self) -> list[tuple[Any, list[Any], list[Any]]]:
        return []

    def _set_up(self, places: tuple[Place, ...], columns: Sequence[RowScales], told: dict[str, Any]) -> dict[str, Any]:
        (scales,), (embeddings,) = columns, told[self.key]
        for processor in self._processors:
            processor.scale = scales
        return {**told, self.key: embeddings[:, 0]}

    def _encode(self, pixels: torch.Tensor, hidden: bool) -> tuple[torch.Tensor, torch.Tensor]:
        made = self._base.encode_image(pixels, self._denoiser.device)
        return made, torch.zeros_like(made)


def _has_references(job: Job) -> bool:
    return any(one.scale for one in job.request.references)
