"""Kills in the middle of a cascade, of stand-in work: units that have been drafted, and requests that have begun to grow."""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import duckdb
import pytest

from tests.chaos.matrix import TITLES
from tests.chaos.site import Site, kill_one, plan, problems, published

UNITS = 8
SETTINGS = (
    "defaults.steps=9",
    "defaults.candidates={start: 4, max: 8, until_score: 45}",
    "ranking.drafts=[{steps: 2, keep: 3}, {steps: 3, keep: 2}]",
)


class Drafting:
    """A planned output of units that pass three to six times, and what an undisturbed run makes of it."""

    def __init__(self, folder, address):
        self.address, self.folder, self.number = address, folder, 0
        # Two rounds of 4 x 2 + 3 x 3 + 2 x 9 steps in three passes are 23.3 a request.
        self.template = plan(folder, UNITS, settings=SETTINGS, work=25)
        self.calm = self.site()
        assert self.calm.finish() == 1
        self.bytes = published(Path(self.calm.out))

    def site(self):
        self.number += 1
        options = ("--generators", "2", "--seconds", "0.2")
        return Site.of(self.template, self.folder / f"drafting-{self.number}", self.address, *options)


@pytest.fixture(scope="module")
def drafting(calm, tmp_path_factory):
    return Drafting(tmp_path_factory.mktemp("drafting"), calm.cluster.address)


def passes(site):
    """How often each unit, by its name, was handed to a generator."""
    log = site.notes / "rendered"
    return Counter(line.split()[0] for line in log.read_text().splitlines()) if log.exists() else Counter()


def wait_for_the_middle(site):
    while max(passes(site).values(), default=0) < 2:
        time.sleep(0.02)


def test_the_calm_run_has_drafted_spared_and_grown(drafting):
    assert problems(drafting.calm.out) == []
    assert set(passes(drafting.calm).values()) <= {3, 6}
    assert 6 in passes(drafting.calm).values()
    rows = f"'{drafting.calm.out}/metadata/*.parquet'"
    assert {status for (status,) in duckdb.sql(f"SELECT DISTINCT status FROM {rows}").fetchall()} == {"kept", "rejected", "drafted"}
    ((some, most),) = duckdb.sql(f"SELECT min(candidates_spared), max(candidates_spared) FROM {rows}").fetchall()
    assert (some, most) == (0, 4)


@pytest.mark.parametrize("kind", ["generator", "scorer"])
def test_whoever_is_killed_in_the_middle_of_a_cascade_the_bytes_are_the_same_and_only_a_pass_is_lost(drafting, kind):
    site, rng, killed = drafting.site(), random.Random(kind), []

    def attack(driver):
        wait_for_the_middle(site)
        killed.append(kill_one(TITLES[kind], os.getpid(), rng))

    assert site.run(attack=attack).status == 0
    assert killed == [True]
    assert published(Path(site.out)) == drafting.bytes
    # Of two units in flight, or of the one that was scored, one pass of three requests each, and not what went before it.
    assert site.rendered() - drafting.calm.rendered() <= 2 * 3


def test_a_driver_that_is_killed_in_the_middle_of_a_cascade_is_resumed_to_the_same_bytes(drafting):
    site = drafting.site()

    def attack(driver):
        wait_for_the_middle(site)
        os.kill(driver, signal.SIGKILL)

    assert site.run(attack=attack).status == -signal.SIGKILL
    site.finish()
    assert published(Path(site.out)) == drafting.bytes
    assert problems(site.out) == []
