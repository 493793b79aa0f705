"""Loads open_clip models that score beside the ranking's own."""

import torch

from promptmill.configs.scorers import OpenClipScorer
from promptmill.pipelines.scoring.clip import Clip, load_open_clip


def load(scorer: OpenClipScorer, batch: int, device: torch.device | str) -> Clip:
    """Load an open_clip model.

    Args:
        batch: Images a call.

    Raises:
        ModelError: One line on what is missing or cannot be loaded.
    """
    return load_open_clip(scorer, device, batch)
