"""`promptmill calibrate --cache`: step caches priced by their work, and judged by the scores of the images that they make."""

import json

import pytest
import yaml
from click.testing import CliRunner

from promptmill.configs.loading import load
from promptmill.configs.step_caches import StepCache
from promptmill.jobs.calibration import trials as observing
from promptmill.jobs.calibration.gains import Gains
from promptmill.jobs.calibration.policies import FINAL, Policy, Sight, Trial
from promptmill.jobs.calibration.sample import draw
from promptmill.jobs.cli import main
from promptmill.jobs.planning.sources import look
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.rendering.loading import device_here
from promptmill.pipelines.scoring.scorers import load_scorers
from promptmill.pipelines.work.units import Unit
from tests.jobs.calibration import made

CACHE = StepCache(every=2, first=0.25)
SMALL = ("defaults.steps=6", "defaults.candidates=4", "defaults.guidance_scale=1", "model.batch=8")


def calibrate(manifest, trials, *more):
    options = [part for setting in (f"manifest={manifest}", *SMALL) for part in ("--set", setting)]
    return CliRunner().invoke(main, ["calibrate", "embedded", *options, "--trials", str(trials), *map(str, more)])


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return made.write_manifest(tmp_path_factory.mktemp("caches") / "manifest.jsonl", 4)


def by_hand(finals, cached, scores):
    sights = {
        FINAL: Sight(finals, [40] * len(finals)),
        "cache every 2 from 0.25": Sight(cached, [40] * len(cached), [14] * len(cached), 0.25, {"clip": scores}),
    }
    return Trial("x", 1, sights, {"clip": finals})


def test_a_cache_is_judged_by_its_own_images_and_costs_a_share_of_each_cached_evaluation():
    # In full the gain is 4 - 2.5; by the cache the second is kept, whose image scores 3.5 there.
    some = [by_hand([1.0, 2.0, 3.0, 4.0], [1.0, 3.5, 3.0, None], [1.0, 3.5, 3.0, None])]
    gains = Gains.of(some, [Policy("cache", (), CACHE)])
    assert gains.gains["clip"].tolist() == [[1.0]]
    assert gains.price[0] == pytest.approx((40 - 14 * 0.75) / 40)


def test_calibration_sees_the_images_of_a_run_by_the_cache_and_writes_a_config_that_plans(manifest, tmp_path, monkeypatch):
    trials, target = tmp_path / "trials.jsonl", tmp_path / "cached.yaml"
    asked = ("--cache", "2,0.25", "--cache", "3,0.5,0.2", "--gain", "1", "--json")
    result = calibrate(manifest, trials, *asked, "--to", target)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout.splitlines()[0])
    assert [one["cache"]["every"] for one in said["caches"]] in ([2, 3], [3, 2]) and not said["drafts"]
    known = {line["id"]: line for line in map(json.loads, trials.read_text().splitlines()[1:])}
    # Of 6 steps the third and the fifth are cached, since the first two run all blocks; and of 3,0.5,0.2 the fourth and the fifth.
    for line in known.values():
        for name, cached in (("cache every 2 from 0.25", 2), ("cache every 3 from 0.5 to 0.8", 2)):
            assert line["sights"][name]["cached"] == [cached] * 4 and line["sights"][name]["evaluations"] == [6] * 4
            assert 0.2 < line["sights"][name]["share"] < 0.5
    sources = look(load("embedded", [f"manifest={manifest}", *SMALL, "model.kernels.cache={every: 2}"]))
    placed = draw(sources, 1).requests[0]
    engine = Engine(sources.config.model, sources.config.seed, sources.roots)
    (outcome,) = engine.render(Unit(0, 0, (placed,))).outcomes
    engine.close()
    scorers = load_scorers(sources.config.ranking, device_here())
    scores = [one.score for one in scorers.score([placed.request.prompt] * 4, [c.pixels for c in outcome.candidates])]
    line = known[placed.request.id]
    assert line["sights"]["cache every 2 from 0.25"]["scores"]["clip"] == scores != line["scores"]["clip"]
    monkeypatch.setattr(observing, "_loaded", None)  # what is known is not rendered again
    assert json.loads(calibrate(manifest, trials, *asked).stdout) == said
    content = yaml.safe_load(target.read_text())
    assert content["model"]["kernels"]["cache"] == said["chosen"]["cache"]
    planned = CliRunner().invoke(main, ["plan", str(target), "--out", str(tmp_path / "out"), "--no-measure"])
    assert planned.exit_code == 0, planned.output


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--cache", "1,0.25"), "'1,0.25' is no step cache; write it as 2,0.25"),
        (("--cache", "2"), "is no step cache"),
        (("--cache", "2,0.25", "--drafts", "3"), "--cache tries step caches in place of drafts"),
    ],
)
def test_bad_input_is_one_line(manifest, tmp_path, more, said):
    result = calibrate(manifest, tmp_path / "trials.jsonl", *more)
    assert result.exit_code == 2 and said in result.output and "Traceback" not in result.output
