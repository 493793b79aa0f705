"""Reads the committed shards of a dataset one after the other, whether the dataset is finished or not: rows, and their images."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from PIL import Image

from promptmill.configs.errors import nearest, shown
from promptmill.shards.commits import CommitError, read_records
from promptmill.shards.image_reader import PictureError, read_picture
from promptmill.shards.published import path_of, read_images, read_metadata


def table(output: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of all committed shards, a row a candidate, in their order.

    Args:
        output: The dataset's URI.
        columns: The names of those to return; None for all.

    Raises:
        CommitError: A shard is not as its record says, or there is no such column.
    """
    tables = []
    for record in read_records(output):
        rows = read_metadata(output, record)
        for name in columns or ():
            if name not in rows.column_names:
                raise CommitError(f"{output}: has no column {shown(name)}{nearest(name, rows.column_names)}")
        tables.append(rows if columns is None else rows.select([*columns]))
    return pa.concat_tables(tables) if tables else pa.table({})


def images(output: str, selected: bool = True) -> Iterator[tuple[str, Image.Image | None, dict[str, Any]]]:
    """Yield the key, the image in mode RGB, and the row of candidates, shard by shard; one shard is in memory at a time.

    Args:
        output: The dataset's URI.
        selected: Whether to yield the selected candidates alone. Images of the others are not stored, and are None.

    Raises:
        CommitError: A shard is not as its record says, or an image of it is not as its row says.
    """
    for record in read_records(output):
        rows = read_metadata(output, record)
        if selected:
            rows = rows.filter(rows["selected"])
        kept = {row["key"] for row in rows.select(["key", "selected"]).to_pylist() if row["selected"]}
        files = read_images(output, record, kept)
        for batch in rows.to_batches(max_chunksize=256):
            for row in batch.to_pylist():
                key, image = row["key"], None
                if row["selected"]:
                    file = files.get(key)
                    if file is None:
                        raise CommitError(f"{path_of(output, record, 'data')}: has no image {key}, which its row says was kept")
                    try:
                        image = read_picture(file.content, file.ending, row["width"], row["height"])
                    except PictureError as error:
                        raise CommitError(f"{path_of(output, record, 'data')}: {key}: {error}") from None
                yield key, image, row
