"""Declares the preprocessors, which make a control map from a picture, and reads how a manifest asks for one.

Some compute a map without a model, others by one of the models that a config declares as its annotators. A manifest says `canny`,
or, with parameters, `canny(low=50, high=150)`. What is left out has the default.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from promptmill.configs.errors import nearest, quoted


@dataclass(frozen=True)
class Parameter:
    """Describes a parameter of a preprocessor: its default, its range, and whether it is a whole number."""

    default: float
    least: float
    most: float
    whole: bool = True


_NONE: Mapping[str, Parameter] = MappingProxyType({})

# By the name that a manifest says. Shares are of the picture's shorter side, so that a map is alike at any size.
PREPROCESSORS: Mapping[str, Mapping[str, Parameter]] = MappingProxyType(
    {
        "none": _NONE,
        # Thresholds of the gradient, as in ControlNet's and diffusers' documentation.
        "canny": {"low": Parameter(100, 0, 2000), "high": Parameter(200, 0, 2000)},
        # The shortest line that is drawn, as a share.
        "lines": {"length": Parameter(0.02, 0, 1, whole=False)},
        # Of the difference of two blurred pictures in levels, from which on a line is drawn.
        "scribble": {"threshold": Parameter(16, 1, 255)},
        "grey": _NONE,
        # The Gaussian's sigma, as a share: 8 pixels at 512.
        "blur": {"sigma": Parameter(1 / 64, 0.001, 0.25, whole=False)},
        # How many times smaller the map is before it is scaled back up.
        "tile": {"rate": Parameter(8, 1, 64)},
        # Of the random numbers, so that the same picture is shuffled in several ways.
        "shuffle": {"seed": Parameter(0, 0, 2**32 - 1)},
        "invert": _NONE,
        # The picture, without the pixels that the row's mask repaints, as ControlNet 1.1's inpaint model knows them.
        "inpaint": _NONE,
        # By models, which `model.annotators` of a config declares.
        "depth": _NONE,
        # How deep the scene is, as a share, and up to which share of the depth it is background, which is flat.
        "normal": {"deep": Parameter(2, 0.01, 100, whole=False), "background": Parameter(0.1, 0, 1, whole=False)},
        "seg": _NONE,
        # Points of the grid along each side, and the least sureness and steadiness of a segment: transformers' defaults.
        "sam": {
            "points": Parameter(32, 1, 64),
            "iou": Parameter(0.88, 0, 1, whole=False),
            "stability": Parameter(0.95, 0, 1, whole=False),
        },
        # Below which confidence a person, or a joint, is not drawn.
        "pose": {"person": Parameter(0.5, 0, 1, whole=False), "joint": Parameter(0.3, 0, 1, whole=False)},
        "softedge": _NONE,
        "lineart": _NONE,
    }
)

# By preprocessor, the annotator that makes its maps: the key under `model.annotators`.
ANNOTATED: Mapping[str, str] = MappingProxyType(
    {
        **{name: name for name in ("depth", "seg", "sam", "pose", "softedge", "lineart")},
        "normal": "depth",
    }
)
OF_FILES = ("softedge", "lineart")  # those annotators whose model is one file, with a definition of our own
# By annotator, the kind of model, and one that many people use.
ANNOTATORS: Mapping[str, str] = MappingProxyType(
    {
        "depth": "a depth model of transformers, such as depth-anything/Depth-Anything-V2-Small-hf",
        "seg": "a segmentation model of transformers, such as openmmlab/upernet-convnext-small",
        "sam": "a Segment Anything of transformers, such as facebook/sam-vit-base",
        "pose": "a ViTPose of transformers, such as usyd-community/vitpose-base-simple, with a detector of persons",
        "softedge": "a safetensors file of ControlNet's HED",
        "lineart": "a safetensors file of informative-drawings",
    }
)

MASKED = "inpaint"  # the preprocessor whose map depends on the row's mask

_FORM = re.compile(r"\s*([\w.-]+)\s*(?:\(([^()]*)\)\s*)?", re.ASCII)


def parse_preprocess(text: str) -> tuple[str, dict[str, float]]:
    """Parse how a manifest asks for a map; return the preprocessor's name and the values of all its parameters.

    Raises:
        ValueError: There is no such preprocessor or parameter, or a value is out of its range; the message is one line.
    """
    if not (form := _FORM.fullmatch(text)):
        raise ValueError(f"{quoted(text)} is neither a name nor name(parameter=value, ...)")
    name, said = form.groups()
    if name not in PREPROCESSORS:
        raise ValueError(f"{quoted(name)} is not known{nearest(name, PREPROCESSORS)}; there are {', '.join(PREPROCESSORS)}")
    known = PREPROCESSORS[name]
    values = {key: one.default for key, one in known.items()}
    given: set[str] = set()
    for part in said.split(",") if said and said.strip() else ():
        key, equals, value = (one.strip() for one in part.partition("="))
        if not equals or key not in known:
            there = f"{name} has {', '.join(known)}" if known else f"{name} has no parameters"
            raise ValueError(f"{quoted(part.strip())} is no parameter of {name}{nearest(key, known)}; {there}")
        if key in given:
            raise ValueError(f"{key} is given twice")
        given.add(key)
        values[key] = _value(name, key, value, known[key])
    if name == "canny" and values["low"] > values["high"]:
        raise ValueError(f"canny's low {values['low']:g} is above its high {values['high']:g}")
    return name, values


def annotator_of(preprocess: str) -> str | None:
    """Return the annotator of a preprocessor; None for one without a model. Raises ValueError as `parse_preprocess`."""
    return ANNOTATED.get(parse_preprocess(preprocess)[0])


def preprocess_name(text: str) -> str:
    """Return the one spelling of how a manifest asks for a map: parameters in their order, without those at their default.

    Raises:
        ValueError: As `parse_preprocess`.
    """
    name, values = parse_preprocess(text)
    other = [f"{key}={_shortest(values[key])}" for key, one in PREPROCESSORS[name].items() if values[key] != one.default]
    return f"{name}({', '.join(other)})" if other else name


def _value(name: str, key: str, text: str, known: Parameter) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not known.least <= value <= known.most or (known.whole and value != int(value)):
        kind = "a whole number" if known.whole else "a number"
        raise ValueError(f"{name}'s {key} is {kind} from {known.least:g} to {_shortest(known.most)}, not {quoted(text)}")
    return int(value) if known.whole else value


def _shortest(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
