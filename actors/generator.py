"""The actor that renders: it holds a diffusion model and calls down."""

from typing import TYPE_CHECKING

import ray

from promptmill.pipelines.work.recipe import Recipe
from promptmill.pipelines.work.units import Unit

if TYPE_CHECKING:
    from promptmill.pipelines.work.results import Rendered


@ray.remote(max_restarts=0)
class Generator:
    """Renders units; those handed in at the same time share the batch, so that the end of one does not empty it."""

    def __init__(self, recipe: Recipe):
        self._config, self._roots = recipe.config, recipe.roots

    def load(self) -> dict[str, str]:
        """Load the model; returns the kind of hardware here. Apart from the constructor, whose errors Ray buries in its own.

        Raises:
            ModelError: It cannot be loaded.
        """
        # The driver makes this class too, and has no use for torch.
        from promptmill.pipelines.rendering.engine import Engine
        from promptmill.pipelines.rendering.hardware import hardware_kind

        self._engine: Engine = Engine(self._config.model, self._config.seed, self._roots)
        return hardware_kind(self._config.model.threads)

    @ray.method(num_returns=2)
    def render(self, unit: Unit) -> tuple[None, "Rendered"]:
        """Two results: the first says that it is done, the second stays where it is until a scorer takes it."""
        return None, self._engine.render(unit)
