"""Checks, before anything starts, whether every node of a cluster reaches what a run needs.

Each node writes a file where the output goes and looks for the files of the other nodes there. Each node looks for the manifest,
the weights and the image folders that are given by a path.
"""

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
from promptmill.jobs.running.on_ray import runtime_here
from promptmill.shards.storage import SCRATCH, StorageError, delete, get, is_local, join, put

SIGNS = 16  # files that each node looks for; those of all nodes would be too many on a thousand nodes
PATIENCE_S = 120.0  # for each question, of all nodes at once: a worker process starts first


@ray.remote(num_cpus=0, max_retries=1)
def _left(output: str, token: str) -> str | None:
    """Write a node's file where the output goes, and return what is wrong, or None."""
    try:
        put(_sign(output, token), token.encode())
    except StorageError as error:
        return str(error)
    return None


@ray.remote(num_cpus=0, max_retries=1)
def _seen(output: str, tokens: Sequence[str], paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the files of other nodes that this node does not see, and the paths that it lacks."""
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
    """Check on every node that it writes the output, sees the other nodes' files there, and has the paths.

    Args:
        output: The dataset's URI.
        paths: Absolute paths that all nodes have to have.
        nodes: As `ray.nodes()` has them.

    Raises:
        ClusterError: A node cannot write the output, does not see another node's file, or lacks a path; the first such node is
            named.
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
    """Return the answers of the nodes; a node that has gone meanwhile has none."""
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
        # Without a shared file system each node has files of its own.
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
    """Join or start the config's cluster, which has room for the run and reaches what the run needs; inside, `cluster` finds it.

    Raises:
        ClusterError: The cluster cannot be reached, or as `check_reach`.
        ResourcesError: The cluster has no room for the run, or the model does not fit into a card.
    """
    with cluster(config.runtime.address) as nodes:
        size_pools(nodes, runtime_here(config), config.model.threads)
        check_reach(output, shared_paths(config), ray.nodes())
        yield
