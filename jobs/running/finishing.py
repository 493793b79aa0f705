"""Publishes the last files of a dataset, made of its plan and its records: the card, the index, the mark that it is finished."""

import re
from collections.abc import Sequence

from promptmill.configs.drafts import in_words
from promptmill.configs.parameters import FURTHER, Defaults, Growing
from promptmill.configs.weights import OpenClip, Weights
from promptmill.jobs.planning.plan import Plan
from promptmill.jobs.running.repair_note import REPAIR_NOTE
from promptmill.shards.card import CARD, Made, ModelMade, card
from promptmill.shards.commits import CommitError, CommitRecord
from promptmill.shards.generations import drop_earlier
from promptmill.shards.index import Totals, publish_index, total
from promptmill.shards.storage import TooLargeError, delete, get, join, names, put, sweep_scratch

FOLDERS = ("", "data", "metadata", "commits", "parts", "plan", "plan/shards", "plan/earlier", "stats", "rewritten/parts")
MOST_CARD = 16 * 2**20  # bytes; a line a column, of which a manifest may have a thousand
LICENCE = re.compile(rb"license: [A-Za-z0-9.-]+( #.*)?")


def finish(plan: Plan, output: str, records: Sequence[CommitRecord]) -> Totals:
    """Publish the card, the index and the mark of success, then remove what has done its duty: earlier generations and parts.

    Args:
        plan: The dataset's plan.
        output: The dataset's URI.
        records: The last commit record of each shard, in their order.

    Raises:
        CommitError: As `publish_index`.
    """
    wanted = card(made_of(plan, records))
    if not is_card(_there(join(output, CARD)), wanted):
        put(join(output, CARD), wanted)
    totals = publish_index(output, records, plan.shards, plan.accepted)
    for record in records:
        drop_earlier(output, record.shard, record.generation)
    for name in names(join(output, "parts")):
        delete(join(output, "parts", name))
    delete(join(output, REPAIR_NOTE))
    for folder in FOLDERS:
        sweep_scratch(join(output, folder))
    return totals


def check_there(output: str, records: Sequence[CommitRecord]) -> None:
    """Raise CommitError where a listing lacks a file that a record names, so that the dataset is not whole."""
    there = {f"{folder}/{name}" for folder in ("data", "metadata") for name in names(join(output, folder))}
    for record in records:
        for file in record.files:
            if file.path not in there:
                way = f"`promptmill verify {output} --repair` makes its shard again"
                raise CommitError(f"{output}/{file.path}: was committed, and is gone; {way}")


def made_of(plan: Plan, records: Sequence[CommitRecord]) -> Made:
    """Return the facts that the card says."""
    return Made(
        totals=total(records),
        form=plan.form,
        image_format=plan.config.shards.image_format,
        quality=plan.config.shards.quality,
        models=models(plan),
        modes=plan.counts.modes,
        fingerprint=plan.fingerprint,
        earlier=len(plan.accepted),
        asked=_asked(plan),
        maps=max(map(int, plan.counts.steered), default=0),
    )


def _asked(plan: Plan) -> dict[str, str]:
    """Return the values that held for every row that said nothing else, as the config has them; prompts are in the rows."""
    defaults = plan.config.defaults.model_dump(mode="json", exclude={"prompt", "negative_prompt", "loras"}, exclude_none=True)
    for name in FURTHER:
        if name in defaults and defaults[name] == Defaults.model_fields[name].default:
            del defaults[name]  # few models take these
    if isinstance(growing := plan.config.defaults.candidates, Growing):
        defaults["candidates"] = f"{growing.start} to {growing.max}, until score {growing.until_score:g}"
    least = {"clip_score at least": plan.config.ranking.min_score, "drafts": in_words(plan.config.ranking.drafts) or None}
    return {
        name: f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in (defaults | least).items()
        if value is not None
    }


def models(plan: Plan) -> list[ModelMade]:
    """Return all models that take part, for the card."""
    named = plan.config.weights()
    return [ModelMade(role, _named(source), source.revision, plan.licences.get(place)) for place, (role, source) in named.items()]


def _named(scorer: OpenClip | Weights) -> str:
    if isinstance(scorer, Weights):
        return scorer.source
    return f"{scorer.model}/{scorer.pretrained}" if scorer.pretrained else scorer.model


def is_card(there: bytes | None, wanted: bytes | None) -> bool:
    """Return whether a card is the one wanted, but for the licence, which the card asks its owner to choose.

    Args:
        there: The card that is there; None where there is none.
        wanted: The card that the plan and the records make; None where they cannot: then any text that is like a card will do.
    """
    if there is None or wanted is None:
        return there is not None and there.startswith(b"---\n")
    lines, ours = there.split(b"\n"), wanted.split(b"\n")
    if len(lines) > 1 and LICENCE.fullmatch(lines[1]):
        lines[1] = ours[1]
    return lines == ours


def _there(uri: str) -> bytes | None:
    try:
        return get(uri, MOST_CARD)
    except (FileNotFoundError, TooLargeError):
        return None
