"""Writes the dataset card: README.md, which tells people what the dataset is and `datasets.load_dataset` how to open it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import yaml

from promptmill.configs.columns import CAPTION, DRAFT_SCORES, RANK_SCORE, STAGE0, Role, by_name, roles_in
from promptmill.configs.schema import ImageFormat
from promptmill.shards.bundles import CAPTION_NAME, STAGE0_NAME, map_names
from promptmill.shards.image_files import FORMATS
from promptmill.shards.index import Totals
from promptmill.shards.outcomes import RARE
from promptmill.shards.sidecars import json_form
from promptmill.shards.tables import declared_in, ranks_by

CARD = "README.md"


@dataclass(frozen=True)
class ModelMade:
    """Names a model that took part in a dataset.

    Attributes:
        role: What the model served as: base, ControlNet canny, scorer, …
        name: The model's name on the Hub, or its folder.
        revision: The commit of the model's repository; None where the model has none.
        licence: The licence as the model's own card states it; None where it is unknown.
    """

    role: str
    name: str
    revision: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Made:
    """Holds the facts of how a dataset was made, which its card says.

    Attributes:
        totals: Sums of the commit records.
        form: The schema of the metadata.
        image_format, quality: Format and quality of the image files; quality, 1 to 100, means nothing to png.
        models: All models that took part.
        modes: Number of requests by mode.
        fingerprint: The plan's fingerprint.
        earlier: How many plans there were before this one, whose shards stayed when changes were accepted.
        asked: What held for each request that said nothing else, by the names of the columns.
        title: The card's heading.
        maps: The most control maps that lie beside an image.
        left_out: For a copy without near-duplicates, how many of them it lacks; None for a dataset as it was rendered.
    """

    totals: Totals
    form: pa.Schema
    image_format: ImageFormat
    quality: int
    models: Sequence[ModelMade]
    modes: Mapping[str, int] = field(default_factory=dict)
    fingerprint: str = ""
    earlier: int = 0
    asked: Mapping[str, str] = field(default_factory=dict)
    title: str = "Synthetic images rendered by promptmill"
    left_out: int | None = None
    maps: int = 0


def card(made: Made) -> bytes:
    """Return README.md of a dataset; the same bytes for the same arguments."""
    front = yaml.safe_dump(_front_matter(made), sort_keys=False, allow_unicode=True, width=120)
    # Whose pictures they are is not ours to say: the line is the one that an owner may change.
    licence = "license: other # the owner's to choose, e.g. cc0-1.0; what the models' licences ask is under How it was made\n"
    sections = (_what(made), _how(made), _loading(made), _provenance(made), LIMITS, _columns(made))
    return (f"---\n{licence}{front}---\n\n# {made.title}\n\n" + "\n".join(sections)).encode()


def _front_matter(made: Made) -> dict[str, Any]:
    return {
        "pretty_name": made.title,
        "task_categories": ["text-to-image"],
        "tags": ["synthetic", "ai-generated", "text-to-image", "promptmill", "webdataset", "diffusers", "clip"],
        "size_categories": [_size_category(made.totals.kept)],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.tar"}]}],
        "dataset_info": {"config_name": "default", "features": _features(made)},
    }


def _size_category(images: int) -> str:
    """Return the size of a dataset as the Hub words it: n<1K, 1K<n<10K, …"""
    steps = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
    for number, step in enumerate(steps):
        if images < 1000 * 10**number:
            return f"{steps[number - 1]}<n<{step}" if number else f"n<{step}"
    return f"n>{steps[-1]}"


def _features(made: Made) -> list[dict[str, Any]]:
    """Return the columns of the webdataset builder, which are the files of a sample by their endings.

    Undeclared, 7 and then 7.5 would become integers.
    """
    return [
        {"name": made.image_format, "dtype": "image"},
        *({"name": name, "dtype": "image"} for name in map_names(made.maps)),
        *([{"name": STAGE0_NAME, "dtype": "image"}] if STAGE0 in made.form.names else []),
        *([{"name": CAPTION_NAME, "dtype": "string"}] if CAPTION in declared_in(made.form) else []),
        {"name": "json", "struct": [{"name": column.name, **_feature(column.type)} for column in json_form(made.form)]},
        {"name": "txt", "dtype": "string"},
        {"name": "__key__", "dtype": "string"},
        {"name": "__url__", "dtype": "string"},
    ]


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_struct(kind):
        return {"struct": [{"name": inner.name, **_feature(inner.type)} for inner in kind]}
    if pa.types.is_list(kind):
        return {"list": _feature(kind.value_type)}
    # Arrow says float and double where datasets says how wide they are.
    return {"dtype": f"float{kind.bit_width}" if pa.types.is_floating(kind) else str(kind)}


def _what(made: Made) -> str:
    totals = made.totals
    modes = ", ".join(f"{mode} ({number:,})" for mode, number in sorted(made.modes.items()))
    failed = f"; {totals.failed_requests:,} requests came to nothing" if totals.failed_requests else ""
    rare = totals.rare
    return f"""\
Synthetic images with the prompts they were rendered from: each request was rendered several times, and CLIP kept the best.
**Every image here was made by a trained model; none is a photograph.**

| requests | candidates | kept | rejected | failed |{"".join(f" {name} |" for name in rare)} shards | size |
|---:|---:|---:|---:|---:|{"---:|" * len(rare)}---:|---:|
| {totals.requests:,} | {totals.candidates:,} | {totals.kept:,} | {totals.rejected:,} | {totals.failed:,} |\
{"".join(f" {number:,} |" for number in rare.values())} {totals.shards:,} | {totals.bytes / 1e6:,.1f} MB |

Kept candidates are the images in `data/`. Rejected and failed ones have a row in `metadata/` and no image{failed}.
{"".join(RARE[name] for name in rare)}\
{f"Requests by mode: {modes}." if modes else ""}
{_copied(made.left_out)}"""


def _copied(left_out: int | None) -> str:
    if left_out is None:
        return ""
    return f"""
This is a copy without near-duplicates: {left_out:,} of the rejected were kept before. `duplicate_of` names the image that is kept
instead, `dedup.parquet` says why. The plan lies with the original.
"""


def _earlier(plans: int) -> str:
    if not plans:
        return ""
    said = "an earlier plan" if plans == 1 else f"{plans} earlier plans"
    return f"Shards may be of {said}, which `plan/earlier/` holds, with what changed; each commit record names its plan.\n"


def _how(made: Made) -> str:
    said = [(m, _code(m.revision) if m.revision else "", _code(m.licence) if m.licence else "unknown") for m in made.models]
    models = "\n".join(f"| {m.role} | {_code(m.name)} | {revision} | {licence} |" for m, revision, licence in said)
    ranked = "`rank_score`, in which other scorers have their say" if ranks_by(made.form) == RANK_SCORE else "that"
    form = f"{made.image_format} at quality {made.quality}" if FORMATS[made.image_format].has_quality else made.image_format
    asked = ", ".join(f"{name} {_code(value)}" for name, value in made.asked.items())
    return f"""\
## How it was made

By promptmill, from a manifest of requests and the render config that lies in `plan/`. Each candidate has its own seed. CLIP scores
the pixels before encoding (`clip_score`: 100 × the cosine of the prompt's and the image's embeddings), the candidates of a request
are ranked by {ranked}, and the best are encoded as {form}.
{f"Where a request said nothing else: {asked}." if asked else ""}

| part | model | revision | licence |
|---|---|---|---|
{models}

A licence is what the model's own card says; where it is unknown, ask whoever published the model. Some of them bind what is made
with the model, too. This dataset's own is in this file's first lines, `other` until its owner chooses one.

{_earlier(made.earlier)}Fingerprint of the plan: {_code(made.fingerprint)}. `promptmill verify FOLDER` opens every file again and
checks it against the records in `commits/`; `promptmill regenerate FOLDER KEY` makes one image again, kept or not.
"""


def _loading(made: Made) -> str:
    ending = made.image_format
    return f"""\
## How to load it

`FOLDER` is where this file lies. From the Hub, datasets takes the repository's name in its place, and DuckDB
`hf://datasets/OWNER/NAME`; webdataset wants a copy (`hf download OWNER/NAME --repo-type dataset --local-dir FOLDER`).

With Hugging Face datasets:

```python
from datasets import load_dataset

images = load_dataset("FOLDER", split="train")
images[0]["{ending}"], images[0]["txt"], images[0]["json"]["clip_score"]

{_maps(made)}# All candidates, without images:
candidates = load_dataset("parquet", data_files="FOLDER/metadata/*.parquet", split="train")
```

With webdataset:

```python
import glob

import webdataset

shards = sorted(glob.glob("FOLDER/data/*.tar"))
for image, prompt, row in webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("{ending}", "txt", "json"):
    print(image.size, prompt, row["clip_score"])
```

With DuckDB:

```sql
SELECT mode, count(*) AS images, avg(clip_score) AS score
FROM 'FOLDER/metadata/*.parquet' WHERE selected GROUP BY mode ORDER BY mode;
```
"""


def _maps(made: Made) -> str:
    return 'images[0]["control.0.png"]  # the control map that steered it; None for an image without one\n\n' if made.maps else ""


def _provenance(made: Made) -> str:
    said = FORMATS[made.image_format].says
    return f"""\
## Provenance

Each image file says how it was made, {said}, in the form that Stable Diffusion web UIs read back, and carries XMP
with IPTC's `DigitalSourceType` `trainedAlgorithmicMedia`. `sha256` in the metadata is of the file, `pixel_sha256` of the pixels
before encoding.
"""


LIMITS = """\
## Limits

- The images show what the models above make of the prompts, with the mistakes, stereotypes and gaps of what those were trained on;
  training on them hands these on. A prompt is what was asked for, not what can be seen: nobody has looked at each image.
- CLIP chose. It reads nouns better than counts, places and negations. A `clip_score` compares candidates of one prompt, images of
  different prompts hardly, those of different scorers not at all.
- A text encoder reads a limited number of tokens: where `prompt_truncated` is true, the image knows only the prompt's beginning.
- Several images may be kept of one request, with one prompt and one `id`: split by `id`, so that none leaks into a test set.
"""


def _columns(made: Made) -> str:
    roles, ours = roles_in(made.form), by_name() | declared_in(made.form)
    meanings = {name: ours[name].meaning for name, role in roles.items() if role is not Role.CARRIED}
    if DRAFT_SCORES in made.form.names:
        meanings["status"] = "kept, rejected, drafted or failed"
    rows = "\n".join(
        f"| {_code(f.name)} | {_code(str(f.type))} | {meanings.get(f.name, 'carried over from the manifest')} |" for f in made.form
    )
    return f"""\
## Columns

`metadata/*.parquet` has a row for each candidate, and one for each request that failed as a whole. The JSON beside an image is its
row without `clip_embedding`. Key: shard, row in the shard, candidate.

| column | type | meaning |
|---|---|---|
{rows}
"""


def _code(text: str) -> str:
    """Return a text as Markdown code, which stays in one cell of a table too."""
    return "`" + " ".join(text.replace("`", "'").replace("|", "\\|").split()) + "`"
