"""Trains the annotator of the embedded world: a small SegFormer (Xie et al. 2021) that makes the segmentation map of a picture.

The map has the colours of the maps that the segmentation ControlNets were trained on, since the model's config brings them as its
palette. So a picture's layout goes through the annotator and a ControlNet into another picture.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from promptmill.embedded.pictures import SEGMENT_RGB, SIDE, draw
from promptmill.embedded.training import DEVICE, Draw, Recipe
from promptmill.embedded.world import SHAPES, sample_scene

RECIPE = Recipe(steps=1600, learning_rate=2e-3, decay=0.6, ema=0.99, seed=8)
BATCH = 32
CLASSES = ("background", *SHAPES)
NOISE = 0.06  # the strongest noise on a picture, of the range from 0 to 1
MEAN, STD = 0.5, 0.25  # from pixels in [0, 1] to what the network takes


def build() -> SegformerForSemanticSegmentation:
    """Return an untrained SegFormer that takes (B, 3, 64, 64) and gives logits (B, 5, 32, 32).

    Its first stride is 2, and not 4 as in the paper's models: the smallest object is 14 pixels wide.
    """
    config = SegformerConfig(
        hidden_sizes=[16, 32, 64, 64],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 4, 4],
        sr_ratios=[8, 4, 2, 1],
        patch_sizes=[5, 3, 3, 3],
        strides=[2, 2, 2, 2],
        mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=48,
        initializer_range=0.1,  # the usual 0.02 is for wide layers; with it, so narrow a network takes long to tell shapes apart
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: number for number, name in enumerate(CLASSES)},
        palette=SEGMENT_RGB.tolist(),
    )
    return SegformerForSemanticSegmentation(config)


def segmentation_loss(model: SegformerForSemanticSegmentation, draw_of_step: Draw) -> Tensor:
    """Return the mean cross-entropy of the classes of pixels, a scalar, on pictures worn as a generator might have made them."""
    rng = draw_of_step.numpy
    truth = draw([sample_scene(rng) for _ in range(BATCH)], rng)
    pictures = torch.from_numpy(truth.pixels).to(DEVICE).permute(0, 3, 1, 2).float().div(255)
    blur, noise = torch.from_numpy(rng.uniform(-1, 1, (2, BATCH, 1, 1, 1))).float().to(DEVICE).clamp(min=0)
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    pictures = (pictures.lerp(soft, blur) + NOISE * noise * draw_of_step.normal(*pictures.shape)).clamp(0, 1)
    labels = torch.from_numpy(truth.labels.astype(np.int64)).to(DEVICE)
    return model(pixel_values=(pictures - MEAN) / STD, labels=labels).loss


def save(model: SegformerForSemanticSegmentation, folder: Path) -> None:
    """Write a model and its image processor into `folder`, in the layout that transformers loads."""
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    SegformerImageProcessor(size=size, image_mean=[MEAN] * 3, image_std=[STD] * 3).save_pretrained(folder)
