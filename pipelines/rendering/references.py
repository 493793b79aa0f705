"""Brings reference images into the denoiser through IP-Adapters (arXiv:2308.06721), each row with its own images and scales.

Diffusers' own loader puts the adapters into the denoiser, and diffusers' own attention processors compute them. A processor
multiplies an adapter's share by one scale for a batch; `RowScales` stands in for that scale, and multiplies each row by its own,
within its own mask.

Images of one adapter are read together, or each by itself within its mask. Where rows differ in how many they have, the adapter
stands in the denoiser several times, with the same weights: in a place for each image with a mask, and in one for each number of
images that are read together. In each place the rows that have nothing there have a scale of 0, and a place that no row of a batch
needs is passed over.

`ReferenceAdapters` is for UNets. `rendering.transformer_references` says what transformers do otherwise.
"""

import itertools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from promptmill.manifests.pixels import to_rgb
from promptmill.pipelines.rendering.libraries import diffusers
from promptmill.pipelines.rendering.pictured_faces import PicturedFaces, pack
from promptmill.pipelines.rendering.preparing import Job

KEPT = 256 * 2**20  # bytes of embeddings on the device: some 100 images of a plus adapter in fp32
# Beside the embeddings, in what the denoiser is told.
PLACES, SCALES, WITHIN = "places of adapters", "scales of adapters", "masks of adapters"
EVERYWHERE = 0  # in place of a mask's number


class Masks:
    """Holds the masks of references by numbers, which calls of the UNet can carry for each row, while the masks are in use."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}  # by id, so long as there is a mask of that id
        self._next = itertools.count(EVERYWHERE + 1)
        self._masks: dict[int, weakref.ref[np.ndarray]] = {}
        self._levels: dict[tuple[int, int, torch.device, torch.dtype], torch.Tensor] = {}

    def number(self, mask: np.ndarray | None) -> int:
        """Return the number of a mask, (H, W) bool; `EVERYWHERE` without one."""
        if mask is None:
            return EVERYWHERE
        at = id(mask)
        if at not in self._numbers:
            # Not the id itself, which another mask may have once this one is gone.
            number = self._numbers[at] = next(self._next)
            self._masks[number] = weakref.ref(mask, lambda gone: self._forget(at, number))
        return self._numbers[at]

    def at(self, number: int, queries: int, like: torch.Tensor) -> torch.Tensor:
        """Return a mask as diffusers scales it down for a level of the UNet with so many queries, (1, queries, 1)."""
        if number == EVERYWHERE:
            return torch.ones(1, queries, 1, device=like.device, dtype=like.dtype)
        key = (number, queries, like.device, like.dtype)
        if key not in self._levels:
            mask = self._masks[number]()
            assert mask is not None, "a mask is held by its request while that renders"
            whole = torch.from_numpy(mask).float()[None]
            scaled = diffusers.image_processor.IPAdapterMaskProcessor.downsample(whole, 1, queries, 1)
            self._levels[key] = scaled.to(like.device, like.dtype)
        return self._levels[key]

    def _forget(self, at: int, number: int) -> None:
        # Called in whatever thread collects garbage, while another may add.
        if self._numbers.get(at) == number:
            del self._numbers[at]
        self._masks.pop(number, None)
        for key in [key for key in list(self._levels) if key[0] == number]:
            self._levels.pop(key, None)


class RowScales(list[float]):
    """Holds the scales of one adapter, a number for each row of a batch, where diffusers expects one scale for all rows.

    Args:
        scales: (rows,) float32.
        device: That of the denoiser.
        within: For each row the number of its mask; None where no row has one.
        masks: The masks.
    """

    def __init__(self, scales: torch.Tensor, device: torch.device, within: Sequence[int] | None = None, masks: Masks | None = None):
        super().__init__(scales.tolist())  # a list of zeros makes diffusers pass the adapter over
        self._scales = scales.to(device, torch.float32).reshape(-1, 1, 1)
        self._within, self._masks = within, masks
        self._at: dict[int, torch.Tensor] = {}

    def __mul__(self, share: Any) -> Any:
        if self._within is not None and self._masks is not None:
            queries = share.shape[1]
            if queries not in self._at:
                self._at[queries] = torch.cat([self._masks.at(number, queries, share) for number in self._within])
            share = share * self._at[queries]
        # As torch multiplies by one number: in fp32, rounded once.
        return (share.float() * self._scales).to(share.dtype)

    def __rmul__(self, share: Any) -> Any:
        return self * share

    def __ne__(self, other: object) -> bool:
        """Return whether any row's scale is another number: where all are zeros, diffusers passes an adapter over."""
        return any(scale != other for scale in self)


@dataclass(frozen=True, order=True)
class Place:
    """Names a place of an adapter in the denoiser.

    Attributes:
        adapter: The adapter's number, in the order in which adapters were loaded.
        images: How many images are read together there.
        rank: Which image it is, of those that are read one by one.
    """

    adapter: int
    images: int = 1
    rank: int = 0


class ReferenceAdapters:
    """Holds the adapters that a pipeline has loaded, and the embeddings of images that were read.

    Args:
        base: The pipeline, with its image encoder and its adapters loaded.
        names: The types that requests name, in the order in which the adapters were loaded.
        faces: Those types that are embeddings of faces.
        led_first: Whether a call with guidance begins with the rows that guidance leads to.

    Attributes:
        part: What the pipeline calls the denoiser.
        argument: The argument of the denoiser's call that holds what it is told of references.
        key: That of the embeddings there.
        apart: Whether a call of its own has the rows that guidance leads away from.
        loras: By type, the name of the LoRA that an adapter of faces has brought into the denoiser.
    """

    part: ClassVar[str] = "unet"
    argument: ClassVar[str] = "added_cond_kwargs"
    key: ClassVar[str] = "image_embeds"
    apart: ClassVar[bool] = False

    def __init__(self, base: Any, names: Sequence[str], faces: Collection[str] = (), led_first: bool = False):
        self.names, self._faces, self._led_first = tuple(names), frozenset(faces), led_first
        self._base, self._denoiser = base, getattr(base, self.part)
        brought = getattr(self._denoiser, "peft_config", {})
        self.loras = {name: f"faceid_{number}" for number, name in enumerate(names) if f"faceid_{number}" in brought}
        self._kept: OrderedDict[tuple[str, bool], torch.Tensor] = OrderedDict()
        self._empty: dict[bool, tuple[torch.Tensor, torch.Tensor]] = {}
        self._bytes = 0
        self._masks = Masks()
        self._layers = self._projections()
        # Whether an adapter reads the encoder's last layer but one, as those with a resampler do, or its one embedding.
        self._hidden = [not isinstance(layer, diffusers.models.embeddings.ImageProjection) for layer in self._layers]
        self._processors = [one for one in self._denoiser.attn_processors.values() if hasattr(one, "to_k_ip")]
        self._places = self._stand = tuple(Place(number) for number in range(len(names)))
        self._known = {str(self._places): self._places}
        self._weights = self._weights_of_all()

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Return a picture as the image encoder takes it, (1, 3, S, S): scaled to the encoder's size, cropped around its centre."""
        made: torch.Tensor = self._base.feature_extractor(to_rgb(image), return_tensors="pt").pixel_values
        return made

    def expect(self, jobs: Iterable[Job], anew: bool = False) -> None:
        """Add the places that jobs need, so that calls of the denoiser from now on have a place for each of their images.

        Args:
            jobs: The jobs.
            anew: Whether no other jobs are under way, so that places for these alone will do.
        """
        there = (Place(number) for number in range(len(self.names))) if anew else self._places
        self._places = tuple(sorted({*there, *(place for job in jobs for place in self._held(job))}))
        self._known[str(self._places)] = self._places

    def conditions(self, jobs: Sequence[Job], rows: int, away: bool = False) -> dict[str, Any]:
        """Return the embeddings and the scales of the jobs' reference images, a row for each row of a call of the denoiser.

        Diffusers' pipelines have one image for all samples of a call. So these are put in where a pipeline calls the denoiser.

        Args:
            jobs: One for each sample.
            rows: Of the call: as many as jobs, or with guidance two or three times as many. Those that guidance leads to have the
                images: the last ones, or the first ones where `led_first`.
            away: Whether guidance leads away from the call. Only where `apart` is that ever a call of its own.
        """
        self.expect(jobs)
        held = [self._held(job) for job in jobs]
        return self._told(jobs, held, rows, [self._embeddings(place, jobs, held, rows) for place in self._places])

    def _told(
        self, jobs: Sequence[Job], held: Sequence[dict[Place, tuple[int, ...]]], rows: int, embeddings: list[torch.Tensor]
    ) -> dict[str, Any]:
        repeats = rows // len(jobs), 1
        return {
            self.key: embeddings,
            PLACES: str(self._places),
            SCALES: _by_row(jobs, held, self._places, _scale, 0.0).repeat(repeats),
            WITHIN: _by_row(jobs, held, self._places, self._mask, EVERYWHERE).repeat(repeats),
        }

    def scaled(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return the denoiser's call on a batch whose rows bring scales and masks of their own, under `SCALES` and `WITHIN`."""

        def run(**given: Any) -> Any:
            told = dict(given.pop(self.argument))
            places, scales, within = self._known[told.pop(PLACES)], told.pop(SCALES), told.pop(WITHIN).tolist()
            columns = []
            for place in range(len(places)):
                numbers = [row[place] for row in within]
                masked = numbers if any(number != EVERYWHERE for number in numbers) else None
                columns.append(RowScales(scales[:, place], self._denoiser.device, masked, self._masks))
            return forward(**{self.argument: self._set_up(places, columns, told)}, **given)

        return run

    def _projections(self) -> list[Any]:
        """Return the layers of the denoiser that make tokens of embeddings, one for each adapter."""
        return [*self._denoiser.encoder_hid_proj.image_projection_layers]

    def _weights_of_all(self) -> list[tuple[Any, list[Any], list[Any]]]:
        """Return each attention processor with its layers for keys and for values, one for each adapter."""
        return [(one, [*one.to_k_ip], [*one.to_v_ip]) for one in self._processors]

    def _set_up(self, places: tuple[Place, ...], columns: Sequence[RowScales], told: dict[str, Any]) -> dict[str, Any]:
        """Let the denoiser have the adapters at some places with their scales; return what its call is told.

        Args:
            places: The places.
            columns: The scales of each.
            told: What the rows bring, of which `key` has the embeddings of each place.
        """
        self._stand_at(places)
        for processor in self._processors:
            processor.scale = columns
        return told

    def _held(self, job: Job) -> dict[Place, tuple[int, ...]]:
        """Return the places that a job's references have, each with the numbers of the references."""
        held: dict[Place, tuple[int, ...]] = {}
        for adapter, name in enumerate(self.names):
            numbers = tuple(number for number, one in enumerate(job.request.references) if one.type == name)
            if numbers and job.request.references[numbers[0]].mask is None:
                held[Place(adapter, len(numbers))] = numbers
            else:
                held |= {Place(adapter, rank=rank): (number,) for rank, number in enumerate(numbers)}
        return held

    def _stand_at(self, places: tuple[Place, ...]) -> None:
        """Let the denoiser's processors and projections have the adapters at some places."""
        if places == self._stand:
            return
        chosen, projections = [place.adapter for place in places], self._denoiser.encoder_hid_proj
        projections.image_projection_layers = torch.nn.ModuleList(self._layers[adapter] for adapter in chosen)
        for processor, keys, values in self._weights:
            processor.to_k_ip = torch.nn.ModuleList(keys[adapter] for adapter in chosen)
            processor.to_v_ip = torch.nn.ModuleList(values[adapter] for adapter in chosen)
        self._stand = places

    def _embeddings(
        self, place: Place, jobs: Sequence[Job], held: Sequence[dict[Place, tuple[int, ...]]], rows: int
    ) -> torch.Tensor:
        """Return the embeddings at a place for each row of a call, (rows, images, …)."""
        hidden = self._hidden[place.adapter]
        nothing = self._no_face(place.adapter) if self.names[place.adapter] in self._faces else self._nothing(hidden)
        empty, unseen = (torch.cat([one] * place.images)[None] for one in nothing)
        seen = [
            torch.cat([self._embedded(job, number, hidden) for number in mine[place]])[None] if place in mine else empty
            for job, mine in zip(jobs, held, strict=True)
        ]
        return self._in_order(seen, unseen, rows)

    def _in_order(self, seen: list[torch.Tensor], unseen: torch.Tensor, rows: int) -> torch.Tensor:
        """Return the rows of a call: those of the jobs, and the same one for each other row, in the order of the call."""
        others = [unseen] * (rows - len(seen))
        return torch.cat([*seen, *others] if self._led_first else [*others, *seen])

    def _mask(self, job: Job, number: int) -> int:
        return self._masks.number(job.conditioning.within[number])

    def _no_face(self, adapter: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the embeddings that stand for no face, as diffusers documents them: zeros, and those of no picture beside them."""
        layer = self._layers[adapter]
        if isinstance(layer, PicturedFaces):
            face = self._face(np.zeros(layer.width, np.float32))
            empty, unseen = self._nothing(True)
            return pack(face, empty), pack(face, unseen)
        first = layer.proj_in if hasattr(layer, "proj_in") else layer.ff.net[0].proj
        zeros = self._face(np.zeros(first.in_features, np.float32))
        return zeros, zeros

    def tokens(self, name: str, jobs: Sequence[Job], rows: int) -> torch.Tensor:
        """Return the tokens that an adapter makes of faces, (rows, tokens, width), for a ControlNet that reads them (InstantID).

        Args:
            name: The adapter's type.
            jobs, rows: As for `conditions`.
        """
        adapter = self.names.index(name)
        faces = [next(number for number, one in enumerate(job.request.references) if one.type == name) for job in jobs]
        seen = [self._layers[adapter](self._embedded(job, face, False)) for job, face in zip(jobs, faces, strict=True)]
        if rows == len(jobs):
            return torch.cat(seen)
        unseen = self._layers[adapter](self._no_face(adapter)[0])
        return self._in_order(seen, unseen, rows)

    def _face(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self._denoiser.device, self._denoiser.dtype)[None, None]

    def _embedded(self, job: Job, number: int, hidden: bool) -> torch.Tensor:
        one, read = job.request.references[number], job.conditioning.references[number]
        if one.embedding is None:
            return self._seen(job, number, read, hidden)
        if one.image is None:
            return self._face(read)
        picture, face = read
        return pack(self._face(face), self._seen(job, number, picture, hidden))

    def _seen(self, job: Job, number: int, pixels: torch.Tensor, hidden: bool) -> torch.Tensor:
        """Return the embeddings of the picture of a job's reference, which are kept."""
        key = (job.conditioning.sha256[f"references.{number}.image"], hidden)
        if key not in self._kept:
            self._kept[key] = self._encode(pixels, hidden)[0]
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
        made: tuple[torch.Tensor, torch.Tensor] = self._base.encode_image(pixels, self._denoiser.device, 1, hidden)
        return made


def _scale(job: Job, number: int) -> float:
    return job.request.references[number].scale


def _by_row(
    jobs: Sequence[Job],
    held: Sequence[dict[Place, tuple[int, ...]]],
    places: Sequence[Place],
    value: Callable[[Job, int], Any],
    absent: Any,
) -> torch.Tensor:
    """Return a value of the first reference at each place, (jobs, places); `absent` where a job has none there."""
    rows = [
        [value(job, mine[place][0]) if place in mine else absent for place in places] for job, mine in zip(jobs, held, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float32 if isinstance(absent, float) else torch.int64)
