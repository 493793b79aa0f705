"""What a generator does as it loads: its share of a card, and a full batch before the first unit."""

from types import SimpleNamespace

import pytest

from promptmill.actors.generator import Generator
from promptmill.configs.loading import load
from promptmill.configs.prompts import Prompts
from promptmill.pipelines.rendering import engine, gpus


@pytest.mark.parametrize(("workers", "shares"), [("ray", [0.6]), ("here", [])])
def test_a_generator_on_ray_keeps_to_its_share_of_a_card_and_renders_a_batch_of_the_configs_defaults(monkeypatch, workers, shares):
    limited, made = [], []
    monkeypatch.setattr(gpus, "keep_to_share", limited.append)
    monkeypatch.setattr(engine, "Engine", lambda *given, **named: made.append((limited[:], given, named)))
    config = load(
        "embedded",
        [f"runtime.workers={workers}", "runtime.generator_gpus=0.6", "defaults.width=96", "prompts.long=true"]
        + ["shards.controls=true"] * (workers == "ray"),
    )
    Generator(SimpleNamespace(config=config, roots=(), annotators=("depth",))).load()
    # A limit that came after the model had been loaded would not be one.
    ((before, (model, seed, _), named),) = made
    assert before == limited == shares
    assert (model, seed, named) == (
        config.model,
        config.seed,
        {"warmed": config.defaults, "maps": workers == "ray", "annotators": ("depth",), "prompts": Prompts(long=True)},
    )
