"""Computes how many actors of each kind a cluster has room for, and the resources that each reserves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from promptmill.configs.schema import Elastic, Runtime

SCORER_CPU = 0.2  # of a small machine; scoring takes a few percent of rendering
TASK_CPU = 0.2  # left for assembling shards; beside both there is never room for more generators than cores, elastic or not
CONTEXTS = 10**9  # bytes of a card that CUDA takes for two processes beside what torch counts
SCORER_SHARE = 0.25  # of a card, where its memory or the models' sizes are not known
SHARES = 20  # steps of a card's shares


class ClusterError(RuntimeError):
    """Reports a cluster that cannot be reached or started, refuses, or does not reach what a run needs; the message is one line."""


class ResourcesError(ValueError):
    """Reports a cluster without room for what the config asks; asking Ray anyway would wait in silence for ever."""


@dataclass(frozen=True)
class Sizes:
    """Holds the pools' sizes: how many actors, and the CPUs and GPUs that each reserves. Assembling tasks reserve `task_cpus`.

    Attributes:
        scorers: The scorers that the run begins with.
        most_scorers: To how many scorers the pool may grow, where that is more.
        a_node: Generators on one node, at most; 0 where that is not known.
    """

    generators: int
    generator_cpus: float
    generator_gpus: float
    scorers: int
    scorer_cpus: float
    scorer_gpus: float
    task_cpus: float
    most_scorers: int = 0
    a_node: int = 0

    @property
    def served(self) -> int:
        """Return how many generators the threads of one scorer are to keep up with.

        A pool that grows has, once it has grown, a scorer for each node or more; so more than one node is not for one scorer's
        threads.
        """
        each = math.ceil(self.generators / self.scorers)
        return min(each, self.a_node) if self.most_scorers > self.scorers and self.a_node else each


def card_shares(runtime: Runtime, card: int | None, generator: int | None, scorer: int | None) -> Runtime:
    """Return a config's `runtime` with numbers in place of `generator_gpus: auto` and `scorer_gpus: auto`.

    A card is for one generator, since one batch keeps the card busy, and a second copy of the weights would take the memory of a
    larger batch. So a scorer gets what its models need, and a generator gets the rest.

    Args:
        runtime: The config's.
        card: Bytes of memory of the smallest card; None where they are not known.
        generator, scorer: Bytes that one needs at least; None where they are not known.

    Raises:
        ResourcesError: A generator's weights and largest tensors do not fit into its share of the card.
    """
    scoring = _scorer_share(runtime, card, scorer) if runtime.scorer_gpus == "auto" else runtime.scorer_gpus
    rest = round(1 - scoring, 4) if scoring < 1 else 1.0
    rendering = rest if runtime.generator_gpus == "auto" else runtime.generator_gpus
    if card and generator is not None and generator > min(1.0, rendering) * card:
        need = f"a generator needs {generator / 1e9:.1f} GB at least, by its weights and model.batch"
        remedy = "set model.batch lower, model.quantize or model.offload, or take cards with more memory"
        raise ResourcesError(f"{need}, and has {rendering:g} of a card of {card / 1e9:.1f} GB; {remedy}")
    return runtime.model_copy(update={"generator_gpus": rendering, "scorer_gpus": scoring})


def _scorer_share(runtime: Runtime, card: int | None, scorer: int | None) -> float:
    """Return a scorer's share of a card: what it needs; where that is not known, a quarter, or less where generators leave less."""
    if card and scorer is not None:
        return min(0.5, math.ceil(SHARES * (scorer + CONTEXTS) / card) / SHARES)
    given = runtime.generator_gpus
    left = 1 - given * int(1 / given + 1e-9) if given != "auto" and given < 1 else 1.0
    return min(SCORER_SHARE, round(left, 4)) if left > 1e-4 else SCORER_SHARE


def size_pools(nodes: Sequence[Mapping[str, float]], runtime: Runtime, threads: int) -> Sizes:
    """Compute the pools for a cluster.

    With GPUs, there is a generator on each, and scorers on what generators leave of the cards. Without, there are as many
    generators as there are CPUs for their threads, with scorers and the assembling tasks on fractions of a CPU. A pool of scorers
    that is not given begins with one, and may grow where that takes no generator's place: to one for each node, or for each card.
    An actor's resources fit on each node that is counted: leftovers on several nodes do not add up. An elastic pool is as large as
    it may become: actors without room wait, which is the signal for a cluster's autoscaler.

    Args:
        nodes: The resources of each node, as Ray has them: `CPU` and `GPU`.
        runtime: The config's; numbers given there are taken as they are.
        threads: Threads of a generator on a CPU.

    Raises:
        ResourcesError: There are fewer CPUs or GPUs than the given numbers need.
    """
    runtime, pool = card_shares(runtime, None, None, None), runtime.generators
    if isinstance(pool, Elastic):
        return _elastic(nodes, runtime, threads, pool)
    if sum(node.get("GPU", 0.0) for node in nodes):
        return _on_gpus([node for node in nodes if node.get("GPU", 0.0)], runtime)
    if runtime.require_gpus:
        raise ResourcesError(f"no GPU on {len(nodes)} nodes, and runtime.require_gpus is set; add nodes that have one")
    cpus = [node["CPU"] for node in nodes if node.get("CPU", 0.0) >= 1]
    fit = [max(1, int(own) // threads) for own in cpus]
    generators = sum(fit) if pool == "auto" else pool
    scorers = 1 if runtime.scorers == "auto" else runtime.scorers
    # Each node is taken to have as many generators as the fullest, beside its share of the rest. More processes than cores still
    # run, only slower; so they share the CPUs, down to a twentieth of a CPU each.
    beside = TASK_CPU + SCORER_CPU * math.ceil(scorers / max(1, len(cpus)))
    fullest = fit if pool == "auto" else [math.ceil(generators / max(1, len(cpus)))] * len(cpus)
    each = min((_down((own - beside) / number) for own, number in zip(cpus, fullest, strict=True)), default=0.0)
    if each < 0.05:
        asked = f"{generators} generators and {scorers} scorers"
        raise ResourcesError(f"{asked} are too many for {sum(cpus):g} CPUs; lower runtime.generators or add nodes")
    # A second scorer on a node would take the CPU of a generator.
    most = max(1, min(len(cpus), generators)) if runtime.scorers == "auto" else scorers
    return Sizes(generators, min(each, float(threads)), 0.0, scorers, SCORER_CPU, 0.0, TASK_CPU, most, max(fullest))


def _elastic(nodes: Sequence[Mapping[str, float]], runtime: Runtime, threads: int, pool: Elastic) -> Sizes:
    """Compute the pools for the actors that there is room for now, with the greatest numbers that there may be."""
    graphics = any(node.get("GPU", 0.0) for node in nodes) or (runtime.require_gpus and pool.min == 0)
    scorers: int = 1 if runtime.scorers == "auto" else runtime.scorers
    try:
        fixed = runtime.model_copy(update={"generators": "auto", "scorers": 1})
        now = size_pools(nodes, fixed, threads)
    except ResourcesError:
        if pool.min > 0:
            raise
        # There is no node to count: a core each, as the nodes of GPU clusters have them.
        gpus = (runtime.generator_gpus, runtime.scorer_gpus) if graphics else (0.0, 0.0)
        now = Sizes(0, float(threads), gpus[0], scorers, SCORER_CPU, gpus[1], TASK_CPU)  # type: ignore[arg-type]
    if now.generators < pool.min:
        what = f"{now.generator_gpus:g} GPU" if now.generator_gpus else f"{now.generator_cpus:g} CPU"
        room = f"there is room for {now.generators} on {what} each"
        raise ResourcesError(f"runtime.generators.min is {pool.min}, and {room}; add nodes, or lower it")
    most = scorers
    if runtime.scorers == "auto":
        # Beside the generators of a card, or of a node, there is room for one. A scorer that waited for room would call for a node,
        # so there is one for every two of them.
        a_place = (1 if now.generator_gpus + now.scorer_gpus <= 1 else 0) if graphics else now.a_node
        most = max(1, pool.max // (2 * a_place)) if a_place else 1
    return replace(now, generators=pool.max, scorers=scorers, most_scorers=most)


def _on_gpus(nodes: Sequence[Mapping[str, float]], runtime: Runtime) -> Sizes:
    gpus = int(sum(node["GPU"] for node in nodes))
    scorers = 1 if runtime.scorers == "auto" else runtime.scorers
    fit = _generators_beside(scorers, gpus, runtime)
    assert not isinstance(runtime.generators, Elastic) and runtime.generator_gpus != "auto" and runtime.scorer_gpus != "auto"
    generators = fit if runtime.generators == "auto" else runtime.generators
    if generators < 1 or generators > fit:
        asked = f"{generators or 1} generators on {runtime.generator_gpus:g} GPU each"
        asked += f" and {scorers} scorers on {runtime.scorer_gpus:g}"
        raise ResourcesError(f"{asked} do not fit on {gpus:g} GPUs; lower runtime.generators, generator_gpus or scorer_gpus")
    a_card = max(1, math.ceil(generators / gpus)) + 1  # actors on one card, at most, and a task
    each = min(_down(min(1.0, node.get("CPU", 0.0) / (a_card * node["GPU"] + 1))) for node in nodes)
    most = scorers
    if runtime.scorers == "auto":
        most = max((more for more in range(1, gpus + 1) if _generators_beside(more, gpus, runtime) >= generators), default=1)
    a_node = math.ceil(generators * max(node["GPU"] for node in nodes) / gpus)
    return Sizes(generators, each, runtime.generator_gpus, scorers, each, runtime.scorer_gpus, each, most, a_node)


def _generators_beside(scorers: int, cards: int, runtime: Runtime) -> int:
    """Return how many generators fit beside the scorers. A fraction is of one card: leftovers on several cards do not add up."""
    assert runtime.generator_gpus != "auto" and runtime.scorer_gpus != "auto"
    if runtime.generator_gpus > 1:
        return int((cards - math.ceil(scorers * runtime.scorer_gpus)) // runtime.generator_gpus)
    a_card, most = int(1 / runtime.generator_gpus + 1e-9), 0
    for mixed in range(a_card + 1):  # generators on a card that has scorers too
        beside = int((1 - mixed * runtime.generator_gpus) / runtime.scorer_gpus + 1e-9)
        shared = math.ceil(scorers / beside) if beside else cards + 1
        if shared <= cards:
            most = max(most, (cards - shared) * a_card + shared * mixed)
    return most


def _down(cpus: float) -> float:
    """Round down to hundredths, which leaves room for all: Ray counts resources in ten-thousandths."""
    return math.floor(cpus * 100) / 100
