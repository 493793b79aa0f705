import dataclasses
import random
import shutil

import pytest

from benchmarks.mutations import missed, mutate
from promptmill.jobs.verifying.problems import Problem
from promptmill.jobs.verifying.verify import Verified, verify
from promptmill.shards.commits import FileRecord, read_record, read_records
from promptmill.shards.index import publish_index
from promptmill.shards.storage import delete, get, join, put
from tests.jobs.finished import problems_of, rewrite_record
from tests.shards.made import assembled, shard


def test_a_clean_dataset_has_no_problem_and_its_totals_are_told(output):
    (verified,) = verify(output)
    assert isinstance(verified, Verified) and verified.finished and verified.problems == 0
    totals = verified.totals
    assert (totals.shards, totals.requests, totals.candidates, totals.kept) == (3, 24, 48, 14)


@pytest.mark.parametrize(("form", "quality"), [("jpg", 90), ("webp", 90), ("webp", 100)])
def test_the_other_formats_are_clean_too(tmp_path, form, quality):
    assembled(str(tmp_path), shard(0, image_format=form, quality=quality), form)
    shutil.rmtree(tmp_path / "parts")
    assert problems_of(str(tmp_path)) == []


def test_an_unfinished_dataset_may_have_parts_and_holes(tmp_path):
    assembled(str(tmp_path), shard(2))
    for part in (tmp_path / "parts").iterdir():
        part.rename(part.with_name(part.name.replace("000002", "000003")))
    (verified,) = verify(str(tmp_path))
    assert isinstance(verified, Verified) and not verified.finished


def test_parts_of_a_committed_shard_are_left_over_even_in_an_unfinished_dataset(tmp_path):
    assembled(str(tmp_path), shard(2))
    leftover = "left over, its shard is committed"
    assert problems_of(str(tmp_path)) == [f"parts/000002-0000{unit}.parquet: {leftover}" for unit in range(2)]


def test_an_empty_folder_is_no_dataset(tmp_path):
    assert problems_of(str(tmp_path)) == ["commits: no shard is committed"]


# Damage from outside: a file is touched, its record is not.


@pytest.mark.parametrize("path", ["data/000000.tar", "metadata/000000.parquet", "metadata/000001.parquet", "data/000002.tar"])
def test_every_flipped_byte_is_found_and_its_file_named(output, path):
    content = get(join(output, path))
    for at in range(0, len(content), len(content) // 7):
        put(join(output, path), content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        problems = problems_of(output)
        assert problems[0].startswith(f"{path}: altered; its SHA-256 is ")
        assert all(problem.startswith(path) for problem in problems)


@pytest.mark.parametrize("path", ["data/000000.tar", "metadata/000000.parquet"])
def test_a_truncated_file_is_found_and_named(output, path):
    content = get(join(output, path))
    put(join(output, path), content[:-600])
    problems = problems_of(output)
    assert problems[0] == f"{path}: is of {len(content) - 600:,} bytes, its record says {len(content):,}"
    assert all(problem.startswith(f"{path}: ") for problem in problems)


@pytest.mark.parametrize("path", ["data/000000.tar", "metadata/000001.parquet", "index.json", "_SUCCESS", "README.md"])
def test_a_missing_file_is_found(output, path):
    delete(join(output, path))
    assert problems_of(output) == [f"{path}: missing" + ("" if "/" in path else ", while the dataset is marked as finished")]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("data/000007.tar", "no commit record names it"),
        ("data/000001.tar", "no commit record names it"),
        ("metadata/000000.parquet.bak", "no commit record names it"),
        ("metadata/000000.1.parquet", "no commit record names it"),
        ("commits/notes.txt", "no commit record has this name"),
        ("commits/12.json", "no commit record has this name"),
        ("parts/000000-00001.parquet", "left over, its shard is committed"),
        ("parts/000009-00001.parquet", "left over, its shard is committed"),
    ],
)
def test_a_file_that_nobody_names_is_found(output, path, says):
    put(join(output, path), b"")
    assert problems_of(output) == [f"{path}: {says}"]


@pytest.mark.parametrize("shard_", [0, 1, 2])
def test_a_missing_shard_is_found_in_a_finished_dataset(output, shard_):
    name = f"commits/00000{shard_}.json"
    delete(join(output, name))
    problems = problems_of(output)
    assert problems[0] == f"{name}: missing, while the dataset is marked as finished"
    # Its files are orphans then.
    assert all(f"00000{shard_}." in problem and "no commit record names it" in problem for problem in problems[1:])
    assert len(problems) == (2 if shard_ == 1 else 3)


@pytest.mark.parametrize(
    "alter", [lambda c: c.replace(b'"kept": 14', b'"kept": 15'), lambda c: b"", lambda c: b"[1]", lambda c: c[:-1]]
)
def test_an_index_that_is_not_of_the_records_is_found(output, alter):
    put(join(output, "index.json"), alter(get(join(output, "index.json"))))
    assert problems_of(output) == ["index.json: is not what the commit records make it"]


@pytest.mark.parametrize("alter", [lambda c: b"", lambda c: c[:-9], lambda c: c.replace(b'"shard": 0', b'"shard": 2')])
def test_a_broken_record_is_named_and_the_rest_is_still_looked_at(output, alter):
    put(join(output, "commits/000000.json"), alter(get(join(output, "commits/000000.json"))))
    delete(join(output, "data/000002.tar"))
    first, *others = problems_of(output)
    assert first.startswith("commits/000000.json: ") and others == ["data/000002.tar: missing"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"requests": 9}, "says requests 9, metadata/000000.parquet has 8"),
        ({"failed_requests": 0}, "says failed_requests 0, metadata/000000.parquet has 1"),
        ({"failed": 3}, "says candidates 17, metadata/000000.parquet has 16"),
        ({"kept": 8, "rejected": 6}, "says kept 8, metadata/000000.parquet has 7"),
    ],
)
def test_a_wrong_count_is_found(output, values, says):
    rewrite_record(output, **values)
    assert f"commits/000000.json: {says}" in problems_of(output)


def test_a_record_that_names_other_files_is_found(output):
    record = read_record(output, 0)
    rewrite_record(output, files=record.files[1:])
    problems = problems_of(output)
    names = "metadata/000000.parquet"
    assert f"commits/000000.json: names {names}, where the shard has data/000000.tar, {names}" in problems
    rewrite_record(output, files=(*record.files, FileRecord.of("../outside", b"")))
    (problem,) = problems_of(output)
    assert problem.startswith("commits/000000.json: names ../outside, ")


def test_records_of_two_plans_are_found(output):
    rewrite_record(output, fingerprint="e" * 64)
    assert problems_of(output) == [f"commits: the records are of 2 plans, {'e' * 64}, {'f' * 64}"]


def test_every_problem_says_which_shard_has_to_be_made_again(output):
    for path in ("data/000009.tar", "parts/000000-00001.parquet", "commits/notes.txt"):
        put(join(output, path), b"")
    put(join(output, "commits/000000.1.json"), get(join(output, "commits/000000.json")))
    put(join(output, "_SUCCESS"), b"yes")
    put(join(output, "commits/000001.json"), b"{}")
    delete(join(output, "data/000002.tar"))
    delete(join(output, "README.md"))
    found = {problem.file: (problem.shard, problem.surplus) for problem in verify(output) if isinstance(problem, Problem)}
    assert found == {
        "data/000009.tar": (None, True),
        "parts/000000-00001.parquet": (None, True),
        "commits/notes.txt": (None, True),
        "commits/000000.1.json": (None, True),
        "_SUCCESS": (None, False),
        "README.md": (None, False),
        "commits/000001.json": (1, False),
        "data/000002.tar": (2, False),
    }


@pytest.mark.parametrize("what", ["sha256", "size", "path"])
def test_a_record_that_is_wrong_of_its_file_is_named_and_the_file_is_not(output, what):
    record = read_record(output, 0)
    tar, parquet = record.files
    wrong = dataclasses.replace(tar, **{what: {"sha256": "0" * 64, "size": 7, "path": "data/000000.tbr"}[what]})
    rewrite_record(output, index=False, files=(wrong, parquet))
    problems = problems_of(output)
    # Under another path it is also what nobody names.
    (problem,) = (problem for problem in problems if problem != "data/000000.tar: no commit record names it")
    assert problem.startswith("commits/000000.json: ") and len(problems) == 1 + (what == "path")


def test_without_its_record_a_shard_is_looked_at_by_what_the_index_says(output):
    put(join(output, "commits/000000.json"), b"{}")
    delete(join(output, "data/000000.tar"))
    first, second = problems_of(output)
    assert first.startswith("commits/000000.json: not a commit record: ") and second == "data/000000.tar: missing"


def test_a_record_written_otherwise_than_records_are_is_found(output):
    put(join(output, "commits/000000.json"), get(join(output, "commits/000000.json")) + b" ")
    assert problems_of(output) == ["commits/000000.json: is not written as records are"]


# At random.


@pytest.mark.parametrize("seed", range(4))
def test_of_random_damage_every_file_is_named(clean_planned, tmp_path, seed):
    rng = random.Random(seed)
    for _ in range(15):
        out = shutil.copytree(clean_planned[1], tmp_path / "out")
        mutation = mutate(out, rng)
        assert missed(out, mutation) == [], mutation
        shutil.rmtree(out)


# Generations.


def test_after_another_try_the_last_generation_holds(output):
    assembled(output, shard(0), generation=1)
    shutil.rmtree(f"{output}/parts")
    publish_index(output, read_records(output), 3)
    assert problems_of(output) == []
    for path in ("data/000000.tar", "metadata/000000.parquet"):
        delete(join(output, path))  # superseded
    assert problems_of(output) == []
    delete(join(output, "data/000000.1.tar"))
    assert problems_of(output) == ["data/000000.1.tar: missing"]
