"""Units taken through their courses without Ray: what generators and scorers would do, one after the other."""

import hashlib
from dataclasses import replace

import numpy as np

from promptmill.configs.loading import load
from promptmill.pipelines.scoring.finishing import Onward, finish
from promptmill.pipelines.work.metadata_rows import ranking_columns
from promptmill.pipelines.work.passes import begin
from promptmill.pipelines.work.recipe import Recipe
from promptmill.pipelines.work.results import Scored
from promptmill.shards.tables import schema


class HashClip:
    """Scores by hash, so that a draft says nothing of its final and every draft another thing."""

    def score(self, prompts, images):
        return [self._score(prompt, image) for prompt, image in zip(prompts, images, strict=True)]

    def _score(self, prompt, image):
        digest = hashlib.sha256(prompt.encode() + image.tobytes()).digest()
        return Scored(float(np.float32(int.from_bytes(digest[:4], "big") / 1e8)), np.ones(4, np.float32) / 2)


def recipe_of(*settings, growing=False):
    config = load("embedded", ["manifest=x", *settings])
    return Recipe(config, schema({}, 4, bool(config.ranking.drafts), growing, ranking_columns(config.ranking)), growing=growing)


def take(render, unit, recipe, clip=None, seen=lambda unit, rendered: None, at_once=None):
    """The rows of a unit after all of its passes, and how many passes those were.

    Args:
        render: Renders what is next on a unit's course.
        seen: Told of every pass.
        at_once: As in `begin`.
    """
    clip = clip or HashClip()
    ranking = recipe.config.ranking
    requests = {placed.row: placed.request for placed in unit.requests}
    unit = replace(unit, course=begin(requests, ranking.drafts, ranking.diversity, at_once))
    kept, passes = [], 0
    while True:
        rendered = render(unit)
        passes += 1
        seen(unit, rendered)
        finished = finish(unit, rendered, clip, recipe, lambda: kept)
        if not isinstance(finished, Onward):
            return finished.rows, passes
        assert (finished.waiting is not None) == unit.course.in_full
        if finished.waiting:
            kept.append(finished.waiting)
        unit = replace(unit, course=finished.course)
