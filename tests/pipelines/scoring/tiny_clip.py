"""Random open_clip models of a few thousand weights, in the layout of a local-dir."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}
# A towered model as SigLIP and others are, of oblong images.
OBLONG: dict[str, Any] = {**CONFIG, "custom_text": True, "vision_cfg": {**CONFIG["vision_cfg"], "image_size": [32, 48]}}
PREPROCESS = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "longest", "fill_color": 9}


def state(config: dict[str, Any] = CONFIG, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random weights, always the same."""
    architecture = dict(config)
    kind = open_clip.CustomTextCLIP if architecture.pop("custom_text", False) else open_clip.CLIP
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {name: tensor.to(dtype).contiguous() for name, tensor in kind(**architecture).state_dict().items()}


def save(folder: Path, config: dict[str, Any] = CONFIG, dtype: torch.dtype = torch.float32) -> Path:
    """Write a model's folder, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}))
    save_file(state(config, dtype), folder / "open_clip_model.safetensors")
    return folder
