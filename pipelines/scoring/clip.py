"""Scores images under prompts with a CLIP model: scaled cosines in fp32, the same bits whatever else is in the batch."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from promptmill.configs.schema import Ranking
from promptmill.configs.weights import HF_HUB, LOCAL_DIR, OpenClip
from promptmill.pipelines.models.clip_sources import (
    embedding_width,
    hub_file,
    known_name,
    model_config,
    model_folder,
    one_line,
    tag_weights,
    tokenizer_folder,
    weights_file,
)
from promptmill.pipelines.scoring.clip_preprocessing import preprocess
from promptmill.pipelines.scoring.libraries import PreprocessCfg, open_clip
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.results import Scored
from promptmill.pipelines.work.turns import COMPUTING

TEXT_BATCH = 16  # a unit has few distinct prompts; the size decides bits, so it is no setting
TEXTS_KEPT = 4096

# Switches that another part of the process may have set for speed, with the values that fp32 needs.
BACKENDS: Any = torch.backends
EXACT = (
    (BACKENDS.cuda.matmul, "fp32_precision", "ieee"),
    (BACKENDS.cudnn.conv, "fp32_precision", "ieee"),
    (BACKENDS.mkldnn.matmul, "fp32_precision", "ieee"),
    (BACKENDS.mkldnn.conv, "fp32_precision", "ieee"),
    (BACKENDS.cudnn, "benchmark", False),
    (BACKENDS.cudnn, "deterministic", True),
)


@dataclass(frozen=True)
class Clip:
    """Holds a loaded CLIP model and scores with it.

    Attributes:
        name: The name in the config.
        model: open_clip's model, or one with its `encode_image` and `encode_text`, in fp32 and evaluation mode.
        tokenizer: From texts to the input of `encode_text`, (B, …) int64.
        preprocessing: From images to (B, 3, H, W) fp32, as open_clip's config or as a function.
        batch: Images a call of the model, always.
        width: Width of the embeddings, D.
        device: The device of all weights.
        scale: The factor of cosines.
    """

    name: str
    model: Any
    tokenizer: Callable[[list[str]], Tensor]
    preprocessing: PreprocessCfg | Callable[[Sequence[np.ndarray]], Tensor]
    batch: int
    width: int
    device: torch.device
    scale: float = 100.0
    _texts: OrderedDict[str, np.ndarray] = field(default_factory=OrderedDict)

    def score(self, prompts: Sequence[str], images: Sequence[np.ndarray]) -> list[Scored]:
        """Score each image under its own prompt.

        Args:
            prompts: As many as images.
            images: (H, W, 3) uint8 each, of any sizes.

        Raises:
            ModelError: As `embed_images`.
        """
        if len(prompts) != len(images):
            raise ValueError(f"{len(prompts)} prompts for {len(images)} images")
        embeddings = self.embed_images(images)
        scores = self.scale * (embeddings * self.embed_texts(prompts)).sum(-1)
        return [Scored(float(score), embedding) for score, embedding in zip(scores, embeddings, strict=True)]

    def embed_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return the embeddings of images as unit vectors, (B, D) float32.

        Args:
            images: (H, W, 3) uint8 each, of any sizes.

        Raises:
            ModelError: The model gives values that are not finite.
        """
        parts = [np.empty((0, self.width), np.float32)]
        for start in range(0, len(images), self.batch):
            some = images[start : start + self.batch]
            form = self.preprocessing
            inputs = preprocess(some, form) if isinstance(form, PreprocessCfg) else form(some)
            parts.append(self._embed(self.model.encode_image, inputs, self.batch))
        return np.concatenate(parts)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return the embeddings of texts as unit vectors, (B, D) float32; each distinct text is encoded once, the latest are
        remembered.

        Raises:
            ModelError: The model gives values that are not finite.
        """
        vectors = {text: self._texts[text] for text in texts if text in self._texts}
        new = [text for text in dict.fromkeys(texts) if text not in vectors]
        for start in range(0, len(new), TEXT_BATCH):
            some = new[start : start + TEXT_BATCH]
            vectors |= zip(some, self._embed(self.model.encode_text, self.tokenizer(some), TEXT_BATCH), strict=True)
        for text, vector in vectors.items():
            self._texts[text] = vector
            self._texts.move_to_end(text)
        while len(self._texts) > TEXTS_KEPT:
            self._texts.popitem(last=False)
        return np.stack([vectors[text] for text in texts]) if vectors else np.empty((0, self.width), np.float32)

    def _embed(self, encode: Callable[[Tensor], Tensor], inputs: Tensor, batch: int) -> np.ndarray:
        padding = inputs[-1:].expand(batch - len(inputs), *inputs.shape[1:])
        with exact(self.device):
            features = encode(torch.cat([inputs, padding]).to(self.device))[: len(inputs)]
            vectors = F.normalize(features.float(), dim=-1).cpu().numpy()
        if not np.isfinite(vectors).all():
            raise ModelError(f"{self.name}: gives embeddings that are not finite; its weights may be damaged")
        return vectors


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Compute alone in the process, without autocast, TF32 or kernels chosen by timing, whatever holds outside."""
    with COMPUTING:
        before = [getattr(backend, name) for backend, name, _ in EXACT]
        try:
            for backend, name, value in EXACT:
                setattr(backend, name, value)
            torch.set_num_threads(torch.get_num_threads())  # this thread's own number, also for MKL, which has one number for all
            with torch.inference_mode(), torch.autocast(device.type, enabled=False):
                yield
        finally:
            for (backend, name, _), value in zip(EXACT, before, strict=True):
                setattr(backend, name, value)


def load_clip(ranking: Ranking, device: torch.device | str, threads: int | None = None) -> Clip:
    """Load the model that a config's ranking names, from safetensors only.

    Args:
        ranking: The config's ranking.
        device: The device for all weights.
        threads: CPU threads of this process from now on; left as they are where None.

    Raises:
        ModelError: One line on what is missing or cannot be loaded, and what would do.
    """
    if threads is not None:
        torch.set_num_threads(threads)
        torch.get_num_threads()  # asked for the first time in a thread, torch takes the latest number of any thread
    return load_open_clip(ranking, device, ranking.batch)


def load_open_clip(source: OpenClip, device: torch.device | str, batch: int) -> Clip:
    """Load an open_clip model, from safetensors only.

    Args:
        source: The model's place.
        device: The device for all weights.
        batch: Images a call.

    Raises:
        ModelError: As `load_clip`.
    """
    config = model_config(source)
    options: dict[str, Any] = {}
    folder: Path | None = None
    if source.model.startswith((LOCAL_DIR, HF_HUB)):
        folder = model_folder(source)
        name, weights = f"{LOCAL_DIR}{folder}", weights_file(folder, source.model)
    else:
        name = known_name(source.model)
        weights, options = _tagged(source)
    words = tokenizer_folder(source, config, folder)
    try:
        model = _build(name, weights, options)
        tokenizer = _tokenizer(name, config, words)
    except Exception as error:  # open_clip raises nearly anything; each means that this model cannot be had
        raise ModelError(f"{source.model}: open_clip cannot load it: {one_line(error)}") from error
    target = torch.device(device)
    # open_clip returns models in training mode.
    model = model.eval().requires_grad_(False).to(target)
    preprocessing = PreprocessCfg(**model.visual.preprocess_cfg)
    return Clip(source.model, model, tokenizer, preprocessing, batch, embedding_width(source), target)


def _tagged(source: OpenClip) -> tuple[Path, dict[str, Any]]:
    """Fetch the weights behind open_clip's tag from the hub; return their file and the options to build their model with."""
    weights = tag_weights(source)
    form = {key: weights.entry[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in weights.entry}
    # Many weights want QuickGELU where the architecture of that name has GELU; open_clip only warns.
    options = {"force_preprocess_cfg": form, "force_quick_gelu": bool(weights.entry.get("quick_gelu"))}
    return hub_file(weights.repository, weights.file, source.revision), options


def _build(name: str, weights: Path, options: dict[str, Any]) -> Any:
    # Two steps, since open_clip itself prefers a pickle of one name to safetensors of another.
    with _without_warnings():
        model = open_clip.create_model(name, precision="fp32", load_weights=False, pretrained_text=False, **options)
    open_clip.load_checkpoint(model, str(weights))
    return model


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress the warning of open_clip on the root logger that the model is random, as it is between the two steps."""

    def serious(record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING

    logging.root.addFilter(serious)
    try:
        yield
    finally:
        logging.root.removeFilter(serious)


def _tokenizer(name: str, config: dict[str, Any], words: Path | None) -> Callable[[list[str]], Tensor]:
    if words is None:
        return open_clip.get_tokenizer(name)
    text = config["text_cfg"]
    options = {**text.get("tokenizer_kwargs", {})}
    if "context_length" in text:
        options["context_length"] = text["context_length"]
    # A model's config may ask transformers to run code out of its repository; the option given here wins.
    options["trust_remote_code"] = False
    return open_clip.tokenizer.HFTokenizer(str(words), tokenizer_mode=text.get("tokenizer_mode"), **options)
