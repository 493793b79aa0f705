"""Makes a dataset of maps: parts of a few pictures each, shards of parts, and a record that publishes each shard.

    OUT/data/000000.tar           {key}.png, {key}.depth.png and so on, {key}.txt (the prompt), {key}.json
    OUT/metadata/000000.parquet   a row for each row of the manifest, with the reason where there is no picture
    OUT/commits/000000.json       the record, written once the files are whole
    OUT/annotation.json           what the dataset is made from; written first
    OUT/README.md, OUT/_SUCCESS   written last

What is durable is not made again: the same call goes on where one was killed, to the same bytes.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from promptmill.configs.errors import shown
from promptmill.configs.json_values import parse_json
from promptmill.configs.preprocessors import annotator_of
from promptmill.jobs.annotating.inputs import Inputs
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.planning.sealed_json import sealed
from promptmill.manifests.images import ImageError, UnreachableError, load
from promptmill.pipelines.work.units import Placed, sample_key
from promptmill.shards.commits import CommitRecord, FileRecord, commit, read_record, shard_name
from promptmill.shards.lease import hold
from promptmill.shards.parts import PartError, part_name, read_part, write_part
from promptmill.shards.sidecars import encode_rows
from promptmill.shards.storage import delete, get, join, names, put, sweep_scratch
from promptmill.shards.tables import IMAGE, encode_table
from promptmill.shards.tars import Sample, read_tar, write_tar

PLAN = "annotation.json"
MOST_PLAN = 2**20  # bytes
PNG_LEVEL = 1  # of zlib: maps are small at any level

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


def annotate(inputs: Inputs, output: str, progress: Callable[[int], None] = lambda rows: None) -> Annotated:
    """Make a dataset of maps, or go on with one.

    Args:
        inputs: What the dataset is made from.
        output: The dataset's URI.
        progress: Called with the number of rows that are done.

    Raises:
        PlanError: The output holds another dataset.
        ModelError: A model cannot be loaded.
        UnreachableError: A picture's storage or host failed; the same call goes on.
        LeaseError, StorageError, CommitError: Somebody else writes there, or the output cannot be written.
    """
    with hold(output):
        _claim(inputs, output)
        maker = _Maker(inputs, output)
        records = []
        for number in range(inputs.shards):
            try:
                records.append(read_record(output, number))
            except FileNotFoundError:
                records.append(maker.shard(number))
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


class _Maker:
    """Makes the parts and shards of a dataset; models are loaded when the first part is made."""

    def __init__(self, inputs: Inputs, output: str):
        self._inputs, self._output = inputs, output
        self._maps: Any = None
        self._models = {name: inputs.values["models"][f"model.annotators.{name}"] for name in inputs.annotators}

    def shard(self, number: int) -> CommitRecord:
        """Make and publish a shard, of the parts that are there and those that are not."""
        placed, size, fingerprint = self._inputs.shard(number), self._inputs.wanted.part, self._inputs.fingerprint
        parts = {part_name(f"{shard_name(number)}-{at:05d}"): placed[at : at + size] for at in range(0, len(placed), size)}
        tables, samples = [], dict[str, Mapping[str, bytes]]()
        for name, some in parts.items():
            try:
                table = read_part(self._output, name, FORM, fingerprint)
            except (FileNotFoundError, PartError):
                write_part(self._output, name, [self._row(number, one) for one in some], FORM, fingerprint)
                table = read_part(self._output, name, FORM, fingerprint)
            packed = zip(table["key"].to_pylist(), table[IMAGE].to_pylist(), strict=True)
            samples |= {key: next(read_tar(tar)).files for key, tar in packed if tar is not None}
            tables.append(table.drop_columns([IMAGE]))
        record = self._publish(number, pa.concat_tables(tables), samples)
        for name in parts:
            delete(join(self._output, "parts", name))
        return record

    def _publish(self, number: int, table: pa.Table, samples: Mapping[str, Mapping[str, bytes]]) -> CommitRecord:
        name, kept = shard_name(number), table.filter(pc.equal(table["status"], "kept"))
        content = {f"metadata/{name}.parquet": encode_table(table)}
        if samples:
            described = zip(kept["key"].to_pylist(), kept["prompt"].to_pylist(), encode_rows(kept), strict=True)
            whole = [Sample(key, {**samples[key], "txt": (prompt or "").encode(), "json": row}) for key, prompt, row in described]
            content = {f"data/{name}.tar": write_tar(whole), **content}
        failed = table.num_rows - kept.num_rows
        record = CommitRecord(
            shard=number,
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

    def _row(self, shard: int, placed: Placed) -> dict[str, Any]:
        """Return the row of a picture, with its files as a tar; or, without files, that of a picture that cannot be used."""
        from promptmill.pipelines.rendering.annotators import MapError

        request = placed.request
        path = request.init_image or ""
        row: dict[str, Any] = {"key": sample_key(shard, placed.row, None), "id": request.id, "shard": shard, IMAGE: None}
        row |= {"prompt": request.prompt or None, "init_image": path}
        try:
            picture = load(path, self._inputs.roots, placed.file, size=self._inputs.wanted.size)
            return {**row, "init_image_sha256": picture.sha256, **self._made(row["key"], picture)}
        except UnreachableError:
            raise
        except ImageError as error:
            return {**row, "status": "failed", "error": "bad_image", "error_message": f"init_image: {error}", "maps": []}
        except MapError as error:
            return {**row, "status": "failed", "error": "render_error", "error_message": str(error), "maps": []}

    def _made(self, key: str, picture: Any) -> dict[str, Any]:
        from promptmill.pipelines.rendering.conditioning import prepare

        width, height = size = self._inputs.wanted.size or picture.image.size
        pixels = prepare(picture.image, width, height)
        files, told = {"png": _png(pixels)}, []
        for name, preprocess in self._inputs.wanted.preprocess.items():
            made = self._all_maps().get(picture.sha256, preprocess, size, lambda: pixels)
            files[f"{name}.png"] = content = _png(made)
            model = self._models.get(annotator_of(preprocess) or "")
            one = {"name": name, "preprocess": preprocess, "model": model, "empty": not made.any()}
            told.append({**one, "sha256": hashlib.sha256(content).hexdigest()})
        values = {"status": "kept", "width": width, "height": height, "maps": told}
        packed = {IMAGE: write_tar([Sample(key, files)]), "sha256": hashlib.sha256(files["png"]).hexdigest()}
        return {**values, **packed, "bytes": len(files["png"])}

    def _all_maps(self) -> Any:
        if self._maps is None:
            from promptmill.pipelines.rendering.annotators import Annotators
            from promptmill.pipelines.rendering.control_maps import ControlMaps
            from promptmill.pipelines.rendering.loading import device_here

            annotators = Annotators(self._inputs.annotators, device_here(), self._inputs.threads)
            annotators.load(self._inputs.annotators)
            self._maps = ControlMaps(annotators)
        return self._maps


def _png(pixels: Any) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=PNG_LEVEL)
    return file.getvalue()


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
