"""Turns rows of promptmill's own output into input rows, so that a dataset can be rendered again or refined."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from promptmill.configs.columns import SYNTAX, Role, roles
from promptmill.configs.prompts import PLAIN
from promptmill.manifests.samples import LISTS_OF_IMAGES

HASHES = ("sha256", "mask_sha256", "embedding_sha256")  # of the files of controls and references
TAKEN_OVER = (Role.INPUT, Role.CARRIED)  # by a second pass; nothing else can hold for it


def is_output(columns: Collection[str]) -> bool:
    """Return whether rows with these columns are promptmill's own output."""
    return {"key", "candidate_index", "selected", "pixel_sha256"} <= set(columns)


def added(columns: Sequence[str], declared: Mapping[str, Role] | None = None) -> set[str]:
    """Return the columns of promptmill's own output that a second pass drops; arguments as for `configs.columns.roles`."""
    return {name for name, role in roles(columns, declared).items() if role not in TAKEN_OVER}


def as_input(values: Mapping[str, Any], declared: Mapping[str, Role] | None = None) -> dict[str, Any]:
    """Return a row of promptmill's own output as a request: the key becomes the id, the candidate's seed becomes the row's."""
    dropped = added(list(values), declared)
    kept = {name: value for name, value in values.items() if name not in dropped}
    # A hash is not for a row to say.
    listed = {name: [_without_hash(one) for one in kept.pop(name, None) or []] for name in LISTS_OF_IMAGES if _is_list(kept, name)}
    if SYNTAX in kept and kept[SYNTAX] is None:
        kept[SYNTAX] = PLAIN  # whatever the config of the second pass says
    return {"id": values["key"], **kept, **{name: ones for name, ones in listed.items() if ones}}


def _is_list(values: Mapping[str, Any], name: str) -> bool:
    return isinstance(values.get(name), list | None)


def _without_hash(one: Any) -> Any:
    return {name: value for name, value in one.items() if name not in HASHES} if isinstance(one, Mapping) else one
