"""Trains the upscaler, a RealESRGAN-compact net (Wang et al. 2021, arXiv:2107.10833) that makes pictures of 128 pixels from 64.

A scene is drawn twice with the same jitter: at 64 pixels, and at 128, which is the truth. Half the small pictures go through the
autoencoder first, because what the upscaler is given later are pictures that the autoencoder has decoded.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from spandrel.architectures.Compact import Compact
from torch import Tensor
from torch.nn import functional as F

from promptmill.embedded.pictures import SIDE, draw
from promptmill.embedded.training import DEVICE, Draw, Recipe
from promptmill.embedded.world import sample_scene

SCALE = 2
FILE = "model.safetensors"
RECIPE = Recipe(steps=2400, learning_rate=1e-3, warmup=50, decay=0.6, weight_decay=0.0, ema=0.995, seed=9)
BATCH = 8
# Only edges have to be learned: everything else is a plain colour, which the net's nearest-neighbour base gives.
EDGE_WEIGHT = 8.0


def build() -> Compact:
    """Return an untrained net: (B, 3, H, W) fp32 pictures in [0, 1] to (B, 3, 2 H, 2 W)."""
    return Compact(num_feat=24, num_conv=8, upscale=SCALE)


def pair(draw_of_step: Draw, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` fresh scenes, each at both sizes: (count, 64, 64, 3) and (count, 128, 128, 3) uint8."""
    scenes = [sample_scene(draw_of_step.numpy) for _ in range(count)]
    jitter = int(draw_of_step.numpy.integers(2**32))
    small, large = (draw(scenes, np.random.default_rng(jitter), side) for side in (SIDE, SCALE * SIDE))
    return small.pixels, large.pixels


def enlarging_loss(model: Compact, vae: AutoencoderKL, draw_of_step: Draw) -> Tensor:
    """Return the scalar loss of one step: L1 between the enlarged pictures and the truth, pixels near an edge weighing more.

    Args:
        model: The net under training.
        vae: The trained autoencoder, which half the batch goes through before it is enlarged.
        draw_of_step: The randomness of the step.
    """
    small, large = (_to_tensor(pixels) for pixels in pair(draw_of_step, BATCH))
    decoded = _decoded(vae, small[: BATCH // 2])
    enlarged = model(torch.cat([decoded, small[BATCH // 2 :]]))
    # The range of levels within two pixels: zero on plain ground.
    spread = F.max_pool2d(large, 5, 1, 2) + F.max_pool2d(-large, 5, 1, 2)
    weight = 1 + EDGE_WEIGHT * spread.amax(1, keepdim=True)
    error = (enlarged - large).abs().mean(1, keepdim=True)
    return (error * weight).sum() / weight.sum()


@torch.no_grad()
def enlarge(network: Callable[[Tensor], Tensor], pixels: np.ndarray) -> np.ndarray:
    """Return pictures as the net enlarges them, (B, H, W, 3) uint8 to (B, 2 H, 2 W, 3) uint8."""
    parts = [network(_to_tensor(pixels[start : start + BATCH])) for start in range(0, len(pixels), BATCH)]
    return torch.cat(parts).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def scaled_down(pixels: np.ndarray) -> np.ndarray:
    """Return pictures with each square of 2 × 2 pixels as one pixel, its mean: (B, 2 H, 2 W, 3) uint8 to (B, H, W, 3) uint8."""
    count, height, width, channels = pixels.shape
    squares = pixels.reshape(count, height // SCALE, SCALE, width // SCALE, SCALE, channels)
    return np.rint(squares.mean((2, 4))).astype(np.uint8)


def save(model: Compact, folder: Path) -> None:
    """Write the net as `folder/model.safetensors`, in fp32, under the names that RealESRGAN's own files have."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.cpu().contiguous() for name, value in model.state_dict().items()}, folder / FILE)


@torch.no_grad()
def _decoded(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Return pictures, (B, 3, 64, 64) in [0, 1], as the autoencoder decodes them."""
    latents = vae.encode(pictures * 2 - 1).latent_dist.mean
    return vae.decode(latents).sample.clamp(-1, 1).add(1).div(2)


def _to_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).to(DEVICE).permute(0, 3, 1, 2).float().div(255).contiguous()
