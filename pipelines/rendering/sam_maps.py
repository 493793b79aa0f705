"""Makes maps of segments without classes by Segment Anything (Kirillov et al., arXiv:2304.02643) of transformers.

The masks are those of transformers' pipeline for mask generation: the model is asked at each point of a grid what lies there, masks
that it is unsure of are left out, and of masks that overlap nearly the same box the surest stays.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image

from promptmill.configs.weights import PartWeights
from promptmill.pipelines.rendering.libraries import transformers
from promptmill.pipelines.rendering.transformers_loading import load_with_processor

POINTS_AT_ONCE = 64  # that go through the model together, as by default in transformers' pipeline
MASKS_AT_ONCE = 16  # that are enlarged together: 1 GiB of float32 at 4096 x 4096 pixels
SAME_BOX = 0.7  # the overlap (IoU) of two masks' boxes from which on only the surer mask stays, transformers' default
# Per channel, in 1/65,536 of all levels, from a colour to the next: Roberts' sequence R3, which fills a cube evenly.
STEPS = (53685, 43977, 36025)


class SamModel:
    """Finds the masks of all segments in a picture.

    Args:
        model: The model of transformers, and `processor` its image processor.
    """

    def __init__(self, model: Any, processor: Any):
        self._model, self._processor = model, processor

    @classmethod
    def load(cls, weights: PartWeights, device: torch.device) -> "SamModel":
        """Load a Segment Anything in fp32. Raises ModelError as `load_with_processor`."""
        return cls(*load_with_processor(transformers.SamModel, weights, device, "masks of segments"))

    def masks(self, image: np.ndarray, points: int, iou: float, stability: float) -> np.ndarray:
        """Return the masks of the segments in a picture, (N, H, W) bool, the surest first; they may overlap.

        Args:
            image: (H, W, 3) uint8.
            points: Points of the grid along each side.
            iou: The least overlap with the truth that the model expects of its mask, from 0 to 1.
            stability: The least share of a mask that is in it at a stricter and a laxer threshold alike, from 0 to 1.
        """
        device, processor = self._model.device, self._processor
        side = processor.size["longest_edge"]
        boxes, grid, pictures, labels = processor.generate_crop_boxes(Image.fromarray(image), side, 0, points_per_crop=points)
        inputs = processor(images=pictures, return_tensors="pt")
        sizes = {name: inputs[name].tolist() for name in ("original_sizes", "reshaped_input_sizes")}
        embedded = self._model.get_image_embeddings(inputs["pixel_values"].to(device))
        found: list[Any] = []
        for start in range(0, grid.shape[1], POINTS_AT_ONCE):
            some = slice(start, start + POINTS_AT_ONCE)
            asked = {"input_points": grid[:, some, :1].to(device), "input_labels": labels[:, some, :1].to(device)}
            made = self._model(**asked, image_embeddings=embedded)
            scores, small = made.iou_scores[0].flatten(), made.pred_masks[0].flatten(0, 1)
            # Sorted out before masks are enlarged, which takes most of the time and memory.
            sure = torch.arange(len(scores), device=device) if iou <= 0 else (scores > iou).nonzero().flatten()
            for few in sure.split(MASKS_AT_ONCE) if len(sure) else ():
                (large,) = processor.post_process_masks([small[few][:, None]], binarize=False, **sizes)
                least = {"pred_iou_thresh": iou, "stability_score_thresh": stability}
                found.append(processor.filter_masks(large, scores[few][:, None], image.shape[:2], boxes[0].to(device), **least))
        runs = [run for runs, _, _ in found for run in runs]
        if not runs:
            return np.zeros((0, *image.shape[:2]), bool)
        sureness, places = (torch.cat([one[at] for one in found]) for at in (1, 2))
        kept = processor.post_process_for_mask_generation(runs, sureness, places, SAME_BOX)[0]
        return np.stack([one.cpu().numpy() for one in kept])


def sam(model: SamModel, image: np.ndarray, points: float, iou: float, stability: float) -> np.ndarray:
    """Return a map of segments, (H, W, 3) uint8, black where there is none.

    The largest segment is drawn first and has the first colour of `colors`; smaller ones are drawn over it.

    Args:
        model: The model.
        image: (H, W, 3) uint8.
        points, iou, stability: As in `SamModel.masks`.
    """
    masks = model.masks(image, int(points), iou, stability)
    drawn = np.zeros_like(image)
    by_area = np.argsort(-masks.sum((1, 2)), kind="stable")  # of the same area, the surer first
    for place, color in zip(by_area, colors(len(masks)), strict=True):
        drawn[masks[place]] = color
    return drawn


def colors(count: int) -> np.ndarray:
    """Return the first colours of the table, (count, 3) uint8, where ControlNet's maps have random ones."""
    numbers = np.arange(1, count + 1)[:, None]
    return ((32768 + numbers * np.array(STEPS)) % 65536 // 256).astype(np.uint8)
