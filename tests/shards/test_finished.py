import shutil
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from promptmill.shards import finished
from promptmill.shards.commits import CommitError
from tests.shards.made import FORM, SIDE, pixels_of, publish, shard


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A dataset of two shards of seven kept images each, and one of none between them."""
    folder = tmp_path_factory.mktemp("clean") / "out"
    publish(str(folder), [shard(0), shard(1, statuses=("rejected", "failed")), shard(2)])
    return folder


@pytest.fixture
def output(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "out")


KEPT = [f"{number:06d}-{row:05d}-0000" for number in (0, 2) for row in range(7)]


def test_the_table_is_that_of_all_shards_in_their_order(clean):
    whole = finished.table(str(clean))
    parts = [pq.read_table(path) for path in sorted((clean / "metadata").iterdir())]
    assert whole.schema.equals(FORM) and whole.equals(pa.concat_tables(parts))
    assert [batch.num_rows for batch in finished.batches(str(clean))] == [part.num_rows for part in parts]


def test_of_the_table_some_columns_are_read_in_the_order_asked_for(clean):
    some = finished.table(str(clean), ["clip_score", "topic"])
    assert some.column_names == ["clip_score", "topic"]
    assert some.equals(finished.table(str(clean)).select(["clip_score", "topic"]))
    with pytest.raises(CommitError, match=r"metadata/000000.parquet: lacks the columns colour"):
        finished.table(str(clean), ["colour"])


def test_the_images_are_the_kept_ones_with_their_rows(clean):
    seen = list(finished.images(str(clean)))
    assert [key for key, _, _ in seen] == KEPT
    for key, image, row in seen:
        assert np.array_equal(np.asarray(image), pixels_of(key)) and image.mode == "RGB" and image.size == (SIDE, SIDE)
        assert row["key"] == key and row["selected"]


def test_all_rows_come_with_the_images_that_there_are(clean):
    seen = list(finished.images(str(clean), selected=False))
    assert [key for key, _, _ in seen] == finished.table(str(clean), ["key"])["key"].to_pylist()
    assert [key for key, image, _ in seen if image is not None] == KEPT


def test_a_dataset_without_a_shard_has_a_table_without_rows_and_no_images(tmp_path):
    assert finished.table(str(tmp_path), ["key", "clip_score"]).num_rows == 0
    assert list(finished.images(str(tmp_path))) == []


def test_one_shard_at_a_time_is_in_memory(tmp_path):
    def peak(shards):
        output = str(tmp_path / str(shards))
        publish(output, [shard(number, requests=60) for number in range(shards)])
        tracemalloc.start()
        for _, image, _ in finished.images(output):
            assert image is not None
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(1)  # what is loaded at the first use
    assert peak(6) < 1.5 * peak(2)


@pytest.mark.parametrize("path", ["data/000000.tar", "metadata/000000.parquet"])
def test_what_was_altered_is_refused_in_a_line_and_what_stands_before_it_is_read(output, path):
    file = output / path.replace("000000", "000002")
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    seen = []
    with pytest.raises(CommitError, match=r"000002\.\w+: missing or altered; `promptmill verify --repair` makes"):
        seen.extend(key for key, _, _ in finished.images(str(output)))
    assert len(seen) in (0, 7)


def test_a_glance_shows_rows_whose_file_is_not_what_the_record_says_and_names_what_cannot_be_read(output):
    first, _, last = finished.shards(str(output))
    file = output / "metadata" / "000000.parquet"
    pq.write_table(pq.read_table(file).slice(0, 3), file)
    with pytest.raises(CommitError, match="missing or altered"):
        first.table()
    assert first.glance(["status", "key"]).column_names == ["status", "key"] and first.glance().num_rows == 3
    (output / "metadata" / "000002.parquet").unlink()
    with pytest.raises(finished.UnreadableError, match=r"^metadata/000002.parquet: missing$"):
        last.glance()
