"""The worker that scores, ranks, encodes and makes a unit durable: a scorer holds the models that score and calls down."""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from promptmill.actors.receipts import Receipt
from promptmill.pipelines.work.recipe import Recipe
from promptmill.pipelines.work.units import Unit
from promptmill.shards.parts import part_name, write_part
from promptmill.shards.storage import StorageError, join, names, staying

if TYPE_CHECKING:
    from promptmill.pipelines.scoring.finishing import Onward, Waiting
    from promptmill.pipelines.scoring.scorers import Scorers
    from promptmill.pipelines.work.results import Rendered


class Scorer:
    """Finishes units, one after another. A plain class, as `Generator` is."""

    def __init__(self, recipe: Recipe):
        self._recipe = recipe

    def load(self) -> dict[str, str]:
        """Load the CLIP model, and what scores beside it; returns the kind of hardware here, which decides scores too.

        Raises:
            ModelError: One of them cannot be loaded.
            StorageError: The output is not to be reached from here, where parts would go.
        """
        # The driver makes this class too, and has no use for torch.
        from promptmill.pipelines.rendering.hardware import hardware_kind
        from promptmill.pipelines.rendering.loading import device_here
        from promptmill.pipelines.scoring.scorers import load_scorers

        output = self._recipe.output
        if "plan.json" not in names(join(output, "plan")):
            # A node that joined later may lack what the others mount; its parts would lie where nobody finds them.
            raise StorageError(f"{output}: {platform.node()} does not see the plan there; all nodes have to reach the output")
        self._scorers: Scorers = load_scorers(self._recipe.config.ranking, device_here(), threads=1)
        return hardware_kind(self._recipe.config.model.threads)

    def finish(self, unit: Unit, rendered: "Rendered", earlier: "Callable[[], Sequence[Waiting]]" = tuple) -> "Receipt | Onward":
        """Score, rank, encode, and write the part. Doing it again writes the same bytes under the same name.

        Args:
            unit: As its latest pass made it.
            rendered: What that pass made.
            earlier: Called once the unit is at its end: what its passes before have left for it.

        Returns:
            The receipt; or, of a unit that has to pass again, how it goes on. Then only a durable pass is written.

        Raises:
            StorageError: The part cannot be written, which is no fault of the unit.
            PartError: What an earlier pass left is broken or gone.
        """
        from promptmill.pipelines.scoring.durable_passes import finish_durably
        from promptmill.pipelines.scoring.finishing import Onward

        finished = finish_durably(unit, rendered, self._scorers, self._recipe, earlier)
        if isinstance(finished, Onward):
            return finished
        started = time.monotonic()
        recipe = self._recipe
        with staying(recipe.output):
            size = write_part(recipe.output, part_name(unit.name), finished.rows, recipe.form_of(unit), recipe.fingerprint)
        seconds = {**finished.seconds, "write": time.monotonic() - started}
        receipt = Receipt.of(unit, finished.rows, finished.scores, seconds)
        return replace(receipt, rendering_s=finished.rendering_s, part_bytes=size)
