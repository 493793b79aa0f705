import os
import subprocess
import sys
from pathlib import Path

import pytest

from promptmill.actors.local_ray import import_path
from promptmill.configs.own_files import ROOT

OWN = ROOT / "src"
PROMPT = "a small red circle at the left on a black background"
NAMES = ("actors", "click", "configs", "multiprocessing", "numpy", "ray", "torch")


@pytest.fixture
def strange(tmp_path):
    """A folder with a manifest, and with modules that nobody should run: each leaves a file behind."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    (folder / "p.txt").write_text(PROMPT + "\n")
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"import os\nopen({str(tmp_path / 'ran')!r}, 'a').write('{name}')\nos._exit(9)\n")
    (folder / "jobs").mkdir()
    return folder


def ended(command, folder, **environment):
    environment = {name: value for name, value in {**os.environ, **environment}.items() if name != "PYTHONSAFEPATH"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)


def test_a_run_takes_no_module_from_the_folder_where_one_stands(strange, tmp_path):
    """Neither its driver, nor its workers, which Ray would have look there first."""
    command = [str(Path(sys.executable).with_name("promptmill")), "run", "embedded", "--out", str(tmp_path / "out")]
    settings = ("manifest=p.txt", "defaults.steps=1", "defaults.candidates=1")
    command += [part for setting in settings for part in ("--set", setting)]
    done = ended(command, strange, PYTHONPATH=os.pathsep)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()
    assert len([*(tmp_path / "out" / "data").iterdir()]) == 1


@pytest.mark.parametrize("path", [None, os.pathsep, ".", f"{OWN}{os.pathsep}../downloaded"])
def test_python_m_promptmill_takes_no_module_from_the_folder_where_one_stands(strange, tmp_path, path):
    done = ended([sys.executable, "-m", "promptmill", "presets"], strange, **({"PYTHONPATH": path} if path is not None else {}))
    assert (done.returncode, "embedded" in done.stdout.split()) == (0, True), done.stderr
    assert not (tmp_path / "ran").exists()


def test_folders_of_ones_own_on_the_module_path_are_none_of_promptmills(tmp_path):
    """`jobs`, `actors` and `configs` are names that many projects use; promptmill has one name only."""
    for name in ("actors", "configs", "embedded", "jobs", "manifests", "pipelines", "shards"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not mine')\n")
    for command in ([str(Path(sys.executable).with_name("promptmill"))], [sys.executable, "-m", "promptmill"]):
        done = ended([*command, "presets"], tmp_path, PYTHONPATH=str(tmp_path))
        assert (done.returncode, "embedded" in done.stdout.split()) == (0, True), done.stderr


def test_a_checkout_called_promptmill_where_one_stands_is_not_taken_for_the_package(tmp_path):
    """Python takes any folder for a package without modules, and a clone has the name of its repository."""
    (tmp_path / "promptmill").mkdir()
    done = ended([sys.executable, "-c", "import promptmill; print(promptmill.render.__name__)"], tmp_path)
    assert (done.returncode, done.stdout) == (0, "render\n"), done.stderr


def left_out(monkeypatch, path, python_path=None):
    monkeypatch.setattr(sys, "path", list(path))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    if python_path is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", python_path)
    import_path.leave_out_here()
    return sys.path


def test_a_folder_stays_that_is_promptmills_own_or_is_named_in_full(strange, monkeypatch):
    monkeypatch.chdir(strange)
    here, other = str(strange), "/usr/lib/python3"
    assert left_out(monkeypatch, [here, other]) == [other]
    assert left_out(monkeypatch, ["", other]) == [other]
    assert left_out(monkeypatch, [here, other], here) == [here, other]
    assert left_out(monkeypatch, [other, here], f"{other}{os.pathsep}") == [other]
    assert os.environ["PYTHONPATH"] == other and os.environ["PYTHONSAFEPATH"] == "1"
    monkeypatch.chdir(OWN)
    assert left_out(monkeypatch, [str(OWN), other], ".") == [str(OWN), other]
    assert left_out(monkeypatch, ["", other]) == [str(OWN), other]
    assert import_path.for_workers() == [str(OWN)]
    assert left_out(monkeypatch, [other]) == [other]
    assert import_path.for_workers() == []


def test_a_folder_that_has_been_deleted_is_no_reason_to_fail(strange, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert left_out(monkeypatch, ["", "/usr/lib/python3"], ".") == ["/usr/lib/python3"]
