"""Candidates planned = kept + rejected + drafted + failed + spared; where there are none of the rare ones, nobody says so."""

import json

import pyarrow as pa
import pytest

from promptmill.configs.columns import DRAFT_SCORES, SPARED
from promptmill.shards.assembly import AssemblyError
from promptmill.shards.card import Made, card
from promptmill.shards.commits import CommitError, CommitRecord, read_records
from promptmill.shards.index import encode_index, total
from promptmill.shards.outcomes import Outcomes, count
from promptmill.shards.tables import make_table, schema
from tests.shards.made import Shard, assembled, candidate, shard

CARRIED = {"topic": pa.string(), "weight": pa.float64(), "tags": pa.list_(pa.string())}
FORM = schema(CARRIED, 4, drafts=True, growing=True)


def row(request, index, status, spared=0, candidates=4, **more):
    made = candidate(0, request, index, "failed" if status == "drafted" else status)
    said = {"status": status, "candidates": candidates, SPARED: spared, DRAFT_SCORES: [21.5, None], **more}
    return {**made, **said, **({"error": None, "error_message": None} if status == "drafted" else {})}


# Of four candidates each: one request was finished by a draft, one was spared a candidate, of one no final became an image.
ROWS = (
    *(row(0, index, status) for index, status in enumerate(("drafted", "kept", "drafted", "rejected"))),
    *(row(1, index, status, spared=1) for index, status in enumerate(("kept", "rejected", "failed"))),
    *(row(2, index, status) for index, status in enumerate(("drafted", "drafted", "failed", "drafted"))),
)
COUNTS = Outcomes(requests=3, kept=2, rejected=2, failed=2, failed_requests=1, drafted=5, spared=1)


def table(rows):
    return make_table(({name: value for name, value in row.items() if name != "image"} for row in rows), FORM)


def test_drafted_and_spared_candidates_are_counted_and_a_request_without_a_final_has_failed():
    assert count(table(ROWS)) == COUNTS
    assert COUNTS.candidates == 12


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (ROWS[1:], "000000-00000: 3 rows and 0 spared are not its 4 candidates"),
        ((*ROWS[:4], row(1, 0, "kept", spared=1), *ROWS[5:6]), "000000-00001: 2 rows and 1 spared are not its 4 candidates"),
        ((*ROWS[:3], row(0, 3, "rejected", spared=1)), "000000-00000-0003: says that 1 of 4 candidates were spared, another"),
        ((*ROWS[:3], row(0, 3, "rejected", spared=None)), "000000-00000-0003: says that None of 4 candidates were spared"),
    ],
)
def test_a_row_that_is_missing_is_not_taken_for_one_that_was_spared(rows, says):
    with pytest.raises(ValueError, match=says):
        count(table(rows))


def test_a_shard_of_them_is_settled_and_its_record_index_and_card_say_so(tmp_path):
    made = Shard(0, (ROWS[:5], ROWS[5:]), (), 3, 12)
    record = assembled(str(tmp_path), made, form=FORM)
    assert (record.candidates, record.drafted, record.spared) == (12, 5, 1)
    assert read_records(str(tmp_path)) == [record]
    (said,) = json.loads(encode_index([record]))["shards"]
    assert (said["drafted"], said["spared"]) == (5, 1)
    page = card(Made(total([record]), FORM, "png", 90, ())).decode()
    assert "| requests | candidates | kept | rejected | failed | drafted | spared | shards | size |" in page
    assert "| 3 | 12 | 2 | 2 | 2 | 5 | 1 | 1 |" in page
    assert "kept, rejected, drafted or failed" in page
    assert f"`{DRAFT_SCORES}` | `list<" in page
    with pytest.raises(AssemblyError, match=r"2 kept \+ 2 rejected \+ 2 failed \+ 5 drafted \+ 1 spared are not the 13 candidates"):
        assembled(str(tmp_path / "more"), Shard(0, made.parts, (), 3, 13), form=FORM)


def test_without_any_of_them_records_index_and_card_are_what_they_were_before_there_were_any(tmp_path):
    record = assembled(str(tmp_path), shard(0))
    for content in (record.to_json(), encode_index([record]), card(Made(total([record]), schema(CARRIED, 4), "png", 90, ()))):
        assert not [word for word in (b"drafted", b"spared", b"draft_scores") if word in content]
    assert CommitRecord.from_json(record.to_json()) == record


def test_a_record_whose_rare_counts_do_not_add_up_or_are_no_numbers_is_refused(tmp_path):
    content = assembled(str(tmp_path), Shard(0, (ROWS,), (), 3, 12), form=FORM).to_json()
    with pytest.raises(CommitError, match=r"12 candidates are not 2 kept \+ 2 rejected \+ 2 failed \+ 4 drafted \+ 1 spared"):
        CommitRecord.from_json(content.replace(b'"drafted": 5', b'"drafted": 4'))
    with pytest.raises(CommitError, match="drafted: input should be a valid integer"):
        CommitRecord.from_json(content.replace(b'"drafted": 5', b'"drafted": 5.0'))
