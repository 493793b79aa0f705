"""GLIGEN's layers that read boxes, switched by each call, and the noise of its inpainting, drawn by the candidate's generator."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, HeunDiscreteScheduler
from diffusers.models.attention import GatedSelfAttentionDense
from greenlet import getcurrent, greenlet

from promptmill.pipelines.rendering.batching import Joined
from promptmill.pipelines.rendering.grounding import FUSED, repainting, share_of_preview, with_fusers


class Denoiser(torch.nn.Module):
    """Adds 1 to its rows where its fuser is on."""

    def __init__(self):
        super().__init__()
        self.fuser = GatedSelfAttentionDense(4, 4, 1, 4)

    def forward(self, sample):
        return sample + float(self.fuser.enabled)


def test_rows_share_a_batch_with_rows_of_the_same_switch_alone_and_go_through_it():
    denoiser, answers = Denoiser(), {}
    joined = Joined(with_fusers(denoiser, denoiser.forward), ("sample",), 3)

    def ask(number, on):
        answers[number] = joined.hold(torch.full((1, 2), float(number)), **{FUSED: on})

    asked = [True, False, True, False, True]
    for number, on in enumerate(asked):
        greenlet(ask, getcurrent()).switch(number, on)
    batches = 0
    while joined.waiting:
        for caller, answer in joined.run_batch():
            caller.switch(answer)
        batches += 1
    assert batches == 2 and [answers[number][0, 0].item() - number for number in range(5)] == [float(on) for on in asked]


@pytest.mark.parametrize("kind", [DDIMScheduler, HeunDiscreteScheduler])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 1.0])
def test_of_a_preview_as_many_steps_know_of_boxes_as_of_the_whole_trajectory(kind, share):
    scheduler = kind()
    scheduler.set_timesteps(20)
    whole = len(scheduler.timesteps)
    for preview in range(1, 21):
        turns = min(whole, preview * scheduler.order)
        knowing = int(share_of_preview(kind(), 20, share, preview) * turns)  # as the pipeline counts them
        assert min(knowing, turns) == min(int(share * whole), turns)


def test_what_is_put_on_the_picture_is_drawn_by_the_candidates_generator_and_other_calls_schedulers_are_left_alone():
    config = SimpleNamespace(sample_size=32, latent_channels=4)
    picture, made = object(), []
    for before in (0, 1):
        torch.manual_seed(before)  # the global generator decides nothing
        scheduler = DDIMScheduler()
        parts = {"vae": SimpleNamespace(config=config), "unet": SimpleNamespace(dtype=torch.float32), "vae_scale_factor": 8}
        pipeline = SimpleNamespace(scheduler=scheduler, **parts)
        given = repainting(pipeline, picture, [torch.Generator().manual_seed(7)], torch.device("cpu"))
        assert given["gligen_inpaint_image"] is picture and given["latents"].shape == (1, 4, 4, 4)
        latents, at = torch.zeros(1, 4, 4, 4), torch.tensor([500])
        noisy = [scheduler.add_noise(latents, torch.randn_like(latents), at) for _ in range(2)]
        made.append(torch.cat([given["latents"], *noisy]))
        plain = DDIMScheduler().add_noise(latents, torch.ones_like(latents), at)
        assert torch.equal(plain, plain[0, 0, 0, 0].expand_as(plain))
    assert torch.equal(*made) and not torch.equal(made[0][1], made[0][2])
