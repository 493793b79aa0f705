"""Computes how many actors of each kind a cluster has room for, and the resources that each reserves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from promptmill.configs.schema import Elastic, Runtime

SCORER_CPU = 0.2  # of a small machine; scoring takes a few percent of rendering
TASK_CPU = 0.2  # left for assembling shards; beside both there is never room for more generators than cores, elastic or not
GPUS_A_SCORER = 4  # generators that one CLIP actor can easily keep up with


class ClusterError(RuntimeError):
    """Reports a cluster that cannot be reached or started, refuses, or does not reach what a run needs; the message is one line."""


class ResourcesError(ValueError):
    """Reports a cluster without room for what the config asks; asking Ray anyway would wait in silence for ever."""


@dataclass(frozen=True)
class Sizes:
    """Holds the pools' sizes: how many actors, and the CPUs and GPUs that each reserves. Assembling tasks reserve `task_cpus`."""

    generators: int
    generator_cpus: float
    generator_gpus: float
    scorers: int
    scorer_cpus: float
    scorer_gpus: float
    task_cpus: float


def size_pools(nodes: Sequence[Mapping[str, float]], runtime: Runtime, threads: int) -> Sizes:
    """Compute the pools for a cluster.

    With GPUs, there is a generator on each and a CLIP actor for every few of them, on fractions. Without, there are as many
    generators as there are CPUs for their threads, with CLIP and the assembling tasks on fractions of a CPU. An actor's resources
    fit on each node that is counted: leftovers on several nodes do not add up. An elastic pool is as large as it may become: actors
    without room wait, which is the signal for a cluster's autoscaler.

    Args:
        nodes: The resources of each node, as Ray has them: `CPU` and `GPU`.
        runtime: The config's; numbers given there are taken as they are.
        threads: Threads of a generator on a CPU.

    Raises:
        ResourcesError: There are fewer CPUs or GPUs than the given numbers need.
    """
    pool = runtime.generators
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
    return Sizes(generators, min(each, float(threads)), 0.0, scorers, SCORER_CPU, 0.0, TASK_CPU)


def _elastic(nodes: Sequence[Mapping[str, float]], runtime: Runtime, threads: int, pool: Elastic) -> Sizes:
    """Compute the pools for the actors that there is room for now, with the greatest numbers that there may be."""
    graphics = any(node.get("GPU", 0.0) for node in nodes) or (runtime.require_gpus and pool.min == 0)
    enough = math.ceil(pool.max / GPUS_A_SCORER) if graphics else 1
    scorers: int = enough if runtime.scorers == "auto" else runtime.scorers
    try:
        fixed = runtime.model_copy(update={"generators": "auto", "scorers": 1})
        now = size_pools(nodes, fixed, threads)
    except ResourcesError:
        if pool.min > 0:
            raise
        # There is no node to count: a core each, as the nodes of GPU clusters have them.
        gpus = (runtime.generator_gpus, runtime.scorer_gpus) if graphics else (0.0, 0.0)
        now = Sizes(0, float(threads), gpus[0], scorers, SCORER_CPU, gpus[1], TASK_CPU)
    if now.generators < pool.min:
        what = f"{now.generator_gpus:g} GPU" if now.generator_gpus else f"{now.generator_cpus:g} CPU"
        room = f"there is room for {now.generators} on {what} each"
        raise ResourcesError(f"runtime.generators.min is {pool.min}, and {room}; add nodes, or lower it")
    return replace(now, generators=pool.max, scorers=scorers)


def _on_gpus(nodes: Sequence[Mapping[str, float]], runtime: Runtime) -> Sizes:
    gpus = int(sum(node["GPU"] for node in nodes))
    scorers = max(1, math.ceil(gpus / GPUS_A_SCORER)) if runtime.scorers == "auto" else runtime.scorers
    fit = _generators_beside(scorers, gpus, runtime)
    assert not isinstance(runtime.generators, Elastic)
    generators = fit if runtime.generators == "auto" else runtime.generators
    if generators < 1 or generators > fit:
        asked = f"{generators or 1} generators on {runtime.generator_gpus:g} GPU each"
        asked += f" and {scorers} scorers on {runtime.scorer_gpus:g}"
        raise ResourcesError(f"{asked} do not fit on {gpus:g} GPUs; lower runtime.generators, generator_gpus or scorer_gpus")
    a_card = max(1, math.ceil(generators / gpus)) + 1  # actors on one card, at most, and a task
    each = min(_down(min(1.0, node.get("CPU", 0.0) / (a_card * node["GPU"] + 1))) for node in nodes)
    return Sizes(generators, each, runtime.generator_gpus, scorers, each, runtime.scorer_gpus, each)


def _generators_beside(scorers: int, cards: int, runtime: Runtime) -> int:
    """Return how many generators fit beside the scorers. A fraction is of one card: leftovers on several cards do not add up."""
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
