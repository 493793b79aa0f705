"""Leaves out the processes of a Ray of this machine that no run has a use for: each is a Python that imports Ray.

`ray.init` starts the dashboard's process without the dashboard, for statistics of use that are off here, and waits for it; the
autoscaler's monitor, though there is one node; the monitor of logs, though no output of workers is shown.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray._private.node import Node


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
    try:
        yield
    finally:
        for name, other in before.items():
            setattr(Node, name, other)
