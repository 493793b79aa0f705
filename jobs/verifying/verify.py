"""Opens every file of a dataset again and holds it against the commit records: what they do not bear out is named, line by line."""

import itertools
import json
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace

import pyarrow as pa

from promptmill.configs.columns import Stated
from promptmill.configs.json_values import parse_json
from promptmill.jobs.running.finishing import MOST_CARD, is_card, made_of
from promptmill.jobs.verifying.plan_checks import Planned, check_plan
from promptmill.jobs.verifying.problems import Problem
from promptmill.jobs.verifying.shard_checks import check_table, check_tar, rendered_ids
from promptmill.manifests.repeated_ids import Ids, doubled
from promptmill.shards.card import CARD, card
from promptmill.shards.commits import CommitError, CommitRecord, FileRecord, parse_shard_name, read_small, shard_name
from promptmill.shards.index import INDEX, SUCCESS, Totals, encode_index, total
from promptmill.shards.outcomes import COUNTS, count
from promptmill.shards.published import get_file
from promptmill.shards.storage import OddFileError, TooLargeError, get, join, names
from promptmill.shards.tables import read_table

LOOKED_AT = 256 * 2**20  # bytes of a file that is larger than its record says
MOST_INDEX = 16 * 2**20  # bytes of index.json, and 2 kB for each file of a shard
MOST_MISSING = 100_000  # records that are missing, each of which is named


@dataclass(frozen=True)
class Verified:
    """What was looked at: whether the dataset says that it is finished, its totals, and how many problems there are."""

    finished: bool
    totals: Totals
    problems: int


@dataclass(frozen=True)
class Records:
    """What is in commits/.

    Attributes:
        known: Those that can be read, of all generations, by shard and generation.
        problems: Of the others, and of those not written as records are.
        broken: The shards that the others are of.
    """

    known: tuple[CommitRecord, ...]
    problems: tuple[Problem, ...]
    broken: frozenset[int]

    @property
    def last(self) -> list[CommitRecord]:
        """Of a shard that was tried again, the last record holds."""
        return list({record.shard: record for record in self.known}.values())


def verify(output: str) -> Iterator[Problem | Verified]:
    """Check a dataset, finished or not.

    Args:
        output: Its URI.

    Yields:
        What is wrong; at the end, and in any case, a `Verified`.
    """
    planned = check_plan(output, committed=any(names(join(output, "commits"))))
    listed = read_index(output)
    records = read_all_records(output, planned, listed)
    problems = 0
    for problem in itertools.chain(planned.problems, records.problems, _problems(output, planned, records, listed)):
        problems += 1
        yield problem
    yield Verified(SUCCESS in names(output), total(records.last), problems)


def read_index(output: str) -> dict[int, CommitRecord]:
    """The records that index.json repeats, by shard; none if it cannot be read."""
    try:
        index = parse_json(get(join(output, INDEX), _most_index(output)))
        plan = index["fingerprint"] if isinstance(index["fingerprint"], str) else ""
        said = {"fingerprint": plan, "format": index.get("format", 1)}
        listed = (CommitRecord.from_json(json.dumps({**said, **shard}).encode()) for shard in index["shards"])
        return {record.shard: record for record in listed if parse_shard_name(shard_name(record.shard, record.generation))}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _most_index(output: str) -> int:
    """Return the bytes that an index may have, by the shards of which anything is there."""
    there = sum(len(list(names(join(output, folder)))) for folder in ("commits", "data", "metadata"))
    return MOST_INDEX + there * 2**11


def _small(uri: str, most: int) -> bytes:
    """Read a small file of which only matters whether it is the right one; of one that is larger, the beginning of its kind."""
    try:
        return get(uri, most)
    except TooLargeError:
        return b"\0"


def read_all_records(output: str, planned: Planned, listed: Mapping[int, CommitRecord]) -> Records:
    """Every file in commits/, read or named."""
    known: dict[tuple[int, int], CommitRecord] = {}
    wrong: list[tuple[str, tuple[int, int], str]] = []
    problems = []
    shards = planned.plan.shards if planned.plan else None
    for name in names(join(output, "commits")):
        parsed = parse_shard_name(name.removesuffix(".json")) if name.endswith(".json") else None
        if parsed is None:
            problems.append(Problem(f"commits/{name}", "no commit record has this name", surplus=True))
        elif shards is not None and parsed[0] >= shards:
            problems.append(Problem(f"commits/{name}", "the plan has no such shard", surplus=True))
        else:
            try:
                content = read_small(join(output, "commits", name))
                known[parsed] = _parsed(content, *parsed)
                if content != known[parsed].to_json():
                    problems.append(Problem(f"commits/{name}", "is not written as records are", parsed[0]))
            except CommitError as error:
                wrong.append((f"commits/{name}", parsed, str(error)))
    broken = set()
    metadata = set(names(join(output, "metadata")))
    for file, (shard, generation), said in wrong:
        # A stray copy under the name of another generation: its shard is as well as it was.
        indexed = shard in listed and listed[shard].generation == generation
        real = indexed or f"{shard_name(shard, generation)}.parquet" in metadata
        stray = not real and shard in {other for other, _ in known}
        problems.append(Problem(file, said, None if stray else shard, surplus=stray))
        broken |= set() if stray else {shard}
    return Records(tuple(known[pair] for pair in sorted(known)), tuple(problems), frozenset(broken))


def _parsed(content: bytes, shard: int, generation: int) -> CommitRecord:
    record = CommitRecord.from_json(content)
    if (record.shard, record.generation) != (shard, generation):
        raise CommitError(f"is the record of {shard_name(record.shard, record.generation)}")
    return record


def _problems(output: str, planned: Planned, records: Records, listed: Mapping[int, CommitRecord]) -> Iterator[Problem]:
    if not records.known:
        yield Problem("commits", "no shard is committed")
    yield from _check_plans(planned, records)
    shards = yield from _check_marks(output, planned, records, listed)
    yield from _check_orphans(output, records)

    seen = _Seen(planned.form)
    # Where a record cannot be believed, or is not there, the index tells what it said.
    trusted = dict(listed)
    for shard in sorted(set(listed) - {record.shard for record in records.last}):
        yield from _check_shard(output, listed[shard], None, seen)
    for record in records.last:
        believed = yield from _check_shard(output, record, listed.get(record.shard), seen)
        trusted[record.shard] = record if believed else listed.get(record.shard, record)
        if planned.plan and record.fingerprint not in planned.fingerprints:
            record = replace(record, fingerprint=planned.plan.fingerprint)
        trusted[record.shard] = replace(trusted[record.shard], fingerprint=record.fingerprint)
    if len(seen.forms) > 1:
        first, second, *_ = seen.forms.values()
        yield Problem(second, f"its columns are not those of {first}")
    yield from _check_ids(output, records.last, seen.ids)
    if shards is not None:
        yield from _check_summary(output, planned, [trusted[shard] for shard in sorted(trusted)], shards)


def _check_plans(planned: Planned, records: Records) -> Iterator[Problem]:
    """The records against the plan beside them; without one, against one another."""
    plans = Counter(record.fingerprint for record in records.known)
    if planned.plan is None and len(plans) > 1:
        yield Problem("commits", f"the records are of {len(plans)} plans, {', '.join(sorted(plans))}")
    for record in records.known:
        file = f"commits/{shard_name(record.shard, record.generation)}.json"
        if planned.plan and record.fingerprint not in planned.fingerprints:
            ours = f"plan/plan.json is {planned.plan.fingerprint}"
            yield Problem(file, f"is of the plan {record.fingerprint}, {ours}", record.shard)
        wanted = planned.shards.get(record.shard, (record.requests, record.candidates))
        if planned.plan and planned.plan.rerenders(record.shard, record.generation):
            continue  # its rows are to be rendered again; the plan has them as they will be
        for name, number, there in zip(("requests", "candidates"), wanted, (record.requests, record.candidates), strict=True):
            if number != there:
                yield Problem(file, f"says {name} {there:,}, the plan has {number:,}", record.shard)


def _check_marks(
    output: str, planned: Planned, records: Records, listed: Mapping[int, CommitRecord]
) -> Generator[Problem, None, int | None]:
    """What has to be there once a dataset is marked as finished; returns how many shards it has then, else None."""
    there = set(names(output))
    if not there & {INDEX, SUCCESS}:
        return None
    for name in (INDEX, SUCCESS, CARD):
        if name not in there:
            yield Problem(name, "missing, while the dataset is marked as finished")
    if SUCCESS in there:
        try:
            if size := len(_small(join(output, SUCCESS), MOST_INDEX)):
                yield Problem(SUCCESS, f"is of {size:,} bytes, and should be empty")
        except OddFileError as error:
            yield Problem(SUCCESS, error.said)
    committed = {record.shard for record in records.known}
    shards = planned.plan.shards if planned.plan else max([*listed, *committed], default=-1) + 1
    known = committed | records.broken
    # A name may hold any number, and then all below it are missing: counted, but not each of them named.
    named = len(known) + len(listed) + MOST_MISSING
    for shard in itertools.islice((shard for shard in range(shards) if shard not in known), named):
        name = shard_name(shard, listed[shard].generation if shard in listed else 0)
        yield Problem(f"commits/{name}.json", "missing, while the dataset is marked as finished", shard)
    if shards - len(known) > named:
        yield Problem("commits", f"{shards - len(known) - named:,} more records are missing")
    return shards


def _check_summary(output: str, planned: Planned, records: list[CommitRecord], shards: int) -> Iterator[Problem]:
    """The index and the card, where they are, against the records that they are made of, each shard's if all is well."""
    there = set(names(output))
    complete = len(records) == shards and [record.shard for record in records] == list(range(shards))
    index = encode_index(records) if complete else b""
    if INDEX in there and not (complete and _small(join(output, INDEX), len(index)) == index):
        yield Problem(INDEX, "is not what the commit records make it")
    wanted = card(made_of(planned.plan, records)) if planned.plan and complete else None
    if CARD in there and not is_card(_small(join(output, CARD), MOST_CARD), wanted):
        yield Problem(CARD, "is not the card that the plan and the commit records make")


def _check_orphans(output: str, records: Records) -> Iterator[Problem]:
    named = {file.path for record in records.known for file in record.files}
    for folder in ("data", "metadata"):
        for name in names(join(output, folder)):
            parsed = parse_shard_name(name.rpartition(".")[0])
            if f"{folder}/{name}" not in named and not (parsed and parsed[0] in records.broken):
                yield Problem(f"{folder}/{name}", "no commit record names it", surplus=True)
    committed = {record.shard: record.generation for record in records.last}
    finished = SUCCESS in names(output)
    for name in names(join(output, "parts")):
        shard = name.partition("-")[0]
        # Those of a generation to come are a try that was cut off.
        if finished or (shard.isdigit() and committed.get(int(shard), -1) >= _generation(name)):
            yield Problem(f"parts/{name}", "left over, its shard is committed", surplus=True)


def _generation(part: str) -> int:
    """1 of 000012-00003.1.parquet."""
    said = part.removesuffix(".parquet").partition(".")[2]
    return int(said) if said.isdigit() else 0


@dataclass
class _Seen:
    """What shards have in common: the schema of the plan, or else the file that each schema was first seen in, and the ids."""

    form: pa.Schema | None
    forms: dict[pa.Schema, str] = field(default_factory=dict)
    ids: Ids = field(default_factory=Ids)


def _check_shard(output: str, record: CommitRecord, listed: CommitRecord | None, seen: _Seen) -> Generator[Problem, None, bool]:
    """The files of one shard against its record and against one another; returns whether the record can be believed."""
    name, shard = shard_name(record.shard, record.generation), record.shard
    itself, tar, parquet = f"commits/{name}.json", f"data/{name}.tar", f"metadata/{name}.parquet"
    wanted = {parquet, tar} if record.kept else {parquet}
    paths = {file.path for file in record.files}
    believed = True
    if paths != wanted or len(paths) != len(record.files):
        believed = False
        yield Problem(itself, f"names {', '.join(sorted(paths))}, where the shard has {', '.join(sorted(wanted))}", shard)
    contents, altered = {}, set()
    for file in (file for file in record.files if file.path in wanted):
        # Of a file that is a little larger than its record says, the content tells which of the two is wrong.
        said = [each.size for each in (file, *(listed.files if listed else ())) if each.path == file.path]
        try:
            contents[file.path] = get(join(output, file.path), most=max(LOOKED_AT, *said))
        except FileNotFoundError:
            yield Problem(file.path, "missing", shard)
            continue
        except OddFileError as error:
            larger = (
                f"is of {error.size:,} bytes, its record says {file.size:,}" if isinstance(error, TooLargeError) else error.said
            )
            yield Problem(file.path, larger, shard)
            continue
        found = FileRecord.of(file.path, contents[file.path])
        if found == file:
            continue
        # Two against one: where the file has the hash that the index or the record itself gives it, the record is wrong.
        if found.sha256 == file.sha256 or (listed is not None and found in listed.files):
            believed = False
            claim = f"{file.size:,} bytes with SHA-256 {file.sha256}, it is of {found.size:,} with {found.sha256}"
            yield Problem(itself, f"says that {file.path} is of {claim}", shard)
            continue
        altered.add(file.path)
        if found.size != file.size:
            yield Problem(file.path, f"is of {found.size:,} bytes, its record says {file.size:,}", shard)
        else:
            yield Problem(file.path, f"altered; its SHA-256 is {found.sha256}, its record says {file.sha256}", shard)

    table = None
    # An altered Parquet would only lay its faults at the tar's door; an altered tar is read, to tell which samples are hit.
    if parquet in contents and parquet not in altered:
        try:
            table = read_table(contents[parquet])
        except ValueError as error:
            yield Problem(parquet, str(error), shard)
    if table is not None:
        believed &= yield from _check_metadata(parquet, table, record, seen)
    if tar in contents:
        yield from (Problem(tar, said, shard) for said in check_tar(contents[tar], table))
    return believed


def _check_metadata(parquet: str, table: pa.Table, record: CommitRecord, seen: _Seen) -> Generator[Problem, None, bool]:
    """The rows of one shard; returns whether they are as many as the record says."""
    if seen.form is None:
        seen.forms.setdefault(table.schema, parquet)
    elif not table.schema.equals(seen.form):
        yield Problem(parquet, "its columns are not those of the plan", record.shard)
    for request_id in rendered_ids(table):
        seen.ids.add(request_id)
    yield from (Problem(parquet, said, record.shard) for said in check_table(table, record.shard))
    try:
        counts = count(table)
    except ValueError as error:
        yield Problem(parquet, str(error), record.shard)
        return True
    itself = f"commits/{shard_name(record.shard, record.generation)}.json"
    different = [name for name in (*COUNTS, "candidates") if getattr(counts, name) != getattr(record, name)]
    format = Stated.of(table.schema).format
    if format != record.format:
        yield Problem(itself, f"says dataset format {record.format}, {parquet} is of {format}", record.shard)
    # The Parquet has the hash that the record gives it, so it is the one that was published with it.
    for name in different:
        yield Problem(itself, f"says {name} {getattr(record, name):,}, {parquet} has {getattr(counts, name):,}", record.shard)
    return not different and format == record.format


def _check_ids(output: str, records: list[CommitRecord], ids: Ids) -> Iterator[Problem]:
    in_doubt = ids.in_doubt()
    if not in_doubt:
        return
    shards: dict[str, int] = {}

    def again() -> Iterator[tuple[str, str]]:
        for record in records:
            file = record.file("metadata")
            if file is None:
                continue  # said before, as what follows
            shards[file.path] = record.shard
            try:
                yield from ((request_id, file.path) for request_id in rendered_ids(read_table(get_file(output, file))))
            except (ValueError, FileNotFoundError, OddFileError):
                continue

    for request_id, path, first in doubled(again(), in_doubt):
        yield Problem(path, f"the id {request_id!r} is that of another request, in {first}", shards[path])
