"""The upscaler: it learns from scenes at two sizes; what it enlarges stays right, and comes nearer to the truth."""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from diffusers import AutoencoderKL

from promptmill.embedded import upscaler
from promptmill.embedded.evaluate import measure_upscaler
from promptmill.embedded.pictures import SIDE, draw
from promptmill.embedded.sampling import Family
from promptmill.embedded.training import Draw, train
from promptmill.embedded.weights import WEIGHTS
from promptmill.embedded.world import sample_scene


def test_a_scene_drawn_at_two_sizes_is_one_picture():
    small, large = upscaler.pair(Draw.of(1, 2), 16)
    assert small.shape == (16, SIDE, SIDE, 3) and large.shape == (16, 2 * SIDE, 2 * SIDE, 3)
    difference = np.abs(upscaler.scaled_down(large).astype(int) - small)
    # Anti-aliasing at half the size is not quite the mean of four pixels; a shift by one pixel would make several levels.
    assert difference.mean() < 0.3
    assert np.abs(np.roll(upscaler.scaled_down(large), 1, axis=2).astype(int) - small).mean() > 1
    assert difference[:, 0].max() <= 1  # the ground, up to rounding


def test_the_size_takes_nothing_from_the_randomness():
    scenes = [sample_scene(np.random.default_rng(5)) for _ in range(2)]
    one, other = np.random.default_rng(6), np.random.default_rng(6)
    draw(scenes, one), draw(scenes, other, 2 * SIDE)
    assert one.integers(2**32) == other.integers(2**32)


def test_every_step_has_a_batch_of_its_own():
    batches = [upscaler.pair(Draw.of(upscaler.RECIPE.seed, step), 2)[0] for step in (0, 0, 1)]
    assert np.array_equal(batches[0], batches[1]) and not np.array_equal(batches[0], batches[2])


def test_training_that_was_stopped_and_resumed_ends_with_the_same_bits(tmp_path):
    vae = AutoencoderKL.from_pretrained(WEIGHTS / "pipeline" / "vae").eval().requires_grad_(False)

    def trained(name: str, *stops: int | None) -> dict[str, torch.Tensor]:
        for stop in (*stops, None):
            torch.manual_seed(0)
            net = upscaler.build()
            loss, recipe = partial(upscaler.enlarging_loss, net, vae), replace(upscaler.RECIPE, steps=4)
            train(net, loss, recipe, tmp_path / name, stop_after=stop, say=lambda _: None)
        return net.state_dict()

    whole, halves = trained("whole"), trained("halves", 1, 3)
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert any(not torch.equal(whole[name], value) for name, value in upscaler.build().state_dict().items())


def test_the_nets_answer_depends_on_no_companion():
    torch.manual_seed(0)
    net = upscaler.build().eval()
    small, _ = upscaler.pair(Draw.of(1, 2), 3)
    together = upscaler.enlarge(net, small)
    assert together.shape == (3, 2 * SIDE, 2 * SIDE, 3)
    assert np.abs(together[:1].astype(int) - upscaler.enlarge(net, small[:1])).max() <= 1


def test_the_shipped_one_keeps_pictures_right_and_comes_nearer_to_the_truth_than_bicubic_scaling():
    figures = list(measure_upscaler(Family(), 24))
    assert all(figure.holds for figure in figures), [figure.row() for figure in figures]
    assert sum(figure.at_least is not None for figure in figures) == 4
