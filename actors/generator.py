"""The worker that renders: a generator holds a diffusion model and calls down."""

from typing import TYPE_CHECKING

from promptmill.pipelines.work.recipe import Recipe
from promptmill.pipelines.work.units import Unit

if TYPE_CHECKING:
    from promptmill.pipelines.work.results import Rendered


class Generator:
    """Renders units; those handed in at the same time share the batch, so that the end of one does not empty it.

    A plain class: `flow.ray_pools` makes it an actor of Ray, `flow.in_process_pools` calls it from threads.
    """

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

    def render(self, unit: Unit) -> "Rendered":
        """Render a unit, or what is next on its course; see `Engine.render`."""
        return self._engine.render(unit)

    def close(self) -> None:
        """Stop after the step under way and give the model's memory back; units in flight raise FatalError."""
        self._engine.close()
        del self._engine
