import os
import subprocess
import sys
from collections import Counter

from tests.jobs.sharing.hub import TOKEN, Hub, serving
from tests.pipelines import tiny

LOAD = """
import sys
from promptmill.configs.model import Model
from promptmill.pipelines.rendering.loading import load_model
load_model(Model(base="me/tiny", revision=sys.argv[1]))
"""


REFUSALS = """
import sys
from promptmill.configs.model import Model
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.work.errors import ModelError
for name in ("me/gated", "me/nothing"):
    try:
        read_facts(Model(base=name, revision="0" * 40))
    except ModelError as error:
        print(error)
"""


def test_what_the_hub_says_of_a_gated_and_of_an_unknown_repository_is_said_in_one_line_with_what_would_do(tmp_path):
    hub, restricted = Hub(), "Access to model me/gated is restricted and you are not in the authorized list."
    hub.failing = {
        "/me/gated": [403, restricted, -1, "GatedRepo"],
        "/me/nothing": [401, "Repository not found", -1, "RepoNotFound"],
    }
    with serving(hub) as endpoint:
        environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN}
        command = [sys.executable, "-c", REFUSALS]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=100)
    gated, unknown = done.stdout.splitlines()
    assert gated.startswith("me/gated: model_index.json cannot be fetched: the repository is gated; ask for access on its page")
    assert "HF_TOKEN" in gated and gated.endswith(restricted)
    assert unknown.startswith("me/nothing: model_index.json cannot be fetched: the hub has no such repository, or it is private")


def test_weights_are_fetched_once_a_node_however_many_generators_load_them(tmp_path):
    folder = tiny.stable_diffusion(tmp_path / "tiny")
    hub = Hub()
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.repositories["me/tiny"] = {"branches": {"main": files}, "private": False}
    with serving(hub) as endpoint:
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": TOKEN,
        }
        environment |= {"HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", LOAD, hub.commit("me/tiny")]
        together = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(3)]
        ended = [process.communicate(timeout=200)[1] for process in together]
        assert [process.returncode for process in together] == [0, 0, 0], ended
    weights = {name: count for name, count in Counter(hub.fetched).items() if name.endswith(".safetensors")}
    assert len(weights) >= 3 and set(weights.values()) == {1}
    # With the hub gone the next one finds them.
    subprocess.run(command, env={**environment, "HF_HUB_OFFLINE": "1"}, check=True, timeout=200)
