"""Renders synthetic image datasets: prompts in, ranked images out, as WebDataset shards with Parquet metadata.

    import promptmill

    dataset = promptmill.render([{"prompt": "a red circle"}], out="runs/circles")
    for key, image, row in dataset.images():
        image.save(f"{key}.png")

The folders of this package are links to those of the same names beside it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptmill.jobs.api.dataset import Dataset
    from promptmill.jobs.api.dataset import open_dataset as open
    from promptmill.jobs.api.errors import Error
    from promptmill.jobs.api.rendering import Planned, plan, render

__all__ = ["Dataset", "Error", "Planned", "open", "plan", "render"]

_PLACES = {
    "Dataset": ("dataset", "Dataset"),
    "Error": ("errors", "Error"),
    "Planned": ("rendering", "Planned"),
    "open": ("dataset", "open_dataset"),
    "plan": ("rendering", "plan"),
    "render": ("rendering", "render"),
}


def __getattr__(name: str) -> Any:
    # Imported when asked for: every worker imports this package, and needs none of these.
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _PLACES[name]
    return getattr(import_module(f"promptmill.jobs.api.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
