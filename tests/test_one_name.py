"""Shows that promptmill has one name, in the repository and installed, whatever else is called as its folders are."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from promptmill.configs.own_files import ROOT

FOLDERS = ("actors", "configs", "embedded", "jobs", "manifests", "pipelines", "shards")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what a wheel puts into site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--disable-pip-version-check", "--wheel-dir", str(folder)]
    # Built from a copy, since setuptools leaves a folder build/ where it builds.
    others = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "tests", "benchmarks", "docs", "build", "runs")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=others)
    subprocess.run([*pip, str(folder / "source")], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site-packages")
    return folder / "site-packages"


def test_a_wheel_puts_one_name_into_site_packages_and_brings_all_files(installed):
    names = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"promptmill"}
    files = [path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    there = {path.relative_to(installed / "promptmill").as_posix() for path in (installed / "promptmill").rglob("*")}
    assert {path.relative_to(ROOT).as_posix() for path in files} <= there
    assert {"py.typed", "requirements.lock", "pyproject.toml"} <= there


def test_an_installed_promptmill_plans_its_own_presets(installed, tmp_path):
    """From elsewhere, and without the repository: the wheel's files alone are on the module path."""
    code = "import promptmill.jobs.cli as cli; print(cli.__file__, flush=True); cli.main()"
    command = [sys.executable, "-c", code, "plan", "quickstart", "--out", str(tmp_path / "out"), "--no-measure"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[0]).is_relative_to(installed)
    assert (tmp_path / "out" / "plan" / "plan.json").is_file()


def test_a_folder_of_promptmill_is_the_same_file_by_every_way():
    for name in FOLDERS:
        link = ROOT / "src" / "promptmill" / name
        assert link.is_symlink() and link.resolve() == ROOT / name
