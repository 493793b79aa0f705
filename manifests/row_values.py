"""Reads the values of a row before they are checked: flat columns and JSON texts become lists, numbers ids, and texts are text."""

from decimal import Decimal
from typing import Any

from promptmill.configs.errors import shown
from promptmill.configs.parameters import MAX_BOXES, MAX_LIST
from promptmill.manifests.carried import EXACT
from promptmill.manifests.json_rows import parse_list
from promptmill.manifests.rows import RowError

FLAT_CONTROL = ("control_type", "control_image", "control_preprocess", "control_scale")
LISTS = ("controls", "references", "gligen_boxes", "loras")  # columns that hold lists
_FOLDED = frozenset({*FLAT_CONTROL, *LISTS})


def unreadable(text: str) -> str | None:
    """Return the character of a text that no prompt and no path has, in words; None where there is none."""
    if "\0" in text:
        return "a NUL character; is this text?"
    return "U+FEFF, a byte order mark; take it out" if not text.isascii() and "\ufeff" in text else None


def unreadable_within(name: str, listed: Any) -> list[str]:
    """Return a problem for each text of a nested column, as `references.0.image`, that holds such a character."""
    if not isinstance(listed, list):
        return []
    found = []
    for place, item in enumerate(listed[: max(MAX_LIST, MAX_BOXES) + 1]):
        for key, value in item.items() if isinstance(item, dict) else ():
            texts = value if isinstance(value, list) else [value]
            said = [what for text in texts if isinstance(text, str) and (what := unreadable(text))]
            found += [f"{name}.{place}.{shown(key)}: holds {said[0]}"] if said else []
    return found


def unfolded(values: dict[str, Any]) -> dict[str, Any]:
    """Return a row's values with lists for CSV's flat columns (control_type and its kin) and JSON texts, and with ids as text."""
    if isinstance(values.get("id"), int | float | Decimal):
        values["id"] = _whole(values["id"])
    if _FOLDED.isdisjoint(values):
        return values
    flat = {name.removeprefix("control_"): values.pop(name) for name in FLAT_CONTROL if name in values}
    if flat and "controls" in values:
        raise RowError([f"controls: given beside {', '.join(f'control_{name}' for name in flat)}; use one or the other"])
    if flat:
        values["controls"] = [flat]
    for name in LISTS:
        listed = values.get(name)
        if isinstance(listed, str):
            try:
                listed = values[name] = parse_list(listed)
            except (ValueError, RecursionError) as error:
                raise RowError([f"{name}: not a JSON list: {error}"]) from None
        if isinstance(listed, list):
            # Nested columns of Parquet have every key in every row; a null there means that the row leaves the key out.
            values[name] = [{k: v for k, v in item.items() if v is not None} if isinstance(item, dict) else item for item in listed]
    return values


def _whole(number: int | float | Decimal) -> str:
    """Return an id that a database or pandas has as a number, as text.

    Raises:
        RowError: The number is not whole, or so large a float that it may have been another number.
    """
    if isinstance(number, float) and not abs(number) < EXACT:
        raise RowError([f"id: {number:g} is no float below 2^53, and so may have been another number; write ids as text"])
    if number != int(number):
        raise RowError([f"id: {number} is not a whole number; write ids as text"])
    return str(int(number))
