"""Makes a dataset of maps: parts of a few pictures each, shards of parts, and a record that publishes each shard.

    OUT/data/000000.tar           {key}.png, {key}.depth.png and so on, {key}.txt (the prompt), {key}.json
    OUT/metadata/000000.parquet   a row for each row of the manifest, with the reason where there is no picture
    OUT/commits/000000.json       the record, written once the files are whole
    OUT/annotation.json           what the dataset is made from; written first
    OUT/README.md, OUT/_SUCCESS   written last

What is durable is not made again: the same call goes on where one was killed, to the same bytes.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from promptmill.configs.errors import shown
from promptmill.configs.json_values import parse_json
from promptmill.jobs.annotating.inputs import Inputs
from promptmill.jobs.annotating.pool import AnnotatorPool, workers_for
from promptmill.jobs.annotating.rows import RowMaker
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.planning.sealed_json import sealed
from promptmill.pipelines.work.units import Placed
from promptmill.shards.commits import CommitRecord, FileRecord, commit, read_record, shard_name
from promptmill.shards.lease import hold
from promptmill.shards.parts import PartError, part_name, read_part, write_part
from promptmill.shards.sidecars import encode_rows
from promptmill.shards.storage import delete, get, join, names, put, sweep_scratch
from promptmill.shards.tables import IMAGE, encode_table
from promptmill.shards.tars import Sample, read_tar, write_tar

PLAN = "annotation.json"
MOST_PLAN = 2**20  # bytes
AHEAD = 2  # parts a worker: one to work at, one to go on with

MAP = pa.struct(
    [("name", pa.string()), ("preprocess", pa.string()), ("model", pa.string()), ("sha256", pa.string()), ("empty", pa.bool_())]
)
_TEXT, _INT = pa.string(), pa.int32()
FORM = pa.schema(
    [
        *((name, _TEXT) for name in ("key", "id", "status", "error", "error_message", "prompt", "init_image", "init_image_sha256")),
        *((name, _INT) for name in ("width", "height")),
        ("maps", pa.list_(MAP)),
        ("sha256", _TEXT),
        ("bytes", pa.int64()),
        ("shard", _INT),
    ]
)


@dataclass(frozen=True)
class Annotated:
    """Counts the rows of a dataset of maps: those whose maps are there, and those without a picture."""

    kept: int
    failed: int


def annotate(
    inputs: Inputs, output: str, progress: Callable[[int], None] = lambda rows: None, workers: int | Literal["auto"] = 1
) -> Annotated:
    """Make a dataset of maps, or go on with one.

    Args:
        inputs: What the dataset is made from.
        output: The dataset's URI.
        progress: Called with the number of rows that are done.
        workers: Processes that make maps, which changes no byte. 1: this process makes them; "auto": one a GPU, or one for each
            `inputs.threads` of the processors.

    Raises:
        AbortError: Processes that made maps have died of the same pictures again and again.
        PlanError: The output holds another dataset.
        ModelError: A model cannot be loaded.
        UnreachableError: A picture's storage or host failed; the same call goes on.
        LeaseError, StorageError, CommitError: Somebody else writes there, or the output cannot be written.
    """
    with hold(output):
        _claim(inputs, output)
        records = []
        with _makers(inputs, workers_for(inputs) if workers == "auto" else workers) as makers:
            for record in _records(inputs, output, makers):
                records.append(record)
                progress(sum(record.requests for record in records))
        done = Annotated(sum(record.kept for record in records), sum(record.failed for record in records))
        for name in names(join(output, "parts")):
            delete(join(output, "parts", name))
        put(join(output, "README.md"), _card(inputs, done).encode())
        put(join(output, "_SUCCESS"), b"")
        for folder in ("", "data", "metadata", "commits", "parts"):
            sweep_scratch(join(output, folder))
    return done


def _claim(inputs: Inputs, output: str) -> None:
    """Write the inputs of the dataset, or compare them with those that are there. Raises PlanError where they differ."""
    wanted = json.loads(json.dumps(inputs.values))
    try:
        there = parse_json(get(join(output, PLAN), MOST_PLAN))["inputs"]
    except FileNotFoundError:
        if any(names(join(output, "commits"))):
            raise PlanError([f"{output}: holds a dataset of another kind; give another --to"]) from None
        put(join(output, PLAN), sealed({"inputs": wanted, "rows": inputs.rows, "fingerprint": inputs.fingerprint}))
        return
    except (ValueError, KeyError, TypeError):
        raise PlanError([f"{output}/{PLAN}: cannot be read; give another --to"]) from None
    if there != wanted:
        different = ", ".join(name for name in wanted if not isinstance(there, Mapping) or there.get(name) != wanted[name])
        raise PlanError([f"{output}: was annotated from something else ({different or 'other inputs'}); give another --to"])


@dataclass(frozen=True)
class _Makers:
    """Holds the function that makes rows, and threads that each make a part at a time; without them, parts are made when needed."""

    rows: Callable[[int, Sequence[Placed]], list[dict[str, Any]]]
    threads: ThreadPoolExecutor | None = None
    number: int = 1


@contextmanager
def _makers(inputs: Inputs, number: int) -> Iterator[_Makers]:
    if number == 1:
        yield _Makers(RowMaker(inputs).rows)
        return
    pool, threads = AnnotatorPool(inputs, number), ThreadPoolExecutor(number)
    try:
        yield _Makers(pool.rows, threads, number)
    finally:
        pool.close()
        threads.shutdown(cancel_futures=True)


def _records(inputs: Inputs, output: str, makers: _Makers) -> Iterator[CommitRecord]:
    """Yield the record of each shard in order; so many shards are begun that no thread is without work."""
    begun = deque[_Shard]()
    for number, placed in enumerate(inputs.shards()):
        begun.append(_Shard(inputs, output, makers, number, placed))
        yield from _finished(begun, AHEAD * makers.number)
    yield from _finished(begun, 1)


def _finished(begun: "deque[_Shard]", most: int) -> Iterator[CommitRecord]:
    """Publish the first shards, those whose parts are made, until fewer than `most` parts of all shards are not made."""
    while begun:
        pending = [part for shard in begun for part in shard.pending]
        if not begun[0].pending:
            yield begun.popleft().finish()
        elif len(pending) >= most:
            wait(pending, return_when=FIRST_COMPLETED)
        else:
            return


class _Shard:
    """Makes a shard of the dataset; where there are threads, its parts are begun at once."""

    def __init__(self, inputs: Inputs, output: str, makers: _Makers, number: int, placed: Sequence[Placed]):
        self._inputs, self._output, self._makers, self._number = inputs, output, makers, number
        size, self._begun = inputs.wanted.part, dict[str, Future[None]]()
        self._parts = {part_name(f"{shard_name(number)}-{at:05d}"): placed[at : at + size] for at in range(0, len(placed), size)}
        self._record: CommitRecord | None = None
        try:
            self._record = read_record(output, number)
        except FileNotFoundError:
            if makers.threads is not None:
                there = {*names(join(output, "parts"))}
                lacking = {name: some for name, some in self._parts.items() if name not in there}
                self._begun = {name: makers.threads.submit(self._make, name, some) for name, some in lacking.items()}

    @property
    def pending(self) -> list[Future[None]]:
        """Return the parts that were begun and are not made yet."""
        return [one for one in self._begun.values() if not one.done()]

    def _make(self, name: str, some: Sequence[Placed]) -> None:
        write_part(self._output, name, self._makers.rows(self._number, some), FORM, self._inputs.fingerprint)

    def finish(self) -> CommitRecord:
        """Make the parts that are not there, and publish the shard, unless it is published."""
        if self._record is not None:
            return self._record
        fingerprint = self._inputs.fingerprint
        tables, samples = [], dict[str, Mapping[str, bytes]]()
        for name, some in self._parts.items():
            if name in self._begun:
                self._begun[name].result()
            try:
                table = read_part(self._output, name, FORM, fingerprint)
            except (FileNotFoundError, PartError):
                self._make(name, some)
                table = read_part(self._output, name, FORM, fingerprint)
            packed = zip(table["key"].to_pylist(), table[IMAGE].to_pylist(), strict=True)
            samples |= {key: next(read_tar(tar)).files for key, tar in packed if tar is not None}
            tables.append(table.drop_columns([IMAGE]))
        record = self._publish(pa.concat_tables(tables), samples)
        for name in self._parts:
            delete(join(self._output, "parts", name))
        return record

    def _publish(self, table: pa.Table, samples: Mapping[str, Mapping[str, bytes]]) -> CommitRecord:
        name, kept = shard_name(self._number), table.filter(pc.equal(table["status"], "kept"))
        content = {f"metadata/{name}.parquet": encode_table(table)}
        if samples:
            described = zip(kept["key"].to_pylist(), kept["prompt"].to_pylist(), encode_rows(kept), strict=True)
            whole = [Sample(key, {**samples[key], "txt": (prompt or "").encode(), "json": row}) for key, prompt, row in described]
            content = {f"data/{name}.tar": write_tar(whole), **content}
        failed = table.num_rows - kept.num_rows
        record = CommitRecord(
            shard=self._number,
            generation=0,
            files=tuple(FileRecord.of(path, bytes_) for path, bytes_ in content.items()),
            fingerprint=self._inputs.fingerprint,
            requests=table.num_rows,
            failed_requests=failed,
            kept=kept.num_rows,
            failed=failed,
        )
        for path, bytes_ in content.items():
            put(join(self._output, path), bytes_)
        commit(self._output, record)
        return record


def _card(inputs: Inputs, done: Annotated) -> str:
    return "\n".join(_card_lines(inputs, done)) + "\n"


def _card_lines(inputs: Inputs, done: Annotated) -> Iterator[str]:
    yield from ("---", "configs:", "- config_name: default", "  data_files: data/*.tar", "---", "", "# Control maps", "")
    failed = f"; of {done.failed:,} more there is no picture" if done.failed else ""
    yield f"{done.kept:,} pictures with their maps, made by promptmill{failed}."
    yield from ("", "| file | made by |", "|---|---|", "| `{key}.png` | the picture |")
    yield from (f"| `{{key}}.{name}.png` | `{preprocess}` |" for name, preprocess in inputs.wanted.preprocess.items())
    if inputs.models:
        yield from ("", "| model | source | licence |", "|---|---|---|")
        yield from (f"| {role} | `{shown(source)}` | {shown(licence)} |" for role, (source, licence) in inputs.models.items())
    yield from ("", f"Fingerprint `{inputs.fingerprint}`, of what `{PLAN}` lists.")
