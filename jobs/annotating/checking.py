"""Says how far a dataset of maps is, and holds every file of it against the commit records."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from promptmill.configs.json_values import parse_json
from promptmill.jobs.annotating.annotating import FORM, MOST_PLAN, PLAN
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.planning.sealed_json import is_whole
from promptmill.jobs.verifying.problems import Problem
from promptmill.shards.bounded_parquet import read_parquet
from promptmill.shards.commits import CommitError, CommitRecord, FileRecord, parse_shard_name, read_record, shard_name
from promptmill.shards.index import SUCCESS
from promptmill.shards.published import get_file
from promptmill.shards.sidecars import encode_rows
from promptmill.shards.storage import OddFileError, get, join, names
from promptmill.shards.tars import TarError, read_tar

CARD = "README.md"


@dataclass(frozen=True)
class Progress:
    """Counts the rows and shards of a dataset of maps that are published.

    Attributes:
        rows: Rows of the manifest.
        kept, failed: Rows whose maps are published, and rows without a picture.
        shards: Shards that are published.
        finished: Whether the dataset says that it is finished.
    """

    rows: int
    kept: int
    failed: int
    shards: int
    finished: bool


def is_annotated(output: str) -> bool:
    """Return whether an output is a dataset of maps."""
    return PLAN in names(output)


def progress(output: str) -> Progress:
    """Return how far a dataset of maps is. Raises PlanError where its inputs cannot be read, CommitError where a record cannot."""
    there, rows = [read_record(output, number) for number in sorted(_numbers(output))], _plan(output)[0]
    counts = sum(one.kept for one in there), sum(one.failed for one in there)
    return Progress(rows, *counts, len(there), SUCCESS in names(output))


def check(output: str) -> Iterator[Problem]:
    """Yield each problem of the files of a dataset of maps, finished or not."""
    try:
        rows, fingerprint = _plan(output)
    except PlanError as error:
        yield Problem(PLAN, str(error))
        rows, fingerprint = None, None
    records = []
    for number in sorted(_numbers(output)):
        try:
            records.append(read_record(output, number))
        except CommitError as error:
            yield Problem("commits", str(error), number)
            continue
        if fingerprint is not None and records[-1].fingerprint != fingerprint:
            yield Problem(f"commits/{shard_name(number)}.json", f"is of other inputs than {PLAN}", number)
        yield from _check_shard(output, records[-1])
    yield from _check_orphans(output)
    if SUCCESS in names(output):
        if CARD not in names(output):
            yield Problem(CARD, "missing, while the dataset is marked as finished")
        if (there := sum(one.requests for one in records)) != rows and rows is not None:
            yield Problem("commits", f"the records are of {there:,} rows, and {PLAN} says {rows:,}")


def _plan(output: str) -> tuple[int, str]:
    """Return the number of rows, and the fingerprint of the inputs. Raises PlanError where they cannot be read."""
    try:
        content = get(join(output, PLAN), MOST_PLAN)
        values = parse_json(content)
        rows, fingerprint = values["rows"], values["fingerprint"]
    except (ValueError, KeyError, TypeError, OddFileError, FileNotFoundError):
        raise PlanError([f"{output}/{PLAN}: cannot be read"]) from None
    if not is_whole(content) or type(rows) is not int or not isinstance(fingerprint, str):
        raise PlanError([f"{output}/{PLAN}: altered"])
    return rows, fingerprint


def _numbers(output: str) -> set[int]:
    found = (parse_shard_name(name.removesuffix(".json")) for name in names(join(output, "commits")) if name.endswith(".json"))
    return {parsed[0] for parsed in found if parsed is not None and parsed[1] == 0}


def _check_shard(output: str, record: CommitRecord) -> Iterator[Problem]:
    contents: dict[str, bytes] = {}
    for file in record.files:
        folder = file.path.partition("/")[0]
        try:
            contents[folder] = get_file(output, file)
        except FileNotFoundError:
            yield Problem(file.path, "missing", record.shard)
        except OddFileError as error:
            yield Problem(file.path, error.said, record.shard)
        else:
            if FileRecord.of(file.path, contents[folder]) != file:
                del contents[folder]
                yield Problem(file.path, "altered; its size or SHA-256 is not that of its record", record.shard)
    if "metadata" not in contents:
        return
    parquet, tar = (
        f"{folder}/{shard_name(record.shard)}.{ending}" for folder, ending in (("metadata", "parquet"), ("data", "tar"))
    )
    try:
        table = read_parquet(contents["metadata"])
    except ValueError as error:
        yield Problem(parquet, str(error), record.shard)
        return
    if table.schema.names != FORM.names or table.schema.types != FORM.types:
        yield Problem(parquet, "its columns are not those of a dataset of maps", record.shard)
        return
    kept = table.filter(pc.equal(table["status"], "kept"))
    for name, said, there in (("rows", record.requests, table.num_rows), ("kept rows", record.kept, kept.num_rows)):
        if said != there:
            yield Problem(parquet, f"has {there:,} {name}, its record says {said:,}", record.shard)
    if "data" in contents:
        yield from (Problem(tar, said, record.shard) for said in _check_tar(contents["data"], kept))


def _check_tar(content: bytes, kept: pa.Table) -> Iterator[str]:
    wanted = {row["key"]: (row, written) for row, written in zip(kept.to_pylist(), encode_rows(kept), strict=True)}
    found = set()
    try:
        for sample in read_tar(content):
            found.add(sample.key)
            if sample.key not in wanted:
                yield f"{sample.key}: is no kept row of its Parquet"
            elif dict(_hashes(*wanted[sample.key])) != {
                name: hashlib.sha256(file).hexdigest() for name, file in sample.files.items()
            }:
                yield f"{sample.key}: its files are not those of its row"
    except TarError as error:
        yield str(error)
        return
    if lacking := sorted(wanted.keys() - found):
        yield f"lacks {len(lacking):,} of the kept rows of its Parquet, first {lacking[0]}"


def _hashes(row: dict[str, Any], written: bytes) -> Iterator[tuple[str, str]]:
    """Yield the endings of a row's files, with the SHA-256 of each."""
    yield "png", row["sha256"]
    yield "txt", hashlib.sha256((row["prompt"] or "").encode()).hexdigest()
    yield "json", hashlib.sha256(written).hexdigest()
    yield from ((f"{one['name']}.png", one["sha256"]) for one in row["maps"])


def _check_orphans(output: str) -> Iterator[Problem]:
    known = {shard_name(number) for number in _numbers(output)}
    for folder, ending in (("data", ".tar"), ("metadata", ".parquet"), ("commits", ".json")):
        for name in names(join(output, folder)):
            if name.removesuffix(ending) not in known or not name.endswith(ending):
                yield Problem(f"{folder}/{name}", "no commit record names it", surplus=True)
