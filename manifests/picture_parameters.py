"""Makes columns of what other tools write into pictures: A1111, Forge, ComfyUI, InvokeAI, Fooocus, NovelAI and Midjourney.

A1111's text is parsed here, since its values may be quoted; sd-parsers reads what the other tools write. Everything here is a
stranger's: texts are bounded by `picture_texts`, graphs of ComfyUI by their nodes, and the values are checked as those of any row.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice, zip_longest
from pathlib import PurePosixPath
from typing import Any

from sd_parsers.data import PromptInfo
from sd_parsers.exceptions import ParserError
from sd_parsers.parsers import ComfyUIParser, FooocusParser, InvokeAIParser, NovelAIParser, Parser

from promptmill.configs.errors import shown
from promptmill.configs.json_values import has_too_many, parse_json
from promptmill.configs.parameters import MAX_LIST
from promptmill.configs.sampler_names import sampler_of
from promptmill.manifests.comfyui_graphs import Graph
from promptmill.manifests.picture_texts import UnreadError

MOST_PARAMETERS = 200  # of a text of A1111
LONGEST_NAME, LONGEST_VALUE = 100, 500  # characters of a parameter that is kept beside a row
MOST_VALUES = 500_000  # of a text that is JSON
SEEDS = 2**32

# Further columns of rows whose prompts A1111 wrote. `syntax` is none of them: the config's `prompts.syntax` decides, since a
# picture cannot be edited where a model reads no weights or the config has no such LoRA.
A1111_GRAMMAR: Mapping[str, str] = {}

# What a tool calls the parameters that a row has columns for, by the column. `size`, `sampler` and `spacing` become columns below.
_NAMES = {
    "steps": "steps",
    "seed": "seed",
    "noise_seed": "seed",
    "size": "size",
    "resolution": "size",
    "width": "width",
    "height": "height",
    "sampler": "sampler",
    "schedule type": "spacing",
    "scheduler": "spacing",
    "cfg scale": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "distilled cfg scale": "distilled",
    "guidance": "distilled",
    "cfg_rescale_multiplier": "guidance_rescale",
    "variation seed": "variation_seed",
    "variation seed strength": "variation_strength",
}
# Parameters that say something of the picture without changing what a config renders: its model, versions, names of files.
_QUIET = re.compile(
    r"(version|.*hash(es)?|model|vae|user|job id|id|key|author|created_by|app_version|metadata_scheme|generation_mode"
    r"|rand_device|positive_style_prompt|negative_style_prompt|.*template|software|add_noise|return_with_leftover_noise|control_after_generate)",
    re.IGNORECASE,
)
# Parameters that change the picture and that no row has: each is named in a note of its own.
NAMED = {
    name.lower(): name
    for name in (
        *("Clip skip", "ENSD", "Eta", "RNG", "Tiling", "Face restoration", "Refiner", "Refiner switch at", "Denoising strength"),
        *("Hires upscale", "Hires upscaler", "Hires steps", "Hires resize", "Hires CFG Scale", "ControlNet 0", "ControlNet 1"),
        *("Mask blur", "Inpaint area", "NGMS", "Token merging ratio", "Styles", "ADetailer model", "SwarmUI", "clip_skip"),
        *(
            "denoise",
            "strength",
            "CLIPSetLastLayer",
            "ControlNetApply",
            "ControlNetApplyAdvanced",
            "controlnets",
            "ipAdapters",
            "t2iAdapters",
        ),
        *("perlin", "threshold", "seamless_x", "seamless_y", "init_image", "hrf_enabled", "hrf_strength", "refiner_model"),
        *("sharpness", "performance", "styles", "noise", "--ar", "--v", "--s", "--stylize", "--chaos", "--niji", "--style", "--q"),
        *("--iw", "--sref", "--cref", "--weird", "--tile", "--raw"),
    )
}


@dataclass(frozen=True)
class Described:
    """Holds the findings in a picture's metadata.

    Attributes:
        tool: The tool that wrote them.
        values: Columns of a row.
        unread: Parameters that are no columns, by the tool's names, with their values.
        loras: The LoRAs in use: the name of each one's file without its ending, and the scale.
        notes: Remarks for a person; few different ones, however many pictures there are.
    """

    tool: str
    values: dict[str, Any]
    unread: dict[str, str] = field(default_factory=dict)
    loras: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()


def described(texts: Mapping[str, str]) -> Described:
    """Return the findings in the texts of a picture that another tool made.

    Raises:
        UnreadError: No tool that is known wrote them, or what the tool wrote cannot be read.
    """
    parameters = texts.get("parameters") or texts.get("UserComment") or ""
    is_json = parameters.lstrip().startswith("{")
    if parameters and not is_json:
        return _of_a1111(parameters)
    if is_json:
        return _parsed("Fooocus", FooocusParser, {"parameters": parameters})
    if "invokeai_metadata" in texts:
        return _of_invokeai(texts["invokeai_metadata"])
    if "sd-metadata" in texts:
        return _parsed("InvokeAI", InvokeAIParser, {"sd-metadata": texts["sd-metadata"]})
    if "Dream" in texts:
        # Of spaces in a row, the parser's pattern would take time by the square.
        return _parsed("InvokeAI", InvokeAIParser, {"Dream": " ".join(texts["Dream"].split())})
    if "prompt" in texts:
        return _of_comfyui(texts["prompt"])
    if {"Comment", "Description", "Source"} <= texts.keys():
        # Likewise of a long name of a model.
        return _parsed("NovelAI", NovelAIParser, {**texts, "Source": texts["Source"][:LONGEST_NAME]})
    if _MIDJOURNEY.search(texts.get("Description", "")):
        return _of_midjourney(texts["Description"])
    raise UnreadError("has no metadata of a tool that is known")


def _of_a1111(text: str) -> Described:
    prompt, negative, line, behind = _parts(text)
    said = dict(_pairs(line))
    # Extensions write lines of their own behind the parameters.
    said |= {name: value for name, value in _pairs(", ".join(behind)) if name not in said}
    values = {"prompt": prompt, "negative_prompt": negative, **A1111_GRAMMAR}
    return _columns("A1111", values, said)


def _parts(text: str) -> tuple[str, str, str, list[str]]:
    """Return the prompt, the negative prompt, the line of parameters, and the lines behind it, of a text of A1111's."""
    lines = text.strip().splitlines()
    places = [number for number, line in enumerate(lines) if line.lstrip().startswith("Steps: ")]
    end = places[-1] if places else len(lines)
    if not places and lines and len(list(_pairs(lines[-1]))) >= 3:
        end = len(lines) - 1
    negative = next((number for number, line in enumerate(lines[:end]) if line.startswith("Negative prompt:")), end)
    against = "\n".join(lines[negative:end]).removeprefix("Negative prompt:").strip()
    return "\n".join(lines[:negative]).strip(), against, lines[end] if end < len(lines) else "", lines[end + 1 :]


_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"')
_NAME = re.compile(r"[\w][\w \-/().]*")


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """Yield the names and values of A1111's line of parameters, such as `Steps: 20, Size: 512x512`; values may be quoted."""
    at = 0
    for _ in range(MOST_PARAMETERS):
        colon = line.find(":", at, at + LONGEST_NAME)
        comma = line.find(",", at, at + LONGEST_NAME)
        if colon < 0 or -1 < comma < colon:
            if comma < 0:
                return
            at = comma + 1
            continue
        name = line[at:colon].strip()
        start = colon + 1 + (len(line[colon + 1 : colon + 2]) - len(line[colon + 1 : colon + 2].lstrip()))
        if quoted := _QUOTED.match(line, start):
            value, end = _unquoted(quoted[0]), line.find(",", quoted.end())
        elif line[start : start + 1] == "{":  # Hashes
            close = line.find("}", start)
            end = line.find(",", close if close >= 0 else start)
            value = line[start : end if end >= 0 else len(line)].strip()
        else:
            end = line.find(",", start)
            value = line[start : end if end >= 0 else len(line)].strip()
        if _NAME.fullmatch(name):
            yield name, value
        if end < 0:
            return
        at = end + 1


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        return text[1:-1]


_MIDJOURNEY = re.compile(
    r"\bJob ID: ?[0-9a-f-]{8,36}|\s--(?:ar|v|niji|stylize|chaos|s|q|seed|no|style|iw|sref|cref|weird|raw|tile)\b"
)
_JOB = re.compile(r"\s*\bJob ID: ?(?P<id>[0-9a-f-]{8,36})\s*\Z")
_OPTION = re.compile(r"(?:\A|\s)--(?P<name>[a-z]+)\b")


def _of_midjourney(text: str) -> Described:
    said: dict[str, str] = {}
    if job := _JOB.search(text[-100:]):
        said["Job ID"] = job["id"]
        text = text[: len(text) - len(text[-100:]) + job.start()]
    found = list(_OPTION.finditer(text))[:MOST_PARAMETERS]
    values = {"prompt": (text[: found[0].start()] if found else text).strip()}
    for option, following in zip_longest(found, found[1:]):
        value = text[option.end() : following.start() if following else len(text)].strip()
        if option["name"] == "no":
            values["negative_prompt"] = value
        else:
            said["seed" if option["name"] == "seed" else f"--{option['name']}"] = value or "on"
    return _columns("Midjourney", values, said)


def _parsed(tool: str, parser: type[Parser], texts: Mapping[str, Any]) -> Described:
    """Return the findings of one of sd-parsers' parsers."""
    if any(isinstance(text, str) and has_too_many(text, MOST_VALUES) for text in texts.values()):
        raise UnreadError(f"has metadata of {tool} of more than {MOST_VALUES:,} values")
    try:
        return _of_info(tool, parser().parse(dict(texts)))
    except UnreadError:
        raise
    except ParserError as error:
        raise UnreadError(f"has metadata of {tool} that name no sampler ({error})") from None
    except Exception as error:  # the parsers trust what they read
        raise UnreadError(f"has metadata of {tool} that cannot be read ({type(error).__name__})") from None


def _of_info(tool: str, info: PromptInfo) -> Described:
    # The first sampler that begins with noise alone; those behind it enlarge or refine.
    samplers = sorted(info.samplers, key=lambda one: _number(one.parameters.get("denoise", 1)) not in (1, None))
    if not samplers:
        raise UnreadError(f"has metadata of {tool} that name no sampler")
    first = samplers[0]
    values = {"prompt": ", ".join(one.value for one in first.prompts)}
    values["negative_prompt"] = ", ".join(one.value for one in first.negative_prompts)
    said: dict[str, Any] = {**_flat(info.metadata), **{str(name): value for name, value in first.parameters.items()}}
    if first.model is not None and isinstance(first.model.name, str):
        said["Model"] = first.model.name
    if _number(said.get("denoise")) == 1:
        del said["denoise"]
    if first.name and first.name != "unknown":
        said["sampler"] = first.name
    notes = ("picture: has several samplers, of which the first is taken over",) if len(samplers) > 1 else ()
    return _columns(tool, values, said, notes)


# The nodes of ComfyUI that say a picture's size, as sd-parsers has them: lists of the inputs of each kind of node.
_LATENT = re.compile(r"Empty.*Latent.*")


def _flat(metadata: Mapping[Any, Any]) -> dict[str, Any]:
    """Return sd-parsers' further findings, with the size of a graph of ComfyUI in the place of the node that says it."""
    found: dict[str, Any] = {}
    for name, value in metadata.items():
        if not isinstance(value, list):
            found[str(name)] = value
        elif _LATENT.fullmatch(str(name)) and value and isinstance(value[0], Mapping):
            found |= {key: value[0][key] for key in ("width", "height") if key in value[0]}
    return found


def _of_comfyui(text: str) -> Described:
    graph = Graph.of(_object(text, "ComfyUI"))
    found = _parsed("ComfyUI", ComfyUIParser, graph.for_parser())
    more = {kind[:LONGEST_NAME]: _text(values) for kind, values in islice(graph.others(), MOST_PARAMETERS)}
    notes = tuple(dict.fromkeys((*found.notes, *_notes(more))))
    return replace(found, unread={**found.unread, **more}, loras=_loras(graph.loras()), notes=notes)


def _of_invokeai(text: str) -> Described:
    # Pictures of flow models have no scheduler, which sd-parsers asks for.
    said = {"scheduler": "unknown", **_object(text, "InvokeAI")}
    loras = said.pop("loras", None)
    named = [
        (one["model"].get("name") or one["model"].get("model_name"), one.get("weight", 1.0))
        for one in (loras if isinstance(loras, list) else ())
        if isinstance(one, dict) and isinstance(one.get("model"), dict)
    ]
    return replace(_parsed("InvokeAI", InvokeAIParser, {"invokeai_metadata": json.dumps(said)}), loras=_loras(named))


def _loras(named: list[tuple[Any, Any]]) -> tuple[tuple[str, float], ...]:
    found = ((PurePosixPath(name.replace("\\", "/")).stem, _number(scale)) for name, scale in named if isinstance(name, str))
    return tuple((name, scale) for name, scale in found if scale is not None)[:MAX_LIST]


def _object(text: str, tool: str) -> dict[str, Any]:
    """Return the JSON object that a tool wrote. Raises UnreadError."""
    if has_too_many(text, MOST_VALUES):
        raise UnreadError(f"has metadata of {tool} of more than {MOST_VALUES:,} values")
    try:
        found = parse_json(text)
    except (ValueError, RecursionError):
        raise UnreadError(f"has metadata of {tool} that are no JSON") from None
    if not isinstance(found, dict):
        raise UnreadError(f"has metadata of {tool} that are no object of JSON")
    return found


_OFF: tuple[Any, ...] = (None, "", "[]", [], {}, 0, "0")  # values of parameters that are not used


def _columns(tool: str, values: dict[str, Any], said: Mapping[str, Any], notes: tuple[str, ...] = ()) -> Described:
    """Return the columns that a tool's parameters make."""
    found: dict[str, Any] = {}
    unread: dict[str, str] = {}
    for name, value in said.items():
        column = _NAMES.get(name.lower())
        if column is not None and column not in found and value is not None and not isinstance(value, list | dict | bool):
            found[column] = value
        elif value not in _OFF:
            unread[name[:LONGEST_NAME]] = _text(value)
    more = list(notes)
    columns = {**values, **_sampler(found, unread, more), **_numbers(found, unread, more)}
    more += _notes(unread)
    return Described(tool, columns, unread, notes=tuple(dict.fromkeys(more)))


def _sampler(found: Mapping[str, Any], unread: dict[str, str], notes: list[str]) -> dict[str, str]:
    name, spacing = str(found.get("sampler", "")), str(found.get("spacing", ""))
    if not name:
        if spacing:
            unread["scheduler"] = spacing[:LONGEST_NAME]
        return {}
    sampler = sampler_of(name, spacing)
    if sampler.scheduler is None:
        unread["sampler"] = name[:LONGEST_NAME]
        said = (
            f"its sampler {shown(' '.join(name.split()), 41)} has no counterpart" if sampler.known else "its sampler is not known"
        )
        notes.append(f"picture: {said}, and the config's scheduler takes its place; picture_unread has the name")
        return {}
    if not sampler.spaced:
        unread["spacing"] = spacing[:LONGEST_NAME] or name[:LONGEST_NAME]
        notes.append(
            "picture: its spacing of sigmas has no counterpart, and the scheduler's own takes its place; picture_unread has it"
        )
    return {"scheduler": sampler.scheduler}


_WHOLE = ("steps", "seed", "width", "height", "variation_seed")
_SHARES = ("guidance_scale", "guidance_rescale", "distilled", "variation_strength")


def _numbers(found: dict[str, Any], unread: dict[str, str], notes: list[str]) -> dict[str, Any]:
    if (size := re.fullmatch(r"\(?(\d{1,6})(?:x|×|, ?)(\d{1,6})\)?", str(found.pop("size", "")).strip())) is not None:
        found |= {"width": size[1], "height": size[2]}
    columns: dict[str, Any] = {}
    for names, kind in ((_WHOLE, _whole), (_SHARES, _number)):
        for name in names:
            if name in found and (value := kind(found[name])) is not None:
                columns[name] = value
            elif name in found:
                unread[name] = _text(found[name])
    for name in ("seed", "variation_seed"):
        if name in columns and not 0 <= columns[name] < SEEDS:
            unread[name] = str(columns.pop(name))
            notes.append(f"picture: its {name} has more than 32 bits, and is not taken over; picture_unread has it")
    if "variation_seed" not in columns or "variation_strength" not in columns:
        for name in ("variation_seed", "variation_strength"):
            if name in columns:
                unread[name] = str(columns.pop(name))
    if "distilled" in columns:
        # Models of distilled guidance, such as Flux, take classifier-free guidance beside it.
        true = columns.pop("guidance_scale", 1.0)
        columns |= {"guidance_scale": columns.pop("distilled"), **({"true_cfg_scale": true} if true > 1 else {})}
    return columns


def _notes(unread: Mapping[str, str]) -> Iterator[str]:
    others = False
    for name in unread:
        known = NAMED.get(name.lower())
        if known is not None:
            yield f"picture: its {known} is not taken over; picture_unread has it"
        elif not _QUIET.fullmatch(name) and name not in ("sampler", "spacing", "seed", "variation_seed"):
            others = True
    if others:
        yield "picture: has parameters that are not taken over; picture_unread has them"


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(value) if isinstance(value, int) else int(number) if number is not None and number == int(number) else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or len(str(value)) > 40:
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < 1e30 else None


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"
