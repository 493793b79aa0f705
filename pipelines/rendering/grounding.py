"""Lets calls of GLIGEN (arXiv:2301.07093) share batches: each knows its boxes for its own first steps, and draws its own noise.

The layers that read the boxes (fusers) are switched on and off by the pipeline, in the UNet that all calls share. Here a call says
with each step whether its rows go through these layers, so that only rows for which both is the same share a batch.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch

from promptmill.pipelines.rendering.libraries import diffusers

FUSED = "fused"  # the argument of the denoiser's call that says whether its rows go through the fusers
FUSER = "GatedSelfAttentionDense"


def with_fusers(denoiser: torch.nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
    """Return a UNet's call, by keyword, whose argument `FUSED` switches the UNet's fusers on or off."""
    fusers: list[Any] = [module for module in denoiser.modules() if type(module).__name__ == FUSER]

    def switched(**given: Any) -> Any:
        on = given.pop(FUSED)
        for fuser in fusers:
            fuser.enabled = on
        return run(**given)

    return switched


def repainting(pipeline: Any, picture: Any, generators: Sequence[torch.Generator], device: torch.device) -> dict[str, Any]:
    """Return the arguments of a pipeline call for one image, whose boxes repaint a picture.

    The pipeline draws the latents, and at each step the noise of the picture, from torch's global generator. Here the candidate's
    own generator draws both: the latents are given, and the scheduler, which is the call's own, puts other noise on the picture.

    Args:
        pipeline: The pipeline, with a scheduler of its own.
        picture: The picture, as Pillow has it, of the size of the VAE's samples.
        generators: That of the only candidate.
        device: That of the model.
    """
    (generator,), scheduler = generators, pipeline.scheduler
    side = pipeline.vae.config.sample_size // pipeline.vae_scale_factor
    draw = diffusers.utils.torch_utils.randn_tensor
    add_noise = scheduler.add_noise

    @wraps(add_noise)
    def add_own(samples: torch.Tensor, noise: torch.Tensor, timesteps: Any) -> torch.Tensor:
        made: torch.Tensor = add_noise(samples, draw(noise.shape, generator, noise.device, noise.dtype), timesteps)
        return made

    scheduler.add_noise = add_own
    latents = draw((1, pipeline.vae.config.latent_channels, side, side), generator, device, pipeline.unet.dtype)
    return {"gligen_inpaint_image": picture, "latents": latents}


def share_of_preview(scheduler: Any, steps: int, share: float, preview: int) -> float:
    """Return the share of a preview's steps that know of boxes, for as many of them to do so as in the whole trajectory.

    Args:
        scheduler: The call's own scheduler.
        steps: The steps of the whole trajectory.
        share: The share of these that know of boxes, in [0, 1].
        preview: The steps after which the trajectory ends.
    """
    scheduler.set_timesteps(steps)
    whole = len(scheduler.timesteps)
    # The pipeline rounds its product down; half a step more is safe from what floats lose.
    return (int(share * whole) + 0.5) / min(whole, preview * getattr(scheduler, "order", 1))
