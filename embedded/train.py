"""Trains one stage of the family: `python -m promptmill.embedded.train STAGE`.

The stages are autoencoder, clip, unet, controlnet-canny and controlnet-seg, then flow and flow-controlnet-seg, the second family,
upscaler, and annotator-seg, which needs none of the others. Each stage checkpoints under --runs. A stage that was killed at any
moment goes on from its checkpoint when the same command is given again. A stage that is done writes its weights under --weights, in
the layout that the libraries load, and brings SHA256SUMS up to date.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel

from promptmill.embedded import autoencoder, clip, controlnet, flow, flow_controlnet, segmenter, unet, upscaler
from promptmill.embedded.training import DEVICE, Recipe, train
from promptmill.embedded.weights import WEIGHTS, sha256, write_sums


def train_autoencoder(run: "Run") -> None:
    """Train the autoencoder and write pipeline/vae."""
    recipe = run.recipe(autoencoder.RECIPE)
    model = autoencoder.build()
    weights = autoencoder.OBJECT_WEIGHT, autoencoder.KL_WEIGHT
    run.train(model, lambda draw: autoencoder.reconstruction_loss(model, draw, *weights), recipe)
    recipe = run.recipe(autoencoder.FINISH)
    weights = autoencoder.OBJECT_WEIGHT_FINISH, autoencoder.KL_WEIGHT_FINISH
    run.train(model, lambda draw: autoencoder.reconstruction_loss(model, draw, *weights), recipe, "-finish")
    autoencoder.whiten(model)
    model.half().save_pretrained(run.weights / "pipeline" / "vae")


def train_clip(run: "Run") -> None:
    """Train the CLIP pair and write clip/."""
    recipe = run.recipe(clip.RECIPE)
    model = clip.build().to(DEVICE)
    run.train(model, lambda draw: clip.contrastive_loss(model, draw), recipe)
    clip.save(model, run.weights / "clip")


def train_unet(run: "Run") -> None:
    """Train the UNet and its text encoder on pipeline/vae, and write the rest of pipeline/."""
    recipe = run.recipe(unet.RECIPE)
    model = unet.Denoiser().to(DEVICE)
    corpus, noise = run.corpus(), DDPMScheduler(**unet.NOISE)
    run.train(model, lambda draw: unet.denoising_loss(model, corpus, noise, draw), recipe)
    scheduler = DPMSolverMultistepScheduler(**unet.SAMPLER)
    scheduler.register_to_config(clip_sample=False)  # for the DDIM and DDPM that are built from this config
    # The text encoder stays fp32: transformers loads a file in the precision it was saved in, where diffusers loads fp32.
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(run.weights / "pipeline" / "vae").half(),
        text_encoder=model.text_encoder,
        tokenizer=unet.TOKENIZER,
        unet=model.unet.half(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(run.weights / "pipeline")


def train_controlnet(run: "Run", kind: str) -> None:
    """Train the ControlNet of one kind on pipeline/, and write controlnet-KIND/."""
    recipe = run.recipe(controlnet.RECIPES[kind])
    denoiser = unet.Denoiser()
    denoiser.unet = UNet2DConditionModel.from_pretrained(run.weights / "pipeline" / "unet")
    denoiser.text_encoder = CLIPTextModel.from_pretrained(run.weights / "pipeline" / "text_encoder")
    denoiser.to(DEVICE).requires_grad_(False).eval()
    model = controlnet.build(denoiser.unet).to(DEVICE)
    corpus, scheduler = run.corpus(), DDPMScheduler(**unet.NOISE)
    run.train(model, lambda draw: controlnet.control_loss(model, denoiser, corpus, scheduler, kind, draw), recipe)
    model.half().save_pretrained(run.weights / f"controlnet-{kind}")


def train_flow(run: "Run") -> None:
    """Train the flow transformer and its text encoders on pipeline/vae, and write flow/."""
    recipe = run.recipe(flow.RECIPE)
    model = flow.FlowDenoiser().to(DEVICE)
    corpus = run.corpus()
    run.train(model, lambda draw: flow.flow_loss(model, corpus, draw), recipe)
    flow.save(model, run.autoencoder(), run.weights / "flow")


def train_flow_controlnet(run: "Run") -> None:
    """Train the flow family's ControlNet on flow/, and write flow-controlnet-seg/."""
    recipe = run.recipe(flow_controlnet.RECIPE)
    denoiser = flow.load(run.weights / "flow").to(DEVICE).requires_grad_(False).eval()
    model = flow_controlnet.build(denoiser.transformer).to(DEVICE)
    corpus, vae = run.corpus(), run.autoencoder()
    maps = flow_controlnet.map_latents(vae, corpus, run.cache("maps"))
    run.train(model, lambda draw: flow_controlnet.flow_control_loss(model, denoiser, corpus, maps, draw), recipe)
    model.half().save_pretrained(run.weights / f"flow-controlnet-{flow_controlnet.KIND}")


def train_segmenter(run: "Run") -> None:
    """Train the annotator that makes segmentation maps, and write annotator-seg/."""
    recipe = run.recipe(segmenter.RECIPE)
    model = segmenter.build().to(DEVICE)
    run.train(model, lambda draw: segmenter.segmentation_loss(model, draw), recipe)
    segmenter.save(model, run.weights / "annotator-seg")


def train_upscaler(run: "Run") -> None:
    """Train the upscaler on drawn pictures and on what pipeline/vae makes of drawn pictures, and write upscaler/."""
    recipe = run.recipe(upscaler.RECIPE)
    model = upscaler.build().to(DEVICE)
    vae = run.autoencoder().requires_grad_(False)
    run.train(model, lambda draw: upscaler.enlarging_loss(model, vae, draw), recipe)
    upscaler.save(model, run.weights / "upscaler")


STAGES: dict[str, Callable[["Run"], None]] = {
    "autoencoder": train_autoencoder,
    "clip": train_clip,
    "unet": train_unet,
    "controlnet-canny": lambda run: train_controlnet(run, "canny"),
    "controlnet-seg": lambda run: train_controlnet(run, "seg"),
    "flow": train_flow,
    "flow-controlnet-seg": train_flow_controlnet,
    "annotator-seg": train_segmenter,
    "upscaler": train_upscaler,
}


class Run:
    """Holds the options of one call of this command: where files lie, and which values replace the recipe's."""

    def __init__(self, stage: str, runs: Path, weights: Path, steps: int | None, pictures: int, save_every: float):
        self.stage, self.runs, self.weights = stage, runs, weights
        self.steps, self.pictures, self.save_every = steps, pictures, save_every

    def recipe(self, recipe: Recipe) -> Recipe:
        """Seed torch for the modules that are built next, and return the stage's recipe with the requested number of steps."""
        torch.manual_seed(recipe.seed)
        return replace(recipe, steps=self.steps) if self.steps else recipe

    def corpus(self) -> unet.Corpus:
        """Return the pictures that the UNet and the ControlNets train on, encoded by the trained autoencoder."""
        return unet.Corpus(self.autoencoder(), self.pictures, unet.RECIPE.seed, self.cache("latents"))

    def autoencoder(self) -> AutoencoderKL:
        """Load the trained autoencoder, in fp32."""
        return AutoencoderKL.from_pretrained(self.weights / "pipeline" / "vae").to(DEVICE).eval()

    def cache(self, what: str) -> Path:
        """Return the file that keeps what the autoencoder has encoded of the corpus."""
        digest = sha256(self.weights / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors")[:8]
        return self.runs / f"{what}-{digest}-{unet.RECIPE.seed}-{self.pictures}.safetensors"

    def train(self, model: torch.nn.Module, loss: Callable, recipe: Recipe, part: str = "") -> None:
        checkpoint = self.runs / f"{self.stage}{part}.safetensors"
        train(model, loss, recipe, checkpoint, save_every_s=self.save_every, say=click.echo)


@click.command()
@click.argument("stage", type=click.Choice(list(STAGES)))
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs/embedded"), show_default=True, help="Checkpoints.")
@click.option("--weights", type=click.Path(path_type=Path), default=WEIGHTS, show_default="embedded/weights", help="The family.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps in all, instead of the recipe's.")
@click.option(
    "--pictures", type=click.IntRange(min=64), default=unet.PICTURES, show_default=True, help="Pictures encoded for the UNet."
)
@click.option("--save-every", type=float, default=60.0, show_default=True, help="Seconds between checkpoints.")
def main(stage: str, runs: Path, weights: Path, steps: int | None, pictures: int, save_every: float) -> None:
    """Train one STAGE of the embedded family, or go on with it."""
    STAGES[stage](Run(stage, runs, weights, steps, pictures, save_every))
    write_sums(weights)


if __name__ == "__main__":
    main()
