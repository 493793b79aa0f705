"""Submits, lists, follows and stops jobs through a cluster's Jobs API; every error is one line."""

import asyncio
import json
import logging
import os
import re
import shlex
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from promptmill.actors.pool_sizes import ClusterError
from promptmill.configs.own_files import LOCK, pins
from promptmill.configs.schema import Config
from promptmill.jobs.clusters.dashboards import asks_for_token, dashboards, is_loopback
from promptmill.jobs.clusters.packaging import CONFIG, pack
from promptmill.jobs.planning.plan import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterator


SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|API_KEY")
STOP_WAIT_S = 3600  # for units in flight after a stop; Ray's own 3 s would kill them
STARTING_S = 60  # from a cluster's first answer until the cluster accepts jobs, at most
LOOK_AGAIN_S = 0.5
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Job:
    """Holds a job as its cluster knows the job.

    Attributes:
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        exit: The driver's exit status; None while the driver runs, or where it was killed. Ray counts 3 (done, but some rows
            failed) as a failure.
        output: The dataset's URI.
        message: Ray's message about the job.
    """

    id: str
    status: str
    exit: int | None
    output: str | None
    message: str

    @property
    def ended(self) -> bool:
        return self.status in ENDED


class Remote:
    """Connects to the Jobs API of one cluster.

    Args:
        address: The dashboard's address, http://HOST:8265 or HOST:8265, or https://HOST/… of a proxy before it.

    Raises:
        ClusterError: No Ray of this version answers there, or the cluster refuses the token, is open to anybody, or has a
            certificate that is not trusted.
    """

    def __init__(self, address: str):
        self.address = _url(address)
        parts = urlsplit(self.address)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        authorities = _authorities()
        try:
            tls = _trusting(authorities) if parts.scheme == "https" else None
            tokens = asks_for_token(host, port, tls=tls, path=parts.path)
        except ssl.SSLCertVerificationError as error:
            unknown = f"its certificate is not trusted ({error.verify_message})"
            raise ClusterError(f"{self.address}: {unknown}; set REQUESTS_CA_BUNDLE to the file of its authority") from None
        if tokens is None:
            raise ClusterError(
                f"{self.address}: no Ray dashboard answers there; the address is that of the head node, port 8265 by default"
            )
        _check_open(self.address, host, port, tokens)
        if tokens:
            # Ray reads the variable once, when it is first imported.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            os.environ.pop(name, None)  # Ray would silently prefer these to the address
        with self._one_line():
            from ray.job_submission import JobSubmissionClient

            for name in (
                "ray.dashboard.modules.dashboard_sdk",
                "ray.dashboard.modules.job.sdk",
                "ray._private.runtime_env.packaging",
            ):
                logging.getLogger(name).setLevel(logging.ERROR)  # Ray warns of each file above 10 MB
            self._client: JobSubmissionClient = JobSubmissionClient(self.address, verify=authorities)
            self._check_version()

    def _check_version(self) -> None:
        import ray

        there = json.loads(self._client._do_request("GET", "/api/version").text)["ray_version"]
        if there != ray.__version__:
            raise ClusterError(f"{self.address}: runs Ray {there}, this is Ray {ray.__version__}; install the same on both sides")

    def submit(
        self,
        config: Config,
        output: str,
        name: str,
        options: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        install: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ) -> str:
        """Ship and start a run, and return the job's id.

        Args:
            config: The resolved config.
            output: Where the dataset goes: a URI, or a path that all nodes have.
            name: The beginning of the id.
            options: Options of `promptmill run`.
            variables: Variables of the job's environment, on all nodes; anybody who reaches the dashboard can read them.
            install: Have each node install the packages that requirements.lock pins.
            say: Called with a line for each file that a row names and that is not shipped.

        Raises:
            PlanError: Something that the job needs would not be on the cluster.
            ClusterError: The cluster does not accept the job.
        """
        id = f"{name}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.urandom(2).hex()}"
        environment: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), **(variables or {})}}
        if install:
            environment["pip"] = {"packages": pins(LOCK.read_text())}
        with tempfile.TemporaryDirectory(prefix="promptmill-") as folder, self._one_line():
            for line in pack(config, output, Path(folder)):
                say(line)
            environment["working_dir"] = folder
            command = shlex.join(["python", "-m", "promptmill.jobs.cli.landing", CONFIG, "--out", output, *options])
            until = time.monotonic() + STARTING_S
            while True:
                try:
                    return self._client.submit_job(
                        entrypoint=command, submission_id=id, runtime_env=environment, metadata={"output": output}
                    )
                except RuntimeError as error:
                    # The head's own agent comes up some seconds after its dashboard.
                    if "No available agent" not in str(error) or time.monotonic() > until:
                        raise
                time.sleep(LOOK_AGAIN_S)

    def job(self, id: str) -> Job:
        """Return a job as the cluster knows the job.

        Raises:
            ClusterError: There is no such job.
        """
        with self._one_line():
            return _job(self._client.get_job_info(id))

    def jobs(self) -> list[Job]:
        """Return all jobs that promptmill submitted, the oldest first."""
        with self._one_line():
            found = [
                info for info in self._client.list_jobs() if info.submission_id and "promptmill.jobs.cli.landing" in info.entrypoint
            ]
        return [_job(info) for info in sorted(found, key=lambda info: info.start_time or 0)]

    def stop(self, id: str) -> None:
        """Tell a job to finish its units in flight, and to stop."""
        with self._one_line():
            self._client.stop_job(id)

    def logs(self, id: str) -> str:
        """Return the log of a job so far."""
        with self._one_line():
            return self._client.get_job_logs(id)

    async def lines(self, id: str) -> AsyncIterator[str]:
        """Yield the log of a job from its beginning, line by line, until the job ends."""
        rest = ""
        with self._one_line():
            async for piece in self._client.tail_job_logs(id):
                *lines, rest = (rest + piece).split("\n")
                for line in lines:
                    yield line
        if rest:
            yield rest
        # The log ends a moment before the status says so.
        while not self.job(id).ended:
            await asyncio.sleep(LOOK_AGAIN_S)

    @contextmanager
    def _one_line(self) -> "Iterator[None]":
        import aiohttp
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError:
            refused = (
                "refuses the token, or got none; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds the cluster's"
            )
            raise ClusterError(f"{self.address}: {refused}") from None
        except (requests.RequestException, aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            raise ClusterError(f"{self.address}: {_words(error)}") from None
        except RuntimeError as error:
            if isinstance(error, ClusterError):
                raise
            raise ClusterError(f"{self.address}: {_words(error)}") from None


def _url(address: str) -> str:
    if address.startswith(("http://", "https://")):
        return address.rstrip("/")
    if "://" in address or ":" not in address:
        raise ClusterError(f"--address {address}: not an address of a dashboard, such as http://HOST:8265")
    return f"http://{address}"


def _authorities() -> str:
    """Return the file or folder of the trusted authorities; without it, Ray's client would use another one for logs."""
    from requests import certs

    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or certs.where()


def _trusting(authorities: str) -> ssl.SSLContext:
    try:
        file, folder = (None, authorities) if Path(authorities).is_dir() else (authorities, None)
        return ssl.create_default_context(cafile=file, capath=folder)
    except OSError as error:
        raise ClusterError(f"REQUESTS_CA_BUNDLE: {authorities}: {error.strerror or error}") from None


def _check_open(address: str, host: str, port: int, guarded: bool) -> None:
    """Raise ClusterError for a dashboard through which anybody on the network can run code."""
    heard = not is_loopback(host) or any(found.port == port and not found.loopback for found in dashboards())
    if heard and not guarded:
        remedy = (
            "start the cluster with RAY_AUTH_MODE=token, or have its dashboard listen on loopback and reach it through a tunnel"
        )
        raise ClusterError(f"{address}: listens beyond loopback and asks for no token: anybody can run code there; {remedy}")


def _job(info: Any) -> Job:
    metadata = info.metadata or {}
    return Job(info.submission_id, str(info.status.value), info.driver_exit_code, metadata.get("output"), info.message or "")


def _words(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return words[:300] or type(error).__name__


def plain_name(config: str) -> str:
    """Return the name of a config in the form that job ids have."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", Path(config).stem)[:40]


def variable(text: str) -> tuple[str, str]:
    """Return the name and the value of NAME=VALUE.

    Raises:
        PlanError: The text is not of this form, or looks like a secret.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise PlanError([f"--env {name}: not of the form NAME=VALUE"])
    if SECRET.search(name.upper()):
        raise PlanError([f"--env {name}: looks like a secret, and all who reach the dashboard could read it; give it to the nodes"])
    return name, value
