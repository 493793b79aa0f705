"""Starts Ray on this machine, or joins a cluster that runs."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
from ray.job_config import JobConfig

from promptmill.actors.local_ray import import_path
from promptmill.actors.local_ray.memory_limits import memory_limit
from promptmill.actors.local_ray.processes import few_processes
from promptmill.actors.local_ray.sockets_folder import ray_folder
from promptmill.actors.local_ray.surroundings import OOM_RETRIES, on_loopback, tight
from promptmill.actors.local_ray.watch import unsaid
from promptmill.actors.pool_sizes import ClusterError
from promptmill.configs.printing import echo

CONNECT_S = 10.0
TASK_TRIES = 5  # of a task that Ray ends for its memory


class _OwnModules(JobConfig):
    """What Ray tells the workers of a run: of the folder where the driver stands, where Ray would have them look first, nothing."""

    def _serialize(self) -> str:
        self._py_driver_sys_path = import_path.for_workers()
        return super()._serialize()


@contextmanager
def cluster(address: str | None, quiet: bool = True, metrics_port: int | None = None) -> Iterator[list[dict[str, float]]]:
    """A connection to a Ray cluster, or a cluster of this machine alone; yields the resources of its nodes.

    Args:
        address: As Ray takes it; None starts one here, never joining one that happens to run.
        quiet: Keeps the workers' own output out of this terminal.
        metrics_port: Where a cluster that is started here offers its metrics; Ray picks a port where it is None.

    Raises:
        ClusterError: It cannot be reached or started.
    """
    here = not address or address == "local"
    options: dict[str, Any] = {"include_dashboard": False, "_metrics_export_port": metrics_port} if here else {}
    if "://" not in (address or ""):
        # Ray's client is none of the driver's machine: nothing from here is put there.
        options["job_config"] = _OwnModules()
    mine = not ray.is_initialized()
    if mine:
        if address and not here:
            _check_answers(address)
        if here and metrics_port:
            _check_free(metrics_port)
        if here:
            folder, why = ray_folder()
            options["_temp_dir"] = folder
            if why:
                echo(why, err=True)
        # Otherwise Ray begins a task that it ends for its memory again and again, and the run would wait for ever.
        os.environ.setdefault(OOM_RETRIES, str(TASK_TRIES))
        try:
            with ExitStack() as prepared:
                if here:
                    options |= prepared.enter_context(on_loopback())
                    for line in tight(memory_limit()):
                        echo(line, err=True)
                    prepared.enter_context(few_processes(logs=not quiet))
                if quiet:
                    prepared.enter_context(unsaid())
                ray.init(address or "local", log_to_driver=not quiet, logging_level=logging.ERROR, **options)
        except ClusterError:
            raise
        except Exception as error:  # Ray raises errors of any kind, also bare ones where its processes do not come up
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ClusterError(f"Ray at {address or 'this machine'}: {reason}") from None
    try:
        yield [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    finally:
        if mine:
            ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise ClusterError where nothing listens at HOST:PORT, which Ray itself would try again for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
        except OSError as error:
            raise ClusterError(f"Ray at {address}: nothing answers there ({error.strerror or error})") from None


def _check_free(port: int) -> None:
    """Ray itself would wait half a minute for a node that cannot come up."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            reason = error.strerror or error
            raise ClusterError(f"runtime.metrics_port {port}: {reason}; give another, or none") from None
