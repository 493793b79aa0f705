"""Rows of many candidates, of stand-in work: cut into slices, killed in the middle, and gone on with."""

import os
import random
import re
import signal
import time
from collections import Counter
from pathlib import Path

import duckdb
import pytest

from promptmill.configs.loading import load
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import read_plan
from promptmill.jobs.planning.sources import look
from promptmill.jobs.showing.summary import status
from tests.chaos.matrix import TITLES
from tests.chaos.site import HERE, Site, kill_one, problems, published, workers

CANDIDATES, SLICE, KEEP = 64, 8, 2  # of 40 evaluations each, at a batch of one
SETTINGS = ("defaults.steps=40", "defaults.guidance_scale=1", "model.batch=1", "shards.size=2", f"defaults.keep={KEEP}")


def planned(folder, *rows, settings=()):
    """A planned output of these rows."""
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(f"{row}\n" for row in rows))
    make_plan(look(load("embedded", [f"manifest={manifest}", *SETTINGS, *settings])), str(folder / "template"))
    return folder / "template"


def row(name, candidates=CANDIDATES, prompt="prompt"):
    return f'{{"id": "{name}", "prompt": "{prompt} {name}", "candidates": {candidates}}}'


class Cut:
    """A planned output of a row of many candidates and one of few, and what a run makes of it that cuts nothing."""

    def __init__(self, folder, address):
        self.folder, self.address, self.number = folder, address, 0
        self.template = planned(folder, row("many"), row("few", 4))
        self.whole = self.site("--uncut", "--seconds", "0")
        self.whole.address = HERE
        assert self.whole.finish() == 1
        self.bytes = published(self.whole.out)

    def site(self, *options):
        self.number += 1
        options = ("--generators", "2", "--seconds", "0.4", *options)
        return Site.of(self.template, self.folder / f"cut-{self.number}", self.address, *options)

    def here(self):
        """A site of which the driver alone is harmed, or what it has written: its workers are in it."""
        self.number += 1
        return Site.of(self.template, self.folder / f"cut-{self.number}", HERE, "--seconds", "0.2")


@pytest.fixture(scope="module")
def cut(calm, tmp_path_factory):
    return Cut(tmp_path_factory.mktemp("slices"), calm.cluster.address)


def rendered(site):
    """How often each unit was handed to a generator, by its name."""
    log = site.notes / "rendered"
    return Counter(line.split()[0] for line in log.read_text().splitlines()) if log.exists() else Counter()


def parts(site):
    return {path.stem for path in (Path(site.out) / "parts").glob("*.parquet")}


def wait_for(number, site):
    until = time.monotonic() + 180
    while len(parts(site)) < number:
        assert time.monotonic() < until
        time.sleep(0.02)


def wait_for_the_end_of_its_workers():
    """Wait until nobody writes any more whose driver was killed."""
    until = time.monotonic() + 180
    while any(workers(title, os.getpid()) for title in (*TITLES.values(), "ray::join_unit")):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_row_that_is_cut_makes_the_bytes_of_one_that_is_not(cut):
    assert rendered(cut.whole) == {"000000-00000": 1, "000000-00001": 1}
    site = cut.site()
    assert site.finish() == 1
    slices = [f"000000-00000-00000-{first:04d}-{first + SLICE - 1:04d}" for first in range(0, CANDIDATES, SLICE)]
    assert rendered(site) == dict.fromkeys([*slices, "000000-00001"], 1)
    assert published(site.out) == cut.bytes
    assert problems(site.out) == [] and not parts(site)
    assert read_plan(site.out).counts.units == len(slices) + 1
    (progress,) = [line for line in (site.notes / "said").read_text().splitlines() if f'"settled": {CANDIDATES + 4},' in line][-1:]
    assert f'"kept": {2 * KEEP}, "rejected": {CANDIDATES + 4 - 2 * KEEP}, "failed": 0' in progress


def test_killed_in_the_middle_of_a_row_it_goes_on_with_the_slices_that_are_left(cut):
    site, killed = cut.site(), []

    def attack(driver):
        wait_for(2, site)
        killed.append(kill_one("ray::Generator", os.getpid(), random.Random(1)))
        wait_for(4, site)
        os.kill(driver, signal.SIGKILL)

    assert site.run(attack=attack).status == -signal.SIGKILL
    assert killed == [True]
    wait_for_the_end_of_its_workers()
    there, before = parts(site), rendered(site)
    assert 4 <= len(there) < 1 + CANDIDATES // SLICE
    assert status(site.out).units == len(there)
    assert site.finish() == 1
    again = rendered(site) - before
    assert not there & set(again)
    assert len(again) == 1 + CANDIDATES // SLICE - len(there)
    assert published(site.out) == cut.bytes
    assert problems(site.out) == []


@pytest.mark.parametrize("step", [1, 3])
def test_killed_while_slices_are_joined_the_bytes_are_the_same_and_nothing_is_rendered_again(cut, step):
    site = cut.site()
    site.options += ("--die", "joiner", str(step), "--under", site.out)
    assert site.run().status == 0
    assert site.fired
    assert set(rendered(site).values()) == {1}
    assert published(site.out) == cut.bytes


def test_a_broken_slice_is_named_and_rendered_again_alone(cut):
    site = cut.here()

    def attack(driver):
        wait_for(4, site)
        os.kill(driver, signal.SIGKILL)

    site.run(attack=attack)
    wait_for_the_end_of_its_workers()
    broken = sorted(name for name in parts(site) if name.count("-") > 1)[0]
    place, before = Path(site.out) / "parts" / f"{broken}.parquet", rendered(site)
    place.write_bytes(place.read_bytes()[:-9])
    ended = site.run()
    assert ended.status == 1
    (line,) = ended.errors.strip().splitlines()
    assert f"{broken}.parquet: truncated or altered; deleted: run again" in line
    assert site.run().status == 0
    again = rendered(site) - before
    assert again[broken] == 1 and max(again.values()) == 1
    assert published(site.out) == cut.bytes


def test_a_slice_that_kills_fails_alone_and_once_cured_another_try_makes_the_bytes_of_the_whole(calm, tmp_path):
    template = planned(tmp_path, row("many", prompt="at 20 killed"), row("few", 4))
    site = Site.of(template, tmp_path / "killed", calm.cluster.address, "--generators", "2")
    assert site.run().status == 3
    said = (
        f"SELECT status, error, min(candidate_index), count(*) FROM '{site.out}/metadata/*.parquet' WHERE id = 'many' GROUP BY ALL"
    )
    found = {status: rest for status, *rest in duckdb.sql(said).fetchall()}
    assert found["failed"] == ["died", 16, SLICE]
    assert (found["kept"][2], found["rejected"][2]) == (KEEP, CANDIDATES - SLICE - KEEP)
    assert problems(site.out) == []
    assert max(rendered(site).values()) == 4, "once beside others, three times alone"

    whole = Site.of(template, tmp_path / "whole", HERE, "--uncut")
    for one in (site, whole):
        (one.notes / "cured").touch()
    assert whole.run().status == 0
    before = rendered(site)
    assert site.run("--retry-failed").status == 0
    assert {name.rpartition("-")[0] for name in rendered(site) - before} == {
        f"000000-00000-00000-{first:04d}" for first in range(0, CANDIDATES, SLICE)
    }
    assert problems(site.out) == []
    first, second = (
        {re.sub(r"\.[0-9]\.", ".", path): content for path, content in published(one.out).items() if path[:4] in ("data", "meta")}
        for one in (site, whole)
    )
    assert first == second


def test_a_row_of_many_candidates_that_are_drafted_passes_in_parts_and_makes_the_same_bytes(calm, tmp_path):
    drafts = ("ranking.drafts=[{steps: 10, keep: 20}]", f"defaults.candidates={CANDIDATES}")
    template = planned(tmp_path, row("many"), settings=drafts)
    sites = [
        Site.of(template, tmp_path / name, address, "--generators", "2", *more)
        for name, address, more in (("cut", calm.cluster.address, ()), ("whole", HERE, ("--uncut",)))
    ]
    for site in sites:
        assert site.finish() == 1
    # 64 drafts and 20 finals, 8 at a time; or all at once.
    assert [rendered(site)["000000-00000"] for site in sites] == [8 + 3, 1 + 1]
    assert published(sites[0].out) == published(sites[1].out)
    assert problems(sites[0].out) == []


DRAFTED = ("ranking.drafts=[{steps: 10, keep: 20}]", f"defaults.candidates={CANDIDATES}")
# No stand-in scores that high: each round renders two passes of eight.
GROWING = f'{{"start": 16, "max": {CANDIDATES}, "until_score": 100}}'


class Long:
    """Holds a planned output of one row that passes often, and what a run makes of it that cuts nothing."""

    def __init__(self, folder, address, row_, settings, passes):
        self.folder, self.address, self.number, self.passes = folder, address, 0, passes
        self.template = planned(folder, row_, settings=settings)
        whole = self.site("--uncut", "--seconds", "0")
        whole.address = HERE
        assert whole.finish() == 1
        self.bytes = published(whole.out)

    def site(self, *options):
        self.number += 1
        options = ("--generators", "2", "--seconds", "0.4", *options)
        return Site.of(self.template, self.folder / f"long-{self.number}", self.address, *options)

    def here(self):
        """As `Cut.here`."""
        self.number += 1
        return Site.of(self.template, self.folder / f"long-{self.number}", HERE, "--seconds", "0.2")


@pytest.fixture(scope="module", params=["drafted", "growing"])
def long(request, calm, tmp_path_factory):
    folder, address = tmp_path_factory.mktemp(request.param), calm.cluster.address
    if request.param == "drafted":
        return Long(folder, address, row("many"), DRAFTED, 8 + 3)
    return Long(folder, address, row("many", GROWING), (), 8)


def durable_passes(site):
    return {name for name in parts(site) if "-pass-" in name and not name.endswith("-images")}


def test_killed_in_the_middle_of_a_row_that_passes_often_it_loses_a_pass_and_makes_the_same_bytes(long):
    site, killed = long.site(), []

    def attack(driver):
        until = time.monotonic() + 180
        while len(durable_passes(site)) < 2:
            assert time.monotonic() < until
            time.sleep(0.02)
        killed.append(kill_one("ray::Generator", os.getpid(), random.Random(1)))
        while len(durable_passes(site)) < 5:
            assert time.monotonic() < until
            time.sleep(0.02)
        os.kill(driver, signal.SIGKILL)

    assert site.run(attack=attack).status == -signal.SIGKILL
    assert killed == [True]
    wait_for_the_end_of_its_workers()
    there, before = durable_passes(site), rendered(site)["000000-00000"]
    assert 5 <= len(there) < long.passes
    assert there == {f"000000-00000-00000-pass-{number:04d}" for number in range(len(there))}
    # What the generator was at that was killed, and what the driver's were.
    assert before - len(there) <= 2
    assert status(site.out).units == 0
    assert site.finish() == 1
    assert rendered(site)["000000-00000"] - before == long.passes - len(there)
    assert published(site.out) == long.bytes
    assert problems(site.out) == [] and not parts(site)


@pytest.mark.parametrize("step", [2, 5])
def test_killed_while_a_pass_is_written_it_is_rendered_again_alone_and_the_bytes_are_the_same(long, step):
    site = long.site()
    site.options += ("--die", "scorer", str(step), "--under", site.out)
    assert site.run().status == 0
    assert site.fired
    assert rendered(site)["000000-00000"] <= long.passes + 1
    assert published(site.out) == long.bytes
    assert not parts(site)


def test_a_pass_that_is_broken_is_rendered_again_with_those_behind_it(long):
    site = long.here()

    def attack(driver):
        wait_for(5, site)
        os.kill(driver, signal.SIGKILL)

    site.run(attack=attack)
    wait_for_the_end_of_its_workers()
    place, before = Path(site.out) / "parts" / "000000-00000-00000-pass-0001.parquet", rendered(site)["000000-00000"]
    place.write_bytes(place.read_bytes()[:-9])
    assert site.run().status == 0
    assert rendered(site)["000000-00000"] - before == long.passes - 1
    assert published(site.out) == long.bytes


def test_a_pass_that_is_broken_in_mid_run_is_named_in_a_line_and_the_next_run_renders_it_again(long):
    site = long.here()
    place = Path(site.out) / "parts" / "000000-00000-00000-pass-0001.parquet"

    def attack(driver):
        wait_for(5, site)
        place.write_bytes(place.read_bytes()[:-9])

    ended = site.run(attack=attack)
    assert ended.status == 1
    (line,) = ended.errors.strip().splitlines()
    assert f"{place.name}: truncated or altered; deleted: run again" in line
    before = rendered(site)["000000-00000"]
    assert site.run().status == 0
    assert rendered(site)["000000-00000"] - before == long.passes - 1
    assert published(site.out) == long.bytes
