"""Measures the cost of a report of a large dataset: seconds, megabytes, peak memory.

    python -m benchmarks.report                     # a million kept images of four million candidates
    python -m benchmarks.report --images 20000 --keep-in some/folder

The dataset is made up, but whole where the report looks: every shard has its commit record, and those of the sample their Parquet,
with embeddings, and their tar, of 512x512 WebP pictures. The others' files are not there, so a report that opened one would say so
and exit with 1. What is measured is the command itself, start to end, in a process of its own.
"""

import io
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import repeat
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from promptmill.actors.receipts import Receipt
from promptmill.configs.loading import load
from promptmill.jobs.figures.sampling import sample
from promptmill.jobs.planning.counts import Counts
from promptmill.jobs.planning.plan import Plan, put_hardware, write_plan
from promptmill.jobs.running.stats import Stats
from promptmill.shards.commits import CommitRecord, FileRecord, commit, record_uri
from promptmill.shards.image_files import pixel_sha256
from promptmill.shards.index import SUCCESS
from promptmill.shards.sidecars import encode_rows
from promptmill.shards.storage import join, put
from promptmill.shards.tables import encode_table, schema
from promptmill.shards.tars import Sample, write_tar

SIZE = 1_000  # requests a shard
N = 4  # candidates
PICTURES = 40
WIDTH = 128  # of embeddings
MODES = ("txt2img", "img2img", "inpaint", "controlnet")
FORM = schema({}, WIDTH)


@cache
def pictures() -> list[tuple[bytes, str, str]]:
    """Return some 512x512 pictures: the file, its SHA-256, and that of its pixels."""
    made = []
    for number in range(PICTURES):
        rng = np.random.default_rng(number)
        image = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((512, 512), Image.Resampling.BICUBIC)
        pen = ImageDraw.Draw(image)
        for _ in range(6):
            x, y, r = rng.integers(0, 512, 3)
            pen.ellipse((x, y, x + r // 2, y + r // 2), fill=tuple(rng.integers(0, 256, 3).tolist()))
        file = io.BytesIO()
        image.save(file, "WEBP", quality=60)
        content = file.getvalue()
        made.append((content, FileRecord.of("", content).sha256, pixel_sha256(np.asarray(image))))
    return made


def table(shard: int) -> pa.Table:
    """Return the metadata of a shard: scores about 25, one candidate in a thousand failed."""
    rng, rows = np.random.default_rng(shard), SIZE * N
    row, candidate = np.repeat(np.arange(SIZE), N), np.tile(np.arange(N, dtype=np.int32), SIZE)
    failed = rng.random(rows) < 0.001
    score = (25 + 2 * np.repeat(rng.standard_normal(SIZE), N) + rng.standard_normal(rows)).astype(np.float32)
    by_request = np.where(failed, -np.inf, score).reshape(SIZE, N)
    kept = (np.arange(N) == by_request.argmax(1)[:, None]).ravel() & ~failed
    picture = (row + shard) % PICTURES
    words = np.repeat(rng.integers(4, 40, SIZE), N)
    embedding = np.repeat(rng.standard_normal((SIZE, WIDTH), np.float32).astype(np.float16), N, 0)
    hashes = pictures()
    count = kept.sum()
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(embedding[kept].ravel()), WIDTH)
    columns = {
        "key": pa.array([f"{shard:06d}-{r:05d}-{c:04d}" for r, c in zip(row.tolist(), candidate.tolist(), strict=True)]),
        "id": pa.array([f"request {shard}/{r}" for r in row.tolist()]),
        "candidate_index": pa.array(candidate),
        "rank": pa.array((-by_request).argsort(1).argsort(1).ravel().astype(np.int32) + 1),
        "selected": pa.array(kept),
        "status": pa.array(np.where(kept, "kept", np.where(failed, "failed", "rejected"))),
        "error": pa.array(np.where(failed, "non_finite", ""), mask=~failed),
        "error_message": pa.array(np.where(failed, "NaN in the latents", ""), mask=~failed),
        "prompt": pa.array(
            [f"number {shard * SIZE + r}: {'word ' * w}" for r, w in zip(row.tolist(), words.tolist(), strict=True)]
        ),
        "mode": pa.array(np.array(MODES)[row % len(MODES)]),
        "seed": pa.array(rng.integers(0, 2**32, rows)),
        "clip_score": pa.array(score, mask=failed),
        "sha256": pa.array([hashes[p][1] if k else None for p, k in zip(picture.tolist(), kept.tolist(), strict=True)]),
        "pixel_sha256": pa.array([hashes[p][2][::-1] + str(r) for p, r in zip(picture.tolist(), row.tolist(), strict=True)]),
        "bytes": pa.array([len(hashes[p][0]) for p in picture.tolist()]),
        "clip_embedding": vectors.take(pa.array(np.cumsum(kept) - 1, mask=~kept)) if count else pa.nulls(rows),
    }
    same = {"width": 512, "height": 512, "steps": 20, "guidance_scale": 7.5, "scheduler": "ddim", "candidates": N, "keep": 1}
    same |= {"unet_evaluations": 40, "shard": shard, "model": "made-up", "versions": "{}", "negative_prompt": ""}
    arrays = []
    for field in FORM:
        if field.name in columns:
            arrays.append(columns[field.name].cast(field.type))
        elif field.name in same:
            arrays.append(pa.repeat(pa.scalar(same[field.name], field.type), rows))
        else:
            arrays.append(pa.nulls(rows, field.type))
    return pa.table(arrays, FORM)


def publish(output: str, shard: int, fingerprint: str) -> None:
    """Publish a whole shard, its record last."""
    rows = table(shard)
    kept = rows.filter(rows["selected"])
    columns = (kept[name].to_pylist() for name in ("key", "prompt", "sha256"))
    by_hash = {sha256: image for image, sha256, _ in pictures()}
    samples = [
        Sample(key, {"webp": by_hash[sha256], "txt": prompt.encode(), "json": described})
        for key, prompt, sha256, described in zip(*columns, encode_rows(kept), strict=True)
    ]
    tar, content = write_tar(samples), encode_table(rows)
    files = (FileRecord.of(f"data/{shard:06d}.tar", tar), FileRecord.of(f"metadata/{shard:06d}.parquet", content))
    for file, bytes_ in zip(files, (tar, content), strict=True):
        put(join(output, file.path), bytes_)
    failed = rows.filter(pa.compute.equal(rows["status"], "failed")).num_rows
    counts = {"kept": len(kept), "rejected": len(rows) - len(kept) - failed, "failed": failed, "failed_requests": 0}
    commit(output, CommitRecord(shard, 0, files, fingerprint, requests=SIZE, **counts))


def make_up(output: str, images: int) -> None:
    """Make up a finished dataset with so many kept images."""
    shards = max(1, images // SIZE)
    config = load("embedded", ["manifest=made-up.jsonl", f"shards.size={SIZE}", "shards.image_format=webp"])
    counts = Counts(rows=images, requests=images, candidates=images * N, keep=images, modes=dict.fromkeys(MODES, images // 4))
    plan = Plan({"config": config.render_config(), "versions": {}, "models": {}}, shards, counts, {}, WIDTH, config)
    write_plan(output, plan)
    put_hardware(output, {"cpu": "made up"})
    bare = CommitRecord(0, 0, (), plan.fingerprint, requests=SIZE, kept=SIZE, rejected=SIZE * (N - 1))
    bare = replace(bare, files=(FileRecord("data/none.tar", 5_000_000, ""), FileRecord("metadata/none.parquet", 350_000, "")))
    records = [replace(bare, shard=shard) for shard in range(shards)]
    seen = [record.shard for record in sample(records).records]
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(publish, repeat(output), seen, repeat(plan.fingerprint)))
    for record in records:
        if record.shard not in seen:
            # Nothing of these is worth a flush to the disk.
            Path(record_uri(output, record.shard)).write_bytes(record.to_json())
    stats = Stats(output)
    for unit in range(images // 20):
        name, seconds = f"{unit // 50:06d}-{unit % 50:05d}", {"denoise": 8.0, "score": 0.3}
        receipt = Receipt(name, unit // 50, {}, None, seconds, host="node", requests=20, kept=20, rejected=60)
        stats.add(receipt)
        if stats.full:
            stats.flush()
    stats.flush()
    put(join(output, SUCCESS), b"")


@click.command()
@click.option("--images", default=1_000_000, show_default=True, help="Kept; each the best of four.")
@click.option(
    "--keep-in", type=click.Path(path_type=Path), help="Make the dataset here, or take the one that is here, and leave it."
)
def main(images: int, keep_in: Path | None) -> None:
    """Measure a report."""
    with tempfile.TemporaryDirectory() as folder:
        output, file = keep_in or Path(folder) / "out", Path(folder) / "report.html"
        if not (output / SUCCESS).exists():
            started = time.monotonic()
            make_up(str(output.absolute()), images)
            click.echo(f"made up in {time.monotonic() - started:.0f} s", err=True)
        started = time.monotonic()
        process = subprocess.Popen([sys.executable, "-m", "promptmill", "report", output, "--to", file], stdout=sys.stderr)
        _, status, used = os.wait4(process.pid, 0)  # of this child alone, not of those that made the dataset
        seconds = time.monotonic() - started
        if status:
            sys.exit(status)
        click.echo("| kept images | seconds | CPU seconds | page, MB | peak MiB |\n|---:|---:|---:|---:|---:|")
        cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
        click.echo(f"| {images:,} | {seconds:.1f} | {cpu:.1f} | {file.stat().st_size / 1e6:.1f} | {peak:.0f} |")


if __name__ == "__main__":
    main()
