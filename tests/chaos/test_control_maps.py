"""Control maps beside images, of stand-in work: the same bytes whoever is killed, and however a row is cut."""

import json
import os
import random

import pytest

from promptmill.configs.own_files import ROOT
from tests.chaos.site import HERE, Site, kill_one, problems, published
from tests.chaos.test_slices import CANDIDATES, planned

IMAGES = ROOT / "configs/presets/quickstart/images"
EDGES = str(IMAGES / "canny-01-edges.png")
SETTINGS = ("shards.controls=true", f"runtime.image_roots=[{IMAGES}]")
STAGES = ("stages=[{kind: hires, strength: 0.5}, {kind: hires, scale: 2, strength: 1}]", "shards.image_format=webp")
DRAFTS = ("ranking.drafts=[{steps: 10, keep: 20}]", f"defaults.candidates={CANDIDATES}")


def row(name, candidates, controls):
    steering = [{"type": "canny", "image": EDGES}] * controls
    return json.dumps({"id": name, "prompt": f"prompt {name}", "candidates": candidates, "controls": steering})


class Planned:
    """Holds a planned output, and the bytes of a run of it that nobody disturbs and that cuts nothing."""

    def __init__(self, folder, *rows, settings=()):
        self.folder, self.number = folder, 0
        self.template = planned(folder, *rows, settings=(*SETTINGS, *settings))
        whole = self.site(HERE, "--uncut")
        assert whole.finish() == 1
        assert problems(whole.out) == []
        self.bytes = published(whole.out)
        assert b".control.1.png" in self.bytes["data/000000.tar"]

    def site(self, address, *options):
        self.number += 1
        return Site.of(self.template, self.folder / f"maps-{self.number}", address, "--seconds", "0", *options)


@pytest.fixture(scope="module", params=["cut", "drafted", "staged"])
def steered(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "drafted":
        return Planned(folder, row("many", CANDIDATES, 2), settings=DRAFTS)
    if request.param == "staged":
        return Planned(folder, row("many", CANDIDATES, 2), row("few", 4, 1), settings=STAGES)
    return Planned(folder, row("many", CANDIDATES, 2), row("few", 4, 1), row("none", 4, 0))


@pytest.mark.parametrize("step", [0, 2, 7])
def test_however_a_row_is_cut_and_whatever_is_cut_off_its_images_have_the_same_maps(steered, step):
    site = steered.site(HERE)
    site.options += ("--die", "scorer", str(step), "--under", site.out)
    tries = site.finish()
    assert (tries == 2) == site.fired == bool(step)
    assert published(site.out) == steered.bytes
    assert problems(site.out) == []


def test_on_ray_with_a_scorer_killed_the_bytes_are_the_same(steered, calm):
    site = steered.site(calm.cluster.address, "--generators", "2", "--seconds", "0.2")
    killed = []
    ended = site.run(attack=lambda driver: killed.append(kill_one("ray::Scorer", os.getpid(), random.Random(1))))
    assert ended.status == 0 and killed == [True]
    assert published(site.out) == steered.bytes
