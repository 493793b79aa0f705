"""Checks the options of schedulers that a config sets against diffusers' classes, which are read as source, without torch."""

import ast
import importlib.util
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from promptmill.configs.scheduler_options import SIGMAS, SchedulerOptions
from promptmill.configs.schedulers import OWN, SCHEDULERS, SchedulerKind
from promptmill.pipelines.work.errors import ModelError

# What the classes of schedulers begin with whose models were trained with the noise of EDM (arXiv:2206.00364), or to follow a flow
# (arXiv:2210.02747).
EDM, FLOW_MATCH = "EDM", "FlowMatch"

_SHIFTS = frozenset({"shift", "use_dynamic_shifting", "shift_terminal"})
_OF_EDM = frozenset({"sigma_min", "sigma_max", "sigma_schedule"})
_SOLVERS = frozenset({"solver_order", "lower_order_final", "euler_at_final"})
ALL = frozenset(SchedulerOptions.model_fields)
# The options that have an effect, by what a model follows; a solver of noise that follows a flow takes its sigmas from the flow.
EFFECTIVE = {
    "noise": ALL - _SHIFTS - _OF_EDM,
    "edm": _OF_EDM | _SOLVERS | {"final_sigmas_type"},
    "flow": _SHIFTS | {"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"},
    "flow by a solver of noise": _SOLVERS | {"shift"},
}


def is_flow(config: Mapping[str, Any]) -> bool:
    """Return whether a scheduler's config is that of a flow-matching model."""
    return str(config.get("_class_name")).startswith(FLOW_MATCH) or config.get("prediction_type") == "flow_prediction"


def is_edm(config: Mapping[str, Any]) -> bool:
    """Return whether a scheduler's config is that of a model with the noise of EDM."""
    return str(config.get("_class_name")).startswith(EDM)


def class_of(name: str, config: Mapping[str, Any]) -> str | None:
    """Return the class of a scheduler by its short name for a model; None where the scheduler has none for what the model follows.

    Args:
        name: As `scheduler_name` returns it.
        config: The config of the scheduler that the model was saved with.
    """
    if name == OWN:
        return config.get("_class_name")
    kind = SCHEDULERS[name]
    return kind.flow if is_flow(config) else kind.edm if is_edm(config) else kind.class_name


def kind_of_class(class_name: str | None) -> SchedulerKind | None:
    """Return the first entry of the table that has a class."""
    return next((kind for kind in SCHEDULERS.values() if class_name in kind.classes), None)


def options_of(class_name: str, config: Mapping[str, Any]) -> frozenset[str]:
    """Return the options that a scheduler's class has and that have an effect on what a model follows.

    Args:
        class_name: diffusers' class.
        config: The config of the scheduler that the model was saved with.
    """
    if is_flow(config):
        follows = "flow" if class_name.startswith(FLOW_MATCH) else "flow by a solver of noise"
    else:
        follows = "edm" if is_edm(config) else "noise"
    has = {"shift" if name == "flow_shift" else name for name in _read(class_name)}
    kind = kind_of_class(class_name)
    return (frozenset(has) | ({"eta"} if kind and kind.takes_eta else set())) & EFFECTIVE[follows]


def unfit(options: SchedulerOptions, names: Iterable[str], config: Mapping[str, Any], sized: bool) -> dict[str, str]:
    """Return, by scheduler, why the options of a config do not go with it.

    Args:
        options: The config's options.
        names: Short names of the schedulers that fit the model.
        config: The config of the scheduler that the model was saved with.
        sized: Whether the model's pipelines tell the scheduler the size of images.
    """
    given = options.given
    if not given:
        return {}
    wrong = {}
    for name in names:
        class_name = class_of(name, config)
        if class_name is not None and (reason := _misfit(given, name, class_name, config, sized)):
            wrong[name] = reason
    return wrong


def _misfit(given: Mapping[str, Any], name: str, class_name: str, config: Mapping[str, Any], sized: bool) -> str | None:
    has = options_of(class_name, config)
    shown = f"{name} ({class_name})"
    if lacking := [option for option in given if option not in has]:
        there = f"it has {', '.join(sorted(has))}" if has else "it has none"
        return f"{shown} has no option {' or '.join(lacking)}, which model.scheduler_options sets; {there}"
    named = SCHEDULERS[name].options if name != OWN else {}
    for option, value in given.items():
        if named.get(option, value) != value:
            return f"{shown} is {option}: {named[option]} by its name, and model.scheduler_options sets {value}"
    whole = {**config, **named, **given}
    if len(several := [option for option in SIGMAS if option in has and whole.get(option)]) > 1:
        mine = [option for option in several if option in given]
        if mine:
            theirs = next(option for option in several if option not in mine)
            where = "by its name" if theirs in named else "by the model's own config"
            return f"{shown} has {theirs} {where}, with which {mine[0]} of model.scheduler_options does not go"
    if whole.get("use_dynamic_shifting") and "use_dynamic_shifting" in has:
        if given.get("use_dynamic_shifting") and not sized:
            return f"{shown} is not told the size of images by the model's pipelines; leave use_dynamic_shifting out"
        if "shift" in given:
            return f"{shown} takes no shift while use_dynamic_shifting is true; set that to false in model.scheduler_options"
    return None


@cache
def _read(class_name: str) -> frozenset[str]:
    """Return the arguments of a class's `__init__` that the class reads, there or from its config."""
    package = importlib.util.find_spec("diffusers")
    if package is None or not package.submodule_search_locations:
        raise ModelError("diffusers is not installed: pip install diffusers")
    begins = f"\nclass {class_name}("
    for file in sorted((Path(package.submodule_search_locations[0]) / "schedulers").rglob("*.py")):
        source = file.read_text(encoding="utf-8")
        if begins in source:
            return _arguments_read(ast.parse(source), class_name)
    return frozenset()


def _arguments_read(module: ast.Module, class_name: str) -> frozenset[str]:
    kind = next(node for node in module.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    made = next((node for node in kind.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None)
    if made is None:
        return frozenset()
    arguments = {argument.arg for argument in (*made.args.args, *made.args.kwonlyargs)}
    read = {node.id for node in ast.walk(made) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    for node in ast.walk(kind):
        match node:
            case ast.Attribute(value=ast.Attribute(attr="config"), attr=name):
                read.add(name)
    return frozenset(arguments & read)
