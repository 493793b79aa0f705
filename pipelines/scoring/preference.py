"""Loads CLIP models of transformers that were trained on what people prefer, as PickScore was (Kirstain et al., arXiv:2305.01569).

A score is the model's logit scale x the cosine of prompt and image, as yuvalkirstain/PickScore_v1 says. Its example pads prompts
to the longest of a batch; here all are padded to the model's length, so that a score depends on no companion.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from promptmill.configs.scorers import PreferenceScorer
from promptmill.pipelines.models.clip_sources import one_line
from promptmill.pipelines.models.scorer_sources import preference_folder
from promptmill.pipelines.scoring.clip import Clip
from promptmill.pipelines.work.errors import ModelError


class _Towers:
    """A model of transformers with open_clip's two calls."""

    def __init__(self, model: Any):
        self._model = model

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) fp32 to (B, D)."""
        return self._model.get_image_features(pixel_values=pixels).pooler_output

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Tokens and their mask, (B, 2, L) int64, to (B, D)."""
        return self._model.get_text_features(input_ids=tokens[:, 0], attention_mask=tokens[:, 1]).pooler_output


def load(scorer: PreferenceScorer, batch: int, device: torch.device | str) -> Clip:
    """Load a preference model, from safetensors only.

    Args:
        batch: Images a call.

    Raises:
        ModelError: One line on what is missing or cannot be loaded.
    """
    folder = str(preference_folder(scorer))
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        model = CLIPModel.from_pretrained(folder, variant=scorer.variant, use_safetensors=True, dtype=torch.float32, **options)
        processor = CLIPProcessor.from_pretrained(folder, **options)
        scale = model.logit_scale.exp().item()
    except Exception as error:  # transformers raises nearly anything; each means that this model cannot be had
        raise ModelError(f"{scorer.source}: transformers cannot load it: {one_line(error)}") from error
    length = model.config.text_config.max_position_embeddings

    def words(texts: list[str]) -> Tensor:
        made = processor.tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return torch.stack([made["input_ids"], made["attention_mask"]], 1)

    def pixels(images: Sequence[np.ndarray]) -> Tensor:
        # One by one, so that an image meets no other; copied, since Ray's are not writable, which torch warns of.
        made = [
            processor.image_processor(images=np.array(image), input_data_format="channels_last", return_tensors="pt")
            for image in images
        ]
        return torch.cat([one["pixel_values"] for one in made])

    target = torch.device(device)
    towers = _Towers(model.eval().requires_grad_(False).to(target))
    return Clip(scorer.source, towers, words, pixels, batch, model.config.projection_dim, target, scale)
