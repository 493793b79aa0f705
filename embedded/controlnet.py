"""Trains stage 4, the ControlNets, one for canny maps and one for segmentation maps, on the frozen UNet (Zhang et al. 2023)."""

import numpy as np
import torch
from diffusers import ControlNetModel, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from promptmill.embedded.pictures import Pictures, canny, segmentation
from promptmill.embedded.training import DEVICE, Draw, Recipe
from promptmill.embedded.unet import BATCH, NO_PROMPT, Corpus, Denoiser
from promptmill.embedded.world import OPPOSITE, PLACES, SIZES, Scene, Thing, describe, without

RECIPES = {
    "canny": Recipe(steps=600, learning_rate=1e-3, warmup=50, decay=0.5, ema=0.995, seed=4),
    "seg": Recipe(steps=600, learning_rate=1e-3, warmup=50, decay=0.5, ema=0.995, seed=5),
}
SAY_NEITHER = 0.5  # share of prompts that name neither place nor size
CONTRADICT = 0.25  # share of prompts whose places and sizes are others than the map's


def build(unet: UNet2DConditionModel) -> ControlNetModel:
    """Return a ControlNet whose weights begin as a copy of the UNet's way down; the network takes (B, 3, 64, 64) maps in [0, 1]."""
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 64))


def control_maps(kind: str, pictures: Pictures) -> np.ndarray:
    """Return the control maps of a batch of pictures, (B, 64, 64, 3) uint8; `kind` is "canny" or "seg"."""
    if kind == "seg":
        return segmentation(pictures.labels)
    return np.stack([canny(pixels) for pixels in pictures.pixels])


def control_loss(
    model: ControlNetModel, denoiser: Denoiser, corpus: Corpus, scheduler: DDPMScheduler, kind: str, draw_of_step: Draw
) -> Tensor:
    """Return the mean squared error of the predicted v, as for the UNet, with the ControlNet's residuals added."""
    rng = draw_of_step.numpy
    rows = rng.integers(len(corpus), size=BATCH)
    maps = torch.from_numpy(control_maps(kind, corpus.pictures(rows))).to(DEVICE).permute(0, 3, 1, 2).float().div(255)
    latents = corpus.latents[torch.from_numpy(rows)].to(DEVICE)
    noise = draw_of_step.normal(*latents.shape)
    timesteps = torch.from_numpy(rng.integers(scheduler.config.num_train_timesteps, size=BATCH)).to(DEVICE)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    with torch.no_grad():
        text = denoiser.encode([prompt_for_control(corpus.scenes[i], rng) for i in rows])
    down, middle = model(noisy, timesteps, text, controlnet_cond=maps, return_dict=False)
    predicted = denoiser.unet(
        noisy, timesteps, text, down_block_additional_residuals=down, mid_block_additional_residual=middle
    ).sample
    return F.mse_loss(predicted, scheduler.get_velocity(latents, noise, timesteps))


def prompt_for_control(scene: Scene, rng: np.random.Generator) -> str:
    """Return a prompt with the scene's colours; places and sizes are mostly unsaid or wrong, so that the map has to give them."""
    chance = rng.random()
    if chance < NO_PROMPT:
        return ""
    if chance < NO_PROMPT + SAY_NEITHER:
        return describe(without(scene, "size", "place"))
    if chance < NO_PROMPT + SAY_NEITHER + CONTRADICT:
        return describe(rearranged(scene, rng))
    return describe(scene)


def rearranged(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return a scene of the same objects, named in reading order, with places and sizes drawn anew."""
    named = without(scene, "size", "place").things
    if len(named) == 1:
        places = [PLACES[rng.integers(len(PLACES))]]
    else:
        first = ("left", "top")[rng.integers(2)]
        places = [first, OPPOSITE[first]]
    sizes = [SIZES[rng.integers(len(SIZES))] for _ in named]
    moved = (Thing(t.shape, t.color, size, place) for t, size, place in zip(named, sizes, places, strict=True))
    return Scene(tuple(moved), scene.background)
