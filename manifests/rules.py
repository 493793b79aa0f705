"""Holds the rules for rows beyond the types of their columns: what the model and the config allow, and what has no effect."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from promptmill.configs.drafts import applied, misfits
from promptmill.configs.errors import nearest, quoted, shown
from promptmill.configs.mask_edits import parse_mask_edit, parse_outpaint
from promptmill.configs.parameters import FURTHER, MODES, Defaults
from promptmill.configs.prompts import A1111, PLAIN
from promptmill.configs.schedulers import OWN, SCHEDULERS
from promptmill.configs.schema import Ranking
from promptmill.configs.scorers import HeadScorer
from promptmill.manifests.prompt_rules import NOTHING, Weighting, problems_of_prompts
from promptmill.manifests.steering import (
    EVERY_WAY,
    Reading,
    Steering,
    begin_with_noise,
    problems_of_controls,
    problems_of_faces,
    problems_of_maps,
    problems_of_pictures,
    problems_of_references,
)

if TYPE_CHECKING:
    from promptmill.manifests.requests import Columns, Request
    from promptmill.manifests.rows import Row

# A column that goes into requests only where the model draws classes; elsewhere it is carried, as columns that are not known.
CLASS_LABEL = "class_label"


@dataclass(frozen=True)
class Repainting:
    """Holds the limits of rows with a mask, where they are other ones than those of the model's other rows.

    Attributes:
        schedulers: The names of the schedulers that fit; empty where those of all rows.
        strength: Whether rows with a mask alone begin with their pictures at a strength.
        most_pixels: The pixels that an image can have; None where any number.
        bends: The size (width, height) that the model renders in place of another one; None where it renders every size.
    """

    schedulers: tuple[str, ...] = ()
    strength: bool = False
    most_pixels: int | None = None
    bends: Callable[[int, int], tuple[int, int]] | None = None


def _takes_all(scheduler: str, steps: int, strength: float | None) -> None:
    """Return no reason."""


def _no_stages(request: Request, rules: Rules) -> list[str]:
    """Return no problem."""
    return []


@dataclass(frozen=True)
class Rules:
    """Holds the rules for rows beyond the types of their columns.

    Attributes:
        defaults: The config's defaults.
        controls: The types that the config has ControlNets for.
        annotators: The names of the annotators that the config declares.
        loras: The names of the LoRAs that the config declares.
        multiple: Width and height are multiples of this many pixels, as the model needs.
        sizes: The only sizes (width, height) of images; empty where any.
        bends: The size (width, height) that the model renders in place of another one; None where it renders every size.
        most_pixels: The pixels that an image can have; None where any number.
        modes: The modes that the model serves.
        schedulers: The names of the schedulers that fit the model.
        rescaled: The modes in which the model can rescale guidance.
        ignored: Columns that have no effect on the model's images: prompt, negative_prompt, guidance_scale or strength.
        unguided: The largest guidance scale that means no guidance.
        least_guidance: The least guidance scale that the model takes.
        further: Those columns of `FURTHER` that the model takes.
        most_noise: The largest noise level that the model takes.
        least_prior_steps: The fewest steps that the model's prior takes.
        repainting: The limits of rows with a mask.
        classes: The number of classes of which each row names one; None where the model draws none.
        side: The one width and height that the model's images have; None where rows choose.
        unfit: By scheduler, why the config's options of schedulers do not go with it.
        eta: The noise of a step that the config sets, for the schedulers that take it.
        steering: What each type of control can do, as far as the model limits it.
        ranking: The config's ranking; drafts ask something of requests, and so does a minimum score of requests that grow.
        strict: Whether unknown columns are refused rather than carried.
        rewritten: Returns the rows of the manifest with the prompts that a model has rewritten.
        references: The types that the config has adapters for.
        image_prompts: Whether the model can have such adapters.
        pictures: How many pictures of one row the model takes: the init image, and references of the type `image`.
        reading: The limits that the model sets for reference images.
        faces: Those types whose adapters read embeddings of faces, and of how many values; None where that is not known.
        pictured_faces: Those of `faces` whose adapters read the picture of a face, too.
        boxes: Whether the model draws phrases in boxes, which each row then gives; None: rows may.
        true_cfg: The modes in which the model takes a scale of true guidance, with a negative prompt, beside guidance of its own.
        prompt_key: The key that a prompt has, as a JSON object; None: prompts are any text.
        cannot_take: Called with a scheduler, steps and strength; returns why such a schedule cannot be taken, None where it can.
        seed: The config's seed.
        syntax: What prompts of rows are written in that do not say so themselves.
        expand: Whether templates make one prompt each, at random, or all.
        wildcards: The folder of wildcards; None: there is none.
        weighting: What of a prompt's syntax the model reads.
        lost: Counts the tokens of words that a text encoder does not read; None where that is not known.
        of_stages: Called with a request and these rules; returns the problems of the config's stages with the request's images.
    """

    defaults: Defaults
    controls: Collection[str] = ()
    annotators: Collection[str] = ()
    loras: Collection[str] = ()
    multiple: int = 8
    sizes: Collection[tuple[int, int]] = ()
    bends: Callable[[int, int], tuple[int, int]] | None = None
    most_pixels: int | None = None
    modes: Collection[str] = MODES
    schedulers: Collection[str] = (*SCHEDULERS, OWN)
    rescaled: Collection[str] = MODES
    ignored: Collection[str] = ()
    unguided: float = 1.0
    least_guidance: float = 0.0
    further: Collection[str] = ()
    most_noise: int = 1000
    least_prior_steps: int = 1
    repainting: Repainting = field(default_factory=Repainting)
    classes: int | None = None
    side: tuple[int, int] | None = None
    unfit: Mapping[str, str] = field(default_factory=dict)
    eta: float = 0.0
    steering: Mapping[str, Steering] = field(default_factory=dict)
    ranking: Ranking = field(default_factory=Ranking)
    strict: bool = False
    rewritten: Callable[[Iterable[Row]], Iterator[Row]] = iter
    references: Collection[str] = ()
    image_prompts: bool = True
    pictures: int = 1
    reading: Reading = EVERY_WAY
    faces: Mapping[str, int | None] = field(default_factory=dict)
    pictured_faces: Collection[str] = ()
    boxes: bool | None = False
    true_cfg: Collection[str] = ()
    prompt_key: str | None = None
    cannot_take: Callable[[str, int, float | None], str | None] = _takes_all
    seed: int = 0
    syntax: str = PLAIN
    expand: str = "random"
    wildcards: str | None = None
    weighting: Weighting = NOTHING
    lost: Callable[[str], int] | None = None
    of_stages: Callable[[Request, Rules], list[str]] = _no_stages


def ignored(request: Request, values: Mapping[str, Any], rules: Rules) -> list[str]:
    """Return a note for each value that a row, or the config in place of the row, gives and that has no effect on its images.

    Args:
        request: The row's request.
        values: The row's values.
        rules: The rules that the request was made with.
    """
    loose = request.image_guidance_scale is not None and request.image_guidance_scale < 1.0 and rules.unguided >= 0
    alone = (request.prior_guidance_scale or 0.0) <= 1.0  # no prior is led away from the negative prompt either
    unguided = bool(request.negative_words) and alone and not request.is_led and (request.guidance_scale <= rules.unguided or loose)
    defaults, without = rules.defaults, [*rules.ignored, *(name for name in FURTHER if name not in rules.further)]
    given = {name: getattr(defaults, name) for name in without if name in defaults.model_fields_set}
    given |= {name: values[name] for name in without if values.get(name) is not None}
    if request.init_image is None or (rules.repainting.strength and request.repaints):
        given.pop("strength", None)
    notes = []
    if request.mode in rules.true_cfg and given.pop("negative_prompt", "") and not request.is_led:
        notes.append("negative_prompt: has no effect without a true_cfg_scale above 1, which doubles the row's evaluations")
    notes += [f"{name}: {_of_no_effect(name)}" for name, value in sorted(given.items()) if value != ""]
    if not request.prompt and "prompt" in rules.ignored:
        reading = ["clip_score", *(f"{one.name}_score" for one in rules.ranking.scorers if not isinstance(one, HeadScorer))]
        notes.append(
            f"prompt: none is given, so {', '.join(reading)} compare images with an empty text; a head looks at images alone"
        )
    asked = "strength" in defaults.model_fields_set or values.get("strength") is not None
    if asked and begin_with_noise(request.controls, request.mode, rules.steering):
        notes.append("strength: has no effect with these controls, whose images begin with noise alone")
    if unguided:
        begin = "at an image_guidance_scale of 1" if loose else f"above a guidance_scale of {rules.unguided:g}"
        notes.append(f"negative_prompt: has no effect without guidance, which begins {begin}")
    return notes


def _of_no_effect(name: str) -> str:
    if name == "prompt":
        return "has no effect on images, since the model takes none; scores of image and prompt look at it"
    return "has no effect, since the model takes none"


def problems_between(request: Request, columns: Columns, rules: Rules) -> list[str]:
    """Return the problems between the columns of a request whose columns are right one by one."""
    wrong = []
    if columns.prompt is None and rules.defaults.prompt is None and "prompt" not in rules.ignored:
        wrong.append("prompt: missing, and the config's defaults have none")
    elif rules.prompt_key and not _has_key(request.prompt, rules.prompt_key):
        wrong.append(f"prompt: the model takes a JSON object with the key {rules.prompt_key}, as text: {shown(request.prompt, 60)}")
    if request.syntax == A1111:
        wrong += problems_of_prompts(request, rules.weighting)
    stated = columns.mode or rules.defaults.mode
    if stated and stated != request.mode:
        wrong.append(f"mode: stated as {stated}, but the images given make it {request.mode}")
    # Where no ControlNet is configured, the controls say so.
    elif request.mode not in rules.modes and not (request.controls and not rules.controls):
        first = "; give the first picture as init_image" if rules.pictures > 1 and request.references else ""
        wrong.append(f"mode: {request.mode} is not served by the model; it serves {', '.join(rules.modes)}{first}")
    if request.scheduler not in rules.schedulers:
        wrong.append(f"scheduler: {request.scheduler} does not fit the model, which takes {', '.join(rules.schedulers)}")
    elif request.repaints and request.scheduler not in (some := rules.repainting.schedulers or rules.schedulers):
        wrong.append(f"scheduler: {request.scheduler} does not go with a mask_image in this model, which takes {', '.join(some)}")
    elif request.scheduler in rules.unfit:
        wrong.append(f"scheduler: {rules.unfit[request.scheduler]}")
    else:
        wrong += _check_schedules(request, rules)
    if request.guidance_scale < rules.least_guidance:
        wrong.append(
            f"guidance_scale: {request.guidance_scale:g} is below {rules.least_guidance:g}, the least that the model takes;"
            f" {rules.unguided:g} means no guidance"
        )
    if request.guidance_rescale and request.mode not in rules.rescaled:
        can = f"only in {', '.join(rules.rescaled)}" if rules.rescaled else "in no mode"
        wrong.append(f"guidance_rescale: not in mode {request.mode}; the model takes it {can}")
    if request.noise_level is not None and request.noise_level > rules.most_noise:
        wrong.append(f"noise_level: {request.noise_level} is above {rules.most_noise}, the most that the model takes")
    if request.prior_steps is not None and request.prior_steps < rules.least_prior_steps:
        wrong.append(
            f"prior_steps: {request.prior_steps} is below {rules.least_prior_steps}, the fewest that the model's prior takes"
        )
    if rules.classes is not None and not 0 <= (columns.class_label if columns.class_label is not None else -1) < rules.classes:
        found = "missing" if columns.class_label is None else f"{columns.class_label} is none of the model's"
        wrong.append(f"class_label: {found}; the model draws classes from 0 to {rules.classes - 1}, one for each row")
    if rules.side is not None and (request.width, request.height) != rules.side:
        width, height = rules.side
        wrong.append(f"width: {request.width} x {request.height}, and the model makes {width} x {height} pixels alone")
    if request.mask_image is not None and request.init_image is None:
        wrong.append("mask_image: given without an init_image to repaint")
    if (columns.variation_seed is None) != (columns.variation_strength is None):
        lacks = "variation_strength" if columns.variation_strength is None else "variation_seed"
        wrong.append(f"{lacks}: missing; a row that varies noise has a variation_seed and a variation_strength")
    wrong += [*problems_of_masks(request), *_problems_of_boxes(request, rules), *_problems_of_true_cfg(request, rules)]
    if columns.strength is not None and request.init_image is None:
        wrong.append("strength: given without an init_image to start from")
    if request.strength is not None and request.strength * request.steps < 1:
        wrong.append(f"strength: {request.strength:g} of {request.steps} steps is less than one step; raise one of them")
    for name, side in (("width", request.width), ("height", request.height)):
        if side % rules.multiple:
            wrong.append(f"{name}: {side} is not a multiple of {rules.multiple}, which the model needs")
    wrong += problems_of_size(request, rules)
    if request.keep > request.candidates:
        wrong.append(f"keep: {request.keep} of only {request.candidates} candidates")
    wrong += _check_ranking(request, rules.ranking, rules.eta)
    size = request.width, request.height
    given = request.init_image, request.outpaint is not None
    wrong += problems_of_controls(request.controls, request.mode, size, rules.controls, rules.steering, *given)
    wrong += problems_of_maps(request.controls, rules.annotators, request.mask_image is not None)
    wrong += problems_of_faces(request.controls, request.references, rules.steering)
    if rules.pictures > 1:
        begins, masked = request.init_image is not None, request.repaints
        wrong += problems_of_pictures(request.references, rules.pictures, begins, masked)
    else:
        given_to = rules.references, rules.image_prompts, rules.faces, rules.reading, rules.pictured_faces
        wrong += problems_of_references(request.references, request.mode, *given_to)
    for lora in request.loras:
        if lora.name not in rules.loras:
            known = f"; declared: {', '.join(rules.loras)}" if rules.loras else "; none is declared"
            wrong.append(f"loras: no LoRA {quoted(lora.name)}{nearest(lora.name, rules.loras) or known}")
    return wrong or rules.of_stages(request, rules)


def _has_key(prompt: str, key: str) -> bool:
    try:
        said = json.loads(prompt)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and key in said


def _problems_of_boxes(request: Request, rules: Rules) -> list[str]:
    if rules.boxes is None or bool(request.gligen_boxes) is rules.boxes:
        return []
    if rules.boxes:
        return ["gligen_boxes: none is given, and the model draws phrases in the boxes of each row: [{phrase, x0, y0, x1, y1}]"]
    return ["gligen_boxes: the model draws nothing in boxes; leave them out; models of GLIGEN do"]


def _problems_of_true_cfg(request: Request, rules: Rules) -> list[str]:
    if request.true_cfg_scale is None:
        return []
    if request.mode not in rules.true_cfg:
        return [f"true_cfg_scale: not in mode {request.mode}; the model takes it only in {', '.join(rules.true_cfg)}"]
    with_these = rules.reading.true_cfg
    if request.is_led and request.references and with_these is not None and request.mode not in with_these:
        return [
            f"true_cfg_scale: with references of a Redux only in {', '.join(with_these)}, where diffusers knows how long texts are"
        ]
    return []


def problems_of_masks(request: Request) -> list[str]:
    """Return the problems of how a request changes its mask and widens its picture."""
    if request.mask_edit is None and request.outpaint is None:
        return []
    edit, wrong = parse_mask_edit(request.mask_edit), []
    if request.mask_edit and not request.repaints:
        wrong.append("mask_edit: given without a mask_image to change")
    if edit.only_masked and (request.controls or any(one.mask for one in request.references)):
        wrong.append(
            "mask_edit: only_masked renders a part of the picture, so that controls and masks of references do not go with it"
        )
    if request.outpaint is None:
        return wrong
    sides = parse_outpaint(request.outpaint)
    if request.init_image is None:
        wrong.append("outpaint: given without an init_image to widen")
    if request.mask_image is not None:
        wrong.append("outpaint: repaints the new sides; leave out the mask_image, or repaint its part in a second pass")
    if edit.invert or edit.grow or edit.only_masked:
        wrong.append("mask_edit: only blur goes with outpaint, whose overlap says how far it repaints the init_image")
    for name, side, before, after in (
        ("width", request.width, sides.left, sides.right),
        ("height", request.height, sides.top, sides.bottom),
    ):
        repainted = sides.overlap * ((before > 0) + (after > 0))
        if side - before - after <= repainted:
            overlap = f" and an overlap of {sides.overlap}" if side > before + after else ""
            wrong.append(f"outpaint: {before} + {after} pixels{overlap} leave nothing of the init_image in a {name} of {side}")
    return wrong


def problems_of_size(request: Request, rules: Rules) -> list[str]:
    """Return the problems of a request's size beyond the multiple that its sides are of."""
    wrong, size = [], (request.width, request.height)
    masked = rules.repainting if request.repaints else rules
    if rules.sizes and size not in rules.sizes:
        all_of_them = ", ".join(f"{width}×{height}" for width, height in rules.sizes)
        wrong.append(f"width × height: {size[0]}×{size[1]} is not rendered by the model, which renders {all_of_them}")
    if (bends := rules.bends or masked.bends) and (bent := bends(*size)) != size:
        said = f"{size[0]}×{size[1]} is not rendered by the model, which makes {bent[0]}×{bent[1]} of it"
        wrong.append(f"width × height: {said}: set that size")
    most = min((one for one in (rules.most_pixels, masked.most_pixels) if one), default=None)
    if most and (pixels := size[0] * size[1]) > most:
        wrong.append(f"width × height: {pixels:,} pixels are more than the {most:,} that the model has places for")
    return wrong


def _check_schedules(request: Request, rules: Rules) -> list[str]:
    """Return the problems of a request's schedule, or else of the first draft's that has some."""
    if (reason := rules.cannot_take(request.scheduler, request.steps, request.strength)) is not None:
        return [f"steps: {reason}"]
    drafts = rules.ranking.drafts
    masked = rules.repainting.schedulers if request.repaints else ()
    for draft in (drafts[number] for number in applied(drafts, request.at_a_time)):
        if draft.scheduler and masked and draft.scheduler not in masked:
            takes = f"which takes {', '.join(masked)}"
            return [f"scheduler: {draft.scheduler} of ranking.drafts does not go with a mask_image in this model, {takes}"]
        if (reason := rules.cannot_take(draft.scheduler or request.scheduler, draft.steps, request.strength)) is not None:
            return [f"steps: in a draft of ranking.drafts: {reason}"]
    return []


def _check_ranking(request: Request, ranking: Ranking, eta: float) -> list[str]:
    """Return the problems between a request and how the config ranks candidates."""
    wrong = []
    if request.growing and ranking.least is not None and request.growing.until_score < ranking.least:
        below = f"{request.growing.until_score:g} is below ranking.min_score {ranking.least:g}"
        wrong.append(f"candidates: until_score {below}, which a kept image reaches")
    return wrong + misfits(
        ranking.drafts,
        ranking.drafts_stochastic,
        candidates=request.at_a_time,
        keep=request.keep,
        steps=request.steps,
        strength=request.strength,
        scheduler=request.scheduler,
        eta=eta,
    )
