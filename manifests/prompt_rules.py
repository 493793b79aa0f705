"""Finds the problems of prompts in a syntax with the constructs that a model reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from promptmill.configs.errors import shown
from promptmill.manifests.a1111_prompts import MOST_STATES, plain_uses, read
from promptmill.manifests.prompt_errors import PromptError

if TYPE_CHECKING:
    from promptmill.manifests.requests import Request


@dataclass(frozen=True)
class Weighting:
    """Holds the constructs of A1111's syntax that a model reads.

    Attributes:
        weights: Whether words can have weights.
        parts: Whether BREAK and AND divide a prompt.
        changes: Whether words can change between steps.
    """

    weights: bool = False
    parts: bool = False
    changes: bool = False


NOTHING = Weighting()


def problems_of_prompts(request: Request, weighting: Weighting) -> list[str]:
    """Return the problems of the prompts of a request that is written in A1111's syntax, a line each."""
    wrong = []
    texts = {
        "prompt": (request.prompt, request.prompt_template),
        "negative_prompt": (request.negative_prompt, request.negative_prompt_template),
    }
    for name, (text, template) in texts.items():
        try:
            _check(text, weighting, request.steps)
        except PromptError as error:
            expanded = f", in what the template expands to: {shown(text, 120)}" if template is not None else ""
            wrong.append(f"{name}: {error}{expanded}")
    if request.references and not wrong and any(_is_weighted(text) for text, _ in texts.values()) and not weighting.parts:
        wrong.append("prompt: weights do not go with references in this model; leave one of them out")
    return wrong


def _is_weighted(text: str) -> bool:
    return plain_uses(read(text)).weights is not None


def _check(text: str, weighting: Weighting, steps: int) -> None:
    """Raise PromptError where a prompt cannot be read, or has what the model does not read."""
    prompt = read(text)
    uses = plain_uses(prompt)
    if uses.changes is not None and not weighting.changes:
        said = "words that change between steps, as [a:b:0.5], are not read by this model; models of Stable Diffusion and SDXL do"
        raise PromptError(said, uses.changes)
    for column, sign in ((uses.breaks, "BREAK"), (uses.ands, "AND")):
        if column is not None and not weighting.parts:
            raise PromptError(f"{sign} is not read by this model; models of Stable Diffusion and SDXL read it", column)
    if uses.weights is not None and not weighting.weights:
        raise PromptError("weights are not read by this model; models of Stable Diffusion, SDXL and Flux do", uses.weights)
    if uses.changes is not None and (number := len(prompt.texts(steps))) > MOST_STATES:
        raise PromptError(f"makes {number:,} different texts of the steps, and at most {MOST_STATES} are encoded", uses.changes)
