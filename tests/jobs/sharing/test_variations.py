"""Variations of winners: exported as a manifest, rendered, told of by the metadata, and made again bit for bit."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

import promptmill
from promptmill.configs.loading import load
from promptmill.jobs.cli import main
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.planning.sources import look
from promptmill.jobs.verifying.regenerate import regenerate
from tests.jobs.running.test_run import HERE, problems, rendered

PROMPT = "a small red circle at the left on a black background"
SETTINGS = ("model.batch=4", "defaults.steps=4", "defaults.candidates=3", "defaults.scheduler=euler", HERE)


def config_of(manifest, *settings):
    return load("embedded", [f"manifest={manifest}", *SETTINGS, *settings])


@pytest.fixture(scope="module")
def winners(tmp_path_factory):
    folder = tmp_path_factory.mktemp("winners")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"id": name, "prompt": PROMPT, "label": name}) + "\n" for name in "ab"))
    rendered(config_of(folder / "rows.jsonl", "stages=[{kind: hires, strength: 0.5}]"), folder / "out")
    return folder


@pytest.fixture(scope="module")
def varied(winners):
    done = CliRunner().invoke(
        main, ["export", str(winners / "out"), "--manifest", str(winners / "more.jsonl"), "--variations", "4", "--strength", "0.25"]
    )
    assert done.exit_code == 0 and done.output == f"{winners / 'more.jsonl'}: 2 rows\n", done.output
    assert not (winners / "more-images").exists()  # noise is what they begin with
    rendered(config_of(winners / "more.jsonl"), winners / "more")
    return winners / "more"


def test_each_winner_gets_so_many_variations_of_its_own_request_seed_and_rendered_size(winners, varied):
    rows = [json.loads(line) for line in (winners / "more.jsonl").read_text().splitlines()]
    firsts = {row["key"]: row for row in promptmill.open(winners / "out").table().to_pylist() if row["selected"]}
    assert [row["id"] for row in rows] == list(firsts)
    for row in rows:
        first = firsts[row["id"]]
        assert (row["prompt"], row["seed"], row["label"], row["steps"]) == (first["prompt"], first["seed"], first["label"], 4)
        assert (row["width"], row["height"], first["width"]) == (64, 64, 128)
        assert (row["candidates"], row["keep"], row["variation_strength"]) == (4, 4, 0.25)
        assert "init_image" not in row and row["source_score"] == first["clip_score"]
    made = promptmill.open(varied).table().to_pylist()
    assert len(made) == 8 and problems(varied) == []
    for row in made:
        first = next(one for one in rows if one["id"] == row["id"])
        assert row["seed"] == first["seed"] and row["variation_strength"] == 0.25
        assert row["variation_seed"] == (first["variation_seed"] + row["candidate_index"]) % 2**32
    assert len({row["pixel_sha256"] for row in made}) == 8


def test_variations_are_made_again_bit_for_bit_and_stand_as_rows_of_their_own(varied, tmp_path):
    rows = promptmill.open(varied).table().to_pylist()
    assert regenerate(str(varied), rows[2]["key"]).same
    # With its own seeds an image is a row of one candidate, as `export --manifest --seeds` and a second pass write it.
    names = ("prompt", "seed", "variation_seed", "variation_strength", "steps", "guidance_scale", "scheduler")
    (tmp_path / "one.jsonl").write_text(json.dumps({**{name: rows[3][name] for name in names}, "candidates": 1}) + "\n")
    rendered(config_of(tmp_path / "one.jsonl"), tmp_path / "one")
    (again,) = promptmill.open(tmp_path / "one").table().to_pylist()
    assert again["pixel_sha256"] == rows[3]["pixel_sha256"]


def test_a_variation_has_no_variations_of_its_own(varied, tmp_path):
    done = CliRunner().invoke(main, ["export", str(varied), "--manifest", str(tmp_path / "x.jsonl"), "--variations", "2"])
    assert done.exit_code != 0 and "000000-00000-0000 is a variation itself, and no row says noise near to its own" in done.output
    assert not list(tmp_path.iterdir())


def test_rejected_images_make_no_pairs_with_those_that_went_through_stages(winners, tmp_path):
    words = ["export", str(winners / "out"), "--pairs", str(tmp_path / "x.parquet"), "--images"]
    done = CliRunner().invoke(main, [*words, "all"])
    assert done.exit_code != 0 and "kept images have gone through stages, and rejected ones have not" in done.output
    assert done.output.count("\n") == 1 and CliRunner().invoke(main, [*words, "none"]).exit_code == 0


def test_a_second_pass_over_variations_has_noise_of_its_own_without_seeds(varied, tmp_path):
    for words, there in (((), False), (("--seeds",), True)):
        done = CliRunner().invoke(main, ["export", str(varied), "--manifest", str(tmp_path / "next.jsonl"), *words])
        assert done.exit_code == 0, done.output
        row = json.loads((tmp_path / "next.jsonl").read_text().splitlines()[0])
        assert all((name in row) is there for name in ("seed", "variation_seed", "variation_strength"))


def test_the_more_other_noise_the_further_the_image_is(tmp_path):
    rows = [{"prompt": PROMPT, "seed": 5, "variation_seed": 9, "variation_strength": s, "candidates": 1} for s in (0, 0.1, 0.9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rendered(config_of(tmp_path / "rows.jsonl"), tmp_path / "out")
    images = [np.asarray(image).astype(int) for _, image, _ in promptmill.open(tmp_path / "out").images()]
    near, far = (np.abs(image - images[0]).mean() for image in images[1:])
    assert 0 < near < far


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            {"variation_seed": 3},
            "variation_strength: missing; a row that varies noise has a variation_seed and a variation_strength",
        ),
        ({"variation_strength": 0.3}, "variation_seed: missing; a row that varies noise has"),
        ({"variation_seed": 3, "variation_strength": 1.5}, "variation_strength: input should be less than or equal to 1"),
        ({"variation_seed": -1, "variation_strength": 0.5}, "variation_seed: input should be greater than or equal to 0"),
    ],
)
def test_a_row_that_varies_by_halves_is_refused(tmp_path, row, problem):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", **row}) + "\n")
    with pytest.raises(PlanError) as raised:
        make_plan(look(config_of(tmp_path / "rows.jsonl")), str(tmp_path / "out"))
    assert problem in raised.value.problems[0]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--variations", "2", "--as", "control"), "--as is not for --variations, which have the image's own request and seed"),
        (("--variations", "2", "--seeds"), "--seeds is not for --variations"),
        (("--variations", "2", "--scale", "2"), "--scale is for --as control"),
        (("--variations", "0"), "0 is not in the range"),
    ],
)
def test_options_that_do_not_go_with_variations_are_refused(winners, tmp_path, words, problem):
    done = CliRunner().invoke(main, ["export", str(winners / "out"), "--manifest", str(tmp_path / "x.jsonl"), *words])
    assert done.exit_code != 0 and problem in done.output
