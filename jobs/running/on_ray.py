"""Runs the workers of a run on Ray: joins or starts the cluster, watches it, and shows its metrics."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import ray

from promptmill.actors.flow.events import Guarded, Listener
from promptmill.actors.flow.ray_pools import ray_workers
from promptmill.actors.flow.workers import Loaded, Workers
from promptmill.actors.local_ray.cards import smallest_card
from promptmill.actors.local_ray.cluster import cluster
from promptmill.actors.local_ray.watch import RayWatch, one_line_of_ray
from promptmill.actors.pool_sizes import ClusterError, Sizes, card_shares, size_pools
from promptmill.configs.schema import Config, Runtime
from promptmill.jobs.planning.counts import Counts
from promptmill.jobs.running.metrics import Metrics
from promptmill.pipelines.models.memory import generator_bytes, scorer_bytes
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.recipe import Recipe


class OnRay:
    """Holds a Ray cluster, as a `sites.Site`."""

    def __init__(self, nodes: int, sizes: Sizes, runtime: Runtime, watch: RayWatch, metrics: Metrics):
        self.nodes, self.sizes, self._runtime, self._watch, self._metrics = nodes, sizes, runtime, watch, metrics
        self.listener: Listener = Guarded(metrics, "recording metrics")

    def workers(self, recipe: Recipe, generator_loaded: Loaded, scorer_loaded: Loaded) -> Workers:
        """Return the workers as `Site` does, with the actors and their calls counted."""
        recipe = replace(recipe, config=recipe.config.model_copy(update={"runtime": self._runtime}))
        made = ray_workers(recipe, self.sizes, generator_loaded, scorer_loaded)
        watched = self._metrics.watched
        return replace(made, generators=watched(made.generators, "generators"), scorers=watched(made.scorers, "scorers"))

    @contextmanager
    def watched(self, gone: Callable[[Exception], None]) -> Iterator[None]:
        """Call `gone` as `Site` does: where a process of this machine's own Ray has died, which Ray says late or never."""
        self._watch.on_death = lambda line: gone(ClusterError(line))
        with self._watch.looking(), self._metrics.showing():
            yield


@contextmanager
def on_ray(config: Config, output: str, counts: Counts, last: Callable[[], object]) -> Iterator[OnRay]:
    """Connect to a config's cluster, or start one of this machine.

    Args:
        config: The run's config.
        output: The dataset's URI.
        counts: Of the plan.
        last: Called before this process has to be ended since Ray does not let it go on.

    Raises:
        ClusterError: The cluster cannot be reached or started, or has failed.
        ResourcesError: The cluster has no room.
    """
    runtime = config.runtime
    watch, metrics = RayWatch(last), Metrics(output, counts.candidates)
    with watch, cluster(runtime.address, metrics_port=runtime.metrics_port) as nodes, one_line_of_ray():
        runtime = runtime_here(config)
        sizes = size_pools(nodes, runtime, config.model.threads)
        if runtime.generators == "auto":
            # One without a unit to render would only be in the way of the others as they load.
            few = min(sizes.generators, max(1, counts.units))
            sizes = replace(sizes, generators=few, most_scorers=min(sizes.most_scorers, few))
        yield OnRay(len(nodes), sizes, runtime, watch, metrics)


def runtime_here(config: Config) -> Runtime:
    """Return a config's `runtime` with the shares of the cards of the cluster that this process is connected to.

    Raises:
        ResourcesError: The model does not fit into its share of the smallest card.
    """
    card = smallest_card(ray.nodes())
    if card is None:
        return card_shares(config.runtime, None, None, None)
    try:
        needs = generator_bytes(config.model, config.defaults), scorer_bytes(config.ranking)
    except ModelError:
        needs = None, None  # the actors say what is wrong with the model, from where they load it
    return card_shares(config.runtime, card, *needs)
