"""Datasets for tests: rows as a run makes them, images of random pixels, everything else by the code under test."""

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa

from promptmill.shards.assembly import Assembly, assemble
from promptmill.shards.card import CARD, Made, ModelMade, card
from promptmill.shards.commits import CommitRecord, read_records
from promptmill.shards.image_files import Provenance, encode_image, pixel_sha256
from promptmill.shards.index import publish_index
from promptmill.shards.parts import part_name, write_part
from promptmill.shards.storage import join, put
from promptmill.shards.tables import schema

FORM = schema({"topic": pa.string(), "weight": pa.float64(), "tags": pa.list_(pa.string())}, embedding=4)
FINGERPRINT = "f" * 64
SIDE = 16


@cache
def pixels_of(key: str) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8, of no candidate but this one."""
    return np.random.default_rng([ord(c) for c in key]).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def provenance(row: dict) -> Provenance:
    return Provenance(row["prompt"], "", row["steps"], "ddim", row["guidance_scale"], row["seed"], SIDE, SIDE, "tiny")


def candidate(shard: int, row: int, index: int, status: str, image_format: str = "png", quality: int = 90) -> dict:
    """A row of a part. Guidance is 7.0 in the first requests and 7.5 from the sixth on; odd requests have a control."""
    key = f"{shard:06d}-{row:05d}-{index:04d}"
    values = {
        "key": key,
        "id": f"request {shard}/{row}",
        "candidate_index": index,
        "status": status,
        "selected": status == "kept",
        "prompt": f"a “cat”, number {row}",
        "negative_prompt": "",
        "mode": "controlnet" if row % 2 else "txt2img",
        "width": SIDE,
        "height": SIDE,
        "steps": 4,
        "guidance_scale": 7.0 if row < 5 else 7.5,
        "scheduler": "ddim",
        "seed": 2**32 - 1 - index,
        "candidates": 2,
        "keep": 1,
        "controls": [control(row)] if row % 2 else [],
        "loras": [],
        "shard": shard,
        "topic": "cats" if row % 3 else None,
        "weight": 7.0 if row < 5 else 7.5,
        "tags": ["a", "b"][: row % 3],
    }
    if status == "failed":
        return {**values, "error": "non_finite", "error_message": "NaN in the latents"}
    values |= {"rank": index, "clip_score": np.float32(25 + index / 8), "pixel_sha256": pixel_sha256(pixels_of(key))}
    if status == "kept":
        image = encode_image(pixels_of(key), image_format, quality, provenance(values))
        values |= {"image": image, "sha256": hashlib.sha256(image).hexdigest(), "bytes": len(image)}
        values |= {"clip_embedding": np.array([0.5, 0.5, 0.5, row / 8], np.float16)}
    return values


def control(row: int) -> dict:
    return {
        "type": "canny",
        "image": f"{row}.png",
        "preprocess": "none",
        "scale": 1.0,
        "start": 0.0,
        "end": 1.0,
        "sha256": "0" * 64,
    }


def refused(shard: int, row: int, candidates: int | None = 2) -> dict:
    """The row of a request that never made it past the manifest."""
    key = f"{shard:06d}-{row:05d}"
    said = {"error": "bad_row", "error_message": "steps: 0 is too few", "topic": "dogs", "candidates": candidates}
    return {"key": key, "id": f"request {shard}/{row}", "status": "failed", "selected": False, "shard": shard, **said}


@dataclass(frozen=True)
class Shard:
    """What goes into a shard: the rows of each part, and of the requests that are in none."""

    number: int
    parts: tuple[tuple[dict, ...], ...]
    failed: tuple[dict, ...]
    requests: int
    planned: int


def shard(number: int, requests: int = 8, statuses: tuple[str, str] = ("kept", "rejected"), **image) -> Shard:
    """Requests of two candidates with these statuses in two parts; the last request is refused."""
    rows = [
        [candidate(number, row, index, status, **image) for index, status in enumerate(statuses)] for row in range(requests - 1)
    ]
    # Units are cut by bucket, so rows of one part do not stand together.
    parts = tuple(tuple(row for rows_ in rows[start::2] for row in rows_) for start in range(2))
    return Shard(number, parts, (refused(number, requests - 1),), requests, 2 * requests)


def write_parts(output: str, made: Shard, form: pa.Schema = FORM, fingerprint: str = FINGERPRINT) -> list[str]:
    names = [part_name(f"{made.number:06d}-{unit:05d}") for unit in range(len(made.parts))]
    for name, rows in zip(names, made.parts, strict=True):
        write_part(output, name, rows, form, fingerprint)
    return names


def assembled(output: str, made: Shard, image_format: str = "png", form: pa.Schema = FORM, **more) -> CommitRecord:
    """Publish a shard; its parts stay."""
    values = {"requests": made.requests, "planned": made.planned, "fingerprint": FINGERPRINT} | more
    fingerprint = values.pop("fingerprint")
    made_of = Assembly(shard=made.number, parts=write_parts(output, made, form, fingerprint), failed=made.failed, **values)
    return assemble(output, made_of, form, image_format, fingerprint)


def publish(output: str, shards: list[Shard], image_format: str = "png", form: pa.Schema = FORM) -> None:
    """A finished dataset, but for the parts, which stay where they are."""
    for made in shards:
        assembled(output, made, image_format, form)
    totals = publish_index(output, read_records(output), len(shards))
    models = (ModelMade("base", "embedded"), ModelMade("scorer", "owner/clip", "a" * 40))
    put(join(output, CARD), card(Made(totals, form, image_format, 90, models, {"txt2img": 9, "controlnet": 7}, FINGERPRINT)))
