import dataclasses

import pytest

from shards.commits import CommitError, CommitRecord, FileRecord, commit, shard_name
from shards.storage import get

RECORD = CommitRecord(12, 0, (FileRecord.of("data/000012.tar", b"tar"),), 4, 16, 4, 11, 1, "f" * 64)


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
        dataclasses.replace(RECORD, rejected=10)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"files": []}', RECORD.to_json()[:-20]])
def test_a_broken_record_says_so(content):
    with pytest.raises(CommitError, match="not a commit record"):
        CommitRecord.from_json(content)
