"""Chooses where the workers of a run are: on Ray, or in this process."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from promptmill.actors.flow.events import Listener
from promptmill.actors.flow.in_process_pools import sizes_here, workers_here
from promptmill.actors.flow.workers import Loaded, Workers
from promptmill.actors.pool_sizes import Sizes
from promptmill.jobs.planning.plan import Plan
from promptmill.pipelines.work.recipe import Recipe


class Site(Protocol):
    """Describes the place where the workers of a run are.

    Attributes:
        nodes: Number of machines, as the run begins.
        sizes: Sizes of the pools.
        listener: Told how the run goes, beside the run's own.
    """

    @property
    def nodes(self) -> int: ...
    @property
    def sizes(self) -> Sizes: ...
    @property
    def listener(self) -> Listener | None: ...

    def workers(self, recipe: Recipe, generator_loaded: Loaded, scorer_loaded: Loaded) -> Workers:
        """Return the workers; `…_loaded` are told the kind of hardware of each worker as it comes up, and may refuse it."""

    def watched(self, gone: Callable[[Exception], None]) -> AbstractContextManager[None]:
        """Call `gone` inside the block, from any thread, with the error that ends the run, where the place has gone."""


@dataclass(frozen=True)
class Here:
    """Keeps the workers in this process: one generator, one scorer; nothing else is started."""

    sizes: Sizes
    nodes: int = 1
    listener: Listener | None = None

    def workers(self, recipe: Recipe, generator_loaded: Loaded, scorer_loaded: Loaded) -> Workers:
        return workers_here(recipe, generator_loaded, scorer_loaded)

    def watched(self, gone: Callable[[Exception], None]) -> AbstractContextManager[None]:
        return nullcontext()


@contextmanager
def site_of(plan: Plan, output: str, last: Callable[[], object], say: Callable[[str], None]) -> Iterator[Site]:
    """Start or join the place that a plan's config names.

    Args:
        plan: The output's plan.
        output: The dataset's URI.
        last: Called before this process has to be ended since Ray does not let it go on.
        say: Told what is being started.

    Raises:
        ClusterError: Ray cannot be reached or started, or has failed.
        ResourcesError: The cluster has no room.
    """
    config = plan.config
    if config.runtime.workers == "here":
        yield Here(sizes_here(config.model.threads))
        return
    # Ray takes a second to import, which runs without Ray do not wait for.
    from promptmill.jobs.running.on_ray import on_ray

    say("starting Ray")
    with on_ray(config, output, plan.counts, last) as site:
        yield site
