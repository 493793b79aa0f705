"""Takes rows of our own output as input, so that a dataset can be rendered again or refined."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from promptmill.configs.columns import Role, roles

TAKEN_OVER = (Role.INPUT, Role.CARRIED)  # by a second pass; nothing else can hold for it


def is_output(columns: Collection[str]) -> bool:
    """Return whether rows with these columns are promptmill's own."""
    return {"key", "candidate_index", "selected", "pixel_sha256"} <= set(columns)


def added(columns: Sequence[str], declared: Mapping[str, Role] | None = None) -> set[str]:
    """Return those columns of an own output that are not for a second pass; arguments as for `configs.columns.roles`."""
    return {name for name, role in roles(columns, declared).items() if role not in TAKEN_OVER}


def as_input(values: Mapping[str, Any], declared: Mapping[str, Role] | None = None) -> dict[str, Any]:
    """Return a row of an own output as a request's: its key becomes its id, its candidate's seed the row's."""
    dropped = added(list(values), declared)
    kept = {name: value for name, value in values.items() if name not in dropped}
    controls = [
        {name: value for name, value in control.items() if name != "sha256"} for control in kept.pop("controls", None) or []
    ]
    return {"id": values["key"], **kept, **({"controls": controls} if controls else {})}
