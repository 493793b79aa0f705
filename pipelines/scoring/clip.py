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

TEXT_BATCH = 16  # a unit has few distinct prompts; it decides bits, so it is no setting
TEXTS_KEPT = 4096

# What another part of the process may have switched on for speed, and what fp32 needs it to be.
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
    """A loaded model.

    Attributes:
        name: As the config gives it.
        model: open_clip's, or one with its `encode_image` and `encode_text`, in fp32 and evaluation mode.
        tokenizer: Of texts to what `encode_text` takes, (B, …) int64.
        preprocessing: What images go through, as open_clip says it or as a function to (B, 3, H, W) fp32.
        batch: Images a call of the model, always.
        width: Of the embeddings, D.
        device: All weights are there.
        scale: What cosines are multiplied by.
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
        """Unit vectors, (B, D) float32.

        Args:
            images: (H, W, 3) uint8 each, of any sizes.

        Raises:
            ModelError: The model gives something else than finite numbers.
        """
        parts = [np.empty((0, self.width), np.float32)]
        for start in range(0, len(images), self.batch):
            some = images[start : start + self.batch]
            form = self.preprocessing
            inputs = preprocess(some, form) if isinstance(form, PreprocessCfg) else form(some)
            parts.append(self._embed(self.model.encode_image, inputs, self.batch))
        return np.concatenate(parts)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, (B, D) float32; each distinct text is encoded once, and the latest are remembered.

        Raises:
            ModelError: The model gives something else than finite numbers.
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
    """Compute alone, with no autocast, no TF32, no kernels chosen by timing, whatever holds outside."""
    with COMPUTING:
        before = [getattr(backend, name) for backend, name, _ in EXACT]
        try:
            for backend, name, value in EXACT:
                setattr(backend, name, value)
            torch.set_num_threads(torch.get_num_threads())  # this thread's own number, for MKL too, which has one for all
            with torch.inference_mode(), torch.autocast(device.type, enabled=False):
                yield
        finally:
            for (backend, name, _), value in zip(EXACT, before, strict=True):
                setattr(backend, name, value)


def load_clip(ranking: Ranking, device: torch.device | str, threads: int | None = None) -> Clip:
    """Load the model that a config's ranking names, from safetensors only.

    Args:
        threads: CPU threads of this process from now on; left as they are where not given.

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
    """The weights behind open_clip's tag, fetched from the hub, and how their model has to be built."""
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
    """Between the two steps the model is random, which open_clip would say on the root logger."""

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
    # A model's config may ask transformers to run code out of its repository; what is given here wins.
    options["trust_remote_code"] = False
    return open_clip.tokenizer.HFTokenizer(str(words), tokenizer_mode=text.get("tokenizer_mode"), **options)
