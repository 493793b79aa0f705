"""What control groups allow, read from folders as Linux, Docker and systemd lay them out."""

import psutil
import pytest

from promptmill.actors.local_ray import surroundings as local_ray
from promptmill.actors.local_ray.memory_limits import RECENT_S, KernelKills, MemoryLimit, memory_limit
from promptmill.actors.pool_sizes import ClusterError

GiB = 2**30


def groups(root, said, files):
    """A root folder in which /proc/self/cgroup says this, and each control group has these files."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(said)
    for name, content in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


V1 = "9:name=systemd:/\n4:memory:/docker/ab\n1:cpu,cpuacct:/docker/ab\n0::/\n"
PLACES = {
    "version 2, in a container": ("0::/\n", {"memory.max": "1073741824\n"}, "memory.max"),
    "version 2, of its own group": (
        "0::/a.slice/b.service\n",
        {"a.slice/b.service/memory.max": "1073741824\n"},
        "a.slice/b.service/memory.max",
    ),
    "version 2, of a parent": (
        "0::/a.slice/b.service\n",
        {"a.slice/b.service/memory.max": "max\n", "a.slice/memory.max": "1073741824\n", "memory.max": "2147483648\n"},
        "a.slice/memory.max",
    ),
    "version 2, seen from a namespace outside": ("0::/../x\n", {"memory.max": "1073741824\n"}, "memory.max"),
    "version 1, of its own group": (
        V1,
        {"memory/docker/ab/memory.limit_in_bytes": "1073741824\n", "memory/memory.limit_in_bytes": "9223372036854771712\n"},
        "memory/docker/ab/memory.limit_in_bytes",
    ),
    "version 1, in a container": (V1, {"memory/memory.limit_in_bytes": "1073741824\n"}, "memory/memory.limit_in_bytes"),
}


@pytest.mark.parametrize("name", PLACES)
def test_the_smallest_limit_around_this_process_is_found_and_named(tmp_path, name):
    said, files, place = PLACES[name]
    found = memory_limit(groups(tmp_path, said, files))
    assert (found.size, found.place) == (GiB, f"/sys/fs/cgroup/{place}")
    assert found.place in found.text and "1.0 GiB" in found.text


@pytest.mark.parametrize("content", ["max\n", "", "-1\n", "9223372036854771712\n", "two\n"])
def test_no_limit_is_the_machines_memory(tmp_path, content):
    found = memory_limit(groups(tmp_path, "0::/\n", {"memory.max": content}))
    assert (found.size, found.place) == (psutil.virtual_memory().total, "")
    assert memory_limit(tmp_path / "none").size == found.size


def test_what_the_kernel_can_drop_is_not_in_use(tmp_path):
    files = {"memory.max": str(GiB), "memory.current": "900", "memory.stat": "anon 300\ninactive_file 400\nactive_file 200\n"}
    assert memory_limit(groups(tmp_path / "2", "0::/\n", files)).used == 300
    stat = "cache 7\ninactive_file 1\ntotal_inactive_file 400\ntotal_active_file 200\n"
    files = {"memory.limit_in_bytes": str(GiB), "memory.usage_in_bytes": "900", "memory.stat": stat}
    assert memory_limit(groups(tmp_path / "1", V1, {f"memory/{name}": said for name, said in files.items()})).used == 300


@pytest.mark.parametrize(
    ("said", "name", "content"),
    [
        ("0::/x\n", "x/memory.events", "low 0\noom 9\noom_kill {}\noom_group_kill 7\n"),
        (V1, "memory/docker/ab/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"),
        ("", "../../../proc/vmstat", "nr_free_pages 9\noom_kill {}\n"),
    ],
)
def test_a_kill_of_the_kernel_is_known_for_some_seconds(tmp_path, said, name, content):
    now = [0.0]
    root = groups(tmp_path, said, {"seen": "", name: content.format(3)})
    kills = KernelKills(root, lambda: now[0])
    assert not kills.recent()
    (root / "sys/fs/cgroup" / name).write_text(content.format(4))
    assert kills.recent()
    now[0] = RECENT_S - 1
    assert kills.recent()
    now[0] = RECENT_S
    assert not kills.recent()


def test_ray_is_not_started_in_less_memory_than_it_takes():
    local_ray.check_memory(MemoryLimit(local_ray.LEAST_MEMORY, 0))
    with pytest.raises(ClusterError, match=r"^only 200 MiB of memory is free \(limit 1\.0 GiB by /x\)") as raised:
        local_ray.check_memory(MemoryLimit(GiB, GiB - 200 * 2**20, "/x"))
    assert "\n" not in str(raised.value)


def test_little_memory_is_a_line_before_the_start(tmp_path):
    enough = local_ray.ENOUGH_MEMORY
    assert not any("/x" in line for line in local_ray.tight(MemoryLimit(enough, 0, "/x"), tmp_path))
    (line,) = [line for line in local_ray.tight(MemoryLimit(enough, 1, "/x"), tmp_path) if "/x" in line]
    assert "runtime.generators" in line and "\n" not in line


def test_shared_memory_is_held_against_what_ray_asks_for(tmp_path, monkeypatch):
    class Place:
        f_frsize, f_bavail = 2**20, 64

    monkeypatch.setattr(local_ray.os, "statvfs", lambda path: Place)
    asked = int(64 * 2**20 / local_ray.OBJECT_STORE)
    (line,) = local_ray.tight(MemoryLimit(20 * GiB, 0), tmp_path)
    assert "64 MiB free of the 6.0 GiB" in line and "--shm-size" in line
    assert not [line for line in local_ray.tight(MemoryLimit(asked, 0), tmp_path) if "--shm-size" in line]
    Place.f_bavail = 20_000
    # Of a machine with much memory Ray takes no more than is there.
    assert not [*local_ray.tight(MemoryLimit(2000 * GiB, 0), tmp_path)]
