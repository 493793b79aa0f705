"""Restores the faces of a picture: crops each face upright, has a network restore the crop, and pastes it back with a soft edge.

The recipe is that of facexlib (github.com/xinntao/facexlib, `face_restoration_helper.py`), which GFPGAN and CodeFormer use: five
points of the face go to where FFHQ's pictures of 512 pixels have them, and the mask of what is pasted is eroded and blurred by a
twentieth of the face. Two things are otherwise: the similarity is that of least squares (Umeyama 1991), not a robust estimate, and
nothing beyond the crop or beyond the picture is mixed into what is pasted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from promptmill.pipelines.rendering.detecting import FoundBox
from promptmill.pipelines.rendering.face_finding import Face
from promptmill.pipelines.rendering.spandrel_models import load_descriptor, put_on_device
from promptmill.pipelines.work.errors import ModelError

SIDE = 512  # pixels of a crop
# Where the five points of a face lie in a crop, of `SIDE` pixels: the means over FFHQ, as facexlib has them.
POINTS = np.array(
    [[192.98138, 239.94708], [318.90277, 240.1936], [256.63416, 314.01935], [201.26117, 371.41043], [313.08905, 371.15118]]
)
# Where only a box is known: its longer side in the crop, and its centre. Eyes 126 pixels apart belong to a face of about this size.
BOX_SIDE, BOX_CENTER = 340, (256, 285)
GREY = (132, 133, 135)  # of what a crop has beyond the picture, as facexlib has it
RIM = 2  # pixels by which the picture goes on before that grey, so that none is mixed into the picture's outermost pixels
EDGE = 20  # into which part of a face's side the soft edge reaches


class FaceFinder(Protocol):
    """Describes a finder of faces, such as `face_finding.YuNet` and `face_finding.BoxedFaces`."""

    def find(self, pixels: np.ndarray) -> tuple[Face, ...]:
        """Find faces in a picture, (H, W, 3) uint8."""


@dataclass(frozen=True)
class Restored:
    """Holds a picture, (H, W, 3) uint8, and how many of its faces were restored; without faces the picture is as it was."""

    pixels: np.ndarray
    faces: int


@dataclass(frozen=True)
class FaceRestorer:
    """Holds a loaded network that restores crops of faces.

    Attributes:
        name: What errors call it.
        network: From a crop, (1, 3, S, S) in [0, 1], to a crop of the same shape; the same bits for the same crop.
        side: S, in pixels.
        dtype, device: Of the network.
    """

    name: str
    network: Callable[[Tensor], Tensor]
    side: int = SIDE
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (a device never changes)

    def restore(self, pixels: np.ndarray, finder: FaceFinder) -> Restored:
        """Find the faces of a picture, (H, W, 3) uint8, and restore each.

        The caller has the turn of the process (`COMPUTING`) and has set the number of threads.

        Raises:
            ModelError: A network gives values that are not finite.
        """
        faces = finder.find(pixels)
        if not faces:
            return Restored(pixels, 0)
        height, width = pixels.shape[:2]
        picture = pixels.astype(np.float32)
        rimmed = cv2.copyMakeBorder(pixels, RIM, RIM, RIM, RIM, cv2.BORDER_REPLICATE)
        for face in faces:
            matrix = placement(face, self.side)
            shifted = matrix - np.pad(matrix[:, :2].sum(1, keepdims=True) * RIM, ((0, 0), (2, 0)))
            size, border = (self.side, self.side), cv2.BORDER_CONSTANT
            crop = self._restored(
                cv2.warpAffine(rimmed, shifted, size, flags=cv2.INTER_LINEAR, borderMode=border, borderValue=GREY)
            )
            share, back = _soft_mask(matrix, self.side, height, width), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            picture += share[..., None] * (cv2.warpAffine(crop, matrix, (width, height), flags=back) - picture)
        return Restored(np.rint(picture.clip(0, 255)).astype(np.uint8), len(faces))

    def _restored(self, crop: np.ndarray) -> np.ndarray:
        """Return a crop as the network restores it, (S, S, 3) uint8 to float32 in [0, 255]."""
        inputs = torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))[None].to(self.device, self.dtype) / 255
        with torch.inference_mode():
            outputs = self.network(inputs)[0].permute(1, 2, 0).float().clamp(0, 1).cpu().numpy() * 255
        if not np.isfinite(outputs).all():
            raise ModelError(f"{self.name}: gives values that are not finite; its weights may be damaged")
        return np.ascontiguousarray(outputs)


def load_face_restorer(
    file: Path,
    name: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    fidelity: float = 0.5,
) -> FaceRestorer:
    """Load a network that restores faces from a safetensors file: GFPGAN, RestoreFormer, or, where it is installed, CodeFormer.

    Args:
        file: The file.
        name: What errors call it.
        dtype, device: Of the weights and of what is computed.
        fidelity: CodeFormer's, from 0 (what looks best) to 1 (what is nearest to the face that was there).

    Raises:
        ModelError: As `load_descriptor` and `put_on_device`.
    """
    loaded, place = load_descriptor(file, name, ("FaceSR",)), device or torch.device("cpu")
    put_on_device(loaded, name, dtype, place)
    return FaceRestorer(name, restoring(loaded, fidelity), SIDE, dtype, place)


def restoring(loaded: Any, fidelity: float = 0.5) -> Callable[[Tensor], Tensor]:
    """Return how a network is called on crops, (1, 3, S, S) in [0, 1] in and out, from its `spandrel.ImageModelDescriptor`."""
    model = loaded.model
    if loaded.architecture.id == "GFPGAN":
        # Called as GFPGAN itself does, in [-1, 1], but with the noise that is stored with the weights: by default the network draws
        # noise anew at every call.
        return lambda crop: (model(crop * 2 - 1, return_rgb=False, randomize_noise=False)[0] + 1) / 2
    if loaded.architecture.id == "CodeFormer":
        return lambda crop: (model(crop * 2 - 1, weight=fidelity, adain=True)[0] + 1) / 2
    return loaded


def placement(face: Face, side: int) -> np.ndarray:
    """Return the similarity from the picture to the crop of a face, (2, 3) float64: turned upright where the points are known."""
    scale = side / SIDE
    if face.points is None:
        box: FoundBox = face.box
        factor = BOX_SIDE * scale / max(box.right - box.left, box.bottom - box.top)
        center = (box.left + box.right) / 2, (box.top + box.bottom) / 2
        return np.array(
            [[factor, 0, BOX_CENTER[0] * scale - factor * center[0]], [0, factor, BOX_CENTER[1] * scale - factor * center[1]]]
        )
    # As complex numbers a similarity is a multiplication and an addition: crop = turn * picture + shift.
    there, here = (points[:, 0] + 1j * points[:, 1] for points in (np.asarray(face.points, np.float64), POINTS * scale))
    around = there - there.mean()
    spread = float((np.abs(around) ** 2).sum())
    turn = complex((around.conj() * (here - here.mean())).sum() / spread) if spread > 0 else 0j
    if abs(turn) < 1e-9:  # points that are all one: no face has such
        return placement(Face(face.box), side)
    shift = complex(here.mean() - turn * there.mean())
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def _soft_mask(matrix: np.ndarray, side: int, height: int, width: int) -> np.ndarray:
    """Return the share of a restored crop in each pixel of the picture, (H, W) float32 in [0, 1]."""
    mask = cv2.warpAffine(np.ones((side, side), np.float32), matrix, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    edge = max(1, int(mask.sum() ** 0.5) // EDGE)
    # One pixel more than the blur brings back: interpolation has mixed the crop's outermost pixels with nothing.
    center = cv2.erode(mask, np.ones((2 * edge + 3, 2 * edge + 3), np.uint8))
    return np.asarray(cv2.GaussianBlur(center, (2 * edge + 1, 2 * edge + 1), 0))
