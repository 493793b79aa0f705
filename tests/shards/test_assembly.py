import dataclasses
import hashlib
import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptmill.shards.assembly import Assembly, AssemblyError, assemble
from promptmill.shards.commits import CommitError, CommitRecord, read_records
from promptmill.shards.index import publish_index
from promptmill.shards.outcomes import Outcomes, count
from promptmill.shards.parts import PartError, write_part
from promptmill.shards.storage import get, join
from promptmill.shards.tables import make_table, read_table, schema
from promptmill.shards.tars import read_tar
from tests.shards.made import FINGERPRINT, FORM, Shard, assembled, candidate, publish, refused, shard, write_parts

PUBLISHED = ("data", "metadata", "commits")


def files(output):
    return {str(p.relative_to(output)): p.read_bytes() for name in PUBLISHED for p in sorted((output / name).glob("*"))}


def test_a_shard_is_its_tar_its_parquet_and_the_record_of_both(tmp_path):
    record = assembled(str(tmp_path), shard(3))
    there = files(tmp_path)
    assert sorted(there) == ["commits/000003.json", "data/000003.tar", "metadata/000003.parquet"]
    assert CommitRecord.from_json(there["commits/000003.json"]) == record
    for file in record.files:
        assert (len(there[file.path]), hashlib.sha256(there[file.path]).hexdigest()) == (file.size, file.sha256)
    # Seven requests of two candidates, and one of two that was refused.
    assert (record.requests, record.candidates, record.kept, record.rejected, record.failed) == (8, 16, 7, 7, 2)
    assert record.failed_requests == 1 and record.fingerprint == FINGERPRINT


def test_samples_are_the_selected_rows_in_their_order(tmp_path):
    assembled(str(tmp_path), shard(0))
    table = read_table((tmp_path / "metadata/000000.parquet").read_bytes())
    assert table.schema.equals(FORM) and table["key"].to_pylist() == sorted(table["key"].to_pylist())
    rows = [row for row in table.to_pylist() if row["selected"]]
    samples = list(read_tar((tmp_path / "data/000000.tar").read_bytes()))
    assert [sample.key for sample in samples] == [row["key"] for row in rows]
    for sample, row in zip(samples, rows, strict=True):
        assert sorted(sample.files) == ["json", "png", "txt"]
        assert sample.files["txt"].decode() == row["prompt"]
        assert hashlib.sha256(sample.files["png"]).hexdigest() == row["sha256"]
        del row["clip_embedding"]
        assert json.loads(sample.files["json"]) == row


def test_every_sample_has_the_same_keys_and_floats_stay_floats(tmp_path):
    assembled(str(tmp_path), shard(0))
    texts = [sample.files["json"].decode() for sample in read_tar((tmp_path / "data/000000.tar").read_bytes())]
    wanted = [name for name in FORM.names if name != "clip_embedding"]
    assert all(list(json.loads(text)) == wanted for text in texts)
    assert '"guidance_scale": 7.0' in texts[0] and '"weight": 7.0' in texts[0] and '"strength": null' in texts[0]
    assert '"guidance_scale": 7.5' in texts[-1] and "“cat”" in texts[0]


def test_doing_it_again_changes_nothing_and_heals_what_was_lost(tmp_path):
    made = shard(0)
    assembled(str(tmp_path), made)
    before = files(tmp_path)
    assembled(str(tmp_path), made)
    assert files(tmp_path) == before
    (tmp_path / "data/000000.tar").unlink()
    assembled(str(tmp_path), made)
    assert files(tmp_path) == before


ROWS = [candidate(0, row, index, ("kept", "rejected")[index]) for row in range(5) for index in range(2)]


@settings(max_examples=15)
@given(st.lists(st.integers(0, 3), min_size=5, max_size=5), st.randoms())
def test_the_same_rows_make_the_same_bytes_however_they_were_cut_into_parts(tmp_path_factory, units, random):
    outputs = [tmp_path_factory.mktemp("cut") for _ in range(2)]
    shuffled = list(range(4))
    random.shuffle(shuffled)
    cut = tuple(tuple(row for row in ROWS if units[int(row["key"].split("-")[1])] == unit) for unit in shuffled)
    for output, parts in zip(outputs, ((tuple(ROWS),), tuple(part for part in cut if part)), strict=True):
        assembled(str(output), Shard(0, parts, (refused(0, 5),), 6, 12))
    assert files(outputs[0]) == files(outputs[1])


def test_a_shard_without_winners_has_no_tar_and_says_so(tmp_path):
    record = assembled(str(tmp_path), shard(0, statuses=("rejected", "failed")))
    assert [file.path for file in record.files] == ["metadata/000000.parquet"]
    assert sorted(files(tmp_path)) == ["commits/000000.json", "metadata/000000.parquet"]
    assert (record.kept, record.rejected, record.failed, record.failed_requests) == (0, 7, 9, 1)


def test_a_shard_whose_requests_all_failed_before_any_part(tmp_path):
    record = assembled(str(tmp_path), Shard(0, (), (refused(0, 0), refused(0, 1, None)), 2, 2))
    # A row too broken to say how many candidates it asks for asks for none.
    assert (record.requests, record.candidates, record.failed, record.failed_requests) == (2, 2, 2, 2)


def test_a_generation_has_files_of_its_own(tmp_path):
    made = shard(0)
    assembled(str(tmp_path), made)
    before = files(tmp_path)
    record = assembled(str(tmp_path), made, generation=1)
    assert [file.path for file in record.files] == ["data/000000.1.tar", "metadata/000000.1.parquet"]
    assert {path: content for path, content in files(tmp_path).items() if ".1." not in path} == before


def test_what_another_plan_has_committed_is_not_touched(tmp_path):
    assembled(str(tmp_path), shard(0))
    before = files(tmp_path)
    with pytest.raises(CommitError, match=r"000000.json: is there with files"):
        assembled(str(tmp_path), shard(0, requests=6), fingerprint="e" * 64)
    assert files(tmp_path) == before


def without_last_part(made):
    return dataclasses.replace(made, parts=made.parts[:-1])


def altered(made, **values):
    """The shard with other values in the first row of its first part."""
    (first, *rows), *parts = made.parts
    return dataclasses.replace(made, parts=((first | values, *rows), *parts))


def doubled(made):
    (first, *rows), *parts = made.parts
    return dataclasses.replace(made, parts=((first, *rows, first), *parts))


@pytest.mark.parametrize(
    ("break_", "says"),
    [
        (without_last_part, r"5 requests are settled of 8 planned"),
        (lambda made: dataclasses.replace(made, failed=()), r"7 requests are settled of 8 planned"),
        (lambda made: dataclasses.replace(made, planned=17), r"7 kept \+ 7 rejected \+ 2 failed are not the 17 candidates"),
        (lambda made: dataclasses.replace(made, failed=(refused(0, 7, 3),)), r"7 rejected \+ 3 failed are not the 16"),
        (doubled, r"000000-00000-0000: occurs twice"),
        (lambda made: dataclasses.replace(made, failed=(*made.failed, refused(1, 7))), r"000001-00007: is of another shard, 1"),
        (lambda made: altered(made, shard=1), r"000000-00000-0000: is of another shard, 1"),
        (lambda made: altered(made, selected=False), r"000000-00000-0000: is kept, but selected is False"),
        (lambda made: altered(made, image=None), r"000000-00000-0000: is kept, but has no image"),
        (lambda made: altered(made, status="rejected", selected=False), r"000000-00000-0000: is rejected, but has an image"),
        (lambda made: altered(made, status="lost", selected=False, image=None), r"its status is lost, not one of kept"),
        (lambda made: altered(made, image=b"other"), r"000000-00000-0000: its image does not have the SHA-256 of its row"),
    ],
)
def test_parts_that_do_not_make_up_the_shard_publish_nothing(tmp_path, break_, says):
    with pytest.raises(AssemblyError, match=rf"shard 000000: .*{says}"):
        assembled(str(tmp_path), break_(shard(0)))
    assert not files(tmp_path)


def test_a_damaged_or_missing_part_publishes_nothing(tmp_path):
    made = shard(0)
    names = write_parts(str(tmp_path), made)
    part = tmp_path / "parts" / names[0]
    part.write_bytes(part.read_bytes()[:-1])
    made_of = Assembly(0, names, made.failed, made.requests, made.planned)
    with pytest.raises(PartError, match=names[0]):
        assemble(str(tmp_path), made_of, FORM, "png", FINGERPRINT)
    part.unlink()
    with pytest.raises(FileNotFoundError):
        assemble(str(tmp_path), made_of, FORM, "png", FINGERPRINT)
    assert not files(tmp_path)


def test_parts_of_another_plan_are_not_mixed_in(tmp_path):
    made = shard(0)
    names = write_parts(str(tmp_path), made)
    write_part(str(tmp_path), names[1], made.parts[1], FORM, "e" * 64)
    with pytest.raises(PartError, match=rf"{names[1]}: is of another plan, {'e' * 16}"):
        assemble(str(tmp_path), Assembly(0, names, made.failed, made.requests, made.planned), FORM, "png", FINGERPRINT)
    assert not files(tmp_path)


def test_the_plan_is_in_the_record_and_in_no_other_published_byte(tmp_path):
    outputs = [tmp_path / plan for plan in "ef"]
    for output in outputs:
        assembled(str(output), shard(0), fingerprint=output.name * 64)
    first, second = (files(output) for output in outputs)
    assert first.pop("commits/000000.json") != second.pop("commits/000000.json")
    assert first == second


@given(st.lists(st.lists(st.sampled_from(["kept", "rejected", "failed"]), max_size=4), min_size=1, max_size=8))
def test_requests_and_candidates_are_counted_by_what_became_of_them(requests):
    """No candidates stands for a request that failed as a whole, three planned."""
    rows = [candidate(0, row, index, status) for row, statuses in enumerate(requests) for index, status in enumerate(statuses)]
    rows += [refused(0, row, 3) for row, statuses in enumerate(requests) if not statuses]
    table = make_table(({name: value for name, value in row.items() if name != "image"} for row in rows), FORM)
    flat = [status for statuses in requests for status in statuses] + ["failed"] * 3 * requests.count([])
    failed_requests = sum(set(statuses) <= {"failed"} for statuses in requests)
    counted = {status: flat.count(status) for status in ("kept", "rejected", "failed")}
    wanted = Outcomes(requests=len(requests), failed_requests=failed_requests, **counted)
    assert count(table) == wanted and wanted.candidates == len(flat)


def test_numbers_that_json_does_not_have_are_null(tmp_path):
    form = schema({"weight": pa.float64(), "nested": pa.list_(pa.struct([("x", pa.float64())]))}, 4)
    row = {name: value for name, value in candidate(0, 0, 0, "kept").items() if name not in ("topic", "tags")}
    row |= {"weight": float("-inf"), "nested": [{"x": float("nan")}, {"x": 7.0}]}
    assembled(str(tmp_path), Shard(0, ((row,),), (), 1, 1), form=form)
    (sample,) = read_tar((tmp_path / "data/000000.tar").read_bytes())
    described = json.loads(sample.files["json"], parse_constant=pytest.fail)
    assert described["weight"] is None and described["nested"] == [{"x": None}, {"x": 7.0}]


def test_the_index_sums_up_the_records_and_is_the_same_bytes_each_time(tmp_path):
    publish(str(tmp_path), [shard(0), shard(1, statuses=("rejected", "failed"))])
    content = (tmp_path / "index.json").read_bytes()
    index = json.loads(content)
    size = sum(len(body) for path, body in files(tmp_path).items() if not path.startswith("commits"))
    counts = {"requests": 16, "candidates": 32, "kept": 7, "rejected": 14, "failed": 11, "failed_requests": 2}
    assert index["totals"] == {"shards": 2, "bytes": size, **counts}
    assert [[file["path"] for file in entry["files"]] for entry in index["shards"]] == [
        ["data/000000.tar", "metadata/000000.parquet"],
        ["metadata/000001.parquet"],
    ]
    assert index["fingerprint"] == FINGERPRINT and (tmp_path / "_SUCCESS").read_bytes() == b""
    publish_index(str(tmp_path), read_records(str(tmp_path)), 2)
    assert (tmp_path / "index.json").read_bytes() == content


def test_no_dataset_is_finished_while_a_shard_is_missing_or_of_another_plan(tmp_path):
    assembled(str(tmp_path), shard(0))
    assembled(str(tmp_path), shard(2))
    with pytest.raises(CommitError, match="2 shards are committed of 3 planned"):
        publish_index(str(tmp_path), read_records(str(tmp_path)), 3)
    assembled(str(tmp_path), shard(1), fingerprint="e" * 64)
    with pytest.raises(CommitError, match=f"its shards are of 2 plans, {'e' * 64}, {FINGERPRINT}"):
        publish_index(str(tmp_path), read_records(str(tmp_path)), 3)
    assert not (tmp_path / "index.json").exists() and not (tmp_path / "_SUCCESS").exists()


def test_parts_may_hold_wide_embeddings_for_rejected_ones_too(tmp_path):
    form = schema({}, 512)
    rows = tuple(
        {name: value for name, value in candidate(0, row, 0, "rejected").items() if name not in ("topic", "weight", "tags")}
        | {"clip_embedding": [row / 64] * 512}
        for row in range(20)
    )
    assembled(str(tmp_path), Shard(0, (rows[::2], rows[1::2]), (), 20, 20), form=form)
    table = read_table((tmp_path / "metadata/000000.parquet").read_bytes())
    assert [values[-1] for values in table["clip_embedding"].to_pylist()] == [row / 64 for row in range(20)]


def test_parts_on_s3_make_the_same_shard(tmp_path, s3_bucket):
    made = shard(0)
    assembled(str(tmp_path), made)
    assembled(join(s3_bucket, "out"), made)
    assert {path: get(join(s3_bucket, "out", path)) for path in files(tmp_path)} == files(tmp_path)
