"""Makes tiny object detectors of random weights, by transformers' own classes, as folders with their image processors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

LABELS = {0: "person", 1: "face", 2: "cat", 3: "traffic light"}
_NAMED: Any = {"id2label": LABELS, "label2id": {name: number for number, name in LABELS.items()}}


def yolos(folder: Path) -> Path:
    config = YolosConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=[48, 64], patch_size=8,
        num_detection_tokens=12, **_NAMED,
    )  # fmt: skip
    YolosImageProcessor(size={"shortest_edge": 48, "longest_edge": 320}).save_pretrained(folder)
    return _save(YolosForObjectDetection(config), folder)


def detr(folder: Path) -> Path:
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], layer_type="basic")
    backbone.out_features = ["stage4"]
    config = DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, d_model=16,
        encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2,
        decoder_attention_heads=2, num_queries=12, **_NAMED,
    )  # fmt: skip
    DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return _save(DetrForObjectDetection(config), folder)


def rt_detr(folder: Path) -> Path:
    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[8, 16, 16], encoder_layers=1, encoder_ffn_dim=32,
        encoder_attention_heads=2, d_model=16, num_queries=12, decoder_in_channels=[16, 16, 16], decoder_ffn_dim=32,
        decoder_layers=1, decoder_attention_heads=2, num_denoising=0, **_NAMED,
    )  # fmt: skip
    RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return _save(RTDetrForObjectDetection(config), folder)


MAKERS: dict[str, Callable[[Path], Path]] = {"yolos": yolos, "detr": detr, "rt_detr": rt_detr}


def make(kind: str, folder: Path) -> Path:
    torch.manual_seed(3)
    return MAKERS[kind](folder)


def _save(model: Any, folder: Path) -> Path:
    # Random boxes are all alike at first, and every score near the mean: spread both.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "query" in name or "detection_tokens" in name:
                parameter.normal_(0, 4)
            elif "class" in name or "score" in name:
                parameter.normal_(0, 0.8 if parameter.ndim > 1 else 0.2)
            elif "bbox" in name:
                parameter.normal_(0, 0.4 if parameter.ndim > 1 else 0.8)
    model.save_pretrained(folder)
    return folder
