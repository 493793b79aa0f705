"""Runs submitted to a real cluster of two nodes with token authentication."""

import http.server
import json
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.chaos.site import published
from tests.clusters.nodes import nodes, promptmill, started

FEW = ("--set", "defaults.steps=2", "--set", "defaults.candidates=2", "--set", "model.batch=8")
PROMPTS = [f"a large {color} circle at the {place} on a white background" for color in ("red", "blue") for place in ("left", "top")]


# Gives commands in one process, one after another: what takes long is that a process imports Ray.
EACH = """
import contextlib, io, json, sys
from promptmill.jobs.cli import main
answers = []
for arguments in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main(arguments)
        except SystemExit as ended:
            answers.append((ended.code, said.getvalue()))
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with nodes(tmp_path_factory.mktemp("nodes")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a manifest and an image beside it, and what a run on this machine makes of it."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "images").mkdir()
    root = Path(__file__).parents[2]
    init = root / "configs" / "presets" / "quickstart" / "images" / "img2img-01-init.png"
    (folder / "images" / "init.png").write_bytes(init.read_bytes())
    rows = [{"prompt": prompt} for prompt in PROMPTS] + [{"prompt": PROMPTS[0], "init_image": "images/init.png", "strength": 0.6}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ("--set", "runtime.workers=here", "--set", f"manifest={folder}/rows.jsonl")
    run = promptmill("run", "embedded", *FEW, *settings, "--out", folder / "calm")
    _, errors = run.communicate(timeout=280)
    assert run.returncode == 0, errors
    return folder


def submit(cluster, *arguments, folder=None, token=None):
    """Submit; returns exit status, stdout and stderr."""
    environment = {"RAY_AUTH_TOKEN": token or cluster.token}
    settings = ("--set", "runtime.generators=2", "--address", cluster.address, *arguments)
    run = promptmill("submit", "embedded", *FEW, *settings, folder=folder, **environment)
    said, errors = run.communicate(timeout=280)
    return run.returncode, said, errors


def answers(cluster, *commands, folder=None):
    """Give commands, each a list of words, one after another; returns of each its exit status and all that it said."""
    run = started(sys.executable, "-c", EACH, json.dumps(commands), folder=folder, RAY_AUTH_TOKEN=cluster.token)
    said, errors = run.communicate(timeout=280)
    assert run.returncode == 0, errors
    return [(status, said) for status, said in json.loads(said)]


def asked(cluster, *commands):
    """Ask about jobs; returns of each question its exit status and all that it said."""
    return answers(cluster, *(["job", *words, "--address", cluster.address] for words in commands))


def test_a_submitted_run_makes_the_bytes_of_a_local_one_and_its_progress_is_followed(cluster, here, tmp_path):
    status, said, errors = submit(cluster, "--set", "manifest=rows.jsonl", "--out", tmp_path / "out", folder=here)
    assert status == 0, errors
    events = [json.loads(line)["event"] for line in said.splitlines() if line.startswith("{")]
    assert events[-1] == "done" and {"ready", "loaded", "progress", "shard"} <= set(events)
    assert published(tmp_path / "out") == published(here / "calm")
    (id,) = set(re.findall(r"promptmill-embedded-\w+-\w+", errors))
    questions = (["list"], ["status", id], ["status", id, "--json"], ["logs", id], ["attach", id], ["stop", id])
    listed, state, record, logs, attached, stopped = asked(cluster, *questions)
    assert listed[0] == 0 and id in listed[1]
    assert state[0] == 0 and "succeeded, its run exited with 0" in state[1]
    assert json.loads(record[1])["output"] == str(tmp_path / "out")
    assert logs[0] == 0 and '"done"' in logs[1]
    assert attached[0] == 0 and '"done"' in attached[1]
    assert stopped == (2, f"{id}: has ended already\n")


def test_a_job_that_is_left_goes_on_and_one_that_is_stopped_finishes_what_is_in_flight(cluster, here, tmp_path):
    # So many short units that the run goes on still when a loaded machine has begun the commands below, and yet soon stops.
    many = [{"prompt": prompt, "seed": seed} for seed in range(60) for prompt in PROMPTS]
    (here / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    long = ("--set", "defaults.candidates=8", "--set", "shards.size=20", "--set", "runtime.generators=1", "--detach")
    where = ("--set", "manifest=many.jsonl", "--out", tmp_path / "out")
    status, said, errors = submit(cluster, *where, *long, folder=here)
    id = said.strip()
    assert status == 0 and id, errors
    following = promptmill("job", "attach", id, "--address", cluster.address, RAY_AUTH_TOKEN=cluster.token)
    assert following.stdout is not None
    for line in following.stdout:
        if '"loaded"' in line:
            break
    following.send_signal(signal.SIGINT)
    _, errors = following.communicate(timeout=60)
    assert following.returncode == 130 and f"left job {id} running" in errors, errors[-3000:]
    state, stopped, ended = asked(cluster, ["status", id], ["stop", id], ["attach", id])
    assert state[1].startswith("running")
    assert stopped[0] == 0
    assert ended[0] == 130 and '"stopping"' in ended[1]
    assert list((tmp_path / "out" / "parts").iterdir()) or list((tmp_path / "out" / "commits").iterdir()), "nothing is durable"


CANNOT = {
    "a relative path": (
        ("--out", "relative/out"),
        "--out relative/out: a relative path of this machine; put it where all nodes reach it",
        2,
    ),
    "no output": ((), "--out: missing; say where all nodes of the cluster can write", 2),
    "an output that cannot be written": (("--out", "/proc/out"), "cannot write the output: /proc/out", 1),
    "an output on one node": (("--out", "{temporary}/out"), "does not see there what node", 1),
    "too many generators": (
        ("--out", "{tmp}", "--set", "runtime.generators=400"),
        "400 generators and 1 scorers are too many for 2 CPUs",
        2,
    ),
    "no GPU": (("--out", "{tmp}", "--set", "runtime.require_gpus=true"), "no GPU on 2 nodes, and runtime.require_gpus is set", 2),
    "no manifest": (("--out", "{tmp}", "--set", "manifest=nowhere.jsonl"), "nowhere.jsonl: no such file", 2),
    "a manifest on one node": (
        ("--out", "{tmp}", "--set", "manifest={temporary}/rows.jsonl"),
        "/rows.jsonl: is not there on node",
        1,
    ),
    "a model that stays here": (
        ("--out", "{tmp}", "--set", "model.base=./mine"),
        "model.base: ./mine: a folder of this machine that is not shipped",
        2,
    ),
    "a secret": (("--out", "{tmp}", "--env", "HF_TOKEN=x"), "--env HF_TOKEN: looks like a secret", 2),
}


@pytest.fixture(scope="module")
def refused(cluster, here, tmp_path_factory):
    """What is answered to each of `CANNOT`: the exit status and all that is said. And the output that none may have planned."""
    out = tmp_path_factory.mktemp("refused") / "out"
    commands = []
    for given, _, _ in CANNOT.values():
        arguments = [argument.format(tmp=out, temporary=cluster.temporary) for argument in given]
        manifest = [] if any("manifest=" in argument for argument in arguments) else ["--set", "manifest=rows.jsonl"]
        settings = ["--set", "runtime.generators=2", "--address", cluster.address]
        commands.append(["submit", "embedded", *FEW, *settings, *manifest, *arguments])
    return dict(zip(CANNOT, answers(cluster, *commands, folder=here), strict=True)), out


@pytest.mark.parametrize("what", CANNOT)
def test_what_a_cluster_cannot_do_is_one_line_before_anything_starts(refused, what):
    (found, out), (_, says, status) = refused, CANNOT[what]
    ended, said = found[what]
    assert ended == status, said
    lines = [line for line in said.splitlines() if not re.match(r"job promptmill|`promptmill job|20\d\d-|Running entry", line)]
    assert len(lines) == 1 and says in lines[0]
    assert not (out / "plan").exists()


def test_a_wrong_address_or_token_is_one_line(cluster, here, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        run = promptmill("submit", "quickstart", "--out", tmp_path / "out", "--address", f"127.0.0.1:{unused.getsockname()[1]}")
        said, errors = run.communicate(timeout=60)
    assert run.returncode == 1 and "no Ray dashboard answers there" in errors and len(errors.splitlines()) == 1
    for token in ("another-token-that-is-long-enough-to-be-one", ""):
        run = promptmill(
            "submit",
            "quickstart",
            "--out",
            tmp_path / "out",
            "--address",
            cluster.address,
            RAY_AUTH_TOKEN=token,
            HOME=str(tmp_path),
        )
        said, errors = run.communicate(timeout=60)
        assert run.returncode == 1 and not said, errors
        assert errors.splitlines()[-1].startswith(f"{cluster.address}: refuses the token, or got none")


class Dashboard(http.server.BaseHTTPRequestHandler):
    """Says what a dashboard of another Ray says."""

    def do_GET(self):
        answers = {
            "/api/authentication_mode": {"authentication_mode": "disabled"},
            "/api/version": {"ray_version": "2.41.0", "version": "4"},
        }
        content = json.dumps(answers.get(self.path, {})).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def beyond_loopback():
    """An address of this machine that others may reach."""
    own = (at.address for addresses in psutil.net_if_addrs().values() for at in addresses if at.family == socket.AF_INET)
    return next(address for address in own if not address.startswith("127."))


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("127.0.0.1", "runs Ray 2.41.0, this is Ray "),
        (None, "listens beyond loopback and asks for no token: anybody can run code there"),
    ],
)
def test_a_cluster_of_another_version_and_one_that_is_open_to_anybody_are_refused(tmp_path, host, says):
    host = host or beyond_loopback()
    with http.server.ThreadingHTTPServer((host, 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://{host}:{server.server_address[1]}"
        run = promptmill("submit", "quickstart", "--out", tmp_path / "out", "--address", address)
        said, errors = run.communicate(timeout=60)
        server.shutdown()
    assert run.returncode == 1 and not said
    (line,) = errors.splitlines()
    assert line.startswith(f"{address}: {says}")


def test_a_run_at_an_address_where_nothing_listens_is_one_line_and_soon(here, tmp_path):
    began = time.monotonic()
    run = promptmill(
        "run", "embedded", "--set", f"manifest={here}/rows.jsonl", "--out", tmp_path / "out", "--address", "127.0.0.1:1"
    )
    _, errors = run.communicate(timeout=100)
    assert run.returncode == 1 and errors == "Ray at 127.0.0.1:1: nothing answers there (Connection refused)\n"
    assert time.monotonic() - began < 60
