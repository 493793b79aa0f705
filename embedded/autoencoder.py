"""Trains stage 1, the autoencoder (AutoencoderKL) between pictures and 4-channel latents."""

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from promptmill.embedded.pictures import SIDE, draw
from promptmill.embedded.training import DEVICE, Draw, Recipe
from promptmill.embedded.world import sample_scene

# First under a firm KL, which leaves few channels and a smooth space, then under a faint one, which gets the edges right.
RECIPE = Recipe(steps=2400, learning_rate=2e-3, warmup=100, decay=0.6, weight_decay=0.0, ema=0.995, seed=1)
FINISH = Recipe(steps=1300, learning_rate=1.5e-3, warmup=50, decay=0.7, weight_decay=0.0, ema=0.995, seed=6)
BATCH = 32

# Objects are a few percent of the pixels and all of the meaning, so they weigh more.
OBJECT_WEIGHT, OBJECT_WEIGHT_FINISH = 8.0, 16.0
# In units of the loss for one nat a latent dimension.
KL_WEIGHT, KL_WEIGHT_FINISH = 5e-4, 2e-5


def build() -> AutoencoderKL:
    """Return an untrained autoencoder: (B, 3, 64, 64) fp32 pictures in [-1, 1] to (B, 4, 16, 16) latents and back."""
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=SIDE,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    return model.to(DEVICE, memory_format=torch.channels_last)


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Convert pictures, (B, 64, 64, 3) uint8, to a tensor (B, 3, 64, 64) fp32 in [-1, 1] on the training device."""
    values = torch.from_numpy(pixels).to(DEVICE).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return values.contiguous(memory_format=torch.channels_last)


def reconstruction_loss(model: AutoencoderKL, draw_of_step: Draw, object_weight: float, kl_weight: float) -> Tensor:
    """Return the scalar loss of one step: weighted L1 over a batch of fresh scenes, plus the KL term (Kingma and Welling 2014).

    Args:
        model: The autoencoder under training.
        draw_of_step: The randomness of the step; scenes and posterior noise come from it.
        object_weight: Extra weight of the pixels that objects cover, over 1 for the background.
        kl_weight: Weight of the KL divergence, in units of the loss for one nat a latent dimension.
    """
    scenes = [sample_scene(draw_of_step.numpy) for _ in range(BATCH)]
    drawn = draw(scenes, draw_of_step.numpy)
    pictures = to_tensor(drawn.pixels)
    # Grown by two pixels, so that edges and their surroundings weigh in too.
    covered = F.max_pool2d(torch.from_numpy(drawn.coverage).to(DEVICE).amax(1, keepdim=True), 5, 1, 2)
    weight = 1 + object_weight * covered
    posterior = model.encode(pictures).latent_dist
    latents = posterior.mean + posterior.std * draw_of_step.normal(*posterior.mean.shape)
    error = (model.decode(latents).sample - pictures).abs().mean(1, keepdim=True)
    return (error * weight).sum() / weight.sum() + kl_weight * posterior.kl().mean() / posterior.mean[0].numel()


@torch.no_grad()
def whiten(model: AutoencoderKL, count: int = 1024) -> None:
    """Give every latent channel zero mean and unit variance over the world, by folding the change into the two 1x1 convolutions.

    A diffusion model's noise assumes such latents. Stable Diffusion's own scaling factor can mend neither a mean nor channels of
    unequal size. The autoencoder's reconstructions stay the same.

    A channel that carries less signal than posterior noise has collapsed under the KL. Such a channel is set to zero for good, so
    that no later stage has to learn it. The posterior noise has done its work in training and is switched off: img2img and
    inpainting, which sample from the posterior, then begin from the picture itself.

    Args:
        model: The trained autoencoder, which is changed in place.
        count: Pictures over which mean and variance are taken, a multiple of 64.
    """
    rng = np.random.default_rng([RECIPE.seed, 0xF01D])
    batches = [draw([sample_scene(rng) for _ in range(64)], rng).pixels for _ in range(count // 64)]
    posteriors = [model.encode(to_tensor(pixels)).latent_dist for pixels in batches]
    latents = torch.cat([p.mean for p in posteriors])
    noise = torch.cat([p.std for p in posteriors]).mean((0, 2, 3))
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, back = model.quant_conv, model.post_quant_conv
    channels = len(mean)  # the second half of what comes in are the log variances
    into.bias[:channels] -= mean
    into.weight[:channels] /= std.view(-1, 1, 1, 1)
    into.bias[:channels] /= std
    into.weight[channels:] = 0
    into.bias[channels:] = -30
    back.bias += (back.weight * mean.view(1, -1, 1, 1)).sum((1, 2, 3))
    back.weight *= std.view(1, -1, 1, 1)
    collapsed = std < noise
    into.weight[:channels][collapsed] = 0
    into.bias[:channels][collapsed] = 0
