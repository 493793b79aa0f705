"""Makes maps of soft edges and of line art by networks of ControlNet's, defined here and read from safetensors files.

The networks are those of lllyasviel/Annotators: ControlNetHED.pth, an HED (Xie and Tu, arXiv:1504.06375) trained anew, and
sk_model.pth of informative-drawings (Chan et al., arXiv:2203.12691). The tensors keep their names there.
"""

import re
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from promptmill.configs.weights import PartWeights
from promptmill.pipelines.models.annotators import file_of
from promptmill.pipelines.work.errors import ModelError

Net = TypeVar("Net", bound=nn.Module)

HED_LAYERS = (2, 2, 3, 3, 3)  # convolutions of each of its five blocks


class _HedBlock(nn.Module):
    """Holds the convolutions of one scale, and the projection of their result to a map of edges."""

    def __init__(self, taken: int, given: int, layers: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(taken if i == 0 else given, given, 3, padding=1) for i in range(layers))
        self.projection = nn.Conv2d(given, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(conv(x))
        return x


class Hed(nn.Module):
    """Finds edges at five scales, of which each is half as large as the one before.

    Args:
        widths: Channels of the five blocks.
    """

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256, 512, 512)):
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))
        for number, (taken, given, layers) in enumerate(zip((3, *widths), widths, HED_LAYERS, strict=False), 1):
            self.add_module(f"block{number}", _HedBlock(taken, given, layers))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the logits of edges of a picture, (1, 3, H, W) from 0 to 255: at each scale (1, 1, h, w)."""
        x, found = x - self.norm, []
        for number in range(1, 6):
            block: Any = self.get_submodule(f"block{number}")
            x = block(x if number == 1 else F.max_pool2d(x, 2))
            found.append(block.projection(x))
        return found


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        once = [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)]
        again = [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)]
        self.conv_block = nn.Sequential(*once, nn.ReLU(), *again)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class Drawing(nn.Module):
    """Draws a picture as lines: the generator of informative-drawings.

    Args:
        width: Channels of the outer layers.
        blocks: Residual blocks in the middle.
    """

    def __init__(self, width: int = 64, blocks: int = 3):
        super().__init__()
        inner = 4 * width

        def down(taken: int) -> list[nn.Module]:
            return [nn.Conv2d(taken, 2 * taken, 3, stride=2, padding=1), nn.InstanceNorm2d(2 * taken), nn.ReLU()]

        def up(taken: int) -> list[nn.Module]:
            made = nn.ConvTranspose2d(taken, taken // 2, 3, stride=2, padding=1, output_padding=1)
            return [made, nn.InstanceNorm2d(taken // 2), nn.ReLU()]

        self.model0 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), nn.InstanceNorm2d(width), nn.ReLU())
        self.model1 = nn.Sequential(*down(width), *down(2 * width))
        self.model2 = nn.Sequential(*(_Residual(inner) for _ in range(blocks)))
        self.model3 = nn.Sequential(*up(inner), *up(inner // 2))
        self.model4 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(width, 1, 7), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Return a drawing, (1, 1, H, W) with black lines on white, of a picture, (1, 3, H, W); both from 0 to 1.

        H and W are multiples of 4.
        """
        drawn: Tensor = self.model4(self.model3(self.model2(self.model1(self.model0(x)))))
        return drawn


def load_hed(weights: PartWeights, device: torch.device) -> Hed:
    """Load an HED in fp32. Raises ModelError where the file is another network's."""
    place, tensors = _read(weights)
    widths = tuple(len(tensors.get(f"block{number}.convs.0.weight", ())) for number in range(1, 6))
    return _filled(Hed(widths), tensors, place, device)


def load_drawing(weights: PartWeights, device: torch.device) -> Drawing:
    """Load a generator of informative-drawings in fp32. Raises ModelError where the file is another network's."""
    place, tensors = _read(weights)
    blocks = {found[1] for key in tensors if (found := re.match(r"model2\.(\d{1,3})\.", key))}
    return _filled(Drawing(len(tensors.get("model0.1.weight", ())), len(blocks)), tensors, place, device)


def _read(weights: PartWeights) -> tuple[Path, dict[str, Tensor]]:
    place = file_of(weights)
    try:
        return place, load_file(place)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{place.name}: cannot be read: {' '.join(str(error).split())[:200]}") from None


def _filled(net: Net, tensors: dict[str, Tensor], place: Path, device: torch.device) -> Net:
    try:
        net.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{place.name}: is another network than {type(net).__name__}: {reason}") from None
    return net.eval().requires_grad_(False).to(device)


def softedge(net: Hed, image: np.ndarray) -> np.ndarray:
    """Return a map of soft edges, white on black, (H, W, 3) uint8: the mean of five scales, as ControlNet's annotator has it."""
    height, width = image.shape[:2]
    found = [logits[0, 0].cpu().numpy() for logits in net(_tensor(image, net.norm.device))]
    mean = np.mean([cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR) for logits in found], axis=0)
    edges = 1 / (1 + np.exp(-mean.astype(np.float64)))
    return _three((edges * 255).clip(0, 255))


def lineart(net: Drawing, image: np.ndarray) -> np.ndarray:
    """Return a map of line art, white on black, (H, W, 3) uint8.

    Sides that are no multiples of 4 are filled up by the pixels at the edge, and what is drawn there is cut off.
    """
    height, width = image.shape[:2]
    filled = np.pad(image, ((0, -height % 4), (0, -width % 4), (0, 0)), mode="edge")
    drawn = net(_tensor(filled, next(net.parameters()).device) / 255)[0, 0, :height, :width].cpu().numpy()
    return 255 - _three((drawn * 255).clip(0, 255))


def _tensor(image: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()[None].to(device)


def _three(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=-1)
