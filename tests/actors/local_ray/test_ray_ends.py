"""What the environment may be like: folders, locales, readers of what is said."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from promptmill.actors.local_ray.sockets_folder import LONGEST, ray_folder, unfit
from promptmill.actors.pool_sizes import ClusterError
from promptmill.jobs.cli.streams import outliving_readers

ROOT = Path(__file__).parents[3]
PROMPT = "a small red circle at the left on a black background\n"
FEW = ("defaults.steps=2", "defaults.candidates=2", "model.batch=2", "runtime.generators=1")


def command(*arguments, **environment):
    """The environment of a command is what is given, and a PATH: a HOME there is only where it is given."""
    return subprocess.Popen(
        [sys.executable, "-m", "promptmill", *map(str, arguments)],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run_of(folder):
    (folder / "prompts.txt").write_text(PROMPT)
    settings = [part for setting in (f"manifest={folder / 'prompts.txt'}", *FEW) for part in ("--set", setting)]
    return ["run", "embedded", "--out", folder / "out", *settings]


STARTS = "from promptmill.actors.local_ray.cluster import cluster\nwith cluster(None) as nodes:\n    print(len(nodes))"


@pytest.mark.parametrize("folder", ["x" * 120, "tmp é x"])
def test_a_folder_that_ray_cannot_use_is_passed_over(tmp_path, folder):
    (tmp_path / folder).mkdir()
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path / folder)}
    done = subprocess.run([sys.executable, "-c", STARTS], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "TMPDIR" in line]
    assert line.startswith("TMPDIR is ") and line.endswith("Ray keeps them in /tmp/ray")


def test_what_is_wrong_with_a_folder_is_said_where_no_other_will_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("x" * 120)))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr("promptmill.actors.local_ray.sockets_folder.FALLBACK", str(tmp_path / "é"))
    with pytest.raises(ClusterError, match=r"^TMPDIR is too long, .* and .* is not ASCII; export RAY_TMPDIR=FOLDER"):
        ray_folder()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert ray_folder() == (None, "")


def test_a_folder_of_the_greatest_length_holds_a_socket():
    assert unfit("/tmp/".ljust(LONGEST, "x")) is None
    assert unfit("/tmp/".ljust(LONGEST + 1, "x")) is not None


@pytest.mark.parametrize(("both", "workers"), [(False, "ray"), (True, "here")])
def test_a_run_that_has_no_home_goes_on_without_those_who_read_what_it_says(tmp_path, both, workers):
    begun = command(*run_of(tmp_path), "--set", f"runtime.workers={workers}")
    begun.stdout.readline()
    begun.stdout.close()
    if both:
        begun.stderr.close()
        status = begun.wait()
    else:
        said = begun.stderr.read().decode()
        status = begun.wait()
        assert "what is said on stdout reaches nobody any more (Broken pipe); the run goes on\n" in said
        assert "1 row, 2 candidates: 1 kept" in said and "Traceback" not in said and "Exception" not in said
    assert status == 0
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_streams_that_are_not_the_systems_are_left_alone(capsys):
    with outliving_readers():
        print("said")
    assert capsys.readouterr().out == "said\n"


def test_an_ascii_locale_plans_and_says_names_that_it_has_no_letters_for(tmp_path):
    (tmp_path / "é.jsonl").write_text(json.dumps({"prompt": "猫", "init_image": "gibt es nicht é.png"}))
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = command("plan", "embedded", "--out", tmp_path / "out", "--set", f"manifest={tmp_path / 'é.jsonl'}", **locale)
    _, errors = done.communicate()
    assert done.returncode == 2
    assert "é.jsonl, row 1" in errors.decode() and "gibt es nicht é.png" in errors.decode()
    assert "Traceback" not in errors.decode()
