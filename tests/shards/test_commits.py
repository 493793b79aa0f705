import dataclasses
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.shards.commits import (
    CommitError,
    CommitRecord,
    FileRecord,
    check_plan,
    check_unopposed,
    commit,
    parse_shard_name,
    read_record,
    read_records,
    shard_name,
)
from promptmill.shards.storage import StorageError, get


def made(shard: int, generation: int = 0) -> CommitRecord:
    name = shard_name(shard, generation)
    files = (FileRecord.of(f"data/{name}.tar", b"tar"), FileRecord.of(f"metadata/{name}.parquet", b"rows"))
    return CommitRecord(shard, generation, files, "f" * 64, requests=4, kept=4, rejected=11, failed=1)


RECORD = made(12)


def test_a_record_reads_back_as_itself_and_is_the_same_bytes_each_time():
    assert CommitRecord.from_json(RECORD.to_json()) == RECORD
    assert CommitRecord.from_json(RECORD.to_json()).to_json() == RECORD.to_json()


def test_committing_the_same_shard_twice_is_success(tmp_path):
    commit(str(tmp_path), RECORD)
    commit(str(tmp_path), RECORD)
    assert get(f"{tmp_path}/commits/000012.json") == RECORD.to_json()


def test_a_contradicting_record_is_refused_and_both_are_named(tmp_path):
    commit(str(tmp_path), RECORD)
    other = dataclasses.replace(RECORD, fingerprint="e" * 64)
    with pytest.raises(CommitError, match=rf"000012.json: is there with fingerprint {'f' * 64}, this run has {'e' * 64}"):
        commit(str(tmp_path), other)
    assert get(f"{tmp_path}/commits/000012.json") == RECORD.to_json()


def test_a_retried_shard_has_a_record_of_its_own(tmp_path):
    commit(str(tmp_path), RECORD)
    commit(str(tmp_path), dataclasses.replace(RECORD, generation=1, kept=5, failed=0))
    assert sorted(p.name for p in (tmp_path / "commits").iterdir()) == ["000012.1.json", "000012.json"]
    assert shard_name(12, 1) == "000012.1"


def test_counts_that_do_not_add_up_are_no_record():
    with pytest.raises(CommitError, match="16 candidates are not 4 kept \\+ 10 rejected \\+ 1 failed"):
        CommitRecord.from_json(RECORD.to_json().replace(b'"rejected": 11', b'"rejected": 10'))


def test_no_more_requests_can_fail_than_there_are():
    with pytest.raises(CommitError, match="5 of 4 requests failed"):
        dataclasses.replace(RECORD, failed_requests=5)


def test_a_contradiction_is_found_before_anything_is_written(tmp_path):
    check_unopposed(str(tmp_path), RECORD)
    commit(str(tmp_path), RECORD)
    check_unopposed(str(tmp_path), RECORD)
    with pytest.raises(CommitError, match="is there with kept 4, this run has 5"):
        check_unopposed(str(tmp_path), dataclasses.replace(RECORD, kept=5, rejected=10))


def test_of_each_shard_the_last_record_is_read_in_their_order(tmp_path):
    records = [made(*pair) for pair in [(2, 0), (10, 0), (0, 2), (0, 10), (0, 0)]]
    for record in records:
        commit(str(tmp_path), record)
    (tmp_path / "commits" / "notes.txt").write_text("not ours")
    assert [(record.shard, record.generation) for record in read_records(str(tmp_path))] == [(0, 10), (2, 0), (10, 0)]
    assert read_records(str(tmp_path / "nothing")) == []


def test_records_are_read_many_at_a_time(tmp_path, monkeypatch):
    for shard in range(16):
        commit(str(tmp_path), made(shard))
    # Whoever reads one after another waits here for the others, in vain.
    together = threading.Barrier(16)

    def waiting(uri, most):
        together.wait(timeout=20)
        return get(uri, most)

    monkeypatch.setattr("promptmill.shards.commits.get", waiting)
    assert [record.shard for record in read_records(str(tmp_path))] == list(range(16))


def test_a_record_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "commits" / "000003.json").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"commits/000003.json: is a folder, not a regular file"):
        read_record(str(tmp_path), 3)


def test_records_of_another_plan_are_refused(tmp_path):
    check_plan(str(tmp_path), [RECORD], "f" * 64)
    with pytest.raises(CommitError, match=rf"commits/000012.json: is of another plan, {'f' * 16}, this one is {'e' * 16}"):
        check_plan(str(tmp_path), [RECORD], "e" * 64)


def test_a_record_under_another_shards_name_is_refused(tmp_path):
    commit(str(tmp_path), RECORD)
    (tmp_path / "commits" / "000012.json").rename(tmp_path / "commits" / "000013.json")
    with pytest.raises(CommitError, match=r"commits/000013.json: is the record of 000012"):
        read_record(str(tmp_path), 13)


@given(st.integers(0, 10**7), st.integers(0, 20))
def test_names_of_shards_read_back(shard, generation):
    assert parse_shard_name(shard_name(shard, generation)) == (shard, generation)


@pytest.mark.parametrize("name", ["", "12", "000012.0", "000012.", "000012.01", "00001a", " 00012", "-00012", "000012.1.1"])
def test_other_names_are_none(name):
    assert parse_shard_name(name) is None


NOT_A_NUMBER = RECORD.to_json().replace(b'"shard": 12', b'"shard": "12"')


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"files": []}', RECORD.to_json()[:-20], NOT_A_NUMBER])
def test_a_broken_record_says_so(content):
    with pytest.raises(CommitError, match="not a commit record"):
        CommitRecord.from_json(content)
