"""An output that is moved or deleted, and a Ray that dies, under a run of stand-in work."""

import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.chaos.site import HERE, Site, plan, problems, published


def alone(calm, folder):
    """A fresh copy of the calm plan, which starts a Ray of its own."""
    return Site.of(calm.template, folder / "site", None, "--seconds", "0.3")


def joined(calm, folder):
    """The same on the cluster that all share."""
    return Site.of(calm.template, folder / "site", calm.cluster.address, "--seconds", "0.3")


def here(calm, folder):
    """The same without Ray, where it is the driver that notices."""
    return Site.of(calm.template, folder / "site", HERE, "--seconds", "0.3")


def wait_for_a_part(site):
    until = time.monotonic() + 180
    while not list((Path(site.out) / "parts").glob("*.parquet")):
        assert time.monotonic() < until
        time.sleep(0.02)


def kill_ray(driver, program):
    """SIGKILL the process of the driver's own Ray that runs this program; returns all of its processes, as they were before."""
    family = psutil.Process(driver).children(recursive=True)
    (victim,) = [process for process in family if Path(process.cmdline()[0]).name == program]
    victim.send_signal(signal.SIGKILL)
    return family


def unsaid(said):
    """Lines on standard output that are no events of the run."""
    return [line for line in said.splitlines() if not line.startswith('{"event":')]


@pytest.mark.parametrize(("program", "name"), [("raylet", "raylet"), ("gcs_server", "GCS server")])
def test_a_run_whose_own_ray_is_killed_ends_soon_with_one_line_and_goes_on_to_the_same_bytes(calm, tmp_path, program, name):
    site, killed = alone(calm, tmp_path), []

    def attack(driver):
        wait_for_a_part(site)
        killed.append((kill_ray(driver, program), time.monotonic()))

    ended = site.run(attack=attack)
    ((family, when),) = killed
    assert time.monotonic() - when < 40
    assert ended.status == 1
    (line,) = ended.errors.splitlines()
    assert line.startswith(f"Ray on this machine has ended: its {name} was ended by SIGKILL")
    assert unsaid(ended.said) == []
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []
    assert site.finish() == 1
    assert published(site.out) == calm.bytes
    assert problems(site.out) == []


def test_an_output_that_is_moved_away_ends_the_run_and_goes_on_at_its_new_place(calm, tmp_path):
    site, moved = joined(calm, tmp_path), tmp_path / "elsewhere"

    def attack(driver):
        wait_for_a_part(site)
        Path(site.out).rename(moved)

    ended = site.run(attack=attack)
    assert ended.status == 1
    (line,) = ended.errors.splitlines()
    assert line.startswith(f"{site.out}: is gone: it was moved or deleted")
    assert unsaid(ended.said) == []
    assert not Path(site.out).exists()
    site.out = str(moved)
    assert site.finish() == 1
    assert published(moved) == calm.bytes
    assert problems(str(moved)) == []


def test_an_output_that_is_deleted_is_not_made_again(calm, tmp_path):
    site = here(calm, tmp_path)

    def attack(driver):
        wait_for_a_part(site)
        gone = tmp_path / "gone"
        Path(site.out).rename(gone)
        shutil.rmtree(gone)

    ended = site.run(attack=attack)
    assert ended.status == 1
    (line,) = ended.errors.splitlines()
    assert line.startswith(f"{site.out}: is gone: it was moved or deleted")
    assert not Path(site.out).exists()


def test_a_tar_that_is_deleted_in_mid_run_is_named_at_the_end(calm, tmp_path):
    site, deleted = here(calm, tmp_path), []

    def attack(driver):
        until = time.monotonic() + 180
        while not (records := list((Path(site.out) / "commits").glob("*.json"))):
            assert time.monotonic() < until
            time.sleep(0.02)
        tar = Path(site.out) / "data" / f"{records[0].stem}.tar"
        tar.unlink()
        deleted.append(tar)

    ended = site.run(attack=attack)
    assert ended.status == 1
    (line,) = ended.errors.splitlines()
    assert line.startswith(f"{deleted[0]}: was committed, and is gone; ")
    assert not (Path(site.out) / "_SUCCESS").exists()


def test_shards_whose_parts_are_all_there_are_published_without_loading_a_model(calm, tmp_path):
    template = plan(tmp_path, units=4, shard_size=12)
    site = Site.of(template, tmp_path / "site", HERE, "--seconds", "0.2")
    commits = Path(site.out) / "commits"
    # A file where a folder has to be: the parts are written, and their shard cannot be committed.
    stopped = site.run(attack=lambda driver: commits.write_text(""))
    assert stopped.status == 1 and len(list((Path(site.out) / "parts").glob("*.parquet"))) == 4
    commits.unlink()
    rendered = site.rendered()
    ended = site.run()
    assert ended.status == 0 and '"loaded"' not in ended.said and site.rendered() == rendered
    assert problems(site.out) == []


def test_a_request_to_end_that_arrives_twice_at_once_finishes_what_is_in_flight(calm, tmp_path):
    site = Site.of(plan(tmp_path, units=24), tmp_path / "site", calm.cluster.address, "--seconds", "0.3")

    def attack(driver):
        wait_for_a_part(site)
        for _ in range(2):  # as `timeout` does: the process, then its group
            os.kill(driver, signal.SIGTERM)
            time.sleep(0.1)

    ended = site.run(attack=attack)
    assert ended.status == 130 and '"stopping"' in ended.said
    durable = len(list((Path(site.out) / "parts").glob("*.parquet")))
    committed = sum(1 for _ in (Path(site.out) / "commits").glob("*.json")) if (Path(site.out) / "commits").exists() else 0
    # Each unit that was begun is durable: three requests a unit, four units a shard.
    assert site.rendered() == 3 * (durable + 4 * committed)
