"""A real Ray cluster on this machine, by the commands that docs/cluster.md gives: a head, and nodes that come and go.

Each node but the head has a temporary folder of its own, by a mount namespace (`unshare -rm`), as another machine would.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
UP_S = 120  # that a node may take to come up on a busy machine


def free_port() -> int:
    """Below those that Ray's workers take."""
    while True:
        port = 6000 + secrets.randbelow(3000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


@dataclass
class Nodes:
    """A running cluster.

    Attributes:
        folder: Of its own.
        environment: Of all its nodes; its token is in `token`.
        port, dashboard: Of the head.
        nodes: The processes of the others.
    """

    folder: Path
    environment: Mapping[str, str]
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    port: int = field(default_factory=free_port)
    dashboard: int = field(default_factory=free_port)
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    @property
    def gcs(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def temporary(self) -> Path:
        # Short: sockets lie in it, whose paths have at most 107 bytes.
        return Path(tempfile.gettempdir()) / f"pm-{self.port}"

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a node, and of who may join."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        ours = {"PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_USAGE_STATS_ENABLED": "0"}
        return {**kept, "OMP_NUM_THREADS": "1", **ours, **self.environment}

    def start(self, cpus: float = 1) -> None:
        """Start the head."""
        self.temporary.mkdir()
        ports = ["--port", str(self.port), "--dashboard-port", str(self.dashboard), "--ray-client-server-port", str(free_port())]
        self._spawn(["ray", "start", "--head", *ports, *self._own(cpus), "--temp-dir", str(self.temporary)], "head")
        self._await("head", lambda: self._listens(self.dashboard))

    def add(self, cpus: float = 1) -> subprocess.Popen[bytes]:
        """Add a node; returns its process, whose group is the whole node."""
        name = f"node-{len(self.nodes)}"
        join = ["ray", "start", "--address", self.gcs, *self._own(cpus)]
        # The mount is this node's alone: what the head unpacked there is not to be seen.
        node = self._spawn(["unshare", "-rm", "sh", "-c", f'mount -t tmpfs tmpfs {self.temporary} && exec "$@"', "-", *join], name)
        self.nodes.append(node)
        self._await(name, lambda: b"Ray runtime started" in (self.folder / f"{name}.log").read_bytes())
        return node

    def _own(self, cpus: float) -> list[str]:
        return ["--dashboard-agent-listen-port", str(free_port()), "--num-cpus", f"{cpus:g}", "--block"]

    def _spawn(self, command: list[str], name: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=self.variables, start_new_session=True)
        if name == "head":
            self.nodes.insert(0, process)
        return process

    def _await(self, name: str, up) -> None:
        until = time.monotonic() + UP_S
        while not up():
            said = (self.folder / f"{name}.log").read_text(errors="replace")
            assert time.monotonic() < until and "Error" not in said, f"{name} does not come up: {said[-2000:]}"
            time.sleep(0.1)

    def _listens(self, port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """SIGKILL a node with all that runs on it, as a machine that goes."""
        for process in [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        node.wait()

    def stop(self) -> None:
        for node in reversed(self.nodes):
            if node.poll() is None:
                self.kill(node)
        # Workers whose parents have gone belong to nobody.
        for process in psutil.process_iter(["cmdline"]):
            if str(self.temporary) in " ".join(process.info["cmdline"] or []):
                process.kill()
        shutil.rmtree(self.temporary, ignore_errors=True)


@contextmanager
def nodes(folder: Path, **environment: str) -> Iterator[Nodes]:
    """A cluster of a head and one node, of a CPU each."""
    cluster = Nodes(folder, environment)
    try:
        cluster.start()
        cluster.add()
        yield cluster
    finally:
        cluster.stop()


def promptmill(*arguments: object, folder: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    """The command, in a folder, in an environment with nothing of Ray's but what is given."""
    return started(sys.executable, "-m", "promptmill", *map(str, arguments), folder=folder, **environment)


def started(*command: str, folder: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    """Any command, likewise."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    variables = {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), **environment}
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)
