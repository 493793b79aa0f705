import json
from dataclasses import replace

import pytest

from promptmill.configs.loading import load
from promptmill.jobs.sharing.preference_pairs import export_pairs
from promptmill.jobs.sharing.row_files import ExportError
from promptmill.pipelines.work.metadata_rows import ranking_columns
from promptmill.shards.tables import schema
from tests.shards.made import FORM, publish, shard

DECLARED = ranking_columns(load("embedded", ["manifest=x", "ranking.diversity={embedding: 0.9}"]).ranking)
WITH_REASONS = schema({name: FORM.field(name).type for name in ("topic", "weight", "tags")}, embedding=4, declared=DECLARED)


def rejected_for(reason):
    """A shard of requests whose second candidate has the higher score, and is rejected for this."""
    made = shard(0)
    parts = (tuple({**row, "rejected_for": reason if row["status"] == "rejected" else None} for row in part) for part in made.parts)
    return replace(made, parts=tuple(parts))


@pytest.mark.parametrize("reason", ["floor_clip", "floor_taste", "ceiling_taste"])
def test_what_is_rejected_for_a_limit_is_never_the_better_of_a_pair(tmp_path, reason):
    output = str(tmp_path / "out")
    publish(output, [rejected_for(reason)], form=WITH_REASONS)
    with pytest.raises(ExportError, match="no request has two candidates that differ in score"):
        export_pairs(output, tmp_path / "pairs.jsonl", "none")
    assert not (tmp_path / "pairs.jsonl").exists()


@pytest.mark.parametrize("reason", ["outranked", "near_duplicate"])
def test_what_is_rejected_for_anything_else_may_be_the_better_of_a_pair(tmp_path, reason):
    output = str(tmp_path / "out")
    publish(output, [rejected_for(reason)], form=WITH_REASONS)
    assert export_pairs(output, tmp_path / "pairs.jsonl", "none").pairs == 7
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert all(row["image_0_uid"].endswith("-0001") and row["image_1_uid"].endswith("-0000") for row in rows)
