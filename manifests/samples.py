"""Puts the image of a sample where the sample's other columns want it: as the init_image, a control's or a reference's image."""

from collections.abc import Mapping
from typing import Any

LISTS_OF_IMAGES = ("controls", "references")  # columns that hold lists, each entry with an image


def with_image(described: Mapping[str, Any], image: str) -> dict[str, Any]:
    """Return the columns of a sample with its image: as the image of a control or a reference that has none, otherwise as
    the init_image.
    """
    described = {name: value for name, value in described.items() if value is not None}
    if "control_type" in described and "control_image" not in described:
        return {**described, "control_image": image}
    for name in LISTS_OF_IMAGES:
        listed = described.get(name)
        if isinstance(listed, list) and any(_wants_image(one) for one in listed):
            return {**described, name: [{**one, "image": image} if _wants_image(one) else one for one in listed]}
    return {"init_image": image, **described}


def _wants_image(one: Any) -> bool:
    return isinstance(one, dict) and one.get("image") is None and one.get("embedding") is None
