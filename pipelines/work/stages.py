"""Computes the requests that stages render, with their sizes, their tiles and their prices."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from promptmill.configs.parameters import MAX_SIDE, Control
from promptmill.configs.stages import Detail, Hires, StageOrCaptions
from promptmill.manifests.requests import Request
from promptmill.manifests.rules import Rules, problems_of_size
from promptmill.pipelines.work.evaluations import Counting, evaluations

ITSELF = "the picture itself"  # stands where a control's image is named


@dataclass(frozen=True)
class Tiling:
    """Holds the tiles of a picture, all of one size, which cover the picture and overlap.

    Attributes:
        width, height: Of the picture, in pixels.
        tile: Width and height of each tile, in pixels; no more than those of the picture.
        overlap: By how many pixels neighbours overlap at least.
    """

    width: int
    height: int
    tile: tuple[int, int]
    overlap: int

    @cached_property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Return the left and top of each tile, in pixels, row by row; the first and the last lie at the borders."""
        across, down = _starts(self.width, self.tile[0], self.overlap), _starts(self.height, self.tile[1], self.overlap)
        return tuple((left, top) for top in down for left in across)

    def cropped(self, picture: np.ndarray, number: int) -> np.ndarray:
        """Return a tile of a picture, (h, w, C) of (H, W, C)."""
        left, top = self.places[number]
        return np.ascontiguousarray(picture[top : top + self.tile[1], left : left + self.tile[0]])

    def joined(self, tiles: Sequence[np.ndarray]) -> np.ndarray:
        """Return the picture that tiles make, which fade into each other linearly over what they share.

        Args:
            tiles: (h, w, 3) uint8 each, in the order of `places`.

        Returns:
            (H, W, 3) uint8.
        """
        if len(tiles) == 1:
            return tiles[0]
        total = np.zeros((self.height, self.width, 3), np.float64)
        weights = np.zeros((self.height, self.width, 1), np.float64)
        across, down = (_ramp(side) for side in self.tile)
        weight = (down[:, None] * across[None])[..., None]
        for (left, top), tile in zip(self.places, tiles, strict=True):
            part = np.s_[top : top + self.tile[1], left : left + self.tile[0]]
            total[part] += tile * weight
            weights[part] += weight
        return np.rint(total / weights).astype(np.uint8)


def _starts(whole: int, tile: int, overlap: int) -> list[int]:
    """Return where tiles begin along one side, evenly spread."""
    if tile >= whole:
        return [0]
    number = -(-(whole - overlap) // (tile - overlap))
    return [place * (whole - tile) // (number - 1) for place in range(number)]


def _ramp(side: int) -> np.ndarray:
    """Return the weights of a tile's pixels along one side: the nearer to its middle the more, (side,) float64 of whole numbers."""
    places = np.arange(side)
    return np.minimum(places, places[::-1]).astype(np.float64) + 1


def size_after(request: Request, stages: Sequence[StageOrCaptions], multiple: int = 8) -> tuple[int, int]:
    """Return the width and height in pixels of a request's images once they have gone through some stages."""
    size = request.width, request.height
    for stage in stages:
        size = enlarged(size, stage, multiple)
    return size


def enlarged(size: tuple[int, int], stage: StageOrCaptions, multiple: int = 8) -> tuple[int, int]:
    """Return the width and height that a stage makes of a width and height, in pixels: multiples of what the model needs."""
    across, down = (max(1, round(side * stage.scale / multiple)) * multiple for side in size)
    return across, down


def tiling(size: tuple[int, int], stage: Hires) -> Tiling:
    """Return the tiles by which a stage renders a picture of this width and height; one tile where the stage has none."""
    width, height = size
    tile = (min(stage.tile, width), min(stage.tile, height)) if stage.tile else size
    return Tiling(width, height, tile, stage.shared)


def staged_request(request: Request, stage: Hires | Detail, size: tuple[int, int]) -> Request:
    """Return the request that a stage renders for a tile, or a thing, of a kept image of a request.

    Args:
        request: The request as the row makes it.
        stage: The stage.
        size: Width and height of what is rendered, in pixels.
    """
    scale = request.guidance_scale if stage.guidance_scale is None else stage.guidance_scale
    rendered = replace(
        request,
        mode="img2img",
        init_image=ITSELF,
        mask_image=None,
        mask_edit=None,
        outpaint=None,
        strength=stage.strength,
        steps=stage.steps or request.steps,
        guidance_scale=scale,
        scheduler=stage.scheduler or request.scheduler,
        width=size[0],
        height=size[1],
        growing=None,
    )
    if isinstance(stage, Detail) or stage.tile:
        # Boxes are places in the whole picture.
        rendered = replace(rendered, gligen_boxes=(), gligen_scheduled_sampling_beta=None)
    if isinstance(stage, Detail):
        # So are control maps.
        said = {name: text for name in ("prompt", "negative_prompt") if (text := getattr(stage, name)) is not None}
        if said and request.syntax:
            # The config's prompts are words; then the row's are, too.
            said = {"prompt": request.words, "negative_prompt": request.negative_words, "syntax": None, **said}
        return replace(rendered, mode="inpaint", mask_image=ITSELF, controls=(), **said)
    if not request.controls and not stage.control:
        return rendered
    steers = (Control(type=stage.control.type, image=ITSELF, scale=stage.control.scale),) if stage.control else ()
    return replace(rendered, mode="controlnet_img2img", controls=(*request.controls, *steers))


@dataclass(frozen=True)
class StageWork:
    """Holds the work of one stage for a kept image of a request.

    Attributes:
        stage: The stage.
        size: Width and height of the stage's images, in pixels.
        request: The request that is rendered; None where nothing is.
        times: How often the request is rendered: once a tile. Of the things that a detector finds, one is counted.
    """

    stage: StageOrCaptions
    size: tuple[int, int]
    request: Request | None = None
    times: int = 0


def staged(request: Request, stages: Sequence[StageOrCaptions], multiple: int = 8) -> Iterator[StageWork]:
    """Yield the work of each stage for a kept image of a request."""
    size = request.width, request.height
    for stage in stages:
        size = enlarged(size, stage, multiple)
        if isinstance(stage, Hires):
            tiles = tiling(size, stage)
            yield StageWork(stage, size, staged_request(request, stage, tiles.tile), len(tiles.places))
        elif isinstance(stage, Detail):
            yield StageWork(stage, size, staged_request(request, stage, (request.width, request.height)), 1)
        else:
            yield StageWork(stage, size)


def staged_price(request: Request, stages: Sequence[StageOrCaptions], counting: Counting, multiple: int = 8) -> tuple[int, int]:
    """Return how often the denoiser is evaluated for the kept images of a request in all stages.

    Returns:
        The number of evaluations, and the number of evaluations at the row's own size that have as many pixels.
    """
    number, alike = 0, 0.0
    for share in staged(request, stages, multiple):
        if (one := share.request) is not None:
            each = request.keep * share.times * evaluations(one, counting)
            number += each
            alike += each * one.width * one.height / (request.width * request.height)
    return number, round(alike)


@dataclass(frozen=True)
class StageRules:
    """Finds the problems of a config's stages with the images of a request; frozen, so that processes can share it.

    Attributes:
        stages: The config's stages.
    """

    stages: tuple[StageOrCaptions, ...]

    def __call__(self, request: Request, rules: Rules) -> list[str]:
        """Return the problems of the first stage that has some, as `stages.0.scale: what is wrong`."""
        for number, share in enumerate(staged(request, self.stages, rules.multiple)):
            if wrong := [*_problems_of_size(share), *_problems(share, rules)]:
                return [f"stages.{number}.{problem}" for problem in wrong]
        return []


def _problems_of_size(share: StageWork) -> list[str]:
    width, height = share.size
    if max(share.size) > MAX_SIDE:
        return [f"scale: makes {width} x {height} pixels, and no side may have more than {MAX_SIDE:,}"]
    return []


def _problems(share: StageWork, rules: Rules) -> list[str]:
    """Return the problems of the request that a stage renders."""
    stage, one, wrong = share.stage, share.request, list[str]()
    if one is None or not isinstance(stage, Hires | Detail):
        return []
    masked = rules.repainting.schedulers if isinstance(stage, Detail) else ()
    if one.mode not in rules.modes:
        wrong.append(f"kind: renders in mode {one.mode}, which the model does not serve; it serves {', '.join(rules.modes)}")
    if "strength" in rules.ignored and not (rules.repainting.strength and isinstance(stage, Detail)):
        wrong.append("kind: renders from a picture at a strength, and the model takes no strength")
    if one.scheduler not in (some := masked or rules.schedulers):
        wrong.append(f"scheduler: {one.scheduler} does not fit the model, which takes {', '.join(some)}")
    elif one.scheduler in rules.unfit:
        wrong.append(f"scheduler: {rules.unfit[one.scheduler]}")
    elif (reason := rules.cannot_take(one.scheduler, one.steps, one.strength)) is not None:
        wrong.append(f"steps: {reason}")
    if stage.strength * one.steps < 1:
        wrong.append(f"strength: {stage.strength:g} of {one.steps} steps is less than one step; raise one of them")
    if one.guidance_scale < rules.least_guidance:
        wrong.append(f"guidance_scale: {one.guidance_scale:g} is below {rules.least_guidance:g}, the least that the model takes")
    if isinstance(stage, Hires):
        if stage.tile is not None and stage.tile % rules.multiple:
            wrong.append(f"tile: {stage.tile} is not a multiple of {rules.multiple}, which the model needs")
        wrong += [f"scale: {problem}" for problem in problems_of_size(one, rules)]
    return wrong
