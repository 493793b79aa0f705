"""Holds the worker that scores, ranks, encodes and makes a unit durable: a scorer with the models that score."""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from promptmill.actors.encoding import Encoders
from promptmill.actors.receipts import Receipt
from promptmill.pipelines.work.errors import FatalError, is_fatal
from promptmill.pipelines.work.recipe import Recipe
from promptmill.pipelines.work.units import Unit
from promptmill.shards.parts import PartError, part_name, write_part
from promptmill.shards.storage import StorageError, join, names, staying

if TYPE_CHECKING:
    from promptmill.pipelines.scoring.finishing import Onward, Waiting
    from promptmill.pipelines.scoring.scorers import Scorers
    from promptmill.pipelines.work.results import Rendered


class Scorer:
    """Finishes units, one after another; a plain class, as `Generator` is.

    Args:
        recipe: The constants of the run.
        generators: How many generators there are for each scorer.
    """

    def __init__(self, recipe: Recipe, generators: int = 1):
        self._recipe = recipe
        self._encoders = Encoders(generators)

    def load(self) -> dict[str, str]:
        """Load the CLIP model and the other scorers, and return the kind of hardware here, which decides scores too.

        Raises:
            ModelError: A model cannot be loaded.
            StorageError: This machine does not reach the output, where parts would go.
        """
        # The driver makes this class too, and has no use for torch.
        from promptmill.pipelines.rendering.gpus import keep_to_share
        from promptmill.pipelines.rendering.hardware import hardware_kind
        from promptmill.pipelines.rendering.loading import device_here
        from promptmill.pipelines.scoring.scorers import load_scorers

        output = self._recipe.output
        if "plan.json" not in names(join(output, "plan")):
            # A node that joined later may lack what the others mount; its parts would lie where nobody finds them.
            raise StorageError(f"{output}: {platform.node()} does not see the plan there; all nodes have to reach the output")
        runtime = self._recipe.config.runtime
        # On Ray the driver has put a number in the place of `auto`.
        if runtime.workers == "ray" and runtime.scorer_gpus != "auto":
            keep_to_share(runtime.scorer_gpus)
        self._scorers: Scorers = load_scorers(self._recipe.config.ranking, device_here(), threads=1)
        return hardware_kind(self._recipe.config.model.threads)

    def finish(self, unit: Unit, rendered: "Rendered", earlier: "Callable[[], Sequence[Waiting]]" = tuple) -> "Receipt | Onward":
        """Score, rank and encode a unit, and write its part. A second call writes the same bytes under the same name.

        Args:
            unit: The unit as its latest pass left it.
            rendered: The result of that pass.
            earlier: Called once the unit is at its end; returns the results of its earlier passes.

        Returns:
            The receipt; or, for a unit that has to pass again, how it goes on. Then only a durable pass is written.

        Raises:
            StorageError: The part cannot be written, which is no fault of the unit.
            PartError: The part of an earlier pass is broken or gone.
            FatalError: Memory ran out, or the GPU failed: this process has to be replaced, and the unit is not at fault.
        """
        try:
            return self._finish(unit, rendered, earlier)
        except (StorageError, PartError):
            raise
        except Exception as error:
            # Every later unit would fail on a GPU in an undefined state, and be settled as failed.
            if is_fatal(error):
                raise FatalError(f"{_line(error)}, while scoring") from error
            raise

    def _finish(self, unit: Unit, rendered: "Rendered", earlier: "Callable[[], Sequence[Waiting]]") -> "Receipt | Onward":
        from promptmill.pipelines.scoring.finishing import Onward
        from promptmill.pipelines.scoring.staging import finish_in_stages

        began = time.monotonic()
        finished = finish_in_stages(unit, rendered, self._scorers, self._recipe, earlier, self._encoders.map)
        self._encoders.keep_up(sum(rendered.seconds.values()), time.monotonic() - began)
        if isinstance(finished, Onward):
            return finished
        started = time.monotonic()
        recipe = self._recipe
        with staying(recipe.output):
            size = write_part(recipe.output, part_name(unit.name), finished.rows, recipe.form_of(unit), recipe.fingerprint)
        seconds = {**finished.seconds, "write": time.monotonic() - started}
        receipt = Receipt.of(unit, finished.rows, finished.scores, seconds)
        return replace(receipt, rendering_s=finished.rendering_s, part_bytes=size)


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
