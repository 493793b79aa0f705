"""What this machine has, and what of it would get in the way of a run. Starts nothing, joins nothing, fetches nothing."""

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil  # type: ignore[import-untyped]  # accelerate brings it

from promptmill.actors.local_ray.memory_limits import ENOUGH_MEMORY, OBJECT_STORE, memory_limit
from promptmill.configs.own_files import LOCK, pins
from promptmill.embedded import weights
from promptmill.jobs.clusters.dashboards import Dashboard, clusters, dashboards
from promptmill.jobs.showing.summary import size

LIBRARIES = ("torch", "diffusers", "transformers", "open_clip_torch", "ray")
PYTHONS = ((3, 11), (3, 13))  # the first and the last that it is made for

GB = 10**9
LITTLE_DISK = 5 * GB

Level = Literal["ok", "note", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line about this machine.

    Attributes:
        level: `ok`; `note`: as it may be, but worth knowing; `warn`: will bite some runs; `fail`: nothing runs, or it is not safe.
        subject: A word or two.
        text: What was found, and what would do where that is not well.
    """

    level: Level
    subject: str
    text: str


def doctor() -> list[Finding]:
    """Look at everything."""
    environment = dict(os.environ)
    return [
        python(platform.python_version()),
        *libraries(LOCK),
        *graphics(),
        *processor(environment),
        *memory(),
        *disks(environment),
        *hub(),
        embedded_family(),
        *ray_here(environment, clusters()),
        authentication(environment, Path.home()),
        *reachable(dashboards()),
    ]


def python(running: str) -> Finding:
    """Whether this Python is one of those that promptmill is made for."""
    found = f"{running} on {platform.system()} {platform.machine()}"
    low, high = (".".join(map(str, v)) for v in PYTHONS)
    if not PYTHONS[0] <= tuple(map(int, running.split(".")[:2])) <= PYTHONS[1]:
        return Finding("fail", "python", f"{found}; promptmill needs {low} to {high}")
    return Finding("ok", "python", found)


def libraries(lock: Path) -> Iterator[Finding]:
    """What is installed of the libraries that matter most, against what requirements.lock pins."""
    pinned = versions(lock.read_text()) if lock.is_file() else {}
    for name in LIBRARIES:
        wanted = pinned.get(_normal(name))
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding("fail", name, "not installed; run bin/setup")
            continue
        if wanted is None:
            yield Finding("note", name, f"{found}; no {lock.name} pins it, so nothing says that this version was tested")
        elif _public(found) != _public(wanted):
            yield Finding("note", name, f"{found}, tested with {wanted}; another version may make other bytes")
        else:
            yield Finding("ok", name, f"{found}, as pinned")


def versions(lock: str) -> dict[str, str]:
    """Return the version that a lock file pins of each library, by its normalised name."""
    return {_normal(name): pin.strip() for name, equals, pin in (line.partition("==") for line in pins(lock)) if equals}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _public(number: str) -> str:
    """A version without what says how it was built, such as +cu130."""
    return number.split("+")[0]


def graphics() -> Iterator[Finding]:
    """The GPUs that torch can use; where it uses none although the driver knows some, why."""
    from promptmill.pipelines.rendering.gpus import cuda_build, driver_version, gpus

    found, driver = gpus(), driver_version()
    for number, gpu in enumerate(found):
        text = f"{gpu.name}, compute {gpu.capability}, {size(gpu.memory)}, {size(gpu.free)} of it free"
        yield Finding("ok", f"gpu {number}", f"{text}, driver {driver or 'unknown'}, CUDA {cuda_build()}")
    if not found and driver:
        built = f"built for CUDA {cuda_build()}" if cuda_build() else "built without CUDA"
        yield Finding("warn", "gpu", f"there is a driver, {driver}, but torch ({built}) can use no GPU: all runs on the CPU")
    elif not found:
        yield Finding("note", "gpu", "none; the embedded family runs well on a CPU, Stable Diffusion takes minutes an image")


def processor(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Cores, and what limits the threads that use them."""
    everything, mine = os.cpu_count() or 1, _usable_cores()
    yield Finding("ok", "cpu", f"{everything} cores" + ("" if mine == everything else f", {mine} of them for this process"))
    threads = environment.get("OMP_NUM_THREADS")
    if threads:
        yield Finding("note", "threads", f"OMP_NUM_THREADS={threads}; generators go by the config's model.threads instead")


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> Iterator[Finding]:
    """Memory, and the part of it that Ray shares between processes."""
    limit = memory_limit()
    whole, available = limit.size, min(max(0, limit.size - limit.used), psutil.virtual_memory().available)
    text = f"{size(whole)}, {size(available)} of it available" + (f", by the limit in {limit.place}" if limit.place else "")
    short = available < ENOUGH_MEMORY
    yield Finding("warn" if short else "ok", "memory", text + ("; a run of the embedded family takes about 3 GB" if short else ""))
    if Path("/dev/shm").is_dir():
        yield object_store(shutil.disk_usage("/dev/shm").total, whole)


def object_store(shared: int, whole: int) -> Finding:
    """Whether Ray's object store fits into shared memory; all in bytes."""
    if shared < OBJECT_STORE * whole:
        text = f"/dev/shm has {size(shared)} of the {size(OBJECT_STORE * whole)} that Ray takes"
        return Finding("warn", "object store", f"{text}: it will keep objects on disk, which is slow; a container takes --shm-size")
    return Finding("ok", "object store", f"{size(OBJECT_STORE * whole)} of /dev/shm's {size(shared)} at most")


def disks(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Room where Ray writes its sessions and where datasets go unless told otherwise."""
    ray = Path(environment.get("RAY_TMPDIR", tempfile.gettempdir()))
    sessions = sum(1 for path in (ray / "ray").glob("session_*") if path.is_dir() and not path.is_symlink())
    kept = f"; {sessions} sessions of Ray, kept for their logs, are in {ray / 'ray'}" if sessions else ""
    for subject, folder, more in (("disk for Ray", ray, kept), ("disk here", Path.cwd(), "")):
        free = shutil.disk_usage(folder).free
        yield Finding("warn" if free < LITTLE_DISK else "ok", subject, f"{size(free)} free in {folder}{more}")


def hub() -> Iterator[Finding]:
    """Where downloaded models are kept, and whether more can be."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    models = sum(1 for _ in cache.glob("models--*"))
    there = f"{models} models, {size(folder_size(cache))}" if models else "no models"
    yield Finding("ok", "model cache", f"{there} in {cache}")
    if constants.HF_HUB_OFFLINE:
        yield Finding("note", "hub", "HF_HUB_OFFLINE is set: only models in the cache or in folders can be loaded")


def folder_size(folder: Path) -> int:
    """Bytes of the files below a folder; links are not followed, so that what they share counts once."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(path) / name).lstat().st_size
            except OSError:  # gone since, or not ours to see
                continue
    return total


def embedded_family(folder: Path = weights.WEIGHTS) -> Finding:
    """Whether the weights that come with promptmill are whole."""
    try:
        weights.check(folder)
    except weights.WeightsError as error:
        return Finding("fail", "embedded family", str(error))
    return Finding("ok", "embedded family", f"whole, {size(folder_size(folder))}")


def ray_here(environment: Mapping[str, str], running: list[str]) -> Iterator[Finding]:
    """The clusters that a run could join."""
    address = environment.get("RAY_ADDRESS")
    if address:
        text = f"RAY_ADDRESS={address}; a run starts a cluster of its own all the same, unless runtime.address names this one"
        yield Finding("note", "RAY_ADDRESS", text)
    for cluster in running:
        text = f"{cluster} has a node here; a run shares its cores with it, and joins it only by runtime.address"
        yield Finding("note", "ray cluster", text)
    if not running:
        yield Finding("ok", "ray cluster", "none runs here; a run starts one for itself")


def authentication(environment: Mapping[str, str], home: Path) -> Finding:
    """What RAY_AUTH_MODE, as it is set now, means for starting a cluster and for joining one. Tokens are looked for, never read."""
    mode = environment.get("RAY_AUTH_MODE")
    token = _token_place(environment, home)
    if mode is None:
        held = f"the token in {token}" if token else "a token that it makes"
        starts = f"a cluster that a run starts asks for {held}"
        joins = "to join another cluster that asks for one, set RAY_AUTH_MODE=token"
        return Finding("ok", "RAY_AUTH_MODE", f"not set: {starts}; {joins}")
    if mode.lower() != "token":
        text = f"{mode}: clusters started here ask for no token, and whoever reaches their ports can run code on them; unset it"
        return Finding("warn", "RAY_AUTH_MODE", text)
    if token is None:
        remedy = "a run here makes one; to join a cluster, put its token there or name it by RAY_AUTH_TOKEN_PATH"
        return Finding("note", "RAY_AUTH_MODE", f"token, but there is none in {home / '.ray' / 'auth_token'}: {remedy}")
    return Finding("ok", "RAY_AUTH_MODE", f"token: clusters are started and joined with the one in {token}")


def _token_place(environment: Mapping[str, str], home: Path) -> str | None:
    """Where Ray finds a token, in the order in which it looks."""
    if environment.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    path = environment.get("RAY_AUTH_TOKEN_PATH")
    places = [Path(path)] if path else [home / ".ray" / "auth_token"]
    return next((str(place) for place in places if place.is_file()), None)


def reachable(found: list[Dashboard]) -> Iterator[Finding]:
    """Whether dashboards that run here can be reached from elsewhere without a token."""
    for dashboard in found:
        if dashboard.tokens:
            yield Finding("ok", "ray dashboard", f"{dashboard.address} asks for a token")
        elif dashboard.loopback:
            text = "asks for no token; only this machine reaches it, but every user of it does"
            yield Finding("note", "ray dashboard", f"{dashboard.address} {text}")
        else:
            danger = "can be reached from elsewhere and asks for no token, so that anyone there can run any code here"
            remedy = "start it with RAY_AUTH_MODE=token, or with --dashboard-host 127.0.0.1"
            yield Finding("fail", "ray dashboard", f"{dashboard.address} {danger}; {remedy}")
