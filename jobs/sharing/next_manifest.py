"""Writes a manifest of an output's kept images, for img2img or a ControlNet over the winners."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from promptmill.configs import columns
from promptmill.configs.columns import Stated
from promptmill.jobs.sharing.row_files import ExportError, check_ending, writing
from promptmill.manifests.own_outputs import HASHES, added, as_input
from promptmill.shards.commits import CommitRecord
from promptmill.shards.finished import ShardReader, shards
from promptmill.shards.places_to_write import place_in
from promptmill.shards.storage import SCRATCH, local_path
from promptmill.shards.tables import declared_in, ranks_by

CONDITIONING = ("init_image", "mask_image", "mask_edit", "outpaint", "controls", "references", "gligen_boxes", "strength")
# Written without the SHA-256 that the output has of each image: that is not for a row to say.
CONTROL = pa.struct([field for field in columns.CONTROL if field.name != "sha256"])
REFERENCE = pa.struct([field for field in columns.REFERENCE if field.name not in HASHES])
NOISE = {"seed", columns.VARIATION_SEED, columns.VARIATION}
OF_VARIATIONS = {
    "candidates": pa.int32(),
    "keep": pa.int32(),
    columns.VARIATION_SEED: pa.int64(),
    columns.VARIATION: pa.float64(),
}
OWN = {"source_id": pa.string(), "source_score": pa.float64()}


@dataclass(frozen=True)
class Pass:
    """Holds the options of a second pass over kept images.

    Attributes:
        kind: `img2img` starts from the image; `control` gives the image to a ControlNet; `variations` renders the request
            of the image again, with noise near to the image's.
        strength: The strength of img2img, which None leaves to the second config; or the share of other noise, of variations.
        control, preprocess, scale: The ControlNet's type, how its map is made of the image, and its scale.
        conditioning: Whether the first pass's controls and mask stay, for `control` its init image too; their paths stay the same.
        seeds: Whether each row has its image's seed; else its noise is new.
        drop: Columns to leave out, so that the second config's defaults hold.
        variations: How many variations each image gets.
    """

    kind: Literal["img2img", "control", "variations"] = "img2img"
    strength: float | None = None
    control: str = "canny"
    preprocess: str = "canny"
    scale: float = 1.0
    conditioning: bool = False
    seeds: bool = False
    drop: tuple[str, ...] = ()
    variations: int = 0


def export_manifest(output: str, file: Path, wanted: Pass) -> int:
    """Write a manifest with a row for each kept image, and the images into a folder beside it; return the number of rows.

    The folder is named after the manifest. Each shard has a folder of its own inside, named by the shard's content: so no export,
    whole or cut off, replaces an image that another manifest names, or an earlier manifest of this name.

    The id of a row is the image's key; `source_id` and `source_score` give the image's request and score; prompt, parameters and
    carried columns are those of the first pass.

    Args:
        output: The dataset's URI; of an unfinished dataset, the committed shards are exported.
        file: Parquet or JSON lines.
        wanted: The options of the second pass.

    Raises:
        ExportError: The dataset keeps no image, a column to drop does not exist, or variations are asked for of variations.
        CommitError: A file is not what its record says, or a key or an image is not as promptmill makes them.
        OutsideError: The folder beside the manifest is a link that leads elsewhere.
    """
    check_ending(file)
    there = [shard for shard in shards(output) if shard.record.kept]
    if not there:
        raise ExportError(f"{output}: nothing is kept there")
    schema = there[0].table().schema
    if wanted.kind == "variations" and columns.VARIATION_SEED in declared_in(schema):
        _refuse_varied(output, there)
    form = _form(schema, wanted)
    folder, count = file.with_name(f"{file.stem}-images"), 0
    with writing(file, form) as write:
        for shard in there:
            kept = list(shard.kept())
            for one in kept:
                one.check()  # the image goes to others, who may not ask
            rows = []
            for one in kept:
                name = f"{folder.name}/{_named(shard.record)}/{one.key}.{one.file.ending}"
                place = local_path(place_in(str(file.parent), name))
                if wanted.kind != "variations":  # which begin with noise, not with the image
                    _put(place, one.file.content)
                made = _row(one.row, place.relative_to(file.parent).as_posix(), wanted, schema)
                rows.append({name: made.get(name) for name in form.names})
            write(rows)
            count += len(rows)
    return count


def _refuse_varied(output: str, there: Sequence[ShardReader]) -> None:
    """Raise ExportError where a kept image is a variation: a row mixes the noise of two seeds, and near to that lies a third."""
    for shard in there:
        table = shard.table().select(["key", "selected", columns.VARIATION_SEED])
        for row in table.to_pylist():
            if row["selected"] and row[columns.VARIATION_SEED] is not None:
                said = "is a variation itself, and no row says noise near to its own; render variations of the first images"
                raise ExportError(f"{output}: {row['key']} {said}")


def _named(record: CommitRecord) -> str:
    """Return a folder name for a shard's images; a shard with other images has another name."""
    tar = record.file("data")
    assert tar is not None, "nothing is kept of it"
    return f"{record.shard:06d}-{tar.sha256[:16]}"


def _put(place: Path, content: bytes) -> None:
    """Write an image whole; an image that is there already is only replaced if it was altered."""
    if not place.is_symlink() and place.is_file() and place.read_bytes() == content:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = place.parent / f"{SCRATCH}{secrets.token_hex(8)}"
    try:
        scratch.write_bytes(content)
        scratch.replace(place)
    finally:
        scratch.unlink(missing_ok=True)


def _form(table: pa.Schema, wanted: Pass) -> pa.Schema:
    """Return the schema of the manifest, made from the columns of the metadata."""
    own = {"id": pa.string(), "init_image": pa.string(), "controls": pa.list_(CONTROL), **OWN}
    own |= OF_VARIATIONS if wanted.kind == "variations" else {}
    same = wanted.seeds or wanted.kind == "variations"
    dropped = added(table.names, Stated.of(table).declared) | (set() if same else NOISE)
    kept = {field.name: field.type for field in table if field.name not in dropped}
    if kept.get(columns.REFERENCES) == pa.list_(columns.REFERENCE):
        own[columns.REFERENCES] = pa.list_(REFERENCE)
    named = {"id": own["id"], **kept, **own}
    unknown = sorted(set(wanted.drop) - set(named))
    if unknown:
        raise ExportError(f"--drop {unknown[0]}: no column of the manifest; it has {', '.join(named)}")
    return pa.schema([(name, kind) for name, kind in named.items() if name not in wanted.drop])


def _row(first: Mapping[str, Any], image: str, wanted: Pass, schema: pa.Schema) -> dict[str, Any]:
    row = as_input(first, Stated.of(schema).declared)
    if not wanted.conditioning and wanted.kind != "variations":
        row = {name: value for name, value in row.items() if name not in CONDITIONING}
    row |= {"source_id": first["id"], "source_score": first[ranks_by(schema)]}
    if wanted.kind == "variations":
        # What has stages was rendered at another size than its file has.
        size = {name: rendered[0][name] for name in ("width", "height")} if (rendered := first.get(columns.STAGES)) else {}
        number = {"candidates": wanted.variations, "keep": wanted.variations}
        noise = {columns.VARIATION_SEED: (first["seed"] + 2**31) % 2**32, columns.VARIATION: wanted.strength}
        return {**row, **size, **number, **noise}
    if wanted.kind == "img2img":
        if row.get(columns.OUTPAINT) is not None:  # the kept image is widened already
            row = {name: value for name, value in row.items() if name not in (columns.MASK_EDIT, columns.OUTPAINT)}
        return {**row, "init_image": image, "strength": wanted.strength}
    control = {
        "type": wanted.control,
        "image": image,
        "preprocess": wanted.preprocess,
        "scale": wanted.scale,
        "start": 0.0,
        "end": 1.0,
    }
    before: Sequence[Any] = row.get("controls") or ()
    return {**row, "controls": [control, *before]}
