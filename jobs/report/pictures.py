"""The images of a report: rows of the metadata by their keys, each with a thumbnail and the command that makes it again."""

import base64
import io
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from promptmill.configs.errors import shown as short
from promptmill.jobs.figures.reading import READERS
from promptmill.pipelines.work.units import sample_key
from promptmill.shards.commits import CommitRecord
from promptmill.shards.finished import ShardReader, UnreadableError
from promptmill.shards.image_reader import PictureError, read_picture
from promptmill.shards.outcomes import row_of
from promptmill.shards.single_images import pick
from promptmill.shards.storage import OddFileError

SIDE = 256  # pixels of a thumbnail's longer side; smaller images stay as they are
LARGEST = 24_000  # bytes of a thumbnail
LONGEST = 600  # characters of a prompt or a message

Images = Callable[[CommitRecord], str]  # the ending of a shard's images
Found = TypeVar("Found")


@dataclass(frozen=True)
class Shown:
    """A row as it is shown.

    Attributes:
        prompt, message: Cut where they are long.
        image: A data URI; None where there is no image, for the reason in `error` and `message`.
        small: The image is smaller than its tile.
        failed: There never was an image.
        command: What makes it again, for a shell; None for a row that makes no request.
    """

    key: str
    prompt: str
    mode: str
    score: float | None
    seed: int | None
    size: str
    image: str | None
    small: bool
    error: str
    message: str
    failed: bool
    command: str | None


@dataclass(frozen=True)
class Picked:
    """Of one shard: the rows wanted, their image files, both by key, and what could not be read, a line each."""

    rows: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    images: Mapping[str, bytes] = field(default_factory=dict)
    problems: Sequence[str] = ()


def picked(output: str, record: CommitRecord, keys: Iterable[str], image_format: str) -> Picked:
    """Rows and image files of a shard; only the images are read from its tar.

    Raises:
        StorageError: The storage fails.
    """
    tar = record.file("data")
    try:
        table = ShardReader(output, record).glance()
        rows = {row["key"]: row for row in table.filter(pc.is_in(table["key"], pa.array(sorted(set(keys))))).to_pylist()}
        kept = {key for key, row in rows.items() if row["selected"]}
    except (ValueError, TypeError, LookupError, pa.ArrowException) as error:
        return Picked(
            problems=[str(error) if isinstance(error, UnreadableError) else f"{record.paths['metadata']}: {_reason(error)}"]
        )
    if tar is None or not kept:
        return Picked(rows)
    try:
        images = pick(output, tar, table, image_format, kept)
    except (FileNotFoundError, OddFileError, ValueError, TypeError, LookupError, pa.ArrowException) as error:
        return Picked(rows, problems=[f"{tar.path}: {_reason(error)}"])
    return Picked(rows, images, [f"{tar.path}: {key}: missing or altered" for key in sorted(kept - set(images))])


def _reason(error: Exception) -> str:
    if isinstance(error, OddFileError):
        return error.said
    return "missing" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())[:200]


def each(
    records: Mapping[int, CommitRecord], keys: Iterable[str], work: Callable[[CommitRecord, set[str]], Found]
) -> Iterator[Found]:
    """What some work makes of each shard concerned and the keys in it, in their order; several at a time."""
    by_shard: dict[int, set[str]] = defaultdict(set)
    for key in keys:
        by_shard[int(key.split("-")[0])].add(key)
    shards = sorted(by_shard)
    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(lambda shard: work(records[shard], by_shard[shard]), shards)


def show(
    output: str, records: Mapping[int, CommitRecord], keys: Iterable[str], images: Images, ranks: str
) -> tuple[dict[str, Shown], list[str]]:
    """Rows by key as they are shown, and what could not be read of them, a line each.

    Args:
        output: The dataset's URI.
        records: Of its shards, by number.
        keys: Of rows of the metadata.
        images: The ending of a shard's images.
        ranks: The column of the score that ranks.
    """

    def of_shard(record: CommitRecord, some: set[str]) -> tuple[list[Shown], list[str]]:
        found = picked(output, record, some, images(record))
        made = [_shown(output, row, found.images.get(key), images(record), ranks) for key, row in found.rows.items()]
        return [shown for shown, _ in made], [*found.problems, *(problem for _, problem in made if problem)]

    shown: dict[str, Shown] = {}
    problems: list[str] = []
    for some, unread in each(records, keys, of_shard):
        shown.update((one.key, one) for one in some)
        problems += unread
    return shown, problems


def _shown(output: str, row: Mapping[str, Any], image: bytes | None, ending: str, ranks: str) -> tuple[Shown, str | None]:
    uri, small, error, message, problem = None, False, row["error"] or "", row["error_message"] or "", None
    if row["selected"] and image is None:
        error, message = "damaged", "The image is missing or altered; `promptmill verify --repair` makes its shard again."
    elif image is not None:
        try:
            uri = thumbnail(read_picture(image, ending, row["width"], row["height"], draft=(SIDE, SIDE)))
            small = max(row["width"], row["height"]) <= SIDE
        except PictureError as raised:
            error, message = "unreadable", f"The image {raised}."
            problem = f"{row['key']}: its image {raised}"
    shown = Shown(
        key=row["key"],
        prompt=short(row["prompt"] or "", LONGEST),
        mode=row["mode"] or "",
        score=row[ranks],
        seed=row["seed"],
        size=f"{row['width']}×{row['height']}" if row["width"] else "",
        image=uri,
        small=small,
        error=error,
        message=short(message, LONGEST),
        failed=row["status"] == "failed",
        command=command(output, row),
    )
    return shown, problem


def command(output: str, row: Mapping[str, Any]) -> str | None:
    """What makes a row's image again, as a shell takes it, from any folder; None for a row that never was a request."""
    if row["error"] == "bad_row":
        return None
    key = row["key"]
    # A request that failed as a whole has no candidate of its own to name: its first stands for it.
    if row["candidate_index"] is None:
        key = sample_key(row["shard"], row_of(key), 0)
    return f"promptmill regenerate {shlex.quote(output)} {shlex.quote(key)}"


def thumbnail(image: Image.Image) -> str:
    """Return a data URI of an image in mode RGB, made small."""
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    # A few dozen pixels are kept as they are; of larger ones the first quality that is small enough, noise being the worst.
    encoded = _webp(image, lossless=True, quality=50) if max(image.size) <= SIDE // 2 else b""
    for quality in (80, 50, 20):
        if encoded and len(encoded) <= LARGEST:
            break
        encoded = _webp(image, lossless=False, quality=quality)
    return f"data:image/webp;base64,{base64.b64encode(encoded).decode()}"


def _webp(image: Image.Image, lossless: bool, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=lossless, quality=quality, method=4)
    return file.getvalue()
