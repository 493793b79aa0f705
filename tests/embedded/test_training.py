import json
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from promptmill.embedded import weights
from promptmill.embedded.flow_sampling import FlowFamily
from promptmill.embedded.sampling import Family
from promptmill.embedded.train import STAGES, main
from promptmill.embedded.training import Draw, Recipe, train
from tests.warm import Forked, started

ROOT = Path(__file__).parents[2]
STEPS = 3


def start_training(folder: Path) -> Forked:
    command = ["autoencoder", "--steps", str(STEPS), "--save-every", "0"]
    command += ["--runs", str(folder / "runs"), "--weights", str(folder / "weights")]
    return started("train", command)


def steps_done(folder: Path) -> int:
    done = 0
    for part in ("autoencoder", "autoencoder-finish"):
        checkpoint = folder / "runs" / f"{part}.safetensors"
        if checkpoint.exists():
            with safe_open(checkpoint, "pt") as file:
                done += json.loads(file.metadata()["state"])["done"]
    return done


@pytest.mark.timeout(900)
def test_training_killed_at_random_moments_and_resumed_ends_with_the_same_bits(tmp_path):
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    assert start_training(calm).wait(timeout=500) == 0

    rng = random.Random(7)
    for target in (1, STEPS + 1):  # once in each of its two phases
        process = start_training(killed)
        while steps_done(killed) < target:
            assert process.poll() is None, "training ended before it could be killed"
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert STEPS + 1 <= steps_done(killed) <= 2 * STEPS
    assert start_training(killed).wait(timeout=500) == 0

    name = "pipeline/vae/diffusion_pytorch_model.safetensors"
    assert (calm / "weights" / name).read_bytes() == (killed / "weights" / name).read_bytes()
    assert (calm / "weights" / weights.SUMS).read_bytes() == (killed / "weights" / weights.SUMS).read_bytes()


def test_the_stages_make_a_family_that_the_libraries_load(tmp_path):
    """Every stage in order, a few steps each: the whole way from nothing to pictures in every mode."""
    for stage in STAGES:
        options = ["--runs", str(tmp_path / "runs"), "--weights", str(tmp_path / "weights"), "--steps", "2", "--pictures", "64"]
        result = CliRunner().invoke(main, [stage, *options], catch_exceptions=False)
        assert result.exit_code == 0 and "step 2/2" in result.output
    family = Family(tmp_path / "weights")
    prompts, seeds = ["a small red circle at the left on a green background"], [1]
    maps = np.zeros((1, 64, 64, 3), np.uint8)
    for kind in ("canny", "seg"):
        assert family.control(kind, prompts, seeds, maps, num_inference_steps=2).shape == (1, 64, 64, 3)
    assert np.isfinite(family.score(prompts, family.txt2img(prompts, seeds, num_inference_steps=2))).all()
    assert family.labels(np.zeros((2, 64, 64, 3), np.uint8)).shape == (2, 64, 64)
    flows = FlowFamily(tmp_path / "weights")
    assert flows.txt2img(prompts, seeds, num_inference_steps=2).shape == (1, 64, 64, 3)
    assert flows.control("seg", prompts, seeds, maps, num_inference_steps=2).shape == (1, 64, 64, 3)
    assert weights.load_upscaler(tmp_path / "weights").scale == 2


def small_training(checkpoint: Path, recipe: Recipe, **options) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

    def loss(draw: Draw) -> torch.Tensor:
        inputs = draw.normal(16, 4)
        return (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()

    return train(model, loss, recipe, checkpoint, say=lambda _: None, **options)


@pytest.mark.parametrize("stop", [1, 17, 39])
def test_training_stopped_after_any_step_goes_on_as_if_it_had_not(tmp_path, stop):
    recipe = Recipe(steps=40, learning_rate=0.01, warmup=5)
    whole = small_training(tmp_path / "whole.safetensors", recipe)
    small_training(tmp_path / "halves.safetensors", recipe, stop_after=stop)
    halves = small_training(tmp_path / "halves.safetensors", recipe)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, halves.state_dict()[name]), name
    assert load_file(tmp_path / "whole.safetensors").keys() == load_file(tmp_path / "halves.safetensors").keys()


def test_training_learns(tmp_path):
    recipe = Recipe(steps=300, learning_rate=0.02, warmup=5, ema=0.9)
    model = small_training(tmp_path / "run.safetensors", recipe)
    inputs = Draw.of(99, 0).normal(256, 4)
    assert (model(inputs) - inputs.sum(1, keepdim=True)).square().mean() < 0.4  # 4.0 is what guessing zero gives


@pytest.mark.parametrize(("other", "says"), [({"seed": 5}, "seed 0, not 5"), ({"steps": 3}, "steps 2, not 3")])
def test_a_checkpoint_of_another_recipe_is_refused_by_name(tmp_path, other, says):
    recipe = Recipe(steps=2, learning_rate=0.01)
    small_training(tmp_path / "run.safetensors", recipe)
    with pytest.raises(SystemExit, match=rf"run\.safetensors: was trained with {says}"):
        small_training(tmp_path / "run.safetensors", replace(recipe, **other))


def test_the_rate_warms_up_holds_and_falls_to_nothing():
    recipe = Recipe(steps=1000, learning_rate=1.0, warmup=100, decay=0.5)
    assert recipe.rate(0) == 0.01 and recipe.rate(99) == 1.0 and recipe.rate(499) == 1.0
    assert 0 < recipe.rate(999) <= 0.01 and recipe.rate(750) == pytest.approx(0.5)


def test_steps_and_seeds_draw_different_noise():
    noise = [Draw.of(seed, step).normal(8) for seed in (1, 2) for step in (0, 1)]
    assert len({tuple(n.tolist()) for n in noise}) == 4
    assert torch.equal(Draw.of(3, 4).normal(8), Draw.of(3, 4).normal(8))
