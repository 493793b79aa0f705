"""A run with scorers and diversity, of the embedded family."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from promptmill.configs.loading import load
from promptmill.jobs.cli import main
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.planning.sources import look
from promptmill.jobs.report.making import make
from promptmill.jobs.report.page import page
from promptmill.jobs.verifying.problems import Problem
from promptmill.jobs.verifying.verify import verify
from promptmill.pipelines.scoring.scorers import load_scorers
from promptmill.shards.tars import read_tar
from tests.jobs.running.test_run import HERE
from tests.pipelines.scoring import tiny_preference

PROMPTS = [
    "a large red circle at the left on a green background",
    "a small blue square at the top on a white background",
    "a large yellow cross at the center on a black background",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("scored")
    (place / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt, "topic": "shapes"}) + "\n" for prompt in PROMPTS))
    tiny_preference.save(place / "pick")
    torch.manual_seed(0)
    save_file(nn.Linear(128, 1).state_dict(), place / "taste.safetensors")
    save_file(nn.Linear(99, 1).state_dict(), place / "wide.safetensors")
    return place


def settings(folder, head="taste", **more):
    scorers = [
        {"name": "pick", "kind": "preference", "source": str(folder / "pick")},
        {"name": "taste", "kind": "head", "source": str(folder / f"{head}.safetensors"), **more},
    ]
    return [
        f"manifest={folder / 'prompts.jsonl'}", "defaults.steps=2", "defaults.candidates=4", "defaults.keep=3",
        "model.batch=4", HERE, f"ranking.scorers={json.dumps(scorers)}",
        "ranking.weights={clip: 0.5, pick: 2}", "ranking.diversity={embedding: 0.9, hash: 4}",
    ]  # fmt: skip


def command(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_a_run_scores_ranks_and_says_why_by_the_command_line(folder):
    out = folder / "out"
    given = [argument for setting in settings(folder, ceiling=0.05) for argument in ("--set", setting)]
    result = command("run", "embedded", "--out", out, *given)
    assert result.exit_code == 0, result.output
    assert [problem for problem in verify(str(out)) if isinstance(problem, Problem)] == []

    table = pq.read_table(out / "metadata/000000.parquet")
    rows = table.to_pylist()
    names = table.schema.names
    at = names.index("clip_score")
    assert names[at + 1 : names.index("sha256")] == [
        "pick_score", "taste_score", "rank_score", "rejected_for", "near_duplicate_of"
    ]  # fmt: skip
    assert len(rows) == 12
    for row in rows:
        assert row["rank_score"] == pytest.approx(0.5 * row["clip_score"] + 2 * row["pick_score"], rel=1e-6)
        assert (row["rejected_for"] is None) == row["selected"]
        assert (row["near_duplicate_of"] is None) == (row["rejected_for"] != "near_duplicate")
        assert (row["rejected_for"] == "ceiling_taste") == (row["taste_score"] > np.float32(0.05))
    for prompt in PROMPTS:
        some = sorted((row for row in rows if row["prompt"] == prompt), key=lambda row: row["rank"])
        assert [row["rank"] for row in some] == [1, 2, 3, 4]
        assert [row["rank_score"] for row in some] == sorted((row["rank_score"] for row in some), reverse=True)
        assert sum(row["selected"] for row in some) <= 3

    # The same scores as of the same pictures alone, and in the JSON beside them.
    scorers = load_scorers(load("embedded", settings(folder)).ranking, "cpu")
    by_key = {row["key"]: row for row in rows}
    for sample in read_tar((out / "data/000000.tar").read_bytes()):
        row, said = by_key[sample.key], json.loads(sample.files["json"])
        (scored,) = scorers.score([row["prompt"]], [np.asarray(Image.open(io.BytesIO(sample.files["png"])))])
        assert {name: np.float32(score) for name, score in scored.others.items()} == {
            "pick": np.float32(row["pick_score"]), "taste": np.float32(row["taste_score"])
        }  # fmt: skip
        assert said["rank_score"] == row["rank_score"] and said["rejected_for"] is None
    assert "| `taste_score` | `float` | of the scorer taste |" in (out / "README.md").read_text()

    # The output is a manifest again, of which the scores are not carried.
    second = make_plan(look(load("embedded", [f"manifest={out}/metadata/000000.parquet"])), str(folder / "second"))
    assert list(second.carried) == ["topic"]
    exported(out, rows)
    # Another weight is another plan.
    changed = command("run", "embedded", "--out", out, *given, "--set", "ranking.weights.pick=3")
    assert changed.exit_code == 2 and "config.ranking.weights.pick: was 2.0, is 3.0" in changed.stderr


def exported(out, rows):
    """What is made of the dataset goes by the rank score, too."""
    report = make(str(out))
    shown = page(report).decode()
    assert report.facts.scores.all.mean == pytest.approx(np.mean([row["rank_score"] for row in rows]))
    assert "mean rank score, kept" in shown and "mean CLIP score" not in shown and "0.5 × clip + 2 × pick" in shown
    best = next(row for row in rows if row["key"] == report.facts.best[0])
    assert report.shown[best["key"]].score == best["rank_score"]

    result = command("export", out, "--pairs", out.parent / "pairs.jsonl", "--images", "none")
    assert result.exit_code == 0, result.output
    by_key = {row["key"]: row for row in rows}
    for pair in map(json.loads, (out.parent / "pairs.jsonl").read_text().splitlines()):
        better, worse = by_key[pair["image_0_uid"]], by_key[pair["image_1_uid"]]
        among = [row for row in rows if row["id"] == pair["id"]]
        assert better["rank"] == min(row["rank"] for row in among if row["rejected_for"] != "ceiling_taste")
        assert worse["rank"] == 4 and (pair["score_0"], pair["score_1"]) == (better["rank_score"], worse["rank_score"])

    result = command("export", out, "--manifest", out.parent / "refine.jsonl")
    assert result.exit_code == 0, result.output
    for row in map(json.loads, (out.parent / "refine.jsonl").read_text().splitlines()):
        assert row["source_score"] == by_key[row["id"]]["rank_score"]
        assert not {"pick_score", "taste_score", "rank_score", "rejected_for", "near_duplicate_of"} & set(row)


def test_a_plan_refuses_a_head_of_the_wrong_width_in_one_line(folder):
    with pytest.raises(PlanError) as caught:
        look(load("embedded", settings(folder, head="wide")))
    wide = folder / "wide.safetensors"
    assert caught.value.problems == (
        f"ranking.scorers.taste: {wide} takes embeddings of 99 numbers, and those of clip have 128",
    )  # fmt: skip


def test_a_column_named_like_a_declared_score_is_a_bad_row(folder, tmp_path):
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "a", "taste_score": 5}) + "\n")
    config = load("embedded", [*settings(folder), f"manifest={tmp_path / 'prompts.jsonl'}"])
    with pytest.raises(PlanError, match="taste_score: the output has a column of its own with this name; rename it"):
        make_plan(look(config), str(tmp_path / "out"))
