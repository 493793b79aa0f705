"""Loads and runs all scorers of candidates: the CLIP model of the ranking, and the scorers declared beside it."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from promptmill.configs.schema import Ranking
from promptmill.configs.scorers import CLIP, HeadScorer
from promptmill.pipelines.scoring.clip import Clip, load_clip
from promptmill.pipelines.scoring.head import Head
from promptmill.pipelines.work.lean_imports import lean_imports
from promptmill.pipelines.work.results import Scored
from promptmill.pipelines.work.turns import COMPUTING


@dataclass(frozen=True)
class Scorers:
    """Holds the loaded scorers of a ranking.

    Attributes:
        clip: The ranking's own model.
        models: Other models that look at images, by name.
        heads: Heads that read embeddings, by name, each with the name of the model whose embeddings it reads.
    """

    clip: Clip
    models: Mapping[str, Clip] = field(default_factory=dict)
    heads: Mapping[str, tuple[str, Head]] = field(default_factory=dict)

    def score(self, prompts: Sequence[str], images: Sequence[np.ndarray]) -> list[Scored]:
        """Score each image under its own prompt by CLIP and by all the other scorers.

        Args:
            prompts: As many as images.
            images: (H, W, 3) uint8 each, of any sizes.

        Raises:
            ModelError: A model gives embeddings that are not finite.
        """
        by_model = {CLIP: self.clip.score(prompts, images)}
        by_model |= {name: model.score(prompts, images) for name, model in self.models.items()}
        scores = {name: [one.score for one in by_model[name]] for name in self.models}
        for name, (reads, head) in self.heads.items():
            embeddings = [one.embedding for one in by_model[reads]]
            scores[name] = head.score(np.stack(embeddings)).tolist() if embeddings else []
        return [
            replace(one, others={name: of[place] for name, of in scores.items()}) if scores else one
            for place, one in enumerate(by_model[CLIP])
        ]


def load_scorers(ranking: Ranking, device: torch.device | str, threads: int | None = None) -> Scorers:
    """Load all scorers that a config's ranking names.

    Args:
        ranking: The config's ranking.
        device: The device for all weights.
        threads: CPU threads of this process from now on; left as they are where None.

    Raises:
        ModelError: One line on what is missing or cannot be loaded, and what would do.
    """
    with COMPUTING, lean_imports():
        return _load_scorers(ranking, device, threads)


def _load_scorers(ranking: Ranking, device: torch.device | str, threads: int | None) -> Scorers:
    clip = load_clip(ranking, device, threads)
    models: dict[str, Clip] = {}
    heads: dict[str, tuple[str, Head]] = {}
    for scorer in ranking.scorers:
        # A kind of scorer is loaded by the module that is called as it is.
        load = importlib.import_module(f"promptmill.pipelines.scoring.{scorer.kind}").load
        loaded = load(scorer, ranking.batch, device)
        if isinstance(scorer, HeadScorer):
            heads[scorer.name] = (scorer.reads, loaded)
        else:
            models[scorer.name] = loaded
    return Scorers(clip, models, heads)
