"""Makes maps of poses, drawn as OpenPose draws: a detector of transformers finds the persons, a ViTPose the joints of each.

OpenPose (Cao et al., arXiv:1812.08008) has 18 joints, ViTPose (Xu et al., arXiv:2204.12484) the 17 of COCO: the neck is put between
the shoulders.
"""

import math
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from promptmill.configs.weights import AnnotatorWeights
from promptmill.pipelines.models.annotators import JOINTS, PERSON
from promptmill.pipelines.rendering.libraries import transformers
from promptmill.pipelines.rendering.transformers_loading import load_with_processor

# OpenPose's joints by COCO's numbers: nose, neck; shoulder, elbow, wrist, then hip, knee, ankle, the right ones first; eyes, ears.
NECK, SHOULDERS = -1, (5, 6)
FROM_COCO = (0, NECK, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
# Pairs of OpenPose's joints, in the order in which limbs are drawn.
LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
# Of the joints, and of the limbs in their order: hues of OpenPose, from red through green and blue to red again.
COLORS = (
    *(
        (255, 0, 0),
        (255, 85, 0),
        (255, 170, 0),
        (255, 255, 0),
        (170, 255, 0),
        (85, 255, 0),
        (0, 255, 0),
        (0, 255, 85),
        (0, 255, 170),
    ),
    *(
        (0, 255, 255),
        (0, 170, 255),
        (0, 85, 255),
        (0, 0, 255),
        (85, 0, 255),
        (170, 0, 255),
        (255, 0, 255),
        (255, 0, 170),
        (255, 0, 85),
    ),
)
STICK = 4  # pixels at 512: half the width of a limb, and the radius of a joint
LIMB_LIGHT = 0.6  # of a limb's colour; joints have theirs in full


class PoseModel:
    """Finds persons and their joints.

    Args:
        detector, poser: Models of transformers, each with its image processor.
    """

    def __init__(self, detector: tuple[Any, Any], poser: tuple[Any, Any]):
        self._detector, self._detecting = detector
        self._poser, self._posing = poser

    @classmethod
    def load(cls, weights: AnnotatorWeights, device: torch.device) -> "PoseModel":
        """Load a ViTPose and its detector in fp32. Raises ModelError as `load_with_processor`."""
        assert weights.detector is not None
        found = load_with_processor(transformers.AutoModelForObjectDetection, weights.detector, device, "object detection")
        return cls(found, load_with_processor(transformers.VitPoseForPoseEstimation, weights, device, "poses"))

    def persons(self, image: np.ndarray, least: float) -> np.ndarray:
        """Return the boxes of the persons in a picture, (N, 4) float32: left, top, width and height in pixels.

        Args:
            image: (H, W, 3) uint8.
            least: The confidence that a person is found with.
        """
        inputs = self._detecting(images=Image.fromarray(image), return_tensors="pt").to(self._detector.device)
        made = self._detector(**inputs)
        found = self._detecting.post_process_object_detection(made, threshold=least, target_sizes=[image.shape[:2]])[0]
        names = {int(number): str(name).lower() for number, name in self._detector.config.id2label.items()}
        persons = [names.get(int(label)) == PERSON for label in found["labels"]]
        boxes = found["boxes"].float().cpu().numpy().reshape(-1, 4)[np.array(persons, bool)]
        boxes[:, 2:] -= boxes[:, :2]
        return boxes[(boxes[:, 2:] >= 1).all(1)]

    def joints(self, image: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the joints of one person, (17, 2) float32 as x and y in pixels, and their confidences, (17,) float32.

        Each person goes through the model alone, so that joints depend on no other person.

        Args:
            image: (H, W, 3) uint8.
            box: Left, top, width and height in pixels.
        """
        boxes = [np.asarray([box])]
        inputs = self._posing(Image.fromarray(image), boxes=boxes, return_tensors="pt").to(self._poser.device)
        experts = getattr(self._poser.config.backbone_config, "num_experts", 1)
        # Of a ViTPose++ the experts of COCO, the first of its data sets.
        given = {"dataset_index": torch.zeros(1, dtype=torch.long, device=self._poser.device)} if experts > 1 else {}
        made = self._posing.post_process_pose_estimation(self._poser(**inputs, **given), boxes=boxes)[0][0]
        return made["keypoints"].numpy().reshape(JOINTS, 2), made["scores"].numpy().reshape(JOINTS)


def pose(model: PoseModel, image: np.ndarray, person: float, joint: float) -> np.ndarray:
    """Return a map of the poses in a picture, (H, W, 3) uint8; black where nobody is found.

    Args:
        model: The models.
        image: (H, W, 3) uint8.
        person: The confidence that a person is drawn with.
        joint: The confidence that a joint is drawn with; a limb needs both of its ends.
    """
    drawn = np.zeros_like(image)
    for box in model.persons(image, person):
        draw_person(drawn, *model.joints(image, box), joint)
    return drawn


def draw_person(drawn: np.ndarray, places: np.ndarray, scores: np.ndarray, least: float) -> None:
    """Draw a person onto a map, as OpenPose does: limbs as ellipses, joints as discs.

    Args:
        drawn: The map, (H, W, 3) uint8, which is changed.
        places: (17, 2) x and y of COCO's joints, in pixels.
        scores: (17,) confidences.
        least: The confidence that a joint is drawn with.
    """
    points: list[tuple[float, float] | None] = []
    for number in FROM_COCO:
        needed = SHOULDERS if number == NECK else (number,)
        seen = all(scores[one] >= least for one in needed)
        points.append(tuple(np.mean([places[one] for one in needed], axis=0).tolist()) if seen else None)
    stick = max(1, round(STICK * min(drawn.shape[:2]) / 512))
    for (first, last), color in zip(LIMBS, COLORS, strict=False):
        begin, end = points[first], points[last]
        if begin is None or end is None:
            continue
        middle = round((begin[0] + end[0]) / 2), round((begin[1] + end[1]) / 2)
        angle = math.degrees(math.atan2(end[1] - begin[1], end[0] - begin[0]))
        outline = cv2.ellipse2Poly(middle, (int(math.dist(begin, end) / 2), stick), int(angle), 0, 360, 1)
        cv2.fillConvexPoly(drawn, outline, [int(level * LIMB_LIGHT) for level in color])
    for point, color in zip(points, COLORS, strict=True):
        if point is not None:
            cv2.circle(drawn, (round(point[0]), round(point[1])), stick, color, thickness=-1)
