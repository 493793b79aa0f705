"""Whether every node of a cluster reaches what a run needs, asked before anything starts: each writes where the output goes, and
looks for what the others wrote there; each looks for the manifest, the weights and the image folders that are given by a path."""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from promptmill.actors.local_ray.cluster import cluster
from promptmill.actors.local_ray.watch import ended_for_memory
from promptmill.actors.pool_sizes import ClusterError, size_pools
from promptmill.configs.schema import Config
from promptmill.jobs.clusters.packaging import shared_paths
from promptmill.shards.storage import SCRATCH, StorageError, delete, get, is_local, join, put

SIGNS = 16  # that each node looks for; those of all would be too many on a thousand nodes
PATIENCE_S = 120.0  # for each question, of all nodes at once: a worker process starts first


@ray.remote(num_cpus=0, max_retries=1)
def _left(output: str, token: str) -> str | None:
    """Leave a sign where the output goes; returns what is wrong."""
    try:
        put(_sign(output, token), token.encode())
    except StorageError as error:
        return str(error)
    return None


@ray.remote(num_cpus=0, max_retries=1)
def _seen(output: str, tokens: Sequence[str], paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """The signs of the others that are not there, and the paths."""
    missing = []
    for token in tokens:
        try:
            if get(_sign(output, token)) != token.encode():
                missing.append(token)
        except (FileNotFoundError, StorageError):
            missing.append(token)
    return missing, [path for path in paths if not Path(path).exists()]


def _sign(output: str, token: str) -> str:
    return join(output, f"{SCRATCH}reach-{token}")


def check_reach(output: str, paths: Sequence[str], nodes: Sequence[dict[str, Any]]) -> None:
    """Ask every node.

    Args:
        output: The dataset's URI.
        paths: Absolute ones, which have to be on all nodes.
        nodes: As `ray.nodes()` has them.

    Raises:
        ClusterError: The first node that cannot write the output, does not see what another wrote, or lacks a path.
    """
    alive = {node["NodeID"]: node["NodeManagerAddress"] for node in nodes if node["Alive"]}
    signs = {node: secrets.token_hex(8) for node in alive}
    try:
        wrong = _ask({node: (output, sign) for node, sign in signs.items()}, _left, alive)
        for node, error in wrong.items():
            if error:
                raise ClusterError(f"node {alive[node]} cannot write the output: {error}")
        for node, (missing, lacking) in _ask(
            {n: (output, [*signs.values()][:SIGNS], [*paths]) for n in alive}, _seen, alive
        ).items():
            if missing:
                other = next(alive[n] for n, sign in signs.items() if sign == missing[0])
                remedy = "give --out s3://… or a path of a file system that all nodes mount"
                raise ClusterError(f"{output}: node {alive[node]} does not see there what node {other} wrote; {remedy}")
            if lacking:
                remedy = "put it where all nodes have it, or name a URI or a hub repository"
                raise ClusterError(f"{lacking[0]}: is not there on node {alive[node]}; {remedy}")
    finally:
        _sweep(output, signs.values(), alive)


def _ask(arguments: dict[str, tuple[Any, ...]], task: Any, alive: dict[str, str]) -> dict[str, Any]:
    """The answers of the nodes; one that has gone meanwhile has none."""
    asked = {
        node: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*of)
        for node, of in arguments.items()
    }
    answers = {}
    for node, reference in asked.items():
        try:
            answers[node] = ray.get(reference, timeout=PATIENCE_S)
        except exceptions.GetTimeoutError:
            raise ClusterError(
                f"node {alive[node]} did not answer within {PATIENCE_S:g} s; `ray status` says what it is at"
            ) from None
        except (exceptions.TaskUnschedulableError, exceptions.NodeDiedError, exceptions.WorkerCrashedError):
            continue
        except exceptions.OutOfMemoryError as error:
            raise ClusterError(f"node {alive[node]}: {ended_for_memory(error)}") from None
        except exceptions.RuntimeEnvSetupError as error:
            raise ClusterError(
                f"node {alive[node]} cannot set up the job's environment: {' '.join(str(error).split())[:300]}"
            ) from None
    return answers


def _sweep(output: str, signs: Any, alive: dict[str, str]) -> None:
    if is_local(output):
        # Where it is no shared file system each node has its own.
        for node in alive:
            strategy = NodeAffinitySchedulingStrategy(node, soft=True)
            ray.wait([_swept.options(scheduling_strategy=strategy).remote(output, [*signs])], timeout=30)
    else:
        for sign in signs:
            delete(_sign(output, sign))


@ray.remote(num_cpus=0, max_retries=0)
def _swept(output: str, signs: Sequence[str]) -> None:
    for sign in signs:
        delete(_sign(output, sign))


@contextmanager
def joined(config: Config, output: str) -> Iterator[None]:
    """A connection to the config's cluster, which has room for the run and reaches what it needs; inside, `cluster` finds it.

    Raises:
        ClusterError: It cannot be reached, or as `check_reach`.
        ResourcesError: It has no room.
    """
    with cluster(config.runtime.address) as nodes:
        size_pools(nodes, config.runtime, config.model.threads)
        check_reach(output, shared_paths(config), ray.nodes())
        yield
