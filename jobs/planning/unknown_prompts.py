"""Counts the prompts of a plan that its model cannot know."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

from promptmill.jobs.planning.plan import Plan
from promptmill.jobs.planning.shard_plans import read_shard
from promptmill.manifests.requests import Request
from promptmill.pipelines.models.known_prompts import known_prompts

LOOKED_AT = 10_000  # requests; a share of the first of them says as much of a longer plan


@dataclass(frozen=True)
class UnknownPrompts:
    """Holds how many of the requests that were looked at have a prompt that the model cannot know.

    Attributes:
        form: The prompts that the model can know, in words.
        example: The first prompt that the model cannot know.
    """

    model: str
    form: str
    unknown: int
    looked_at: int
    example: str

    def line(self) -> str:
        """Return the line for a person."""
        few = f"{self.unknown:,} of {self.looked_at:,} prompts are"
        example = self.example if len(self.example) <= 60 else f"{self.example[:59]}…"
        remedy = "for other pictures take a preset of a real model, such as sd15 (`promptmill presets`)"
        return f"{few} beyond what {self.model} can draw, as {example!r} is: it knows no words but {self.form!r}; {remedy}"


def unknown_prompts(plan: Plan, output: str) -> UnknownPrompts | None:
    """Count the unknown prompts among a plan's first requests; return None where there are none, or no file lists the known ones.

    Args:
        plan: The plan.
        output: The dataset's URI, where the plan's shards are.

    Raises:
        ModelError: The file of known prompts cannot be read.
    """
    known = known_prompts(plan.config.model)
    if known is None:
        return None
    looked_at, unknown, example = 0, 0, ""
    for request in islice(_requests(plan, output), LOOKED_AT):
        looked_at += 1
        if not known.has(request.words):
            unknown, example = unknown + 1, example or request.words
    return UnknownPrompts(plan.config.model.base, known.form, unknown, looked_at, example) if unknown else None


def _requests(plan: Plan, output: str) -> Iterator[Request]:
    shards = (read_shard(output, number) for number in range(plan.shards))
    return (placed.request for placed in chain.from_iterable(shard.requests for shard in shards))
