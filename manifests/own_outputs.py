"""Turns rows of promptmill's own output into input rows, so that a dataset can be rendered again or refined."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

# What promptmill adds to the rows of its own output, and what cannot hold for a second pass.
ADDED_COLUMNS = frozenset(
    """
    key id candidate_index rank selected status error error_message unet_evaluations batch_shape kernels model revision dtype
    versions clip_score clip_embedding sha256 pixel_sha256 bytes shard prompt_truncated candidates keep mode
    init_image_sha256 mask_image_sha256 draft_scores candidates_spared
    """.split()  # noqa: SIM905 (twenty lines of one word each say no more)
)


def is_output(columns: Collection[str]) -> bool:
    """Whether rows with these columns are promptmill's own."""
    return {"key", "candidate_index", "selected", "pixel_sha256"} <= set(columns)


def added(columns: Sequence[str]) -> set[str]:
    """Of our own output's columns, in their order, those that are not for a second pass."""
    # Between these two stand the scores and reasons that a config declared, under its own names.
    declared = columns[columns.index("clip_score") : columns.index("sha256")] if {"clip_score", "sha256"} <= set(columns) else ()
    return {*ADDED_COLUMNS, *declared}


def as_input(values: Mapping[str, Any]) -> dict[str, Any]:
    """A row of our own output as a request: its key becomes its id, its candidate's seed the row's."""
    dropped = added(list(values))
    kept = {name: value for name, value in values.items() if name not in dropped}
    controls = [
        {name: value for name, value in control.items() if name != "sha256"} for control in kept.pop("controls", None) or []
    ]
    return {"id": values["key"], **kept, **({"controls": controls} if controls else {})}
