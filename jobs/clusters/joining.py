"""Joins the cluster that a config names, before a long manifest is gone through."""

from contextlib import AbstractContextManager, nullcontext

from promptmill.configs.schema import Config


def joined_if_named(config: Config, output: str) -> AbstractContextManager[None]:
    """Return the config's cluster, which has room for the run and reaches what the run needs; nothing where none is named.

    Raises:
        ClusterError, ResourcesError: As `node_checks.joined`.
    """
    return ready(config, output) if config.runtime.address else nullcontext()


def ready(config: Config, output: str) -> AbstractContextManager[None]:
    """Return the cluster to render on, started or joined, as `node_checks.joined`; nothing where workers are in this process."""
    if config.runtime.workers == "here":
        return nullcontext()
    # Ray takes a second to import, which only a cluster is worth.
    from promptmill.jobs.clusters.node_checks import joined

    return joined(config, output)
