"""Requests rendered by engines of tiny models, which the fixtures of `conftest` hold."""

from pathlib import Path

from promptmill.configs.model import Model
from promptmill.configs.weights import Weights
from promptmill.pipelines.work.units import Placed, Unit

BATCH = 3


def model_of(folder, **options):
    """The tiny Stable Diffusion of a folder with its two ControlNets, or what the options make of it."""
    nets = {name: Weights(source=str(folder / name)) for name in ("canny", "seg")}
    given = {"base": str(folder / "sd"), "batch": BATCH, "controlnets": nets, **options}
    return Model(**{**beside(given["base"]), **given})


def beside(base):
    """What a config has to name beside a tiny model: the prior that lies in the folder of a decoder."""
    prior = Path(base) / "prior"
    return {"prior": Weights(source=str(prior))} if (prior / "model_index.json").is_file() else {}


def render(engine, *requests):
    """The outcomes of requests that are rendered as one unit."""
    unit = Unit(0, 0, tuple(Placed(row, one) for row, one in enumerate(requests)))
    return engine.render(unit).outcomes


def pixels(outcome):
    """The pictures of an outcome, none of which has failed."""
    assert outcome.failure is None, outcome
    assert all(c.failure is None for c in outcome.candidates), outcome
    return [c.pixels for c in outcome.candidates]
