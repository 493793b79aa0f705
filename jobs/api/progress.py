"""Shows in a notebook or on a terminal how a run goes that a Python program has asked for."""

from types import TracebackType

from tqdm.auto import tqdm

from promptmill.actors.pool_sizes import Sizes
from promptmill.actors.receipts import Receipt
from promptmill.jobs.showing.progress import Tally, facts
from promptmill.shards.commits import CommitRecord


class Bar:
    """Shows a bar of candidates, as `actors.flow.events.Listener` is told of them.

    Args:
        candidates: Of the whole plan.
        shown: Whether the bar is drawn at all.
    """

    def __init__(self, candidates: int, shown: bool):
        self._tally = Tally(candidates)
        self._bar = tqdm(total=candidates, desc="starting", unit="image", disable=not shown)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()

    def ready(self, sizes: Sizes) -> None:
        self._bar.set_description("loading models")

    def loaded(self) -> None:
        self._bar.set_description("rendering")

    def skipped(self, candidates: int) -> None:
        self._bar.update(candidates)

    def unit(self, receipt: Receipt) -> None:
        self._tally.add(receipt)
        self._bar.set_postfix_str(facts(self._tally), refresh=False)
        self._bar.update(receipt.candidates)

    def shard(self, record: CommitRecord) -> None:
        pass

    def stopping(self, units: int) -> None:
        self._bar.set_description("finishing what is in flight")
