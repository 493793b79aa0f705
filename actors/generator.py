"""Holds the worker that renders: a generator with a diffusion model."""

from typing import TYPE_CHECKING

from promptmill.pipelines.work.recipe import Recipe
from promptmill.pipelines.work.stage_parts import pictures_before
from promptmill.pipelines.work.units import Unit

if TYPE_CHECKING:
    from promptmill.pipelines.work.results import Rendered


class Generator:
    """Renders units; units submitted at the same time share the batch, so that the end of one does not leave the batch half empty.

    The class is a plain one: `flow.ray_pools` makes it an actor of Ray, `flow.in_process_pools` calls it from threads.
    """

    def __init__(self, recipe: Recipe):
        self._recipe, self._config, self._roots = recipe, recipe.config, recipe.roots

    def load(self) -> dict[str, str]:
        """Load the model, and return the kind of hardware here.

        This is not done in the constructor, whose errors Ray hides in errors of its own.

        Raises:
            ModelError: The model cannot be loaded, or memory does not suffice for a full batch of the config's default size.
        """
        # The driver makes this class too, and has no use for torch.
        from promptmill.pipelines.rendering.engine import Engine
        from promptmill.pipelines.rendering.gpus import keep_to_share
        from promptmill.pipelines.rendering.hardware import hardware_kind
        from promptmill.pipelines.rendering.stages import Stages

        runtime = self._config.runtime
        # On Ray the driver has put a number in the place of `auto`.
        if runtime.workers == "ray" and runtime.generator_gpus != "auto":
            keep_to_share(runtime.generator_gpus)
        config = self._config
        self._engine: Engine = Engine(
            config.model,
            config.seed,
            self._roots,
            warmed=config.defaults,
            maps=config.shards.controls,
            annotators=self._recipe.annotators,
            prompts=config.prompts,
        )
        self._stages = Stages(self._engine, config)
        return hardware_kind(self._config.model.threads)

    def render(self, unit: Unit) -> "Rendered":
        """Render a unit, the next pass of its course, or its next stage; see `Engine.render`.

        Raises:
            PartError, StorageError: The images that a stage begins with cannot be read.
        """
        if unit.course is not None and unit.course.staged is not None:
            return self._stages.render(unit, pictures_before(self._recipe, unit))
        return self._engine.render(unit)

    def close(self) -> None:
        """Stop after the step under way and give the model's memory back; units in flight raise FatalError."""
        self._engine.close()
        del self._engine, self._stages
