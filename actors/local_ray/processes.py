"""Lets a Ray of this machine start fewer processes, and wait for none of those that a run does not need at its start.

`ray.init` starts the dashboard's process without the dashboard, for statistics of use that are off here, and waits for it; the
autoscaler's monitor, though there is one node; the monitor of logs, though nothing of workers is shown. Each is a Python that
imports Ray. The raylet's two agents stay. Where they choose their ports themselves the raylet waits until they have, so the ports
are chosen here.
"""

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray._private import parameter
from ray._private.node import Node

LOOPBACK = "127.0.0.1"
PORTS = range(20_000, 32_768)  # below those that Linux hands out by itself
OF_AGENTS = ("metrics_agent_port", "runtime_env_agent_port", "dashboard_agent_listen_port", "metrics_export_port")


def free_ports(number: int) -> list[int]:
    """Return ports of this machine's loopback that nobody listens at, drawn at random, so that runs that start together differ."""
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        found.append(port)
        if len(found) == number:
            break
    return found


def _with_ports(*arguments: Any, **options: Any) -> Any:
    """Make Ray's parameters of a node, with ports for its agents where none are given."""
    made = _parameters(*arguments, **options)
    for name, port in zip(OF_AGENTS, free_ports(len(OF_AGENTS)), strict=False):
        if getattr(made, name) is None:
            setattr(made, name, port)
    return made


_parameters = parameter.RayParams


def _without_dashboard(node: Any, **options: Any) -> None:
    node._webui_url = ""


def _without(node: Any, **options: Any) -> None: ...


@contextmanager
def few_processes(logs: bool) -> Iterator[None]:
    """Limit a Ray that is started inside to its GCS server, its raylet, and the agents and workers that these start.

    Args:
        logs: Whether the workers' output is to be shown in this terminal, which needs the monitor of logs.
    """
    left_out = {"start_api_server": _without_dashboard, "start_monitor": _without}
    left_out |= {} if logs else {"start_log_monitor": _without}
    before = {name: getattr(Node, name) for name in left_out}
    for name, other in left_out.items():
        setattr(Node, name, other)
    made: Any = parameter
    made.RayParams = _with_ports
    try:
        yield
    finally:
        made.RayParams = _parameters
        for name, other in before.items():
            setattr(Node, name, other)
