"""Which processes a Ray of this machine has: in a process of its own, since a session of tests has one Ray for all."""

import socket
import subprocess
import sys

from promptmill.actors.local_ray import processes
from promptmill.actors.local_ray.processes import LOOPBACK, free_ports

PROGRAM = """
import psutil, ray
from ray._private.node import Node
from promptmill.actors.local_ray.cluster import cluster
before = Node.start_api_server, Node.start_monitor, Node.start_log_monitor
with cluster(None):
    ray.get(ray.remote(lambda: None).remote())
    lines = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
for name in ("gcs_server", "raylet", "dashboard.py", "monitor.py", "log_monitor.py"):
    print(*(name for line in lines[:1] if any(name in line for line in lines)))
assert before == (Node.start_api_server, Node.start_monitor, Node.start_log_monitor)
"""


def test_a_ray_of_this_machine_has_no_dashboard_and_no_monitors():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["gcs_server", "raylet"]


def test_ports_are_different_ones_at_which_nobody_listens(monkeypatch):
    with socket.create_server((LOOPBACK, 0)) as server:
        taken = server.getsockname()[1]
        monkeypatch.setattr(processes, "PORTS", range(taken, taken + 1))
        assert free_ports(1) == []
    assert free_ports(1) == [taken]
    monkeypatch.undo()
    assert len(set(free_ports(8))) == 8
