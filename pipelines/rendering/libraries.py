"""Imports diffusers and transformers for all that renders, without what no worker uses of them."""

import importlib
import sys
from typing import Any

import torch  # noqa: F401 (by itself, before it is imported as a part of another: the whole of it is used)

from promptmill.pipelines.work.lean_imports import lean_imports

with lean_imports():
    import diffusers
    import transformers
    from diffusers.utils import torch_utils

__all__ = ["diffusers", "of_diffusers", "put_back", "transformers"]


def put_back(module: str) -> None:
    """Let a module of deprecated pipelines be found by the name that the indexes of models have for it.

    diffusers 0.42 has moved such modules, and refuses models on the hub that name them by where they were.

    Args:
        module: The module's name, as in `wuerstchen`.
    """
    setattr(diffusers.pipelines, module, importlib.import_module(f"diffusers.pipelines.deprecated.{module}"))


def of_diffusers(name: str) -> Any:
    """Return a class of diffusers by its name; its module is imported now.

    Raises:
        AttributeError: diffusers has none of this name.
    """
    with lean_imports():
        return getattr(diffusers, name)


def _is_compiled(module: Any) -> bool:
    """Return the answer of diffusers' own function of this name, which would import torch's compiler to find it."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    return compiler is not None and isinstance(module, compiler.OptimizedModule)


torch_utils.is_compiled_module = _is_compiled
