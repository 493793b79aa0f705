"""The example of a classifier renders as many images of each class, and trains with them."""

import json
import runpy
from collections import Counter

import pyarrow as pa

import promptmill
from promptmill.embedded.world import is_held_out, parse
from tests.examples.readme import ROOT, commands, done

FOLDER = ROOT / "examples" / "balanced-classifier"
# Few steps make poor images: every score does.
FAST = "--set defaults.steps=2 --set ranking.min_score=0 --set 'defaults.candidates={start: 2, max: 4, until_score: 94}'"


def test_the_readmes_commands_render_balanced_classes_and_train_with_them(checkout):
    sizes = {"--rows 30": "--rows 2", "config.yaml": f"config.yaml {FAST}", "--quota 24": "--quota 1 --epochs 2"}
    make, run, train = commands("balanced-classifier", sizes)
    done(make, checkout)
    done(run, checkout)
    found = json.loads(done(train, checkout))
    assert len(found["images"]) == 12 and set(found["images"].values()) == {1}
    assert found["drawn pictures"] == 600 and 0 <= found["accuracy"] <= 1
    table = promptmill.open(checkout / "runs/balanced/dataset").table(["label", "selected", "candidates_spared"]).to_pylist()
    assert Counter(row["label"] for row in table if row["selected"]) == dict.fromkeys(found["images"], 2)
    # More images than there are of a class are refused, with the class.
    refused = done(f"{train.replace('--quota 1', '--quota 3')} 2>&1 || true", checkout)
    assert "red circle has 2" in refused and "Traceback" not in refused


class Scored:
    """The table of a dataset of two classes; the image with the score 99 was not kept."""

    def table(self, columns):
        scores = {"red circle": [91, 95, 93], "blue cross": [90, 99, 92]}
        rows = [(f"{label} {number}", label, score, score != 99) for label in scores for number, score in enumerate(scores[label])]
        return pa.Table.from_pylist([dict(zip(columns, row, strict=True)) for row in rows])


def test_the_best_kept_images_of_each_class_are_chosen_and_no_class_has_more():
    chosen = runpy.run_path(str(FOLDER / "train.py"))["best"](Scored(), 2)
    assert {key: label for key, label in chosen.items() if key.rpartition(" ")[0] != label} == {}
    assert set(chosen) == {"red circle 1", "red circle 2", "blue cross 2", "blue cross 0"}


def test_rows_are_balanced_and_nothing_but_the_label_tells_the_class():
    rows = list(runpy.run_path(str(FOLDER / "make_manifest.py"))["rows"](40))
    assert set(Counter(row["label"] for row in rows).values()) == {40} and len({row["id"] for row in rows}) == len(rows)
    seen = {}
    for row in rows:
        scene = parse(row["prompt"])
        (thing,) = scene.things
        assert f"{thing.color} {thing.shape}" == row["label"]
        seen.setdefault(row["label"], set()).add((thing.size, thing.place))
    assert all(len(of) == 10 for of in seen.values())
    assert any(is_held_out(parse(row["prompt"])) for row in rows)
