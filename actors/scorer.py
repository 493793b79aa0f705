"""The actor that scores, ranks, encodes and makes a unit durable: it holds the models that score and calls down."""

import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa
import ray

from actors.receipts import Receipt
from pipelines.passes import Course
from pipelines.rows import Facts
from pipelines.units import Unit
from shards.parts import part_name, write_part
from shards.storage import StorageError, join, names, staying
from shards.tables import slice_form

if TYPE_CHECKING:
    from pipelines.finishing import Waiting
    from pipelines.results import Rendered
    from pipelines.scorers import Scorers


@ray.remote(max_restarts=0)
class Scorer:
    """Finishes units, one after another.

    Args:
        output: Where parts go.
        form: The schema of the metadata.
        fingerprint: Of the plan.
    """

    def __init__(self, output: str, facts: Facts, form: pa.Schema, fingerprint: str):
        self._output, self._facts, self._form, self._fingerprint = output, facts, form, fingerprint

    def load(self) -> dict[str, str]:
        """Load the CLIP model, and what scores beside it; returns the kind of hardware here, which decides scores too.

        Raises:
            ModelError: One of them cannot be loaded.
            StorageError: The output is not to be reached from here, where parts would go.
        """
        # The driver makes this class too, and has no use for torch.
        from pipelines.hardware import hardware_kind
        from pipelines.loading import device_here
        from pipelines.scorers import load_scorers

        if "plan.json" not in names(join(self._output, "plan")):
            # A node that joined later may lack what the others mount; its parts would lie where nobody finds them.
            raise StorageError(f"{self._output}: {platform.node()} does not see the plan there; all nodes have to reach the output")
        self._scorers: Scorers = load_scorers(self._facts.config.ranking, device_here(), threads=1)
        return hardware_kind(self._facts.config.model.threads)

    @ray.method(num_returns=2)
    def finish(
        self, unit: Unit, rendered: "Rendered", earlier: Sequence["ray.ObjectRef[Waiting]"] = ()
    ) -> tuple[Receipt | Course, "Waiting | None"]:
        """Score, rank, encode, and write the part. Doing it again writes the same bytes under the same name.

        Args:
            earlier: References to the second results of the passes before. They are fetched only once the unit is at its end.

        Returns:
            The receipt and None; or, of a unit that has to pass again, what course it goes on with, and what of this pass its end
            needs, which stays where it is. Then nothing is written.

        Raises:
            StorageError: The part cannot be written, which is no fault of the unit.
        """
        from pipelines.finishing import Onward, finish

        finished = finish(unit, rendered, self._scorers, self._facts, lambda: ray.get([*earlier]))
        if isinstance(finished, Onward):
            return finished.course, finished.waiting
        started = time.monotonic()
        form = slice_form(self._form) if unit.span else self._form
        with staying(self._output):
            size = write_part(self._output, part_name(unit.name), finished.rows, form, self._fingerprint)
        seconds = {**finished.seconds, "write": time.monotonic() - started}
        receipt = Receipt.of(unit, finished.rows, finished.scores, seconds)
        return replace(receipt, rendering_s=finished.rendering_s, part_bytes=size), None
