"""Finds Ray dashboards on this machine: their addresses, and whether they ask for a token. Knows Ray's processes, imports no Ray.

Anybody who reaches a dashboard without a token can run any code on its cluster: that is the purpose of its job API.
"""

import http.client
import ipaddress
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import psutil  # type: ignore[import-untyped]  # accelerate brings it

from promptmill.configs.json_values import parse_json

TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Dashboard:
    """Holds one address at which a dashboard listens.

    Attributes:
        tokens: Whether requests need a token.
    """

    host: str
    port: int
    tokens: bool

    @property
    def loopback(self) -> bool:
        return is_loopback(self.host)

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host, given by address or name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def dashboards() -> list[Dashboard]:
    """Return the addresses at which the dashboards of this machine answer, as far as this user may see their processes."""
    found = {}
    for process in _processes():
        if _is_dashboard(process.info["cmdline"]):
            for host, port in _listening(process):
                tokens = asks_for_token(host, port)
                if tokens is not None:  # else the port is some other one of the process, such as that of its metrics
                    found[host, port] = Dashboard(host, port, tokens)
    return list(found.values())


def clusters() -> list[str]:
    """Return the addresses of the Ray clusters that have a node on this machine."""
    flags = (part for process in _processes() for part in process.info["cmdline"] if _is_raylet(process.info["cmdline"]))
    return sorted({flag.partition("=")[2] for flag in flags if flag.startswith("--gcs-address=")})


def _processes() -> Iterator[psutil.Process]:
    return (process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"])


def _is_dashboard(command: Sequence[str]) -> bool:
    return any(PurePath(part).parts[-3:] == ("ray", "dashboard", "dashboard.py") for part in command)


def _is_raylet(command: Sequence[str]) -> bool:
    return PurePath(command[0]).name == "raylet"


def _listening(process: psutil.Process) -> Iterator[tuple[str, int]]:
    """Yield host and port of a process' listening sockets, or of its command line where its sockets cannot be seen."""
    try:
        sockets = process.net_connections("tcp")
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied:
        flags = (part[2:].partition("=") for part in process.info["cmdline"] if part.startswith("--"))
        said = {name: value for name, _, value in flags}
        if said.get("port", "").isdecimal():
            yield said.get("host", "127.0.0.1"), int(said["port"])
        return
    for socket in sockets:
        if socket.status == psutil.CONN_LISTEN:
            yield socket.laddr.ip, socket.laddr.port


def asks_for_token(
    host: str, port: int, timeout: float = TIMEOUT_S, tls: ssl.SSLContext | None = None, path: str = ""
) -> bool | None:
    """Return whether a dashboard's requests need a token, by a question that needs none; None where no dashboard answers.

    Args:
        host, port: The dashboard's address.
        timeout: In seconds.
        tls: Makes the question go by https; holds the trusted authorities.
        path: The beginning of the dashboard's own paths, behind a proxy.

    Raises:
        ssl.SSLCertVerificationError: The dashboard's certificate is not trusted.
    """
    wildcards = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    connection = (
        http.client.HTTPSConnection(host, port, timeout=timeout, context=tls)
        if tls
        else http.client.HTTPConnection(wildcards.get(host, host), port, timeout=timeout)
    )
    try:
        connection.request("GET", f"{path}/api/authentication_mode")
        response = connection.getresponse()
        if response.status == 404:
            return False  # a Ray that is too old to know the question knows no tokens either
        mode = parse_json(response.read(10_000))["authentication_mode"]
    except ssl.SSLCertVerificationError:
        raise
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return None
    finally:
        connection.close()
    return bool(mode != "disabled")
