"""Makes requests of rows: checks every column's type and range, fills in the config's defaults, infers or checks the mode."""

import marshal
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from operator import attrgetter
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from promptmill.configs.errors import describe, nearest, shown
from promptmill.configs.image_text import TOOL, UNREAD
from promptmill.configs.language_models import ORIGINAL
from promptmill.configs.parameters import (
    FURTHER,
    MAX_BOXES,
    MAX_CANDIDATES,
    MAX_LIST,
    MAX_PROMPT,
    MAX_STEPS,
    Beta,
    Box,
    Candidates,
    Closed,
    Control,
    Edit,
    Growing,
    Guidance,
    ImageGuidance,
    ImagePath,
    Lora,
    Mode,
    NoiseLevel,
    Reference,
    Rescale,
    Scheduler,
    Seed,
    Share,
    Side,
    Sides,
    Strength,
)
from promptmill.configs.prompts import A1111, PLAIN, Syntax
from promptmill.manifests.a1111_prompts import read, words_of
from promptmill.manifests.carried import plain
from promptmill.manifests.row_values import FLAT_CONTROL, LISTS, unfolded, unreadable, unreadable_within
from promptmill.manifests.rows import Row, RowError
from promptmill.manifests.rules import CLASS_LABEL, Rules, problems_between
from promptmill.manifests.steering import begin_with_noise
from promptmill.manifests.sweeps import OF as SWEEP_OF

MOST_HINTED = 50  # unknown columns of a bad row that are compared with the known ones
OWN_IMAGES = ("init_image", "mask_image")  # columns that hold an image; controls hold one each, too


class Columns(Closed):
    """Validates the columns that a row may have; the config's defaults fill in the rest."""

    id: str | None = Field(None, min_length=1, max_length=512)
    prompt: str | None = Field(None, max_length=MAX_PROMPT)
    negative_prompt: str | None = Field(None, max_length=MAX_PROMPT)
    syntax: Syntax | None = None
    prompt_template: str | None = Field(None, max_length=MAX_PROMPT)
    negative_prompt_template: str | None = Field(None, max_length=MAX_PROMPT)
    mode: Mode | None = None
    init_image: ImagePath | None = None
    mask_image: ImagePath | None = None
    mask_edit: Edit = None
    outpaint: Sides = None
    controls: tuple[Control, ...] | None = Field(None, max_length=MAX_LIST)
    references: tuple[Reference, ...] | None = Field(None, max_length=MAX_LIST)
    gligen_boxes: tuple[Box, ...] | None = Field(None, max_length=MAX_BOXES)
    strength: Strength | None = None
    width: Side | None = None
    height: Side | None = None
    steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    guidance_scale: Guidance | None = None
    guidance_rescale: Rescale | None = None
    true_cfg_scale: Guidance | None = None
    image_guidance_scale: ImageGuidance | None = None
    noise_level: NoiseLevel | None = None
    prior_steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    prior_guidance_scale: Guidance | None = None
    gligen_scheduled_sampling_beta: Beta | None = None
    class_label: int | None = Field(None, ge=0)
    scheduler: Scheduler | None = None
    seed: Seed | None = None
    variation_seed: Seed | None = None
    variation_strength: Share | None = None
    candidates: Candidates | None = None
    keep: int | None = Field(None, ge=1, le=MAX_CANDIDATES)
    loras: tuple[Lora, ...] | None = Field(None, max_length=MAX_LIST)


KNOWN_COLUMNS = (*Columns.model_fields, *FLAT_CONTROL)
_KNOWN = frozenset(KNOWN_COLUMNS)


@dataclass(frozen=True)
class Request:
    """Holds one request with every value resolved. Images are still paths as the row gives them.

    Attributes:
        id: Unique in the manifest.
        seed: Candidate k has (seed + k) mod 2^32; None: seeds are hashed from the job's seed and the id.
        candidates: Number of candidates; the greatest number where candidates grow.
        carried: The columns that promptmill does not know, to go into the output, their values plain (manifests.carried).
        growing: How the number of candidates grows, or None.
        true_cfg_scale: Guidance away from the negative prompt, beside the model's own; None where there is none.
        image_guidance_scale: How strongly an editing model holds to the picture; None where the model takes none.
        noise_level: How much noise is put on the picture, in steps of a schedule; None likewise.
        prior_steps, prior_guidance_scale: Steps and guidance scale of the model's prior; None where the model has none.
        gligen_scheduled_sampling_beta: The share of the steps, from the first on, that know of boxes; None likewise.
        class_label: The class that the images are of, also among the carried columns; None where the model draws none.
        mask_edit: How the mask is changed, as `configs.mask_edits` spells it.
        outpaint: How far the image reaches beyond its init image, likewise.
        gligen_boxes: What is drawn where.
        variation_seed: Candidates have the noise of one seed, varied by that of other seeds, (variation_seed + k) mod 2^32.
        variation_strength: The share of the other noise, in 0 … 1.
        syntax: What prompt and negative prompt are written in; None: they are words.
        prompt_template, negative_prompt_template: What they were expanded from; None where they are as the row has them.
    """

    id: str
    prompt: str
    negative_prompt: str
    mode: Mode
    init_image: str | None
    mask_image: str | None
    controls: tuple[Control, ...]
    strength: float | None
    width: int
    height: int
    steps: int
    guidance_scale: float
    guidance_rescale: float
    scheduler: str
    seed: int | None
    candidates: int
    keep: int
    loras: tuple[Lora, ...]
    carried: Mapping[str, Any]
    growing: Growing | None = None
    true_cfg_scale: float | None = None
    image_guidance_scale: float | None = None
    noise_level: int | None = None
    prior_steps: int | None = None
    prior_guidance_scale: float | None = None
    gligen_scheduled_sampling_beta: float | None = None
    class_label: int | None = None
    mask_edit: str | None = None
    outpaint: str | None = None
    gligen_boxes: tuple[Box, ...] = ()
    variation_seed: int | None = None
    variation_strength: float | None = None
    references: tuple[Reference, ...] = ()
    syntax: str | None = None
    prompt_template: str | None = None
    negative_prompt_template: str | None = None

    def images(self) -> Iterator[tuple[str, str]]:
        """Yield the images of the request, each by its column, as `init_image` or `controls.0.image`, and its path."""
        for column in OWN_IMAGES:
            if (path := getattr(self, column)) is not None:
                yield column, path
        for number, control in enumerate(self.controls):
            yield f"controls.{number}.image", control.image
        for number, reference in enumerate(self.references):
            for key, path in reference.sources.items():
                yield f"references.{number}.{key}", path
            if reference.mask is not None:
                yield f"references.{number}.mask", reference.mask

    @property
    def words(self) -> str:
        """Return the words of the prompt, without the signs of its syntax."""
        return words_of(self.prompt, self._last_step) if self.syntax == A1111 else self.prompt

    @property
    def _last_step(self) -> int:
        """Return how many steps are run: a strength leaves some of them, as diffusers' pipelines count."""
        return self.steps if self.strength is None else min(self.steps, int(self.steps * self.strength))

    def lost(self, count: Callable[[str], int]) -> int:
        """Return how many tokens of the prompt are not read, by a count of those that are not of a text that is encoded by itself.

        BREAK and AND divide a prompt into such texts. Of a prompt that changes between steps the step counts that loses most.
        """
        if self.syntax != A1111:
            return count(self.prompt)
        states = read(self.prompt).texts(self.steps)
        return max(sum(count(text) for part in parts for text in part.texts) for parts in states)

    @property
    def prompt_words(self) -> str | None:
        """Return the words of a prompt that is written in a syntax, as the metadata have them; None of another."""
        return None if self.syntax is None else self.words

    @property
    def negative_words(self) -> str:
        """Return the words of the negative prompt likewise."""
        return words_of(self.negative_prompt, self._last_step) if self.syntax == A1111 else self.negative_prompt

    @property
    def repaints(self) -> bool:
        """Return whether a part of a picture is repainted, which a mask or the widened sides say."""
        return self.mask_image is not None or self.outpaint is not None

    @property
    def is_led(self) -> bool:
        """Return whether true guidance leads away from the negative prompt, in a model that has guidance of its own besides."""
        return self.true_cfg_scale is not None and self.true_cfg_scale > 1.0

    @property
    def at_a_time(self) -> int:
        """Return how many candidates are rendered before ranking decides anything."""
        return self.growing.start if self.growing else self.candidates


# Columns that go into a request as they are: all else of the request depends at most on whether they are given.
_OWN = frozenset(
    {"id", "prompt", "negative_prompt", "init_image", "mask_image", "seed", "prompt_template", "negative_prompt_template"}
)
_SHAPE = attrgetter(*(name for name in Columns.model_fields if name not in _OWN))
MAX_SHAPES = 4096
_OURS = (CLASS_LABEL, SWEEP_OF, TOOL, UNREAD, ORIGINAL)  # carried columns that promptmill knows

# By the values of a row beyond its own columns: a request that was made of such a row and has no problem.
Shapes = dict[bytes, Request]


def make_request(row: Row, number: int, rules: Rules, shapes: Shapes | None = None) -> Request:
    """Return the request of a row.

    Args:
        row: The row as read.
        number: The row's number in the whole manifest, counted from 1: the id of a row that has none.
        rules: The config's rules for rows.
        shapes: Requests that earlier calls with the same rules have remembered; this call may add to them. The memory makes the
            call faster and changes no request.

    Raises:
        RowError: The row has problems; the error holds every one.
    """
    if row.broken:
        raise RowError([row.broken])
    values: dict[str, Any] = {}
    carried: dict[str, Any] = {}
    problems: list[str] = []
    mistyped: list[str] = []
    for name, value in row.values.items():
        if name not in _KNOWN or name == CLASS_LABEL:
            try:
                carried[name] = plain(value)
            except ValueError as error:
                problems.append(f"{shown(name)}: {error}")
        if name not in _KNOWN or (name == CLASS_LABEL and rules.classes is None):
            continue
        if isinstance(value, bool):
            # Python would take it for 0 or 1.
            mistyped.append(f"{name}: input should not be true or false (found {value})")
        elif isinstance(value, str) and (what := unreadable(value)):
            mistyped.append(f"{name}: holds {what}")
        else:
            values[name] = value
    if rules.strict:
        problems += [f"{shown(name)}: unknown column{nearest(name, KNOWN_COLUMNS)}" for name in carried if name not in _OURS]
    given = unfolded(values)
    mistyped += [problem for name in LISTS if name in given for problem in unreadable_within(name, given[name])]
    try:
        columns = Columns.model_validate(given)
    except ValidationError as error:
        raise RowError(_with_hints(problems + mistyped + describe(error, Columns), carried, values)) from None
    if mistyped:
        raise RowError(_with_hints(problems + mistyped, carried, values))

    own = _own(columns, number, rules, carried)
    shape = _shape(columns, rules.prompt_key is not None or own["syntax"] is not None) if shapes is not None else None
    like = shapes.get(shape) if shapes is not None and shape is not None else None
    if like is None:
        request = _resolve(columns, rules, own)
        wrong = problems_between(request, columns, rules)
        problems += wrong
        if shapes is not None and shape is not None and not wrong:
            if len(shapes) == MAX_SHAPES:
                shapes.clear()
            shapes[shape] = request
    else:
        # A frozen dataclass sets its twenty fields one by one, which takes three times as long.
        request = object.__new__(Request)
        vars(request).update(vars(like) | own)
    if problems:
        raise RowError(_with_hints(problems, carried, values))
    return request


def _shape(columns: Columns, reads_prompts: bool) -> bytes | None:
    """Return a key for rows whose requests differ in no more than their own columns, or None where there is no such key.

    Args:
        columns: The row's.
        reads_prompts: Whether a prompt can be a row's problem by what it says.
    """
    if columns.controls or columns.references or columns.gligen_boxes or columns.loras or reads_prompts:
        return None
    given = (columns.prompt is None, columns.init_image is None, columns.mask_image is None)
    try:
        # A tuple would take 0.0 for -0.0. Version 2 has no references, which depend on who else holds a value.
        return marshal.dumps((given, _SHAPE(columns)), 2)
    except ValueError:
        return None  # candidates that grow


def _with_hints(problems: list[str], carried: Collection[str], known: Collection[str]) -> list[str]:
    """Return a row's problems, the last with hints at the known columns that the row's unknown ones may have meant."""
    lacking = [name for name in KNOWN_COLUMNS if name not in known]
    unknown = [name for name in carried if name not in _OURS] if len(carried) <= MOST_HINTED else []
    hints = {name: nearest(name, lacking).removeprefix("; ") for name in unknown}
    said = ", ".join(f"{shown(name)} ({hint})" for name, hint in hints.items() if hint)
    return [*problems[:-1], f"{problems[-1]}; not known: {said}"] if said else problems


_T = TypeVar("_T")


def _or(said: _T | None, default: _T) -> _T:
    return default if said is None else said


def _own(columns: Columns, number: int, rules: Rules, carried: Mapping[str, Any]) -> dict[str, Any]:
    scale = _true_cfg(columns, rules)
    unread = "negative_prompt" in rules.ignored and (scale is None or scale <= 1.0)
    return {
        "id": _or(columns.id, str(number)),
        "prompt": _or(columns.prompt, rules.defaults.prompt or ""),
        "negative_prompt": "" if unread else _or(columns.negative_prompt, rules.defaults.negative_prompt),
        "init_image": columns.init_image,
        "mask_image": columns.mask_image,
        "seed": columns.seed,
        "syntax": None if (syntax := columns.syntax or rules.syntax) == PLAIN else syntax,
        "prompt_template": columns.prompt_template,
        "negative_prompt_template": columns.negative_prompt_template,
        "carried": carried,
    }


def _resolve(columns: Columns, rules: Rules, own: Mapping[str, Any]) -> Request:
    controls, defaults = columns.controls or (), rules.defaults
    masked = columns.mask_image is not None or columns.outpaint is not None
    mode = _mode(columns)
    candidates = _or(columns.candidates, defaults.candidates)
    growing = candidates if isinstance(candidates, Growing) else None
    # What has no effect is not asked for: the metadata say what the images were made with.
    repaints = rules.repainting.strength and masked
    begins = columns.init_image is not None and ("strength" not in rules.ignored or repaints)
    begins = begins and not begin_with_noise(controls, mode, rules.steering)
    scale = 1.0 if "guidance_scale" in rules.ignored else _or(columns.guidance_scale, defaults.guidance_scale)
    further = {name: _or(getattr(columns, name), getattr(defaults, name)) for name in FURTHER if name in rules.further}
    further["true_cfg_scale"] = _true_cfg(columns, rules)
    return Request(
        **own,
        **further,
        mode=mode,
        controls=controls,
        strength=_or(columns.strength, defaults.strength) if begins else None,
        width=_or(columns.width, defaults.width),
        height=_or(columns.height, defaults.height),
        steps=_or(columns.steps, defaults.steps),
        guidance_scale=scale,
        guidance_rescale=_or(columns.guidance_rescale, defaults.guidance_rescale if mode in rules.rescaled else 0.0),
        scheduler=_or(columns.scheduler, defaults.scheduler),
        candidates=candidates.max if isinstance(candidates, Growing) else candidates,
        keep=_or(columns.keep, defaults.keep),
        loras=_or(columns.loras, defaults.loras),
        growing=growing,
        references=columns.references or (),
        gligen_boxes=columns.gligen_boxes or (),
        class_label=columns.class_label,
        mask_edit=columns.mask_edit,
        outpaint=columns.outpaint,
        variation_seed=columns.variation_seed,
        variation_strength=columns.variation_strength,
    )


def _true_cfg(columns: Columns, rules: Rules) -> float | None:
    """Return a row's scale of true guidance: of the config only where the row's mode takes one."""
    if "true_cfg_scale" not in rules.further:
        return None
    return _or(columns.true_cfg_scale, rules.defaults.true_cfg_scale if _mode(columns) in rules.true_cfg else None)


def _mode(columns: Columns) -> Mode:
    control, init = bool(columns.controls), columns.init_image is not None
    if columns.mask_image is not None or columns.outpaint is not None:
        return "controlnet_inpaint" if control else "inpaint"
    if init:
        return "controlnet_img2img" if control else "img2img"
    return "controlnet" if control else "txt2img"


# What came to requests later has a default, and is written only where there is something to say: so plans from before it keep their
# fingerprints.
_LATER = {one.name: one.default for one in fields(Request) if one.default is not MISSING}


def to_json(request: Request) -> dict[str, Any]:
    """Return a request as plain values for JSON; `from_json` gives the request back."""
    values = {name: value for name, value in vars(request).items() if name not in _LATER or value != _LATER[name]}
    later: dict[str, Any] = {"growing": dict(request.growing)} if request.growing else {}
    if request.references:
        later["references"] = [{name: value for name, value in one if value is not None} for one in request.references]
    if request.gligen_boxes:
        later["gligen_boxes"] = list(map(dict, request.gligen_boxes))
    return {**values, "controls": list(map(dict, request.controls)), "loras": list(map(dict, request.loras)), **later}


def from_json(values: Mapping[str, Any]) -> Request:
    """Return the request that `to_json` was given."""
    controls = tuple(Control(**control) for control in values["controls"])
    loras = tuple(Lora(**lora) for lora in values["loras"])
    growing = Growing(**values["growing"]) if "growing" in values else None
    references = tuple(Reference(**reference) for reference in values.get("references", ()))
    boxes = tuple(Box(**box) for box in values.get("gligen_boxes", ()))
    lists = {"controls": controls, "loras": loras, "references": references, "gligen_boxes": boxes}
    return Request(**{**values, **lists, "growing": growing})
