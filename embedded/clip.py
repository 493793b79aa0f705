"""Trains stage 2, the CLIP pair (open_clip's architecture, a config of our own), which scores how well a picture fits its prompt.

A batch is made of families: a scene and some of its one-attribute edits, each with a picture of its own. So every prompt has
negatives that differ from the prompt in one word, and every picture has negatives that differ from the picture in one attribute.
"""

import json
import math
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from promptmill.embedded.pictures import SIDE, draw
from promptmill.embedded.tokenizer import CONTEXT, build_tokenizer, save_tokenizer
from promptmill.embedded.training import DEVICE, Draw, Recipe
from promptmill.embedded.world import Scene, describe, edits, is_held_out, sample_scene

RECIPE = Recipe(steps=1100, learning_rate=2e-3, warmup=100, decay=0.7, weight_decay=0.05, ema=0.0, seed=2)
FAMILIES, MEMBERS = 24, 8

TOKENIZER = build_tokenizer()
CONFIG = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64, "patch_size": None},
    "text_cfg": {
        "context_length": CONTEXT,
        "vocab_size": len(TOKENIZER),
        "width": 128,
        "heads": 4,
        "layers": 3,
        "hf_tokenizer_name": ".",  # the folder that the config lies in
    },
}
PREPROCESS = {
    "mean": list(OPENAI_DATASET_MEAN),
    "std": list(OPENAI_DATASET_STD),
    "interpolation": "bicubic",
    "resize_mode": "squash",
}


def build() -> open_clip.CLIP:
    """Return an untrained CLIP: a small ResNet with attention pooling and a causal text transformer, which share 128 dimensions."""
    return open_clip.CLIP(**CONFIG)


def contrastive_loss(model: open_clip.CLIP, draw_of_step: Draw) -> Tensor:
    """Return the symmetric InfoNCE loss of CLIP (Radford et al. 2021), a scalar, over one batch of families."""
    scenes = [scene for _ in range(FAMILIES) for scene in _family(draw_of_step.numpy)]
    pictures = _worn(torch.from_numpy(draw(scenes, draw_of_step.numpy).pixels).to(DEVICE), draw_of_step)
    tokens = TOKENIZER([describe(s) for s in scenes], padding="max_length", return_tensors="pt").input_ids
    image = model.encode_image(pictures, normalize=True)
    text = model.encode_text(tokens.to(DEVICE), normalize=True)
    logits = model.logit_scale.clamp(max=math.log(100)).exp() * image @ text.T
    target = torch.arange(len(scenes), device=DEVICE)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def _family(rng: np.random.Generator) -> list[Scene]:
    base = sample_scene(rng)
    others = [scene for scene in edits(base) if not is_held_out(scene)]
    return [base, *(others[i] for i in rng.choice(len(others), MEMBERS - 1, replace=False))]


def _worn(pixels: Tensor, draw_of_step: Draw) -> Tensor:
    """Return pictures as a generator might have made them: some a little blurred, some noisy; normalised for CLIP.

    The pictures are (B, 64, 64, 3) uint8, the result is (B, 3, 64, 64) fp32.
    """
    pictures = pixels.permute(0, 3, 1, 2).float().div(255)
    blur, noise = torch.from_numpy(draw_of_step.numpy.uniform(-1, 1, (2, len(pixels), 1, 1, 1))).float().to(DEVICE).clamp(min=0)
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    pictures = pictures.lerp(soft, blur) + 0.05 * noise * draw_of_step.normal(*pictures.shape)
    mean, std = (torch.tensor(PREPROCESS[key], device=DEVICE).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (pictures.clamp(0, 1) - mean) / std


def save(model: open_clip.CLIP, folder: Path) -> None:
    """Write a CLIP model, its tokenizer and its config into `folder`, in the layout that open_clip loads as `local-dir:FOLDER`."""
    save_tokenizer(folder)
    config = {"model_cfg": CONFIG, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
