import dataclasses
import io
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from promptmill.configs.columns import EMBEDDING, always
from promptmill.configs.loading import load
from promptmill.configs.parameters import Growing
from promptmill.manifests.carried import arrow_types
from promptmill.pipelines.scoring import finishing
from promptmill.pipelines.scoring.finishing import Onward, finish
from promptmill.pipelines.work.metadata_rows import ranking_columns
from promptmill.pipelines.work.passes import begin
from promptmill.pipelines.work.recipe import Recipe
from promptmill.pipelines.work.results import Candidate, Failure, Outcome, Rendered, Scored
from promptmill.pipelines.work.units import Placed, Unit
from promptmill.shards.tables import make_table, schema
from tests.pipelines.work.test_units import request

SCORERS = (
    "ranking.scorers=[{name: taste, kind: head, source: ./t.safetensors, ceiling: 7}, {name: pick, kind: preference, source: ./p}]"
)


class Saying:
    """Stands for loaded scorers: says what it is told, image by image."""

    def __init__(self, *scored):
        self.scored = list(scored)

    def score(self, prompts, images):
        assert len(prompts) == len(images) == len(self.scored)
        return self.scored


def scored(clip, **others):
    return Scored(clip, np.array([1, 0], np.float32), others)


def finished(settings, *said, keep=1):
    """The table of one request whose candidates are scored so."""
    config = load("embedded", settings)
    placed = Placed(0, dataclasses.replace(request("a", candidates=len(said)), keep=keep))
    candidates = tuple(Candidate(i, i, np.full((8, 8, 3), i, np.uint8), 1) for i in range(len(said)))
    form = schema(arrow_types({}), 2, declared=ranking_columns(config.ranking))
    made = finish(Unit(0, 0, (placed,)), Rendered((Outcome(0, candidates),)), Saying(*said), Recipe(config, form))
    return make_table([{name: value for name, value in row.items() if name != "image"} for row in made.rows], form)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"taste": math.nan, "pick": 1.0}, "taste_score is nan"),
        ({"taste": 1.0, "pick": math.inf}, "pick_score is inf"),
    ],
)
def test_a_score_that_is_no_number_fails_its_candidate_and_no_other(said, words):
    table = finished([SCORERS, "ranking.weights={pick: 1}"], scored(30.0, **said), scored(20.0, taste=6.0, pick=-5.0))
    assert table["status"].to_pylist() == ["failed", "kept"]
    assert table["error"].to_pylist() == ["non_finite_score", None]
    assert table["error_message"].to_pylist() == [words, None]
    assert table["rank"].to_pylist() == [None, 1]
    assert table["taste_score"].to_pylist() == [None, 6.0]


def test_every_score_is_a_column_and_says_why_a_candidate_is_not_kept():
    said = [scored(30.0, taste=8.0, pick=3.0), scored(20.0, taste=6.0, pick=2.0), scored(25.0, taste=7.0, pick=1.5)]
    table = finished([SCORERS, "ranking.weights={clip: 0.1, pick: 2}"], *said)
    assert table["rank_score"].to_pylist() == [9.0, 6.0, 5.5]
    assert table["rank"].to_pylist() == [1, 2, 3]
    assert table["status"].to_pylist() == ["rejected", "kept", "rejected"]
    assert table["rejected_for"].to_pylist() == ["ceiling_taste", None, "outranked"]
    behind = table.schema.names[table.schema.names.index("clip_score") :][:6]
    assert behind == ["clip_score", "taste_score", "pick_score", "rank_score", "rejected_for", "sha256"]


def test_of_the_same_picture_twice_one_is_kept_and_the_other_says_of_which_it_is_one():
    table = finished(["ranking.diversity={embedding: 0.9}"], scored(20.0), scored(30.0), keep=2)
    assert table["status"].to_pylist() == ["rejected", "kept"]
    assert table["rejected_for"].to_pylist() == ["near_duplicate", None]
    assert table["near_duplicate_of"].to_pylist() == [1, None]


@pytest.mark.parametrize(("floor", "grows"), [(25, False), (35, True)])
def test_a_request_grows_on_past_images_that_are_good_enough_but_break_a_limit(floor, grows):
    growing = Growing(start=1, max=2, until_score=20)
    placed = Placed(0, dataclasses.replace(request("a", candidates=2), growing=growing))
    unit = Unit(0, 0, (placed,), course=begin({0: placed.request}, ()))
    made = Rendered((Outcome(0, (Candidate(0, 0, np.zeros((8, 8, 3), np.uint8), 1),)),))
    config = load("embedded", [f"ranking.min_score={floor}"])
    done = finish(unit, made, Saying(scored(30.0)), Recipe(config, schema({}, 2, growing=True), growing=True))
    assert isinstance(done, Onward) == grows


def test_without_scorers_and_diversity_the_columns_are_as_ever():
    assert finished([], scored(20.0)).schema.names == [*(column.name for column in always()), EMBEDDING]


def test_the_size_of_an_image_is_that_of_its_pixels_where_the_pipeline_chose_another():
    config = load("embedded", ["shards.image_format=png"])
    placed = Placed(0, request("a", candidates=2))
    pixels = np.zeros((8, 16, 3), np.uint8)
    candidates = (Candidate(0, 0, pixels, 1), Candidate(1, 1, None, 1, Failure("render_error", "no")))
    made = finish(Unit(0, 0, (placed,)), Rendered((Outcome(0, candidates),)), Saying(scored(20.0)), Recipe(config, schema({}, 2)))
    kept, failed = made.rows
    assert (kept["width"], kept["height"]) == (16, 8) != (placed.request.width, placed.request.height)
    assert (failed["width"], failed["height"]) == (placed.request.width, placed.request.height)
    image = Image.open(io.BytesIO(kept["image"]))
    assert image.size == (16, 8) and "Size: 16x8," in image.info["parameters"]


def test_images_are_encoded_side_by_side_to_the_same_rows(monkeypatch):
    both, encode = threading.Barrier(2), finishing.encode_image

    def together(*given):
        both.wait(20)  # raises unless another image is being encoded
        return encode(*given)

    config = load("embedded", [])
    placed = Placed(0, dataclasses.replace(request("a", candidates=4), keep=2))
    noise = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    rendered = Rendered((Outcome(0, tuple(Candidate(i, i, one, 1) for i, one in enumerate(noise))),))
    recipe = Recipe(config, schema(arrow_types({}), 2, declared=ranking_columns(config.ranking)))
    told = [scored(float(clip)) for clip in (5, 30, 1, 20)]
    alone = finish(Unit(0, 0, (placed,)), rendered, Saying(*told), recipe)
    monkeypatch.setattr(finishing, "encode_image", together)
    with ThreadPoolExecutor(2) as pool:
        spread = finish(Unit(0, 0, (placed,)), rendered, Saying(*told), recipe, spread=pool.map)
    assert [row["key"] for row in spread.rows if row["image"]] == [row["key"] for row in alone.rows if row["image"]]
    assert len([row for row in spread.rows if row["image"]]) == 2
    for one, other in zip(alone.rows, spread.rows, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(value, other[name]) for name, value in one.items())
