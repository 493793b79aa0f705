"""A cluster's Jobs API as a person at another machine needs it: submit, look, follow, stop. One line for whatever is wrong."""

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
STOP_WAIT_S = 3600  # what is in flight may take its time after a stop; Ray's own 3 s would kill it
STARTING_S = 60  # that a cluster may take to accept jobs after it answers
LOOK_AGAIN_S = 0.5
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Job:
    """A job as its cluster knows it.

    Attributes:
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        exit: Of the driver; None while it runs, or where it was killed. Ray takes 3, done but some rows failed, for a failure.
        output: The dataset's URI.
        message: What Ray says of it.
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
    """A connection to the Jobs API of one cluster.

    Args:
        address: Of its dashboard, http://HOST:8265 or HOST:8265, or https://HOST/… of a proxy before it.

    Raises:
        ClusterError: Nothing answers there, it is no Ray, of another version, refuses the token, is open to anybody, or has a
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
            # Read once, by whoever imports Ray first.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            os.environ.pop(name, None)  # they would silently take the place of the address
        with self._one_line():
            from ray.job_submission import JobSubmissionClient

            for name in (
                "ray.dashboard.modules.dashboard_sdk",
                "ray.dashboard.modules.job.sdk",
                "ray._private.runtime_env.packaging",
            ):
                logging.getLogger(name).setLevel(logging.ERROR)  # each file above 10 MB is a warning
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
        """Ship and start a run; returns the job's id.

        Args:
            config: Resolved.
            output: Where the dataset goes: a URI, or a path that all nodes have.
            name: Begins the id.
            options: Of `promptmill run`.
            variables: Of the job's environment, on all nodes; whoever reaches the dashboard can read them.
            install: Have each node install what requirements.lock pins.
            say: Told of each file that a row names and that is not shipped.

        Raises:
            PlanError: Something it needs would not be there.
            ClusterError: The cluster does not take it.
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
        """What the cluster knows of a job.

        Raises:
            ClusterError: There is none.
        """
        with self._one_line():
            return _job(self._client.get_job_info(id))

    def jobs(self) -> list[Job]:
        """All jobs that promptmill submitted, the oldest first."""
        with self._one_line():
            found = [
                info for info in self._client.list_jobs() if info.submission_id and "promptmill.jobs.cli.landing" in info.entrypoint
            ]
        return [_job(info) for info in sorted(found, key=lambda info: info.start_time or 0)]

    def stop(self, id: str) -> None:
        """Have a job finish what is in flight, and stop."""
        with self._one_line():
            self._client.stop_job(id)

    def logs(self, id: str) -> str:
        """All that a job has said so far."""
        with self._one_line():
            return self._client.get_job_logs(id)

    async def lines(self, id: str) -> AsyncIterator[str]:
        """What a job says, from its beginning, line by line, until it ends."""
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
    """The file or folder of the authorities whose certificates are trusted; Ray's client, left alone, has another for logs."""
    from requests import certs

    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or certs.where()


def _trusting(authorities: str) -> ssl.SSLContext:
    try:
        file, folder = (None, authorities) if Path(authorities).is_dir() else (authorities, None)
        return ssl.create_default_context(cafile=file, capath=folder)
    except OSError as error:
        raise ClusterError(f"REQUESTS_CA_BUNDLE: {authorities}: {error.strerror or error}") from None


def _check_open(address: str, host: str, port: int, guarded: bool) -> None:
    """Raise ClusterError for a dashboard that anybody on the network can run code through."""
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
    """Return the name of a config as it goes into an id."""
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
