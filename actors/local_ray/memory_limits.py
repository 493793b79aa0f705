"""Reads how much memory this process and those that it starts may use, and whether the kernel has ended one of them for it.

A container's or a service's limit is that of a control group (cgroup, version 1 or 2). It holds for all groups inside, so the
smallest limit of a process's own group and the groups around it is what counts. Ray reads the outermost of them only.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil  # type: ignore[import-untyped]  # accelerate brings it

ROOT = Path("/")
OBJECT_STORE = 0.3  # of the free memory: what Ray takes for images on their way between actors
ENOUGH_MEMORY = 4 * 10**9  # bytes of a run of the embedded family, which takes 3.2 GB on two cores, measured
RECENT_S = 10.0  # within which a process ends that the kernel has killed
MEMORY = "out of memory"
REMEDY = "set runtime.generators or model.batch lower, or give more memory"


@dataclass(frozen=True)
class MemoryLimit:
    """The memory that this process and its children may use together.

    Attributes:
        size: In bytes.
        used: Of them in use now, without what the kernel can drop from its cache of files.
        place: The file that the limit stands in; empty where it is the machine's own memory.
    """

    size: int
    used: int
    place: str = ""

    @property
    def text(self) -> str:
        """The limit in words, as `2.0 GiB by /sys/fs/cgroup/memory.max`."""
        return f"{gib(self.size)} by {self.place}" if self.place else f"{gib(self.size)}, all that this machine has"


def gib(size: int) -> str:
    """Write a number of bytes as GiB, or as MiB where it is less than one."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def memory_limit(root: Path = ROOT) -> MemoryLimit:
    """Return the smallest limit of this process's control groups, or the machine's memory where that is smaller.

    Args:
        root: The folder that `proc` and `sys` are in.
    """
    machine = psutil.virtual_memory()
    least = MemoryLimit(machine.total, machine.total - machine.available)
    for group in _groups(root):
        limit = _number(group / "memory.max", group / "memory.limit_in_bytes")
        if limit is not None and limit < least.size:
            file = "memory.max" if (group / "memory.max").exists() else "memory.limit_in_bytes"
            least = MemoryLimit(limit, _used(group), f"/{(group / file).relative_to(root).as_posix()}")
    return least


class KernelKills:
    """Tells whether the kernel has just ended a process of this process's control groups because memory ran out.

    Where no group counts such ends, those of the whole machine count.

    Args:
        root: As `memory_limit` has it.
        clock: Seconds.
    """

    def __init__(self, root: Path = ROOT, clock: Callable[[], float] = time.monotonic):
        self._root, self._clock = root, clock
        self._seen, self._rose = self._count(), -RECENT_S

    def recent(self) -> bool:
        """Return whether the count has risen within the last RECENT_S seconds, or since the last look."""
        count = self._count()
        if count > self._seen:
            self._seen, self._rose = count, self._clock()
        return self._clock() - self._rose < RECENT_S

    def _count(self) -> int:
        counters = [group / name for group in _groups(self._root) for name in ("memory.events", "memory.oom_control")]
        found = [number for counter in counters if (number := _named(counter, "oom_kill")) is not None]
        # That of a group includes those inside of it, in version 2.
        return max(found) if found else _named(self._root / "proc/vmstat", "oom_kill") or 0


def _groups(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's memory groups that can be seen here, of each version, the innermost first."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    tops = {root / "sys/fs/cgroup": "", root / "sys/fs/cgroup/memory": ""}
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            tops[root / "sys/fs/cgroup"] = path
        elif "memory" in controllers.split(","):
            tops[root / "sys/fs/cgroup/memory"] = path
    for top, path in tops.items():
        # Of a container that does not see its own group by its name, the top is that group.
        inner = [part for part in PurePosixPath(path).parts if part != "/"]
        for depth in range(len(inner), -1, -1):
            group = top.joinpath(*inner[:depth])
            if ".." not in inner and group.is_dir():
                yield group
        if ".." in inner and top.is_dir():
            yield top


def _used(group: Path) -> int:
    used = _number(group / "memory.current", group / "memory.usage_in_bytes") or 0
    whole = "" if (group / "memory.current").exists() else "total_"  # version 1 counts the groups inside apart
    names = (f"{whole}inactive_file", f"{whole}active_file")
    return max(0, used - sum(_named(group / "memory.stat", name) or 0 for name in names))


def _number(*files: Path) -> int | None:
    """Return the number in the first of some files that there is; None where there is none, or no limit."""
    for file in files:
        try:
            said = file.read_text().strip()
        except (OSError, ValueError):
            continue
        return int(said) if said.isascii() and said.isdecimal() else None
    return None


def _named(file: Path, name: str) -> int | None:
    """Return the number behind a name in a file of lines, each a name and a number."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except (OSError, ValueError):
        return None
    found = [line[1] for line in lines if len(line) == 2 and line[0] == name]
    return int(found[0]) if found and found[0].isascii() and found[0].isdecimal() else None
