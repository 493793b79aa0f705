import hashlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.shards import single_images
from promptmill.shards.commits import FileRecord
from promptmill.shards.sidecars import encode_rows
from promptmill.shards.single_images import pick, places
from promptmill.shards.storage import get, join, put
from promptmill.shards.tables import make_table
from promptmill.shards.tars import Sample, write_tar
from tests.shards.made import FORM, candidate

prompts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=600), min_size=1, max_size=5)
DATA = "data/000000.tar"


def made(prompts, ending="png", spaced=b""):
    """A shard's metadata and tar: every second candidate kept."""
    rows = [candidate(0, row, index, "kept" if index else "rejected") for row in range(len(prompts)) for index in (0, 1)]
    for row in rows:
        row |= {"prompt": prompts[int(row["key"][7:12])]}
    images = {row["key"]: row.pop("image") for row in rows if row["selected"]}
    table = make_table(rows, FORM)
    kept = table.filter(table["selected"])
    samples = [
        Sample(key, {ending: images[key], "txt": prompt.encode(), "json": described + spaced})
        for key, prompt, described in zip(kept["key"].to_pylist(), kept["prompt"].to_pylist(), encode_rows(kept), strict=True)
    ]
    return table, write_tar(samples), images


@given(prompts, st.sampled_from(["png", "jpg", "webp"]))
def test_an_image_lies_where_the_rows_say(prompts, ending):
    table, tar, images = made(prompts, ending)
    with tarfile.open(fileobj=io.BytesIO(tar)) as read:
        there = {m.name: (m.offset, m.size) for m in read if m.name.endswith(ending)}
    assert {place.name: (place.start, place.size) for _, place in places(table, ending)} == there
    assert [key for key, _ in places(table, ending)] == list(images)


@pytest.fixture
def shard(tmp_path):
    table, tar, images = made(["a", "b", "c"])
    put(join(str(tmp_path), DATA), tar)
    return str(tmp_path), FileRecord.of(DATA, tar), table, images


def test_only_what_is_wanted_is_read(shard, monkeypatch):
    output, file, table, images = shard
    monkeypatch.setattr(single_images, "get", None)
    key = "000000-00001-0001"
    assert pick(output, file, table, "png", [key]) == {key: images[key]}


def test_the_same_on_s3(shard, s3_bucket):
    output, file, table, images = shard
    put(join(s3_bucket, DATA), get(join(output, DATA)))
    assert pick(s3_bucket, file, table, "png", list(images)) == images
    put(join(s3_bucket, DATA), get(join(output, DATA))[:1000])
    assert pick(s3_bucket, file, table, "png", list(images)) == {}


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_a_tar_that_is_laid_out_otherwise_is_read_all_the_same(tmp_path, image_format):
    table, tar, images = made(["a", "b", "c"], spaced=b" " * 600)
    put(join(str(tmp_path), DATA), tar)
    assert pick(str(tmp_path), FileRecord.of(DATA, tar), table, image_format, list(images)) == images


def test_what_is_damaged_is_left_out(shard):
    output, file, table, images = shard
    first, *rest = images
    content = get(join(output, DATA)).replace(images[first], images[first][:-1] + b"?")
    put(join(output, DATA), content)
    assert pick(output, file, table, "png", list(images)) == {key: images[key] for key in rest}
    put(join(output, DATA), b"")
    assert pick(output, file, table, "png", list(images)) == {}


def test_hashes_are_of_the_files(shard):
    _, _, table, images = shard
    assert {key: place.sha256 for key, place in places(table, "png")} == {
        k: hashlib.sha256(i).hexdigest() for k, i in images.items()
    }
