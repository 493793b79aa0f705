"""Joins the cluster that a config names, before a long manifest is read."""

from contextlib import AbstractContextManager, nullcontext

from promptmill.configs.schema import Config


def joined_if_named(config: Config, output: str) -> AbstractContextManager[None]:
    """Return a context in which the config's cluster, checked for the run, is joined; an empty context where the config names none.

    Raises:
        ClusterError, ResourcesError: As `node_checks.joined`.
    """
    return ready(config, output) if config.runtime.address else nullcontext()


def ready(config: Config, output: str) -> AbstractContextManager[None]:
    """Return a context in which the cluster to render on is started or joined, as by `node_checks.joined`."""
    if config.runtime.workers == "here":
        return nullcontext()
    # Ray takes a second to import, so it is imported only where a cluster is needed.
    from promptmill.jobs.clusters.node_checks import joined

    return joined(config, output)
