"""Scores image embeddings with small networks: aesthetic predictors, safety checkers; in fp32, at one batch shape."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from promptmill.configs.scorers import HeadScorer
from promptmill.pipelines.models.clip_sources import fetched_file, one_line
from promptmill.pipelines.models.scorer_sources import CONCEPTS, SPECIAL_CARE, head_form
from promptmill.pipelines.scoring.clip import exact
from promptmill.pipelines.work.errors import ModelError

CARE = 0.01  # added to all cosines of an image that is close to a special-care concept


@dataclass(frozen=True)
class Head:
    """Holds a loaded head and scores with it.

    Attributes:
        name: The name in the config.
        network: From unit embeddings, (B, D) fp32, to scores, (B,).
        width: D.
        batch: Embeddings a call, always.
        device: The device of all weights.
    """

    name: str
    network: Callable[[Tensor], Tensor]
    width: int
    batch: int
    device: torch.device

    def score(self, embeddings: np.ndarray) -> np.ndarray:
        """Score unit embeddings, (B, D) float32 to (B,) float32; the caller has to check that scores are finite."""
        parts = [np.empty(0, np.float32)]
        for start in range(0, len(embeddings), self.batch):
            some = torch.from_numpy(embeddings[start : start + self.batch])
            padding = some[-1:].expand(self.batch - len(some), -1)
            with exact(self.device):
                parts.append(self.network(torch.cat([some, padding]).to(self.device))[: len(some)].cpu().numpy())
        return np.concatenate(parts)


class Concepts(nn.Module):
    """Computes the largest cosine of an image with some concepts, less each concept's threshold.

    The result is that of diffusers' StableDiffusionSafetyChecker, which takes an image for unsafe above 0.
    """

    def __init__(self, tensors: dict[str, Tensor]):
        super().__init__()
        self.concepts, self.thresholds = (nn.Buffer(tensors[name].float()) for name in CONCEPTS)
        none = (self.concepts.new_empty(0, self.concepts.shape[1]), self.concepts.new_empty(0))
        special = (tensors[name].float() for name in SPECIAL_CARE) if SPECIAL_CARE[0] in tensors else none
        self.special, self.special_thresholds = (nn.Buffer(tensor) for tensor in special)

    def forward(self, embeddings: Tensor) -> Tensor:
        care = (F.linear(embeddings, F.normalize(self.special)) > self.special_thresholds).any(-1, keepdim=True)
        return (F.linear(embeddings, F.normalize(self.concepts)) - self.thresholds + CARE * care).amax(-1)


def load(scorer: HeadScorer, batch: int, device: torch.device | str) -> Head:
    """Load a head from its safetensors file.

    Args:
        scorer: The head's place and form in the config.
        batch: Embeddings a call.
        device: The device for all weights.

    Raises:
        ModelError: The file is not there, has another form, or holds numbers that are not finite.
    """
    file = fetched_file(scorer)
    form = head_form(file, scorer.source)
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{scorer.source}: {one_line(error)}") from None
    wanted = [name for layer in form.layers for name in layer if name] or [*CONCEPTS, *(n for n in SPECIAL_CARE if n in tensors)]
    for name in wanted:
        if not torch.isfinite(tensors[name]).all():
            raise ModelError(f"{scorer.source}: {name} holds numbers that are not finite; the file may be damaged")
    network = (_layers(scorer, tensors, form.layers) if form.layers else Concepts(tensors)).requires_grad_(False).eval()
    return Head(scorer.name, network.to(device), form.width, batch, torch.device(device))


def _layers(scorer: HeadScorer, tensors: dict[str, Tensor], names: tuple[tuple[str, str | None], ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for weight, bias in names:
        if layers and scorer.activation == "relu":
            layers.append(nn.ReLU())
        outputs, inputs = tensors[weight].shape
        layer = nn.Linear(inputs, outputs, bias=bias is not None)
        layer.load_state_dict({"weight": tensors[weight].float()} | ({"bias": tensors[bias].float()} if bias else {}))
        layers.append(layer)
    if scorer.output == "sigmoid":
        layers.append(nn.Sigmoid())
    return nn.Sequential(*layers, nn.Flatten(0))
