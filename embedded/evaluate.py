"""Measures a shipped family against the truth: `python -m promptmill.embedded.evaluate` prints a table and writes RESULTS.md.

`--family flow` measures the flow family, and writes RESULTS-flow.md.

Every scene is of the tenth that training never saw, drawn from seeds that only this module uses. A picture is right when the oracle
finds every attribute right. Shares come with 95% intervals: Wilson's for one picture a prompt, and for several candidates a prompt
the normal interval over prompts, since candidates of one prompt are not independent.
"""

import itertools
import math
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import cv2
import numpy as np
import torch

from promptmill.embedded.controlnet import control_maps, rearranged
from promptmill.embedded.flow_sampling import FlowFamily
from promptmill.embedded.oracle import Reading, is_right, read
from promptmill.embedded.pictures import CENTERS, SIDE, Pictures, draw, segmentation
from promptmill.embedded.sampling import GUIDANCE, STEPS, EmbeddedFamily, Family
from promptmill.embedded.upscaler import SCALE, enlarge, scaled_down
from promptmill.embedded.weights import WEIGHTS, load_upscaler
from promptmill.embedded.world import COLORS, SHAPES, SIZES, Scene, Thing, describe, edits, is_held_out, sample_scene, without

SEED = 20_000_000
CANDIDATES = 8
FEW_STEPS = 4
STRENGTHS = (0.3, 0.5, 0.7, 0.9)
MASK_REACH = 0.23  # half-side of an inpainting mask, in sides: covers the largest object with its jitter
MASK_IOU = 0.75


@dataclass(frozen=True)
class Measured:
    """Describes the measurement of a family.

    Attributes:
        kind: The family.
        table: The file of the table, in the folder of the weights.
        controls: The kinds of ControlNets, each with the share that has to be as the map says.
        shared: Whether the oracle, the autoencoder, the upscaler and CLIP, which are the same for all families, are measured here.
    """

    kind: type[EmbeddedFamily]
    table: str
    controls: Mapping[str, float]
    shared: bool = False


# By the name that the command takes.
FAMILIES = {
    "unet": Measured(Family, "RESULTS.md", {"canny": 0.80, "seg": 0.80}, shared=True),
    "flow": Measured(FlowFamily, "RESULTS-flow.md", {"seg": 0.75}),
}


@dataclass(frozen=True)
class Figure:
    """Holds one measured figure: `value` with its 95% interval over `count` cases, and the bound that `value` is held to, if
    any.
    """

    what: str
    value: float
    low: float
    high: float
    count: int
    at_least: float | None = None
    at_most: float | None = None
    percent: bool = True

    @property
    def holds(self) -> bool:
        return (self.at_least is None or self.value >= self.at_least) and (self.at_most is None or self.value <= self.at_most)

    def row(self) -> str:
        bound = f"≥ {self._show(self.at_least)}" if self.at_least is not None else ""
        bound = f"≤ {self._show(self.at_most)}" if self.at_most is not None else bound
        verdict = ("yes" if self.holds else "NO") if bound else ""
        interval = f"{self._show(self.low)} – {self._show(self.high)}"
        return f"| {self.what} | {self._show(self.value)} | {interval} | {self.count} | {bound} | {verdict} |"

    def _show(self, value: float) -> str:
        return f"{100 * value:.1f}%" if self.percent else f"{value:.2f}"


HEADER = "| what | measured | 95% interval | cases | wanted | holds |\n|---|---|---|---|---|---|"


def share(what: str, right: Sequence[bool] | np.ndarray, at_least: float | None = None, at_most: float | None = None) -> Figure:
    """Return the share of independent cases that are right, with Wilson's interval (Wilson 1927)."""
    n, p, z = len(right), float(np.mean(right)), 1.96
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Figure(what, p, max(0.0, middle - half), min(1.0, middle + half), n, at_least, at_most)


def mean(
    what: str,
    values: Sequence[float] | np.ndarray,
    at_least: float | None = None,
    at_most: float | None = None,
    percent: bool = False,
) -> Figure:
    """Return the mean over independent cases, with its normal interval."""
    half = 1.96 * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    value = float(np.mean(values))
    high = min(1.0, value + half) if percent else value + half
    return Figure(what, value, value - half, high, len(values), at_least, at_most, percent)


def scenes_for(topic: int, count: int, things: int | None = None) -> tuple[list[Scene], np.random.Generator]:
    """Return `count` held-out scenes of one topic, and the random generator to go on drawing from."""
    rng = np.random.default_rng([SEED, topic])
    return [sample_scene(rng, things, held_out=True) for _ in range(count)], rng


def measure_oracle(count: int) -> Iterator[Figure]:
    """Yield the share of drawn pictures that the oracle reads right."""
    scenes, rng = scenes_for(1, count)
    yield share("oracle on drawn pictures", right_under(scenes, draw(scenes, rng).pixels), at_least=0.995)


def measure_autoencoder(family: EmbeddedFamily, count: int) -> Iterator[Figure]:
    """Yield the share of the autoencoder's reconstructions that the oracle finds right."""
    scenes, rng = scenes_for(2, count)
    yield share("autoencoder's reconstructions", right_under(scenes, family.reconstruct(draw(scenes, rng).pixels)), at_least=0.98)


def measure_upscaler(family: EmbeddedFamily, count: int) -> Iterator[Figure]:
    """Yield how often enlarged pictures are right once they are scaled down, and how near they are to pictures drawn at that size.

    What is enlarged are drawn pictures, and drawn pictures that the autoencoder has decoded, as it decodes what the family renders.
    Bicubic scaling, by OpenCV, is what the distance is compared with.
    """
    network = load_upscaler(family.folder)
    scenes, rng = scenes_for(10, count)
    jitter = int(rng.integers(2**32))
    small, truth = (draw(scenes, np.random.default_rng(jitter), side).pixels for side in (SIDE, SCALE * SIDE))
    for what, pixels in (("drawn pictures", small), ("the autoencoder's reconstructions", family.reconstruct(small))):
        enlarged = enlarge(network, pixels)
        right = right_under(scenes, scaled_down(enlarged))
        yield share(f"upscaler, {what}: right after scaling down", right, at_least=0.98)
        size = (SCALE * SIDE, SCALE * SIDE)
        bicubic = np.stack([cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC) for picture in pixels])
        mine, theirs = (np.abs(made.astype(float) - truth).mean((1, 2, 3)) for made in (enlarged, bicubic))
        yield mean(f"upscaler, {what}: distance from the picture drawn at 128, in levels", mine)
        yield mean(f"upscaler, {what}: that of bicubic scaling less the upscaler's, in levels", theirs - mine, at_least=0.0)


def measure_txt2img(family: EmbeddedFamily, count: int, steps: int = STEPS, candidates: int = CANDIDATES) -> Iterator[Figure]:
    """Yield the figures of one candidate and of the best of several by CLIP score; bounds hold for the full number of steps
    only.
    """
    for things, wanted, wanted_best in ((1, 0.90, 0.98), (2, 0.75, 0.92)):
        bound, bound_best = (wanted, wanted_best) if steps == STEPS else (None, None)
        scenes, _ = scenes_for(2 + things, count, things)
        prompts = [describe(s) for s in scenes for _ in range(candidates)]
        pictures = family.txt2img(prompts, range(SEED, SEED + len(prompts)), num_inference_steps=steps)
        right = np.array(right_under([s for s in scenes for _ in range(candidates)], pictures)).reshape(count, candidates)
        best = family.score(prompts, pictures).reshape(count, candidates).argmax(1)
        objects = f"{'one object' if things == 1 else 'two objects'}, {steps} steps"
        yield mean(f"txt2img, {objects}", right.mean(1), percent=True, at_least=bound)
        yield share(f"txt2img, {objects}, best of {candidates} by CLIP", right[np.arange(count), best], at_least=bound_best)
        yield share(f"txt2img, {objects}, any of {candidates} (what a perfect judge could pick)", np.asarray(right.any(axis=1)))


def measure_clip(family: EmbeddedFamily, count: int, prompts: int = 200) -> Iterator[Figure]:
    """Yield how often CLIP ranks the true prompt above all its one-attribute edits and random prompts, `prompts` in all."""
    scenes, rng = scenes_for(5, count)
    pictures = family.embed_pictures(draw(scenes, rng).pixels)
    first = []
    for scene, picture in zip(scenes, pictures, strict=True):
        texts = dict.fromkeys([describe(scene), *(describe(e) for e in edits(scene))])
        while len(texts) < prompts:
            texts[describe(sample_scene(rng))] = None
        first.append(int((family.embed_prompts(list(texts)) @ picture).argmax()) == 0)
    yield share(f"CLIP: the true prompt first among {prompts}", first, at_least=0.90)


def measure_control(family: EmbeddedFamily, kind: str, count: int, wanted: float = 0.80) -> Iterator[Figure]:
    """Yield how often pictures follow the control map, at scale 1 and at scale 0.

    Half the prompts name neither place nor size, half name others than the map's.
    """
    scenes, truth, prompts = _steered(6, count)
    maps = control_maps(kind, truth)
    for scale, bound in ((1.0, {"at_least": wanted}), (0.0, {"at_most": 0.30})):
        pictures = family.control(kind, prompts, range(SEED, SEED + count), maps, controlnet_conditioning_scale=scale)
        right = [follows_map(s, truth, i, read(p)) for i, (s, p) in enumerate(zip(scenes, pictures, strict=True))]
        yield share(f"ControlNet {kind}, scale {scale:g}: as the map and the colours say", right, **bound)


def _steered(topic: int, count: int) -> tuple[list[Scene], Pictures, list[str]]:
    """Return scenes, their pictures, and prompts that have the scenes' colours, and places and sizes not at all or wrong."""
    scenes, rng = scenes_for(topic, count)
    truth = draw(scenes, rng)
    return scenes, truth, [describe(without(s, "size", "place") if i % 2 else contradicting(s, rng)) for i, s in enumerate(scenes)]


def measure_annotator(family: EmbeddedFamily, count: int, wanted: float = 0.75) -> Iterator[Figure]:
    """Yield how well the annotator's maps of pictures cover the objects, and how often they steer to pictures of the same layout.

    The prompts are those of `measure_control`, so that only the map can give the layout.
    """
    scenes, truth, prompts = _steered(10, count)
    found = family.labels(truth.pixels)
    covered = [
        min(iou(labels == kind, true == kind) for kind in np.unique(true) if kind)
        for labels, true in zip(found, truth.labels, strict=True)
    ]
    yield share(
        "annotator: every object covered, intersection over union at least 0.75", [one >= MASK_IOU for one in covered], 0.95
    )
    pictures = family.control("seg", prompts, range(SEED, SEED + count), segmentation(found))
    right = [follows_map(s, truth, i, read(p)) for i, (s, p) in enumerate(zip(scenes, pictures, strict=True))]
    yield share("picture, annotator, ControlNet seg: a picture of the same layout", right, wanted)


def contradicting(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return a scene of the same objects with places and sizes that are not those of `scene`."""
    said = {(t.size, t.place) for t in scene.things}
    while True:
        other = rearranged(scene, rng)
        if not said & {(t.size, t.place) for t in other.things}:
            return other


def follows_map(scene: Scene, truth: Pictures, row: int, reading: Reading) -> bool:
    """Return whether each object covers its pixels of the truth, in its shape and its colour, and no other object is there."""
    if reading.background != scene.background or len(reading.seen) != len(scene.things):
        return False
    for i, thing in enumerate(scene.things):
        mask = truth.coverage[row, i] > 0.5
        seen = max(reading.seen, key=lambda s: iou(s.mask, mask))
        if iou(seen.mask, mask) < MASK_IOU or (seen.shape, seen.color) != (thing.shape, thing.color):
            return False
    return True


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Return the intersection over union of two boolean masks of equal shape, in [0, 1]."""
    union = int(np.count_nonzero(one | other))
    return int(np.count_nonzero(one & other)) / max(1, union)


def measure_img2img(family: EmbeddedFamily, count: int) -> Iterator[Figure]:
    """Yield how often img2img keeps the layout of the source, and how far pictures move from the source as strength grows.

    The prompt names neither place nor size, so only the source can give them: each object has to cover the pixels that it covered.
    """
    scenes, rng = scenes_for(7, count)
    truth = draw(scenes, rng)
    source, seeds = truth.pixels, range(SEED, SEED + count)
    prompts = [describe(without(s, "size", "place")) for s in scenes]
    distances = []
    for strength in STRENGTHS:
        pictures = family.img2img(prompts, seeds, source, strength=strength)
        if strength in (STRENGTHS[0], STRENGTHS[-1]):
            kept = [keeps_layout(s, truth, i, read(p)) for i, (s, p) in enumerate(zip(scenes, pictures, strict=True))]
            bound = 0.95 if strength == STRENGTHS[0] else None
            yield share(f"img2img, strength {strength:g}: layout of the source kept", kept, at_least=bound)
        distances.append(np.abs(pictures.astype(float) - source).mean((1, 2, 3)))
    for weaker, stronger, step in zip(distances, distances[1:], itertools.pairwise(STRENGTHS), strict=False):
        what = f"img2img: distance from the source, strength {step[1]:g} less {step[0]:g}, in levels"
        yield mean(what, stronger - weaker, at_least=0.0)


def keeps_layout(scene: Scene, truth: Pictures, row: int, reading: Reading) -> bool:
    """Return whether the picture has as many objects as the truth, each over the pixels that it covers there, in any colour."""
    masks = [truth.coverage[row, i] > 0.5 for i in range(len(scene.things))]
    return len(reading.seen) == len(masks) and all(max(iou(s.mask, mask) for s in reading.seen) >= MASK_IOU for mask in masks)


def recolored(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return the scene with its first object in another colour; the result is held out wherever there is such a scene."""
    thing = scene.things[0]
    colors = [c for c in COLORS if c not in (thing.color, scene.background)]
    options = [Scene((replace(thing, color=color), *scene.things[1:]), scene.background) for color in colors]
    options = [s for s in options if is_held_out(s)] or options
    return options[rng.integers(len(options))]


def measure_inpaint(family: Family, count: int) -> Iterator[Figure]:
    """Yield how often inpainting replaces the first object by one of another look, and the drift outside the mask."""
    scenes, rng = scenes_for(8, count)
    source = draw(scenes, rng).pixels
    wanted = [replaced(s, rng) for s in scenes]
    masks = np.stack([mask_around(s.things[0].place or "center") for s in scenes])
    pictures = family.inpaint([describe(w) for w in wanted], range(SEED, SEED + count), source, masks)
    inside = [thing_is_right(w.things[0], m > 0, read(p)) for w, m, p in zip(wanted, masks, pictures, strict=True)]
    yield share("inpaint: inside the mask as the prompt says", inside, at_least=0.80)
    distance = np.abs(pictures.astype(float) - family.reconstruct(source)).mean(3)
    outside = masks == 0
    levels = (distance * outside).sum((1, 2)) / outside.sum((1, 2))
    yield mean("inpaint: outside, distance from the autoencoder's reconstruction, in levels", levels, at_most=4.0)


def replaced(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return the scene with another object in place of the first: another shape, another colour, any size, the same place."""
    old = scene.things[0]
    colors = [c for c in COLORS if c not in (old.color, scene.background)]
    shapes = [s for s in SHAPES if s != old.shape]
    options = [
        Scene((Thing(shape, color, size, old.place), *scene.things[1:]), scene.background)
        for shape in shapes
        for color in colors
        for size in SIZES
    ]
    held_out = [s for s in options if is_held_out(s)]
    return (held_out or options)[rng.integers(len(held_out or options))]


def mask_around(place: str) -> np.ndarray:
    """Return a mask, (64, 64) uint8, that is 255 in a square around a place, grown to whole latents (4 pixels)."""
    x, y = CENTERS[place]
    mask = np.zeros((SIDE, SIDE), np.uint8)
    (left, right), (top, bottom) = (
        (math.floor((c - MASK_REACH) * SIDE / 4) * 4, math.ceil((c + MASK_REACH) * SIDE / 4) * 4) for c in (x, y)
    )
    mask[max(top, 0) : bottom, max(left, 0) : right] = 255
    return mask


def thing_is_right(thing: Thing, mask: np.ndarray, reading: Reading) -> bool:
    """Return whether the one blob that lies mostly inside the mask is this object."""
    inside = [s for s in reading.seen if np.count_nonzero(s.mask & mask) * 2 > np.count_nonzero(s.mask)]
    return [(s.shape, s.color, s.size, s.place) for s in inside] == [(thing.shape, thing.color, thing.size, thing.place)]


def measure_speed(family: EmbeddedFamily, repeats: int = 3) -> Iterator[Figure]:
    """Yield the mean time of 16 txt2img pictures, in seconds, after one warm-up run."""
    prompts = [describe(s) for s in scenes_for(9, 16)[0]]
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        family.txt2img(prompts, range(16))
        seconds.append(time.perf_counter() - started)
    threads = torch.get_num_threads()
    what = f"seconds for 16 pictures, {STEPS} steps, guidance {GUIDANCE:g}, {threads} threads, warm"
    yield mean(what, seconds[1:], at_most=8.0)


def right_under(scenes: Sequence[Scene], pixels: np.ndarray) -> list[bool]:
    """Return for each picture whether the oracle finds the picture right under its scene."""
    return [is_right(scene, picture) for scene, picture in zip(scenes, pixels, strict=True)]


def measure(measured: Measured, family: EmbeddedFamily, scale: float = 1.0) -> Iterator[Figure]:
    """Yield every figure of a family's table as soon as the figure is known; `scale` multiplies the number of cases."""

    def cases(count: int) -> int:
        return max(8, round(count * scale))

    if measured.shared:
        yield from measure_oracle(cases(2000))
        yield from measure_autoencoder(family, cases(1000))
        yield from measure_upscaler(family, cases(1000))
        yield from measure_clip(family, cases(400))
    yield from measure_txt2img(family, cases(150))
    # Twenty steps leave ranking little to do; so few leave it much.
    yield from measure_txt2img(family, cases(150), FEW_STEPS)
    for kind, wanted in measured.controls.items():
        yield from measure_control(family, kind, cases(150), wanted)
    yield from measure_annotator(family, cases(150))
    yield from measure_img2img(family, cases(150))
    if isinstance(family, Family):  # of the families the one that can inpaint
        yield from measure_inpaint(family, cases(150))
    yield from measure_speed(family)


@click.command()
@click.option("--weights", type=click.Path(path_type=Path), default=WEIGHTS, show_default="embedded/weights")
@click.option(
    "--scale", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True, help="Of the number of cases."
)
@click.option("--family", type=click.Choice(list(FAMILIES)), default="unet", show_default=True, help="Which family.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the table is written; beside the weights if not said.")
def main(weights: Path, scale: float, family: str, out: Path | None) -> None:
    """Measure a family and write the table."""
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    started = time.monotonic()
    lines = [HEADER]
    click.echo(HEADER)
    held = True
    measured = FAMILIES[family]
    for figure in measure(measured, measured.kind(weights), scale):
        held &= figure.holds
        lines.append(figure.row())
        click.echo(lines[-1])
    machine = f"{torch.get_num_threads()} threads of {platform.machine()}, torch {torch.__version__}"
    minutes = f"{(time.monotonic() - started) / 60:.1f} minutes"
    command = f"python -m promptmill.embedded.evaluate --family {family} --scale {scale:g}"
    lines.append(f"\n`{command}`: {STEPS} steps, guidance {GUIDANCE:g}, {machine}; {minutes}.")
    click.echo(lines[-1])
    (out or weights / measured.table).write_text("# Measured\n\n" + "\n".join(lines) + "\n")
    raise SystemExit(0 if held else 1)


if __name__ == "__main__":
    main()
