"""Defines the numbers that a plan counts of its rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from promptmill.configs.columns import BOXES, DECIDING, MASK_EDIT, OUTPAINT, REFERENCES, TRUE_CFG, VARIATION_SEED
from promptmill.configs.errors import shown
from promptmill.configs.preprocessors import ANNOTATED

# Counts that are written where there are some.
LATER = ("cached", "columns", "staged", "staged_alike", "steered", "maps")
# Plans of earlier versions have a count of its own name for each of these columns.
EARLIER = {
    "references": REFERENCES,
    "mask_edits": MASK_EDIT,
    "outpaints": OUTPAINT,
    "boxes": BOXES,
    "true_cfg": TRUE_CFG,
    "variations": VARIATION_SEED,
}


@dataclass(frozen=True)
class Counts:
    """Holds the numbers of a plan.

    Attributes:
        rows: Rows of the manifest; requests + bad.
        bad: Rows that make no request.
        candidates, keep: Images to render, and at most to keep.
        units, buckets: Units as cut, and the number of their kinds that cannot share a batch.
        evaluations: Evaluations of the denoiser, as the metadata count them: about the cost of rendering.
        pixels: Pixels of all candidates.
        modes: Requests by mode.
        undrafted: The number of evaluations without drafts.
        growing: Requests whose candidates grow; their candidates, keep and evaluations are the greatest possible.
        columns: Requests by those of `DECIDING` in which they have values.
        cached: The evaluations of these that a step cache answers.
        staged: The evaluations of these for the stages of kept images.
        staged_alike: The evaluations at the rows' own sizes that have as many pixels as these.
        steered: Requests by their number of controls, where the dataset is to have the control maps.
        maps: By preprocessor that needs an annotator, the maps that are made: one for each picture and size, in each shard.
    """

    rows: int = 0
    bad: int = 0
    requests: int = 0
    candidates: int = 0
    keep: int = 0
    units: int = 0
    buckets: int = 0
    evaluations: int = 0
    pixels: int = 0
    modes: Mapping[str, int] = field(default_factory=dict)
    undrafted: int = 0
    growing: int = 0
    columns: Mapping[str, int] = field(default_factory=dict)
    cached: int = 0
    staged: int = 0
    staged_alike: int = 0
    steered: Mapping[str, int] = field(default_factory=dict)
    maps: Mapping[str, int] = field(default_factory=dict)

    @property
    def annotators(self) -> tuple[str, ...]:
        """Return the names of the annotators that make these maps."""
        return tuple(dict.fromkeys(ANNOTATED[name] for name in self.maps if name in ANNOTATED))


def read_counts(values: Mapping[str, Any]) -> Counts:
    """Return the counts of a plan's JSON, of whatever version.

    Raises:
        TypeError: There is a count of no known name.
        ValueError: A column is counted that decides nothing.
    """
    now = {name: value for name, value in values.items() if name not in EARLIER}
    columns = {EARLIER[name]: value for name, value in values.items() if name in EARLIER and value} | now.pop("columns", {})
    if strange := columns.keys() - {*DECIDING}:
        raise ValueError(f"{shown(min(strange))}: no column that rows decide on")
    return Counts(**now, columns=columns)
