"""A random preference model of a few thousand weights, in the layout of transformers: CLIP with its processor."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

WORDS = Path(__file__).parents[3] / "embedded" / "weights" / "pipeline" / "tokenizer"
WIDTH, LENGTH, SIDE = 12, 16, 24


def save(folder: Path, **options) -> Path:
    """Write a model's folder, and return it; always the same weights."""
    tokenizer = AutoTokenizer.from_pretrained(WORDS, model_max_length=LENGTH)
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = CLIPConfig(
        text_config={**tower, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH},
        vision_config={**tower, "image_size": SIDE, "patch_size": 8},
        projection_dim=WIDTH,
        logit_scale_init_value=3.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder, **options)
    pictures = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    CLIPProcessor(pictures, tokenizer).save_pretrained(folder)
    return folder
