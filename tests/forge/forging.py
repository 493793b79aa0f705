"""Rewrites a shard of a finished dataset, and then all that says what it is made of: record, index, card."""

import dataclasses
import io
import tarfile
from collections.abc import Callable, Iterable

import pyarrow as pa

from promptmill.jobs.planning.plan import Plan, read_plan
from promptmill.jobs.running.finishing import made_of
from promptmill.shards.card import CARD, card
from promptmill.shards.commits import CommitRecord, FileRecord, shard_name
from promptmill.shards.index import INDEX, encode_index
from promptmill.shards.storage import get, join, put
from promptmill.shards.tables import encode_table, read_table

Member = tuple[str | tarfile.TarInfo, bytes]


def record_of(output: str, number: int = 0) -> CommitRecord:
    return CommitRecord.from_json(get(join(output, "commits", f"{shard_name(number)}.json")))


def table_of(output: str, number: int = 0) -> pa.Table:
    return read_table(get(join(output, "metadata", f"{number:06d}.parquet")))


def members_of(output: str, number: int = 0) -> list[Member]:
    """The files of a shard's tar, by their names, in its order."""
    with tarfile.open(fileobj=io.BytesIO(get(join(output, "data", f"{number:06d}.tar")))) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


def packed(members: Iterable[Member]) -> bytes:
    """A tar of members of any kind, in their order."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if member is not name:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return whole.getvalue()


def replaced(table: pa.Table, number: int, **values) -> pa.Table:
    """The table with other values in one row."""
    for column, value in values.items():
        at = table.column_names.index(column)
        some = table[column].to_pylist()
        some[number] = value
        table = table.set_column(at, table.schema.field(at), pa.array(some, table.schema.field(at).type))
    return table


def forge(output: str, number: int = 0, table: pa.Table | None = None, tar: bytes | None = None, **record) -> None:
    """Put other files of a shard in place, with a record, an index and a card that bear them out.

    Args:
        table, tar: Its metadata and its images; without one, that stays.
        record: What else its record says, `files` too.
    """
    content = {"metadata": encode_table(table)} if table is not None else {}
    content |= {"data": tar} if tar is not None else {}
    was = record_of(output, number)
    files = []
    for file in was.files:
        folder = file.path.partition("/")[0]
        if folder in content:
            put(join(output, file.path), content[folder])
            file = FileRecord.of(file.path, content[folder])
        files.append(file)
    forge_record(output, dataclasses.replace(was, **{"files": tuple(files), **record}))


def forge_record(output: str, record: CommitRecord, plan: Plan | None = None) -> None:
    """Forge a commit record, and index and card after it; `plan` where the one that lies there is forged beyond reading."""
    put(join(output, "commits", f"{shard_name(record.shard)}.json"), record.to_json())
    plan = plan or read_plan(output)
    records = [record_of(output, shard) for shard in range(plan.shards)]
    put(join(output, INDEX), encode_index(records))
    put(join(output, CARD), card(made_of(plan, records)))


def with_rows(output: str, change: Callable[[dict], dict], number: int = 0) -> None:
    """Forge a shard's metadata, each row changed, its tar left as it is."""
    table = table_of(output, number)
    rows = [change(row) for row in table.to_pylist()]
    forge(output, number, table=pa.Table.from_pylist(rows, table.schema))
