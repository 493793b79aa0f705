"""Adds to calls of held modules what the group that calls brings beside: references, faces, boxes, and a step cache.

Pipelines of diffusers have one reference image for all samples of a call, and know of no step cache. So these come in where a
pipeline calls a module. `group` in each function returns the group whose pipeline is calling.
"""

from collections.abc import Callable
from typing import Any

import torch

from promptmill.pipelines.rendering.grounding import FUSED
from promptmill.pipelines.rendering.groups import Group
from promptmill.pipelines.rendering.references import ReferenceAdapters
from promptmill.pipelines.rendering.rows import count_of


def with_cache(hold: Callable[..., Any], group: Callable[[], Group]) -> Callable[..., Any]:
    """Return the denoiser's call, of which the step cache answers some."""

    def told(*args: Any, **kwargs: Any) -> Any:
        kept = group().kept
        return kept.call(hold, args, kwargs) if kept else hold(*args, **kwargs)

    return told


def saying_fused(hold: Callable[..., Any], group: Callable[[], Group]) -> Callable[..., Any]:
    """Return the denoiser's call, which says whether its rows go through the layers that read boxes."""
    return lambda *args, **kwargs: hold(*args, **{FUSED: group().fused}, **kwargs)


def with_references(hold: Callable[..., Any], references: ReferenceAdapters, group: Callable[[], Group]) -> Callable[..., Any]:
    """Return the denoiser's call with the embeddings and the scales of each row's reference images."""

    def told(*args: Any, **kwargs: Any) -> Any:
        calling, beside = group(), kwargs.pop(references.argument, None) or {}
        if calling.texts is None:
            calling.texts = kwargs.get("encoder_hidden_states")
        away = references.apart and kwargs.get("encoder_hidden_states") is not calling.texts
        if away not in calling.references:
            jobs, rows = [member.job for member in calling.members], count_of([*args, *kwargs.values()])
            calling.references[away] = references.conditions(jobs, rows, away)
        return hold(*args, **{references.argument: {**beside, **calling.references[away]}}, **kwargs)

    return told


def with_face(hold: Callable[..., Any], references: ReferenceAdapters, name: str, group: Callable[[], Group]) -> Callable[..., Any]:
    """Return a ControlNet's call with each row's face in place of its prompt.

    Args:
        hold: The call.
        references: The adapters, of which one makes tokens of faces.
        name: The type of reference that the ControlNet reads.
        group: As in this module.
    """

    def told(*args: Any, encoder_hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        calling = group()
        if name not in calling.faces:
            calling.faces[name] = references.tokens(name, [member.job for member in calling.members], len(encoder_hidden_states))
        return hold(*args, encoder_hidden_states=calling.faces[name], **kwargs)

    return told
