"""What scoring found of a candidate, and what becomes of it once all candidates of its request are known.

A request's candidates may be scored at several times: in slices, or in passes. Each time their rows are left open: they have all
but the choice, and the images of those that may still be kept. `closed` makes the choice, over all of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from promptmill.configs.columns import EMBEDDING
from promptmill.configs.schema import Config, Ranking
from promptmill.configs.scorers import Diversity
from promptmill.pipelines.work.metadata_rows import choice_row
from promptmill.pipelines.work.ranking import Look, decide
from promptmill.pipelines.work.results import Scored
from promptmill.shards.tables import FOUND, IMAGE

NONE = np.empty(0, np.float32)


@dataclass(frozen=True)
class Found:
    """What ranks a candidate.

    Attributes:
        scored: Its scores, without the embedding.
        look: How it looks, where it may be compared with others for diversity.
    """

    scored: Scored
    look: Look | None = None

    @classmethod
    def of(cls, scored: Scored, look: Look | None) -> "Found":
        return cls(replace(scored, embedding=NONE), look)

    def packed(self, ranking: Ranking) -> dict[str, Any]:
        """Return the value of the column `FOUND`; every number of it is exact."""
        values: dict[str, Any] = {"score": self.scored.score}
        values["others"] = [float(self.scored.others[scorer.name]) for scorer in ranking.scorers]
        return {**values, **packed_look(self.look, ranking.diversity)}

    @classmethod
    def unpacked(cls, values: Mapping[str, Any], ranking: Ranking) -> "Found":
        """Return what `packed` was called on."""
        names = [scorer.name for scorer in ranking.scorers]
        scored = Scored(values["score"], NONE, dict(zip(names, values["others"], strict=True)))
        return cls(scored, unpacked_look(values))


def packed_look(look: Look | None, diversity: Diversity | None) -> dict[str, Any]:
    """Return how a candidate looks as values of a column, as far as it is asked for; every number is exact."""
    values: dict[str, Any] = {}
    if look is not None and diversity:
        if diversity.embedding is not None:
            values["embedding"] = look.embedding
        if diversity.hash is not None:
            values |= {"hash": look.hash, "colours": look.colours}
    return values


def unpacked_look(values: Mapping[str, Any]) -> Look | None:
    """Return what `packed_look` was called on, by a row of a part."""
    embedding, colours = values["embedding"], values["colours"]
    if embedding is None and colours is None:
        return None
    vector = NONE if embedding is None else np.array(embedding, np.float32)
    return Look(vector, values["hash"] or 0, None if colours is None else np.array(colours, np.int16))


def closed(rows: Sequence[Mapping[str, Any]], keep: int, config: Config) -> Iterator[dict[str, Any]]:
    """Choose among all candidates of a request, and yield their rows as the dataset has them.

    Args:
        rows: One a candidate, in the order of their indices from 0, those that were scored with a `Found` as `FOUND`.
        keep: How many are kept at most.
    """
    ranking = config.ranking
    found: list[Found | None] = [row.get(FOUND) for row in rows]

    def look(index: int) -> Look:
        one = found[index]
        assert one is not None and one.look is not None, "a candidate is compared that was ruled out"
        return one.look

    chosen = decide([one.scored if one else None for one in found], look, keep, ranking)
    for row, one, choice in zip(rows, found, chosen, strict=True):
        made = {IMAGE: None, **row, "rank": choice.rank}
        made.pop(FOUND, None)
        if one is not None:
            made |= choice_row(ranking, choice)
            if choice.kept:
                made |= {"selected": True, "status": "kept"}
            else:
                made |= {IMAGE: None, "sha256": None, "bytes": None}
                if config.shards.embeddings == "kept":
                    made[EMBEDDING] = None
        yield made
