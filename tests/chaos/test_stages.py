"""Kills in the middle of stages, of stand-in work: units whose images are chosen, and that are on their way to be enlarged."""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import duckdb
import pytest

from promptmill.shards.storage import names
from tests.chaos.matrix import TITLES
from tests.chaos.site import HERE, Site, kill_one, plan, problems, published

UNITS = 6
SETTINGS = (
    "defaults.steps=9",
    "ranking.drafts=[{steps: 2, keep: 2}]",
    "stages=[{kind: hires, strength: 0.5}, {kind: hires, scale: 2, strength: 1}]",
    "shards.image_format=webp",
)


class Enlarging:
    """A planned output of units that go through two passes and two stages, and what an undisturbed run makes of it."""

    def __init__(self, folder, address):
        self.address, self.folder, self.number = address, folder, 0
        # Three drafts of 2 steps and two finals of 9 in two passes are 12 a request.
        self.template = plan(folder, UNITS, candidates=3, settings=SETTINGS, work=13)
        # Without Ray, so that what is disturbed on Ray is held against what is made in one process.
        self.calm = self.site(HERE)
        assert self.calm.finish() == 1
        self.bytes = published(Path(self.calm.out))

    def site(self, address=None):
        self.number += 1
        options = ("--generators", "2", "--seconds", "0.2")
        return Site.of(self.template, self.folder / f"enlarging-{self.number}", address or self.address, *options)


@pytest.fixture(scope="module")
def enlarging(calm, tmp_path_factory):
    return Enlarging(tmp_path_factory.mktemp("enlarging"), calm.cluster.address)


def passes(site):
    """How often each unit, by its name, was handed to a generator."""
    log = site.notes / "rendered"
    return Counter(line.split()[0] for line in log.read_text().splitlines()) if log.exists() else Counter()


def wait_for_a_stage(site, number=3):
    while max(passes(site).values(), default=0) < number:
        time.sleep(0.02)


def test_the_calm_run_has_enlarged_what_it_kept_and_leaves_no_part(enlarging):
    assert problems(enlarging.calm.out) == []
    assert set(passes(enlarging.calm).values()) == {4}
    rows = f"'{enlarging.calm.out}/metadata/*.parquet'"
    found = duckdb.sql(f"SELECT DISTINCT status, width, len(stages), unet_evaluations FROM {rows}").fetchall()
    assert sorted(found) == [("drafted", 64, None, 2), ("kept", 256, 3, 25), ("rejected", 64, None, 11)]
    ((stages, scores),) = duckdb.sql(
        f"SELECT [stage.stage FOR stage IN stages], min(list_unique([stage.score FOR stage IN stages])) FROM {rows}"
        " WHERE selected GROUP BY 1"
    ).fetchall()
    assert (stages, scores) == (["rendered", "hires 2x", "hires 2x"], 3)
    assert [*names(f"{enlarging.calm.out}/parts")] == []


@pytest.mark.parametrize("kind", ["generator", "scorer"])
def test_whoever_is_killed_in_the_middle_of_a_stage_the_bytes_are_the_same_and_only_a_stage_is_lost(enlarging, kind):
    site, rng, killed = enlarging.site(), random.Random(kind), []

    def attack(driver):
        wait_for_a_stage(site)
        killed.append(kill_one(TITLES[kind], os.getpid(), rng))

    assert site.run(attack=attack).status == 0
    assert killed == [True]
    assert published(Path(site.out)) == enlarging.bytes
    # Of two units in flight, or of the one that was scored, one pass or stage of three requests each, and not what went before it.
    assert site.rendered() - enlarging.calm.rendered() <= 2 * 3


def test_a_driver_that_is_killed_in_the_middle_of_a_stage_is_resumed_there_to_the_same_bytes(enlarging):
    site = enlarging.site()

    def attack(driver):
        wait_for_a_stage(site, 4)
        os.kill(driver, signal.SIGKILL)

    assert site.run(attack=attack).status == -signal.SIGKILL
    before = passes(site)
    assert any("-stage-0001" in name for name in names(f"{site.out}/parts"))
    site.finish()
    assert published(Path(site.out)) == enlarging.bytes
    assert problems(site.out) == []
    # A unit in its second stage goes on there, without what went before.
    began = [name for name, often in before.items() if often == 4]
    assert began and all(passes(site)[name] <= 5 for name in began)
