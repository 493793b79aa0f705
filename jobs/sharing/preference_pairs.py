"""Writes preference pairs: of each request the candidate that scored best against the one that scored worst.

The columns are those of Pick-a-Pic, which trainers for Diffusion-DPO (Wallace et al. 2023) read: `caption`, the two image files as
bytes in `jpg_0` and `jpg_1` (whatever their format), `label_0` 1 for the better, `label_1` 0. Only kept images are stored, so
either the pairs are made among kept images, or images that were rejected are rendered again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from promptmill.configs.columns import REJECTED_FOR, STAGES, SYNTAX, WORDS
from promptmill.jobs.sharing.row_files import JSONL, ExportError, check_ending, writing
from promptmill.jobs.verifying.image_places import NOTHING, Given
from promptmill.jobs.verifying.regenerate import Again
from promptmill.shards.finished import ShardReader, shards
from promptmill.shards.prompt_texts import prompt_text_of
from promptmill.shards.tables import declared_in, ranks_by

Images = Literal["kept", "all", "none"]

FORM = pa.schema(
    [
        ("caption", pa.string()),
        ("jpg_0", pa.binary()),
        ("jpg_1", pa.binary()),
        ("label_0", pa.float64()),
        ("label_1", pa.float64()),
        ("image_0_uid", pa.string()),
        ("image_1_uid", pa.string()),
        ("score_0", pa.float64()),
        ("score_1", pa.float64()),
        ("seed_0", pa.int64()),
        ("seed_1", pa.int64()),
        ("id", pa.string()),
        ("mode", pa.string()),
        ("negative_prompt", pa.string()),
    ]
)
READ = ("key", "id", "prompt", "negative_prompt", "mode", "seed", "rank", "selected", "pixel_sha256")
LIMITS = ("floor_", "ceiling_")  # a candidate rejected for one of these is never the better of a pair


@dataclass(frozen=True)
class Paired:
    """Holds the numbers of an export of pairs.

    Attributes:
        pairs: Pairs that were written.
        without: Requests that make none: fewer than two candidates to choose from, too alike in score, or an image is lost.
        again: Images that were rendered again.
        different: Images rendered again whose pixels differ from the scored ones; `why`, where the hardware tells.
        lost: Images that do not render again, by key, and why not.
    """

    pairs: int
    without: int
    again: int
    different: int
    why: str
    lost: Mapping[str, str]


def export_pairs(
    output: str,
    file: Path,
    images: Images,
    margin: float = 0.0,
    say: Callable[[str], None] = lambda line: None,
    given: Given = NOTHING,
) -> Paired:
    """Write the preference pairs of an output.

    Args:
        output: The dataset's URI; of an unfinished dataset, the committed shards are exported.
        file: Parquet, or JSON lines without images.
        images: `kept` pairs kept candidates only; `all` pairs all and renders rejected images again on this machine; `none` pairs
            all, and leaves the images out.
        margin: Least difference of the scores of a pair; equal scores make no pair in any case.
        say: Called with a line for each shard whose images were rendered again.
        given: As `Again` has it.

    Raises:
        ExportError: There is nothing to pair, the file's format cannot hold images, or rejected images would be rendered again
            beside kept ones that went through stages.
        CommitError: A file is not what its record says.
        PlanError: Nothing was planned there, or the plan is not that of these shards.
        ModelError: As `Again.images`.
    """
    check_ending(file)
    if file.suffix == JSONL and images != "none":
        raise ExportError(f"{file}: images go into a .parquet; give one, or --images none")
    there = list(shards(output))
    if not there:
        raise ExportError(f"{output}: no shard is committed there")
    if images == "all" and STAGES in declared_in(there[0].table().schema):
        said = "kept images have gone through stages, and rejected ones have not, so that they make no pairs"
        raise ExportError(f"{output}: {said}; --images kept pairs kept images, --images none leaves images out")
    again = Again(output, given) if images == "all" else None
    pairs = without = rendered = different = 0
    why, lost = "", dict[str, str]()
    with writing(file, FORM) as write:
        for shard in there:
            record, rows = shard.record, _rows(shard.table())
            found, few = _pairs(rows, images == "kept", margin)
            without += few
            contents = _contents(shard, found) if images != "none" else {}
            if again is not None:
                absent = {row["key"]: row["pixel_sha256"] for pair in found for row in pair if row["key"] not in contents}
                for made in again.images(record, absent, lost) if absent else ():
                    contents[made.key] = made.image
                    rendered += 1
                    different += not made.same
                    why = why or ("" if made.same else made.hardware)
                say(f"shard {record.shard:06d}: {len(absent.keys() - lost):,} images rendered again")
                whole = [pair for pair in found if not any(row["key"] in lost for row in pair)]
                without += len(found) - len(whole)
                found = whole
            write([_row(better, worse, contents) for better, worse in found])
            pairs += len(found)
        if not pairs:
            raise ExportError(f"{output}: {_none(images, margin) if not lost else f'no pair is whole; {lost_words(lost)}'}")
    return Paired(pairs, without, rendered, different, why, lost)


def lost_words(lost: Mapping[str, str]) -> str:
    """Return how many images do not render again, with the first of them, in words."""
    key, why = next(iter(lost.items()))
    return f"{len(lost):,} image{'s' * (len(lost) > 1)} would not render again, such as {key}: {why}"


def _none(images: Images, margin: float) -> str:
    if images == "kept":
        return (
            "no request keeps two images that differ in score"
            + (f" by {margin:g}" if margin else "")
            + "; --images all renders again what was rejected, --images none leaves images out"
        )
    return "no request has two candidates that differ in score" + (f" by {margin:g}" if margin else "")


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a shard with the columns in use, the rank score as `score`, and whether they `may` be kept."""
    names = [*READ, *(name for name in (SYNTAX, WORDS) if name in declared_in(table.schema))]
    scores = table[ranks_by(table.schema)].to_pylist()
    reasons = table[REJECTED_FOR].to_pylist() if REJECTED_FOR in declared_in(table.schema) else [None] * len(table)
    return [
        {**row, "score": score, "may": not (reason or "").startswith(LIMITS)}
        for row, score, reason in zip(table.select(names).to_pylist(), scores, reasons, strict=True)
    ]


def _pairs(rows: Sequence[Mapping[str, Any]], kept_only: bool, margin: float) -> tuple[list[tuple[Any, Any]], int]:
    """Return the pairs of one shard, in its order, and how many requests make none."""
    requests: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        among = requests.setdefault(row["id"], [])
        if row["score"] is not None and row["pixel_sha256"] is not None and (row["selected"] or not kept_only):
            among.append(row)
    found = []
    for among in requests.values():
        ranked = sorted(among, key=lambda row: (-row["score"], row["rank"]))
        better = next((row for row in ranked if row["may"]), None)
        if better is not None and 0 < better["score"] - ranked[-1]["score"] >= margin:
            found.append((better, ranked[-1]))
    return found, len(requests) - len(found)


def _contents(shard: ShardReader, pairs: Sequence[tuple[Any, Any]]) -> dict[str, bytes]:
    kept = {row["key"] for pair in pairs for row in pair if row["selected"]}
    return {key: image.content for key, image in shard.files(kept).items()}


def _row(better: Mapping[str, Any], worse: Mapping[str, Any], contents: Mapping[str, bytes]) -> dict[str, Any]:
    return {
        "caption": prompt_text_of(better),
        "jpg_0": contents.get(better["key"]),
        "jpg_1": contents.get(worse["key"]),
        "label_0": 1.0,
        "label_1": 0.0,
        **dict(_both("image_{}_uid", "key", better, worse)),
        **dict(_both("score_{}", "score", better, worse)),
        **dict(_both("seed_{}", "seed", better, worse)),
        **{name: better[name] for name in ("id", "mode", "negative_prompt")},
    }


def _both(name: str, column: str, better: Mapping[str, Any], worse: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from ((name.format(number), row[column]) for number, row in enumerate((better, worse)))
