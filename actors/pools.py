"""How many actors of each kind a cluster has room for, and what each asks of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from configs.schema import Runtime

SCORER_CPU = 0.25  # of a small machine; scoring takes a few percent of rendering
TASK_CPU = 0.25  # that assembling shards is left
GPUS_A_SCORER = 4  # generators that one CLIP actor easily follows


class ResourcesError(ValueError):
    """The cluster has no room for what the config asks; asking anyway would wait in silence for ever."""


@dataclass(frozen=True)
class Sizes:
    """The pools: how many actors, and the CPUs and GPUs that each reserves. Assembling tasks reserve `task_cpus`."""

    generators: int
    generator_cpus: float
    generator_gpus: float
    scorers: int
    scorer_cpus: float
    scorer_gpus: float
    task_cpus: float


def size_pools(resources: Mapping[str, float], runtime: Runtime, threads: int) -> Sizes:
    """The pools for a cluster.

    With GPUs, a generator on each and a CLIP actor for every few of them, on fractions. Without, as many generators as there are
    CPUs for their threads, and CLIP and the assembling tasks on fractions of a CPU.

    Args:
        resources: Of the cluster, as `ray.cluster_resources()` says them: `CPU` and `GPU`.
        runtime: Of the config; numbers given there are taken as they are.
        threads: Of a generator on a CPU.

    Raises:
        ResourcesError: There are fewer CPUs or GPUs than the numbers given need.
    """
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    if gpus:
        return _on_gpus(cpus, gpus, runtime)
    generators = max(1, int(cpus) // threads) if runtime.generators == "auto" else runtime.generators
    scorers = 1 if runtime.scorers == "auto" else runtime.scorers
    # More processes than cores still run, only slower; so they share what there is, down to a twentieth of a CPU each.
    each = _down((cpus - TASK_CPU - scorers * SCORER_CPU) / generators)
    if each < 0.05:
        raise ResourcesError(
            f"{generators} generators and {scorers} scorers are too many for {cpus:g} CPUs; lower runtime.generators or add nodes"
        )
    return Sizes(generators, min(each, float(threads)), 0.0, scorers, SCORER_CPU, 0.0, TASK_CPU)


def _on_gpus(cpus: float, gpus: float, runtime: Runtime) -> Sizes:
    scorers = max(1, math.ceil(gpus / GPUS_A_SCORER)) if runtime.scorers == "auto" else runtime.scorers
    fit = _generators_beside(scorers, int(gpus), runtime)
    generators = fit if runtime.generators == "auto" else runtime.generators
    if generators < 1 or generators > fit:
        asked = (
            f"{generators or 1} generators on {runtime.generator_gpus:g} GPU each and {scorers} scorers on {runtime.scorer_gpus:g}"
        )
        raise ResourcesError(f"{asked} do not fit on {gpus:g} GPUs; lower runtime.generators, generator_gpus or scorer_gpus")
    each = _down(min(1.0, cpus / (generators + scorers + 1)))
    return Sizes(generators, each, runtime.generator_gpus, scorers, each, runtime.scorer_gpus, each)


def _generators_beside(scorers: int, cards: int, runtime: Runtime) -> int:
    """How many generators fit beside the scorers. A fraction is of one card: what is over on several does not add up."""
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
    """Ray counts resources in ten-thousandths; rounding down leaves room for all."""
    return math.floor(cpus * 100) / 100
