"""Prepares this machine for a Ray that is started here: open files, loopback, the token, and addresses that nobody else reaches.

Ray itself would hang with few open files, write its token for all to read, and listen at the address of the network.
"""

import os
import resource
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ray._private import ray_constants

from promptmill.actors.local_ray.memory_limits import ENOUGH_MEMORY, OBJECT_STORE, MemoryLimit, gib, memory_limit
from promptmill.actors.pool_sizes import ClusterError

ADDRESSES = 8 * 2**30  # bytes of address space without which Ray's processes do not start; most of it is never touched
LEAST_MEMORY = 768 * 2**20  # bytes without which Ray's own processes and the driver do not fit
SHARED = Path("/dev/shm")
OOM_RETRIES = "RAY_task_oom_retries"
FILES = 512  # open files without which Ray's own processes wait for each other for ever
LOOPBACK = "127.0.0.1"
TOKEN = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@contextmanager
def on_loopback() -> Iterator[dict[str, str]]:
    """Have a Ray that is started inside listen on loopback only; yields options of `ray.init`.

    Raises:
        ClusterError: The machine does not let Ray start: one line says what it lacks.
    """
    check_files()
    check_addresses()
    check_memory(memory_limit())
    check_loopback()
    # Where Ray knows clusters, it takes 127.0.0.1 for the address of the network.
    known, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        with _environment({ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0", **token()}):
            yield {"_node_ip_address": LOOPBACK}
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = known


@contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process's environment, which the processes that it starts inherit; afterwards they are as before."""
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def check_files() -> None:
    """Raise ClusterError where this process may open too few files for Ray; Ray raises the soft limit to the hard one by itself."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        raise ClusterError(f"only {hard} files may be open at once, and Ray needs at least {FILES}; raise it with ulimit -n 8192")


def check_addresses() -> None:
    """Raise ClusterError where this process, and so those that it starts, may have too little address space for Ray."""
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY and most < ADDRESSES:
        least, needs = f"{most / 2**30:.1f} GiB", f"{ADDRESSES / 2**30:.0f} GiB"
        remedy = "raise it with ulimit -v unlimited"
        raise ClusterError(f"only {least} of address space may be used, and Ray needs at least {needs}; {remedy}")


def check_memory(limit: MemoryLimit) -> None:
    """Raise ClusterError where less memory is free than Ray's own processes take, let alone a model."""
    free = limit.size - limit.used
    if free < LEAST_MEMORY:
        least = f"only {gib(max(0, free))} of memory is free (limit {limit.text})"
        raise ClusterError(f"{least}, and Ray and a model need {gib(ENOUGH_MEMORY)}; raise the limit, or free some")


def tight(limit: MemoryLimit, shared: Path = SHARED) -> Iterator[str]:
    """Yield a line for each way in which memory is short for a Ray that is started here, though it may do.

    Args:
        limit: Of this process.
        shared: Where Ray keeps what goes between actors, if there is room.
    """
    free = limit.size - limit.used
    if free < ENOUGH_MEMORY:
        few = "set runtime.generators to 1, or give more memory, where it runs out"
        yield f"{gib(max(0, free))} of memory is free (limit {limit.text}), and a small run takes {gib(ENOUGH_MEMORY)}; {few}"
    try:
        place = os.statvfs(shared)
    except OSError:
        return
    room, asked = place.f_frsize * place.f_bavail, int(OBJECT_STORE * max(0, free))
    # As Ray decides it: above this bound it takes what there is.
    if room < min(asked, max(ray_constants.REQUIRE_SHM_SIZE_THRESHOLD, int(0.95 * room))):
        slow = "Ray keeps images on their way in its folder on the disk, which is slow"
        yield f"{shared} has {gib(room)} free of the {gib(asked)} that Ray asks for: {slow}; a container takes --shm-size"


def check_loopback() -> None:
    """Raise ClusterError where this machine's loopback address takes no connection."""
    try:
        with socket.create_server((LOOPBACK, 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ClusterError(f"{LOOPBACK}: {reason}; Ray needs this machine's loopback: ip link set lo up") from None


def token() -> dict[str, str]:
    """See to it that only its owner reads Ray's token; returns what Ray needs in its environment where no file can hold a token."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" or any(os.environ.get(name) for name in TOKEN):
        return {}
    try:
        place = Path.home() / ".ray" / "auth_token"
        _tighten(place)
        if not place.exists():
            _write(place)
    except (OSError, RuntimeError):
        # A home that cannot be written, or none at all: the token lives as long as this run.
        return {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return {}


def _tighten(place: Path) -> None:
    with suppress(FileNotFoundError):
        mode = place.stat().st_mode
        if mode & 0o077:
            place.chmod(mode & 0o700)


def _write(place: Path) -> None:
    place.parent.mkdir(mode=0o700, exist_ok=True)
    scratch = place.with_name(f".{place.name}-{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        with suppress(FileExistsError):  # another run's came first
            os.link(scratch, place)
    finally:
        scratch.unlink(missing_ok=True)
