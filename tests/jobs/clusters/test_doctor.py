import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from promptmill.actors.local_ray.memory_limits import MemoryLimit
from promptmill.jobs.clusters import doctor
from promptmill.jobs.clusters.dashboards import Dashboard, asks_for_token, dashboards, is_loopback
from promptmill.jobs.clusters.doctor import (
    GB,
    Finding,
    authentication,
    embedded_family,
    libraries,
    object_store,
    python,
    ray_here,
    reachable,
    versions,
)
from promptmill.pipelines.rendering import gpus
from promptmill.pipelines.rendering.gpus import Gpu

# A process as Ray's dashboard looks from outside: its path, its flags, and what it answers.
STAND_IN = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status, body = int(sys.argv[3]), sys.argv[4].encode()
        self.send_response(status); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *args): pass
host, port = (flag.partition("=")[2] for flag in sys.argv[1:3])
http.server.ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
"""
TOKEN, DISABLED = '{"authentication_mode": "token"}', '{"authentication_mode": "disabled"}'


@contextmanager
def listening(folder, host, status, body):
    """A stand-in for a dashboard; gives its port."""
    script = folder / "ray" / "dashboard" / "dashboard.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(STAND_IN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-I", script, f"--host={host}", f"--port={port}", str(status), body])
    try:
        for _ in range(200):
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def levels(findings):
    return [finding.level for finding in findings]


@pytest.mark.parametrize(
    ("host", "status", "body", "tokens", "level"),
    [
        ("127.0.0.1", 200, TOKEN, True, "ok"),
        ("127.0.0.1", 200, DISABLED, False, "note"),
        ("0.0.0.0", 200, TOKEN, True, "ok"),
        ("0.0.0.0", 200, DISABLED, False, "fail"),
        ("0.0.0.0", 404, "", False, "fail"),
    ],
)
def test_a_dashboard_is_flagged_where_others_reach_it_without_a_token(tmp_path, host, status, body, tokens, level):
    with listening(tmp_path, host, status, body) as port:
        found = [dashboard for dashboard in dashboards() if dashboard.port == port]
    assert found == [Dashboard(host, port, tokens)]
    assert levels(reachable(found)) == [level]


@pytest.mark.parametrize(("status", "body"), [(200, "# HELP python_gc Prometheus"), (200, "[]"), (200, "{}"), (500, "broken")])
def test_another_port_of_the_process_is_no_dashboard(tmp_path, status, body):
    with listening(tmp_path, "0.0.0.0", status, body) as port:
        assert port not in {dashboard.port for dashboard in dashboards()}
    assert asks_for_token("127.0.0.1", port) is None  # nothing answers any more


@pytest.mark.parametrize(
    ("host", "only_here"),
    [(host, True) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost")]
    + [(host, False) for host in ("0.0.0.0", "::", "192.0.2.7", "some-host")],
)
def test_loopback_is_what_only_this_machine_reaches(host, only_here):
    assert is_loopback(host) == only_here


def test_this_machine_can_run_the_project():
    """All of it, as it stands: the environment is the lock's, the weights are whole."""
    found = doctor.doctor()
    assert [f for f in found if f.level == "fail" and f.subject != "ray dashboard"] == []
    assert all(f.text and "\n" not in f.text and len(f.subject) < 20 for f in found)
    assert {"python", "torch", "ray", "cpu", "memory", "disk for Ray", "model cache", "embedded family", "RAY_AUTH_MODE"} <= {
        f.subject for f in found
    }


@pytest.mark.parametrize(
    ("version", "level"), [("3.10.14", "fail"), ("3.11.0", "ok"), ("3.13.9", "ok"), ("3.14.0", "fail"), ("4.0.0", "fail")]
)
def test_only_pythons_of_the_stated_range_will_do(version, level):
    assert python(version).level == level


def test_versions_are_compared_with_the_lock(tmp_path, monkeypatch):
    installed = {"torch": "2.0.1+cpu", "diffusers": "0.9", "transformers": "5.0", "open_clip_torch": "3.0"}

    def version(name):
        if name not in installed:
            raise doctor.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(doctor, "version", version)
    lock = tmp_path / "requirements.lock"
    lock.write_text("# pinned\ntorch==2.0.1\nDiffusers==0.8 ; python_version > '3'\nopen-clip.torch==3.0  # note\n")
    found = {finding.subject: finding for finding in libraries(lock)}
    assert [found[name].level for name in doctor.LIBRARIES] == ["ok", "note", "note", "ok", "fail"]
    assert "tested with 0.8" in found["diffusers"].text and "bin/setup" in found["ray"].text
    assert levels(libraries(tmp_path / "none")) == ["note"] * 4 + ["fail"]


def test_every_library_that_is_looked_at_is_pinned():
    pinned = versions(doctor.LOCK.read_text())
    assert all(name.replace("_", "-") in pinned for name in doctor.LIBRARIES)


def test_gpus_are_named_with_memory_and_driver(monkeypatch):
    monkeypatch.setattr(gpus, "gpus", lambda: [Gpu("Card", "9.0", 80 * GB, 70 * GB)] * 2)
    monkeypatch.setattr(gpus, "driver_version", lambda: "570.1")
    found = list(doctor.graphics())
    assert [(f.level, f.subject) for f in found] == [("ok", "gpu 0"), ("ok", "gpu 1")]
    assert all(words in found[0].text for words in ("Card", "9.0", "80.0 GB", "70.0 GB", "570.1"))


@pytest.mark.parametrize(("driver", "level"), [("570.1", "warn"), (None, "note")])
def test_a_driver_without_a_usable_gpu_is_worth_a_warning(monkeypatch, driver, level):
    monkeypatch.setattr(gpus, "gpus", list)
    monkeypatch.setattr(gpus, "driver_version", lambda: driver)
    assert levels(doctor.graphics()) == [level]


@pytest.mark.parametrize(("said", "version"), [(b"570.86.15", "570.86.15"), (None, None)])
def test_the_drivers_version_is_its_own_librarys_which_may_fail(monkeypatch, said, version):
    class Library:
        def nvmlInit_v2(self):  # noqa: N802 (NVIDIA's name)
            return 0

        def nvmlSystemGetDriverVersion(self, buffer, size):  # noqa: N802
            buffer.value = said or b""
            return 0 if said else 999

    monkeypatch.setattr(gpus.ctypes, "CDLL", lambda name: Library())
    assert gpus.driver_version() == version


def test_without_the_drivers_library_there_is_no_version(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(gpus.ctypes, "CDLL", missing)
    assert gpus.driver_version() is None


def test_the_limit_of_a_control_group_is_named_with_its_file(monkeypatch):
    monkeypatch.setattr(doctor, "memory_limit", lambda: MemoryLimit(2 * GB, GB, "/sys/fs/cgroup/a.slice/memory.max"))
    found = next(doctor.memory())
    assert found.level == "warn"
    assert "2.0 GB, 1.0 GB of it available, by the limit in /sys/fs/cgroup/a.slice/memory.max" in found.text


def test_little_shared_memory_is_worth_a_warning():
    assert object_store(64 * 2**20, 16 * GB).level == "warn"
    assert object_store(8 * GB, 16 * GB).level == "ok"


def test_damaged_weights_fail(tmp_path):
    assert embedded_family(tmp_path).level == "fail"


def test_links_do_not_count_twice(tmp_path):
    (tmp_path / "blob").write_bytes(bytes(100_000))
    (tmp_path / "link").symlink_to("blob")
    assert 100_000 <= doctor.folder_size(tmp_path) < 101_000
    assert doctor.folder_size(tmp_path / "none") == 0


def test_clusters_that_could_be_meant_are_named():
    assert list(ray_here({}, [])) == [Finding("ok", "ray cluster", "none runs here; a run starts one for itself")]
    found = list(ray_here({"RAY_ADDRESS": "host:1"}, ["192.0.2.1:6379"]))
    assert levels(found) == ["note", "note"] and "host:1" in found[0].text and "192.0.2.1:6379" in found[1].text


def test_authentication_is_explained_and_no_token_is_shown(tmp_path):
    (tmp_path / "with" / ".ray").mkdir(parents=True)
    (tmp_path / "with" / ".ray" / "auth_token").write_text("s3cret")
    (tmp_path / "without").mkdir()
    cases = [
        ({}, "with", "ok"),
        ({}, "without", "ok"),
        ({"RAY_AUTH_MODE": "token"}, "with", "ok"),
        ({"RAY_AUTH_MODE": "TOKEN"}, "without", "note"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "s3cret"}, "without", "ok"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "gone")}, "with", "note"),
        ({"RAY_AUTH_MODE": "disabled"}, "with", "warn"),
    ]
    for environment, home, level in cases:
        found = authentication(environment, tmp_path / home)
        assert found.level == level, environment
        assert "s3cret" not in found.text
