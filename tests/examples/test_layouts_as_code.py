"""The example of layouts as code renders what the drawings say, where they say it."""

import json
import runpy

import numpy as np

import promptmill
from promptmill.embedded.pictures import cover, segmentation
from promptmill.embedded.world import SHAPES, Scene, Thing, is_held_out, parse
from promptmill.manifests.drawings import draw
from tests.examples.readme import ROOT, commands, done

FOLDER = ROOT / "examples" / "layouts-as-code"


def test_the_readmes_commands_render_layouts_and_judge_them(checkout):
    make, run, judge = commands("layouts-as-code", {"--rows 50": "--rows 8"})
    done(make, checkout)
    done(run, checkout)
    found = json.loads(done(judge, checkout))
    # Of 50 rows 49 are right; of eight, six are by all but some chance in a thousand.
    assert found["images"] == 8 and found["right"] >= 6
    rows = promptmill.open(checkout / "runs/layouts/dataset").table(["labels", "boxes", "controls"]).to_pylist()
    assert all(row["controls"][0]["image"].startswith("<svg") for row in rows)
    assert all(len(json.loads(row["labels"])) == len(json.loads(row["boxes"])) for row in rows)


def test_a_drawing_has_the_pixels_of_the_map_that_the_controlnet_was_trained_on():
    module = runpy.run_path(str(FOLDER / "make_manifest.py"))
    for shape in SHAPES:
        thing = Thing(shape, "red", "large", "left")
        drawn = np.asarray(draw(module["drawing"]((thing,)).encode(), 10**6, (64, 64)).convert("RGB"))
        left, top, width, height = module["box_of"](thing)
        covered = cover(np.array(SHAPES.index(shape)), np.array([left + width / 2, top + height / 2]), np.array(width / 2))
        trained = segmentation(((covered > 0.5) * (1 + SHAPES.index(shape))).astype(np.uint8))
        assert (drawn != trained).any(-1).mean() < 0.01, shape  # a pixel of the edge here and there


def test_prompts_say_no_place_and_layouts_are_of_scenes_that_training_never_saw():
    rows = list(runpy.run_path(str(FOLDER / "make_manifest.py"))["rows"](20))
    for row in rows:
        assert all(thing.place is None and thing.size is None for thing in parse(row["prompt"]).things)
        wanted = parse(row["wanted"])
        assert isinstance(wanted, Scene) and is_held_out(wanted) and row["labels"] == [thing.shape for thing in wanted.things]
