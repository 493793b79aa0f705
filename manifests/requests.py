"""Makes requests of rows: every column typed and in range, the config's defaults filled in, the mode inferred or checked."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError

from configs.errors import describe, nearest
from configs.parameters import (
    MAX_CANDIDATES,
    MAX_PROMPT,
    MAX_STEPS,
    Control,
    Defaults,
    Guidance,
    Lora,
    Mode,
    Scheduler,
    Seed,
    Side,
    Strength,
    Strict,
)
from manifests.sources import Row

FLAT_CONTROL = ("control_type", "control_image", "control_preprocess", "control_scale")


class Columns(Strict):
    """What a row may say; what it does not say comes from the config's defaults."""

    id: str | None = Field(None, min_length=1, max_length=512)
    prompt: str | None = Field(None, max_length=MAX_PROMPT)
    negative_prompt: str | None = Field(None, max_length=MAX_PROMPT)
    mode: Mode | None = None
    init_image: str | None = None
    mask_image: str | None = None
    controls: tuple[Control, ...] | None = None
    strength: Strength | None = None
    width: Side | None = None
    height: Side | None = None
    steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    guidance_scale: Guidance | None = None
    scheduler: Scheduler | None = None
    seed: Seed | None = None
    candidates: int | None = Field(None, ge=1, le=MAX_CANDIDATES)
    keep: int | None = Field(None, ge=1, le=MAX_CANDIDATES)
    loras: tuple[Lora, ...] | None = None


KNOWN_COLUMNS = (*Columns.model_fields, *FLAT_CONTROL)


@dataclass(frozen=True)
class Request:
    """One request, everything resolved. Images are still paths as the row gives them.

    Attributes:
        id: Unique in the manifest.
        seed: Candidate k has (seed + k) mod 2^32; None: seeds are hashed from the job's seed and the id.
        carried: The columns that promptmill does not know, to go into the output as they are.
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
    scheduler: str
    seed: int | None
    candidates: int
    keep: int
    loras: tuple[Lora, ...]
    carried: Mapping[str, Any]


@dataclass(frozen=True)
class Rules:
    """What rows are held to beyond their types.

    Attributes:
        defaults: The config's.
        controls: The types that the config has ControlNets for.
        loras: The names of the LoRAs that the config declares.
        multiple: Width and height are multiples of this many pixels, as the model needs.
        strict: Unknown columns are refused rather than carried.
    """

    defaults: Defaults
    controls: Collection[str] = ()
    loras: Collection[str] = ()
    multiple: int = 8
    strict: bool = False


class RowError(ValueError):
    """A row that makes no request; `problems` holds one line each, `column: what is wrong`."""

    def __init__(self, problems: list[str]):
        self.problems = tuple(problems)
        super().__init__("; ".join(problems))


def make_request(row: Row, number: int, rules: Rules) -> Request:
    """The request of a row.

    Args:
        row: As read.
        number: Its number in the whole manifest, counted from 1: the id of a row that has none.
        rules: What the config says of rows.

    Raises:
        RowError: With every problem of the row.
    """
    if row.broken:
        raise RowError([row.broken])
    values = {name: value for name, value in row.values.items() if name in KNOWN_COLUMNS}
    carried = {name: value for name, value in row.values.items() if name not in KNOWN_COLUMNS}
    problems = [f"{name}: unknown column{nearest(name, KNOWN_COLUMNS)}" for name in carried] if rules.strict else []
    try:
        columns = Columns.model_validate(_unfold(values))
    except ValidationError as error:
        raise RowError(
            problems + describe(error, {("controls",): tuple(Control.model_fields), ("loras",): ("name", "scale")})
        ) from None

    request = _resolve(columns, number, rules.defaults, carried)
    problems += _check(request, columns, rules)
    if problems:
        raise RowError(problems)
    return request


def _unfold(values: dict[str, Any]) -> dict[str, Any]:
    """The flat columns of CSV as lists: control_type and its kin, JSON in `controls` and `loras`, numbers as ids."""
    values = dict(values)
    flat = {name.removeprefix("control_"): values.pop(name) for name in FLAT_CONTROL if name in values}
    if flat and "controls" in values:
        raise RowError([f"controls: given beside {', '.join(f'control_{name}' for name in flat)}; use one or the other"])
    if flat:
        values["controls"] = [flat]
    for name in ("controls", "loras"):
        if isinstance(values.get(name), str):
            try:
                values[name] = json.loads(values[name])
            except (ValueError, RecursionError) as error:
                raise RowError([f"{name}: not a JSON list: {error}"]) from None
    # Nested columns of Parquet have every key in every row; what is null there is not said.
    for name in ("controls", "loras"):
        if isinstance(values.get(name), list):
            values[name] = [
                {k: v for k, v in item.items() if v is not None} if isinstance(item, dict) else item for item in values[name]
            ]
    if isinstance(values.get("id"), int) and not isinstance(values["id"], bool):
        values["id"] = str(values["id"])
    return values


def _resolve(columns: Columns, number: int, defaults: Defaults, carried: Mapping[str, Any]) -> Request:
    def or_default(name: str) -> Any:
        said = getattr(columns, name)
        return getattr(defaults, name) if said is None else said

    controls = columns.controls or ()
    mode = _mode(bool(controls), columns.mask_image is not None, columns.init_image is not None)
    return Request(
        id=columns.id if columns.id is not None else str(number),
        prompt=or_default("prompt") or "",
        negative_prompt=or_default("negative_prompt"),
        mode=mode,
        init_image=columns.init_image,
        mask_image=columns.mask_image,
        controls=controls,
        strength=or_default("strength") if columns.init_image is not None else None,
        width=or_default("width"),
        height=or_default("height"),
        steps=or_default("steps"),
        guidance_scale=or_default("guidance_scale"),
        scheduler=or_default("scheduler"),
        seed=columns.seed,
        candidates=or_default("candidates"),
        keep=or_default("keep"),
        loras=or_default("loras"),
        carried=carried,
    )


def _mode(control: bool, mask: bool, init: bool) -> Mode:
    if mask:
        return "controlnet_inpaint" if control else "inpaint"
    if init:
        return "controlnet_img2img" if control else "img2img"
    return "controlnet" if control else "txt2img"


def _check(request: Request, columns: Columns, rules: Rules) -> list[str]:
    """What is wrong between the columns of a request whose columns are right one by one."""
    wrong = []
    if columns.prompt is None and rules.defaults.prompt is None:
        wrong.append("prompt: missing, and the config's defaults have none")
    stated = columns.mode or rules.defaults.mode
    if stated and stated != request.mode:
        wrong.append(f"mode: stated as {stated}, but the images given make it {request.mode}")
    if request.mask_image is not None and request.init_image is None:
        wrong.append("mask_image: given without an init_image to repaint")
    if columns.strength is not None and request.init_image is None:
        wrong.append("strength: given without an init_image to start from")
    if request.strength is not None and request.strength * request.steps < 1:
        wrong.append(f"strength: {request.strength:g} of {request.steps} steps is less than one step; raise one of them")
    for name in ("width", "height"):
        if getattr(request, name) % rules.multiple:
            wrong.append(f"{name}: {getattr(request, name)} is not a multiple of {rules.multiple}, which the model needs")
    if request.keep > request.candidates:
        wrong.append(f"keep: {request.keep} of only {request.candidates} candidates")
    for control in request.controls:
        if control.type not in rules.controls:
            known = f"; configured: {', '.join(rules.controls)}" if rules.controls else "; none is configured"
            wrong.append(f"controls: no ControlNet {control.type!r}{nearest(control.type, rules.controls) or known}")
    for lora in request.loras:
        if lora.name not in rules.loras:
            known = f"; declared: {', '.join(rules.loras)}" if rules.loras else "; none is declared"
            wrong.append(f"loras: no LoRA {lora.name!r}{nearest(lora.name, rules.loras) or known}")
    return wrong
