"""Puts the image of a sample where the sample's other columns want it: as the init_image of img2img, or as a control's image."""

from collections.abc import Mapping
from typing import Any


def with_image(described: Mapping[str, Any], image: str) -> dict[str, Any]:
    """Return the columns of a sample with its image: as the image of a control that has none, otherwise as the init_image."""
    described = {name: value for name, value in described.items() if value is not None}
    if "control_type" in described and "control_image" not in described:
        return {**described, "control_image": image}
    controls = described.get("controls")
    if isinstance(controls, list) and any(_wants_image(control) for control in controls):
        return {**described, "controls": [{**c, "image": image} if _wants_image(c) else c for c in controls]}
    return {"init_image": image, **described}


def _wants_image(control: Any) -> bool:
    return isinstance(control, dict) and control.get("image") is None
