"""Finds the near-duplicates among a dataset's kept images, marks them beside the dataset, and copies the dataset without them."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from promptmill.configs.columns import DUPLICATE_OF, EMBEDDING, REJECTED_FOR, by_name
from promptmill.jobs.planning.plan import PlanError, fingerprint_of, read_plan
from promptmill.jobs.running.finishing import made_of
from promptmill.jobs.showing.summary import many
from promptmill.shards.assembly import AssemblyError, publish
from promptmill.shards.card import CARD, card
from promptmill.shards.commits import CommitError, CommitRecord
from promptmill.shards.finished import Kept, ShardReader, shards
from promptmill.shards.index import SUCCESS, Totals, publish_index
from promptmill.shards.near_duplicates import Pictures, Twin, find_twins
from promptmill.shards.outcomes import request_of
from promptmill.shards.perceptual_hash import colours, phash
from promptmill.shards.places_to_write import check_folders
from promptmill.shards.published import ImageFile, path_of
from promptmill.shards.storage import join, names, put
from promptmill.shards.tables import declared_in, encode_table, ranks_by, with_declared
from promptmill.shards.tars import TarError

MARKS, SUMMARY = "dedup.parquet", "dedup.json"  # beside the data; no other command reads them

FORM = pa.schema(
    {
        "key": pa.string(),
        "group": pa.int64(),
        DUPLICATE_OF: pa.string(),
        "by": pa.string(),
        "hamming": pa.int32(),
        "cosine": pa.float32(),
        "phash": pa.string(),
    }
)


@dataclass(frozen=True)
class Signs:
    """Holds the limits by which two images are nearly the same, beside equal hashes of their files or pixels.

    Attributes:
        embedding: The cosine of CLIP embeddings that two kept images do not exceed; None where embeddings are not compared.
        hash: The number of bits in which the perceptual hashes of two equal images differ at most; None where hashes are not
            compared.
    """

    embedding: float | None
    hash: int | None


@dataclass(frozen=True)
class Found:
    """Holds the near-duplicates of a dataset.

    Attributes:
        pictures: The dataset's kept images, in the order of their keys.
        twins: The superfluous images, by their number.
        signs: The limits of the comparison.
        exact: Whether no near-duplicate can have been missed.
        records: The dataset's commit records.
    """

    pictures: Pictures
    twins: Mapping[int, Twin]
    signs: Signs
    exact: bool
    records: Sequence[CommitRecord]

    def summary(self) -> dict[str, Any]:
        """Return the numbers of near-duplicates, as JSON values."""
        keys, twins = self.pictures.keys, self.twins
        left = {request_of(key) for number, key in enumerate(keys) if number not in twins}
        return {
            "images": len(keys),
            "distinct": len(keys) - len(twins),
            "duplicates": len(twins),
            "groups": len({twin.of for twin in twins.values()}),
            "by": dict(sorted(Counter(twin.by for twin in twins.values()).items())),
            "requests_without_another_image": len({request_of(keys[number]) for number in twins} - left),
            "compared": asdict(self.signs),
            "exact": self.exact,
            "records": fingerprint_of({"records": [record.to_json().decode() for record in self.records]}),
        }


def find(output: str, signs: Signs, say: Callable[[str], None] = lambda line: None) -> Found:
    """Compare all kept images of the committed shards. Memory holds an embedding, two hashes and a key of each image.

    Args:
        output: The dataset's URI.
        signs: The limits of the comparison.
        say: Called with a line on what cannot be compared.

    Raises:
        PlanError: The dataset keeps no image yet.
        CommitError: A file is not what its record says.
    """
    records, kept = list[CommitRecord](), list[pa.Table]()
    for shard in shards(output):
        rows = shard.table()
        rows = rows.filter(rows["selected"])
        files = shard.files(rows["key"].to_pylist()) if signs.hash is not None else {}
        kept.append(_with_looks(rows, files, path_of(output, shard.record, "data")))
        records.append(shard.record)
    if not sum(table.num_rows for table in kept):
        raise PlanError([f"{output}: nothing is kept there yet"])
    if signs.embedding is not None and not all(EMBEDDING in table.column_names for table in kept):
        say(f"{output}: was rendered with shards.embeddings none, so only hashes are compared")
        signs = replace(signs, embedding=None)
    pictures = _pictures(kept, signs)
    twins, exact = find_twins(pictures, signs.embedding, signs.hash)
    return Found(pictures, twins, signs, exact, records)


def _with_looks(rows: pa.Table, images: Mapping[str, ImageFile], tar: str) -> pa.Table:
    """Return the few columns that are compared, with the perceptual hashes where there are images."""
    columns = {name: rows[name] for name in ("key", "sha256", "pixel_sha256")} | {"score": rows[ranks_by(rows.schema)]}
    if EMBEDDING in rows.column_names:
        columns[EMBEDDING] = rows[EMBEDDING]
    if images:
        some = rows.select(["key", "width", "height"]).to_pylist()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            looks = list(pool.map(lambda row: _look(Kept(row, images[row["key"]], tar)), some))
        columns["phash"] = pa.array([look[0] for look in looks], pa.uint64())
        columns["colours"] = pa.FixedSizeListArray.from_arrays(np.concatenate([look[1] for look in looks]), len(looks[0][1]))
    return pa.table(columns)


def _look(kept: Kept) -> tuple[int, np.ndarray]:
    whole = kept.picture()
    return phash(whole), colours(whole)


def _pictures(kept: Sequence[pa.Table], signs: Signs) -> Pictures:
    whole = pa.concat_tables([table for table in kept if table.num_rows]).sort_by("key")
    return Pictures(
        keys=whole["key"].to_pylist(),
        scores=[-np.inf if score is None else score for score in whole["score"].to_pylist()],
        files=whole["sha256"].to_pylist(),
        pixels=whole["pixel_sha256"].to_pylist(),
        hashes=whole["phash"].to_numpy() if signs.hash is not None else None,
        colours=_matrix(whole["colours"]) if signs.hash is not None else None,
        embeddings=_matrix(whole[EMBEDDING]) if signs.embedding is not None else None,
    )


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of lists of one length as (N, D); a row without a list is zeros."""
    rows = column.combine_chunks()
    matrix = np.zeros((len(rows), rows.type.list_size), rows.type.value_type.to_pandas_dtype())
    there = rows.is_valid().to_numpy(zero_copy_only=False)
    matrix[there] = rows.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, rows.type.list_size)
    return matrix


def marks(found: Found) -> pa.Table:
    """Return a row for each kept image: its group, numbered in the order of first images, and why it is superfluous; else nulls."""
    keys, twins = found.pictures.keys, found.twins
    groups: dict[int, int] = {}
    kept_for = {number: twins[number].of if number in twins else number for number in range(len(keys))}
    grouped = {twin.of for twin in twins.values()}
    rows = []
    for number, key in enumerate(keys):
        twin, hashes = twins.get(number), found.pictures.hashes
        rows.append(
            {
                "key": key,
                "group": groups.setdefault(kept_for[number], len(groups)) if kept_for[number] in grouped else None,
                DUPLICATE_OF: keys[twin.of] if twin else None,
                "by": twin.by if twin else None,
                "hamming": twin.hamming if twin else None,
                "cosine": twin.cosine if twin else None,
                "phash": f"{int(hashes[number]):016x}" if hashes is not None else None,
            }
        )
    return pa.Table.from_pylist(rows, FORM)


def write_marks(output: str, found: Found) -> None:
    """Write the marks and the summary beside a dataset; its own files stay as they are."""
    put(join(output, MARKS), encode_table(marks(found)))
    put(join(output, SUMMARY), (json.dumps(found.summary(), indent=1, sort_keys=True) + "\n").encode())


def copy_without(output: str, found: Found, to: str) -> Totals:
    """Write a copy of a dataset in which near-duplicates are rejected rows that name the image kept instead.

    The copy is no longer the result of the plan, so it has no plan, and a fingerprint of its own.

    Args:
        output: The dataset's URI.
        found: The near-duplicates.
        to: Where the copy goes; the place has to be empty.

    Raises:
        PlanError: The dataset is not finished or has no plan, or the place is not empty.
        CommitError: Rows are not those of their records, or contradict themselves.
        OutsideError: A folder of the copy is there already, as a link that leads out of the copy.
    """
    plan = read_plan(output)
    if plan is None:
        raise PlanError([f"{output}: has no plan/, from which a copy's card is written; bring plan/ back"])
    if SUCCESS not in names(output):
        raise PlanError([f"{output}: is not finished; `promptmill run` goes on with it"])
    if any(names(to)):
        raise PlanError([f"{to}: is not empty; give another --to"])
    check_folders(to)
    keys = found.pictures.keys
    instead = {keys[number]: keys[twin.of] for number, twin in found.twins.items()}
    fingerprint = fingerprint_of({"of": found.summary()["records"], "without": instead})
    records, form = [], pa.schema([])
    for record in found.records:
        shard = ShardReader(output, record)
        table = _rejected(shard.table(), instead)
        left = table.filter(table["selected"])["key"].to_pylist()
        images = {key: file.packed(table.column_names) for key, file in shard.files(left).items()}
        requests, planned = record.requests, record.candidates
        form = table.schema
        try:
            made = publish(to, record.shard, table, images, plan.config.shards.image_format, requests, planned, fingerprint)
        except (AssemblyError, TarError) as error:
            raise CommitError(f"{path_of(output, record, 'metadata')}: {error}; `promptmill verify {output}` says more") from None
        records.append(made)
    write_marks(to, found)
    about = replace(made_of(plan, records), form=form, earlier=0, left_out=len(instead))
    put(join(to, CARD), card(about))
    return publish_index(to, records, len(records))


def _rejected(table: pa.Table, instead: Mapping[str, str]) -> pa.Table:
    """Return metadata with the rows of these keys rejected in favour of others."""
    others = pa.array([instead.get(key) for key in table["key"].to_pylist()], pa.string())
    gone = pc.is_valid(others)
    for name, value in _changes(table):
        place = table.column_names.index(name)
        kind = table.schema.field(name).type
        table = table.set_column(place, table.schema.field(name), pc.if_else(gone, pa.scalar(value, kind), table[name]))
    return with_declared(table, by_name()[DUPLICATE_OF], others)


def _changes(table: pa.Table) -> Iterator[tuple[str, Any]]:
    yield from {"selected": False, "status": "rejected", "sha256": None, "bytes": None}.items()
    if REJECTED_FOR in declared_in(table.schema):
        yield REJECTED_FOR, DUPLICATE_OF


def line_of(found: Found) -> str:
    """Return the result in one line."""
    said = found.summary()
    number, groups = len(found.twins), said["groups"]
    by = ", ".join(f"{count:,} by {sign}" for sign, count in said["by"].items())
    how = "" if found.exact else "; embeddings were compared approximately, so a few may be missed"
    images = many(len(found.pictures.keys), "image")
    return f"{images}, {number:,} of them superfluous in {many(groups, 'group')}{f' ({by})' if by else ''}{how}"
