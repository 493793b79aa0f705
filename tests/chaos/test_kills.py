"""A shortened kill matrix on stand-in work; the whole of it is `python -m tests.chaos.matrix`."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.site import ROOT, problems, published


def held(row):
    assert row.lost, f"no {row.kind} was ever killed"
    assert not row.wrong, row.wrong


@pytest.mark.parametrize("kind", ["driver", "generator", "scorer", "assembler"])
def test_whoever_is_killed_at_whatever_moment_the_bytes_are_the_same_and_few_units_are_lost(calm, kind):
    held(calm.random_kills(kind, 2, seed=1))


def test_a_node_that_dies_with_all_that_runs_on_it_changes_no_byte(calm):
    held(calm.raylet_kills(1, seed=1))


@pytest.mark.parametrize(("role", "every"), [("scorer", 3), ("assembler", 13)])
def test_killed_between_any_two_operations_on_files_the_bytes_are_the_same(calm, role, every):
    held(calm.step_kills(role, every))


def test_a_run_stopped_again_and_again_loses_no_row_and_no_byte(calm):
    held(calm.stops(4, seed=1))


def test_a_second_driver_says_who_holds_the_output_and_stops(calm):
    site = calm.site()
    with site.driver() as first:
        while not (Path(site.out) / "lease").is_dir() or not list((Path(site.out) / "lease").glob("*.json")):
            time.sleep(0.05)
            assert first.poll() is None
        second = site.run()
        assert second.status == 1
        (line,) = second.errors.strip().splitlines()
        assert str(first.pid) in line
        assert line.startswith(f"{site.out}: ")
        assert first.wait(120) == 0
    assert published(Path(site.out)) == calm.bytes


def test_a_disk_that_fills_up_ends_the_run_with_one_line_and_with_room_it_ends_with_the_same_bytes(calm, tmp_path):
    unshare = shutil.which("unshare")
    assert unshare, "needs unshare, of util-linux, to mount a small disk without being root"
    command = [unshare, "-rm", sys.executable, "-m", "tests.chaos.small_disk", str(calm.template), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("No space left on device")
    assert len(done.stdout.strip().splitlines()) == 1
    assert published(tmp_path / "out") == calm.bytes


def test_a_calm_run_on_ray_has_no_problem_and_makes_the_bytes_of_one_in_its_driver(calm):
    site = calm.site()
    assert site.finish() == 1
    assert problems(site.out) == []
    assert published(site.out) == calm.bytes
