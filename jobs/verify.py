"""Opens every file of a dataset again and holds it against the commit records: what they do not bear out is named, line by line."""

import hashlib
import io
import itertools
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from PIL import Image

from jobs.plan import fingerprint_of
from manifests.duplicates import Ids, doubled
from pipelines.units import sample_key
from shards.card import CARD
from shards.commits import CommitError, CommitRecord, parse_shard_name, read_record, shard_name
from shards.counting import count, request_of
from shards.images import ImageFormat, pixel_sha256
from shards.index import COUNTS, INDEX, SUCCESS, Totals, encode_index, total
from shards.sidecars import encode_rows
from shards.storage import get, join, names
from shards.tables import COLUMNS, read_table
from shards.tars import Sample, TarError, read_tar

ENDINGS = frozenset(get_args(ImageFormat))


@dataclass(frozen=True)
class Verified:
    """What was looked at: whether the dataset says that it is finished, its totals, and how many problems there are."""

    finished: bool
    totals: Totals
    problems: int


def verify(output: str) -> Iterator[str | Verified]:
    """Check a dataset, finished or not.

    Args:
        output: Its URI.

    Yields:
        A line a problem, beginning with the file that has it; at the end, and in any case, a `Verified`.
    """
    known, unreadable = _read_all_records(output)
    # Of a shard that was tried again, the last record holds.
    records = list({record.shard: record for record in known}.values())
    problems = 0
    for problem in itertools.chain(unreadable.values(), _problems(output, known, records, unreadable)):
        problems += 1
        yield problem
    yield Verified(SUCCESS in names(output), total(records), problems)


def _read_all_records(output: str) -> tuple[list[CommitRecord], dict[str, str]]:
    """The records of all generations by shard and generation, and by file name what is wrong with those that are none."""
    known: list[CommitRecord] = []
    unreadable: dict[str, str] = {}
    for name in names(join(output, "commits")):
        parsed = parse_shard_name(name.removesuffix(".json")) if name.endswith(".json") else None
        if parsed is None:
            unreadable[name] = f"commits/{name}: no commit record has this name"
            continue
        try:
            known.append(read_record(output, *parsed))
        except CommitError as error:
            unreadable[name] = str(error)
    return sorted(known, key=lambda record: (record.shard, record.generation)), unreadable


def _problems(output: str, known: list[CommitRecord], records: list[CommitRecord], unreadable: Collection[str]) -> Iterator[str]:
    if not known:
        yield "commits: no shard is committed"
    plans = sorted({record.fingerprint for record in known})
    if len(plans) > 1:
        yield f"commits: the records are of {len(plans)} plans, {', '.join(plans)}"
    yield from _check_plan(output, known)
    parsed = (parse_shard_name(name.removesuffix(".json")) for name in unreadable)
    broken = {pair[0] for pair in parsed if pair is not None}
    yield from _check_finish(output, records, broken)
    yield from _check_orphans(output, known, broken)

    ids, forms = Ids(), dict[pa.Schema, str]()
    for record in records:
        yield from _check_shard(output, record, ids, forms)
    if len(forms) > 1:
        first, second, *_ = forms.values()
        yield f"{second}: its columns are not those of {first}"
    yield from _check_ids(output, records, ids)


def _check_plan(output: str, known: list[CommitRecord]) -> Iterator[str]:
    """What has to hold where the plan lies beside the records: it is whole, and they are of it."""
    try:
        planned = json.loads(get(join(output, "plan", "plan.json")))
        fingerprint = planned["fingerprint"]
        whole = fingerprint == fingerprint_of(planned["inputs"])
    except FileNotFoundError:
        return  # a dataset may be copied without it
    except (ValueError, KeyError, TypeError) as error:
        yield f"plan/plan.json: not a plan: {' '.join(str(error).split())[:200]}"
        return
    if not whole:
        yield "plan/plan.json: altered: its fingerprint is not that of what it says"
        return
    for record in known:
        if record.fingerprint != fingerprint:
            name = shard_name(record.shard, record.generation)
            yield f"commits/{name}.json: is of the plan {record.fingerprint}, plan/plan.json is {fingerprint}"


def _check_finish(output: str, records: list[CommitRecord], broken: set[int]) -> Iterator[str]:
    """What has to hold once a dataset is marked as finished; `broken`: shards with a record that cannot be read."""
    there = set(names(output))
    if not there & {INDEX, SUCCESS}:
        return
    for name in (INDEX, SUCCESS, CARD):
        if name not in there:
            yield f"{name}: missing, while the dataset is marked as finished"
    committed = {record.shard for record in records}
    index = get(join(output, INDEX)) if INDEX in there else b"{}"
    shards = max(_listed(index), max(committed, default=-1) + 1)
    missing = sorted(set(range(shards)) - committed - broken)
    for shard in missing:
        yield f"commits/{shard_name(shard)}.json: missing, while the dataset is marked as finished"
    if INDEX in there and not missing and not broken and index != encode_index(records):
        yield f"{INDEX}: is not what the commit records make it"


def _listed(index: bytes) -> int:
    """How many shards an index lists; 0 where it is none."""
    try:
        return len(json.loads(index)["shards"])
    except (ValueError, KeyError, TypeError):
        return 0


def _check_orphans(output: str, known: list[CommitRecord], broken: set[int]) -> Iterator[str]:
    named = {file.path for record in known for file in record.files}
    for folder in ("data", "metadata"):
        for name in names(join(output, folder)):
            parsed = parse_shard_name(name.rpartition(".")[0])
            if f"{folder}/{name}" not in named and not (parsed and parsed[0] in broken):
                yield f"{folder}/{name}: no commit record names it"
    committed = {record.shard for record in known}
    finished = SUCCESS in names(output)
    for name in names(join(output, "parts")):
        shard = name.partition("-")[0]
        if finished or (shard.isdigit() and int(shard) in committed):
            yield f"parts/{name}: left over, its shard is committed"


def _check_shard(output: str, record: CommitRecord, ids: Ids, forms: dict[pa.Schema, str]) -> Iterator[str]:
    """The files of one shard against its record and against one another; ids and schemas seen are added to what was seen."""
    name = shard_name(record.shard, record.generation)
    tar, parquet = f"data/{name}.tar", f"metadata/{name}.parquet"
    wanted = {parquet, tar} if record.kept else {parquet}
    listed = {file.path for file in record.files}
    if listed != wanted or len(listed) != len(record.files):
        yield f"commits/{name}.json: names {', '.join(sorted(listed))}, where the shard has {', '.join(sorted(wanted))}"
    contents, altered = {}, set()
    for file in (file for file in record.files if file.path in wanted):
        try:
            contents[file.path] = get(join(output, file.path))
        except FileNotFoundError:
            yield f"{file.path}: missing"
            continue
        size, sha256 = len(contents[file.path]), hashlib.sha256(contents[file.path]).hexdigest()
        if size != file.size:
            yield f"{file.path}: is of {size:,} bytes, its record says {file.size:,}"
        elif sha256 != file.sha256:
            yield f"{file.path}: altered; its SHA-256 is {sha256}, its record says {file.sha256}"
        if sha256 != file.sha256:
            altered.add(file.path)

    table = None
    # An altered Parquet would only lay its faults at the tar's door; an altered tar is read, to tell which samples are hit.
    if parquet in contents and parquet not in altered:
        try:
            table = _read_metadata(contents[parquet])
        except ValueError as error:
            yield f"{parquet}: {error}"
    if table is not None:
        forms.setdefault(table.schema, parquet)
        for request_id in _rendered_ids(table):
            ids.add(request_id)
        yield from (f"{parquet}: {problem}" for problem in _check_table(table, record))
    if tar in contents:
        yield from (f"{tar}: {problem}" for problem in _check_tar(contents[tar], table))


def _read_metadata(content: bytes) -> pa.Table:
    """As `read_table`, our columns of our types."""
    table = read_table(content)
    for name, kind in COLUMNS.items():
        if table.schema.field(name).type != kind:
            raise ValueError(f"its column {name} is {table.schema.field(name).type}, not {kind}")
    return table


def _check_table(table: pa.Table, record: CommitRecord) -> Iterator[str]:
    columns = ("key", "id", "candidate_index", "shard", "status", "selected")
    previous = ""
    request_ids: dict[str, Any] = {}
    for key, request_id, candidate, shard, status, selected in zip(*(table[name].to_pylist() for name in columns), strict=True):
        if key is None or not _fits(key, record.shard, candidate) or shard != record.shard:
            yield f"{key}: is not the key of candidate {candidate} in shard {record.shard}"
            continue
        if key == previous:
            yield f"{key}: occurs twice"
        elif key < previous:
            yield f"{key}: stands behind {previous}"
        previous = key
        if bool(selected) != (status == "kept"):
            yield f"{key}: is {status}, but selected is {selected}"
        if request_ids.setdefault(request_of(key), request_id) != request_id:
            yield f"{key}: its id is {request_id!r}, another candidate's of this request {request_ids[request_of(key)]!r}"
    try:
        counts = count(table)
    except ValueError as error:
        yield str(error)
        return
    for name in COUNTS:
        if getattr(counts, name) != getattr(record, name):
            yield f"{name} are {getattr(counts, name):,}, the record says {getattr(record, name):,}"


def _fits(key: str, shard: int, candidate: int | None) -> bool:
    row = key.split("-")[1:2]
    return bool(row) and row[0].isdecimal() and key == sample_key(shard, int(row[0]), candidate)


def _rendered_ids(table: pa.Table) -> Iterator[str]:
    """The id of each request that was rendered at all: one that the manifest repeats is recorded as failed, under the same id."""
    previous = None
    for key, request_id, candidate in zip(*(table[name].to_pylist() for name in ("key", "id", "candidate_index")), strict=True):
        if key is not None and candidate is not None and request_of(key) != previous:
            previous = request_of(key)
            yield str(request_id)


def _check_ids(output: str, records: list[CommitRecord], ids: Ids) -> Iterator[str]:
    in_doubt = ids.in_doubt()
    if not in_doubt:
        return

    def again() -> Iterator[tuple[str, str]]:
        for record in records:
            path = f"metadata/{shard_name(record.shard, record.generation)}.parquet"
            try:
                yield from ((request_id, path) for request_id in _rendered_ids(_read_metadata(get(join(output, path)))))
            except (ValueError, FileNotFoundError):
                continue  # said before

    for request_id, path, first in doubled(again(), in_doubt):
        yield f"{path}: the id {request_id!r} is that of another request, in {first}"


def _check_tar(content: bytes, table: pa.Table | None) -> Iterator[str]:
    rows = _rows(table) if table is not None else None
    found: list[str] = []
    image_ending = None
    try:
        for sample in read_tar(content):
            found.append(sample.key)
            images = set(sample.files) - {"json", "txt"}
            if len(sample.files) != 3 or not images <= ENDINGS or images != {image_ending or min(images)}:
                yield f"{sample.key}: has the members {', '.join(sorted(sample.files))}"
                continue
            (image_ending,) = images
            if rows is not None and sample.key in rows:
                yield from (f"{sample.key}: {problem}" for problem in _check_sample(sample, image_ending, rows[sample.key]))
    except TarError as error:
        yield str(error)
        return
    if rows is None:
        return
    lacking, surplus = _only(rows, set(found)), _only(found, set(rows))
    if lacking:
        yield f"lacks {len(lacking)} of the selected rows of its Parquet, first {lacking[0]}"
    if surplus:
        yield f"has {len(surplus)} samples that its Parquet does not select, first {surplus[0]}"
    if not lacking and not surplus and found != list(rows):
        yield "its samples are in another order than the rows of its Parquet"


def _only(keys: Iterable[str], others: set[str]) -> list[str]:
    return [key for key in keys if key not in others]


def _rows(table: pa.Table) -> dict[str, dict[str, Any]]:
    """What the tar has to hold, by key: of each selected row its prompt, its JSON and its hashes."""
    selected = table.filter(table["selected"])
    names_ = ("key", "prompt", "sha256", "pixel_sha256", "bytes", "width", "height")
    rows = selected.select(names_).to_pylist()
    return {row["key"]: {**row, "json": described} for row, described in zip(rows, encode_rows(selected), strict=True)}


def _check_sample(sample: Sample, ending: str, row: dict[str, Any]) -> Iterator[str]:
    image = sample.files[ending]
    if sample.files["txt"] != (row["prompt"] or "").encode():
        yield "its text is not the prompt of its row"
    if sample.files["json"] != row["json"]:
        yield "its JSON is not its row"
    if hashlib.sha256(image).hexdigest() != row["sha256"]:
        yield "its image does not have the SHA-256 of its row"
    elif len(image) != row["bytes"]:
        yield f"its image is of {len(image):,} bytes, its row says {row['bytes']}"
    else:
        yield from _check_pixels(image, ending, row)


def _check_pixels(content: bytes, ending: str, row: dict[str, Any]) -> Iterator[str]:
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.size != (row["width"], row["height"]):
                yield f"its image is {image.width}x{image.height}, its row says {row['width']}x{row['height']}"
            if _is_lossless(content, ending) and pixel_sha256(np.asarray(image.convert("RGB"))) != row["pixel_sha256"]:
                yield "the pixels of its image do not have the hash of its row"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        yield f"its image cannot be decoded: {error}"


def _is_lossless(content: bytes, ending: str) -> bool:
    """Whether decoding gives back the pixels that were encoded: PNG, and WebP whose image is in a VP8L chunk."""
    if ending != "webp":
        return ending == "png"
    at = 12
    while at + 8 <= len(content) and content[at : at + 4] not in (b"VP8 ", b"VP8L"):
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return content[at : at + 4] == b"VP8L"
