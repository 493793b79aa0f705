"""Trains a ControlNet on a dataset of images, control maps and prompts, as diffusers' train_controlnet.py does, in a few lines.

    python examples/controlnet-training/train.py DATASET [--steps 2] [--batch 8] [--to FOLDER]

The ControlNet begins as a copy of the encoder of the embedded family's UNet, whose weights stay as they are.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import webdataset
from diffusers import ControlNetModel, DDPMScheduler, StableDiffusionPipeline
from torch.nn.functional import mse_loss

from promptmill.configs.own_files import ROOT

Batch = tuple[torch.Tensor, torch.Tensor, list[str]]


def batches(dataset: Path, size: int) -> Iterator[Batch]:
    """Yield images (B, 3, H, W) in [-1, 1], maps (B, 3, H, W) in [0, 1] and prompts, again and again, in an order that is drawn."""
    tars = sorted(str(path) for path in (dataset / "data").glob("*.tar"))
    read = webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8").to_tuple("png", "control.0.png", "txt")
    samples, rng = [*read], np.random.default_rng(0)
    while True:
        chosen = [samples[number] for number in rng.choice(len(samples), size)]
        images, maps = (torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2).float() for some in [*zip(*chosen, strict=True)][:2])
        yield images / 127.5 - 1, maps / 255, [prompt for _, _, prompt in chosen]


class Trainer:
    """Holds a frozen Stable Diffusion and the ControlNet that is trained on it."""

    def __init__(self) -> None:
        self.base = StableDiffusionPipeline.from_pretrained(ROOT / "embedded/weights/pipeline", safety_checker=None)
        for part in (self.base.unet, self.base.vae, self.base.text_encoder):
            part.requires_grad_(False)
        torch.manual_seed(0)
        # As deep as the VAE: the map is brought to the size of the latents.
        self.net = ControlNetModel.from_unet(self.base.unet, conditioning_embedding_out_channels=(16, 32, 64))
        self.noises = DDPMScheduler.from_config(self.base.scheduler.config)

    def loss(self, batch: Batch, draws: torch.Generator) -> torch.Tensor:
        """Return the mean squared error of the noise that the UNet predicts, steered by the ControlNet."""
        images, maps, prompts = batch
        with torch.no_grad():
            latents = self.base.vae.encode(images).latent_dist.sample(draws) * self.base.vae.config.scaling_factor
            tokens = self.base.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
            texts = self.base.text_encoder(tokens)[0]
        noise = torch.randn(latents.shape, generator=draws)
        times = torch.randint(self.noises.config.num_train_timesteps, (len(latents),), generator=draws)
        noisy = self.noises.add_noise(latents, noise, times)
        down, middle = self.net(noisy, times, texts, controlnet_cond=maps, return_dict=False)
        made = self.base.unet(noisy, times, texts, down_block_additional_residuals=down, mid_block_additional_residual=middle)
        is_velocity = self.noises.config.prediction_type == "v_prediction"
        return mse_loss(made.sample, self.noises.get_velocity(latents, noise, times) if is_velocity else noise)


def main() -> None:
    """Train on a dataset, save the ControlNet, and print losses as JSON: of the first and last steps, and of one fixed batch."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("dataset", type=Path)
    asked.add_argument("--steps", type=int, default=2)
    asked.add_argument("--batch", type=int, default=8)
    asked.add_argument("--to", type=Path, help="the folder to save the ControlNet in")
    given = asked.parse_args()
    torch.set_num_threads(1)
    trainer, read, draws = Trainer(), batches(given.dataset, given.batch), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(trainer.net.parameters(), lr=1e-3)
    fixed = next(batches(given.dataset, 32))
    seen = []

    def judged() -> float:
        with torch.no_grad():
            return round(float(trainer.loss(fixed, torch.Generator().manual_seed(1))), 4)

    before = judged()
    for _ in range(given.steps):
        loss = trainer.loss(next(read), draws)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(round(loss.item(), 4))
    if given.to:
        trainer.net.save_pretrained(given.to)
    print(json.dumps({"losses": seen[:2] + seen[2:][-2:], "fixed batch": {"before": before, "after": judged()}}))


if __name__ == "__main__":
    main()
