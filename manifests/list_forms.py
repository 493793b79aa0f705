"""Reads a line of a prompt list in the form that another tool gives such lines: A1111's options, kohya's, or none.

An option that changes a picture and that no row has is an error, as is one that is not known: the line can be edited.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from types import MappingProxyType
from typing import Any

from promptmill.configs.errors import nearest, quoted
from promptmill.configs.listed_manifests import ListForm
from promptmill.manifests.option_texts import OptionError, Word, number, scheduler, valued, whole, words_of
from promptmill.manifests.picture_parameters import A1111_GRAMMAR

NOTHING_LIKE_IT = "promptmill has nothing like it; take it out"
# Column and reader of each option.
Options = Mapping[str, tuple[str, Callable[[str], Any]]]

A1111: Options = MappingProxyType(
    {
        "--prompt": ("prompt", str),
        "--negative_prompt": ("negative_prompt", str),
        "--seed": ("seed", whole),
        "--subseed": ("variation_seed", whole),
        "--subseed_strength": ("variation_strength", number),
        "--sampler_name": ("scheduler", scheduler),
        "--steps": ("steps", whole),
        "--cfg_scale": ("guidance_scale", number),
        "--width": ("width", whole),
        "--height": ("height", whole),
        "--batch_size": ("batch_size", whole),
        "--n_iter": ("n_iter", whole),
    }
)
# Options of A1111's that say where files go, or how a prompt is shown: they change no picture.
A1111_QUIET = ("--outpath_samples", "--outpath_grids", "--prompt_for_display", "--do_not_save_samples", "--do_not_save_grid")
A1111_SWITCHES = ("--restore_faces", "--tiling")  # refused where they are on
A1111_REFUSED = ("--sd_model", "--styles", "--seed_resize_from_h", "--seed_resize_from_w", "--sampler_index")


def _seeds(text: str) -> list[int]:
    return [whole(one.strip()) for one in text.split(",")]


KOHYA: Options = MappingProxyType(
    {
        "n": ("negative_prompt", str),
        "w": ("width", whole),
        "h": ("height", whole),
        "d": ("seed", _seeds),
        "s": ("steps", whole),
        "l": ("guidance_scale", number),
        "t": ("strength", number),
        "ss": ("scheduler", scheduler),
    }
)
KOHYA_QUIET = ("f",)  # the name of the file that is written
KOHYA_REFUSED = {
    "nl": "a guidance scale of the negative prompt",
    "am": "multipliers of networks by their order; name LoRAs in a column loras",
    "c": "a prompt for CLIP guidance",
    "g": "the scale of distilled guidance, where --l is another",
    "cn": "a control image; name it in a column controls",
    "ctr": "a ratio of control",
    "fs": "a shift of a flow; set model.scheduler_options.shift",
    **dict.fromkeys(("ow", "oh", "nw", "nh", "ct", "cl"), "a condition of SDXL's sizes"),
    **dict.fromkeys(("dsd1", "dst1", "dsd2", "dst2", "dsr"), "a setting of Deep Shrink"),
    **dict.fromkeys(("glt", "glr", "gls", "gle"), "a setting of Gradual Latent"),
}


@dataclass(frozen=True)
class Line:
    """Holds the row that a line makes: its columns, and remarks on options that were passed over."""

    values: dict[str, Any]
    notes: tuple[str, ...] = field(default=())


def line_of_lines(line: str) -> Line:
    """Return the row of a line that is a prompt and nothing else, as CompVis's `--from-file` reads it."""
    return Line({"prompt": line})


def line_of_a1111(line: str) -> Line:
    """Return the row of a line of A1111's `Prompts from file or textbox`: a prompt, or options that begin with `--prompt`.

    Raises:
        OptionError: The line has an option that is not known, that has no counterpart here, or that has no value or a wrong one.
    """
    if not line.lstrip().startswith("--"):
        known = "|".join(re.escape(name) for name in (*A1111, *A1111_QUIET, *A1111_SWITCHES, *A1111_REFUSED))
        if behind := re.search(rf"(?<!\S)(?:{known})(?!\S)", line):
            said = f"{behind[0]} stands behind words that no option names, which A1111 would render as words; begin with --prompt"
            raise OptionError(behind.start() + 1, said)
        return Line({"prompt": line.strip(), **A1111_GRAMMAR})
    values: dict[str, Any] = {}
    notes: list[str] = []
    words = words_of(line)
    at = 0
    while at < len(words):
        option = words[at]
        if not option.text.startswith("--"):
            raise OptionError(option.column, f"{quoted(option.text)} is no option; put a text of several words into quotes")
        given = _given(words, at, option.text in ("--prompt", "--negative_prompt"))
        at += 1 + len(given)
        if option.text not in A1111:
            notes += _passed_over(option, given)
            continue
        if not given:
            raise OptionError(option.column, f"{option.text} has no value")
        column, read = A1111[option.text]
        if column in values:
            raise OptionError(option.column, f"{option.text} is given twice")
        values[column] = valued(Word(" ".join(word.text for word in given), given[0].column), option.text, read)
    return Line({**_counted(values), **A1111_GRAMMAR}, tuple(notes))


def _given(words: list[Word], at: int, several: bool) -> list[Word]:
    """Return the words behind an option that are its value: all up to the next option for a text, else the next one."""
    given: list[Word] = []
    for word in words[at + 1 :]:
        if (given and not several) or word.text.startswith("--"):
            break
        given.append(word)
    return given


def _passed_over(option: Word, given: list[Word]) -> list[str]:
    """Return a note on an option of A1111's that changes no picture."""
    name = option.text
    if name in A1111_QUIET or (name in A1111_SWITCHES and given and given[0].text != "true"):
        return [f"prompt: {name} is passed over, since it changes no picture here"]
    if name in (*A1111_SWITCHES, *A1111_REFUSED):
        raise OptionError(option.column, f"{name}: {NOTHING_LIKE_IT}")
    hint = nearest(name, A1111) or f"; those are {' '.join(A1111)}"
    raise OptionError(option.column, f"{quoted(name)} is no option of A1111's lists{hint}")


def _counted(values: dict[str, Any]) -> dict[str, Any]:
    """Return columns with candidates, all of which are kept, in place of A1111's batches; -1 is a seed at random."""
    sizes = [values.pop(name) for name in ("batch_size", "n_iter") if name in values]
    if sizes:
        images = math.prod(sizes) if min(sizes) > 0 else min(sizes)  # which is refused
        values |= {"candidates": images, "keep": images}
    if values.get("variation_strength") == 0 or values.get("variation_seed") == -1:
        values.pop("variation_seed", None)
        values.pop("variation_strength", None)
    return {name: value for name, value in values.items() if not (name == "seed" and value == -1)}


_KOHYA_OPTION = re.compile(r"\s--(?P<name>\S*)")


def line_of_kohya(line: str) -> Line:
    """Return the row of a line of kohya's sd-scripts: a prompt with options of one or two letters behind it.

    Raises:
        OptionError: As `line_of_a1111`.
    """
    text = line.rstrip()
    found = list(_KOHYA_OPTION.finditer(text))
    values: dict[str, Any] = {"prompt": (text[: found[0].start()] if found else text).strip()}
    notes: list[str] = []
    if text.startswith("--"):
        raise OptionError(1, "a line begins with a prompt, and options stand behind it")
    for option, following in zip_longest(found, found[1:]):
        name, column = option["name"].lower(), option.start() + 2
        rest = text[option.end() : following.start() if following else len(text)]
        value = Word(rest.strip(), option.end() + len(rest) - len(rest.lstrip()) + 1)
        if name in KOHYA_QUIET:
            notes.append(f"prompt: --{name} is passed over, since it changes no picture here")
            continue
        if name in KOHYA_REFUSED:
            raise OptionError(column, f"--{name}: {KOHYA_REFUSED[name]}; {NOTHING_LIKE_IT}")
        if name not in KOHYA:
            hint = nearest(name, KOHYA) if len(name) > 1 else ""
            said = f"'--{name}'" if name else "'--' alone"
            raise OptionError(column, f"{said} is no option of kohya's lists{hint or f'; those are {_NAMES_OF_KOHYA}'}")
        if not value.text:
            raise OptionError(column, f"--{name} has no value")
        place, read = KOHYA[name]
        if place in values:
            raise OptionError(column, f"--{name} is given twice")
        values[place] = valued(value, f"--{name}", read)
    seeds = values.pop("seed", [])
    if len(seeds) > 1:
        values["sweep"] = {"seed": seeds}
    elif seeds:
        values["seed"] = seeds[0]
    return Line(values, tuple(notes))


_NAMES_OF_KOHYA = " ".join(f"--{name}" for name in KOHYA)


def _shows_a1111(line: str) -> bool:
    return line.lstrip().startswith("--") and any(re.search(rf"(?<!\S){name}(?!\S)", line) for name in A1111)


def _shows_kohya(line: str) -> bool:
    return any(option["name"].lower() in KOHYA for option in _KOHYA_OPTION.finditer(line))


@dataclass(frozen=True)
class Form:
    """Describes a form of prompt lists.

    Attributes:
        writer: What writes such lists, in words.
        read: Returns the row of a line, or raises OptionError.
        shows: Whether a line shows by its options that the list has this form.
        comments: Whether a line that begins with # is a comment.
    """

    writer: str
    read: Callable[[str], Line]
    shows: Callable[[str], bool] = lambda line: False
    comments: bool = True


# By the names that the config has for the forms. Of forms that a line shows, the first one is meant.
FORMS: Mapping[ListForm, Form] = MappingProxyType(
    {
        "lines": Form("a prompt a line, without options", line_of_lines, comments=False),
        "a1111": Form("A1111's prompts from a file, with its options", line_of_a1111, _shows_a1111),
        "kohya": Form("kohya's prompts, with its options", line_of_kohya, _shows_kohya),
    }
)


def form_of_line(line: str) -> ListForm | None:
    """Return the form that a line shows by its options, or None."""
    return next((name for name, form in FORMS.items() if form.shows(line)), None)
