"""Holds the rewritten prompts of a manifest, in parts that are durable one by one, and gives the manifest's rows their prompts.

    OUT/rewritten/parts/000000.parquet …   what became of the prompts of some rows

A part is of the rows that it is made from, and of all that decides on the texts: a part of other rows, of another model or of other
hardware is made anew. So a step that was cut off goes on where it was, to the same texts, and a manifest that has grown has its new
rows rewritten. The parts stay: a plan that is made anew, as by `--accept-changes`, reads them again.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from promptmill.configs.language_models import ORIGINAL, Rewriting
from promptmill.configs.schema import Config
from promptmill.manifests.rows import ManifestError, Row
from promptmill.pipelines.models.identity import library_versions
from promptmill.pipelines.work.results import Failure
from promptmill.shards.parts import PartError, part_name, read_part, write_part
from promptmill.shards.storage import join
from promptmill.shards.tables import IMAGE

FOLDER = "rewritten"
BATCHES = 8  # of the model in a part
FORM = pa.schema([("key", pa.string()), ("prompt", pa.string()), ("error", pa.string())])
# Returns what becomes of some prompts, by a seed for each.
Texts = Callable[[Sequence[str], Sequence[int]], list[str | Failure]]

LIBRARIES = ("torch", "transformers", "tokenizers")


@dataclass(frozen=True)
class Part:
    """Holds rows of the manifest that are rewritten together.

    Attributes:
        name: The part's name.
        fingerprint: The hash of all that decides on its texts.
        rows: The rows.
    """

    name: str
    fingerprint: str
    rows: tuple[Row, ...]

    @property
    def prompts(self) -> dict[int, str]:
        """Return the prompts that are rewritten, by their places in the part."""
        found = ((place, prompt_of(row)) for place, row in enumerate(self.rows))
        return {place: prompt for place, prompt in found if prompt is not None}


@dataclass(frozen=True)
class Step:
    """Rewrites the prompts of an output's manifest, and gives its rows their rewritten prompts; a `Rules.rewritten`.

    Attributes:
        output: The dataset's URI.
        rewriting: What the config says of rewriting.
        seed: The job's seed.
        threads: CPU threads that compute.
        identity: What else decides on the texts, as JSON: the model and the versions of libraries.
    """

    output: str
    rewriting: Rewriting
    seed: int
    threads: int
    identity: str

    def __call__(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield the rows of a manifest with their rewritten prompts.

        Raises:
            ManifestError: The prompts were not rewritten, or a part of them cannot be read.
        """
        for part in self.parts(rows):
            texts = self._read(part) if part.prompts else {}
            if texts is None:
                raise ManifestError(f"{self.output}/{FOLDER}: the prompts are not rewritten yet; `promptmill rewrite` does so")
            yield from (self._row(row, texts.get(place)) for place, row in enumerate(part.rows))

    def parts(self, rows: Iterable[Row]) -> Iterator[Part]:
        """Yield the parts of the manifest's rows, in their order."""
        rows = iter(rows)
        for number in itertools.count():
            if not (some := tuple(itertools.islice(rows, BATCHES * self.rewriting.batch))):
                return
            part = Part(part_name(f"{number:06d}"), "", some)
            said = [(prompt, self.seed_of(some[place])) for place, prompt in part.prompts.items()]
            whole = json.dumps([self.identity, self._hardware if said else {}, said], sort_keys=True)
            yield replace(part, fingerprint=hashlib.sha256(whole.encode()).hexdigest())

    def seed_of(self, row: Row) -> int:
        """Return the 63-bit seed by which the tokens of a row are drawn; 0 where the most probable ones are taken."""
        if not self.rewriting.temperature:
            return 0
        values = row.values
        said = f"{self.seed}\n{values.get('seed')}\n{values.get('id')}\n{values['prompt']}"
        return int.from_bytes(hashlib.sha256(said.encode()).digest()[:8], "big") >> 1

    @cached_property
    def _hardware(self) -> dict[str, str]:
        # It decides the last bits of a model's values, and so, now and then, a word.
        from promptmill.pipelines.rendering.hardware import hardware_kind

        return hardware_kind(self.threads)

    def is_done(self, part: Part) -> bool:
        """Return whether the texts of a part are durable."""
        return not part.prompts or self._read(part) is not None

    def make(self, part: Part, written: Texts) -> None:
        """Make the texts of a part, and write them where they are durable."""
        prompts = part.prompts
        made = written([*prompts.values()], [self.seed_of(part.rows[place]) for place in prompts])
        texts = zip(prompts, made, strict=True)
        rows: list[dict[str, Any]] = [
            {"key": f"{place:06d}", "prompt": text, "error": None, IMAGE: None}
            if isinstance(text, str)
            else {"key": f"{place:06d}", "prompt": None, "error": text.message, IMAGE: None}
            for place, text in texts
        ]
        write_part(join(self.output, FOLDER), part.name, rows, FORM, part.fingerprint)

    def _read(self, part: Part) -> dict[int, tuple[str | None, str | None]] | None:
        """Return the texts or errors of a part, by their places; None where they are not there."""
        try:
            table = read_part(join(self.output, FOLDER), part.name, FORM, part.fingerprint)
            found = {int(row["key"]): (row["prompt"], row["error"]) for row in table.to_pylist()}
        except (FileNotFoundError, PartError, TypeError, ValueError):  # the last two of keys that somebody forged
            return None
        return found if found.keys() == part.prompts.keys() else None

    def _row(self, row: Row, made: tuple[str | None, str | None] | None) -> Row:
        """Return a row with its rewritten prompt, or with what is wrong with it; a row without a prompt stays as it is."""
        if made is None:
            return refused(row)
        (text, error), by = made, f"by {self.rewriting.model.source}"
        if error is not None:
            return replace(row, broken=f"prompt: was not rewritten {by}: {error}")
        if not text:
            return replace(row, broken=f"prompt: was rewritten {by} as nothing")
        return replace(row, values={**row.values, "prompt": text, ORIGINAL: row.values["prompt"]})


def prompt_of(row: Row) -> str | None:
    """Return the prompt of a row, which is rewritten; None for a row without one, or that cannot be read."""
    prompt = row.values.get("prompt")
    return prompt if not refused(row).broken and isinstance(prompt, str) and prompt.strip() else None


def refused(row: Row) -> Row:
    """Return a row that cannot be rewritten with what is wrong with it; any other row as it is."""
    if row.broken:
        return row
    if row.values.get("syntax") not in (None, "plain"):
        return replace(row, broken="syntax: prompts that are rewritten are plain; leave the column out")
    if ORIGINAL in row.values:
        return replace(row, broken=f"{ORIGINAL}: is the column of prompts before they are rewritten; give it another name")
    return row


def step_of(config: Config, output: str, models: Mapping[str, str]) -> Step | None:
    """Return the step that rewrites the prompts of a config's manifest; None where they stay as they are.

    Args:
        config: The config.
        output: The dataset's URI.
        models: The identity of every set of weights, by its place in the config.
    """
    rewriting = config.rewriting
    if rewriting is None:
        return None
    versions = library_versions(config.model)
    decides = {
        "rewriting": rewriting.model_dump(mode="json", exclude={"model": {"source"}}),
        "models": {where: models[where] for where in rewriting.sources()},
        "versions": {name: versions[name] for name in LIBRARIES},
    }
    return Step(output, rewriting, config.seed, config.model.threads, json.dumps(decides, sort_keys=True))
