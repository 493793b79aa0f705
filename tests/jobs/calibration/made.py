"""Trials for tests: scores that a seed makes, as if all had been rendered."""

import json

import numpy as np

from promptmill.configs.drafts import Draft
from promptmill.embedded.evaluate import scenes_for
from promptmill.embedded.world import describe
from promptmill.jobs.calibration.policies import FINAL, Sight, Trial, sight_of
from promptmill.jobs.calibration.sample import Shape
from promptmill.pipelines.work.evaluations import evaluations
from tests.pipelines.plain import request

STEPS = (4, 6, 10)
REQUEST = request(steps=20, candidates=8, guidance_scale=3.0)
SHAPE = Shape(8, 1, 20, "ddim")  # its


def trial(seed, noise=1.0, broken=0.0, candidates=8, keep=1, steps=STEPS, extra=()):
    """One request whose drafts say as much of their finals as the noise, less with few steps, leaves.

    Args:
        broken: The share of images that fail.
        extra: Names of further scorers, of which the finals' ranks say half.
    """
    rng = np.random.default_rng(seed)
    final = rng.normal(30, 1, candidates)

    def seen(values):
        return [None if rng.random() < broken else float(value) for value in values]

    sights = {FINAL: Sight(seen(final), [evaluations(REQUEST)] * candidates)}
    for number in steps:
        for kind in ("draft", "preview"):
            blurred = final + rng.normal(0, noise * (1 - number / 20), candidates)
            sights[sight_of(kind, Draft(steps=number, keep=1))] = Sight(seen(blurred), [2 * number] * candidates)
    scores = {"clip": sights[FINAL].ranks}
    for name in extra:
        scores[name] = [None if of is None else of + float(rng.normal(0, 1)) for of in scores["clip"]]
    return Trial(str(seed), keep, sights, scores)


def write_manifest(path, number):
    """Write a manifest of scenes of the embedded family; return its path."""
    scenes, _ = scenes_for(51, number)
    path.write_text("".join(json.dumps({"id": f"r{n}", "prompt": describe(scene)}) + "\n" for n, scene in enumerate(scenes)))
    return path
