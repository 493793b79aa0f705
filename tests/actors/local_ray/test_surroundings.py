import json
import os
import resource
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from promptmill.actors.local_ray import surroundings
from promptmill.actors.pool_sizes import ClusterError

PROMPT = "a small red circle at the left on a black background"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of one's own, whose token no variable of the environment takes the place of."""
    for name in ("RAY_AUTH_MODE", *surroundings.TOKEN):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_there_before_ray_starts_and_only_its_owner_reads_it(home):
    before = os.umask(0)
    try:
        assert surroundings.token() == {}
    finally:
        os.umask(before)
    token = home / ".ray" / "auth_token"
    assert mode(token) == 0o600 and mode(token.parent) == 0o700
    assert len(token.read_text()) == 64
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]


def test_a_token_that_others_may_read_is_tightened_and_stays_what_it_is(home):
    (home / ".ray").mkdir()
    token = home / ".ray" / "auth_token"
    token.write_text("already here")
    token.chmod(0o644)
    assert surroundings.token() == {}
    assert (mode(token), token.read_text()) == (0o600, "already here")


def test_where_no_file_can_hold_a_token_it_is_given_to_this_run_alone(home, monkeypatch):
    for place in ("/dev/null/x", str(home / "nowhere" / "at all")):
        monkeypatch.setenv("HOME", place)
        given = surroundings.token()
        assert len(given.pop("RAY_AUTH_TOKEN")) == 64 and not given
    with surroundings.on_loopback() as options:
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64 and options == {"_node_ip_address": "127.0.0.1"}
    assert "RAY_AUTH_TOKEN" not in os.environ


@pytest.mark.parametrize(("name", "value"), [("RAY_AUTH_TOKEN", "x"), ("RAY_AUTH_TOKEN_PATH", "/x"), ("RAY_AUTH_MODE", "disabled")])
def test_a_token_that_a_person_has_seen_to_is_left_alone(home, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert surroundings.token() == {}
    assert not (home / ".ray").exists()


def run(tmp_path, prefix=(), **options):
    """A run of the command that should end before it starts anything."""
    (tmp_path / "p.txt").write_text(PROMPT + "\n")
    settings = ["--set", "manifest=p.txt", "--set", "defaults.candidates=1", "--out", str(tmp_path / "out")]
    command = [*prefix, str(Path(sys.executable).with_name("promptmill")), "run", "embedded", *settings]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, **options)


def test_a_run_with_few_open_files_ends_with_one_line(tmp_path):
    done = run(tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("only 64 files may be open at once") and "ulimit -n" in line


def test_a_run_with_little_address_space_ends_with_one_line(tmp_path):
    done = run(tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 * 10**9, 4 * 10**9)))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("only 3.7 GiB of address space") and "ulimit -v" in line


def test_a_run_without_loopback_ends_with_one_line(tmp_path):
    done = run(tmp_path, ("unshare", "-rn"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("127.0.0.1: ") and "ip link set lo up" in line


LIMITED = """
mount -t tmpfs tmpfs /sys/fs/cgroup
echo {limit} >/sys/fs/cgroup/memory.max
echo 50000000 >/sys/fs/cgroup/memory.current
printf 'anon 50000000\\ninactive_file 0\\nactive_file 0\\n' >/sys/fs/cgroup/memory.stat
mount -t tmpfs -o size=64m tmpfs /dev/shm
exec "$@"
"""


def limited(limit):
    """What puts a command where control groups say that this much memory is its limit, and shared memory is what Docker gives."""
    return ("unshare", "-rm", "bash", "-ec", LIMITED.format(limit=limit), "limited")


def test_a_run_with_little_memory_ends_with_one_line(tmp_path):
    done = run(tmp_path, limited(600_000_000))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert (
        line.startswith("only 525 MiB of memory is free (limit 572 MiB by /sys/fs/cgroup/memory.max)") and "raise the limit" in line
    )


def test_what_is_tight_is_said_before_the_start_and_memory_that_ray_ends_processes_for_at_the_end(tmp_path):
    # Ray reads what is in use from the same files: at a threshold of next to nothing it ends every worker.
    tiny = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "100"}
    done = run(tmp_path, limited(3 * 2**30), env={**os.environ, **tiny})
    assert done.returncode == 1
    memory, shared, end = done.stderr.splitlines()
    assert "limit 3.0 GiB by /sys/fs/cgroup/memory.max" in memory and "a small run takes" in memory
    assert shared.startswith("/dev/shm has 64 MiB free of the ") and "--shm-size" in shared
    assert end.startswith("out of memory: Ray has ended a process of this run, since 0.0") and "of 3.00 GB were in use" in end
    assert "it allows 0.1%" in end and "runtime.generators" in end


def test_enough_open_files_are_enough(monkeypatch):
    for hard in (surroundings.FILES, resource.RLIM_INFINITY):
        monkeypatch.setattr(resource, "getrlimit", lambda what, hard=hard: (64, hard))
        surroundings.check_files()
    monkeypatch.setattr(resource, "getrlimit", lambda what: (64, surroundings.FILES - 1))
    with pytest.raises(ClusterError):
        surroundings.check_files()


LISTENING = """
import json, os, psutil
from promptmill.actors.local_ray.cluster import cluster
import ray

with cluster(None, metrics_port={port}):
    mine = psutil.Process()
    found = set()
    for process in (mine, *mine.children(recursive=True)):
        found |= {{(c.laddr.ip, c.laddr.port) for c in process.net_connections("inet") if c.status == "LISTEN"}}
    print(json.dumps([ray.nodes()[0]["NodeManagerAddress"], sorted(found)]))
"""


def test_a_ray_that_is_started_here_listens_on_loopback_only(home):
    """The token is made with it, by Ray or by us, for its owner alone."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    before = os.umask(0o022)
    try:
        done = subprocess.run(
            [sys.executable, "-c", LISTENING.format(port=port)], cwd=home, capture_output=True, text=True, timeout=200
        )
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    node, found = json.loads(done.stdout.splitlines()[-1])
    assert node == "127.0.0.1"
    assert ["127.0.0.1", port] in found
    assert {address.removeprefix("::ffff:") for address, _ in found} == {"127.0.0.1"}
    assert mode(home / ".ray" / "auth_token") == 0o600
