"""Finds faces in pictures: by YuNet with five points each, or as the boxes of any detector.

YuNet (Wu et al. 2023, "YuNet: A Tiny Millisecond-level Face Detector", Machine Intelligence Research) is run by OpenCV from its
ONNX file, which OpenCV's model zoo has under the MIT licence. Every picture is scaled into one fixed shape, so that its faces
depend on the picture alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from promptmill.pipelines.models.clip_sources import one_line
from promptmill.pipelines.models.sources import check_fetched
from promptmill.pipelines.rendering.detecting import Detector, FoundBox
from promptmill.pipelines.work.errors import ModelError

SIDE = 640  # pixels of YuNet's input; it was trained at this side
LARGEST_FILE = 64 * 1024**2  # bytes; YuNet's has 0.2 MB
THRESHOLD, OVERLAP, CANDIDATES = 0.9, 0.3, 5000  # OpenCV's own defaults: score, intersection over union, boxes
ERRORS = 2  # OpenCV's level of its log at which warnings are left out


@dataclass(frozen=True)
class Face:
    """Holds one face.

    Attributes:
        box: The face in pixels of the picture, with the finder's score.
        points: (5, 2) float64, x and y in pixels: the eye at the picture's left, the other one, the tip of the nose, the corner of
            the mouth at the picture's left, the other one. None where the finder knows no more than the box.
    """

    box: FoundBox
    points: np.ndarray | None = None


@dataclass(frozen=True)
class YuNet:
    """Holds a loaded YuNet.

    Attributes:
        name: What errors call it.
        network: OpenCV's `FaceDetectorYN`, for inputs of `SIDE` × `SIDE` pixels.
        most: How many faces count at most, the largest; None for all.
    """

    name: str
    network: Any
    most: int | None

    def find(self, pixels: np.ndarray) -> tuple[Face, ...]:
        """Find faces in a picture, (H, W, 3) uint8; return them by their size, the largest first."""
        height, width = pixels.shape[:2]
        scale = SIDE / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        padded = np.zeros((SIDE, SIDE, 3), np.uint8)
        padded[: size[1], : size[0]] = cv2.resize(pixels, size, interpolation=way)[..., ::-1]  # OpenCV's order is BGR
        _, rows = self.network.detect(padded)
        back = np.array([width / size[0], height / size[1]])
        faces = []
        for row in [] if rows is None else np.asarray(rows, np.float64):
            (left, top), (right, bottom) = row[:2] * back, (row[:2] + row[2:4]) * back
            left, right = np.clip((left, right), 0, width)
            top, bottom = np.clip((top, bottom), 0, height)
            if right - left >= 1 and bottom - top >= 1 and np.isfinite(row).all():
                box = FoundBox("face", float(row[14]), float(left), float(top), float(right), float(bottom))
                faces.append(Face(box, row[4:14].reshape(5, 2) * back))
        faces.sort(key=lambda face: (-face.box.area, -face.box.score, face.box.top, face.box.left))
        return tuple(faces[: self.most])


@dataclass(frozen=True)
class BoxedFaces:
    """Holds a detector whose boxes are taken for faces, without points: such faces are restored unturned."""

    detector: Detector

    def find(self, pixels: np.ndarray) -> tuple[Face, ...]:
        """Find faces in a picture, (H, W, 3) uint8; return them by their size, the largest first."""
        return tuple(Face(box) for box in self.detector.find(pixels))


def load_yunet(file: Path, name: str, threshold: float = THRESHOLD, most: int | None = None) -> YuNet:
    """Load YuNet from its ONNX file.

    Args:
        file: The file, such as `face_detection_yunet_2023mar.onnx`.
        name: What errors call it.
        threshold: The score from which on a face counts, in [0, 1].
        most: How many faces count at most, the largest.

    Raises:
        ModelError: The file is not there, or is no YuNet.
    """
    try:
        check_fetched(file)
        if file.stat().st_size > LARGEST_FILE:
            raise ModelError(f"{name}: has {file.stat().st_size / 1e6:,.0f} MB, and a YuNet has less than one")
        content = np.fromfile(file, np.uint8)
    except OSError as error:
        raise ModelError(f"{name}: {error.strerror or error}") from None
    spoken = cv2.utils.logging.getLogLevel()
    try:
        cv2.utils.logging.setLogLevel(ERRORS)  # it warns of a setting that it makes itself
        settings = (SIDE, SIDE), threshold, OVERLAP, CANDIDATES
        network = cv2.FaceDetectorYN.create("onnx", content, np.empty(0, np.uint8), *settings)
        network.detect(np.zeros((SIDE, SIDE, 3), np.uint8))  # whether it has YuNet's outputs shows in a call
    except Exception as error:  # cv2.error mostly; what a file can make of OpenCV's reader is not said anywhere
        raise ModelError(f"{name}: is no YuNet in ONNX that OpenCV {cv2.__version__} reads: {one_line(error)}") from error
    finally:
        cv2.utils.logging.setLogLevel(spoken)
    return YuNet(name, network, most)
